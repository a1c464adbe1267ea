"""What quantisers of single features share: a code is the number that the features' digits spell.

Nothing is searched and no codebook is held: the codes of one vector follow from its features one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _checks
from ._derived import Derived
from ._layout import Projected, channel_first


def place_values(levels: Sequence[int]) -> list[int]:
    """What a digit of each feature is worth in a code, the first feature's being the lowest."""
    return [math.prod(levels[:i]) for i in range(len(levels))]


def digits_of(numbers: Tensor, places: Tensor, levels: Tensor) -> Tensor:
    """Row numbers (...) to digits (..., d)."""
    return (numbers.unsqueeze(-1) // places) % levels


class ScalarQuantizer(Projected, Derived):
    """A quantiser of single features, with one or several codes for each vector. Subclasses say what a digit is."""

    codebook_size: int
    codebook_dim: int  # features of a code
    num_codebooks: int
    keep_num_codebooks_dim: bool
    orthogonal_rotation = False
    orthogonal_rot: Tensor

    def _set_codes(self, size: int, width: int, num_codebooks: int, keep: bool | None) -> None:
        """How many codes there are, of how many features; how many a vector has, and whether these have an axis."""
        keep = num_codebooks > 1 if keep is None else keep
        if num_codebooks > 1 and not keep:
            raise ValueError(f"keep_num_codebooks_dim=False needs num_codebooks=1, got {num_codebooks}")
        self.codebook_size, self.codebook_dim = size, width
        self.num_codebooks, self.keep_num_codebooks_dim = num_codebooks, keep

    def _set_rotation(self, rotation: bool) -> None:
        """Draws the fixed rotation of every code's features."""
        self.orthogonal_rotation = rotation
        if rotation:
            width = self.codebook_dim
            self.register_buffer("orthogonal_rot", nn.init.orthogonal_(torch.empty(width, width)))

    def _turn(self, x: Tensor, back: bool) -> Tensor:
        """x (..., d) rotated, or rotated back."""
        if not self.orthogonal_rotation:
            return x
        rotation = self.orthogonal_rot.to(x.dtype)
        return x @ (rotation.t() if back else rotation)

    def _vectors(self, numbers: Tensor) -> Tensor:
        """The vectors (..., d) of int64 row numbers (...)."""
        raise NotImplementedError

    def _decode(self, numbers: Tensor) -> Tensor:
        """The vectors of int64 codes, each of which is checked; that of -1 is zero."""
        checked, vectors = _checks.in_range(numbers, self.codebook_size, "indices"), self._vectors(numbers)
        return vectors if checked else _checks.only_rows(vectors, numbers, self.codebook_size)

    def _features_of(self, numbers: Tensor, first: bool, project_out: bool = True) -> Tensor:
        """The quantised features of int64 codes as forward returns them; `first`: on axis 1."""
        codes = self._decode(numbers)
        if self.keep_num_codebooks_dim:
            codes = codes.flatten(-2)
        if project_out:
            return self._decoded(codes, first)
        return channel_first(codes) if first else codes

    def _split(self, x: Tensor) -> Tensor:
        """Features (..., c * d) of c codes to (..., c, d)."""
        return x.unflatten(-1, (self.num_codebooks, self.codebook_dim))

    def _as_returned(self, codes: Tensor) -> Tensor:
        """Codes (..., c) without the axis of codebooks, unless it is kept."""
        return codes if self.keep_num_codebooks_dim else codes.squeeze(-1)
