"""Ops that have kernels of their own, written again in plain torch or by other ops: for comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from vecbank._ops import ESTIMATORS, METRICS
from vecbank._ops.rotation import rotated_gradient


def residual_quantize_by_stages(
    x: Tensor, codebooks: list[Tensor], packs: list[Tensor], metric: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`residual_quantize` as one `quantize` a stage."""
    residual, total, codes, losses = x.to(codebooks[0].dtype), None, [], []
    for s, codebook in enumerate(codebooks):
        row, code = torch.ops.vecbank.quantize(residual, codebook, packs[s] if packs else None, metric)
        residual = residual - row
        total = row if total is None else total + row
        valid = (code >= 0).unsqueeze(-1)
        squares = torch.where(valid, residual, 0.0).square().sum(dtype=torch.float64)
        codes.append(code)
        losses.append((squares / (valid.sum() * x.shape[-1]).clamp_min(1)).to(residual.dtype))
    assert total is not None
    return total, torch.stack(codes, -1), torch.stack(losses)


def product_quantize_by_parts(x: Tensor, codebooks: Tensor, pack: Tensor | None) -> Tensor:
    """`product_quantize` as one `quantize` for all parts, on a copy that puts them one after the other."""
    parts = x.reshape(-1, codebooks.shape[0], codebooks.shape[2]).transpose(0, 1).contiguous()
    codes = torch.ops.vecbank.quantize(parts, codebooks, pack, METRICS["sqeuclidean"])[1]
    return codes.T.reshape(*x.shape[:-1], codebooks.shape[0]).contiguous()


def quantize_backward_by_torch(grad: Tensor, x: Tensor, quantized: Tensor, scale: Tensor, estimator: int) -> Tensor:
    """`quantize_backward` as a formula: the estimator of `grad`, plus ``scale (x - quantized)``."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    passed = (x.to(wide) - quantized.to(wide)) * scale.to(wide)
    if estimator == ESTIMATORS["rotation"]:
        passed = passed + rotated_gradient(grad, x, quantized)
    elif estimator == ESTIMATORS["straight"]:
        passed = passed + grad.to(wide)
    return passed.to(x.dtype)
