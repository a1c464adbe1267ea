"""`lookup`, `segment_sum` and `lookup_dot`: rows by number, and the two ways back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .calls import ops
from .define import define
from .fakes import check, check_codes, check_source, same_device
from .names import REDUCTIONS
from .tangents import linear

# ---- lookup -------------------------------------------------------------------------------------------------------


def _lookup(codes: Tensor, bank: Tensor, weights: Tensor | None, reduce: int) -> Tensor:
    check_codes(codes, bank, weights)
    check(bank.dim() == 2, f"bank must be (M, d), got {tuple(bank.shape)}")
    check(reduce in REDUCTIONS.values(), f"reduce must be 0, 1 or 2, got {reduce}")
    check(reduce == 0 or codes.dim() >= 1, "a reduction needs codes (..., k), got a scalar")
    shape = codes.shape if reduce == 0 else codes.shape[:-1]
    return bank.new_empty((*shape, bank.shape[1]))


def _lookup_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, bank, weights, ctx.reduce = inputs
    ctx.save_for_backward(codes, bank, weights)


def _lookup_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    codes, bank, weights = ctx.saved_tensors
    if ctx.reduce == REDUCTIONS["mean"]:
        grad = grad / (codes >= 0).sum(-1, keepdim=True).clamp_min(1).to(grad.dtype)
    grad_bank = ops.segment_sum(grad, codes, bank.shape[0], weights) if ctx.needs_input_grad[1] else None
    grad_weights = ops.lookup_dot(grad, codes, bank) if ctx.needs_input_grad[2] else None
    return None, grad_bank, grad_weights, None


define("lookup", fake=_lookup, setup=_lookup_setup, backward=_lookup_backward, tangent=linear("lookup", 1, 2))


# ---- segment_sum --------------------------------------------------------------------------------------------------


def _segment_sum(src: Tensor, codes: Tensor, num_codes: int, weights: Tensor | None) -> Tensor:
    check_codes(codes, src, weights)
    check_source(src, codes)
    check(num_codes >= 0, f"num_codes must not be negative, got {num_codes}")
    return src.new_empty((num_codes, src.shape[-1]))


def _segment_sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    src, codes, _, weights = inputs
    ctx.listed = codes.dim() == src.dim()
    ctx.save_for_backward(src, codes, weights)


def _segment_sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    src, codes, weights = ctx.saved_tensors
    reduce = REDUCTIONS["sum" if ctx.listed else "none"]
    grad_src = ops.lookup(codes, grad, weights, reduce) if ctx.needs_input_grad[0] else None
    grad_weights = ops.lookup_dot(src, codes, grad) if ctx.needs_input_grad[3] else None
    return grad_src, None, None, grad_weights


define(
    "segment_sum",
    fake=_segment_sum,
    setup=_segment_sum_setup,
    backward=_segment_sum_backward,
    tangent=linear("segment_sum", 0, 3),
)


# ---- lookup_dot: the gradient of lookup's weights -----------------------------------------------------------------


def _lookup_dot(x: Tensor, codes: Tensor, bank: Tensor) -> Tensor:
    check_codes(codes, bank, None)
    same_device(codes, x)
    check(bank.dim() == 2, f"bank must be (M, d), got {tuple(bank.shape)}")
    check_source(x, codes)
    check(x.shape[-1] == bank.shape[1], f"x {tuple(x.shape)} and bank {tuple(bank.shape)} differ in width")
    return bank.new_empty(codes.shape)


define("lookup_dot", fake=_lookup_dot, gradient_of="the weights of lookup", tangent=linear("lookup_dot", 0, 2))
