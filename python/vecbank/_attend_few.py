"""`attend` over few rows of each query: the k best, or those that sparsemax gives a weight. A search finds them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks, _select
from ._attend_blocks import Given, Weight, sparsemax, weigh
from .functional import topk
from .selections import score_pairs
from .sparse import decode


def _scores(g: Given, found: Tensor, indices: Tensor) -> Tensor:
    """beta * score of found rows (..., k), larger is nearer; -inf where there is none."""
    signed = (found if g.similarity else -found).to(g.beta.dtype)
    beta = g.beta.reshape(*g.x.shape[:-1], 1)
    missing = indices < 0
    return torch.where(missing, -torch.inf, torch.where(missing, 0.0, signed) * beta)


def _sum(g: Given, weights: Tensor, indices: Tensor) -> Tensor:
    assert g.values is not None
    values, indices = _select.one_bank(g.values, indices)
    return decode(weights.to(values.dtype), indices, values).reshape(*g.x.shape[:-1], values.shape[-1])


def best(g: Given, weight: str | Weight | None, k: int) -> tuple[Tensor, Tensor | None]:
    """The sums over the k best rows, and their log-sum-exp."""
    values, indices = topk(g.x, g.bank, k, g.metric, allowed=g.allowed)
    z = _scores(g, values, indices).reshape(-1, k)
    may = (indices >= 0).reshape(-1, k)
    weights, lse = weigh(weight, z, may, True)
    out = _sum(g, weights.reshape(indices.shape), indices)
    return out, None if lse is None else lse.reshape(g.x.shape[:-1])


_RANKS = (16, 64, 256)  # rows of a query that are looked for; where more have a weight, all scores are looked at


def sparse(g: Given) -> Tensor | None:
    """The sums by sparsemax, over the rows that have a weight: where the last of the k best has none, no other row has
    one. None: some query has too many.
    """
    m, beta = g.rows.shape[-2], g.beta.detach()
    if m == 0 or g.x.numel() == 0 or not _checks.readable(beta) or bool((beta < 0).any()):
        return None
    if torch._C._are_functorch_transforms_active():  # there the number of rows cannot be looked at
        return None
    for k in (*(k for k in _RANKS if k < m), *((m,) if m <= _RANKS[-1] else ())):
        with torch.no_grad():
            values, indices = topk(g.x, g.bank, k, g.metric, allowed=g.allowed)
            weights = sparsemax(_scores(g, values, indices).reshape(-1, k))
        if k == m or not bool((weights[:, -1] > 0).any()):
            break
    else:
        return None
    size = max(1, int((weights > 0).sum(-1).max()))
    indices = torch.where((weights > 0).reshape(indices.shape), indices, -1)[..., :size]
    found = score_pairs(g.x, g.bank, indices, g.metric)
    z = _scores(g, found, indices).reshape(-1, size)
    out = _sum(g, sparsemax(z).reshape(indices.shape), indices)
    # A search finds nothing for a query that is not finite; of all its scores the weights would be NaN.
    return torch.where(g.x.isfinite().all(-1, keepdim=True), out, torch.nan)
