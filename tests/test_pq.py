"""Product quantisation: exact encoding and tables, quality next to faiss, and the module on top."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Target, gauss, seeded
from second_opinions import product_quantize_by_parts
from torch import Tensor

import vecbank
from vecbank import pq, reference
from vecbank.cluster import kmeans
from vecbank.nn.product_quantizer import ProductQuantizer
from vecbank.pq import ProductCodec

pytestmark = pytest.mark.usefixtures("one_thread")


def uneven(count: int, width: int, seed: int = 0) -> Tensor:
    """Correlated features of very different sizes: what a rotation is good for."""
    mix = torch.randn(width, width, generator=seeded(99)) * torch.linspace(2, 0.1, width)
    return torch.randn(count, width, generator=seeded(seed)) @ mix


def error(codec: ProductCodec, x: Tensor) -> float:
    return float((codec.decode(codec.encode(x)) - x).square().sum(1).mean())


@pytest.mark.usefixtures("both_ways")  # codebooks that are not packed for so few rows, and packed ones
@pytest.mark.parametrize(("d", "m"), [(12, 3), (12, 12), (12, 1), (13, 4), (9, 8), (16, 5)])
def test_encode_is_nearest_in_each_part(d: int, m: int) -> None:
    w = (d + m - 1) // m
    x, codebooks = gauss(70, d), gauss(m, 9, w, seed=1)
    codes = pq.encode(x.view(7, 10, d), codebooks)
    assert codes.shape == (7, 10, m)
    full = torch.nn.functional.pad(x, (0, m * w - d)).double().view(70, m, w)
    want = torch.stack([torch.cdist(full[:, i], codebooks[i].double()).argmin(1) for i in range(m)], 1)
    assert torch.equal(codes.view(70, m), want)
    decoded = pq.decode(codes, codebooks, width=d)
    assert decoded.shape == (7, 10, d)
    assert torch.equal(decoded.view(70, d), codebooks[torch.arange(m), want].flatten(1)[:, :d])


@pytest.mark.parametrize("metric", ["sqeuclidean", "dot"])
@pytest.mark.parametrize("turned", [False, True])
def test_tables_give_the_distances_to_what_codes_stand_for(metric: str, turned: bool) -> None:
    x, queries, codebooks = (
        gauss(50, 12, dtype=torch.float64),
        gauss(8, 12, dtype=torch.float64, seed=2),
        gauss(3, 16, 4, dtype=torch.float64, seed=1),
    )
    rotation = torch.linalg.qr(gauss(12, 12, dtype=torch.float64)).Q if turned else None
    codec = ProductCodec(codebooks, 12, rotation)
    codes = codec.encode(x)
    score = {"sqeuclidean": lambda a, b: torch.cdist(a, b).square(), "dot": lambda a, b: a @ b.T}[metric]
    got = pq.scores(codec.tables(queries, metric), codes)
    torch.testing.assert_close(got, score(queries, codec.decode(codes)))
    asked = codec.encode(queries)
    got = pq.scores(codec.symmetric_tables(asked, metric), codes)
    torch.testing.assert_close(got, score(codec.decode(asked), codec.decode(codes)))


def test_a_part_without_a_valid_row_scores_nothing() -> None:
    codebooks = gauss(2, 4, 3)
    codes = pq.encode(torch.tensor([[torch.nan] * 3 + [0.5] * 3, [0.5] * 6]), codebooks)
    assert codes[0, 0] == -1 and (codes[1] >= 0).all()
    table = pq.symmetric_tables(codes, codebooks)
    assert table[0, 0].isnan().all() and table[0, 1].isfinite().all() and table[1].isfinite().all()
    scores = pq.scores(pq.tables(gauss(3, 6, seed=1), codebooks), codes)
    assert scores[:, 0].isnan().all() and scores[:, 1].isfinite().all()


def test_decode_gradient_reaches_the_books() -> None:
    codebooks = gauss(3, 5, 4, dtype=torch.float64).requires_grad_()
    codes = torch.randint(0, 5, (20, 3), generator=seeded())
    probe = gauss(20, 12, dtype=torch.float64)
    (pq.decode(codes, codebooks) * probe).sum().backward()
    one_hot = torch.nn.functional.one_hot(codes, 5).double()
    torch.testing.assert_close(codebooks.grad, torch.einsum("nmk,nmw->mkw", one_hot, probe.view(20, 3, 4)))


@pytest.mark.parametrize("bits", [1, 4, 5, 8])
def test_codec_packs_exactly(bits: int) -> None:
    x = uneven(600, 10)
    codec = pq.train(x, 4, bits, iterations=3, generator=seeded())
    assert codec.codebooks.shape == (4, 1 << bits, 3) and codec.bits == bits
    codes, packed = codec.encode(x), codec.encode(x, packed=True)
    assert packed.shape == (600, codec.bytes_per_vector) and codec.bytes_per_vector == (4 * bits + 7) // 8
    assert torch.equal(codec.decode(packed), codec.decode(codes))
    assert torch.equal(codec.codes(packed), codes)


def test_sixteen_bits() -> None:
    codebooks = gauss(2, 1 << 16, 3)
    codec = ProductCodec(codebooks, 6)
    x = gauss(40, 6, seed=1)
    codes = codec.encode(x)
    assert codec.bits == 16 and codec.bytes_per_vector == 4
    assert torch.equal(codec.codes(codec.encode(x, packed=True)), codes)
    assert torch.equal(codes[:, 0], torch.cdist(x[:, :3].double(), codebooks[0].double()).argmin(1))


def test_training_is_repeatable_for_any_thread_count() -> None:
    x = uneven(900, 12)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(pq.train(x, 3, 5, generator=seeded()).codebooks)
    assert torch.equal(found[0], found[1])
    turned = [pq.train(x, 3, 5, rotation=True, rotations=3, generator=seeded()) for _ in range(2)]
    assert torch.equal(turned[0].codebooks, turned[1].codebooks)
    assert not torch.equal(pq.train(x, 3, 5, generator=seeded(1)).codebooks, found[0])


def test_training_on_a_sample() -> None:
    x = uneven(3000, 8)
    few = pq.train(x, 2, 4, samples_per_code=20, generator=seeded())
    assert error(few, x) < 1.3 * error(pq.train(x, 2, 4, generator=seeded()), x)


def test_rotation_is_orthogonal_and_pays() -> None:
    x = uneven(2000, 16)
    plain = pq.train(x, 4, 4, generator=seeded())
    turned = pq.train(x, 4, 4, rotation=True, generator=seeded())
    assert turned.rotation is not None
    torch.testing.assert_close(turned.rotation @ turned.rotation.T, torch.eye(16), rtol=0, atol=1e-5)
    start = pq.train(x, 4, 4, rotation=True, rotations=0, generator=seeded())
    assert error(turned, x) < error(start, x) < 0.7 * error(plain, x)


def test_rotation_never_hurts() -> None:
    """Neighbouring pixels belong together: turning them apart at the start would lose that."""
    datasets = pytest.importorskip("sklearn.datasets")
    x = torch.from_numpy(datasets.load_digits().data).float()
    plain = pq.train(x, 8, 4, generator=seeded())
    assert error(pq.train(x, 8, 4, rotation=True, rotations=8, generator=seeded()), x) < error(plain, x)


def test_quality_and_bytes_next_to_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    x = uneven(1500, 16)
    for bits in (4, 5):
        peer = faiss.ProductQuantizer(16, 4, bits)
        peer.train(x.numpy())
        decoded = torch.from_numpy(peer.decode(peer.compute_codes(x.numpy())))
        theirs = float((decoded - x).square().sum(1).mean())
        assert error(pq.train(x, 4, bits, generator=seeded()), x) < 1.02 * theirs
        # the peer's codebooks in ours: the same codes in the same bytes
        codebooks = torch.from_numpy(faiss.vector_to_array(peer.centroids)).view(4, 1 << bits, 4)
        packed = ProductCodec(codebooks, 16).encode(x, packed=True)
        assert (packed == torch.from_numpy(peer.compute_codes(x.numpy()))).all(1).float().mean() > 0.999
    rotation = faiss.OPQMatrix(16, 4)
    rotation.pq, rotation.niter = peer, 20  # as many turns as ours takes
    rotation.train(x.numpy())
    turned = rotation.apply(x.numpy())
    peer.train(turned)
    theirs = float(((peer.decode(peer.compute_codes(turned)) - turned) ** 2).sum(1).mean())
    assert error(pq.train(x, 4, 5, rotation=True, generator=seeded()), x) < 1.02 * theirs


def test_product_and_residual_forms_on_digits() -> None:
    """Mean squared error per vector, in the units of the table of published systems (McQuic's two forms)."""
    datasets = pytest.importorskip("sklearn.datasets")
    x = torch.from_numpy(datasets.load_digits().data)
    product = pq.train(x, 4, 4, generator=seeded())
    assert error(product, x) / 64 < 10.0
    residual, errors = x.clone(), []
    for _ in range(4):
        codebook = kmeans(residual, 16, generator=seeded()).centroids
        residual = residual - vecbank.quantize(residual, codebook).quantized
        errors.append(float(residual.square().mean()))
    assert errors == sorted(errors, reverse=True)


# --- the module ---


@pytest.mark.parametrize("decay", [0.9, None])
def test_module_is_product_quantisation_with_straight_through(decay: float | None) -> None:
    module = ProductQuantizer(12, 3, 16, decay=decay, generator=seeded()).double().eval()
    x = gauss(5, 8, 12, dtype=torch.float64).requires_grad_()
    out = module(x)
    assert torch.equal(out.codes, pq.encode(x.detach(), module.codebooks.detach()))
    assert torch.equal(out.quantized, module.decode(out.codes)) and torch.equal(module.encode(x.detach()), out.codes)
    want = (out.quantized.detach() - x.detach()).square().mean()
    torch.testing.assert_close(out.loss, want.expand_as(out.loss) * (1 if decay else 2), check_dtype=False)
    probe = gauss(5, 8, 12, dtype=torch.float64, seed=2)
    (out.quantized * probe).sum().backward()
    assert torch.equal(x.grad, probe)  # type: ignore[arg-type]


def test_module_learns_by_averages_as_by_hand() -> None:
    module = ProductQuantizer(6, 2, 4, decay=0.8, generator=seeded()).double()
    sizes, sums = module.sizes.clone(), module.sums.clone()
    for i in range(3):
        x, codebooks = gauss(30, 6, dtype=torch.float64, seed=i), module.codebooks.clone()
        codes = module(x).codes
        assert torch.equal(codes, pq.encode(x, codebooks))
        for p in range(2):
            one_hot = torch.nn.functional.one_hot(codes[:, p], 4).double()
            sizes[p] = 0.8 * sizes[p] + 0.2 * one_hot.sum(0)
            sums[p] = 0.8 * sums[p] + 0.2 * one_hot.T @ x[:, 3 * p : 3 * p + 3]
        total = sizes.sum(1, keepdim=True)
        smooth = (sizes + 1e-5) / (total + 4e-5) * total
        torch.testing.assert_close(module.codebooks, sums / smooth.unsqueeze(-1))


@pytest.mark.parametrize("decay", [0.9, None])
def test_module_training_lowers_the_error(decay: float | None) -> None:
    x = uneven(512, 8)
    module = ProductQuantizer(8, 2, 16, decay=decay, rare=0.5, generator=seeded())
    parameters = list(module.parameters()) or [torch.zeros(1, requires_grad=True)]
    optimiser, errors = torch.optim.Adam(parameters, lr=0.1), []
    for _ in range(60):
        out = module(x)
        errors.append(float((out.quantized.detach() - x).square().mean()))
        if decay is None:
            optimiser.zero_grad()
            out.loss.backward()
            optimiser.step()
    fitted = ProductQuantizer(8, 2, 16, generator=seeded()).fit_(x, generator=seeded()).eval()
    best = float((fitted(x).quantized - x).square().mean())
    assert errors[-1] < 0.5 * errors[0] and errors[-1] < 2 * best


def test_module_rotation_and_codec() -> None:
    x = uneven(800, 8)
    plain = ProductQuantizer(8, 4, 16).fit_(x, generator=seeded()).eval()
    turned = ProductQuantizer(8, 4, 16, rotation=True).fit_(x, generator=seeded()).eval()
    wrong = [float((m(x).quantized - x).square().mean()) for m in (plain, turned)]
    assert wrong[1] < 0.8 * wrong[0]
    codec = turned.codec
    assert torch.equal(codec.codes(codec.encode(x, packed=True)), turned(x).codes)
    torch.testing.assert_close(codec.decode(turned(x).codes), turned(x).quantized)
    other = ProductQuantizer(8, 4, 16, rotation=True)
    other.load_state_dict(turned.state_dict())
    assert torch.equal(other.eval()(x).codes, turned(x).codes)


def test_module_compiles_whole() -> None:
    plain = ProductQuantizer(8, 2, 16, generator=seeded())
    other = copy.deepcopy(plain)
    whole = torch.compile(other, fullgraph=True, backend="aot_eager")
    for i in range(3):
        x = gauss(20, 8, seed=i)
        torch.testing.assert_close(tuple(plain(x)), tuple(whole(x)))
    torch.testing.assert_close(plain.codebooks, other.codebooks)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, b: pq.train(x, 0), ValueError, "parts must lie between 1 and 12"),
        (lambda x, b: pq.train(x, 3, 17), ValueError, "bits must lie between 1 and 16"),
        (lambda x, b: pq.train(x, 3, 8), ValueError, "x must have at least 2\\^bits = 256 rows"),
        (lambda x, b: pq.train(x.long(), 3, 2), TypeError, "x must be float32"),
        (lambda x, b: pq.encode(x[:, :8], b), ValueError, "x must have 10 to 12 columns"),
        (lambda x, b: pq.encode(x, b[0]), ValueError, "codebooks must have shape"),
        (lambda x, b: pq.encode(x, b, torch.eye(3)), ValueError, "rotation must have shape"),
        (lambda x, b: pq.decode(torch.zeros(2, 4).long(), b), ValueError, "codes must have shape"),
        (lambda x, b: pq.decode(torch.full((2, 3), 9), b), IndexError, "codes must lie between"),
        (lambda x, b: pq.tables(x, b, "cosine"), ValueError, "metric must be one of"),
        (
            lambda x, b: pq.symmetric_tables(torch.zeros(2, 3).long(), b, "l2"),
            ValueError,
            "metric must be one of",
        ),
        (lambda x, b: ProductQuantizer(12, 5), ValueError, "dim must be a multiple of parts"),
        (lambda x, b: ProductQuantizer(12, 3, decay=1.0), ValueError, "decay must lie in"),
        (lambda x, b: ProductQuantizer(12, 3)(x[:, :5]), ValueError, "x must have shape"),
        (lambda x, b: ProductQuantizer(12, 3, 9).fit_(x), ValueError, "fit_ needs a power of two"),
        (lambda x, b: pq.scores(pq.tables(x, b), torch.zeros(2, 4).long()), ValueError, "tables must be"),
        (lambda x, b: pq.scores(pq.tables(x, b), torch.full((2, 3), 9)), IndexError, "codes must lie between"),
        (lambda x, b: pq.symmetric_tables(torch.zeros(2, 4).long(), b), ValueError, "codes must have shape"),
    ],
)
def test_refuses_by_name(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(gauss(50, 12), gauss(3, 9, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_part_is_a_nearest_search(dtype: torch.dtype, threads: int) -> None:
    """Over several blocks of rows, ties and NaN included, and from a view with gaps between its rows."""
    torch.set_num_threads(threads)
    codebooks = gauss(5, 37, 3).to(torch.float64 if dtype == torch.float64 else torch.float32)
    codebooks[:, 20] = codebooks[:, 4]
    x = gauss(2100, 30).to(dtype)[:, 6:21]
    x[7, 4] = torch.nan
    codes = pq.encode(x, codebooks)
    for part, codebook in enumerate(codebooks):
        want = reference.nearest(x[:, 3 * part : 3 * part + 3].contiguous(), codebook, "sqeuclidean").indices
        assert torch.equal(codes[:, part], want)
    assert torch.equal(codes, product_quantize_by_parts(x, codebooks, None))
    assert codes[7, 1] == -1
    with pytest.raises(RuntimeError, match="pack does not belong"):
        torch.ops.vecbank.product_quantize(x, codebooks, torch.ops.vecbank.pack(codebooks[:, 1:], 3))
    with pytest.raises(TypeError, match="dtype"):
        pq.encode(x.double() if x.dtype != torch.float64 else x.float(), codebooks)


def test_a_codec_is_saved_and_moved() -> None:
    x = gauss(64, 6)
    codec = pq.train(x, 3, 4, rotation=True, rotations=2, generator=seeded())
    file = io.BytesIO()
    torch.save(codec, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded.decode(loaded.encode(x)), codec.decode(codec.encode(x)))
    wide = codec.to(torch.float64)
    assert wide.width == 6 and wide.rotation is not None and wide.rotation.dtype == torch.float64
    torch.testing.assert_close(wide.decode(codec.encode(x)).float(), codec.decode(codec.encode(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotated_codes_depend_on_no_batch_and_no_processor(dtype: torch.dtype, target: Target) -> None:
    """Codes of 200 rows are those of each row by itself, and of float64 sums rounded once; decoding is a product."""
    device = target.device
    rotation = torch.linalg.qr(gauss(40, 40, seed=1)).Q
    x = (gauss(200, 40) / 30 + 3).to(dtype)  # sums that cancel: float32 gets few of their digits right
    y = (x.double() @ rotation.double()).float()
    codebooks = torch.stack([y[::8, 8 * i : 8 * i + 8] + 1e-4 * gauss(25, 8, seed=i) for i in range(5)])
    codebooks = torch.cat(
        [codebooks, 2 * y[::8].view(25, 5, 8).transpose(0, 1) - codebooks], 1
    )  # two rows as far away as can be told
    codebooks, turn, x = codebooks.to(device), rotation.to(device), x.to(device)
    codes = pq.encode(x, codebooks, turn)
    decoded = pq.decode(codes, codebooks, turn)
    each = torch.cat([pq.encode(row, codebooks, turn) for row in x.split(1)])
    assert torch.equal(each, codes)
    assert torch.equal(codes.cpu(), pq.encode(y, codebooks.cpu()))
    rows = pq.decode(codes, codebooks).double().cpu()
    torch.testing.assert_close(decoded.cpu(), (rows @ rotation.double().T).float())
    module = ProductQuantizer(40, 5, 50, rotation=True).to(device).eval()
    module.codebooks.copy_(codebooks)
    module.rotation.copy_(turn)  # type: ignore[union-attr]
    found = module(x)
    assert torch.equal(found.codes, codes)
    assert torch.equal(module.encode(x), codes)
    torch.testing.assert_close(found.quantized, decoded)
    assert torch.equal(torch.cat([module(row).codes for row in x.split(1)]), codes)


def test_tables_of_an_empty_batch() -> None:
    codebooks = gauss(4, 16, 2)
    codec = vecbank.ProductCodec(codebooks, 8)
    for x in (gauss(0, 8), gauss(2, 0, 8)):
        assert pq.tables(x, codebooks).shape == codec.tables(x).shape == (*x.shape[:-1], 4, 16)


def test_a_codec_gives_its_codes_as_int64() -> None:
    codec = vecbank.ProductCodec(gauss(4, 16, 2), 8)
    codes = codec.encode(gauss(5, 8))
    found = codec.codes(codes.int())
    assert found.dtype == torch.int64 and torch.equal(found, codes)


def test_a_codec_takes_vectors_of_its_own_width_alone() -> None:
    codec = vecbank.pq.train(gauss(40, 16), 4, 3, generator=seeded())
    for width in (13, 17):
        with pytest.raises(ValueError, match="x must have the codec's width 16"):
            codec.encode(gauss(3, width))
        with pytest.raises(ValueError, match="x must have the codec's width 16"):
            codec.tables(gauss(3, width))
