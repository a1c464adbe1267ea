"""Where the feature axis is, what a mask covers, what autocast may touch, and the maps in front and behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._finite import finite_rows
from ._arguments import floats, memory_for, tensor


def channel_last(x: Tensor) -> Tensor:
    """(b, d, ...) to (b, ..., d): a view."""
    return x.movedim(1, -1)


def channel_first(x: Tensor) -> Tensor:
    """(b, ..., d) to (b, d, ...): a view."""
    return x.movedim(-1, 1)


def check_width(x: Tensor, width: int, axis: int = -1, name: str = "x") -> None:
    """`x` holds `width` features along `axis`."""
    floats(name, x)
    if x.dim() < 2 or x.shape[axis] != width:
        raise ValueError(f"{name} must have dim = {width} features on axis {axis}, got shape {tuple(x.shape)}")


def projection(wide: int, narrow: int, needed: bool, bias: bool = True) -> nn.Module:
    """The linear map between the features and a code of another width, or nothing."""
    if not needed:
        return nn.Identity()
    with memory_for(f"a linear map from {wide} to {narrow} features"):
        return nn.Linear(wide, narrow, bias=bias)


class CosineSimLinear(nn.Module):
    """scale * cosine of x (..., dim_in) with each of dim_out directions; `weight` is (dim_in, dim_out)."""

    def __init__(self, dim_in: int, dim_out: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        with memory_for(f"a linear map from {dim_in} to {dim_out} features"):
            self.weight = nn.Parameter(torch.randn(dim_in, dim_out))

    def forward(self, x: Tensor) -> Tensor:
        # a norm's floor is 0 in float16
        out = F.normalize(working(x), dim=-1) @ F.normalize(working(self.weight), dim=0) * self.scale
        return out if working(x) is x else out.to(x.dtype)


def lost_rows(x: Tensor) -> Tensor | None:
    """Rows (..., 1) that hold NaN or inf; None where none is known to: `finite_rows` says when."""
    finite = finite_rows(x)
    return None if finite is None else ~finite.unsqueeze(-1)


def blank(x: Tensor, lost: Tensor | None, value: float) -> Tensor:
    """x with the lost rows' numbers replaced; no gradient passes to those."""
    return x if lost is None else x.masked_fill(lost, value)


def kept_rows(x: Tensor, lost: Tensor | None) -> int | Tensor:
    """How many rows of x (..., d) are not lost."""
    return math.prod(x.shape[:-1]) if lost is None else lost.logical_not().sum()


def over(total: Tensor, count: int | Tensor) -> Tensor:
    """A mean: total / count, and the total, which is 0, where nothing counts."""
    return total / (max(count, 1) if isinstance(count, int) else count.clamp_min(1))


def project_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, without what a row with NaN or inf would do to the gradient of the weights, which is a product of
    that row and a gradient, NaN even where the gradient is 0. Such a row comes out as NaN.
    """
    out: Tensor
    if not torch.is_grad_enabled() or isinstance(layer, nn.Identity):
        out = layer(x)
        return out
    if not torch.compiler.is_compiling() and x.device.type == "cpu":
        out = layer(x)
        if lost_rows(out) is None:  # looking at what comes out costs less where it is narrower
            return out
    lost = lost_rows(x)
    return blank(layer(blank(x, lost, 0.0)), lost, torch.nan)


def like_weights(x: Tensor, layer: nn.Module) -> Tensor:
    """x in the dtype of the layer it is about to enter (under autocast the layer sees to that itself)."""
    weight = getattr(layer, "weight", None)
    return x if weight is None or _autocasts(x) else x.to(weight.dtype)


def on_axis(option: str, first: bool, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the cascades of a grouped one, told where the features are: groups are cut along one axis."""
    if arguments.get(option) not in (None, first):
        raise ValueError(f"{option} must be accept_image_fmap = {first}: groups are cut along one axis")
    return {**arguments, option: first}


def decode_groups(module: Any, indices: Tensor | Sequence[Tensor]) -> Tensor:
    """What a grouped cascade's codes (G, ...) stand for, side by side where the features are, when each cascade
    decodes into the layout that its forward returns.
    """
    given = zip(module.rvqs, module._groups_of(indices), strict=True)
    parts = [rvq.get_output_from_indices(part) for rvq, part in given]
    return torch.cat(parts, module.split_dim)


def row_mask(mask: Tensor, rows: torch.Size) -> Tensor:
    """A bool mask (True = counts) over the leading axes `rows`, or over the first few of them, spread over
    all.
    """
    tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = counts), got {mask.dtype}")
    if mask.shape != rows[: mask.dim()]:
        raise ValueError(f"mask must have the leading shape of x, {tuple(rows)}, got {tuple(mask.shape)}")
    return mask.reshape(mask.shape + (1,) * (len(rows) - mask.dim())).expand(rows)


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast leaves x's device alone: codes are decided in the dtype that is written
    down. Without autocast it is nothing, which costs nothing and leaves no region in an exported program.
    """
    return torch.autocast(x.device.type, enabled=False) if _autocasts(x) else nullcontext()


def _autocasts(x: Tensor) -> bool:
    """Whether autocast is on for x's device; there is none for meta tensors."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def mean(x: Tensor) -> Tensor:
    """The mean of all elements, 0 where there are none: a batch without rows has no loss."""
    return x.mean() if x.numel() else x.sum()


def working(x: Tensor) -> Tensor:
    """16-bit floats as float32; others as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
