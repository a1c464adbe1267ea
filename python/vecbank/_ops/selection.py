"""`topk_among`, `radius`, `radius_count` and `merge_topk`: searches among candidate sets, and of a bank in parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import ops
from .define import define
from .fakes import check, check_bias, check_pair, same_device, value_dtype
from .sets import NOT

# ---- topk_among -----------------------------------------------------------------------------------------------------


def _topk_among(
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    k: int,
    metric: int,
    sets: list[Tensor],
    program: list[int],
    bias: Tensor | None = None,
    keys: bool = False,
    worst: bool = False,
) -> tuple[Tensor, Tensor]:
    check_pair(x, bank, metric, pack)
    check(k >= 1, f"k must lie between 1 and M, got k = {k}")
    check(k <= bank.shape[-2], f"k must lie between 1 and M = {bank.shape[-2]}, got k = {k}")
    check_bias(bias, bank, metric)
    _check_sets(x, sets, program)
    shape = (*x.shape[:-1], k)
    dtype = torch.float64 if keys else value_dtype(x)
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=torch.int64)


def _check_sets(x: Tensor, sets: list[Tensor], program: list[int]) -> None:
    same_device(x, *sets)
    check(len(program) % 2 == 0, "program must hold pairs of a code and an operand")
    check(all(NOT <= code <= 6 for code in program[::2]), "program has an unknown code")


def _topk_among_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.metric, ctx.keys = inputs[4], inputs[8]
    ctx.bias = inputs[7] is not None
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _topk_among_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    if ctx.keys:
        raise NotImplementedError("vecbank: keys have no derivative; score_pairs has one")
    x, bank, indices = ctx.saved_tensors
    grad_x, grad_bank = ops.topk_backward(grad, x, bank, indices, ctx.metric)
    grad_bias = None
    if ctx.bias and ctx.needs_input_grad[7]:
        grad_bias = ops.segment_sum(grad.to(bank.dtype).unsqueeze(-1), indices, bank.shape[0], None).squeeze(-1)
    need_x, need_bank = ctx.needs_input_grad[:2]
    nothing = [None] * 3
    return grad_x if need_x else None, grad_bank if need_bank else None, *nothing, None, None, grad_bias, None, None


define("topk_among", fake=_topk_among, setup=_topk_among_setup, backward=_topk_among_backward)


# ---- radius ---------------------------------------------------------------------------------------------------------


def _radius(
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    radii: Tensor,
    metric: int,
    sets: list[Tensor],
    program: list[int],
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    counts = _radius_count(x, bank, pack, radii, metric, sets, program, bias)
    hits = torch.library.get_ctx().new_dynamic_size()  # they depend on the data
    offsets = counts.new_empty(counts.shape[0] + 1)
    return offsets, x.new_empty(hits, dtype=torch.int64), x.new_empty(hits, dtype=value_dtype(x))


define("radius", fake=_radius, gradient_of="radius")


def _radius_count(
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    radii: Tensor,
    metric: int,
    sets: list[Tensor],
    program: list[int],
    bias: Tensor | None = None,
) -> Tensor:
    check_pair(x, bank, metric, pack)
    check_bias(bias, bank, metric)
    same_device(x, radii)
    check(radii.dim() == 1 and radii.dtype == torch.float64, f"radii must be float64 (N,), got {tuple(radii.shape)}")
    check(
        radii.shape[0] == x.shape[:-1].numel(), f"radii must be (N,) for x {tuple(x.shape)}, got {tuple(radii.shape)}"
    )
    _check_sets(x, sets, program)
    return x.new_empty(radii.shape[0], dtype=torch.int64)


define("radius_count", fake=_radius_count)


# ---- merge_topk -----------------------------------------------------------------------------------------------------


def _merge_topk(keys: Tensor, indices: Tensor, k: int, metric: int, wide: bool) -> tuple[Tensor, Tensor]:
    same_device(keys, indices)
    check(keys.dim() >= 1 and keys.dtype == torch.float64, f"keys must be float64 (..., n), got {keys.dtype}")
    check(indices.dtype == torch.int64, f"indices must be int64, got {indices.dtype}")
    check(keys.shape == indices.shape, f"keys {tuple(keys.shape)} must match indices {tuple(indices.shape)}")
    check(k >= 1, f"k must be at least 1, got {k}")
    check(k <= keys.shape[-1], f"k must lie between 1 and {keys.shape[-1]}, got {k}")
    shape = (*keys.shape[:-1], k)
    return keys.new_empty(shape, dtype=torch.float64 if wide else torch.float32), indices.new_empty(shape)


define("merge_topk", fake=_merge_topk)
