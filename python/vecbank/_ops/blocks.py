"""Blocks of rows: the dtype that sums run in, how many rows a block has, and products that are added up over blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = 16 << 20  # temporaries of one block; small enough to stay near the cache, large enough for BLAS


def sums_dtype(bank: Tensor) -> torch.dtype:
    return torch.float64 if bank.dtype == torch.float64 else torch.float32  # 16-bit inputs: sums in float32


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """As `t.to(dtype)`, which takes ten times as long to find nothing to do."""
    return t if t.dtype is dtype else t.to(dtype)


def rows_of(t: Tensor, width: int) -> Tensor:
    """All rows, (..., width), as a matrix."""
    return t if t.dim() == 2 else t.reshape(-1, width)


def block_rows(most: int, row_size: int, least: int = 64) -> int:
    """Rows of a block."""
    return max(least, most // max(row_size, 1))


def blocks(n: int, step: int) -> Iterator[slice]:
    return (slice(i, min(n, i + step)) for i in range(0, n, step))


def add_product(total: Tensor, a: Tensor, b: Tensor, alpha: int = 1) -> None:
    """Adds alpha a b to the total, in place.

    On CUDA addmm_ takes a total of one row for a bias, and so goes by cublasLt, which refuses a first factor of one row
    (torch 2.11: CUBLAS_STATUS_INVALID_VALUE). mm never goes there, and its result is one row or column here.
    """
    if total.device.type != "cpu" and min(total.shape) == 1:
        total.add_(torch.mm(a, b), alpha=alpha)
    else:
        total.addmm_(a, b, alpha=alpha)
