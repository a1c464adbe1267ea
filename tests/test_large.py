"""Offsets past 2^31 elements, without the memory: rows far apart in storage never touched between them."""

from __future__ import annotations

import pytest
import torch
from cases import METRICS
from helpers import ISAS, assert_same, gauss, ints
from torch import Tensor

import vecbank
from vecbank import reference

FAR = 2**30 + 7  # elements from row to row: the third row lies past 2^31


def spread(rows: Tensor) -> Tensor:
    """The same rows at a stride of FAR; the pages between them stay unmapped."""
    try:
        storage = torch.empty(FAR * (len(rows) - 1) + rows.shape[1], dtype=rows.dtype)
    except RuntimeError as error:  # address space limited, as in some containers
        pytest.skip(f"no address space for {FAR * len(rows) * rows.element_size() / 2**30:.0f} GiB: {error}")
    view = storage.as_strided(tuple(rows.shape), (FAR, 1))
    return view.copy_(rows)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_far_apart(metric: str) -> None:
    x, bank = ints(3, 9, dtype=torch.bfloat16), ints(4, 9, dtype=torch.bfloat16, seed=1)
    for a, b in ((spread(x), bank), (x, spread(bank))):
        assert_same(tuple(vecbank.topk(a, b, 4, metric)), tuple(reference.topk(x, bank, 4, metric)))
        assert_same(tuple(vecbank.quantize(a, b, metric)), tuple(reference.quantize(x, bank, metric)))
        prepared = vecbank.Bank(b, metric=metric)
        assert_same(tuple(prepared.nearest(a)), tuple(reference.nearest(x, bank, metric)))
        torch.testing.assert_close(vecbank.project(a, b, metric), reference.project(x, bank, metric))


def test_gathers_far_apart() -> None:
    bank, codes = gauss(4, 9, dtype=torch.bfloat16), torch.tensor([3, 0, 2, -1])
    far = spread(bank)
    assert_same(vecbank.lookup(codes, far), reference.lookup(codes, bank))
    assert_same(vecbank.lookup(codes, far, reduce="sum"), reference.lookup(codes, bank, reduce="sum"))
    assert_same(vecbank.segment_sum(far, codes, 4), reference.segment_sum(bank, codes, 4))


def test_mask_far_apart() -> None:
    x, bank = gauss(3, 5), gauss(6, 5)
    mask = torch.rand(3, 6) < 0.5
    got = vecbank.topk(x, bank, 6, allowed=spread(mask))
    assert_same(tuple(got), tuple(reference.topk(x, bank, 6, allowed=mask)))


def test_codes_past_two_to_the_31() -> None:
    """A bank of 2^31 + 10 rows that are all one row in memory."""
    bank = gauss(1, 3).expand(2**31 + 10, 3)
    codes = torch.tensor([0, 2**31 + 9, -1, 2**31 - 1])
    want = reference.lookup(codes.clamp(max=0), bank[:1])
    assert_same(vecbank.lookup(codes, bank), want)
    with pytest.raises(IndexError):
        vecbank.lookup(codes + 1, bank)


def test_more_than_two_to_the_31_codes_in_a_pack() -> None:
    """Rows that overlap in memory: row i is numbers i to i + 63 of one long line. The pack takes 2.6 GB."""
    width, count = 64, 2**25 + 1000
    line = gauss(1, count + width - 1)[0]
    bank = vecbank.Bank(line.as_strided((count, width), (1, 1)), "dot")
    x = torch.stack([line[-width:], line[:width]])  # the best of them: the last row and the first
    got = bank.topk(x, 3)
    assert got.indices[:, 0].tolist() == [count - 1, 0]
    assert_same(tuple(got), tuple(vecbank.topk(x, bank.vectors, 3)))  # which packs nothing as a whole


@pytest.mark.parametrize("metric", METRICS)
def test_wide_vectors(metric: str) -> None:
    """Wider than any bound made for a float32 screen can cover comfortably."""
    x, bank = gauss(2, 70_001), gauss(5, 70_001)
    bank[3] = bank[1]
    assert_same(tuple(vecbank.topk(x, bank, 5, metric)), tuple(reference.topk(x, bank, 5, metric)))
    assert_same(tuple(vecbank.Bank(bank, metric=metric).nearest(x)), tuple(reference.nearest(x, bank, metric)))


def test_many_queries_against_pieces() -> None:
    """A plain tensor too large to pack at once, and more queries than wait for the merge: the prepared Bank's bits."""
    x, bank = gauss(1100, 4), gauss(900_000, 4)
    vecbank._C.set_isa(ISAS[-1])
    for metric in ("dot", "l2"):
        want = vecbank.Bank(bank, metric=metric).topk(x, 1000)
        assert_same(tuple(vecbank.topk(x, bank, 1000, metric)), tuple(want))


@pytest.mark.parametrize("metric", METRICS)
def test_vectors_of_no_width(metric: str) -> None:
    """d = 0: every score is the empty sum, every row ties."""
    x, bank = torch.zeros(3, 0), torch.zeros(4, 0)
    assert_same(tuple(vecbank.topk(x, bank, 4, metric)), tuple(reference.topk(x, bank, 4, metric)))
    assert_same(tuple(vecbank.quantize(x, bank, metric)), tuple(reference.quantize(x, bank, metric)))
    assert_same(vecbank.project(x, bank, metric), torch.zeros(3, 4))
    assert vecbank.segment_sum(x, torch.tensor([0, 1, 1]), 2).shape == (2, 0)
    assert vecbank.lookup(torch.tensor([0, 3]), bank).shape == (2, 0)
