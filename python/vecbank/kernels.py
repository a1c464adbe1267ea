"""Kernels: functions of `project`'s distances, as kernel methods and graph layers weigh rows."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._numpy import entry_point
from .bank import Bank
from .functional import project
from .metrics import Metric, mapping

__all__ = ["inverse_power", "rational_quadratic"]


@entry_point
def rational_quadratic(x: Tensor, bank: Tensor | Bank, *, alpha: float = 1.0, length: float = 1.0) -> Tensor:
    """The rational quadratic kernel, (1 + |x - b|^2 / (2 alpha length^2))^-alpha: a mixture of Gaussian kernels.

    Args:
        x: (..., d).
        bank: (M, d), (B, M, d) with x (B, N, d), or a Bank. The distance of one that maps rows (`whiten`) takes the
            place of |x - b|.
        alpha: the exponent, above 0; towards infinity this is the Gaussian kernel.
        length: the length scale, above 0.

    Returns:
        (..., M) in x's dtype, in (0, 1]. Differentiable in x and in a tensor bank.

    Source: Rasmussen and Williams, "Gaussian processes for machine learning", 2006, equation 4.19.

    Example:
        >>> import torch, vecbank
        >>> vecbank.kernels.rational_quadratic(torch.tensor([[0.0]]), torch.tensor([[0.0], [2.0]])).tolist()
        [[1.0, 0.3333333432674408]]
    """
    alpha, length = _positive("alpha", alpha), _positive("length", length)
    own = mapping(None, bank)
    if own is not None and own.similarity:
        raise ValueError(f"the Bank's metric must be a distance, got the similarity {own!r}")
    squares = project(x, bank, "sqeuclidean") if own is None else project(x, bank, own).square()
    return (squares / (2 * alpha * length * length) + 1).pow(-alpha)


@entry_point
def inverse_power(x: Tensor, bank: Tensor | Bank, *, alpha: float = 1.0, metric: str | Metric | None = None) -> Tensor:
    """The singular kernel d(x, b)^-alpha of a distance d, infinite where x equals b.

    Args:
        x: (..., d).
        bank: (M, d), (B, M, d) with x (B, N, d), or a Bank.
        alpha: the exponent, above 0.
        metric: a distance by its name, or an object of `vecbank.metrics`; "l2" by default, or a Bank's own.

    Returns:
        (..., M) in x's dtype. Differentiable; through a distance of 0 no gradient passes.

    Raises:
        ValueError: alpha that is not above 0, or a similarity.

    Example:
        >>> import torch, vecbank
        >>> vecbank.kernels.inverse_power(torch.tensor([[0.0]]), torch.tensor([[0.5], [2.0]]), alpha=2.0).tolist()
        [[4.0, 0.25]]
    """
    alpha = _positive("alpha", alpha)
    asked = metric or (bank.metric if isinstance(bank, Bank) else None) or "l2"
    mapped = mapping(asked, None)
    if asked in ("dot", "cosine") if mapped is None else mapped.similarity:
        raise ValueError(f"metric must be a distance, got the similarity {asked!r}")
    distances = project(x, bank, asked)
    same = distances == 0
    return torch.where(same, torch.inf, torch.where(same, 1.0, distances).pow(-alpha))


def _positive(name: str, value: float) -> float:
    _checks.number(name, value)
    if not 0 < float(value) < float("inf"):
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return float(value)
