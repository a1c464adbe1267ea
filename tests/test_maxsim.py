"""Sets of vectors: the bits of the float64 score, whatever the level, threads and way; gradients; refusals."""

from __future__ import annotations

import pytest
import torch
from helpers import FLOATS, assert_same, gauss, seeded
from multivector_cases import SIZES, best_of, case, close, drawn, hard, truth
from torch import Tensor
from torch.autograd import gradcheck

import vecbank
from vecbank import Allowed, TokenSets
from vecbank.results import TopK

NAMES = ("dot", "cosine", "l2", "sqeuclidean", "l1")


@pytest.mark.parametrize("metric", NAMES)
@pytest.mark.parametrize("name", SIZES)
def test_scores(name: str, metric: str, way: str) -> None:
    q, d = case(name)
    want = truth(q, d, metric)
    got = vecbank.maxsim(q, d, metric)
    assert got.dtype == torch.float32
    close(got, want, q)
    listed = torch.arange(-1, d.count).expand(q.count, -1)
    exact = vecbank.maxsim_pairs(q, d, listed, metric)
    assert_same(exact[:, 1:], want.float())
    assert (exact[:, 0] == -torch.inf).all()


@pytest.mark.parametrize("metric", NAMES)
@pytest.mark.parametrize("name", [name for name in SIZES if name != "no queries"])
def test_the_best_documents_to_the_bit(name: str, metric: str, way: str) -> None:
    q, d = case(name)
    want = truth(q, d, metric)
    for k in sorted({1, min(7, d.count), d.count}):
        assert_same(tuple(vecbank.maxsim_topk(q, d, k, metric)), tuple(best_of(want, k, torch.float32)))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("metric", ["dot", "cosine", "l2"])
def test_dtypes_levels_and_threads(metric: str, dtype: torch.dtype, isa: str) -> None:
    before = torch.get_num_threads()
    try:
        for name in ("ragged", "wide", "many short ones"):
            q, d = case(name, dtype)
            want = truth(q, d, metric)
            for threads in (1, 3):
                torch.set_num_threads(threads)
                close(vecbank.maxsim(q, d, metric), want, q)
                assert_same(tuple(vecbank.maxsim_topk(q, d, 9, metric)), tuple(best_of(want, 9, dtype)))
    finally:
        torch.set_num_threads(before)


def test_narrow_queries_go_with_a_float32_bank() -> None:
    q, d = case("ragged")
    q = TokenSets(q.rows.bfloat16(), q.offsets)
    assert_same(tuple(vecbank.maxsim_topk(q, d, 5)), tuple(best_of(truth(q, d), 5, torch.float32)))


def test_strided_tokens() -> None:
    q, d = case("ragged")
    turned = TokenSets(d.rows.t().contiguous().t(), d.offsets)
    apart = TokenSets(torch.cat([d.rows, d.rows], 1)[:, : d.rows.shape[1]], d.offsets)
    want = vecbank.maxsim(q, d)
    for other in (turned, apart):
        assert_same(vecbank.maxsim(q, other), want)
        assert_same(vecbank.maxsim(TokenSets(q.rows.t().contiguous().t(), q.offsets), other), want)


@pytest.mark.parametrize("kind", ["ties", "cancellation", "large", "small", "apart"])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_hard_numbers(kind: str, metric: str, isa: str) -> None:
    q, d = hard(kind)
    want = truth(q, d, metric)
    for k in (1, 8, 60):
        assert_same(tuple(vecbank.maxsim_topk(q, d, k, metric)), tuple(best_of(want, k, torch.float32)))
    got = vecbank.maxsim(q, d, metric)
    expected = want.float()
    scale = (q.rows.norm(dim=1).sum() * d.rows.norm(dim=1).max()).clamp(max=1e30) if metric == "dot" else 40.0
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(scale) + 1e-42)


def test_many_equal_documents_are_found_in_order(isa: str) -> None:
    """More documents of one score than any list of candidates has room for."""
    one = gauss(6, 16)
    d = TokenSets(one.repeat(900, 1), torch.arange(901) * 6)
    q = drawn([9, 2], 16, 5)
    assert vecbank.maxsim_topk(q, d, 5).indices.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("metric", ["dot", "cosine", "l2"])
def test_nan_and_infinity(metric: str, way: str) -> None:
    q, d = hard("odd")
    rows, asked = d.rows.clone(), q.rows.clone()
    for odd in (False, True):
        if odd:
            asked[0, 2] = torch.nan
        q, d = TokenSets(asked, q.offsets), TokenSets(rows, d.offsets)
        want = truth(q, d, metric)
        assert bool(want.isnan().any())
        close(vecbank.maxsim(q, d, metric).nan_to_num(), want.float().nan_to_num(), q)
        assert torch.equal(vecbank.maxsim(q, d, metric).isnan(), want.isnan())
        kept = torch.where(want.isnan() | (d.offsets.diff() == 0), -torch.inf, want.clamp_min(-1e300))
        found = vecbank.maxsim_topk(q, d, 60, metric)
        assert torch.equal(found.indices, best_of(kept, 60, torch.float32).indices)


def test_sums_that_overflow_on_their_way(isa: str) -> None:
    rows = torch.zeros(3, 1, 64)
    rows[0, 0, :4] = torch.tensor([-3e38, -3e38, 3e38, 3e38])  # 0, by way of -infinity
    rows[1, 0, 0] = -5.0
    documents = TokenSets(rows[:2].reshape(2, 64), torch.tensor([0, 2]))
    asked = torch.ones(1, 1, 64)
    assert vecbank.maxsim(asked, documents).tolist() == [[0.0]]
    assert vecbank.maxsim_topk(asked, documents, 1).values.tolist() == [[0.0]]


def test_candidates() -> None:
    q, d = case("ragged")
    want = truth(q, d)
    listed = torch.randint(-1, d.count, (q.count, 25), generator=seeded(3))
    listed[:, 9] = listed[:, 2]
    among = torch.zeros(q.count, d.count + 1, dtype=torch.bool).scatter_(1, listed + 1, True)[:, 1:]
    for k in (1, 6, 25):
        found = vecbank.maxsim_topk(q, d, k, candidates=listed)
        assert_same(tuple(found), tuple(best_of(want, k, torch.float32, among)))
    mask = torch.rand(d.count, generator=seeded(4)) < 0.5
    found = vecbank.maxsim_topk(q, d, 6, candidates=listed, allowed=mask)
    assert_same(tuple(found), tuple(best_of(want, 6, torch.float32, among & mask)))


def test_allowed(way: str) -> None:
    q, d = case("ragged")
    want = truth(q, d)
    each = torch.rand(q.count, d.count, generator=seeded(5)) < 0.3
    for allowed in (each, each[0]):
        found = vecbank.maxsim_topk(q, d, 8, allowed=allowed)
        assert_same(tuple(found), tuple(best_of(want, 8, torch.float32, allowed.expand(q.count, -1))))
    found = vecbank.maxsim_topk(q, d, 8, allowed=Allowed.ranges(10, 30))
    inside = ((torch.arange(d.count) >= 10) & (torch.arange(d.count) < 30)).expand(q.count, -1)
    assert_same(tuple(found), tuple(best_of(want, 8, torch.float32, inside)))
    assert (vecbank.maxsim_topk(q, d, 2, allowed=torch.zeros(d.count, dtype=torch.bool)).indices == -1).all()


def plain(q: Tensor, qo: Tensor, d: Tensor, do: Tensor, metric: str) -> Tensor:
    """Scores by autograd of torch alone, of sets that are not empty."""
    q, d = q.double(), d.double()
    if metric == "cosine":
        q, d = (torch.nn.functional.normalize(t, dim=-1, eps=1e-8) for t in (q, d))
    if metric in ("dot", "cosine"):
        scores = q @ d.T
    else:
        scores = -torch.cdist(q, d, compute_mode="donot_use_mm_for_euclid_dist")
        scores = -scores.square() if metric == "sqeuclidean" else scores
    best = torch.stack([scores[:, a:b].max(1).values for a, b in zip(do, do[1:], strict=False)], 1)
    return torch.stack([best[a:b].sum(0) for a, b in zip(qo, qo[1:], strict=False)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("metric", ["dot", "cosine", "l2", "sqeuclidean"])
def test_gradients(metric: str, dtype: torch.dtype, way: str) -> None:
    q, d = drawn([4, 20, 1], 12, 1, dtype), drawn([3, 1, 40, 8], 12, 50, dtype)
    weights = gauss(3, 4, seed=9, dtype=dtype)
    mine = [t.rows.clone().requires_grad_() for t in (q, d)]
    theirs = [t.rows.clone().requires_grad_() for t in (q, d)]
    sets = TokenSets(mine[0], q.offsets), TokenSets(mine[1], d.offsets)
    (vecbank.maxsim(*sets, metric) * weights).sum().backward()
    (plain(theirs[0], q.offsets, theirs[1], d.offsets, metric) * weights).sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
    for function in (
        lambda: vecbank.maxsim_topk(*sets, 4, metric),
        lambda: TopK(vecbank.maxsim_pairs(*sets, torch.arange(4).expand(3, -1), metric), torch.arange(4).expand(3, -1)),
    ):
        for t in (*mine, *theirs):
            t.grad = None
        found = function()
        (found.values * weights).sum().backward()
        all_scores = plain(theirs[0], q.offsets, theirs[1], d.offsets, metric)
        (all_scores.gather(1, found.indices) * weights).sum().backward()
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_gradcheck() -> None:
    q, d = drawn([2, 3], 4, 1, torch.float64), drawn([3, 1, 2], 4, 50, torch.float64)

    def scores(a: Tensor, b: Tensor) -> Tensor:
        return vecbank.maxsim(TokenSets(a, q.offsets), TokenSets(b, d.offsets), "cosine")

    assert gradcheck(scores, [q.rows.requires_grad_(), d.rows.requires_grad_()])


def test_equal_tokens_send_the_gradient_to_the_first() -> None:
    d = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    vecbank.maxsim(torch.tensor([[[1.0, 2.0]]]), d).sum().backward()
    assert d.grad is not None and d.grad.tolist() == [[[1.0, 2.0], [0.0, 0.0]]]


def test_no_gradient_through_what_is_empty() -> None:
    q, d = case("ragged")
    a, b = q.rows.clone().requires_grad_(), d.rows.clone().requires_grad_()
    scores = vecbank.maxsim(TokenSets(a, q.offsets), TokenSets(b, d.offsets))
    scores.backward(torch.ones_like(scores))
    assert a.grad is not None and b.grad is not None and a.grad.isfinite().all() and b.grad.isfinite().all()


def test_gradients_repeat_to_the_bit() -> None:
    q, d = case("more query tokens than a panel")
    grads = []
    for threads in (1, 2, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        b = d.rows.clone().requires_grad_()
        scores = vecbank.maxsim(q, TokenSets(b, d.offsets))
        scores.where(scores.isfinite(), 0.0).square().sum().backward()
        torch.set_num_threads(before)
        grads.append(b.grad)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[1], grads[2])


def test_forward_mode_is_refused_by_name() -> None:
    q, d = case("ragged")
    with pytest.raises(NotImplementedError, match="maxsim"):
        torch.func.jvp(lambda x: vecbank.maxsim(TokenSets(x, q.offsets), d), (q.rows,), (q.rows,))


def test_compiled() -> None:
    q, d = case("ragged")

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(a: Tensor, qo: Tensor, b: Tensor, do: Tensor) -> Tensor:
        return vecbank.maxsim((a, qo), (b, do), "cosine")

    a = q.rows.clone().requires_grad_()
    got = step(a, q.offsets, d.rows, d.offsets)
    assert_same(got, vecbank.maxsim(q, d, "cosine"))
    got.where(got.isfinite(), 0.0).sum().backward()
    assert a.grad is not None


def test_scores_beyond_float32_and_infinite_ones(isa: str) -> None:
    """A search by bounds in float32 leaves these to exact scores."""
    one = torch.ones(1, 1, 2)
    infinite = torch.rand(130, 1, 2, generator=seeded(1))
    infinite[::2] = torch.inf
    far = torch.full((121, 1, 2), -3e38)
    far[:, 0, 1] = torch.linspace(-1e38, -3e38, 121)
    wide = torch.randn(5000, 1, 2, generator=seeded(0))
    wide[::7] *= 2e38
    for documents in (infinite, far, wide.clamp(-3.4e38, 3.4e38)):
        scores = documents.double().sum(-1).amax(-1)
        order = scores.sort(descending=True, stable=True).indices
        for k in (1, 3):
            for found in (vecbank.maxsim_topk(one, documents, k), vecbank.DocumentBank(documents).topk(one, k)):
                assert found.indices.tolist() == [order[:k].tolist()]
