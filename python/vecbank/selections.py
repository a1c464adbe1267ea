"""Searches that are no `topk`: all within a radius, chosen pairs, points far apart, and whether a list is right."""

from __future__ import annotations

from typing import SupportsIndex

import torch
from torch import Generator, Tensor

from . import _checks, _mapped, _select, bits
from ._bits_bank import PackedRows, of_bits, whole_radii
from ._numpy import entry_point
from ._ops.bits import NO_DISTANCE
from ._ops.fakes import value_dtype
from ._ops.names import metric_name
from ._prepared import PreparedBank
from ._select import Search
from .allowed import Allowed, lower
from .functional import resolve
from .metrics import Metric, mapping
from .results import RadiusHits, Verified


def search_of(
    verb: str,
    x: Tensor,
    bank: Tensor | PreparedBank,
    metric: str | Metric | None,
    default: str,
    allowed: Allowed | Tensor | None,
    *,
    k: int = 1,
) -> Search:
    vectors, pack, code = resolve(verb, x, bank, metric, default, biased=True, k=k)
    bias = bank.bias if isinstance(bank, PreparedBank) and bank._biased else None
    return Search(x, vectors, pack, code, None if allowed is None else lower(allowed, x, vectors), bias)


def _mapped_radii(m: Metric, r: object, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The radii, (N,); and by the base of m, (...) like x: those within which every row surely is a hit, and those
    beyond which none is. What is wrong with radii is said before they are mapped.
    """
    radii = _checks.radii(r, x, m.name, signed=m.similarity)
    by_base = m.radius(radii)
    if by_base is None:
        same = radii.reshape(x.shape[:-1])
        return radii, same, same
    by_base = by_base.reshape(x.shape[:-1])  # rounded, as are the values of hits
    return radii, by_base * (1 - 2.0**-47), by_base * (1 + 2.0**-47) + 2.0**-1000


def _mapped_radius(
    s: _mapped.Sides, r: Tensor | float, allowed: Allowed | Tensor | None, max_hits: int | None
) -> RadiusHits:
    x = s.x
    radii, least, most = _mapped_radii(s.metric, r, x)
    offsets, indices, found = radius(s.rows, s.bank, most, s.metric.base, allowed=allowed, max_hits=max_hits)
    n = len(offsets) - 1
    of = torch.arange(n, device=x.device).repeat_interleave(offsets.diff(), output_size=len(indices))
    values = s.values(found, indices, of)
    if least is not most:  # the value itself decides
        hit = values.detach() <= radii[of]
        if max_hits is None:
            indices, values = indices[hit], values[hit]
            offsets = torch.nn.functional.pad(torch.bincount(of[hit], minlength=n).cumsum(0), (1, 0))
        else:
            missing = ~hit | (indices < 0)
            indices, values = torch.where(missing, -1, indices), torch.where(missing, torch.inf, values)
    return RadiusHits(offsets, indices, values.to(value_dtype(x)))


def _radii(r: object, s: Search) -> Tensor:
    return _checks.radii(r, s.x, metric_name(s.code), signed=s.similarity)


@entry_point
def radius(
    x: Tensor,
    bank: Tensor | PreparedBank | PackedRows,
    r: Tensor | float,
    metric: str | Metric | None = None,
    *,
    allowed: Allowed | Tensor | None = None,
    max_hits: int | None = None,
) -> RadiusHits:
    """All bank rows within a radius of every vector: exact range search.

    A row is a hit where its float64 score is at most r (distances) or at least r (similarities): r itself is within.

    Args:
        x: (..., d), N vectors in all.
        bank: (M, d), (B, M, d) with x (B, N, d), or a Bank.
        r: a number, or one for each vector, (...). Not NaN, and not negative for distances (looked for on the CPU
            alone; elsewhere there is then no hit).
        metric: as of `topk`. None (default): what a Bank names, else "l2". For "sqeuclidean" r is a square.
        allowed: which rows may be returned to whom, as of `topk`.
        max_hits: return the best `max_hits` hits of every vector, in so many places for each: offsets are then
            multiples of `max_hits`, and places without a hit hold index -1 and the worst value. `radius_count` tells
            how many there are. On a CUDA device this waits for nothing.

    Returns:
        RadiusHits(offsets, indices, values): the hits of vector i (by the order in which they lie in x) are the
        elements offsets[i]:offsets[i + 1] of indices (int64) and values, best first, ties by index. Offsets are int64,
        however many hits there are. Values as of `topk`; a gradient goes through them to x and to a tensor bank.
        Without `max_hits` their number depends on the data: on a CUDA device the host waits once.

    Raises:
        ValueError: r, shapes, devices, metric, max_hits below 1. TypeError: dtypes.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[0.0], [1.0], [5.0]])
        >>> offsets, indices, values = vecbank.radius(torch.tensor([[0.75], [9.0], [5.0]]), bank, 1.0)
        >>> offsets.tolist(), indices.tolist(), values.tolist()
        ([0, 2, 2, 3], [1, 0, 2], [0.25, 0.75, 0.0])
    """
    if (words := of_bits(metric, bank)) is not None:
        if max_hits is not None:
            return _some_bits(x, words, r, allowed, max_hits)
        return bits.radius(x, words, r, allowed=allowed)
    assert not isinstance(bank, PackedRows)
    if (m := mapping(metric, bank)) is not None:
        return _mapped_radius(_mapped.sides(m, x, bank), r, allowed, max_hits)
    s = search_of("radius", x, bank, metric, "l2", allowed)
    radii = _radii(r, s)
    n = radii.shape[0]
    if max_hits is None:
        offsets, indices, values = _select.radius(s, radii)
        if _recorded(s):
            of_hit = torch.arange(n, device=x.device).repeat_interleave(offsets.diff(), output_size=indices.shape[0])
            values = _differentiable(s, of_hit, indices)
        return RadiusHits(offsets, indices, values)
    max_hits = _checks.at_least(1, "max_hits", max_hits)
    with torch.no_grad():
        keys, indices = _select.keys(s, max_hits)
        scores = _select.values_of(keys, indices, s.code, wide=True)
        missing = (indices < 0) | ~_select.within(scores, radii.reshape(*x.shape[:-1], 1), s.code)
        indices = torch.where(missing, -1, indices).reshape(-1)
        values = torch.where(missing, _select.worst_value(s.code), scores).to(value_dtype(x)).reshape(-1)
    if _recorded(s):
        values = _differentiable(s, torch.arange(n, device=x.device).repeat_interleave(max_hits), indices)
    return RadiusHits(torch.arange(n + 1, device=x.device) * max_hits, indices, values)


def _some_bits(
    x: Tensor, bank: Tensor | PackedRows, r: Tensor | float, allowed: Allowed | Tensor | None, max_hits: int
) -> RadiusHits:
    """The best hits of packed bits, in `max_hits` places for each."""
    max_hits = _checks.at_least(1, "max_hits", max_hits)
    found = bits.topk(x, bank, max_hits, allowed=allowed, pad=True)
    limits = whole_radii(r, x).reshape(*x.shape[:-1], 1)
    missing = (found.indices < 0) | (found.values > limits)
    n = x.shape[:-1].numel()
    return RadiusHits(
        torch.arange(n + 1, device=x.device) * max_hits,
        torch.where(missing, -1, found.indices).reshape(-1),
        torch.where(missing, NO_DISTANCE, found.values).reshape(-1),
    )


def _recorded(s: Search) -> bool:
    """Whether autograd wants to know of the values."""
    given = (s.x, s.bank, s.bias)
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)


def _differentiable(s: Search, of_hit: Tensor, indices: Tensor) -> Tensor:
    """The same values once more, from the rows that were found. of_hit: the query of each hit."""
    x = s.x.reshape(s.x.shape[:-1].numel(), s.x.shape[-1]).index_select(0, of_hit)
    bank = s.bank
    if bank.dim() == 3:
        indices = torch.where(indices < 0, -1, indices + of_hit // s.x.shape[1] * bank.shape[1])
        bank = bank.flatten(0, 1)
    return _pairs(Search(x, bank, None, s.code, None, s.bias), indices.unsqueeze(-1)).squeeze(-1)


@entry_point
def radius_count(
    x: Tensor,
    bank: Tensor | PreparedBank | PackedRows,
    r: Tensor | float,
    metric: str | Metric | None = None,
    *,
    allowed: Allowed | Tensor | None = None,
) -> Tensor:
    """How many bank rows lie within a radius of every vector: `radius` without the rows; densities, DBSCAN.

    Args: as of `radius`.

    Returns:
        (...) int64.

    Example:
        >>> import torch, vecbank
        >>> vecbank.radius_count(torch.tensor([[0.75], [9.0]]), torch.tensor([[0.0], [1.0], [5.0]]), 1.0).tolist()
        [2, 0]
    """
    if (words := of_bits(metric, bank)) is not None:
        return bits.radius_count(x, words, r, allowed=allowed)
    assert not isinstance(bank, PackedRows)
    if (m := mapping(metric, bank)) is not None:
        mapped = _mapped.sides(m, x, bank)
        least, most = _mapped_radii(m, r, x)[1:]
        counts = radius_count(mapped.rows, mapped.bank, most, m.base, allowed=allowed)
        if least is most:
            return counts
        surely = radius_count(mapped.rows, mapped.bank, least, m.base, allowed=allowed)
        if _checks.readable(counts) and torch.equal(counts, surely):
            return counts
        return _mapped_radius(mapped, r, allowed, None).offsets.diff().reshape(x.shape[:-1])
    s = search_of("radius_count", x, bank, metric, "l2", allowed)
    return _select.radius_count(s, _radii(r, s)).reshape(x.shape[:-1])


@entry_point
def score_pairs(
    x: Tensor, bank: Tensor | PreparedBank | PackedRows, indices: Tensor, metric: str | Metric | None = None
) -> Tensor:
    """The exact scores of chosen pairs: re-ranking of candidates, losses on the neighbours that a search has found.

    Args:
        x: (..., d).
        bank: (M, d), (B, M, d) with x (B, N, d), or a Bank.
        indices: integers (..., k), bank rows for each vector; -1 stands for none. A slice of `topk`'s indices, as
            [..., 5:10], is a range of ranks (semi-hard negatives).
        metric: as of `topk`.

    Returns:
        (..., k), the values that `topk` returns for these rows: float64 scores rounded once to float32 (kept for
        float64 input), differentiable once in x, in a tensor bank and its bias. -inf (similarities) or +inf (distances)
        for -1, through which no gradient passes.

    Raises:
        IndexError: an index outside -1..M-1. TypeError, ValueError: dtypes, shapes, devices.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[0.0], [1.0], [5.0]])
        >>> vecbank.score_pairs(torch.tensor([[1.5]]), bank, torch.tensor([[2, 1, -1]]), "l2").tolist()
        [[3.5, 0.5, inf]]
    """
    if (words := of_bits(metric, bank)) is not None:
        return bits.score_pairs(x, words, indices)
    assert not isinstance(bank, PackedRows)
    if (m := mapping(metric, bank)) is not None:
        mapped = _mapped.sides(m, x, bank)
        return mapped.rounded(score_pairs(mapped.rows, mapped.bank, indices, m.base), indices)
    s = search_of("score_pairs", x, bank, metric, "dot", None)
    return _pairs(s, _checks.listed(indices, s.x, s.bank.shape[-2]))


def _pairs(s: Search, indices: Tensor) -> Tensor:
    wide = value_dtype(s.x)
    if s.bias is None:
        scores = _select.exact_pairs(s.x, s.bank, indices, s.code, wide)
    else:
        exact = _select.exact_pairs(s.x, s.bank, indices, s.code, torch.float64)
        scores = (exact + s.bias.double()[indices.clamp_min(0)]).to(wide)
    return torch.where(indices < 0, _select.worst_value(s.code), scores)


@entry_point
@torch.no_grad()
def farthest_points(
    bank: Tensor | PreparedBank,
    k: SupportsIndex,
    metric: str | Metric | None = None,
    *,
    first: SupportsIndex | None = 0,
    generator: Generator | SupportsIndex | None = None,
) -> Tensor:
    """k rows of a bank that lie far from each other: each next one is the farthest from all before it (farthest-point
    sampling, greedy k-centre). `anchors.farthest_point` by the name that it has in search.

    Args:
        bank: (M, d), or a Bank; finite.
        k: 1 to M.
        metric: "l2", "sqeuclidean" (the same choice), "l1" or "cosine" (the least similar is the farthest). None
            (default): what a Bank names, else "l2".
        first: the row to begin with (default 0); None draws it.
        generator: source of that draw, or the seed of one.

    Returns:
        (k,) int64, in order of choice; ties go to the lower index.

    Source: Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.

    Example:
        >>> import torch, vecbank
        >>> vecbank.farthest_points(torch.tensor([[0.0], [1.0], [9.0], [5.0]]), 3).tolist()
        [0, 2, 3]
    """
    from .anchors import farthest_point

    vectors = bank._held() if isinstance(bank, PreparedBank) else bank
    _checks.floating("bank", vectors)
    if vectors.dim() != 2:
        raise ValueError(f"bank must be (M, d), got {tuple(vectors.shape)}")
    k = _checks.integer("k", k)
    if not 1 <= k <= vectors.shape[0]:
        raise ValueError(f"k must lie between 1 and the bank's M = {vectors.shape[0]}, got {k}")
    if metric is None:
        metric = bank.metric if isinstance(bank, PreparedBank) else None
    if isinstance(metric, Metric):
        raise ValueError(f'metric must be "l2", "sqeuclidean", "l1" or "cosine" here, got {metric!r}')
    return farthest_point(vectors, k, metric=metric or "l2", first=first, generator=generator)


@entry_point
@torch.no_grad()
def verify(
    x: Tensor,
    bank: Tensor | PreparedBank | PackedRows,
    indices: Tensor,
    metric: str | Metric | None = None,
    *,
    allowed: Allowed | Tensor | None = None,
) -> Verified:
    """Whether lists of neighbours, of any library, are the exact answer: the recall of an index, the faults of a port.

    One exact search, and the exact scores of what was listed.

    Args:
        x: (..., d).
        bank: (M, d), (B, M, d) with x (B, N, d), or a Bank.
        indices: integers (..., k): the list of every vector, best first; -1 stands for no row. k may exceed M.
        metric: as of `topk`.
        allowed: which rows the answer may hold, as of `topk`. A row that it may not hold is wrong in the list.

    Returns:
        Verified(right, right_up_to_ties, first_wrong, recall), each (...). A row that a list names twice is wrong the
        second time.

    Raises:
        IndexError: an index outside -1..M-1. TypeError, ValueError: as of `topk`.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[0.0], [1.0], [5.0], [1.0]])
        >>> found = torch.tensor([[1, 3, 0], [3, 1, 0], [1, 2, 0]])
        >>> checked = vecbank.verify(torch.tensor([[0.75]] * 3), bank, found, "l2")
        >>> checked.right.tolist(), checked.right_up_to_ties.tolist(), checked.first_wrong.tolist()
        ([True, False, False], [True, True, False], [-1, -1, 1])
    """
    if (words := of_bits(metric, bank)) is not None:
        return _verified(*_of_bits(x, words, indices, allowed))
    assert not isinstance(bank, PackedRows)
    if (m := mapping(metric, bank)) is not None:
        mapped = _mapped.sides(m, x, bank)
        return verify(mapped.rows, mapped.bank, indices, m.base, allowed=allowed)
    asked = indices.shape[-1] if isinstance(indices, Tensor) and indices.dim() else 1
    s = search_of("verify", x, bank, metric, "dot", allowed, k=max(asked, 1))
    listed = _checks.listed(indices, s.x, s.bank.shape[-2])
    keys, best = _select.keys(s, listed.shape[-1])
    return _verified(
        keys, best, listed, _select.pair_keys(s, listed), _select.may(s, listed) if s.allowed is not None else None
    )


def _of_bits(
    x: Tensor, bank: Tensor | PackedRows, indices: Tensor, allowed: Allowed | Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """What `_verified` takes, of packed bits."""
    listed = _checks.listed(indices, x, len(bank))
    k = listed.shape[-1]
    found = bits.topk(x, bank, max(1, k), allowed=allowed, pad=True)
    best = found.indices[..., :k]
    keys = torch.where(best < 0, -torch.inf, -found.values[..., :k].double())
    own = torch.where(listed < 0, -torch.inf, -bits.score_pairs(x, bank, listed).double())
    if allowed is None:
        return keys, best, listed, own, None
    words = bank if isinstance(bank, Tensor) else bank.words
    return keys, best, listed, own, _select.may(Search(x, words, None, 0, lower(allowed, x, words)), listed)


def _verified(keys: Tensor, best: Tensor, listed: Tensor, own: Tensor, may: Tensor | None) -> Verified:
    """keys, best: of the exact answer; own: the keys of what was listed; may: whether it may be given."""
    k = listed.shape[-1]
    right = (listed == best).all(-1)
    candidate = (listed >= 0) & ~own.isnan() & ~_repeated(listed)
    if may is not None:
        candidate &= may
    present = best >= 0
    as_good = torch.where(present, candidate & (own == keys), listed < 0)
    good = as_good.all(-1)
    first = torch.where(good, -1, (~as_good).byte().argmax(-1) if k else 0)
    count = present.sum(-1)
    last = keys.gather(-1, (count - 1).clamp_min(0).unsqueeze(-1)) if k else keys
    found = (candidate & (own >= last)).sum(-1) if k else count
    recall = torch.where(count == 0, 1.0, found.clamp(max=count).double() / count.clamp_min(1))
    return Verified(right, good, first, recall)


def _repeated(listed: Tensor) -> Tensor:
    """Which entries of each list were named before in it."""
    ordered = listed.sort(dim=-1, stable=True)
    again = torch.zeros_like(listed, dtype=torch.bool)
    again[..., 1:] = ordered.values[..., 1:] == ordered.values[..., :-1]
    return torch.zeros_like(again).scatter_(-1, ordered.indices, again) & (listed >= 0)
