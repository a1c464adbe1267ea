"""Selections among candidate sets: by the kernels where there are some, else in blocks of queries.

The kernels are the CPU's. Elsewhere every op is put together from others, a block of queries at a time, so that nothing
of the size N x M is made; within `in_blocks` the CPU goes that way too, for tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ._ops import METRICS, SIMILARITIES, ball, ops
from ._ops.blocks import BLOCK_BYTES
from ._ops.fakes import value_dtype
from ._ops.names import POINCARE, POINCARE_RATIO
from ._ops.sets import Lowered

_forced = False


@contextmanager
def in_blocks() -> Iterator[None]:
    """Everything in this module as it goes where there are no kernels."""
    global _forced
    before, _forced = _forced, True
    try:
        yield
    finally:
        _forced = before


class Search(NamedTuple):
    """Queries, what they are compared with, and which pairs count."""

    x: Tensor
    bank: Tensor
    pack: Tensor | None
    code: int
    allowed: Lowered | Tensor | None = None  # a tensor: a mask expanded to (..., M)
    bias: Tensor | None = None

    @property
    def similarity(self) -> bool:
        return self.code in SIMILARITIES

    def lowered(self) -> Lowered | None:
        return Lowered([self.allowed], [0, 0]) if isinstance(self.allowed, Tensor) else self.allowed

    def sets(self) -> tuple[list[Tensor], list[int]]:
        lowered = self.lowered()
        return ([], []) if lowered is None else (lowered.sets, lowered.program)


def kernels(x: Tensor) -> bool:
    return x.device.type in ("cpu", "meta") and not _forced


def worst_value(code: int, *, farthest: bool = False) -> float:
    """The value of a rank that no row fills."""
    return -torch.inf if (code in SIMILARITIES) != farthest else torch.inf


# ---- The k best, or worst -------------------------------------------------------------------------------------------


def topk(s: Search, k: int, *, worst: bool = False) -> tuple[Tensor, Tensor]:
    """Values and indices (..., k), k at most M."""
    if worst and s.similarity:  # the best of the mirrored queries: each sum is negated to the last bit
        mirrored = s._replace(x=-s.x)
        if s.bias is not None:
            mirrored = mirrored._replace(pack=None, bias=-s.bias)
        values, indices = topk(mirrored, k)
        return 0.0 - values, indices  # not -values: a score of 0 is not to be -0.0
    if isinstance(s.allowed, Lowered) or worst:
        if kernels(s.x):
            pack = None if worst else s.pack
            found: tuple[Tensor, Tensor] = ops.topk_among(s.x, s.bank, pack, k, s.code, *s.sets(), s.bias, False, worst)
            return found
        return _topk_in_blocks(s, k, worst=worst)
    best: tuple[Tensor, Tensor] = ops.topk(s.x, s.bank, s.pack, k, s.code, s.allowed, True, s.bias)
    return best


def keys(s: Search, k: int) -> tuple[Tensor, Tensor]:
    """The float64 keys of the k best, larger is better whatever the metric, and their indices; -inf and -1 where there
    is no row, as k may exceed M. Without a gradient.
    """
    places = min(k, s.bank.shape[-2])
    with torch.no_grad():
        if places == 0:
            found = s.x.new_empty((*s.x.shape[:-1], 0), dtype=torch.float64)
            indices = found.long()
        elif kernels(s.x):
            found, indices = ops.topk_among(s.x, s.bank, s.pack, places, s.code, *s.sets(), s.bias, True, False)
        else:
            indices = topk(s, places)[1]
            found = pair_keys(s, indices)
        if k > places:
            found = torch.nn.functional.pad(found, (0, k - places), value=-torch.inf)
            indices = torch.nn.functional.pad(indices, (0, k - places), value=-1)
        return found, indices


def pair_keys(s: Search, indices: Tensor) -> Tensor:
    """The float64 keys of chosen pairs, -inf where an index is -1."""
    scores = exact_pairs(s.x, s.bank, indices, _key_code(s.code), torch.float64)
    if s.bias is not None:
        scores = scores + s.bias.double()[indices.clamp_min(0)]
    return torch.where(indices < 0, -torch.inf, scores if s.similarity else -scores)


def _key_code(code: int) -> int:
    """The metric whose scores rank: of l2 its square, of poincare the ratio."""
    return _RANKING.get(code, code)


_RANKING = {METRICS["l2"]: METRICS["sqeuclidean"], POINCARE: POINCARE_RATIO}


def _scores_of(found: Tensor, code: int) -> Tensor:
    """What keys stand for, in float64."""
    scores = found if code in SIMILARITIES else -found
    if code == POINCARE:
        return ball.distance(scores)
    return scores.sqrt() if code == METRICS["l2"] else scores


def one_bank(bank: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The banks (B, M, d) of a batch as one, with the indices (B, N, k) of its rows; others as they are."""
    if bank.dim() == 2:
        return bank, indices
    first = torch.arange(bank.shape[0], device=bank.device) * bank.shape[1]
    return bank.flatten(0, 1), torch.where(indices < 0, -1, indices + first.reshape(-1, 1, 1))


def exact_pairs(x: Tensor, bank: Tensor, indices: Tensor, code: int, dtype: torch.dtype) -> Tensor:
    """The exact scores of chosen pairs (..., k); 0 where an index is -1."""
    bank, indices = one_bank(bank, indices)
    scores: Tensor = ops.exact_scores(x, bank, code, dtype, indices)
    return scores


def values_of(found: Tensor, indices: Tensor, code: int, *, wide: bool) -> Tensor:
    """What `topk` returns for such keys."""
    return merge(found, indices, found.shape[-1], code, wide=wide)[0]


def merge(found: Tensor, indices: Tensor, k: int, code: int, *, wide: bool) -> tuple[Tensor, Tensor]:
    """The best k of keys (..., n) and their indices, as `topk` returns them; an index of -1 stands for nothing."""
    if kernels(found):
        best: tuple[Tensor, Tensor] = ops.merge_topk(found, indices, k, code, wide)
        return best
    missing = (indices < 0) | found.isnan()
    place = torch.where(missing, torch.iinfo(torch.int64).max, indices)
    order = torch.sort(place, dim=-1, stable=True).indices
    order = order.gather(-1, torch.sort(found.gather(-1, order), dim=-1, descending=True, stable=True).indices)
    order = order.gather(-1, torch.sort(missing.gather(-1, order).byte(), dim=-1, stable=True).indices)[..., :k]
    rows = torch.where(missing.gather(-1, order), -1, indices.gather(-1, order))
    best_keys = found.gather(-1, order)
    scores = torch.where(rows < 0, worst_value(code), _scores_of(best_keys, code))
    return scores if wide else scores.float(), rows


def block_of(row_bytes: int) -> int:
    """How many queries a block has."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def spans(s: Search, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Queries [first, last) by the block, each of one batch; `row_bytes`: what a query takes."""
    n, step = s.x.shape[:-1].numel(), block_of(row_bytes)
    batch = max(1, int(s.x.shape[1]) if s.bank.dim() == 3 else n)
    return (
        (first, min(begin + batch, first + step))
        for begin in range(0, n, batch)
        for first in range(begin, begin + batch, step)
    )


def may(s: Search, listed: Tensor) -> Tensor:
    """Which of the listed rows (..., k) each query may be given; of -1, either."""
    sets = s.lowered()
    if sets is None or listed.numel() == 0 or s.bank.shape[-2] == 0:
        return torch.ones_like(listed, dtype=torch.bool)
    flat, lead = listed.clamp_min(0).reshape(-1, listed.shape[-1]), s.x.shape[:-1]
    row_bytes = 16 * listed.shape[-1]
    parts = [sets.holds(first, last, lead, s.bank, flat[first:last]) for first, last in spans(s, row_bytes)]
    return torch.cat(parts).reshape(listed.shape)


def _blocks(s: Search, row_bytes: int) -> Iterator[tuple[int, int, Search]]:
    """(first, last, the search of queries [first, last) with their mask (n, M)); `row_bytes`: what a pair takes."""
    lead, sets = s.x.shape[:-1], s.lowered()
    x = s.x.reshape(lead.numel(), s.x.shape[-1])
    for first, last in spans(s, row_bytes * s.bank.shape[-2]):
        bank = s.bank[first // int(lead[-1])] if s.bank.dim() == 3 else s.bank
        mask = None if sets is None else sets.holds(first, last, lead, s.bank)
        yield first, last, Search(x[first:last], bank, None if s.bank.dim() == 3 else s.pack, s.code, mask, s.bias)


def _topk_in_blocks(s: Search, k: int, *, worst: bool) -> tuple[Tensor, Tensor]:
    pieces = []
    for _, _, part in _blocks(s, 32):
        if not worst:
            pieces.append(ops.topk(part.x, part.bank, part.pack, k, part.code, part.allowed, True, part.bias))
            continue
        with torch.no_grad():
            found = -_all_keys(part)
            order = _best_first(found, _counted(part, ~found.isnan()))
            chosen = order.indices[:, :k]
            chosen = torch.where(torch.arange(k, device=chosen.device) < order.counts.unsqueeze(-1), chosen, -1)
        scores = exact_pairs(part.x, part.bank, chosen, part.code, value_dtype(part.x))
        pieces.append((torch.where(chosen < 0, worst_value(part.code, farthest=True), scores), chosen))
    shape = (*s.x.shape[:-1], k)
    if not pieces:
        empty = s.x.new_empty(shape, dtype=value_dtype(s.x))
        return empty, empty.long()
    values, indices = (torch.cat(t).reshape(shape) for t in zip(*pieces, strict=True))
    return values, indices


def _all_keys(s: Search) -> Tensor:
    """Of every pair of a block."""
    scores: Tensor = ops.exact_scores(s.x, s.bank, _key_code(s.code), torch.float64, None)
    if s.bias is not None:
        scores = scores + s.bias.double()
    return scores if s.similarity else -scores


class _Order(NamedTuple):
    indices: Tensor  # the columns of each row, those that count before all others
    counts: Tensor


def _best_first(found: Tensor, counted: Tensor) -> _Order:
    order = torch.sort(found, dim=-1, descending=True, stable=True).indices
    order = order.gather(-1, torch.sort(~counted.gather(-1, order), dim=-1, stable=True).indices)
    return _Order(order, counted.sum(-1))


# ---- All within a radius --------------------------------------------------------------------------------------------


def radius(s: Search, radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets (N + 1,), indices and values (hits,), best first in each row; radii (N,) float64."""
    with torch.no_grad():
        if kernels(s.x):
            csr: tuple[Tensor, Tensor, Tensor] = ops.radius(s.x, s.bank, s.pack, radii, s.code, *s.sets(), s.bias)
            return csr
        offsets = torch.zeros(radii.shape[0] + 1, dtype=torch.int64, device=s.x.device)
        torch.cumsum(_counts_in_blocks(s, radii), 0, out=offsets[1:])
        total = int(offsets[-1])  # the one time that this waits for the device
        indices = torch.empty(total + 1, dtype=torch.int64, device=s.x.device)
        values = torch.empty(total + 1, dtype=torch.float64, device=s.x.device)  # the last is for what is no hit
        for first, last, part in _blocks(s, 48):
            found, scores, hits = _hits(part, radii[first:last])
            order = _best_first(found, hits)
            rank = torch.arange(hits.shape[1], device=hits.device)
            inside = rank < order.counts.unsqueeze(-1)
            place = torch.where(inside, offsets[first:last].unsqueeze(-1) + rank, total)
            indices.scatter_(0, place.reshape(-1), order.indices.reshape(-1))
            values.scatter_(0, place.reshape(-1), scores.gather(-1, order.indices).reshape(-1))
        return offsets, indices[:total], values[:total].to(value_dtype(s.x))


def radius_count(s: Search, radii: Tensor) -> Tensor:
    """(N,) int64."""
    with torch.no_grad():
        if kernels(s.x):
            counts: Tensor = ops.radius_count(s.x, s.bank, s.pack, radii, s.code, *s.sets(), s.bias)
            return counts
        return _counts_in_blocks(s, radii)


def _counts_in_blocks(s: Search, radii: Tensor) -> Tensor:
    counts = [_hits(part, radii[first:last]).hits.sum(-1) for first, last, part in _blocks(s, 24)]
    return torch.cat(counts) if counts else radii.new_zeros(0, dtype=torch.int64)


class _Hits(NamedTuple):
    keys: Tensor
    scores: Tensor  # float64
    hits: Tensor


def _hits(s: Search, radii: Tensor) -> _Hits:
    """Of every pair of a block."""
    found = _all_keys(s)
    scores = (
        ops.exact_scores(s.x, s.bank, s.code, torch.float64, None) if s.code == POINCARE else _scores_of(found, s.code)
    )
    return _Hits(found, scores, _counted(s, within(scores, radii.unsqueeze(-1), s.code)))


def within(scores: Tensor, limits: Tensor, code: int) -> Tensor:
    """Whether scores lie within radii, which are within themselves."""
    return scores >= limits if code in SIMILARITIES else scores <= limits


def _counted(block: Search, chosen: Tensor) -> Tensor:
    """Of the chosen pairs of a block, those that may be returned."""
    return chosen & block.allowed if isinstance(block.allowed, Tensor) else chosen
