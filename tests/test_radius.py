"""radius and radius_count, against the reference, which gives the shape of the answer too: one query after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from candidate_sets import make
from cases import DTYPES, METRICS
from data import KINDS
from helpers import ISAS, assert_same, draw, gauss, ints, seeded
from torch import Tensor

import vecbank
from vecbank import Bank, RadiusHits, reference

pytestmark = pytest.mark.usefixtures("one_thread")

SIMILARITIES = ("dot", "cosine")
NAN, INF = float("nan"), float("inf")
F64 = torch.float64
WAYS = (0, 1, 2, 3)  # of a search: see vecbank._C.force_ways


def radii_of(x: Tensor, bank: Tensor, metric: str, allowed: Tensor | None = None) -> Tensor:
    """For each query the exact score of some row, of another rank each: a radius that it lies on."""
    m = bank.shape[-2]
    scores = reference.topk(x.double(), bank.double(), m, metric, allowed).values.flatten(0, -2)
    rank = torch.arange(len(scores)) * 3 % m
    radii = scores.gather(1, rank.unsqueeze(1)).squeeze(1)
    return radii.nan_to_num(0.0, INF, -INF if metric in SIMILARITIES else INF).reshape(x.shape[:-1])


def limited(want: RadiusHits, n: int, most: int, metric: str) -> RadiusHits:
    """The best `most` hits of each query, in so many places."""
    worst = -INF if metric in SIMILARITIES else INF
    indices, values = torch.full((n, most), -1), torch.full((n, most), worst, dtype=want.values.dtype)
    for i, (first, last) in enumerate(zip(want.offsets.tolist(), want.offsets[1:].tolist(), strict=False)):
        count = min(most, last - first)
        indices[i, :count], values[i, :count] = (t[first : first + count] for t in (want.indices, want.values))
    return RadiusHits(torch.arange(n + 1) * most, indices.reshape(-1), values.reshape(-1))


def check_radius(
    x: Tensor,
    bank: Any,
    r: Any,
    metric: str | None,
    want: RadiusHits,
    note: str = "",
    *,
    most: tuple[int, ...] = (),
    allowed: Any = None,
) -> None:
    got = vecbank.radius(x, bank, r, metric, allowed=allowed)
    assert type(got) is RadiusHits and got.offsets.dtype is torch.int64
    assert_same(tuple(got), tuple(want), note)
    counts = want.offsets.diff().reshape(x.shape[:-1])
    assert_same(vecbank.radius_count(x, bank, r, metric, allowed=allowed), counts, f"{note}, counts")
    n, named = x.shape[:-1].numel(), metric or bank.metric
    for k in most:
        held = vecbank.radius(x, bank, r, metric, allowed=allowed, max_hits=k)
        assert_same(tuple(held), tuple(limited(want, n, k, named)), f"{note}, max_hits={k}")


# ---- radius ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_metric_and_dtype(dtype: str, metric: str) -> None:
    """A radius of each query's own, on a row each: that row is within."""
    x, bank = draw("gauss", metric, 9, 70, 20, dtype)
    radii = radii_of(x, bank, metric)
    want = reference.radius(x, bank, radii, metric)
    assert int(want.offsets[-1]) > 9
    for way in WAYS:
        vecbank._C.force_ways(search=way)
        check_radius(x, bank, radii, metric, want, f"way {way}", most=(1, 4, 70, 99))
        check_radius(x, Bank(bank, metric), radii, None, want, f"Bank, way {way}", most=(4,))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("data", KINDS)
def test_every_kind_of_data(data: str, metric: str) -> None:
    for m, d in ((66, 33), (300, 7)):
        x, bank = draw(data, metric, 7, m, d)
        radii = radii_of(x, bank, metric)
        want = reference.radius(x, bank, radii, metric)
        for way in (1, 2):
            vecbank._C.force_ways(search=way)
            check_radius(x, bank, radii, metric, want, f"{m}, way {way}", most=(2,))
        check_radius(x, Bank(bank, metric, screen="int8"), radii, metric, want, f"{m}, int8")


@pytest.mark.parametrize("metric", METRICS)
def test_radii(metric: str) -> None:
    """Numbers, none and all of the rows, radii of any shape that broadcasts, and of any dtype."""
    x, bank = ints(2, 3, 5), ints(40, 5, seed=1)
    x[0, 1] = bank[7]
    for way in (1, 2):
        vecbank._C.force_ways(search=way)
        for r in (0, 0.0, 2, 5.0, INF, torch.tensor(4.0), torch.tensor(3), torch.tensor(2.0).half()):
            check_radius(x, bank, r, metric, reference.radius(x, bank, r, metric), str(r), most=(3,))
        for shape in ((3,), (2, 1), (1, 1), (2, 3), (1,)):
            for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64):
                r = (torch.arange(torch.Size(shape).numel()) + 1).reshape(shape).to(dtype)
                check_radius(x, bank, r, metric, reference.radius(x, bank, r.double(), metric), str(r))
        if metric in SIMILARITIES:
            for r in (-1.0, -5, -INF):
                check_radius(x, bank, r, metric, reference.radius(x, bank, r, metric), str(r), most=(50,))
    everything = vecbank.radius(x, bank, -INF if metric in SIMILARITIES else INF, metric)
    assert_same(everything.offsets, torch.arange(7) * 40)
    assert_same(tuple(everything[1:]), tuple(t.flatten() for t in vecbank.topk(x, bank, 40, metric)[::-1]))
    none = INF if metric in SIMILARITIES else 0.0
    check_radius(x, bank, none, metric, reference.radius(x, bank, none, metric))
    if metric not in SIMILARITIES:
        found = vecbank.radius(x, bank, 0.0, metric)
        assert 7 in found.indices.tolist() and found.values.eq(0).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16"])
def test_the_edge_is_exact(dtype: str, metric: str) -> None:
    """r is compared with the float64 score, not with the value that is returned: one step less holds one row less."""
    x, bank = draw("gauss", metric, 5, 60, 30, dtype)
    scores = reference.topk(x.double(), bank.double(), 60, metric)
    r = scores.values[:, 20]
    below = torch.nextafter(r, torch.full_like(r, INF if metric in SIMILARITIES else -INF))
    for way in (1, 2):
        vecbank._C.force_ways(search=way)
        for source in (bank, Bank(bank, metric, screen="int8")):
            assert vecbank.radius_count(x, source, r, metric).tolist() == [21] * 5
            assert vecbank.radius_count(x, source, below, metric).tolist() == [20] * 5
            assert_same(vecbank.radius(x, source, r, metric).indices, scores.indices[:, :21].flatten())
            assert (
                vecbank.radius(x, source, below, metric, max_hits=21).indices.reshape(5, 21)[:, 20].tolist() == [-1] * 5
            )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("what", ["zero rows", "one zero row", "far rows", "rows that vanish", "all equal", "all zero"])
def test_rows_that_screens_do_not_see(what: str, metric: str) -> None:
    x, bank = gauss(6, 40), gauss(300, 40, seed=1)
    if what == "zero rows":
        bank[[0, 3, 64, 299]] = 0.0
    elif what == "one zero row":
        bank[150] = 0.0
    elif what == "far rows":
        bank[::7] *= 1e30
    elif what == "rows that vanish":
        bank[::5] *= 1e-30
    elif what == "all equal":
        bank = bank[:1].expand(300, 40)
    else:
        bank = torch.zeros(300, 40)
    x[0] = 0.0
    radii = [radii_of(x, bank, metric), 0.0, 7.0, INF]
    for r in radii + [-INF] * (metric in SIMILARITIES):
        want = reference.radius(x, bank, r, metric)
        for way in (0, 1, 2):
            vecbank._C.force_ways(search=way)
            for screen in ("auto", "float32", "int16", "int8"):
                if screen == "int16" and not vecbank._C.has_int16():
                    continue
                check_radius(x, Bank(bank, metric, screen=screen), r, metric, want, f"{screen}, way {way}")
            check_radius(x, bank, r, metric, want, f"tensor, way {way}", most=(5,))


@pytest.mark.parametrize("metric", [m for m in METRICS if m != "l1"])
def test_a_bank_with_a_head(metric: str) -> None:
    spread = torch.cat([gauss(900, 16), 0.05 * gauss(900, 80)], 1)
    x = spread[::90] + 0.02 * gauss(10, 96, seed=2)
    for head in (8, 16, 96):
        bank = Bank(spread, metric, head=head)
        bank.topk(x, 5)
        radii = radii_of(x, spread, metric)
        check_radius(x, bank, radii, metric, reference.radius(x, spread, radii, metric), f"head {head}", most=(6,))
        vecbank._C.force_ways(search=1)
        check_radius(x, bank, radii, metric, reference.radius(x, spread, radii, metric), f"head {head}, screened")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "kind", ["mask", "ranges", "rows of each", "rows", "not_self", "same", "a & b", "~a", "nothing"]
)
def test_among_candidates(kind: str, metric: str) -> None:
    x, bank = draw("ties", metric, 18, 300, 12)
    allowed, dense = make(kind, (2, 9), 300, seeded(4))
    x = x.reshape(2, 9, 12)
    radii = radii_of(x, bank, metric)
    want = reference.radius(x, bank, radii, metric, dense)
    for way in WAYS:
        vecbank._C.force_ways(search=way)
        check_radius(x, bank, radii, metric, want, f"way {way}", allowed=allowed, most=(3, 301))
        check_radius(x, Bank(bank, metric), radii, metric, want, f"dense, way {way}", allowed=dense)


@pytest.mark.parametrize("metric", METRICS)
def test_batched_banks(metric: str) -> None:
    x, bank = gauss(3, 7, 20), gauss(3, 50, 20, seed=1)
    allowed, dense = make("a | b", (3, 7), 50, seeded(5), batched=True)
    radii = radii_of(x, bank, metric)
    for way in WAYS:
        vecbank._C.force_ways(search=way)
        check_radius(x, bank, radii, metric, reference.radius(x, bank, radii, metric), f"way {way}", most=(1, 4, 60))
        check_radius(x, Bank(bank, metric), radii, None, reference.radius(x, bank, radii, metric))
        check_radius(x, bank, radii, metric, reference.radius(x, bank, radii, metric, dense), "among", allowed=allowed)


@pytest.mark.parametrize("metric", METRICS)
def test_empty(metric: str) -> None:
    x, bank = gauss(4, 3), gauss(9, 3)
    for a, b in ((x[:0], bank), (x, bank[:0]), (x[:0], bank[:0]), (x[0], bank), (x[:, :0], bank[:, :0])):
        for dtype in (torch.float32, F64):
            a, b = a.to(dtype), b.to(dtype)
            n, m = a.shape[:-1].numel(), b.shape[0]
            nothing = RadiusHits(torch.zeros(n + 1).long(), torch.zeros(0).long(), torch.zeros(0, dtype=dtype))
            want = reference.radius(a, b, 1.0, metric) if m else nothing
            check_radius(a, b, 1.0, metric, want, most=(1, 3, 12))
            check_radius(a, Bank(b, metric), 1.0, metric, want)
    for shape, banks in (((0, 4, 3), (0, 9, 3)), ((2, 0, 3), (2, 9, 3)), ((2, 4, 3), (2, 0, 3))):
        found = vecbank.radius(torch.zeros(shape), torch.zeros(banks), 1.0, metric)
        assert found.offsets.tolist() == [0] * (1 + shape[0] * shape[1]) and found.indices.numel() == 0
        assert vecbank.radius_count(torch.zeros(shape), torch.zeros(banks), 1.0, metric).sum() == 0


def test_a_biased_bank() -> None:
    x, bank, bias = gauss(9, 12), gauss(300, 12), gauss(300, seed=1)
    prepared = Bank(bank, "dot", bias=bias)
    scores = reference.topk(x, bank, 300, "dot", bias=bias)
    exact = reference.topk(x.double(), bank.double(), 300, "dot", bias=bias.double()).values
    for rank in (0, 17, 299):
        radii = exact[:, rank]
        for way in (0, 1, 2):
            vecbank._C.force_ways(search=way)
            found = prepared.radius(x, radii)
            assert_same(found.offsets, torch.arange(10) * (rank + 1))
            assert_same(found.indices, scores.indices[:, : rank + 1].flatten())
            assert_same(found.values, scores.values[:, : rank + 1].flatten())
            assert vecbank.radius_count(x, prepared, radii).tolist() == [rank + 1] * 9
            held = prepared.radius(x, radii, max_hits=5)
            assert_same(held.indices.reshape(9, 5)[:, : rank + 1], scores.indices[:, : min(5, rank + 1)])
    with pytest.raises(ValueError, match="bias"):
        prepared.radius(x, 1.0, metric="l2")


def test_many_hits_of_many_threads() -> None:
    """More hits than a first buffer holds, from several threads and pieces: in order all the same, on every ISA."""
    x, bank = ints(70, 3), ints(5000, 3, seed=1)
    want = reference.radius(x, bank, 30.0, "sqeuclidean")
    assert int(want.offsets[-1]) > 50_000
    for isa in ISAS:
        vecbank._C.set_isa(isa)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for way in (1, 2):
                vecbank._C.force_ways(search=way)
                check_radius(x, bank, 30.0, "sqeuclidean", want, f"{isa}, {threads} threads, way {way}")
                check_radius(x[:1], bank, 30.0, "sqeuclidean", reference.radius(x[:1], bank, 30.0, "sqeuclidean"))


@pytest.mark.parametrize("metric", METRICS)
def test_threads_share_the_rows_that_screens_do_not_see(metric: str) -> None:
    """Zero rows, far ones, NaN and infinity all over a bank that is split among threads, with and without a set."""
    x, bank = gauss(3, 24), gauss(4000, 24, seed=1)
    bank[::97], bank[5::311, 3], bank[7::501] = 0.0, NAN, INF
    bank[9::203] *= 1e30
    radii = radii_of(x, bank, metric)
    allowed, dense = make("a | b", (3,), 4000, seeded(8))
    for chosen, mask in ((None, None), (allowed, dense)):
        want = reference.radius(x, bank, radii, metric, mask)
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            for way in WAYS:
                vecbank._C.force_ways(search=way)
                for source in (bank, Bank(bank, metric), Bank(bank, metric, screen="int8")):
                    check_radius(x, source, radii, metric, want, f"{threads} threads, way {way}", allowed=chosen)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("most", [None, 1, 6, 30])
def test_gradients_of_values(most: int | None, metric: str) -> None:
    """To x and to a tensor bank: those of the dense scores at the hits."""
    for batched in (False, True):
        shape = (2, 5) if batched else (5,)
        x, bank = gauss(*shape, 4, dtype=F64), gauss(*shape[:-1], 20, 4, dtype=F64)
        radii = radii_of(x, bank, metric)
        grads = []
        for dense in (False, True):
            a, b = x.clone().requires_grad_(), bank.clone().requires_grad_()
            found = vecbank.radius(a, b, radii, metric, max_hits=most)
            weights = gauss(*found.values.shape, dtype=F64)
            values, held = found.values, found.indices >= 0
            assert values.requires_grad and not found.indices.requires_grad and not found.offsets.requires_grad
            if dense:
                query = torch.repeat_interleave(torch.arange(x.shape[:-1].numel()), found.offsets.diff())
                scores = reference.project(a, b, metric).flatten(0, -2)
                values = scores[query, found.indices.clamp_min(0)]
            (values[held] * weights[held]).sum().backward()
            grads.append((a.grad, b.grad))
        for got, want in zip(*grads, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert not vecbank.radius(x.requires_grad_(), bank, 1.0, metric, max_hits=most).values.requires_grad
    assert vecbank.radius(x, Bank(bank.detach(), metric), 1.0, max_hits=most).values.requires_grad
    assert not vecbank.radius_count(x, bank, 1.0, metric).requires_grad


def test_values_with_a_gradient_are_the_same() -> None:
    for dtype in DTYPES:
        x, bank = draw("gauss", "l2", 6, 50, 17, dtype)
        for metric in METRICS:
            radii = radii_of(x, bank, metric)
            grown = vecbank.radius(x.clone().requires_grad_(), bank, radii, metric)
            assert_same(tuple(grown), tuple(vecbank.radius(x, bank, radii, metric)))
    x, rows, bias = gauss(6, 5), gauss(30, 5), gauss(30)
    grown = vecbank.radius(x.clone().requires_grad_(), Bank(rows, "dot", bias=bias), 0.5)
    assert_same(tuple(grown), tuple(Bank(rows, "dot", bias=bias).radius(x, 0.5)))


REFUSED_RADII: dict[str, tuple[Callable[[Tensor, Tensor], Any], type[Exception], str]] = {
    "NaN": (lambda x, b: vecbank.radius(x, b, NAN), ValueError, "r must be a number, got NaN"),
    "one NaN": (lambda x, b: vecbank.radius(x, b, torch.tensor([1, NAN, 1, 1])), ValueError, "r must be .* got NaN"),
    "negative": (lambda x, b: vecbank.radius(x, b, -1.0), ValueError, 'negative for the distance "l2", got -1'),
    "negative square": (
        lambda x, b: vecbank.radius_count(x, b, torch.tensor([1.0, -0.5, 2.0, 3.0]), "sqeuclidean"),
        ValueError,
        'negative for the distance "sqeuclidean", got -0.5',
    ),
    "a string": (lambda x, b: vecbank.radius(x, b, "1"), TypeError, "r must be a number, got str"),
    "a bool": (lambda x, b: vecbank.radius(x, b, True), TypeError, "r must be a number, got bool"),
    "bools": (
        lambda x, b: vecbank.radius(x, b, torch.ones(4).bool()),
        TypeError,
        "r must hold numbers, got torch.bool",
    ),
    "complex": (
        lambda x, b: vecbank.radius(x, b, torch.ones(4) * 1j),
        TypeError,
        "r must hold numbers, got torch.comp",
    ),
    "a list": (lambda x, b: vecbank.radius(x, b, [1.0] * 4), TypeError, "r must be a number, got list"),
    "of fewer queries": (
        lambda x, b: vecbank.radius(x, b, torch.ones(3)),
        ValueError,
        r"r must be a number or broadcast to \(4,\), got \(3,\)",
    ),
    "a column": (lambda x, b: vecbank.radius(x, b, torch.ones(4, 1)), ValueError, r"broadcast to \(4,\), got \(4, 1\)"),
    "elsewhere": (
        lambda x, b: vecbank.radius(x, b, torch.ones(4, device="meta")),
        ValueError,
        "r must be on x's device",
    ),
    "max_hits": (lambda x, b: vecbank.radius(x, b, 1.0, max_hits=0), ValueError, "max_hits must be at least 1, got 0"),
    "max_hits, a float": (lambda x, b: vecbank.radius(x, b, 1.0, max_hits=1.5), TypeError, "max_hits must be an int"),
    "a metric": (lambda x, b: vecbank.radius(x, b, 1.0, "L2"), ValueError, "metric must be one of .* got 'L2'"),
    "widths": (lambda x, b: vecbank.radius_count(x, b[:, :2], 1.0), ValueError, "same last dimension"),
    "dtypes": (lambda x, b: vecbank.radius(x, b.double(), 1.0), TypeError, "x and bank must share a dtype"),
    "integers": (lambda x, b: vecbank.radius(x.long(), b, 1.0), TypeError, "x must be float32, float64"),
}


@pytest.mark.parametrize("what", REFUSED_RADII)
def test_refused_radii(what: str) -> None:
    call, kind, text = REFUSED_RADII[what]
    with pytest.raises(kind, match=text):
        call(gauss(4, 3), gauss(9, 3))
