"""`attend`: rows weighted by the softmax of dot products, and the log-sum-exp of these, in one pass; on the CPU.

The way back makes the weights again, from the log-sum-exp that was kept. It is one of powers of two (core/attend.h).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .calls import ops
from .define import define
from .fakes import check, check_pair, same_device
from .selection import check_sets


def _check(
    x: Tensor, bank: Tensor, values: Tensor | None, beta: Tensor, sets: list[Tensor], program: list[int]
) -> None:
    check_pair(x, bank, 0)
    check(torch.float64 not in (x.dtype, bank.dtype), "attend sums in float32: x and bank must not be float64")
    same_device(x, values, beta)
    check(beta.dim() == 1 and beta.dtype == torch.float32, f"beta must be float32 (N,), got {beta.dtype}")
    check(beta.shape[0] == x.shape[:-1].numel(), f"beta must be (N,) for x {tuple(x.shape)}, got {tuple(beta.shape)}")
    if values is not None:
        check(values.dtype.is_floating_point, f"values must be floating point, got {values.dtype}")
        check(values.dtype != torch.float64, "attend sums in float32: values must not be float64")
        check(
            values.shape[:-1] == bank.shape[:-1], f"values {tuple(values.shape)} must go with bank {tuple(bank.shape)}"
        )
    check_sets(x, bank, sets, program)


def _attend(
    x: Tensor, bank: Tensor, values: Tensor | None, beta: Tensor, sets: list[Tensor], program: list[int]
) -> tuple[Tensor, Tensor]:
    _check(x, bank, values, beta, sets, program)
    lead, width = x.shape[:-1], 0 if values is None else values.shape[-1]
    return x.new_empty((*lead, width), dtype=torch.float32), x.new_empty(lead, dtype=torch.float64)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, bank, values, beta, sets, ctx.program = inputs
    ctx.save_for_backward(x, bank, values, beta, *output, *sets)


def _backward(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    x, bank, values, beta, out, lse, *sets = ctx.saved_tensors
    needs = ctx.needs_input_grad
    along = -(grad_lse / math.log(2)).float()
    if values is not None:
        along = along + (grad * out).sum(-1)
    sums = None if values is None else grad.contiguous()
    wanted = tuple(bool(need) for need in needs[:4])
    found = ops.attend_backward(sums, along, x, bank, values, beta, lse, sets, ctx.program, *wanted)
    grads: list[Any] = [[None] * len(need) if isinstance(need, list) else None for need in needs]
    for i, (need, of) in enumerate(zip(wanted, (x, bank, values, beta), strict=True)):
        if need and of is not None:
            grads[i] = found[i].to(of.dtype)
    return tuple(grads)


define("attend", fake=_attend, setup=_setup, backward=_backward)


def _gradient(
    grad: Tensor | None,
    along: Tensor,
    x: Tensor,
    bank: Tensor,
    values: Tensor | None,
    beta: Tensor,
    lse: Tensor,
    sets: list[Tensor],
    program: list[int],
    need_x: bool,
    need_bank: bool,
    need_values: bool,
    need_beta: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(x, bank, values, beta, sets, program)
    same_device(x, grad, along, lse)
    n = x.shape[:-1].numel()
    check((grad is None) == (values is None), "grad goes with values")
    if grad is not None and values is not None:
        check(grad.dtype == torch.float32, f"grad must be float32, got {grad.dtype}")
        check(grad.numel() == n * values.shape[-1], f"grad must be as many as the sums, got {tuple(grad.shape)}")
    for name, t, dtype in (("along", along, torch.float32), ("lse", lse, torch.float64)):
        check(t.dtype == dtype, f"{name} must be {dtype}, got {t.dtype}")
        check(t.numel() == n, f"{name} must have one number for each query, got {tuple(t.shape)}")

    def sized(wanted: bool, like: Tensor | None) -> Tensor:
        return x.new_empty(like.shape if wanted and like is not None else (0,), dtype=torch.float32)

    return sized(need_x, x), sized(need_bank, bank), sized(need_values, values), sized(need_beta, beta)


define("attend_backward", fake=_gradient, gradient_of="attend")
