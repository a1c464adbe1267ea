"""Gradient and tangents of distances in the Poincare ball, in plain torch and float64.

Between points of the unit ball t = |x - b|^2 / ((1 - |x|^2) (1 - |b|^2)), and the distance is 2 asinh(sqrt(t)). Near
the boundary the two factors are tiny, and so the sums below are of float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import BLOCK_BYTES, blocks


def factors(rows: Tensor) -> Tensor:
    """1 - |row|^2 of rows (..., d), (...); NaN for points that do not lie inside the ball, which have no distance."""
    squares = rows.square().sum(-1)
    return torch.where(squares < 1, 1 - squares, torch.nan)


def distance(ratio: Tensor) -> Tensor:
    """2 asinh(sqrt(ratio)), float64, in the steps of core/exact_score.h."""
    w = ratio.sqrt() + ratio / (1 + (1 + ratio).sqrt())  # the result is 2 log(1 + w)
    part, exponent = torch.frexp(1 + w)  # part in [0.5, 1)
    high = part > 0.5 * 1.4142135623730951
    part, exponent = torch.where(high, part, part * 2), torch.where(high, exponent, exponent - 1).double()
    log = exponent * _LOG2 + (exponent * _LOG2_REST + _log_of_quotient((part - 1) / (part + 1)))
    return torch.where(ratio < torch.inf, 2 * torch.where(w < 0.41, _log_of_quotient(w / (2 + w)), log), ratio)


_LOG2, _LOG2_REST = float.fromhex("0x1.62e42fefa38p-1"), float.fromhex("0x1.ef35793c7673p-45")


def _log_of_quotient(s: Tensor) -> Tensor:
    """log((1 + s) / (1 - s)) of small s, by its series."""
    z, series = s * s, torch.full_like(s, 1 / 23)
    for n in range(21, 0, -2):
        series = series * z + 1 / n
    return 2 * (s * series)


def slope(ratio: Tensor, *, arc: bool) -> Tensor:
    """What the value changes by with the ratio: nothing at 0, where the distance has no gradient."""
    if not arc:
        return torch.ones_like(ratio)
    same = ratio == 0
    return torch.where(same, 0.0, torch.where(same, 1.0, ratio * (1 + ratio)).rsqrt())


def gradient(
    grad: Tensor, x: Tensor, bank: Tensor, *, arc: bool, need_x: bool, need_bank: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Of all pairs: grad (N, M), x (N, d) and bank (M, d); `arc`: of the distance, else of the ratio."""
    x, bank = x.double(), bank.double()
    of_bank = factors(bank)
    grad_x = torch.empty_like(x) if need_x else None
    grad_bank = torch.zeros_like(bank) if need_bank else None
    for rows in blocks(x.shape[0], max(1, BLOCK_BYTES // (16 * max(1, bank.shape[0])))):
        own, of_own = x[rows], factors(x[rows]).unsqueeze(-1)
        scale = of_own * of_bank
        ratio = torch.cdist(own, bank, compute_mode="donot_use_mm_for_euclid_dist").square_() / scale
        change = 2 * grad[rows].double() * slope(ratio, arc=arc)
        along, outward = change / scale, change * ratio
        if grad_x is not None:
            factor = along.sum(1, keepdim=True) + outward.sum(1, keepdim=True) / of_own
            grad_x[rows] = own * factor - along @ bank
        if grad_bank is not None:
            factor = along.sum(0) + outward.sum(0) / of_bank
            grad_bank += bank * factor.unsqueeze(-1) - along.mT @ own
    return grad_x, grad_bank


def tangent(x: Tensor, b: Tensor, tx: Tensor | None, tb: Tensor | None, *, arc: bool) -> Tensor:
    """How the value of pairs x, b (..., d) changes along tx, tb."""
    of_x, of_b = factors(x), factors(b)
    apart = x - b
    ratio = apart.square().sum(-1) / (of_x * of_b)
    change = torch.zeros_like(ratio)
    if tx is not None:
        change = change + 2 * ((apart * tx).sum(-1) / (of_x * of_b) + ratio * (x * tx).sum(-1) / of_x)
    if tb is not None:
        change = change + 2 * (ratio * (b * tb).sum(-1) / of_b - (apart * tb).sum(-1) / (of_x * of_b))
    return change * slope(ratio, arc=arc)
