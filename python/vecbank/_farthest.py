"""The k farthest rows by l2, screened: |x - b|^2 = |x|^2 + 2 (|b|^2 / 2 - x.b), and the bracket is a dot product with a
bias, whose best rows a screen finds. A bound tells which queries that answers; the others are scored exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._ops import METRICS, ops
from ._select import Search, exact_pairs, worst_value

_LEAST_ROWS, _LEAST_QUERIES, _LEAST_WIDTH = 2048, 32, 32  # below these every pair is scored as fast
_DOT, _L2, _SQUARE = METRICS["dot"], METRICS["l2"], METRICS["sqeuclidean"]


def serves(s: Search, k: int) -> bool:
    """Whether a screen is worth it."""
    large = s.bank.shape[-2] >= max(_LEAST_ROWS, 16 * k) and s.x.shape[:-1].numel() >= _LEAST_QUERIES
    plain = s.bank.dim() == 2 and s.x.dtype == s.bank.dtype == torch.float32 and s.x.shape[-1] >= _LEAST_WIDTH
    return large and plain and s.x.is_cpu and s.code in (_L2, _SQUARE) and not torch.compiler.is_compiling()


def farthest(s: Search, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices, (..., k)."""
    with torch.no_grad():
        indices = _indices(s._replace(x=s.x.detach(), bank=s.bank.detach()), k)
    missing = indices < 0
    scores = exact_pairs(s.x, s.bank, indices, s.code, torch.float32)
    return torch.where(missing, worst_value(s.code, farthest=True), scores), indices


def _indices(s: Search, k: int) -> Tensor:
    x, bank, d = s.x, s.bank, s.x.shape[-1]
    itself = torch.arange(bank.shape[0]).unsqueeze(-1)
    squares: Tensor = ops.exact_scores(bank, bank, _DOT, torch.float64, itself).squeeze(-1)
    most = float(squares.max())
    if not 1e-30 < most < 1e30:  # the bias must not leave float32's range, and NaN and infinity have no bound
        return _exactly(s, k)
    wanted = k + k // 2 + 16
    bias = (0.5 * squares).float()
    found, near = ops.topk_among(-x, bank, None, wanted, _DOT, *s.sets(), bias, True, False)
    apart = exact_pairs(x, bank, near, _SQUARE, torch.float64)
    apart = torch.where(near < 0, -torch.inf, apart)
    best, indices = ops.merge_topk(apart, near, k, _DOT, True)
    own = (x.double() * x.double()).sum(-1)
    # The rounding of the bias, and of all sums in float64.
    error = 2.0**-23 * most + 2.0**-148 + 16 * (d + 8) * 2.0**-53 * (own + most)
    beyond = own + 2 * found[..., -1] + error  # no other row is farther
    unsure = ~((best[..., -1] > beyond) | ((near[..., -1] < 0) & own.isfinite()))
    open_rows = int(unsure.sum())
    if 8 * open_rows > unsure.numel():  # data far from 0, or ties: their own sets as bools would be N x M
        return _exactly(s, k)
    if open_rows:
        indices[unsure] = _exactly(_of_rows(s, unsure), k)
    return indices


def _exactly(s: Search, k: int) -> Tensor:
    indices: Tensor = ops.topk_among(s.x, s.bank, None, k, s.code, *s.sets(), None, False, True)[1]
    return indices


def _of_rows(s: Search, chosen: Tensor) -> Search:
    """The chosen queries, with their own sets as bools: they are few, or else all of them would go this way."""
    flat, lead, sets = chosen.reshape(-1).nonzero().squeeze(-1), s.x.shape[:-1], s.lowered()
    masks = None if sets is None else torch.cat([sets.holds(i, i + 1, lead, s.bank) for i in flat.tolist()])
    return Search(s.x[chosen], s.bank, None, s.code, masks)
