"""Rows that hold NaN or inf: they have no code, come back as NaN, and change nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._checks import readable


def finite_rows(x: Tensor) -> Tensor | None:
    """Which rows of x (..., d) are finite, (...) bool; None where all are.

    On a CPU the sum of all elements decides for a whole batch, which is the whole cost where the sum is finite. On
    other devices, and where a graph is traced, the result is always a mask, so that nothing waits for a device.
    """
    on_host, x = readable(x), x.detach()
    if on_host and math.isfinite(x.sum(dtype=torch.float64 if x.dtype == torch.float64 else torch.float32).item()):
        return None
    finite = x.isfinite().all(-1)
    return None if on_host and bool(finite.all()) else finite


def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The rows that two masks keep; None keeps all."""
    return b if a is None else a if b is None else a & b


def over(mask: Tensor, like: Tensor) -> Tensor:
    """The mask of the first axes of `like`, with an axis of size 1 for each of the other axes."""
    return mask.view(*mask.shape, *[1] * (like.dim() - mask.dim()))


def zeroed(x: Tensor, keep: Tensor | None) -> Tensor:
    """x with zeros for the rows that are not kept, which get no gradient and add none to any weights."""
    return x if keep is None else torch.where(over(keep, x), x, 0.0)


def voided(x: Tensor, keep: Tensor | None) -> Tensor:
    """x with NaN in all of the rows that are not kept, which get no gradient."""
    return x if keep is None else torch.where(over(keep, x), x, torch.nan)


def uncoded(codes: Tensor, keep: Tensor | None) -> Tensor:
    """Codes with -1 for the rows that are not kept."""
    return codes if keep is None else torch.where(over(keep, codes), codes, -1)


def kept(mask: Tensor | None, rows: torch.Size) -> int | Tensor:
    """How many rows of `rows` a mask keeps."""
    return rows.numel() if mask is None else mask.sum()


def counted(mask: Tensor | None, rows: torch.Size) -> int | Tensor:
    """The same, at least 1."""
    return at_least_one(kept(mask, rows))


def at_least_one(count: int | Tensor) -> int | Tensor:
    """What a sum is divided by for a mean that is 0 where nothing counts."""
    return max(count, 1) if isinstance(count, int) else count.clamp_min(1)
