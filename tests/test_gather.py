"""lookup and segment_sum return the reference's bits: float64 in the order of the contract, rounded once."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import LAYOUTS, lay
from helpers import FLOATS, Target, assert_same, gauss

import vecbank
from vecbank import reference

SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (7,), (3, 5), (2, 3, 4), (0,), (3, 0), (200,))


def codes_for(shape: tuple[int, ...], m: int, seed: int = 0) -> torch.Tensor:
    """Codes with repeats, the ends and -1 among them; only -1 for an empty bank."""
    generator = torch.Generator().manual_seed(seed + 17 * m + len(shape))
    return torch.randint(-1, max(m, 0), shape, generator=generator) if m else torch.full(shape, -1)


@pytest.mark.parametrize("reduce", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_lookup(dtype: torch.dtype, weighted: bool, reduce: str, target: Target) -> None:
    device = target.device
    for shape, m, d in itertools.product(SHAPES, (0, 1, 3, 50), (1, 8, 33)):
        if reduce != "none" and not shape:
            continue
        codes, bank = codes_for(shape, m), gauss(m, d, dtype=dtype)
        weights = gauss(*shape, dtype=dtype, seed=3) if weighted else None
        got = vecbank.lookup(
            codes.to(device), bank.to(device), None if weights is None else weights.to(device), reduce=reduce
        )
        assert_same(got, reference.lookup(codes, bank, weights, reduce=reduce), f"{shape} {m} x {d}")


@pytest.mark.parametrize("width", [1, 15, 16, 17, 31, 32, 64, 100, 128, 300, 1024, 1025])
def test_rows_are_copied(width: int, device: str) -> None:
    """Rows narrower and wider than a cache line, in small tables and in those whose rows are fetched early."""
    for rows, count in ((3, 5), (2**18 // width + 7, 2**21 // width + 19)):
        codes = torch.randint(-1, rows, (count,), generator=torch.Generator().manual_seed(width))
        bank = gauss(rows, width)
        bank[1:3, 0] = torch.tensor([float("nan"), float("-inf")])
        expected = torch.where((codes < 0)[:, None], 0.0, bank[codes])
        got = vecbank.lookup(codes.to(device), bank.to(device))
        assert torch.equal(got.cpu().view(torch.int32), expected.view(torch.int32)), (rows, count)
        apart = torch.zeros(rows, width + 3).copy_(torch.nn.functional.pad(bank, (0, 3)))[:, :width]
        assert torch.equal(
            vecbank.lookup(codes.to(device), apart.to(device)).cpu().view(torch.int32), got.cpu().view(torch.int32)
        )


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_segment_sum(dtype: torch.dtype, weighted: bool, target: Target) -> None:
    device = target.device
    for shape, m, d in itertools.product(SHAPES, (0, 1, 3, 50), (1, 8, 33)):
        codes, x = codes_for(shape, m), gauss(*shape, d, dtype=dtype)
        weights = gauss(*shape, dtype=dtype, seed=3) if weighted else None
        got = vecbank.segment_sum(x.to(device), codes.to(device), m, None if weights is None else weights.to(device))
        assert_same(got, reference.segment_sum(x, codes, m, weights), f"{shape} {m} x {d}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_segment_sum_to_several_codes(dtype: torch.dtype, device: str) -> None:
    """Codes ``(..., k)``: every row goes to k sums, in order of position."""
    for lead, k in itertools.product(((), (1,), (40,), (3, 5), (0,)), (0, 1, 3, 8)):
        codes, x, weights = (
            codes_for((*lead, k), 7),
            gauss(*lead, 9, dtype=dtype),
            gauss(*lead, k, dtype=dtype),
        )
        for w in (None, weights):
            got = vecbank.segment_sum(x.to(device), codes.to(device), 7, None if w is None else w.to(device))
            assert_same(got, reference.segment_sum(x, codes, 7, w), f"{lead} {k}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sums_are_rounded_once(dtype: torch.dtype, device: str) -> None:
    """Large terms that cancel to a small rest, and thousands of rows in one segment."""
    n = 5000
    x = gauss(n, 3, dtype=dtype) * 100
    x[1::2] = -x[::2]
    x[-1] = 0.001
    codes = torch.zeros(n, dtype=torch.int64)
    codes[::7] = 1
    want = reference.segment_sum(x, codes, 2)
    assert_same(vecbank.segment_sum(x.to(device), codes.to(device), 2), want)
    for reduce in ("sum", "mean"):
        codes = torch.arange(n).reshape(5, 1000)
        assert_same(
            vecbank.lookup(codes.to(device), x.to(device), reduce=reduce),
            reference.lookup(codes, x, reduce=reduce),
        )


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sums_go_by_blocks_of_rows(dtype: torch.dtype, weighted: bool, k: int, target: Target) -> None:
    """Several blocks of 1024 rows, and terms that cancel, so that another order gives other bits. k 0: codes (N,)."""
    for n, m, d in ((1023, 2, 5), (1025, 2, 33), (3500, 40, 20), (2100, 1500, 9)):
        x, shape = cancelling(n, d, dtype), (n, k) if k else (n,)
        codes, weights = codes_for(shape, m, seed=n), gauss(*shape, dtype=dtype, seed=5) if weighted else None
        codes[: n // 3] = codes[: n // 3].clamp(max=0)  # a collapsed stretch, and a long one without rows
        codes[1024:2048][codes[1024:2048] == 0] = -1
        for t in (codes,) if weights is None else (codes, weights):  # rows that cancel go to one sum
            t[2::3] = t[1::3][: len(t[2::3])]
        got = vecbank.segment_sum(
            x.to(target.device), codes.to(target.device), m, None if weights is None else weights.to(target.device)
        )
        want = reference.segment_sum(x.double(), codes, m, None if weights is None else weights.double())
        # 16 bits are reached by way of float32, as torch does; the reference's own rounding skips that step.
        assert_same(got, want.to(dtype) if dtype == torch.float64 else want.float().to(dtype), f"{shape} {m} x {d}")


def cancelling(n: int, d: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of which pairs cancel, at sizes that float64 cannot hold beside the others, and zeros of either sign."""
    x = gauss(n, d, dtype=torch.float64) * 10.0 ** torch.randint(-2, 3, (n, 1))
    x[1::3] *= 1.0 if dtype == torch.float16 else 1e15
    x[2::3] = -x[1::3][: len(x[2::3])]
    x[::11] = -0.0
    return x.to(dtype)


def test_sums_of_zeros_are_positive(device: str) -> None:
    """A sum starts from +0, so no zero of a sum is negative, whatever its terms and blocks are."""
    x = torch.full((3000, 2), -0.0, device=device)
    sums = vecbank.segment_sum(x, torch.arange(3000, device=device) % 4, 5)
    assert not sums.any() and not torch.signbit(sums).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout: str, device: str) -> None:
    bank, codes = lay(gauss(20, 9).to(device), layout), codes_for((6, 4), 20).to(device)
    weights = gauss(6, 4).to(device)
    for c, w in ((codes, weights), (codes.t().contiguous().t(), lay(weights, layout))):
        for reduce in ("none", "sum", "mean"):
            assert_same(
                vecbank.lookup(c, bank, w, reduce=reduce),
                reference.lookup(c.cpu(), bank.cpu(), w.cpu(), reduce=reduce),
            )
    x, flat = lay(gauss(30, 9).to(device), layout), codes_for((60,), 20).to(device)[::2]
    assert_same(vecbank.segment_sum(x, flat, 20), reference.segment_sum(x.cpu(), flat.cpu(), 20))


def test_missing_code_is_a_zero_row(device: str) -> None:
    bank = torch.full((3, 2), float("nan"), device=device)
    bank[1] = 5.0
    codes = torch.tensor([[1, -1], [-1, -1]], device=device)
    weights = torch.tensor([[2.0, float("nan")], [1.0, float("inf")]], device=device)
    assert vecbank.lookup(codes, bank).tolist() == [[[5.0, 5.0], [0.0, 0.0]], [[0.0, 0.0]] * 2]
    assert vecbank.lookup(codes, bank, weights, reduce="sum").tolist() == [[10.0, 10.0], [0.0, 0.0]]
    assert vecbank.lookup(codes, bank, weights, reduce="mean").tolist() == [[10.0, 10.0], [0.0, 0.0]]


def test_mean_counts_the_codes_that_are_there(device: str) -> None:
    bank = torch.tensor([[3.0], [9.0]], device=device)
    codes = torch.tensor([[0, 1, -1, -1], [1, -1, -1, -1]], device=device)
    assert vecbank.lookup(codes, bank, reduce="mean").tolist() == [[6.0], [9.0]]
    weights = torch.full(codes.shape, 0.5, device=device)
    assert vecbank.lookup(codes, bank, weights, reduce="mean").tolist() == [[3.0], [4.5]]


@pytest.mark.parametrize("bad", [5, 100, -2, 2**40, -(2**40)])
def test_code_out_of_range(bad: int) -> None:
    bank = gauss(5, 2)
    with pytest.raises(IndexError, match="codes"):
        vecbank.lookup(torch.tensor([0, bad]), bank)
    with pytest.raises(IndexError, match="codes"):
        vecbank.lookup(torch.tensor([[0, bad]]), bank, reduce="sum")
    with pytest.raises(IndexError, match="codes"):
        vecbank.segment_sum(gauss(2, 3), torch.tensor([0, bad]), 5)


def test_lookup_in_a_bank(device: str) -> None:
    bank = vecbank.Bank(gauss(8, 4).to(device), metric="cosine")
    codes = torch.tensor([[0, 7, -1]], device=device)
    assert_same(vecbank.lookup(codes, bank), reference.lookup(codes.cpu(), bank.vectors.cpu()))
    assert_same(bank.lookup(codes, reduce="sum"), reference.lookup(codes.cpu(), bank.vectors.cpu(), reduce="sum"))


def test_round_trip_with_quantize(device: str) -> None:
    x, bank = gauss(50, 6).to(device), gauss(12, 6).to(device)
    rows, codes = vecbank.quantize(x, bank)
    assert torch.equal(vecbank.lookup(codes, bank), rows)
    counts = vecbank.segment_sum(torch.ones(50, 1, device=device), codes, 12)
    assert counts.flatten().tolist() == torch.bincount(codes.cpu(), minlength=12).tolist()
