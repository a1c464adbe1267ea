"""Where the feature axis is, what a mask covers, what autocast may touch: shapes and dtypes, no
arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def channel_last(x: Tensor) -> Tensor:
    """(b, d, ...) to (b, ..., d): a view."""
    return x.movedim(1, -1)


def channel_first(x: Tensor) -> Tensor:
    """(b, ..., d) to (b, d, ...): a view."""
    return x.movedim(-1, 1)


def check_width(x: Tensor, width: int, axis: int = -1) -> None:
    """`x` holds `width` features along `axis`."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.dim() < 2 or x.shape[axis] != width:
        raise ValueError(f"x must have dim = {width} features on axis {axis}, got shape {tuple(x.shape)}")


def projection(wide: int, narrow: int, needed: bool, bias: bool = True) -> nn.Module:
    """The linear map between the features and a code of another width, or nothing."""
    return nn.Linear(wide, narrow, bias=bias) if needed else nn.Identity()


def like_weights(x: Tensor, layer: nn.Module) -> Tensor:
    """x in the dtype of the layer it is about to enter (under autocast the layer sees to that itself)."""
    weight = getattr(layer, "weight", None)
    return x if weight is None or torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


def row_mask(mask: Tensor, rows: torch.Size) -> Tensor:
    """A bool mask (True = counts) over the leading axes `rows`, or over the first few of them, spread over
    all.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = counts), got {mask.dtype}")
    if mask.shape != rows[: mask.dim()]:
        raise ValueError(f"mask must have the leading shape of x, {tuple(rows)}, got {tuple(mask.shape)}")
    return mask.reshape(mask.shape + (1,) * (len(rows) - mask.dim())).expand(rows)


def no_autocast(x: Tensor) -> torch.autocast:
    """A context in which autocast leaves x's device alone: codes are decided in the dtype that is written
    down.
    """
    return torch.autocast(x.device.type, enabled=False)


def mean(x: Tensor) -> Tensor:
    """The mean of all elements, 0 where there are none: a batch without rows has no loss."""
    return x.mean() if x.numel() else x.sum()


def working(x: Tensor) -> Tensor:
    """16-bit floats as float32; others as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
