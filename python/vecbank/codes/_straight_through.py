"""Values that were chosen, with the gradient of what they were chosen for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _checks
from .._numpy import entry_point
from .._ops.tangents import Function


class _StraightThrough(Function):
    operation = "straight_through"

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, None


@entry_point
def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized`, bit for bit, with the gradient passed to x as it is.

    Args:
        x: (...), the tensor that gets the gradient.
        quantized: x's shape, real; cast to x's dtype.

    Returns:
        (...) in x's dtype.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> x = torch.tensor([0.3, 1.6], requires_grad=True)
        >>> vecbank.codes.straight_through(x, x.round()).sum().backward()
        >>> x.grad.tolist()
        [1.0, 1.0]
    """
    _checks.floating("x", x)
    _checks.tensor("quantized", quantized)
    if quantized.is_complex():
        raise TypeError(f"quantized must be real, got {quantized.dtype}")
    if x.shape != quantized.shape:
        raise ValueError(f"quantized must have x's shape {tuple(x.shape)}, got {tuple(quantized.shape)}")
    result: Tensor = _StraightThrough.apply(x, quantized.detach().to(x.dtype))
    return result
