"""Scalar and binary codes, and packing: exact round trips, the published formulas, straight-through
gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import gauss, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vecbank
from vecbank.cluster import kmeans
from vecbank.codes import (
    _packing,
    bernoulli_quantize,
    bits_to_index,
    fsq_lookup,
    fsq_quantize,
    index_to_bits,
    pack_bits,
    packed_bytes,
    residual_binary_lookup,
    residual_binary_quantize,
    round_quantize,
    scalar_lookup,
    scalar_quantize,
    sign_lookup,
    sign_quantize,
    straight_through,
    unpack_bits,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def bit_string(row: list[int], widths: list[int]) -> bytes:
    """The definition: one integer per row, lowest code in the lowest bits."""
    total, whole = 0, 0
    for code, width in zip(row, widths, strict=True):
        whole |= code << total
        total += width
    return whole.to_bytes((total + 7) // 8, "little")


# --- packing ---


@pytest.mark.parametrize("bits", [*range(1, 18), 31, 32, 33, 62, 63])
@pytest.mark.parametrize("count", [1, 5, 16])
def test_packing_is_exact_for_any_bits(bits: int, count: int) -> None:
    codes = torch.randint(0, 1 << min(bits, 62), (13, count), generator=seeded())
    codes[0], codes[1] = (1 << bits) - 1, 0
    packed = pack_bits(codes, bits)
    assert packed.shape == (13, packed_bytes(count, bits)) and packed.dtype == torch.uint8
    assert torch.equal(unpack_bits(packed, count, bits), codes)
    for row, want in zip(packed, codes.tolist(), strict=True):
        assert bytes(row.tolist()) == bit_string(want, [bits] * count)


@given(st.lists(st.integers(1, 63), min_size=1, max_size=9), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_packing_with_a_width_for_each_code(widths: list[int], seed: int) -> None:
    g = seeded(seed)
    codes = torch.stack([torch.randint(0, 1 << min(w, 62), (7,), generator=g) for w in widths], 1)
    packed = pack_bits(codes, widths)
    assert torch.equal(unpack_bits(packed, len(widths), widths), codes)
    assert bytes(packed[3].tolist()) == bit_string(codes[3].tolist(), widths)


def test_packing_any_leading_shape_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 32, (3, 4, 11), generator=seeded())
    want = pack_bits(codes, 5)
    assert want.shape == (3, 4, 7)
    monkeypatch.setattr(_packing, "_BLOCK", 120)
    assert torch.equal(pack_bits(codes, 5), want) and torch.equal(unpack_bits(want, 11, 5), codes)
    assert pack_bits(codes[:0], 5).shape == (0, 4, 7) and unpack_bits(want[:0], 11, 5).shape == (0, 4, 11)
    assert pack_bits(codes[..., :0], 5).shape == (3, 4, 0)
    assert torch.equal(pack_bits(codes[0, 0], 5), want[0, 0])
    flags = codes > 15
    assert torch.equal(unpack_bits(pack_bits(flags), 11).bool(), flags)


def test_bits_and_numbers() -> None:
    bits = torch.rand(20, 63, generator=seeded()) < 0.5
    assert torch.equal(index_to_bits(bits_to_index(bits), 63), bits)
    assert bits_to_index(torch.tensor([True, False, True])).item() == 5


# --- scalars ---


def test_table_per_dimension() -> None:
    z, tables = gauss(200, 6), gauss(6, 9, seed=1)
    got = scalar_quantize(z, tables)
    want = (z.double().unsqueeze(-1) - tables.double()).abs().argmin(-1)
    assert torch.equal(got.codes, want)
    assert torch.equal(got.quantized, tables[torch.arange(6), want])
    assert torch.equal(got.quantized, scalar_lookup(got.codes, tables))
    # the same as a codebook of one dimension for each
    codebooks = vecbank.nearest(z.T.unsqueeze(-1), tables.unsqueeze(-1))
    assert torch.equal(codebooks.indices.T, want)


def test_table_ties_and_nan() -> None:
    tables = torch.tensor([[1.0, -1.0, 1.0, 3.0]])
    got = scalar_quantize(torch.tensor([[0.0], [1.0], [2.0], [torch.nan]]), tables)
    assert got.codes.flatten().tolist() == [0, 0, 0, -1]
    assert got.quantized[:3].flatten().tolist() == [1.0, 1.0, 1.0] and got.quantized[3].isnan()


def test_table_gradients() -> None:
    z = gauss(50, 4, dtype=torch.float64).requires_grad_()
    tables = gauss(4, 5, dtype=torch.float64, seed=1).requires_grad_()
    probe = gauss(50, 4, dtype=torch.float64, seed=2)
    quantized, codes = scalar_quantize(z, tables)
    (quantized * probe).sum().backward()
    assert torch.equal(z.grad, probe) and tables.grad is None  # type: ignore[arg-type]
    (scalar_lookup(codes, tables) * probe).sum().backward()
    one_hot = torch.nn.functional.one_hot(codes, 5).double()
    torch.testing.assert_close(tables.grad, (one_hot * probe.unsqueeze(-1)).sum(0))


def test_tables_rate_and_distortion_on_digits() -> None:
    """Error of 8 principal coordinates coded by evenly spread tables falls with their size as it should."""
    datasets = pytest.importorskip("sklearn.datasets")
    x = torch.from_numpy(datasets.load_digits().data)
    x = x - x.mean(0)
    z = x @ torch.linalg.eigh(x.T @ x).eigenvectors[:, -8:]
    errors = []
    for count in (2, 3, 5, 10):
        codebooks = [kmeans(column, count, generator=seeded()).centroids for column in z.T.unsqueeze(-1)]
        tables = torch.stack(codebooks).squeeze(-1)
        errors.append(float((scalar_quantize(z, tables).quantized - z).norm() / z.norm()) ** 2)
    assert errors == sorted(errors, reverse=True) and errors[0] < 0.37 and errors[-1] < 0.035


def test_rounding() -> None:
    x = gauss(30).requires_grad_()
    got = round_quantize(x, 0.25)
    assert torch.equal(got.quantized, got.codes * 0.25) and ((got.quantized - x).abs() <= 0.125).all()
    got.quantized.sum().backward()
    assert (x.grad == 1).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("levels", [[2], [3], [8, 5, 5, 5], [7, 2, 4]])
def test_finite_scalar_grid(levels: list[int]) -> None:
    line = torch.linspace(-5, 5, 2001, dtype=torch.float64).unsqueeze(1)
    axes = []
    for count in levels:  # one point of the line for each level, wherever its interval lies
        codes = fsq_quantize(line, [count]).codes
        axes.append(line[torch.stack([(codes == c).nonzero()[0, 0] for c in range(count)]), 0])
    z = torch.cartesian_prod(*axes).view(-1, len(levels))
    got = fsq_quantize(z, levels)
    total = len(z)
    assert torch.equal(got.codes.unique(), torch.arange(total))  # all of them, and no other
    assert torch.equal(fsq_lookup(got.codes, levels, torch.float64), got.quantized)
    for j, count in enumerate(levels):
        grid = (torch.arange(count) - count // 2).double() / (count // 2)
        assert torch.equal(got.quantized[:, j].unique(), grid)
        order = z[:, j].argsort()
        assert (got.quantized[order, j].diff() >= 0).all()  # monotone
    odd = [count if count % 2 else count + 1 for count in levels]
    zero = fsq_quantize(torch.zeros(1, len(levels)), odd)
    assert (zero.quantized == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_scalar_codes_of_sixteen_bits_stay_below_the_levels(dtype: torch.dtype) -> None:
    levels = [1000, 7]
    z = (3 * gauss(2000, 2)).to(dtype)
    got, wide = fsq_quantize(z, levels), fsq_quantize(z.float(), levels)
    assert torch.equal(got.codes, wide.codes) and int(got.codes.max()) < 7000
    assert got.quantized.dtype == dtype and torch.equal(got.quantized, wide.quantized.to(dtype))
    assert torch.equal(fsq_lookup(got.codes, levels, dtype), got.quantized)


def test_finite_scalar_not_a_number() -> None:
    z = torch.tensor([[torch.nan, 0.2], [0.1, 0.2]])
    got = fsq_quantize(z, [8, 5])
    assert got.codes[0] == -1 and got.quantized[0].isnan().any()
    assert got.codes[1] == fsq_quantize(z[1], [8, 5]).codes
    assert (fsq_lookup(got.codes, [8, 5])[0] == 0).all()


def test_finite_scalar_gradient_is_that_of_the_squashing() -> None:
    levels = [8, 5, 5]
    z = gauss(20, 3, dtype=torch.float64).requires_grad_()
    fsq_quantize(z, levels).quantized.sum().backward()
    count = torch.tensor(levels)
    half = (count - 1) * (1 + 1e-3) / 2
    offset = (1 - count % 2) / 2
    smooth = z.detach().requires_grad_()
    (torch.tanh(smooth + torch.atanh(offset / half)) * half / (count // 2)).sum().backward()
    torch.testing.assert_close(z.grad, smooth.grad)


# --- bits ---


def test_signs() -> None:
    z = torch.tensor([[0.5, -0.2, 0.0]], requires_grad=True)
    got = sign_quantize(z, 0.25)
    assert got.quantized.tolist() == [[0.25, -0.25, -0.25]] and got.codes.tolist() == [[True, False, False]]
    assert bits_to_index(got.codes).tolist() == [1]
    assert torch.equal(sign_lookup(got.codes, 0.25), got.quantized)
    (got.quantized * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert z.grad.tolist() == [[1.0, 2.0, 3.0]]  # type: ignore[union-attr]


def test_bernoulli_bits() -> None:
    h = gauss(16, seed=3).requires_grad_()
    p = torch.sigmoid(h).expand(20000, 16)
    got = bernoulli_quantize(p, seeded())
    assert torch.equal(got.quantized, bernoulli_quantize(p, seeded()).quantized)
    assert ((got.quantized.mean(0) - torch.sigmoid(h)).abs() < 0.015).all()
    assert torch.equal(got.codes, got.quantized.bool())
    got.quantized.mean(0).sum().backward()
    torch.testing.assert_close(h.grad, (torch.sigmoid(h) * (1 - torch.sigmoid(h))).detach())
    packed = pack_bits(got.codes)
    assert packed.shape == (20000, 2) and torch.equal(unpack_bits(packed, 16).bool(), got.codes)


@pytest.mark.parametrize("planes", [1, 2, 3, 8])
def test_halving_planes(planes: int) -> None:
    x = (4 * torch.rand(400, 16, generator=seeded()) - 2) * 0.7
    got = residual_binary_quantize(x, planes, 0.7)
    assert got.codes.shape == (400, planes, 16)
    assert ((got.quantized - x).abs() <= 0.7 * 0.5 ** (planes - 1) + 1e-6).all()
    assert torch.equal(residual_binary_lookup(got.codes, 0.7), got.quantized)
    # the sum of signs, written out
    total = sum(sign_lookup(got.codes[:, u], 0.7 * 0.5**u) for u in range(planes))
    torch.testing.assert_close(got.quantized, total)
    packed = pack_bits(got.codes.flatten(1))
    again = unpack_bits(packed, planes * 16).bool().view(400, planes, 16)
    assert torch.equal(again, got.codes) and packed.shape[1] == planes * 2


def test_halving_planes_decode_to_exact_integers() -> None:
    """Products of decoded codes are integers: bit planes counted one by one give exactly the same."""
    a = residual_binary_quantize(gauss(30, 64), 3).codes
    b = residual_binary_quantize(gauss(20, 64, seed=1), 3).codes
    product = vecbank.project(residual_binary_lookup(a), residual_binary_lookup(b), "dot")
    counted = torch.zeros(30, 20, dtype=torch.float64)
    for u in range(3):
        for v in range(3):
            differ = (a[:, None, u] != b[None, :, v]).sum(-1)
            counted += (64 - 2 * differ) * 0.5 ** (u + v)
    assert torch.equal(product.double(), counted)


def test_more_planes_find_more_neighbours() -> None:
    x, queries = gauss(4000, 128), gauss(60, 128, seed=1)
    truth = vecbank.topk(queries, x, 10, "dot").indices
    recalls = []
    for planes in range(1, 5):
        coded = residual_binary_quantize(x, planes, 0.8).quantized
        asked = residual_binary_quantize(queries, planes, 0.8).quantized
        found = vecbank.topk(asked, coded, 10, "dot").indices
        recalls.append(float((found.unsqueeze(-1) == truth.unsqueeze(1)).any(-1).float().mean()))
    assert recalls == sorted(recalls) and recalls[0] < 0.4 and recalls[3] > 0.55


def test_straight_through_keeps_every_bit() -> None:
    x, q = 1e6 * gauss(100), gauss(100, seed=1)
    assert torch.equal(straight_through(x.requires_grad_(), q), q)


def test_low_rank_book_decodes_the_same_either_way() -> None:
    """C[code] B: gather then project equals gathering from the fused codebook C B (LR2VQ)."""
    codebook, shared = gauss(64, 4, dtype=torch.float64), gauss(4, 8, dtype=torch.float64, seed=1)
    code = torch.randint(0, 64, (512, 32), generator=seeded())
    torch.testing.assert_close(vecbank.lookup(code, codebook) @ shared, vecbank.lookup(code, codebook @ shared))
    assert packed_bytes(512 * 32, 6) * 8 / (512 * 256) == 6 / 8  # log2(64) bits for 8 weights


def test_compiles_whole() -> None:
    def step(z: Tensor, tables: Tensor) -> tuple[Tensor, ...]:
        a = scalar_quantize(z, tables)
        b = fsq_quantize(z, [5, 4, 3])
        c = residual_binary_quantize(z, 2)
        return (
            (a.quantized + b.quantized + c.quantized + sign_quantize(z).quantized).sum(),
            a.codes,
            b.codes,
            c.codes,
        )

    results = []
    for form in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        z = gauss(40, 3).requires_grad_()
        out = form(z, gauss(3, 4, seed=1))
        out[0].backward()
        results.append((*(t.detach() for t in out), z.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack_bits(torch.tensor([8]), 3), ValueError, "codes must lie between 0 and"),
        (lambda: pack_bits(torch.tensor([-1]), 3), ValueError, "codes must lie between 0 and"),
        (lambda: pack_bits(torch.tensor([1]), 64), ValueError, "bits must lie between 1 and 63"),
        (lambda: pack_bits(torch.tensor([1]), [1, 2]), ValueError, "bits must be a number or one for each"),
        (lambda: pack_bits(torch.tensor([1.0])), TypeError, "codes must be integers"),
        (lambda: pack_bits(torch.tensor(1)), ValueError, "codes must have shape"),
        (
            lambda: unpack_bits(torch.zeros(3, 2, dtype=torch.uint8), 5, 5),
            ValueError,
            "packed must have shape",
        ),
        (lambda: unpack_bits(torch.zeros(3, 2), 5, 3), TypeError, "packed must be uint8"),
        (lambda: bits_to_index(torch.zeros(64) > 0), ValueError, "bits must have at most 63"),
        (lambda: scalar_quantize(torch.zeros(3, 2), torch.zeros(3, 2)), ValueError, "tables must have shape"),
        (lambda: scalar_lookup(torch.tensor([[5]]), torch.zeros(1, 2)), IndexError, "codes must lie between"),
        (lambda: fsq_quantize(torch.zeros(3, 2), [3]), ValueError, "levels must have one entry"),
        (lambda: fsq_quantize(torch.zeros(3, 1), [1]), ValueError, "levels must be a list of ints"),
        (lambda: fsq_lookup(torch.tensor([6]), [3, 2]), IndexError, "codes must lie between -1 and 5"),
        (lambda: round_quantize(torch.zeros(1), 0.0), ValueError, "step must be positive"),
        (lambda: residual_binary_quantize(torch.zeros(1), 0), ValueError, "planes must lie between"),
        (
            lambda: straight_through(torch.zeros(1), torch.zeros(2)),
            ValueError,
            "quantized must have x's shape",
        ),
    ],
)
def test_refuses_by_name(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_as_many_planes_as_int64_holds() -> None:
    x = torch.tensor([[1.0, -0.3, 0.7]], dtype=torch.float64)
    quantized, bits = residual_binary_quantize(x, 62)
    assert bits.shape == (1, 62, 3)
    torch.testing.assert_close(quantized, x, rtol=0, atol=1e-12)


def test_bytes_of_very_many_codes() -> None:
    assert packed_bytes(10**12, 3) == 375 * 10**9
