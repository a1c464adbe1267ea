"""The shapes of inputs, and the rows that are compared with codes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..._finite import both, finite_rows, zeroed
from .._arguments import floats
from .._layout import projection


def projections(dim: int, width: int, normalise: bool) -> tuple[nn.Module, nn.Module]:
    """Linear maps from dim to width and back, `normalise` with a LayerNorm after the first; identities if equal."""
    if dim == width:
        return nn.Identity(), nn.Identity()
    into: nn.Module = projection(dim, width, True)
    if normalise:
        into = nn.Sequential(into, nn.LayerNorm(width))
    return into, projection(width, dim, True)


class LaidOut(NamedTuple):
    """An input as rows; the rows of `inputs` that are not finite are zeros in `rows`."""

    inputs: Tensor  # (b, n, c), each row contiguous
    rows: Tensor  # projected and split into heads
    finite: Tensor | None  # (b, n); None if all are


class Layout:
    """Where the features, the positions and the heads of one module's inputs are.

    Inputs are (b, *positions, c), (b, c), (b, c, n) when channels come first, or (b, c, *spatial). A forward lays them
    out once, as (b, n, c). Rows that are compared with codes are (b, n, d) for one head, (b, n, h, d) for heads that
    share a codebook, (h, b n, d) for a codebook per head.
    """

    def __init__(self, heads: int, separate: bool, channel_last: bool, spatial: int) -> None:
        self.heads, self.separate = heads, separate and heads > 1
        self.channel_last, self.spatial = channel_last, spatial

    @property
    def features_last(self) -> bool:
        """Whether inputs (b, ..., c) have their features on the last axis, not on axis 1."""
        return self.channel_last and not self.spatial

    def check(self, x: object, dim: int) -> None:
        """`x` is an input of this layout with `dim` features."""
        floats("x", x)
        assert isinstance(x, Tensor)
        first = self.spatial > 0 or (not self.channel_last and x.dim() > 2)
        axes = self.spatial + 2 if self.spatial else 3 if first else max(2, x.dim())
        if x.dim() != axes or x.shape[1 if first else -1] != dim:
            shape = (
                f"(b, {dim}, {', '.join('dhw'[-self.spatial :]) if self.spatial else 'n'})"
                if first
                else f"(b, ..., {dim})"
            )
            others = "channel_last, accept_image_fmap and accept_3d_fmap say where the features are"
            raise ValueError(f"x must be {shape}, got {tuple(x.shape)} ({others})")

    def lay_out(self, x: Tensor, dim: int, project_in: nn.Module | None) -> LaidOut:
        """Checks an input and lays it out; `project_in`: the map in front of the codebook."""
        self.check(x, dim)
        if x.dim() == 2:
            inputs = x.unsqueeze(1)
        elif self.features_last:
            inputs = x.flatten(1, -2)
        else:  # the one copy: the features of a row are read many times
            inputs = x.flatten(2).transpose(1, 2).contiguous()
        finite = finite_rows(inputs)
        rows = inputs if finite is None else zeroed(inputs, finite)
        if project_in is not None:
            rows = project_in(rows)
            finite_after = finite_rows(rows)
            rows, finite = zeroed(rows, finite_after), both(finite, finite_after)
        return LaidOut(inputs, self.split(rows) if self.heads > 1 else rows, finite)

    def _positions(self, shape: torch.Size) -> torch.Size:
        """The axes of an input of `shape` that become n."""
        return shape[1:-1] if self.features_last else shape[2:]

    def positions_of(self, shape: torch.Size) -> int:
        """n of an input of `shape`."""
        return 1 if len(shape) == 2 else math.prod(self._positions(shape))  # numel() is a constant when traced

    def like_input(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """(b, n, [k,] c) in the layout of an input of `shape`: (b, *positions, [k,] c) or (b, c, *positions, [k])."""
        if len(shape) == 2:
            return rows.squeeze(1)
        if not self.features_last:
            return rows.movedim(-1, 1).unflatten(2, shape[2:])
        return rows.unflatten(1, shape[1:-1])

    def codes_like_input(self, codes: Tensor, shape: torch.Size) -> Tensor:
        """(b, n, ...) to (b, ...) or (b, *positions, ...)."""
        return codes.squeeze(1) if len(shape) == 2 else codes.unflatten(1, self._positions(shape))

    def flat_codes(self, codes: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `codes_like_input`; codes (b, n, ...) pass unchanged."""
        if len(shape) == 2:
            return codes.unsqueeze(1)
        positions = self._positions(shape)
        return codes.flatten(1, len(positions)) if codes.shape[1 : 1 + len(positions)] == positions else codes

    def mask(self, mask: Tensor, shape: torch.Size) -> Tensor:
        """A mask over the first positions of an input of `shape`, expanded to all of them: (b, n)."""
        if self.spatial or len(shape) < 3:
            raise ValueError(f"mask and lens need a sequence (b, n, dim), got x {tuple(shape)}")
        whole = (shape[0], *self._positions(shape))
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask must be bool (True = counts), got {got}")
        if mask.dim() < 2 or mask.shape != whole[: mask.dim()]:
            raise ValueError(f"mask must be (b, n) = {whole[:2]}, got {tuple(mask.shape)}")
        return mask.view(*mask.shape, *[1] * (len(whole) - mask.dim())).expand(whole).flatten(1)

    # ---- Heads ----------------------------------------------------------------------------------------------------

    def split(self, rows: Tensor) -> Tensor:
        """Rows (b, n, h d) as they are compared with codes."""
        if self.heads == 1:
            return rows
        rows = rows.unflatten(-1, (self.heads, -1))
        return rows.flatten(0, 1).transpose(0, 1) if self.separate else rows

    def join(self, rows: Tensor, lead: torch.Size) -> Tensor:
        """The inverse of `split`, for `lead` (b, n)."""
        if self.heads == 1:
            return rows
        return rows.transpose(0, 1).unflatten(0, lead).flatten(-2) if self.separate else rows.flatten(-2)

    def split_codes(self, codes: Tensor) -> Tensor:
        """Codes (b, n, h) in the layout of `split` rows."""
        return codes.flatten(0, 1).transpose(0, 1) if self.separate else codes

    def join_codes(self, codes: Tensor, lead: torch.Size) -> Tensor:
        """The inverse of `split_codes`."""
        return codes.transpose(0, 1).unflatten(0, lead) if self.separate else codes

    def split_mask(self, mask: Tensor | None) -> Tensor | None:
        """A mask (b, n) in the layout of `split` rows."""
        if mask is None or self.heads == 1:
            return mask
        if self.separate:
            return mask.flatten().expand(self.heads, -1)
        return mask.unsqueeze(-1).expand(*mask.shape, self.heads)

    def positions(self, rows: Tensor, lead: torch.Size) -> Tensor:
        """`split` rows as (H, groups, n, d): one index for each position of the sequence."""
        if self.separate:
            return rows.unflatten(1, lead)
        return rows.unsqueeze(0) if self.heads == 1 else rows.transpose(1, 2).flatten(0, 1).unsqueeze(0)

    def heads_apart(self, rows: Tensor, lead: torch.Size) -> Tensor:
        """`split` rows with an axis for the heads: (b, n, d), (1, b h, n, d) or (h, b, n, d)."""
        if self.heads == 1:
            return rows
        return rows.unflatten(1, lead) if self.separate else self.positions(rows, lead)
