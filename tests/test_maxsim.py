"""Sets of vectors: the bits of the float64 score, whatever the instruction set, threads and way; gradients; refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ISAS, assert_same, gauss, seeded
from torch import Tensor
from torch.autograd import gradcheck

import vecbank
from vecbank import Allowed, TokenSets, _select, reference
from vecbank.results import TopK

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAMES = ("dot", "cosine", "l2", "sqeuclidean", "l1")


@pytest.fixture(params=["kernels", "blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As the CPU goes, and as other devices do, some documents at a time."""
    if request.param == "kernels":
        yield request.param
        return
    monkeypatch.setattr("vecbank._token_blocks.BLOCK_BYTES", 1 << 14)
    with _select.in_blocks():
        yield request.param


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = vecbank._C.isa()
    vecbank._C.set_isa(request.param)
    yield request.param
    vecbank._C.set_isa(before)


def drawn(sizes: list[int], width: int, seed: int, dtype: torch.dtype = torch.float32) -> TokenSets:
    """Sets of these sizes."""
    return TokenSets.of([gauss(n, width, seed=seed + i, dtype=dtype) for i, n in enumerate(sizes)])


def sizes_of(count: int, most: int, seed: int) -> list[int]:
    """Sizes from 0 to `most`, some of them 0."""
    return [int(n) for n in torch.randint(0, most + 1, (count,), generator=seeded(seed))]


def truth(q: TokenSets, d: TokenSets, metric: str = "dot") -> Tensor:
    """(Q, D) float64: sums, in order, of the best float64 scores."""
    scores = reference.project(q.rows, d.rows, metric, out_dtype=torch.float64).detach()
    if metric not in ("dot", "cosine"):
        scores = 0.0 - scores
    out = scores.new_full((q.count, d.count), -torch.inf)
    for j, (begin, end) in enumerate(zip(d.offsets.tolist(), d.offsets.tolist()[1:], strict=False)):
        if begin == end:
            continue
        best = scores[:, begin:end].amax(1)  # NaN where one is
        for i, (first, last) in enumerate(zip(q.offsets.tolist(), q.offsets.tolist()[1:], strict=False)):
            total = scores.new_zeros(())
            for t in range(first, last):
                total = total + best[t]
            out[i, j] = total
    return out


def best_of(scores: Tensor, k: int, dtype: torch.dtype, allowed: Tensor | None = None) -> TopK:
    """The answer of a search from all scores (Q, D)."""
    n, d = scores.shape
    values, indices = torch.full((n, k), -torch.inf, dtype=torch.float64), torch.full((n, k), -1)
    for i in range(n):
        may = [j for j in range(d) if scores[i, j] > -torch.inf and (allowed is None or allowed[i, j])]
        order = sorted(may, key=lambda j: (-float(scores[i, j]), j))[:k]
        values[i, : len(order)] = scores[i, order]
        indices[i, : len(order)] = torch.tensor(order, dtype=torch.int64)
    return TopK(values.to(torch.float64 if dtype == torch.float64 else torch.float32), indices)


SIZES = {  # sizes of queries, of documents; width
    "one of each": ([1], [1], 1),
    "ragged": ([3, 0, 20, 7], sizes_of(60, 30, 1), 24),
    "one long document": ([5, 18], [3, 700, 0, 2], 33),
    "many short ones": ([32], sizes_of(900, 3, 2), 40),
    "wide": ([4, 4], sizes_of(20, 40, 3), 1024),
    "more query tokens than a panel": ([16, 17, 40], sizes_of(40, 20, 4), 128),
    "all empty": ([3, 1], [0, 0, 0], 5),
    "no documents' tokens but one": ([3, 1], [0, 1, 0], 5),
    "no query tokens": ([0, 0], [2, 0, 1], 5),
    "no queries": ([], [2, 1], 5),
    "no width": ([2, 1], [2, 0, 1], 0),
}


def case(name: str, dtype: torch.dtype = torch.float32) -> tuple[TokenSets, TokenSets]:
    queries, documents, width = SIZES[name]
    q = (
        drawn(queries, width, 1, dtype)
        if queries
        else TokenSets(torch.empty(0, width, dtype=dtype), torch.zeros(1).long())
    )
    return q, drawn(documents, width, 1000, dtype)


def close(got: Tensor, want: Tensor, q: TokenSets) -> None:
    """Scores that may be rounded in another order."""
    wide = want.to(got.dtype)
    assert torch.equal(got.isinf(), wide.isinf()) and torch.equal(got.isnan(), wide.isnan())
    finite = wide.isfinite()
    eps = torch.finfo(got.dtype).eps
    scale = float(want[finite].abs().max()) + 1 if bool(finite.any()) else 1.0
    torch.testing.assert_close(got[finite], wide[finite], rtol=0, atol=16 * eps * scale)


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
    q, d = case("ragged")
    rows, asked = d.rows.clone(), q.rows.clone()
    if kind == "ties":
        rows, asked = rows.round(), asked.round()
        rows[40:400] = rows[40]
    elif kind == "cancellation":
        rows += 1000
        asked -= asked.mean(1, keepdim=True)
    elif kind == "large":
        rows *= 1e18
        asked *= 1e18
    elif kind == "small":
        rows *= 1e-30
        asked *= 1e-12
    else:
        rows *= 10.0 ** torch.randint(-20, 15, (len(rows), 1), generator=seeded(1))
    q, d = TokenSets(asked, q.offsets), TokenSets(rows, d.offsets)
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
    q, d = case("ragged")
    rows, asked = d.rows.clone(), q.rows.clone()
    rows[5, 3], rows[100, 0], rows[200, 1], rows[333] = torch.nan, torch.inf, -torch.inf, 3e38
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


# ---- TokenSets ------------------------------------------------------------------------------------------------------


def test_padded_sets() -> None:
    tokens = gauss(4, 6, 5)
    whole = TokenSets.padded(tokens)
    assert whole.rows.data_ptr() == tokens.data_ptr() and whole.offsets.tolist() == [0, 6, 12, 18, 24]
    lengths = torch.tensor([6, 0, 2, 3])
    some = TokenSets.padded(tokens, lengths)
    assert_same(some.rows, torch.cat([t[:n] for t, n in zip(tokens, lengths, strict=True)]))
    assert some.offsets.tolist() == [0, 6, 6, 8, 11] and some.count == 4
    mask = torch.rand(4, 6, generator=seeded(1)) < 0.5
    of_mask = TokenSets.padded(tokens, mask=mask)
    assert_same(of_mask.rows, tokens[mask])
    assert_same(of_mask.offsets.diff(), mask.sum(1))


def test_a_dense_tensor_and_a_tuple_are_sets() -> None:
    q, d = gauss(3, 7, 8), gauss(5, 4, 8, seed=1)
    want = vecbank.maxsim(TokenSets.of(list(q)), TokenSets.of(list(d)))
    assert_same(vecbank.maxsim(q, d), want)
    assert_same(vecbank.maxsim((q.reshape(-1, 8), torch.arange(4).int() * 7), d), want)
    assert isinstance(vecbank.maxsim(q.numpy(), d.numpy()), np.ndarray)


BAD: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "offsets that end early": ((gauss(4, 3), torch.tensor([0, 3])), gauss(1, 2, 3), ValueError, "number of rows 4"),
    "offsets that begin late": ((gauss(4, 3), torch.tensor([1, 4])), gauss(1, 2, 3), ValueError, "from 0"),
    "offsets that fall": (
        (gauss(4, 3), torch.tensor([0, 3, 2, 4])),
        gauss(1, 2, 3),
        ValueError,
        "from 3 to 2 at set 1",
    ),
    "offsets of floats": ((gauss(4, 3), torch.tensor([0.0, 4.0])), gauss(1, 2, 3), TypeError, "integers"),
    "no offsets": ((gauss(0, 3), torch.zeros(0).long()), gauss(1, 2, 3), ValueError, "(S + 1,)"),
    "a matrix": (gauss(4, 3), gauss(1, 2, 3), ValueError, "(S, T, d)"),
    "a list": ([gauss(4, 3)], gauss(1, 2, 3), TypeError, "TokenSets"),
    "three of a tuple": ((1, 2, 3), gauss(1, 2, 3), TypeError, "3 of them"),
    "rows of three dimensions": ((gauss(2, 2, 3), torch.tensor([0, 4])), gauss(1, 2, 3), ValueError, "(R, d)"),
    "integers": (torch.zeros(1, 2, 3).long(), gauss(1, 2, 3), TypeError, "float32"),
    "another width": (gauss(1, 2, 4), gauss(1, 2, 3), ValueError, "last dimension"),
    "another dtype": (gauss(1, 2, 3).double(), gauss(1, 2, 3), TypeError, "share a dtype"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_refused(what: str) -> None:
    queries, documents, kind, message = BAD[what]
    for call in (
        lambda: vecbank.maxsim(queries, documents),
        lambda: vecbank.maxsim_topk(queries, documents, 1),
        lambda: vecbank.maxsim_pairs(queries, documents, torch.zeros(1, 1).long()),
    ):
        with pytest.raises(kind) as error:
            call()
        assert message in str(error.value)


def test_arguments_are_refused() -> None:
    q, d = gauss(2, 3, 4), gauss(5, 3, 4, seed=1)
    for k in (0, 6, -1):
        with pytest.raises(ValueError, match="k must lie between 1 and the number of documents 5"):
            vecbank.maxsim_topk(q, d, k)
    with pytest.raises(ValueError, match="candidates 2, got 3"):
        vecbank.maxsim_topk(q, d, 3, candidates=torch.zeros(2, 2).long())
    with pytest.raises(IndexError, match="candidates must lie between -1 and 4"):
        vecbank.maxsim_topk(q, d, 1, candidates=torch.full((2, 2), 5))
    with pytest.raises(ValueError, match=r"indices must have shape \(2, k\)"):
        vecbank.maxsim_pairs(q, d, torch.zeros(3, 2).long())
    with pytest.raises(ValueError, match="metric must be one of"):
        vecbank.maxsim(q, d, "hamming")
    with pytest.raises(ValueError, match="at least one tensor"):
        TokenSets.of([])
    with pytest.raises(ValueError, match=r"sets\[1\] must have shape \(T, 4\)"):
        TokenSets.of([gauss(2, 4), gauss(2, 3)])
    with pytest.raises(ValueError, match="lengths must lie between 0 and 3"):
        TokenSets.padded(q, torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="both"):
        TokenSets.padded(q, torch.tensor([1, 3]), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must have shape"):
        TokenSets.padded(q, mask=torch.ones(3, 2, dtype=torch.bool))


# ---- Groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_groups(metric: str, way: str) -> None:
    x, bank = gauss(2, 5, 8), gauss(30, 8, seed=1)
    labels = torch.randint(-1, 6, (30,), generator=seeded(2))
    labels[labels == 4] = 3  # group 4 is empty
    scores = reference.project(x, bank, metric, out_dtype=torch.float64)
    most = torch.stack(
        [scores[..., labels == g].amax(-1) if g != 4 else scores[..., 0] * 0 - torch.inf for g in range(6)], -1
    )
    mean = torch.stack([scores[..., labels == g].mean(-1) if g != 4 else scores[..., 0] * 0 for g in range(6)], -1)
    got = vecbank.group_max(x, bank, labels, metric, num_groups=6)
    assert got.shape == (2, 5, 6)
    torch.testing.assert_close(got, most.float(), rtol=1e-5, atol=1e-5)
    got = vecbank.group_mean(x, bank, labels, metric, num_groups=6)
    torch.testing.assert_close(got, mean.float(), rtol=1e-5, atol=1e-5)
    order = labels.sort(stable=True).indices
    offsets = torch.searchsorted(labels[order], torch.arange(7))
    rows = bank[order[offsets[0] :]]
    for function, want in ((vecbank.group_max, most), (vecbank.group_mean, mean)):
        got = function(x, rows, offsets - offsets[0], metric)
        torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-5)


def test_gradients_of_groups() -> None:
    labels = torch.tensor([1, 0, -1, 1, 1, 0])
    x, bank = gauss(3, 4, dtype=torch.float64), gauss(6, 4, seed=1, dtype=torch.float64)
    for function in (vecbank.group_max, vecbank.group_mean):
        for metric in ("dot", "cosine"):

            def scores(a: Tensor, b: Tensor, function: Any = function, metric: str = metric) -> Tensor:
                return function(a, b, labels, metric, num_groups=2)

            assert gradcheck(scores, [x.clone().requires_grad_(), bank.clone().requires_grad_()])


def test_groups_are_refused() -> None:
    x, bank = gauss(3, 4), gauss(6, 4)
    with pytest.raises(ValueError, match=r"groups must be labels \(6,\)"):
        vecbank.group_max(x, bank, torch.zeros(5).long(), num_groups=2)
    with pytest.raises(IndexError, match="groups must lie between -1 and 1"):
        vecbank.group_max(x, bank, torch.full((6,), 2), num_groups=2)
    with pytest.raises(ValueError, match="groups must lead from 0 to the number of rows 6"):
        vecbank.group_mean(x, bank, torch.tensor([0, 5]))
    with pytest.raises(ValueError, match='"dot" or "cosine"'):
        vecbank.group_mean(x, bank, torch.tensor([0, 6]), "l2")
    with pytest.raises(ValueError, match="last dimension"):
        vecbank.group_max(gauss(3, 5), bank, torch.tensor([0, 6]))
