"""DocumentBank: the answers of `maxsim_topk`, to the bit, whatever codes rule out."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import FLOATS, assert_same, gauss
from multivector_cases import SIZES, case, hard

import vecbank
from vecbank import TokenSets


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_a_bank_changes_no_bit(metric: str, dtype: torch.dtype, isa: str) -> None:
    for name in SIZES if dtype == torch.float32 else ("ragged", "wide"):
        q, d = case(name, dtype)
        bank = vecbank.DocumentBank(d, metric)
        assert_same(bank.maxsim(q), vecbank.maxsim(q, d, metric))
        if q.count == 0:
            continue
        for k in sorted({1, min(7, d.count)}):
            want = tuple(vecbank.maxsim_topk(q, d, k, metric))
            assert_same(tuple(bank.topk(q, k)), want, name)
            assert_same(tuple(vecbank.maxsim_topk(q, bank, k)), want, name)


@pytest.mark.parametrize("kind", ["ties", "cancellation", "large", "small", "apart", "odd"])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_codes_of_hard_numbers(kind: str, metric: str, isa: str) -> None:
    q, d = hard(kind)
    bank = vecbank.DocumentBank(d, metric)
    for k in (1, 8, 60):
        assert_same(tuple(bank.topk(q, k)), tuple(vecbank.maxsim_topk(q, d, k, metric)))


def test_codes_bound_the_score(isa: str) -> None:
    """Rows made so that rounding moves every product the same way, and by as much as it can."""
    width, step = 96, 1 / 127
    signs = torch.where(gauss(width) > 0, 1.0, -1.0)
    below, above = (signs * (60 + half) * step for half in (0.49, 0.51))
    below[0] = above[0] = 1.0  # fixes the step
    asked = signs.clone()
    asked[0] = 0.0
    rows = torch.stack([below, above, above, below] * 30).unsqueeze(1)
    bank = vecbank.DocumentBank(rows)
    found = bank.topk(asked.reshape(1, 1, width), 60)
    assert found.indices[0].tolist() == [i for i in range(120) if i % 4 in (1, 2)]


def test_a_bank_is_never_stale() -> None:
    q, d = case("ragged")
    rows = d.rows.clone()
    bank = vecbank.DocumentBank(TokenSets(rows, d.offsets)).prepare()
    before = bank.topk(q, 3)
    rows.mul_(-1)
    after = bank.topk(q, 3)
    assert not torch.equal(before.indices, after.indices)
    assert_same(tuple(after), tuple(vecbank.maxsim_topk(q, TokenSets(rows, d.offsets), 3)))
    rows.data.mul_(-1)  # torch does not count this
    assert_same(tuple(bank.repack().topk(q, 3)), tuple(before))
    again = pickle.loads(pickle.dumps(bank))
    assert_same(tuple(again.topk(q, 3)), tuple(before))
    assert_same(tuple(copy.deepcopy(bank).topk(q, 3)), tuple(before))


def test_what_a_bank_says() -> None:
    q, d = case("ragged")
    bank = vecbank.DocumentBank(d, "cosine")
    assert len(bank) == d.count and bank.metric == "cosine"
    assert repr(bank) == f"DocumentBank({d.count} documents, {len(d.rows)} tokens, d=24, 'cosine')"
    assert "MiB of codes" in repr(bank.prepare())
    assert_same(bank.maxsim(q, "l2"), vecbank.maxsim(q, d, "l2"))
    assert_same(tuple(bank.topk(q, 4, "dot")), tuple(vecbank.maxsim_topk(q, d, 4, "dot")))
    listed = torch.arange(5).expand(q.count, -1)
    assert_same(bank.pairs(q, listed), vecbank.maxsim_pairs(q, d, listed, "cosine"))
    allowed = torch.arange(d.count) % 2 == 0
    assert_same(tuple(bank.topk(q, 4, allowed=allowed)), tuple(vecbank.maxsim_topk(q, d, 4, "cosine", allowed=allowed)))
    asked = q.rows.clone().requires_grad_()
    bank.topk(TokenSets(asked, q.offsets), 4).values.sum().backward()
    assert asked.grad is not None and bool(asked.grad.any())
    with pytest.raises(ValueError, match="metric must be one of"):
        vecbank.DocumentBank(d, "hamming")
    with pytest.raises(ValueError, match="documents.offsets must lead from 0"):
        vecbank.DocumentBank((d.rows, d.offsets[:-1]))
