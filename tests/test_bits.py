"""Packed bits: every search against the bits as bools, on every instruction set and where there is no kernel."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from candidate_sets import SETS, make
from helpers import ISAS, assert_same, gauss, seeded
from torch import Tensor

import vecbank
from vecbank import _bits_blocks, _select, bits, codes, reference

NONE = 2**31 - 1
WIDTHS = (1, 7, 8, 9, 31, 63, 64, 65, 100, 127, 256, 300, 1000)
PLANES = ((1, 1), (2, 1), (1, 3), (2, 2), (4, 4), (7, 2))  # the last has no tables
# avx512vnni counts bits by an instruction that avx512 is without.
WAYS = [*(isa for isa in ISAS if isa != "avx2vnni"), "in blocks"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param != "in blocks":
        vecbank._C.set_isa(request.param)
    monkeypatch.setattr(_bits_blocks, "_QUERIES", 48)
    monkeypatch.setattr(_bits_blocks, "BLOCK_BYTES", 1 << 16)
    with _select.in_blocks() if request.param == "in blocks" else nullcontext():
        yield request.param


def words(rows: int, width: int, planes: int = 1, seed: int = 0) -> Tensor:
    """Every bit drawn, those that stand for nothing too."""
    size = planes * ((width + 7) // 8)
    return torch.randint(0, 256, (rows, size), dtype=torch.uint8, generator=seeded(seed + rows + width))


def best(distances: Tensor, k: int, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(..., k), from all distances (..., M)."""
    nothing = torch.iinfo(torch.int64).max
    keys = (distances << 32) + torch.arange(distances.shape[-1])
    if allowed is not None:
        keys = torch.where(allowed, keys, nothing)
    keys = torch.cat([keys, keys.new_full((*keys.shape[:-1], k), nothing)], -1).sort(-1).values[..., :k]
    missing = keys == nothing
    return torch.where(missing, NONE, keys >> 32).int(), torch.where(missing, -1, keys & 0xFFFFFFFF)


def within(distances: Tensor, radii: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    m = distances.shape[-1]
    values, indices = best(distances, m, allowed)
    hits = (indices >= 0) & (values <= radii.unsqueeze(-1))
    offsets = torch.zeros(hits.shape[:-1].numel() + 1, dtype=torch.int64)
    torch.cumsum(hits.sum(-1).flatten(), 0, out=offsets[1:])
    return offsets, indices[hits], values[hits]


def check(x: Tensor, bank: Tensor, width: int, planes: tuple[int, int], ks: tuple[int, ...]) -> None:
    given = {"bits": width, "x_planes": planes[0], "bank_planes": planes[1]}
    want = reference.hamming(x, bank, width, *planes)
    assert_same(bits.scores(x, bank, **given), want.int())
    for k in ks:
        assert_same(tuple(bits.topk(x, bank, k, **given, pad=True)), best(want, k), f"k = {k}")
    values, indices = best(want, 1)
    assert_same(tuple(bits.nearest(x, bank, **given)), (values.squeeze(-1), indices.squeeze(-1)))
    if want.numel():
        radii = want.sort(-1).values[..., want.shape[-1] // 3]
        assert_same(tuple(bits.radius(x, bank, radii, **given)), within(want, radii))
        counts = (want <= radii.unsqueeze(-1)).sum(-1)
        assert_same(bits.radius_count(x, bank, radii + 0.5, **given), counts)
        listed = torch.arange(6).expand(*x.shape[:-1], 6) % (want.shape[-1] + 1) - 1
        pairs = torch.where(listed < 0, NONE, want.gather(-1, listed.clamp_min(0)))
        assert_same(bits.score_pairs(x, bank, listed, **given), pairs.int())


@pytest.mark.parametrize("width", WIDTHS)
def test_bits_of_every_width(width: int, way: str) -> None:
    for n, m in ((1, 1), (1, 70), (5, 300), (6, 64), (9, 65), (33, 1100), (70, 257)):
        check(words(n, width), words(m, width, seed=1), width, (1, 1), (1, 3, 24, 25, m, m + 2))


def test_few_queries_of_many_widths(way: str) -> None:
    """One to nine queries, from the width that no whole word has to those whose counts no byte holds."""
    for i, width in enumerate((*range(1, 1101, 29), 128, 129, 192, 255, 257, 320, 511, 513, 1024, 1025, 4032, 4100)):
        n, m = 1 + i % 9, 1 + 61 * i % 300
        check(words(n, width), words(m, width, seed=1), width, (1, 1), (1, 3, 30))


@pytest.mark.parametrize("n", [1, 2, 3, 6, 13])
def test_counts_that_no_byte_holds(n: int, way: str) -> None:
    """All bits differ in most rows; above 65,536 bits nothing counts them in vectors."""
    for width, m in ((248, 70), (1984, 70), (2016, 70), (5000, 300), (65_536, 40), (65_600, 12)):
        x = torch.zeros(n, width // 8, dtype=torch.uint8)
        bank = words(m, width)
        bank[::2] = 255
        check(x, bank, width, (1, 1), (1, 5))


@pytest.mark.parametrize("planes", PLANES[1:], ids=str)
@pytest.mark.parametrize("width", [1, 5, 8, 64, 100, 321])
def test_planes(width: int, planes: tuple[int, int], way: str) -> None:
    for n, m in ((2, 40), (13, 600)):
        check(words(n, width, planes[0]), words(m, width, planes[1], seed=1), width, planes, (1, 4, 40))


def test_sums_beyond_16_bits(way: str) -> None:
    """All bits differ, in the most planes that tables take."""
    width, planes = 2000, (6, 4)
    x, bank = torch.zeros(7, 6 * 250, dtype=torch.uint8), words(300, width, 4)
    bank[::3] = 255
    assert int(reference.hamming(x, bank, width, *planes).max()) == width * 63 * 15
    check(x, bank, width, planes, (1, 5))


@pytest.mark.parametrize("width", [64, 256, 300, 1000])
def test_rows_that_tie(width: int, way: str) -> None:
    """Equal rows, rows that are the query, and rows all of whose bits differ: a byte does not hold 256."""
    x = words(8, width)
    flipped = ~x
    for bank in (x[:1].expand(600, -1), flipped[:1].expand(600, -1), torch.cat([flipped, x, flipped, x] * 20)):
        check(x, bank, width, (1, 1), (1, 2, 10, 30, 600))
        check(x[:3], bank, width, (1, 1), (1, 10))
    order = torch.cat([flipped[:1]] * 3 + [x[:1]])  # the worst come first, each a bit better
    steps = order[:1].repeat(width, 1)
    for i in range(width):
        steps[i:, i // 8] ^= 1 << (i % 8)
    check(x, steps, width, (1, 1), (1, 5, 100))
    check(x[:1], steps, width, (1, 1), (1, 5))


def test_bits_that_stand_for_nothing_are_ignored(way: str) -> None:
    for width in (1, 3, 12, 60, 61, 100):
        x, bank = words(20, width), words(400, width, seed=1)
        clear = [t.clone() for t in (x, bank)]
        for t in clear:
            t[:, -1] &= 255 >> (-width % 8)
        assert any(not torch.equal(a, b) for a, b in zip(clear, (x, bank), strict=True))
        for a in (x, clear[0]):
            for b in (bank, clear[1]):
                assert_same(tuple(bits.topk(a, b, 9, bits=width)), tuple(bits.topk(*clear, 9, bits=width)))


@pytest.mark.parametrize("kind", SETS)
def test_candidate_sets(kind: str, way: str) -> None:
    for lead, m, width in (((12,), 700, 64), ((2, 9), 300, 100), ((3,), 90, 17), ((1,), 500, 256)):
        x = words(torch.Size(lead).numel(), width).reshape(*lead, -1)
        bank = words(m, width, seed=1)
        want = reference.hamming(x, bank, width)
        allowed, dense = make(kind, lead, m, seeded(7))
        radii = torch.full(lead, width // 2)
        for sets in (allowed, dense):
            for k in (1, 10):
                found = bits.topk(x, bank, k, bits=width, allowed=sets)
                assert_same(tuple(found), best(want, k, dense), f"{lead}, k = {k}")
            found_hits = bits.radius(x, bank, radii, bits=width, allowed=sets)
            assert_same(tuple(found_hits), within(want, radii, dense))
            counts = ((want <= width // 2) & dense).sum(-1)
            assert_same(bits.radius_count(x, bank, width // 2, bits=width, allowed=sets), counts)


def test_few_rows_of_many_are_scored_alone(way: str) -> None:
    x, bank = words(30, 128), words(5000, 128, seed=1)
    want = reference.hamming(x, bank, 128)
    dense = torch.rand(30, 5000, generator=seeded()) < torch.linspace(0.001, 0.2, 30).unsqueeze(1)
    assert_same(tuple(bits.topk(x, bank, 7, allowed=dense)), best(want, 7, dense))
    shared = torch.rand(5000, generator=seeded(1)) < 0.01
    assert_same(tuple(bits.topk(x, bank, 7, allowed=shared)), best(want, 7, shared))


def test_strides_and_leading_dimensions(way: str) -> None:
    bank = words(400, 100, seed=1)
    wide = torch.randint(0, 256, (400, 40), dtype=torch.uint8, generator=seeded())
    for b in (bank, wide[:, 3:16], wide[::2, :13], bank.t().contiguous().t(), bank[:1].expand(50, -1)):
        for x in (words(24, 100).reshape(2, 3, 4, 13), words(24, 100)[::3], words(1, 100)[0], words(24, 100)[:0]):
            check(x, b, 100, (1, 1), (1, 5))
        check(words(13, 100).t().contiguous().t(), b, 100, (1, 1), (2,))
    apart = torch.randint(0, 256, (300, 80), dtype=torch.uint8, generator=seeded(2))
    for b in (apart[:, :8], apart[::3, 5:37], apart[:, 1:65], apart[:1, :16].expand(70, -1)):
        width = 8 * b.shape[1]
        check(words(2, width), b, width, (1, 1), (1, 5))
        check(words(7, width), b, width, (1, 1), (5,))
    check(words(4, 100), bank[:0], 100, (1, 1), (1, 3))
    check(words(4, 100).reshape(2, 2, 13)[:, :0], bank, 100, (1, 1), (1, 3))


@pytest.mark.parametrize("n", [1, 4, 40, 1300])
def test_threads_change_nothing(n: int) -> None:
    x, bank = words(n, 64), words(20_000, 64, seed=1) & 0x11  # many ties
    found = []
    for isa in ISAS:
        vecbank._C.set_isa(isa)
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append((*bits.topk(x, bank, 30), *bits.radius(x[:40], bank, 2), bits.scores(x[:20], bank)))
    for other in found[1:]:
        assert_same(other, found[0])
    values, indices = best(reference.hamming(x[:8], bank, 64), 30)
    assert_same((found[0][0][:8], found[0][1][:8]), (values, indices))


def test_as_many_as_there_are(way: str) -> None:
    x, bank = words(3, 40), words(3000, 40, seed=1)
    want = reference.hamming(x, bank, 40)
    assert_same(tuple(bits.topk(x, bank, 3000)), best(want, 3000))
    everything = bits.radius(x, bank, 40)
    assert_same(everything.indices.reshape(3, 3000), best(want, 3000)[1])
    assert bits.radius_count(x, bank, torch.tensor([0.0, 1e9, float("inf")]))[1:].tolist() == [3000, 3000]


# ---- What codes stand for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planes", PLANES, ids=str)
def test_dot_products_of_planes(planes: tuple[int, int]) -> None:
    x, bank = gauss(6, 50), gauss(40, 50, seed=1)
    a, b = codes.pack_signs(x, planes[0]), codes.pack_signs(bank, planes[1])
    found = bits.scores(a, b, bits=50, x_planes=planes[0], bank_planes=planes[1])
    values = [codes.unpack_signs(t, 50, p, torch.float64) for t, p in zip((a, b), planes, strict=True)]
    dots = bits.plane_dot(found, 50, *planes, dtype=torch.float64)
    assert_same(dots, (values[0].unsqueeze(1) * values[1]).sum(-1))
    assert bits.plane_dot(found, 50, *planes).dtype is torch.float32
    assert bits.plane_dot(torch.tensor([NONE]), 50).tolist() == [-float("inf")]


@pytest.mark.parametrize("planes", [1, 2, 5, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_packed_signs(dtype: torch.dtype, planes: int) -> None:
    x = gauss(3, 4, 21, dtype=dtype)
    x[0, 0, :3] = torch.tensor([float("nan"), 0.0, -0.0], dtype=dtype)
    for scale in (1.0, 0.7, torch.rand(21, generator=seeded()).to(dtype) + 0.5):
        packed = codes.pack_signs(x, planes, scale)
        planes_of = codes.residual_binary_quantize(x, planes, scale).codes
        assert_same(packed, codes.pack_bits(planes_of).flatten(-2))
        values = codes.unpack_signs(packed, 21, planes, torch.float64)
        assert_same(values, codes.residual_binary_lookup(planes_of, dtype=torch.float64))
    assert codes.pack_signs(x[..., :0], planes).shape == (3, 4, 0)
    assert codes.unpack_signs(codes.pack_signs(x[:0], planes), 21, planes).shape == (0, 4, 21)


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_float_queries(dtype: torch.dtype, planes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of a search among the decoded rows, which are never all there."""
    monkeypatch.setattr("vecbank._bits_floats.BLOCK_BYTES", 1 << 14)
    x, bank = gauss(2, 7, 20, dtype=dtype), codes.pack_signs(gauss(700, 20, seed=1), planes)
    bank[5] = bank[600]
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    allowed, dense = make("a | b", (2, 7), 700, seeded())
    for scale in (None, 0.3, torch.rand(20, generator=seeded()).to(wide)):
        values = codes.unpack_signs(bank, 20, planes, wide)
        values = values if scale is None else values * scale
        given: dict[str, Any] = {"bank_planes": planes, "scale": scale}
        for k in (1, 9, 700):
            assert_same(tuple(bits.float_topk(x, bank, k, **given)), tuple(vecbank.topk(x, values, k, "dot")))
        for sets in (allowed, dense):
            found = bits.float_topk(x, bank, 9, **given, allowed=sets)
            assert_same(tuple(found), tuple(vecbank.topk(x, values, 9, "dot", allowed=dense)))
        assert_same(tuple(bits.float_nearest(x, bank, **given)), tuple(vecbank.nearest(x, values, "dot")))
        scores = bits.float_scores(x, bank, **given)
        assert scores.dtype is dtype
        torch.testing.assert_close(
            scores, vecbank.project(x, values, "dot"), rtol=2e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-4
        )
    padded = bits.float_topk(x, bank[:3], 5, bank_planes=planes, pad=True)
    assert padded.indices[..., 3:].eq(-1).all() and padded.values[..., 3:].eq(-torch.inf).all()
    assert bits.float_topk(x, bank[:0], 2, bank_planes=planes, pad=True).indices.eq(-1).all()


def test_gradients_of_float_queries() -> None:
    bank = codes.pack_signs(gauss(60, 12, seed=1), 2)
    values = codes.unpack_signs(bank, 12, 2, torch.float64)
    dense = torch.arange(60) < 3
    for allowed, k in ((None, 4), (dense, 5)):
        ours, theirs = (gauss(5, 12, dtype=torch.float64).requires_grad_() for _ in range(2))
        found = bits.float_topk(ours, bank, k, bank_planes=2, allowed=allowed)
        want = vecbank.topk(theirs, values, k, "dot", allowed=allowed)
        assert_same(tuple(found), tuple(want))
        weights = gauss(5, k, dtype=torch.float64)
        for t in (found.values, want.values):
            torch.where(t.isinf(), 0.0, t * weights).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
    x = gauss(5, 12).requires_grad_()
    bits.float_scores(x, bank, bank_planes=2).sum().backward()
    torch.testing.assert_close(x.grad, values.sum(0).float().expand(5, -1))


# ---- The module, numpy, programs ------------------------------------------------------------------------------------


def test_a_bank_of_bits() -> None:
    x, rows = codes.pack_signs(gauss(6, 20), 2), codes.pack_signs(gauss(40, 20, seed=1), 3)
    bank = bits.BitBank(rows, bits=20, planes=3)
    given: dict[str, Any] = {"bits": 20, "x_planes": 2, "bank_planes": 3}
    assert repr(bank) == "BitBank(40 rows of 20 bits in each of 3 planes)" and len(bank) == 40
    assert repr(bits.BitBank(rows)) == "BitBank(40 rows of 72 bits)"
    for mine, free in (
        (bank.topk(x, 3, x_planes=2), bits.topk(x, rows, 3, **given)),
        (bank.nearest(x, x_planes=2), bits.nearest(x, rows, **given)),
        (bank.radius(x, 100, x_planes=2), bits.radius(x, rows, 100, **given)),
        (bank.radius_count(x, 100, x_planes=2), bits.radius_count(x, rows, 100, **given)),
        (bank.scores(x, x_planes=2), bits.scores(x, rows, **given)),
        (bits.scores(x, bank, **given), bits.scores(x, rows, **given)),
        (bank.float_topk(gauss(6, 20), 3), bits.float_topk(gauss(6, 20), rows, 3, bits=20, bank_planes=3)),
    ):
        assert_same(
            mine if isinstance(mine, Tensor) else tuple(mine), free if isinstance(free, Tensor) else tuple(free)
        )
    other = bits.BitBank(torch.zeros_like(rows), bits=20, planes=3)
    other.load_state_dict(bank.state_dict())
    bank.words[3] = x.new_zeros(9)  # nothing is cached
    assert_same(tuple(bank.topk(x, 3, x_planes=2)), tuple(bits.topk(x, bank.words, 3, **given)))
    assert_same(other.words, codes.pack_signs(gauss(40, 20, seed=1), 3))
    file = io.BytesIO()
    torch.save(bank, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=False).scores(x, x_planes=2), bank.scores(x, x_planes=2))


def test_numpy() -> None:
    x, rows = words(5, 40).numpy(), words(30, 40, seed=1).numpy()
    want = bits.topk(torch.from_numpy(x), torch.from_numpy(rows), 3)
    for bank in (rows, bits.BitBank(rows)):
        found = bits.topk(x, bank, 3)
        assert type(found.values) is np.ndarray and found.values.dtype == np.int32
        assert (found.values == want.values.numpy()).all() and (found.indices == want.indices.numpy()).all()
        for got in (
            *bits.nearest(x, bank),
            *bits.radius(x, bank, 15),
            bits.radius_count(x, bank, 15),
            bits.scores(x, bank),
        ):
            assert type(got) is np.ndarray
    floats = gauss(5, 40).numpy()
    assert type(codes.pack_signs(floats)) is np.ndarray and type(bits.float_topk(floats, rows, 2).values) is np.ndarray
    assert type(bits.float_nearest(floats, rows).values) is np.ndarray
    assert type(bits.float_scores(floats, rows)) is np.ndarray
    assert type(bits.score_pairs(x, rows, np.zeros((5, 2), dtype=np.int64))) is np.ndarray
    assert type(bits.plane_dot(found.values, 40)) is np.ndarray
    with pytest.raises(TypeError, match="both as tensors"):
        bits.topk(x, torch.from_numpy(rows), 3)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(dynamic: bool) -> None:
    torch._dynamo.reset()
    dense = torch.arange(60) % 3 > 0

    def call(x: Tensor, bank: Tensor) -> tuple[Tensor, ...]:
        found = bits.topk(x, bank, 3, bits=20, allowed=dense)
        return (
            *found,
            *bits.nearest(x, bank, bits=20),
            bits.scores(x, bank, bits=20),
            bits.radius_count(x, bank, 5, bits=20),
        )

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (5, 9):
        x, bank = words(n, 20), words(60, 20, seed=1)
        assert_same(compiled(x, bank), call(x, bank))
    torch._dynamo.reset()


def test_a_fake_answer_has_the_right_shapes() -> None:
    x, bank = words(6, 20).reshape(2, 3, 3).to("meta"), words(9, 20).to("meta")
    found = bits.topk(x, bank, 4, bits=20)
    assert found.values.shape == found.indices.shape == (2, 3, 4)
    assert (found.values.dtype, found.indices.dtype) == (torch.int32, torch.int64)
    assert bits.scores(x, bank, bits=20).shape == (2, 3, 9) and bits.radius_count(x, bank, 1, bits=20).shape == (2, 3)


def test_the_verbs_take_packed_bits() -> None:
    """By the name "hamming", or of a BitBank."""
    x, bank = words(20, 72), words(300, 72, seed=1)
    for rows, metric in ((bank, "hamming"), (bits.BitBank(bank, bits=68), None), (bits.BitBank(bank), "hamming")):
        want = bits.topk(x, rows, 7)
        got = vecbank.topk(x, rows, 7, metric)
        assert got.values.dtype == torch.int32
        assert_same(tuple(got), tuple(want))
        assert_same(tuple(vecbank.nearest(x, rows, metric)), (want.values[:, 0], want.indices[:, 0]))
        assert_same(vecbank.project(x, rows, metric), bits.scores(x, rows))
        assert_same(vecbank.score_pairs(x, rows, want.indices, metric), want.values)
        few = vecbank.Allowed.ranges(5, 40)
        assert_same(tuple(vecbank.topk(x, rows, 7, metric, allowed=few)), tuple(bits.topk(x, rows, 7, allowed=few)))
        hits, count = vecbank.radius(x, rows, 28, metric), vecbank.radius_count(x, rows, 28, metric)
        assert torch.equal(hits.offsets.diff(), count) and int(count.sum()) > 0
        places = vecbank.radius(x, rows, 28, metric, max_hits=4)
        assert torch.equal((places.indices.view(20, 4) >= 0).sum(1), count.clamp(max=4))
        checked = vecbank.verify(x, rows, want.indices, metric)
        assert checked.right.all() and checked.recall.eq(1).all()
        broken = want.indices.clone()
        broken[::2, 2] = (broken[::2, 2] + 1) % 300
        assert vecbank.verify(x, rows, broken, metric).right.tolist() == [False, True] * 10
        assert not vecbank.verify(x, rows, want.indices, metric, allowed=few).right.all()


def test_kinds_that_do_not_go_together() -> None:
    x, vectors, packed = torch.randn(3, 64), torch.randn(5, 64), words(5, 64)
    for call, kind, message in (
        (lambda: vecbank.topk(x, packed, 1, "hamming"), TypeError, "x must be packed bits, uint8, got torch.float32"),
        (lambda: vecbank.topk(packed, vectors, 1, "hamming"), TypeError, "bank must be packed bits"),
        (lambda: vecbank.topk(packed, vectors, 1), TypeError, "of one kind, got packed bits .uint8. and vectors"),
        (lambda: vecbank.nearest(packed, vecbank.Bank(vectors, "l2")), TypeError, "x and bank must be of one kind"),
        (lambda: vecbank.topk(x, bits.BitBank(packed), 1), TypeError, "x must be packed bits"),
        (
            lambda: vecbank.topk(packed, bits.BitBank(packed), 1, "l2"),
            ValueError,
            'searched by "hamming", got',
        ),
        (lambda: vecbank.Bank(vectors, "hamming"), ValueError, "packed bits, which go into vecbank.BitBank"),
        (lambda: vecbank.topk(packed, packed, 1, "hamming", order="worst"), ValueError, "packed bits have no bias"),
        (lambda: vecbank.topk(x, vectors, 1, "haming"), ValueError, "metric must be one of .*hamming"),
    ):
        with pytest.raises(kind, match=message):
            call()
