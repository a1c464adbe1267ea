"""`topk` and `nearest`: the best bank rows, and the gradient of their values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import ops
from .define import define
from .fakes import check, check_bias, check_mask, check_pair, check_source, same_device, value_dtype
from .pairs import pair_tangents
from .tangents import Tangents

# ---- topk ---------------------------------------------------------------------------------------------------------


def _topk(
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    k: int,
    metric: int,
    mask: Tensor | None = None,
    exact: bool = True,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    check_pair(x, bank, metric, pack)
    check(k >= 1, f"k must lie between 1 and M, got k = {k}")
    check(k <= bank.shape[-2], f"k must lie between 1 and M = {bank.shape[-2]}, got k = {k}")
    check_mask(mask, x, (*x.shape[:-1], bank.shape[-2]))
    check_bias(bias, bank, metric)
    shape = (*x.shape[:-1], k)
    return x.new_empty(shape, dtype=value_dtype(x)), x.new_empty(shape, dtype=torch.int64)


def _topk_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _selection_setup(ctx, inputs, output, metric=inputs[4])


def _selection_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor], metric: int) -> None:
    ctx.metric = metric
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _topk_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    x, bank, indices = ctx.saved_tensors
    grad_x, grad_bank = ops.topk_backward(grad, x, bank, indices, ctx.metric)
    need_x, need_bank = ctx.needs_input_grad[:2]
    grads = [grad_x if need_x else None, grad_bank if need_bank else None, *([None] * (len(ctx.needs_input_grad) - 2))]
    if len(grads) > 7 and ctx.needs_input_grad[7]:  # topk's bias
        grads[7] = ops.segment_sum(grad.to(bank.dtype).unsqueeze(-1), indices, bank.shape[0], None).squeeze(-1)
    return tuple(grads)


def _topk_tangent(
    tangents: Tangents,
    out: tuple[Tensor, Tensor],
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    k: int,
    metric: int,
    mask: Tensor | None = None,
    exact: bool = True,
    bias: Tensor | None = None,
) -> Tensor:
    return pair_tangents(tangents, out[0], x, bank, out[1], metric, tangents[7] if len(tangents) > 7 else None)


define("topk", fake=_topk, setup=_topk_setup, backward=_topk_backward, tangent=_topk_tangent)


# ---- nearest ------------------------------------------------------------------------------------------------------


def _nearest(x: Tensor, bank: Tensor, pack: Tensor | None, metric: int, exact: bool = True) -> tuple[Tensor, Tensor]:
    check_pair(x, bank, metric, pack)
    return x.new_empty(x.shape[:-1], dtype=value_dtype(x)), x.new_empty(x.shape[:-1], dtype=torch.int64)


def _nearest_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _selection_setup(ctx, inputs, output, metric=inputs[3])


def _nearest_tangent(
    tangents: Tangents,
    out: tuple[Tensor, Tensor],
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    metric: int,
    exact: bool = True,
) -> Tensor:
    return pair_tangents(tangents, out[0], x, bank, out[1].unsqueeze(-1), metric, None)


define("nearest", fake=_nearest, setup=_nearest_setup, backward=_topk_backward, tangent=_nearest_tangent)


# ---- topk_backward: gradients through the selected pairs ----------------------------------------------------------


def _pairs_backward(grad: Tensor, x: Tensor, bank: Tensor, indices: Tensor, metric: int) -> tuple[Tensor, Tensor]:
    check_pair(x, bank, metric)
    same_device(x, grad, indices)
    check(indices.dtype == torch.int64, f"indices must be int64, got {indices.dtype}")
    check(grad.shape == indices.shape, f"grad {tuple(grad.shape)} must match indices {tuple(indices.shape)}")
    check_source(x, indices)
    return x.new_empty(x.shape), bank.new_empty(bank.shape)


define("topk_backward", fake=_pairs_backward, gradient_of="topk and nearest")
