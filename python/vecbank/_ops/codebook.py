"""`quantize` and what a codebook's training needs: one codebook, a cascade, and the parts of a product code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import ops
from .define import define
from .fakes import FLOATS, check, check_mask, check_pair, same_device
from .names import ESTIMATORS, METRICS, REDUCTIONS

# ---- quantize -----------------------------------------------------------------------------------------------------


def _quantize(x: Tensor, bank: Tensor, pack: Tensor | None, metric: int) -> tuple[Tensor, Tensor]:
    check_pair(x, bank, metric, pack)
    return x.new_empty(x.shape, dtype=bank.dtype), x.new_empty(x.shape[:-1], dtype=torch.int64)


def _quantize_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.x_dtype = inputs[0].dtype
    ctx.mark_non_differentiable(output[1])


def _quantize_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    return grad.to(ctx.x_dtype), None, None, None  # straight through to x; the bank learns through lookup


define("quantize", fake=_quantize, setup=_quantize_setup, backward=_quantize_backward)


# ---- quantize_train -----------------------------------------------------------------------------------------------


def _quantize_train(
    x: Tensor, bank: Tensor, pack: Tensor | None, metric: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_pair(x, bank, metric, pack)
    check_mask(mask, x, tuple(x.shape[:-1]))
    sums = torch.float64 if bank.dtype == torch.float64 else torch.float32
    return (
        x.new_empty(x.shape, dtype=bank.dtype),
        x.new_empty(x.shape[:-1], dtype=torch.int64),
        x.new_empty((), dtype=sums),
        x.new_empty(bank.shape[:-1], dtype=torch.float32),
        x.new_empty(bank.shape, dtype=sums),
    )


def _quantize_train_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    quantized, codes, _, counts, sums = output
    ctx.mark_non_differentiable(codes, counts, sums)
    ctx.save_for_backward(inputs[0], quantized, codes)


def _quantize_train_backward(ctx: Any, grad: Tensor, _: Tensor, grad_loss: Tensor, *rest: Tensor) -> tuple[Any, ...]:
    x, quantized, codes = ctx.saved_tensors
    valid = (codes >= 0).unsqueeze(-1)
    scale = 2.0 * grad_loss / (valid.sum() * x.shape[-1]).clamp_min(1)
    gap = x - quantized.detach()  # the loss holds its rows still: they are no function of x, straight through or not
    return torch.where(valid, gap * scale + grad, grad).to(x.dtype), None, None, None, None


define("quantize_train", fake=_quantize_train, setup=_quantize_train_setup, backward=_quantize_train_backward)


# ---- quantize_backward: the estimator of a quantiser --------------------------------------------------------------


def _estimator(grad: Tensor, x: Tensor, quantized: Tensor, scale: Tensor, estimator: int) -> Tensor:
    same_device(grad, x, quantized, scale)
    check(x.dim() >= 1 and x.dtype in FLOATS, f"x must be (..., d) and floating point, got {tuple(x.shape)} {x.dtype}")
    for t in (grad, quantized):
        check(t.shape == x.shape and t.dtype == x.dtype, "grad, x and quantized must share dtype and shape")
    check(scale.numel() == 1 and scale.dtype in FLOATS, f"scale must be a single number, got {tuple(scale.shape)}")
    check(estimator in ESTIMATORS.values(), f"estimator must be 0, 1 or 2, got {estimator}")
    return x.new_empty(x.shape)


define("quantize_backward", fake=_estimator, gradient_of="the estimator of a quantiser")


# ---- residual_quantize --------------------------------------------------------------------------------------------


def _residual_quantize(
    x: Tensor, codebooks: list[Tensor], packs: list[Tensor], metric: int
) -> tuple[Tensor, Tensor, Tensor]:
    check(len(codebooks) > 0, "residual_quantize needs at least one codebook")
    check(len(packs) in (0, len(codebooks)), f"{len(packs)} packs for {len(codebooks)} codebooks: one each, or none")
    dtype = codebooks[0].dtype
    check(dtype in (torch.float32, torch.float64), f"codebooks must be float32 or float64, got {dtype}")
    for s, codebook in enumerate(codebooks):
        check(codebook.dim() == 2 and codebook.dtype == dtype, "codebooks must be (M, d) and share a dtype")
        check_pair(x, codebook, metric, packs[s] if packs else None)
    return (
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty((*x.shape[:-1], len(codebooks)), dtype=torch.int64),
        x.new_empty((len(codebooks),), dtype=dtype),
    )


def _residual_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, codebooks, packs, _ = inputs
    ctx.stages, ctx.packs = len(codebooks), len(packs)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], *codebooks)


def _residual_backward(ctx: Any, grad: Tensor, _: Tensor, grad_losses: Tensor) -> tuple[Any, ...]:
    """Straight through to x; and the gap that each stage leaves, worked out again from the codes. Rows stay still."""
    x, codes, *codebooks = ctx.saved_tensors
    residual, total = x.to(codebooks[0].dtype), grad
    codes = codes.movedim(-1, 0).contiguous()  # what all stages need, at once: a stage is few launches on a GPU
    valid = (codes >= 0).unsqueeze(-1)
    scales = 2.0 * grad_losses / (valid.flatten(1).sum(1) * x.shape[-1]).clamp_min(1)
    for s, codebook in enumerate(codebooks):
        residual = residual - ops.lookup(codes[s], codebook.detach(), None, REDUCTIONS["none"])
        total = total + torch.where(valid[s], residual * scales[s], 0.0)
    return total.to(x.dtype), [None] * ctx.stages, [None] * ctx.packs, None


define("residual_quantize", fake=_residual_quantize, setup=_residual_setup, backward=_residual_backward)


# ---- product_quantize ---------------------------------------------------------------------------------------------


def _product_quantize(x: Tensor, codebooks: Tensor, pack: Tensor | None) -> Tensor:
    same_device(x, codebooks, pack)
    shape = tuple(codebooks.shape)
    check(codebooks.dim() == 3 and codebooks.shape[1] > 0, f"codebooks must be (P, K, w), got {shape}")
    parts, _, width = codebooks.shape
    check(x.dim() >= 1 and x.shape[-1] == parts * width, f"x {tuple(x.shape)} must be {parts * width} wide")
    check_pair(x.new_empty((parts, 0, width)), codebooks, METRICS["sqeuclidean"], pack)
    return x.new_empty((*x.shape[:-1], parts), dtype=torch.int64)


define("product_quantize", fake=_product_quantize)
