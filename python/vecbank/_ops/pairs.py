"""Tangents of chosen pairs of a query and a bank row, by direct differences, on blocks of queries."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ball
from .blocks import BLOCK_BYTES
from .names import BALL, METRICS, POINCARE, SIMILARITIES
from .project_gradient import inverse_norms
from .tangents import Tangents, flat, split, wide


def units(rows: Tensor, tangent: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The rows over their norms, and how that changes: the part of the tangent across the row, over the norm."""
    inverse, alive = inverse_norms(rows)
    unit = rows * inverse
    if tangent is None:
        return unit, None
    return unit, (tangent - unit * ((tangent * unit).sum(-1, keepdim=True) * alive)) * inverse


def pair_tangents(
    tangents: Tangents, values: Tensor, x: Tensor, bank: Tensor, indices: Tensor, metric: int, tbias: Tensor | None
) -> Tensor:
    """Of the chosen pairs alone, by direct differences, on blocks of rows."""
    tx, tb = tangents[:2]
    k, d, m = indices.shape[-1], x.shape[-1], bank.shape[-2]
    if values.numel() == 0 or m * d == 0:
        return torch.zeros_like(values)
    missing = (indices < 0).reshape(-1, k)
    place = indices.clamp_min(0)
    if bank.dim() == 3:
        place = place + torch.arange(0, bank.shape[0] * m, m, device=bank.device).reshape(-1, 1, 1)
    place = place.reshape(-1, k)
    (x, tx), (bank, tb) = flat(x, tx), flat(bank, tb)
    step, pieces = max(1, BLOCK_BYTES // (8 * k * d)), []
    for at, absent, own, change in zip(
        place.split(step), missing.split(step), x.split(step), split(tx, step), strict=False
    ):
        a, ta = wide(torch.float64, *(None if t is None else t.unsqueeze(-2) for t in (own, change)))
        b, tb_rows = wide(torch.float64, *(None if t is None else t[at] for t in (bank, tb)))
        terms = pair_terms(metric, a, b, ta, tb_rows)
        if tbias is not None:
            terms.append(tbias.double()[at])
        pieces.append(torch.where(absent, 0.0, sum(terms[1:], start=terms[0])))
    return torch.cat(pieces).reshape(values.shape).to(values.dtype)


def pair_terms(metric: int, x: Tensor, b: Tensor, tx: Tensor | None, tb: Tensor | None) -> list[Tensor]:
    if tx is None and tb is None:
        return []
    if metric in BALL:
        return [ball.tangent(x, b, tx, tb, arc=metric == POINCARE)]
    if metric not in SIMILARITIES:
        apart = x - b
        change = tx - tb if tx is not None and tb is not None else tx if tx is not None else -tb  # type: ignore[operator]
        if metric == METRICS["l1"]:
            return [(apart.sign() * change).sum(-1)]
        along = (apart * change).sum(-1)
        if metric == METRICS["sqeuclidean"]:
            return [along * 2]
        squares = apart.square().sum(-1)
        same = squares == 0
        return [torch.where(same, 0.0, along / torch.where(same, 1.0, squares).sqrt())]
    if metric == METRICS["cosine"]:
        (x, tx), (b, tb) = units(x, tx), units(b, tb)
    return [(p * q).sum(-1) for p, q in ((tx, b), (x, tb)) if p is not None and q is not None]
