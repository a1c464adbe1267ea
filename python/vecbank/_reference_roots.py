"""Roots and logarithms of the reference, in steps that round alike everywhere."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _Sqrt(torch.autograd.Function):
    """Square root rounded to nearest, with gradient zero at zero.

    `torch.sqrt` will not do: where torch is built with MKL it is off by one unit for one float64 in eighty.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        flat = [math.sqrt(value) for value in x.flatten().tolist()]
        root = torch.tensor(flat, dtype=torch.float64, device=x.device).reshape(x.shape)
        ctx.save_for_backward(root)
        ctx.save_for_forward(root)
        return root

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _Sqrt.backward(ctx, tangent)  # its derivative is a factor of each number

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return torch.where(root == 0, torch.zeros_like(grad), grad / (2 * root))


class _TwiceAsinhRoot(torch.autograd.Function):
    """2 asinh(sqrt(t)), in steps that round alike everywhere; gradient 0 at 0."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        ctx.save_for_backward(t)
        w = _sqrt(t) + t / (1 + _sqrt(1 + t))  # the result is 2 log(1 + w)
        part, exponent = torch.frexp(1 + w)  # part in [0.5, 1)
        part, exponent = part * 2, (exponent - 1).to(torch.float64)
        high = part > 1.4142135623730951
        part, exponent = torch.where(high, part * 0.5, part), torch.where(high, exponent + 1, exponent)
        log = exponent * _LOG2 + (exponent * _LOG2_REST + _log_of_quotient((part - 1) / (part + 1)))
        found = 2 * torch.where(w < 0.41, _log_of_quotient(w / (2 + w)), log)
        return torch.where(t < torch.inf, found, t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (t,) = ctx.saved_tensors
        return torch.where(t == 0, torch.zeros_like(grad), grad / (t * (1 + t)).sqrt())


_LOG2, _LOG2_REST = float.fromhex("0x1.62e42fefa38p-1"), float.fromhex("0x1.ef35793c7673p-45")


def _log_of_quotient(s: Tensor) -> Tensor:
    """log((1 + s) / (1 - s)) of small s, by its series."""
    z = s * s
    series = torch.full_like(s, 1 / 23)
    for n in range(21, 0, -2):
        series = series * z + 1 / n
    return 2 * (s * series)


def _sqrt(x: Tensor) -> Tensor:
    root: Tensor = _Sqrt.apply(x)
    return root
