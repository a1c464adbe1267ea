"""score_pairs, verify, farthest_points, Bank.dims and `order="worst"`, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from candidate_sets import make
from cases import DTYPES, METRICS
from helpers import assert_same, draw, gauss, ints, same, seeded
from torch import Tensor

import vecbank
from vecbank import Allowed, Bank, reference

pytestmark = pytest.mark.usefixtures("one_thread")

SIMILARITIES = ("dot", "cosine")
NAN, INF = float("nan"), float("inf")
F64 = torch.float64
WAYS = (0, 1, 2, 3)  # of a search: see vecbank._C.force_ways


# ---- score_pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs_have_the_values_of_topk(dtype: str, metric: str) -> None:
    """Any slice of its indices, in any order and any integer dtype; -1 has the worst value."""
    for data in ("gauss", "offset", "huge", "nonfinite"):
        x, bank = draw(data, metric, 6, 40, 20, dtype)
        top = vecbank.topk(x, bank, 40, metric)
        for source in (bank, Bank(bank, metric)):
            assert_same(vecbank.score_pairs(x, source, top.indices, metric), top.values)
            turned = top.indices.flip(-1)[:, 3:9].int()
            assert_same(vecbank.score_pairs(x, source, turned, metric), top.values.flip(-1)[:, 3:9])
    x = gauss(2, 3, 5)
    top = vecbank.topk(x, gauss(9, 5), 4, metric)
    assert_same(vecbank.score_pairs(x, gauss(9, 5), top.indices, metric), top.values)
    assert vecbank.score_pairs(x, gauss(9, 5), top.indices[..., :0], metric).shape == (2, 3, 0)
    assert_same(vecbank.score_pairs(x[0, 0], gauss(9, 5), top.indices[0, 0], metric), top.values[0, 0])
    assert vecbank.score_pairs(x[:0], gauss(9, 5), top.indices[:0], metric).shape == (0, 3, 4)


@pytest.mark.parametrize("metric", METRICS)
def test_pairs_of_batched_banks(metric: str) -> None:
    x, bank = gauss(2, 5, 6), gauss(2, 11, 6)
    allowed = torch.arange(11) < 3
    top = vecbank.topk(x, bank, 5, metric, allowed=allowed)
    assert top.indices.min() == -1
    assert_same(vecbank.score_pairs(x, bank, top.indices, metric), top.values)


def test_pairs_of_a_bank_without_rows() -> None:
    none = torch.full((4, 2), -1)
    assert vecbank.score_pairs(gauss(4, 3), gauss(0, 3), none, "l2").tolist() == [[INF] * 2] * 4


def test_pairs_of_batched_banks_without_rows() -> None:
    none = torch.full((2, 4, 2), -1)
    assert vecbank.score_pairs(gauss(2, 4, 3), gauss(2, 0, 3), none, "dot").tolist() == [[[-INF] * 2] * 4] * 2
    assert vecbank.verify(gauss(2, 4, 3), gauss(2, 0, 3), none).right.all()


def test_the_default_metric_of_pairs_is_that_of_topk() -> None:
    x, bank, pairs = gauss(4, 3), gauss(9, 3), torch.tensor([[0, 3]] * 4)
    assert_same(vecbank.score_pairs(x, bank, pairs), vecbank.score_pairs(x, bank, pairs, "dot"))
    assert_same(vecbank.score_pairs(x, Bank(bank, "l1"), pairs), vecbank.score_pairs(x, bank, pairs, "l1"))


def test_pairs_of_a_biased_bank() -> None:
    x, bank, bias = gauss(6, 5), gauss(30, 5), gauss(30)
    for dtype in (torch.float32, F64, torch.bfloat16):
        prepared = Bank(bank.to(dtype), "dot", bias=bias.to(dtype))
        top = prepared.topk(x.to(dtype), 30)
        assert_same(vecbank.score_pairs(x.to(dtype), prepared, top.indices), top.values)
    learnt = Bank(bank, "dot", bias=bias, learnable=True)
    pairs = torch.tensor([[3, -1, 3]] * 6)
    vecbank.score_pairs(x, learnt, pairs)[:, [0, 2]].sum().backward()
    assert learnt.bias is not None and learnt.bias.grad is not None
    assert learnt.bias.grad.nonzero().flatten().tolist() == [3] and float(learnt.bias.grad[3]) == 12.0
    torch.testing.assert_close(learnt.vectors.grad[3], 2 * x.sum(0))


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_of_pairs(metric: str) -> None:
    """Those of the dense scores; of -1, none."""
    for batched in (False, True):
        shape = (2, 5) if batched else (5,)
        x, bank = gauss(*shape, 4, dtype=F64), gauss(*shape[:-1], 20, 4, dtype=F64)
        pairs = torch.randint(-1, 20, (*shape, 6), generator=seeded(1))
        grads = []
        for dense in (False, True):
            a, b = x.clone().requires_grad_(), bank.clone().requires_grad_()
            values = vecbank.score_pairs(a, b, pairs, metric)
            if dense:
                values = reference.project(a, b, metric).gather(-1, pairs.clamp_min(0))
            torch.where(pairs < 0, 0.0, values * gauss(*pairs.shape, dtype=F64)).sum().backward()
            grads.append((a.grad, b.grad))
        for got, want in zip(*grads, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    x = gauss(3, 4).requires_grad_()
    vecbank.score_pairs(x, gauss(9, 4), torch.full((3, 2), -1), metric).sum().backward()
    assert x.grad is not None and x.grad.eq(0).all()


REFUSED_PAIRS: dict[str, tuple[Any, type[Exception], str]] = {
    "floats": (torch.zeros(4, 2), TypeError, "indices must be integers, got torch.float32"),
    "a list": ([[0]] * 4, TypeError, "indices must be a torch.Tensor, got list"),
    "from M on": (torch.full((4, 2), 9), IndexError, "indices must lie between -1 and 8, got values from 9 to 9"),
    "below -1": (torch.full((4, 2), -2), IndexError, "indices must lie between -1 and 8"),
    "one dimension": (torch.zeros(4).long(), ValueError, r"indices must have shape \(4, k\) .* got \(4,\)"),
    "a scalar": (torch.tensor(0), ValueError, r"indices must have shape \(4, k\)"),
    "of fewer queries": (torch.zeros(3, 2).long(), ValueError, r"indices must have shape \(4, k\) .* got \(3, 2\)"),
    "three dimensions": (torch.zeros(1, 4, 2).long(), ValueError, r"got \(1, 4, 2\)"),
    "elsewhere": (torch.zeros(4, 2, device="meta").long(), ValueError, "indices must be on x's device cpu, got meta"),
}


@pytest.mark.parametrize("what", REFUSED_PAIRS)
def test_refused_pairs(what: str) -> None:
    """By score_pairs and by verify, in the same words."""
    pairs, kind, text = REFUSED_PAIRS[what]
    for function in (vecbank.score_pairs, vecbank.verify):
        with pytest.raises(kind, match=text):
            function(gauss(4, 3), gauss(9, 3), pairs, "l2")


# ---- verify ---------------------------------------------------------------------------------------------------------


def judged(x: Tensor, bank: Any, found: Any, metric: str | None = None, **options: Any) -> list[list[Any]]:
    return [t.tolist() for t in vecbank.verify(x, bank, torch.as_tensor(found), metric, **options)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16+f32"])
def test_exact_answers_are_right(dtype: str, metric: str) -> None:
    for data in ("gauss", "ties", "same", "nonfinite", "huge"):
        x, bank = draw(data, metric, 6, 40, 20, dtype)
        for source in (bank, Bank(bank, metric)):
            for k in (1, 7, 40):
                checked = vecbank.verify(x, source, vecbank.topk(x, source, k, metric).indices, metric)
                assert checked.right.all() and checked.right_up_to_ties.all() and checked.recall.eq(1).all()
                assert checked.first_wrong.eq(-1).all() and checked.first_wrong.dtype is torch.int64
                assert checked.recall.dtype is F64 and checked.right.dtype is torch.bool


def test_what_is_wrong_in_a_list() -> None:
    """Rows 0 to 5 lie at 0, 1, 1, 2, 3, 9; the query at 0."""
    bank = torch.tensor([[0.0], [1.0], [1.0], [2.0], [3.0], [9.0]])
    lists = {  # right, up to ties, the first wrong rank, recall
        (0, 1, 2, 3): (True, True, -1, 1.0),
        (0, 2, 1, 3): (False, True, -1, 1.0),
        (0, 1, 1, 3): (False, False, 2, 0.75),  # named twice
        (1, 0, 2, 3): (False, False, 0, 1.0),  # the wrong order
        (0, 1, 3, 2): (False, False, 2, 1.0),
        (0, 1, 2, 4): (False, False, 3, 0.75),
        (5, 4, 0, 1): (False, False, 0, 0.5),
        (0, 1, 2, -1): (False, False, 3, 0.75),
        (-1, 0, 1, 2): (False, False, 0, 0.75),
        (-1, -1, -1, -1): (False, False, 0, 0.0),
        (0, 0, 0, 0): (False, False, 1, 0.25),
    }
    x = torch.zeros(len(lists), 1)
    got = judged(x, bank, [list(row) for row in lists], "l2")
    assert [list(row) for row in zip(*got, strict=True)] == [list(row) for row in lists.values()]
    assert judged(x[:2], bank, [[0, 1], [0, 2]], "l2") == [[True, False], [True, True], [-1, -1], [1.0, 1.0]]


def test_a_tie_at_the_end_counts_for_recall() -> None:
    """A row as good as the last of the answer is one of it; an answer of no rows is found in full."""
    bank = torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    assert judged(torch.zeros(1, 1), bank, [[0, 3]], "l2") == [[False], [True], [-1], [1.0]]
    assert judged(torch.zeros(1, 1), bank, [[3, 2]], "l2") == [[False], [False], [0], [1.0]]
    assert judged(torch.full((1, 1), NAN), bank, [[-1, -1]], "l2") == [[True], [True], [-1], [1.0]]
    assert judged(torch.full((1, 1), NAN), bank, [[0, -1]], "l2") == [[False], [False], [0], [1.0]]


def test_lists_that_are_longer_than_the_bank() -> None:
    bank = torch.tensor([[0.0], [1.0], [2.0]])
    full = [[0, 1, 2, -1, -1], [0, 1, 2, 0, -1], [0, 1, -1, -1, -1], [0, 1, -1, 2, -1]]
    got = judged(torch.zeros(4, 1), bank, full, "l2")
    assert got == [[True, False, False, False], [True, False, False, False], [-1, 3, 2, 2], [1.0, 1.0, 2 / 3, 1.0]]
    empty = judged(torch.zeros(2, 1), bank[:0], [[-1, -1], [-1, -1]], "l2")
    assert empty == [[True] * 2, [True] * 2, [-1] * 2, [1.0] * 2]
    assert judged(torch.zeros(2, 1), bank, torch.zeros(2, 0).long(), "l2") == [
        [True] * 2,
        [True] * 2,
        [-1] * 2,
        [1.0] * 2,
    ]


@pytest.mark.parametrize("kind", ["mask", "rows of each", "not_self", "a | b", "same", "nothing"])
def test_answers_among_candidates(kind: str) -> None:
    """A row that may not be returned is wrong in the list; without the set the same list is judged by all rows."""
    x, bank = gauss(8, 6), gauss(30, 6)
    allowed, dense = make(kind, (8,), 30, seeded(3))
    for metric in METRICS:
        top = vecbank.topk(x, bank, 5, metric, allowed=dense)
        for given in (allowed, dense):
            checked = vecbank.verify(x, bank, top.indices, metric, allowed=given)
            assert checked.right.all() and checked.recall.eq(1).all()
            best = vecbank.topk(x, bank, 5, metric).indices
            other = vecbank.verify(x, bank, best, metric, allowed=given)
            wanted = [set(row) - {-1} for row in top.indices.tolist()]
            found = [len(set(a) & b) / max(1, len(b)) if b else 1.0 for a, b in zip(best.tolist(), wanted, strict=True)]
            torch.testing.assert_close(other.recall, torch.tensor(found, dtype=F64))
            assert_same(other.right, (best == top.indices).all(-1))


def test_answers_of_batched_and_biased_banks() -> None:
    x, bank = gauss(2, 5, 6), gauss(2, 20, 6)
    top = vecbank.topk(x, bank, 4, "l2").indices
    assert vecbank.verify(x, bank, top, "l2").right.all()
    assert vecbank.verify(x, bank, top.flip(0), "l2").recall.shape == (2, 5)
    shifted = vecbank.verify(x, bank, top.roll(1, -1), "l2")
    assert not shifted.right.any() and shifted.recall.eq(1).all() and shifted.first_wrong.eq(0).all()
    biased = Bank(bank[0], "dot", bias=3 * gauss(20))
    assert vecbank.verify(x, biased, biased.topk(x, 4).indices).right.all()
    assert not vecbank.verify(x, bank[0], biased.topk(x, 4).indices).right.all()


# ---- farthest_points ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["l2", "sqeuclidean", "l1", "cosine"])
def test_farthest_points(metric: str) -> None:
    """Each next one is the farthest from all before it; ties go to the lower index."""
    bank = gauss(60, 5)
    found = vecbank.farthest_points(bank, 12, metric).tolist()
    assert_same(torch.tensor(found), vecbank.anchors.farthest_point(bank, 12, metric=metric, first=0))
    assert found[0] == 0 and len(set(found)) == 12
    scores = reference.project(bank, bank, metric)
    gaps = 1 - scores if metric == "cosine" else scores
    for i in range(1, 12):
        gap = gaps[:, found[:i]].min(-1).values
        gap[found[:i]] = -INF
        assert float(gap[found[i]]) == float(gap.max())


def test_farthest_points_of_a_bank() -> None:
    rows = gauss(30, 4)
    for metric in ("l2", "cosine"):
        assert_same(vecbank.farthest_points(Bank(rows, metric), 5), vecbank.farthest_points(rows, 5, metric))
    assert_same(vecbank.farthest_points(Bank(rows), 5), vecbank.farthest_points(rows, 5, "l2"))
    assert vecbank.farthest_points(rows, 3, first=7)[0] == 7
    drawn = [vecbank.farthest_points(rows, 3, first=None, generator=5).tolist() for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert vecbank.farthest_points(torch.zeros(4, 2), 4).tolist() == [0, 1, 2, 3]
    with pytest.raises(IndexError, match="first must lie between 0 and 29, got 30"):
        vecbank.farthest_points(rows, 3, first=30)
    with pytest.raises(ValueError, match="k must lie between 1 and .* 30.* got 31"):
        vecbank.farthest_points(rows, 31)
    with pytest.raises(ValueError, match="finite"):
        vecbank.farthest_points(rows * INF, 3)
    with pytest.raises(ValueError, match="metric must be one of .* got 'dot'"):
        vecbank.farthest_points(Bank(rows, "dot"), 3)


def test_farthest_points_by_l1() -> None:
    bank = torch.tensor([[0.0, 0.0], [3.0, 3.0], [5.0, 0.0]])  # the second is the farthest by l1, the third by l2
    assert vecbank.farthest_points(bank, 2, "l1").tolist() == [0, 1]
    assert vecbank.farthest_points(bank, 2, "l2").tolist() == [0, 2]


# ---- Bank.dims ------------------------------------------------------------------------------------------------------

SLICES = [slice(0, 16), slice(5, 29), slice(None, None, 3), slice(-7, None), slice(40, 40), slice(None)]


@pytest.mark.parametrize("dims", SLICES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_dims_are_a_bank_of_the_slice(dtype: torch.dtype, dims: slice) -> None:
    x, rows = gauss(7, 40, dtype=dtype), gauss(300, 40, dtype=dtype, seed=1)
    for metric in METRICS:
        whole = Bank(rows.clone(), metric)
        part, copied = whole.dims(dims), Bank(rows[:, dims].contiguous(), metric)
        assert part.metric == metric and part.vectors.shape == copied.vectors.shape
        y = x[:, dims]
        for way in (1, 2):
            vecbank._C.force_ways(search=way)
            assert_same(tuple(part.topk(y, 9)), tuple(copied.topk(y, 9)))
            assert_same(tuple(part.nearest(y)), tuple(copied.nearest(y)))
            assert_same(tuple(part.radius(y, 3.0)), tuple(copied.radius(y, 3.0)))
            assert_same(tuple(part.quantize(y)), tuple(copied.quantize(y)))
        assert_same(part.project(y), copied.project(y))


def test_dims_share_memory_both_ways() -> None:
    rows, x = gauss(50, 12), gauss(5, 12, seed=1)
    whole = Bank(rows, "l2")
    part = whole.dims(slice(2, 9))
    part.topk(x[:, 2:9], 3), whole.topk(x, 3)  # both are prepared
    assert part.vectors.untyped_storage().data_ptr() == whole.vectors.untyped_storage().data_ptr()

    def check() -> None:
        assert_same(
            tuple(part.topk(x[:, 2:9], 3)), tuple(vecbank.topk(x[:, 2:9], whole.vectors[:, 2:9].clone(), 3, "l2"))
        )
        assert_same(tuple(whole.topk(x, 3)), tuple(vecbank.topk(x, whole.vectors.clone(), 3, "l2")))

    whole.vectors[3] = x[0]
    check()
    assert int(part.nearest(x[0, 2:9]).indices) == 3
    part.vectors[7] = x[1, 2:9]
    check()
    assert int(part.nearest(x[1, 2:9]).indices) == 7 and same(whole.vectors[7, 2:9], x[1, 2:9])
    whole.update_(torch.tensor([4, 20]), x[2:4])
    check()
    part.update_(torch.tensor([11, 30]), x[3:5, 2:9])
    check()
    assert same(whole.vectors[[11, 30], 2:9], x[3:5, 2:9])
    again = part.dims(slice(0, 2))
    rows.mul_(2.0)
    check()
    assert same(again.vectors, rows[:, 2:4])


def test_dims_of_batched_banks_and_screens() -> None:
    x, rows = gauss(2, 5, 12), gauss(2, 40, 12)
    part = Bank(rows, "cosine").dims(slice(0, 5))
    assert_same(tuple(part.topk(x[..., :5], 4)), tuple(vecbank.topk(x[..., :5], rows[..., :5], 4, "cosine")))
    assert Bank(rows[0], "l2", screen="float32").dims(slice(0, 5)).screen == "float32"
    assert Bank(rows[0]).dims(slice(0, 5)).metric is None


def test_refused_dims() -> None:
    rows = gauss(9, 6)
    bank = Bank(rows, "dot")
    for wrong in (3, [0, 1], torch.tensor([0, 1]), None):
        with pytest.raises(TypeError, match=r"dims must be a slice, as slice\(0, 64\)"):
            bank.dims(wrong)  # type: ignore[arg-type]
    for step in (0, -1):
        with pytest.raises(ValueError, match=f"dims must have a step of at least 1, got {step}"):
            bank.dims(slice(None, None, step))
    with pytest.raises(TypeError, match="the step of dims must be an int, got float"):
        bank.dims(slice(0, 3, 1.0))
    with pytest.raises(ValueError, match="this one is learnable"):
        Bank(rows, "dot", learnable=True).dims(slice(0, 3))
    with pytest.raises(ValueError, match="this one is biased"):
        Bank(rows, "dot", bias=gauss(9)).dims(slice(0, 3))
    with pytest.raises(ValueError, match="same last dimension"):
        bank.dims(slice(0, 3)).topk(gauss(2, 6), 1)


# ---- The worst first ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("data", ["gauss", "ties", "same", "zeros", "nonfinite", "huge", "tiny", "offset", "ints"])
def test_the_worst_rows(data: str, metric: str) -> None:
    """Ties go to the lower index here too; NaN is neither best nor worst."""
    for dtype in ("f32", "f64", "bf16+f32"):
        x, bank = draw(data, metric, 6, 70, 20, dtype)
        for k in (1, 9, 70):
            want = reference.topk(x, bank, k, metric, order="worst")
            for way in WAYS:
                vecbank._C.force_ways(search=way)
                assert_same(tuple(vecbank.topk(x, bank, k, metric, order="worst")), tuple(want), f"way {way}")
            for screen in ("auto", "int8"):
                assert_same(tuple(Bank(bank, metric, screen=screen).topk(x, k, order="worst")), tuple(want), screen)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["mask", "rows of each", "ranges", "a & b", "~a", "nothing", "rows"])
def test_the_worst_rows_among_candidates(kind: str, metric: str) -> None:
    for batched in (False, True):
        x, bank = gauss(2, 9, 8), gauss(2, 60, 8) if batched else ints(60, 8)
        allowed, dense = make(kind, (2, 9), 60, seeded(6), batched=batched)
        want = reference.topk(x, bank, 9, metric, dense, order="worst")
        for way in WAYS:
            vecbank._C.force_ways(search=way)
            for given in (allowed, dense):
                assert_same(tuple(vecbank.topk(x, bank, 9, metric, allowed=given, order="worst")), tuple(want))


@pytest.mark.parametrize("metric", METRICS)
def test_the_worst_rows_padded(metric: str) -> None:
    x, bank = gauss(4, 5), gauss(6, 5)
    got, want = (
        vecbank.topk(x, bank, 9, metric, order="worst", pad=True),
        reference.topk(x, bank, 6, metric, order="worst"),
    )
    assert_same((got.values[:, :6], got.indices[:, :6]), tuple(want))
    nothing = INF if metric in SIMILARITIES else -INF
    assert got.indices[:, 6:].eq(-1).all() and got.values[:, 6:].eq(nothing).all()
    empty = vecbank.topk(x, bank[:0], 2, metric, order="worst", pad=True)
    assert empty.indices.eq(-1).all() and empty.values.eq(nothing).all()
    with pytest.raises(ValueError, match='order must be "best" or "worst", got'):
        vecbank.topk(x, bank, 2, metric, order="last")
    with pytest.raises(ValueError, match="k must lie between 1 and"):
        vecbank.topk(x, bank, 7, metric, order="worst")


def test_the_worst_rows_with_a_bias() -> None:
    for dtype in (torch.float32, F64, torch.bfloat16):
        x, bank, bias = gauss(8, 6, dtype=dtype), gauss(90, 6, dtype=dtype), gauss(90, dtype=dtype, seed=1)
        for k in (1, 12, 90):
            want = reference.topk(x, bank, k, bias=bias, order="worst")
            assert_same(tuple(vecbank.topk(x, bank, k, bias=bias, order="worst")), tuple(want))
            prepared = Bank(bank, "dot", bias=bias)
            prepared.topk(x, 1)
            assert_same(tuple(prepared.topk(x, k, order="worst")), tuple(want))


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_of_the_worst_rows(metric: str) -> None:
    allowed, dense = make("a & b", (6,), 20, seeded(7))
    grads = []
    for given in (allowed, None):
        for wanted in (False, True):
            a, b = gauss(6, 4, dtype=F64).requires_grad_(), gauss(20, 4, dtype=F64).requires_grad_()
            top = vecbank.topk(a, b, 5, metric, allowed=given, order="worst")
            values, held = top.values, top.indices >= 0
            if wanted:
                values = reference.project(a, b, metric).gather(-1, top.indices.clamp_min(0))
            (values * gauss(6, 5, dtype=F64))[held].sum().backward()
            grads.append((a.grad, b.grad))
    for got, want in ((grads[0], grads[1]), (grads[2], grads[3])):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    bias = gauss(20).requires_grad_()
    top = vecbank.topk(gauss(6, 4), gauss(20, 4), 3, bias=bias, order="worst")
    top.values.sum().backward()
    assert_same(bias.grad, torch.bincount(top.indices.flatten(), minlength=20).float())


# ---- Compiled -------------------------------------------------------------------------------------------------------


def test_compile() -> None:
    bank, pairs = gauss(9, 3), torch.tensor([[3, -1]] * 4)
    calls: list[Callable[[Tensor], Any]] = [
        lambda x: vecbank.radius_count(x, bank, 2.0),
        lambda x: tuple(vecbank.radius(x, bank, 2.0, max_hits=3)),
        lambda x: tuple(vecbank.radius(x, bank, 2.0)),
        lambda x: vecbank.score_pairs(x, bank, pairs, "l2"),
        lambda x: tuple(vecbank.verify(x, bank, pairs, "l2")),
        lambda x: tuple(vecbank.topk(x, bank, 3, "dot", order="worst")),
        lambda x: tuple(vecbank.radius(x, bank, 2.0, allowed=Allowed.not_self())),
    ]
    x = gauss(4, 3)
    for call in calls:
        torch._dynamo.reset()
        assert_same(torch.compile(call, fullgraph=True, backend="aot_eager")(x), call(x))
    torch._dynamo.reset()


def test_compile_a_radius_with_a_gradient() -> None:
    bank = gauss(9, 3)
    grads = []
    torch._dynamo.reset()
    for compiled in (False, True):
        x = gauss(4, 3).requires_grad_()
        call: Callable[[Tensor], Tensor] = lambda x: vecbank.radius(x, bank, 2.0).values.sum()  # noqa: E731
        (torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call)(x).backward()
        grads.append(x.grad)
    assert_same(*grads)
