"""search_part and merge_topk: a bank cut anywhere gives the bits of one search of all of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from candidate_sets import make
from cases import DTYPES, METRICS
from data import fill
from helpers import ISAS, assert_same, gauss, ints, seeded
from torch import Tensor

import vecbank
from vecbank import Allowed, Bank, SearchPart, TopK, reference

pytestmark = pytest.mark.usefixtures("one_thread")

SIMILARITIES = ("dot", "cosine")
INF = float("inf")
WAYS = (0, 1, 2, 3)  # of a search: see vecbank._C.force_ways
CUTS: dict[str, list[int]] = {
    "one part": [0, 70],
    "halves": [0, 35, 70],
    "rows one by one at both ends": [0, 1, 69, 70],
    "empty parts": [0, 0, 20, 20, 20, 70, 70],
    "uneven": [0, 3, 5, 50, 66, 70],
}


def parts_of(x: Tensor, bank: Tensor, k: int, metric: str, cuts: list[int], **options: Any) -> list[SearchPart]:
    """The parts between the cuts, the last one first."""
    pieces = list(zip(cuts, cuts[1:], strict=False))[::-1]
    return [vecbank.search_part(x, bank[..., a:b, :], k, metric, first_row=a, **options) for a, b in pieces]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("data", ["gauss", "ties", "same", "nonfinite", "huge", "tiny", "zeros", "near", "ints"])
def test_parts_are_the_whole(data: str, dtype: str, metric: str) -> None:
    """Ties across parts, NaN, infinities, empty parts, parts of fewer rows than k, any order of them."""
    x, bank = fill(data, 5, 70, 12, metric, *DTYPES[dtype], seeded(5))
    for k in (1, 9, 70):
        want = reference.topk(x, bank, k, metric)
        for what, cuts in CUTS.items():
            parts = parts_of(x, bank, k, metric, cuts)
            got = vecbank.merge_topk(parts)
            assert type(got) is TopK
            assert_same(tuple(got), tuple(want), what)
            assert_same(tuple(vecbank.merge_topk(parts[1:] + parts[:1], k)), tuple(want), f"{what}, turned")


@pytest.mark.parametrize("metric", METRICS)
def test_every_way_and_bank(metric: str) -> None:
    x, bank = ints(6, 24), ints(900, 24, seed=1)
    want = reference.topk(x, bank, 20, metric)
    for isa in ISAS:
        vecbank._C.set_isa(isa)
        for way in WAYS:
            vecbank._C.force_ways(search=way)
            assert_same(tuple(vecbank.merge_topk(parts_of(x, bank, 20, metric, [0, 100, 101, 900]))), tuple(want), isa)
        banks = [(0, Bank(bank[:500], metric)), (500, Bank(bank[500:], metric, screen="int8"))]
        parts = [vecbank.search_part(x, part, 20, first_row=first) for first, part in banks]
        assert_same(tuple(vecbank.merge_topk(parts)), tuple(want), isa)


def test_k_of_the_merge() -> None:
    """At most what the parts were asked for, and any number below."""
    x, bank = gauss(4, 5), gauss(70, 5)
    parts = parts_of(x, bank, 9, "l2", CUTS["uneven"])
    for k in (1, 4, 9):
        assert_same(tuple(vecbank.merge_topk(parts, k)), tuple(vecbank.topk(x, bank, k, "l2")))
    mixed = [vecbank.search_part(x, bank[:30], 3, "l2"), vecbank.search_part(x, bank[30:], 7, "l2", first_row=30)]
    assert_same(tuple(vecbank.merge_topk(mixed, 3)), tuple(vecbank.topk(x, bank, 3, "l2")))
    assert vecbank.merge_topk(mixed).indices.shape == (4, 7)


@pytest.mark.parametrize("metric", METRICS)
def test_more_than_there_are_rows(metric: str) -> None:
    """As topk with pad=True."""
    x, bank = gauss(4, 5), gauss(7, 5)
    for cuts in ([0, 7], [0, 3, 7], [0, 0, 7]):
        got = vecbank.merge_topk(parts_of(x, bank, 12, metric, cuts))
        assert_same(tuple(got), tuple(vecbank.topk(x, bank, 12, metric, pad=True)))
    nothing = vecbank.merge_topk([vecbank.search_part(x, bank[:0], 3, metric)] * 2)
    assert_same(tuple(nothing), tuple(vecbank.topk(x, bank[:0], 3, metric, pad=True)))
    assert vecbank.merge_topk([vecbank.search_part(x[:0], bank, 3, metric)]).indices.shape == (0, 3)


@pytest.mark.parametrize("lead", [(), (2, 3), (1, 0)], ids=str)
def test_queries_of_any_shape(lead: tuple[int, ...]) -> None:
    x, bank = gauss(*lead, 5), gauss(70, 5)
    got = vecbank.merge_topk(parts_of(x, bank, 4, "cosine", CUTS["uneven"]))
    assert_same(tuple(got), tuple(vecbank.topk(x, bank, 4, "cosine")))


@pytest.mark.parametrize("metric", METRICS)
def test_batched_and_biased_banks(metric: str) -> None:
    x, bank = gauss(2, 6, 5), gauss(2, 70, 5)
    got = vecbank.merge_topk(parts_of(x, bank, 8, metric, CUTS["empty parts"]))
    assert_same(tuple(got), tuple(vecbank.topk(x, bank, 8, metric)))
    if metric == "dot":
        bias = gauss(70)
        pieces = [(0, 30), (30, 70)]
        banks = [Bank(bank[0, a:b], "dot", bias=bias[a:b]) for a, b in pieces]
        parts = [vecbank.search_part(x[0], b, 8, first_row=a) for b, (a, _) in zip(banks, pieces, strict=True)]
        assert_same(tuple(vecbank.merge_topk(parts)), tuple(vecbank.topk(x[0], bank[0], 8, bias=bias)))


@pytest.mark.parametrize("metric", METRICS)
def test_candidates_are_numbered_within_the_part(metric: str) -> None:
    x, bank = ints(6, 8), ints(70, 8, seed=1)
    _, dense = make("mask", (6,), 70, seeded(1))
    want = reference.topk(x, bank, 9, metric, dense & (torch.arange(70) != torch.arange(6).unsqueeze(-1) + 40))
    parts = []
    for a, b in ((0, 40), (40, 70)):
        allowed = Allowed.mask(dense[:, a:b]) & (Allowed.not_self() if a else ~Allowed.rows(torch.tensor([-1])))
        parts.append(vecbank.search_part(x, bank[a:b], 9, metric, first_row=a, allowed=allowed))
    assert_same(tuple(vecbank.merge_topk(parts)), tuple(want))


@pytest.mark.parametrize("metric", METRICS)
def test_keys(metric: str) -> None:
    """float64, larger is better: scores of similarities, negated distances, of l2 the negated square."""
    x, bank = gauss(4, 5), gauss(9, 5)
    part = vecbank.search_part(x, bank, 12, metric, first_row=100)
    scores = reference.topk(x.double(), bank.double(), 9, "sqeuclidean" if metric == "l2" else metric)
    want = scores.values if metric in SIMILARITIES else -scores.values
    assert_same(part.keys[:, :9], want)
    assert part.keys[:, 9:].eq(-INF).all() and part.indices[:, 9:].eq(-1).all()
    assert_same(part.indices[:, :9], scores.indices + 100)
    assert part.metric == metric and part.dtype is torch.float32
    assert vecbank.search_part(x.half(), bank.half(), 1).dtype is torch.float32
    assert vecbank.search_part(x.double(), bank.double(), 1).dtype is torch.float64
    assert (
        vecbank.search_part(x, bank, 1).metric == "dot" and vecbank.search_part(x, Bank(bank, "l1"), 1).metric == "l1"
    )
    huge = vecbank.search_part(x, bank, 1, metric, first_row=2**40)
    assert int(huge.indices.min()) >= 2**40


def test_parts_go_between_machines() -> None:
    x, bank = gauss(4, 5), gauss(70, 5)
    parts = parts_of(x, bank, 6, "l2", CUTS["uneven"])
    want = tuple(vecbank.topk(x, bank, 6, "l2"))
    assert_same(tuple(vecbank.merge_topk([pickle.loads(pickle.dumps(part)) for part in parts])), want)
    sent = [(part.keys.clone(), part.indices.clone()) for part in parts]
    made = tuple(SearchPart(keys, indices, parts[0].metric, parts[0].dtype) for keys, indices in sent)
    assert_same(tuple(vecbank.merge_topk(made)), want)
    merged = [
        SearchPart(
            torch.cat([p.keys for p in parts], -1), torch.cat([p.indices for p in parts], -1), "l2", torch.float32
        )
    ]
    assert_same(tuple(vecbank.merge_topk(merged, 6)), want)


def test_arrays_of_numpy() -> None:
    x, bank = gauss(4, 5), gauss(70, 5)
    parts = [
        vecbank.search_part(x.numpy(), b.numpy(), 6, "l2", first_row=a) for a, b in ((0, bank[:20]), (20, bank[20:]))
    ]
    assert all(isinstance(part.keys, np.ndarray) for part in parts)
    found = vecbank.merge_topk(parts)
    assert isinstance(found.values, np.ndarray)
    assert_same(tuple(torch.from_numpy(t) for t in found), tuple(vecbank.topk(x, bank, 6, "l2")))


def test_neither_has_a_gradient() -> None:
    x, bank = gauss(4, 5).requires_grad_(), gauss(9, 5).requires_grad_()
    part = vecbank.search_part(x, bank, 3)
    assert not part.keys.requires_grad and not vecbank.merge_topk([part]).values.requires_grad


def other(part: SearchPart, **changes: Any) -> SearchPart:
    return part._replace(**changes)


X, BANK = gauss(4, 5), gauss(9, 5)
PART = vecbank.search_part(X, BANK, 3, "l2")
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "k below 1": (lambda: vecbank.search_part(X, BANK, 0), ValueError, "k must be at least 1, got 0"),
    "k, a float": (lambda: vecbank.search_part(X, BANK, 2.0), TypeError, "k must be an int, got float"),  # type: ignore[arg-type]
    "first_row below 0": (
        lambda: vecbank.search_part(X, BANK, 2, first_row=-1),
        ValueError,
        "first_row must be at least 0, got -1",
    ),
    "a metric": (lambda: vecbank.search_part(X, BANK, 2, "L2"), ValueError, "metric must be one of .* got 'L2'"),
    "widths": (lambda: vecbank.search_part(X, BANK[:, :3], 2), ValueError, "same last dimension"),
    "ids of the whole bank": (
        lambda: vecbank.search_part(X, BANK, 2, allowed=Allowed.rows(torch.tensor([20])), first_row=20),
        IndexError,
        "ids must lie below the bank's number of rows 9, got 20",
    ),
    "no parts": (lambda: vecbank.merge_topk([]), ValueError, "parts must not be empty"),
    "a single part": (
        lambda: vecbank.merge_topk(PART),
        TypeError,
        "parts must be a list of SearchPart, got a single one",
    ),
    "results of topk": (
        lambda: vecbank.merge_topk([PART, vecbank.topk(X, BANK, 3)]),
        TypeError,
        r"parts\[1\] is a TopK, whose values were rounded, .* search the parts with search_part",
    ),
    "results of nearest": (
        lambda: vecbank.merge_topk([vecbank.nearest(X, BANK)]),
        TypeError,
        r"parts\[0\] is a Nearest, whose values were rounded",
    ),
    "results of radius": (
        lambda: vecbank.merge_topk([PART, vecbank.radius(X, BANK, 1.0)]),
        TypeError,
        r"parts\[1\] is a RadiusHits, whose values were rounded",
    ),
    "tensors": (lambda: vecbank.merge_topk([PART.keys]), TypeError, r"parts\[0\] must be what search_part returned"),
    "tuples": (
        lambda: vecbank.merge_topk([tuple(PART)]),
        TypeError,
        r"parts\[0\] must be what search_part returned, got tuple",
    ),
    "float32 keys": (
        lambda: vecbank.merge_topk([PART, other(PART, keys=PART.keys.float())]),
        TypeError,
        r"parts\[1\].keys must be float64, as search_part returns them, got torch.float32",
    ),
    "int32 indices": (
        lambda: vecbank.merge_topk([other(PART, indices=PART.indices.int())]),
        TypeError,
        r"parts\[0\].indices must be int64",
    ),
    "lengths": (
        lambda: vecbank.merge_topk([other(PART, keys=PART.keys[:, :2])]),
        ValueError,
        r"parts\[0\]: keys and indices must both be \(..., k\), got \(4, 2\) and \(4, 3\)",
    ),
    "other queries": (
        lambda: vecbank.merge_topk([PART, vecbank.search_part(X[:2], BANK, 3, "l2")]),
        ValueError,
        r"parts\[0\] and parts\[1\] are of different searches: \(4,\) by 'l2' .* \(2,\) by 'l2'",
    ),
    "another metric": (
        lambda: vecbank.merge_topk([PART, PART, vecbank.search_part(X, BANK, 3, "dot")]),
        ValueError,
        r"parts\[0\] and parts\[2\] are of different searches: .* by 'l2' .* by 'dot'",
    ),
    "another dtype": (
        lambda: vecbank.merge_topk([PART, vecbank.search_part(X.double(), BANK.double(), 3, "l2")]),
        ValueError,
        "of different searches: .* in torch.float32 .* in torch.float64",
    ),
    "another device": (
        lambda: vecbank.merge_topk([PART, other(PART, keys=PART.keys.to("meta"), indices=PART.indices.to("meta"))]),
        ValueError,
        "of different searches: .* on cpu and .* on meta",
    ),
    "a metric of no kind": (
        lambda: vecbank.merge_topk([other(PART, metric="L2")]),
        ValueError,
        r"parts\[0\].metric must be one of .* got 'L2'",
    ),
    "k of the merge, 0": (lambda: vecbank.merge_topk([PART], 0), ValueError, "k must lie between 1 and .* 3, got 0"),
    "k of the merge, above": (lambda: vecbank.merge_topk([PART], 4), ValueError, "asked for, 3, got 4"),
    "k of the merge, a float": (lambda: vecbank.merge_topk([PART], 1.5), TypeError, "k must be an int, got float"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    call, kind, text = REFUSED[what]
    with pytest.raises(kind, match=text):
        call()


def test_compile() -> None:
    def call(x: Tensor, bank: Tensor) -> TopK:
        return vecbank.merge_topk(
            [vecbank.search_part(x, bank[:20], 6), vecbank.search_part(x, bank[20:], 6, first_row=20)]
        )

    torch._dynamo.reset()
    x, bank = gauss(4, 5), gauss(70, 5)
    got = torch.compile(call, fullgraph=True, backend="aot_eager")(x, bank)
    assert_same(tuple(got), tuple(vecbank.topk(x, bank, 6)))
    torch._dynamo.reset()
