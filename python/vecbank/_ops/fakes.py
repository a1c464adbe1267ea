"""What fake (meta) kernels check: shapes and dtypes without data, for torch.compile, torch.export and the meta device.

A fake kernel refuses what the real one refuses: otherwise a call of mixed devices reaches the wrong kernel, and a
traced program fails later than it should.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .names import CODES, METRICS

HALF = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, torch.float64, *HALF)


def check(condition: bool, message: str) -> None:
    if condition is True:  # not a symbol, whose truth torch is to remember
        return
    torch._check(condition, lambda: f"vecbank: {message}")


def same_device(first: Tensor, *others: Tensor | None) -> None:
    for other in others:
        if other is not None:
            check(other.device == first.device, f"arguments are on {first.device} and on {other.device}")


def check_bank(bank: Tensor, metric: int) -> None:
    check(bank.dim() in (2, 3), f"bank must be (M, d) or (B, M, d), got {tuple(bank.shape)}")
    check(bank.dtype in FLOATS, f"bank must be floating point, got {bank.dtype}")
    check(0 <= metric < len(CODES), f"metric must be 0 to {len(CODES) - 1}, got {metric}")


def check_pair(x: Tensor, bank: Tensor, metric: int, pack: Tensor | None = None) -> None:
    same_device(x, bank, pack)
    check_bank(bank, metric)
    check(x.dim() >= 1, "x must have at least one dimension, got a scalar")
    check(
        x.shape[-1] == bank.shape[-1], f"x {tuple(x.shape)} and bank {tuple(bank.shape)} differ in their last dimension"
    )
    if bank.dim() == 3:
        check(x.dim() == 3 and x.shape[0] == bank.shape[0], f"a batched bank {tuple(bank.shape)} needs x (B, N, d)")
    check(
        x.dtype == bank.dtype or (x.dtype in HALF and bank.dtype == torch.float32),
        f"x ({x.dtype}) and bank ({bank.dtype}) must share a dtype, or x be 16-bit with a float32 bank",
    )
    check(pack is None or pack.dtype == torch.uint8, "pack must be what vecbank::pack returned")


def check_bias(bias: Tensor | None, bank: Tensor, metric: int) -> None:
    if bias is None:
        return
    same_device(bank, bias)
    check(metric == METRICS["dot"] and bank.dim() == 2, "a bias goes with the dot metric and a bank (M, d)")
    check(
        bias.shape == bank.shape[:1] and bias.dtype == bank.dtype,
        f"bias must be (M,) in the bank's dtype, got {tuple(bias.shape)} {bias.dtype}",
    )


def check_mask(mask: Tensor | None, x: Tensor, shape: tuple[int, ...]) -> None:
    if mask is None:
        return
    same_device(x, mask)
    check(mask.dtype == torch.bool, f"mask must be bool, got {mask.dtype}")
    check(tuple(mask.shape) == shape, f"mask must have shape {shape}, got {tuple(mask.shape)}")


def check_codes(codes: Tensor, rows: Tensor, weights: Tensor | None) -> None:
    same_device(codes, rows, weights)
    check(codes.dtype == torch.int64, f"codes must be int64, got {codes.dtype}")
    check(rows.dtype in FLOATS, f"rows must be floating point, got {rows.dtype}")
    if weights is not None:
        check(
            weights.shape == codes.shape, f"weights {tuple(weights.shape)} must have codes' shape {tuple(codes.shape)}"
        )
        check(weights.dtype == rows.dtype, f"weights ({weights.dtype}) must have the rows' dtype ({rows.dtype})")


def check_source(src: Tensor, codes: Tensor) -> None:
    """src (..., d) with codes (...) or (..., k)."""
    check(src.dim() >= 1, "src must have at least one dimension, got a scalar")
    check(
        codes.dim() in (src.dim() - 1, src.dim()) and codes.shape[: src.dim() - 1] == src.shape[:-1],
        f"codes {tuple(codes.shape)} must be (...) or (..., k) for src {tuple(src.shape)}",
    )


def value_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
