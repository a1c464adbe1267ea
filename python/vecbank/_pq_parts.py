"""Vectors as the parts that product quantisation codes: the checks, the rotation and the cut."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._ops import METRICS, ops


def check_codebooks(codebooks: Tensor) -> tuple[int, int, int]:
    """The sizes m, K and w of codebooks."""
    _checks.floating("codebooks", codebooks)
    if codebooks.dim() != 3 or 0 in codebooks.shape:
        raise ValueError(f"codebooks must have shape (m, K, d / m), got {tuple(codebooks.shape)}")
    m, k, width = codebooks.shape
    return m, k, width


def rotated(x: Tensor, codebooks: Tensor, rotation: Tensor | None) -> Tensor:
    """x (..., d) as (..., m w): zeros to fill the last part, then the rotation."""
    m, _, width = check_codebooks(codebooks)
    _checks.floating("x", x)
    if x.dim() == 0 or not m * (width - 1) < x.shape[-1] <= m * width:  # those d with w = ceil(d / m)
        raise ValueError(f"x must have {m * (width - 1) + 1} to {m * width} columns, got {tuple(x.shape)}")
    if x.shape[-1] < m * width:
        x = torch.nn.functional.pad(x, (0, m * width - x.shape[-1]))
    if rotation is None:
        return x
    _checks.shaped("rotation", rotation, (m * width, m * width))
    return turned(x, rotation)


def turned(x: Tensor, rotation: Tensor) -> Tensor:
    """x R in R's dtype: float64 sums rounded once, so that the same row has the same codes in any batch and on any
    processor. The way back decides nothing and is `project`'s.
    """
    rows = rotation.T.contiguous()
    _checks.pair(x, rows, "rotation")
    result: Tensor = ops.exact_scores(x, rows, METRICS["dot"], rotation.dtype)
    return result


def check_pair(y: Tensor, codebooks: Tensor) -> None:
    """What is coded has the dtype and the device of the codebooks."""
    _checks.pair(y.unflatten(-1, (codebooks.shape[0], codebooks.shape[2])), codebooks[0], "codebooks")


def check_width(name: str, width: object, most: int) -> int:
    found = _checks.integer(name, width)
    if not 1 <= found <= most:
        raise ValueError(f"{name} must lie between 1 and the codebooks' m w = {most}, got {found}")
    return found


def split_parts(x: Tensor, m: int) -> Tensor:
    """(n, m w) as (m, n, w)."""
    return x.view(x.shape[0], m, x.shape[1] // m).transpose(0, 1)
