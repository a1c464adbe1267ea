"""Where the feature axis is, which rows a mask covers, what autocast may change, and the maps in front and behind."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._finite import finite_rows, voided, zeroed
from ._arguments import floats, memory_for, tensor


def channel_last(x: Tensor) -> Tensor:
    """(b, d, ...) to (b, ..., d): a view."""
    return x.movedim(1, -1)


def channel_first(x: Tensor) -> Tensor:
    """(b, ..., d) to (b, d, ...): a view."""
    return x.movedim(-1, 1)


def features_first(channel_first: bool | None, like: object, dropped: int = 0) -> bool:
    """Whether the features are on axis 1: as `channel_first` says, and if it is None, from four axes on (images).

    `like` is the input, or the codes of one, which have `dropped` axes fewer.
    """
    if channel_first is None:
        return isinstance(like, Tensor) and like.dim() + dropped >= 4
    return channel_first


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
        # in float16 the least norm that `normalize` divides by would be 0
        out = F.normalize(working(x), dim=-1) @ F.normalize(working(self.weight), dim=0) * self.scale
        return out if working(x) is x else out.to(x.dtype)


def project_rows(layer: nn.Module, x: Tensor) -> tuple[Tensor, bool]:
    """`layer(x)`, where rows with NaN or inf come out as NaN and add nothing to the gradient of the weights.

    That gradient is a product of the rows and of their gradients, and so NaN even where the gradient of a row is 0.
    True beside it says that all of the result has been found to be finite.
    """
    if not torch.is_grad_enabled() or isinstance(layer, nn.Identity):
        return layer(x), False
    if not torch.compiler.is_compiling() and x.device.type == "cpu":
        out: Tensor = layer(x)
        if finite_rows(out) is None:  # the output is often narrower than the input, so this check costs less
            return out, True
    finite = finite_rows(x)
    return voided(layer(zeroed(x, finite)), finite), False


def like_weights(x: Tensor, layer: nn.Module) -> Tensor:
    """x in the dtype of the layer's weight; under autocast as it is, since autocast casts it."""
    weight = getattr(layer, "weight", None)
    return x if weight is None or _autocasts(x) else x.to(weight.dtype)


class Projected(nn.Module):
    """A module with a linear map in front and one behind, and with features on the last axis or on axis 1."""

    dim: int
    has_projections: bool
    project_in: nn.Module
    project_out: nn.Module

    def _project(
        self, dim: int, width: int, needed: bool | None = None, bias: bool = True, front: nn.Module | None = None
    ) -> None:
        """Makes the maps between `dim` features and `width`, by default where these differ; `front`: the first map."""
        self.dim = dim
        self.has_projections = dim != width if needed is None else needed
        self.project_in = projection(dim, width, self.has_projections, bias) if front is None else front
        self.project_out = projection(width, dim, self.has_projections, bias)

    def _enter(self, x: Tensor, first: bool, name: str = "x") -> Tensor:
        """x, which is checked, with its features projected and on the last axis; `first`: they are on axis 1."""
        return self._entered(x, first, name)[0]

    def _entered(self, x: Tensor, first: bool, name: str) -> tuple[Tensor, bool]:
        check_width(x, self.dim, 1 if first else -1, name)
        rows = channel_last(x) if first else x
        return project_rows(self.project_in, rows) if self.has_projections else (rows, False)

    def _enter_finite(self, x: Tensor, first: bool, name: str = "x") -> tuple[Tensor, Tensor | None]:
        """The same, and which of the rows are finite (None: all)."""
        rows, known = self._entered(x, first, name)
        return rows, None if known else finite_rows(rows)

    def _leave(self, rows: Tensor, first: bool) -> Tensor:
        """The way back."""
        return self._left(rows, first)[0]

    def _left(self, rows: Tensor, first: bool) -> tuple[Tensor, bool]:
        """The way back, and whether all of the result has been found to be finite."""
        out, known = project_rows(self.project_out, rows) if self.has_projections else (rows, False)
        return channel_first(out) if first else out, known

    def _decoded(self, vectors: Tensor, first: bool) -> Tensor:
        """The way back of vectors that were looked up: they take the dtype of the map behind."""
        out: Tensor = self.project_out(like_weights(vectors, self.project_out))
        return channel_first(out) if first else out


def row_mask(mask: Tensor, rows: torch.Size) -> Tensor:
    """A bool mask (True = counts) over the leading axes `rows`, or over the first few of them, expanded to all."""
    tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = counts), got {mask.dtype}")
    if mask.shape != rows[: mask.dim()]:
        raise ValueError(f"mask must have the leading shape of x, {tuple(rows)}, got {tuple(mask.shape)}")
    return mask.reshape(mask.shape + (1,) * (len(rows) - mask.dim())).expand(rows)


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on x's device: codes are decided in the dtype that the documentation names.

    Where autocast is off the context is empty: it costs nothing, and an exported program has no region for it.
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
