"""Maps that turn another geometry into the Euclidean one, before a Bank is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._numpy import entry_point
from ._ops.tangents import Function
from .bank import Bank
from .metrics import Mahalanobis

__all__ = ["log_euclidean", "whiten"]


@entry_point
def whiten(bank: Tensor | Bank, covariance: Tensor) -> Bank:
    """A Bank that is searched by the Mahalanobis distance: its rows, and the queries', are multiplied by L^-1, of the
    Cholesky factor L L^T = covariance, and compared by "l2".

    `Bank(vectors, Mahalanobis(covariance))` is the same. The Bank passes no gradient to its vectors; for gradients to
    the bank or to the covariance give tensors: `topk(x, bank, k, Mahalanobis(covariance))`.

    Args:
        bank: (M, d), or a Bank, whose vectors are shared.
        covariance: (d, d), symmetric and positive definite.

    Returns:
        Bank: `vectors` are as they were given.

    Raises:
        ValueError: a singular or indefinite covariance (the message has its smallest eigenvalue), or shapes.

    Example:
        >>> import torch, vecbank
        >>> bank = vecbank.whiten(torch.tensor([[2.0, 0.0], [0.0, 1.5]]), torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
        >>> bank.topk(torch.zeros(2), 2)
        TopK(values=tensor([1.0000, 1.5000]), indices=tensor([0, 1]))
    """
    if not isinstance(bank, Bank):
        _checks.vectors("bank", bank)
    metric, vectors = Mahalanobis(covariance), bank.vectors if isinstance(bank, Bank) else bank
    metric.check("bank", vectors)
    return Bank(vectors, metric, screen=bank.screen if isinstance(bank, Bank) else "auto")


@entry_point
def log_euclidean(matrices: Tensor) -> Tensor:
    """Symmetric positive definite matrices as vectors whose Euclidean distance is the log-Euclidean one.

    The upper triangle of the matrix logarithm, with the entries off the diagonal times sqrt(2): the dot product of two
    such vectors is the Frobenius product of the logarithms. It stands for the affine-invariant distance, which it
    equals for matrices that commute.

    Args:
        matrices: (..., n, n), symmetric and positive definite; float32 or float64. The logarithm is computed in
            float64.

    Returns:
        (..., n (n + 1) / 2) in the dtype of the matrices. Differentiable, where eigenvalues are equal too.

    Raises:
        ValueError: matrices that are not square, not symmetric, or not positive definite (the message has the smallest
            eigenvalue; looked for on the CPU alone).

    Source: Arsigny et al., "Log-Euclidean metrics for fast and simple calculus on diffusion tensors", 2006.

    Example:
        >>> import torch, vecbank
        >>> vecbank.log_euclidean(torch.diag(torch.tensor([1.0, 4.0]))).exp()
        tensor([1., 1., 4.])
    """
    _checks.floating("matrices", matrices)
    if matrices.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"matrices must be float32 or float64, got {matrices.dtype}")
    if matrices.dim() < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise ValueError(f"matrices must be (..., n, n), got {tuple(matrices.shape)}")
    wide = matrices.double()
    if _checks.readable(wide) and wide.numel():
        _check(wide.detach())
    n = matrices.shape[-1]
    logarithm: Tensor = _Logarithm.apply((wide + wide.mT) / 2)
    row, column = torch.triu_indices(n, n, device=matrices.device)
    upper = logarithm[..., row, column]
    return torch.where(row == column, upper, upper * 2.0**0.5).to(matrices.dtype)


def _check(wide: Tensor) -> None:
    if not bool(wide.isfinite().all()):
        raise ValueError("matrices must be finite, got NaN or infinity")
    size = wide.abs().amax((-2, -1))
    apart = (wide - wide.mT).abs().amax((-2, -1))
    if bool((apart > 1e-4 * size).any()):
        i = int((apart - 1e-4 * size).argmax())
        differ = float(apart.reshape(-1)[i])
        raise ValueError(f"matrices must be symmetric, got entries that differ by {differ:.3g} in matrix {i}")
    least = torch.linalg.eigvalsh(wide)[..., 0]
    if bool((least <= 0).any()):
        i = int(least.argmin())
        raise ValueError(
            f"matrices must be positive definite, got a smallest eigenvalue of {float(least.min()) + 0.0:.6g} in "
            f"matrix {i} (add a multiple of the identity)"
        )


class _Logarithm(Function):
    """The logarithm of symmetric positive definite matrices. Its derivative is that of Daleckii and Krein, which is
    finite where eigenvalues are equal; that of `eigh` is not.
    """

    operation = "log_euclidean"

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrices)
        ctx.save_for_backward(values, vectors)
        return (vectors * values.log().unsqueeze(-2)) @ vectors.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        first, second = values.unsqueeze(-1), values.unsqueeze(-2)
        gap = first - second
        close = gap.abs() <= 1e-6 * second  # the limit of the quotient of differences
        quotient = (first / second).log() / torch.where(close, 1.0, gap)
        ratio = torch.where(close, 1 / second - gap / (2 * second * second), quotient)
        inner = vectors.mT @ grad @ vectors
        found = vectors @ (inner * ratio) @ vectors.mT
        return (found + found.mT) / 2
