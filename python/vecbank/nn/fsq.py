"""Finite scalar quantisation: every feature is bounded and rounded to one of a few levels; the codebook is
implied.

Formula, for L levels: with the bound of the paper y = tanh(z + s) h - o, where h = (L - 1)(1 + 1e-3) / 2, o =
1/2 for even L else 0, s = atanh(o / h); digit = round(y) + L // 2 and value = round(y) / (L // 2). With
`preserve_symmetry`: digit = floor((L - 1)(tanh(z) + 1) / 2 + 1/2) and value = 2 digit / (L - 1) - 1,
symmetric about 0 for every L. A code is the mixed-radix number of its digits, the first feature's being the
lowest.

Sources: Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", ICLR 2024; symmetric form and
noise: Parker et al., "Scaling Transformers for Low-Bitrate High-Quality Speech Coding", 2024; rotation: Tseng
et al., "QuIP#", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .. import _checks
from ._arguments import features, integers, maybe_numbers, maybe_whole, memory_for, numbers, warn, whole, wholes
from ._arguments import rows as row_numbers
from ._derived import Derived
from ._draws import uniform
from ._estimators import round_through
from ._layout import (
    blank,
    channel_first,
    channel_last,
    check_width,
    decode_groups,
    like_weights,
    lost_rows,
    no_autocast,
    on_axis,
    project_rows,
    projection,
    working,
)
from ._residual import GroupedResidual, StageDropout, pad_stages, run_cascade

_EPS = 1e-3  # how far the outermost levels' bound lies outside them
_EXACT = 2**53  # codes are summed in float64


class FSQ(Derived):
    """Finite scalar quantisation. Same arguments and state_dict as `vector_quantize_pytorch.FSQ`.

    Args:
        levels: levels per feature, each at least 2 (2 only with `preserve_symmetry`).
        dim: features of the input; a linear map goes in front and behind where it differs from
            len(levels) * num_codebooks.
        num_codebooks: codes per vector, each of len(levels) features.
        keep_num_codebooks_dim: keep that axis in the codes; by default where there is more than one.
        scale: kept as an attribute and not used (as in the peer).
        allowed_dtypes: dtypes that are quantised as they are; others as float32 (with
            force_quantization_f32).
        channel_first: features on axis 1. Inputs of four and more axes are taken so in any case.
        projection_has_bias: of the linear maps.
        return_indices: False returns None for the codes.
        force_quantization_f32: decide in float32 or wider whatever the input's dtype.
        preserve_symmetry: the symmetric form above.
        noise_dropout: in training, the share of features that get uniform noise in [-1/2, 1/2] on top of
            their value.
        bound_hard_clamp: clamp to [-1, 1] in place of tanh.
        orthogonal_rotation: a fixed random rotation before, and back after.

    `forward(z, *, generator=None)`: z (b, ..., dim), or (b, dim, ...) channel first, to (quantised like z,
    codes int32; int64 where there are more than 2^31). A vector with NaN or inf has code -1 and comes out as NaN,
    whatever it is bounded by. Gradient: straight through the rounding. `indices_to_codes` takes codes of any integer
    dtype back to what forward returned; -1 is a zero vector, before the linear map behind.
    """

    _levels: Tensor
    _basis: Tensor
    orthogonal_rot: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        scale: float | None = None,
        allowed_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
        channel_first: bool = False,
        projection_has_bias: bool = True,
        return_indices: bool = True,
        force_quantization_f32: bool = True,
        preserve_symmetry: bool = False,
        noise_dropout: float = 0.0,
        bound_hard_clamp: bool = False,
        orthogonal_rotation: bool = False,
    ) -> None:
        super().__init__()
        levels, num_codebooks = wholes("levels", levels), whole("num_codebooks", num_codebooks)
        dim = maybe_whole("dim", dim)
        numbers(0, 1, noise_dropout=noise_dropout)
        if min(levels) < (2 if preserve_symmetry else 3):
            raise ValueError(f"levels must be at least 3, or 2 with preserve_symmetry=True, got {levels}")
        if noise_dropout > 0 and not preserve_symmetry:
            raise ValueError(f"noise_dropout={noise_dropout} needs preserve_symmetry=True")
        keep = num_codebooks > 1 if keep_num_codebooks_dim is None else keep_num_codebooks_dim
        if num_codebooks > 1 and not keep:
            raise ValueError(f"keep_num_codebooks_dim=False needs num_codebooks=1, got {num_codebooks}")
        self.codebook_size = math.prod(levels)
        if return_indices and self.codebook_size > _EXACT:
            raise ValueError(f"levels give {self.codebook_size} codes, more than 2^53: use return_indices=False")

        self._counts = levels
        self._hold()

        self.scale = scale
        self.codebook_dim = len(levels)
        self.num_codebooks = num_codebooks
        self.effective_codebook_dim = self.codebook_dim * num_codebooks
        self.keep_num_codebooks_dim = keep
        self.dim = self.effective_codebook_dim if dim is None else dim
        self.channel_first = channel_first
        self.has_projections = self.dim != self.effective_codebook_dim
        self.project_in = projection(self.dim, self.effective_codebook_dim, self.has_projections, projection_has_bias)
        self.project_out = projection(self.effective_codebook_dim, self.dim, self.has_projections, projection_has_bias)
        self.return_indices = return_indices
        self.allowed_dtypes = allowed_dtypes
        self.force_quantization_f32 = force_quantization_f32
        self.preserve_symmetry = preserve_symmetry
        self.noise_dropout = noise_dropout
        self.bound_hard_clamp = bound_hard_clamp
        self.orthogonal_rotation = orthogonal_rotation
        if orthogonal_rotation:
            if len(set(levels)) > 1:
                warn(f"orthogonal_rotation mixes features of different levels {levels}")
            self.register_buffer("orthogonal_rot", nn.init.orthogonal_(torch.empty(len(levels), len(levels))))

    # ---- Numbers
    # --------------------------------------------------------------------------------------------------

    def _derive(self) -> dict[str, Tensor]:
        basis = [math.prod(self._counts[:i]) for i in range(len(self._counts))]
        return {
            "_levels": torch.tensor(self._counts, dtype=torch.int32, device="cpu"),
            "_basis": torch.tensor(basis if self.codebook_size <= _EXACT else [0], dtype=torch.int64, device="cpu"),
        }

    def _digits(self, z: Tensor) -> Tensor:
        """The level of every feature, counted from 0, as a float with a straight-through gradient."""
        if self.preserve_symmetry:
            bounded = z.clamp(-1.0, 1.0) if self.bound_hard_clamp else z.tanh()
            return round_through((self._levels - 1) * (bounded + 1) / 2.0 + 0.5, down=True)
        half = (self._levels - 1) * (1 + _EPS) / 2
        offset = 0.5 * (1 - self._levels % 2)
        shift = offset / half
        bounded = (z + shift).clamp(-1.0, 1.0) if self.bound_hard_clamp else (z + shift.atanh()).tanh()
        return round_through(bounded * half - offset) + self._levels // 2

    def _values(self, digits: Tensor) -> Tensor:
        """Levels as numbers in [-1, 1]."""
        if self.preserve_symmetry:
            return digits * (2.0 / (self._levels - 1)) - 1.0
        half = self._levels // 2
        return (digits - half) / half

    def _number(self, digits: Tensor) -> Tensor:
        """Levels (..., d) as one number (...)."""
        counts = torch.float32 if self.codebook_size <= 2**24 else torch.float64  # exact up to there
        number = (digits.detach().to(counts) * self._basis).sum(-1)
        dtype = torch.int32 if self.codebook_size <= 2**31 else torch.int64
        return number.nan_to_num(-1.0).to(dtype)

    @property
    def implicit_codebook(self) -> Tensor:
        """All codes as vectors, (codebook_size, d): made when asked for, never needed to quantise."""
        with memory_for(f"all {self.codebook_size} codes"):
            return self._values(self._digits_of(torch.arange(self.codebook_size, device=self._levels.device)))

    def quantize(self, z: Tensor) -> Tensor:
        """Nearest levels' values, the shape of z (..., d)."""
        return self._values(self._digits(z))

    def indices_to_level_indices(self, indices: Tensor) -> Tensor:
        """Codes (...) to digits (..., d), -1 for code -1."""
        numbers = row_numbers(indices, self.codebook_size, "indices")
        return torch.where(numbers.unsqueeze(-1) < 0, -1, self._digits_of(numbers))

    def _digits_of(self, numbers: Tensor) -> Tensor:
        if self.codebook_size > _EXACT:
            raise ValueError(f"levels give {self.codebook_size} codes, more than 2^53, which have no numbers")
        return (numbers.unsqueeze(-1) // self._basis) % self._levels

    def codes_to_indices(self, zhat: Tensor) -> Tensor:
        """Values (..., d), as `quantize` gives them, to codes (...)."""
        features("zhat", zhat, self.codebook_dim)
        half = (self._levels - 1) / 2.0 if self.preserve_symmetry else self._levels // 2
        return self._number((zhat * half + half).round())

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Codes back to quantised features, in the layout `forward` returns them in."""
        numbers = integers(indices, "indices")
        first = self.channel_first or numbers.dim() >= 3 + int(self.keep_num_codebooks_dim)
        codes = self._decode(numbers)
        if self.keep_num_codebooks_dim:
            codes = codes.flatten(-2)
        out: Tensor = self.project_out(like_weights(codes, self.project_out))
        return channel_first(out) if first else out

    def _decode(self, numbers: Tensor) -> Tensor:
        """Codes (...) int64 to vectors (..., d), turned back where there is a rotation."""
        seen, vectors = _checks.in_range(numbers, self.codebook_size, "indices"), self._vectors(numbers)
        return vectors if seen else _checks.only_rows(vectors, numbers, self.codebook_size)

    def _vectors(self, numbers: Tensor) -> Tensor:
        """`_decode` of int64 row numbers."""
        return self._turn(self._values(self._digits_of(numbers)), back=True)

    def _turn(self, z: Tensor, back: bool) -> Tensor:
        if not self.orthogonal_rotation:
            return z
        rotation = self.orthogonal_rot.to(z.dtype)
        return z @ (rotation.t() if back else rotation)

    def _add_noise(self, codes: Tensor, generator: Generator | None) -> Tensor:
        chosen = uniform(codes.shape, codes, generator) < self.noise_dropout
        noise = uniform(codes.shape, codes, generator, codes.dtype) - 0.5
        return torch.where(chosen, codes + noise, codes).clamp(-1.0, 1.0)

    # ---- Layout
    # ---------------------------------------------------------------------------------------------------

    def forward(self, z: Tensor, *, generator: Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Quantises z; see the class. `generator` draws the noise of noise_dropout."""
        first = self.channel_first or (isinstance(z, Tensor) and z.dim() >= 4)
        check_width(z, self.dim, 1 if first else -1, "z")
        z = project_rows(self.project_in, channel_last(z) if first else z)
        with no_autocast(z):
            dtype = z.dtype
            if self.force_quantization_f32 and dtype not in self.allowed_dtypes:
                z = z.float()
            z = blank(z, lost_rows(z), torch.nan)  # before a bound makes a number of infinity
            z = z.unflatten(-1, (self.num_codebooks, self.codebook_dim))
            digits = self._digits(self._turn(z, back=False))
            indices = self._number(digits) if self.return_indices else None
            codes = self._values(digits)
            if self.training and self.noise_dropout > 0:
                codes = self._add_noise(codes, generator)
            codes = self._turn(codes, back=True).flatten(-2).to(dtype)
        out = project_rows(self.project_out, codes)
        if indices is not None and not self.keep_num_codebooks_dim:
            indices = indices.squeeze(-1)
        return channel_first(out) if first else out, indices

    def extra_repr(self) -> str:
        return f"levels={self._levels.tolist()}, dim={self.dim}, num_codebooks={self.num_codebooks}"


class ResidualFSQ(Derived):
    """A cascade of FSQ stages on ever finer grids: stage s works on residual / levels^-s.

    Args:
        levels: as FSQ (always the symmetric form); dim: features of the input; num_quantizers: stages S.
        is_channel_first: features on axis 1 of the input, stages on axis 1 of the codes.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: train with a random
            number of stages, at least cutoff + 1, rounded up to a multiple; codes of the others are -1. (Only
            with grad enabled.)
        soft_clamp_input_value: c; the input becomes c tanh(x / c). By default 1 + 1 / (L - 1) with
            bound_hard_clamp.
        bound_hard_clamp and the rest: as FSQ.

    `forward(x, return_all_codes=False, rand_quantize_dropout_fixed_seed=None, *, num_stages=None,
    generator=None)` to (quantised like x, codes (..., S)), and all stages' vectors (S, b, ..., d) on request.
    `num_stages` runs only so many. A vector with NaN or inf has codes -1 and comes out as NaN, whatever it is clamped
    to.
    """

    scales: Tensor
    soft_clamp_input_value: Tensor | None

    def __init__(
        self,
        *,
        levels: Sequence[int],
        num_quantizers: int,
        dim: int | None = None,
        is_channel_first: bool = False,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        soft_clamp_input_value: float | Sequence[float] | Tensor | None = None,
        bound_hard_clamp: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        _refuse_several_codebooks("ResidualFSQ", kwargs)
        if bound_hard_clamp and soft_clamp_input_value is not None:
            raise ValueError(
                "soft_clamp_input_value follows from the levels with bound_hard_clamp=True: give one of them"
            )
        levels, num_quantizers = wholes("levels", levels), whole("num_quantizers", num_quantizers)
        width = len(levels)
        dim = width if dim is None else whole("dim", dim)
        if not isinstance(soft_clamp_input_value, (Sequence, Tensor)):
            maybe_numbers(0, math.inf, True, soft_clamp_input_value=soft_clamp_input_value)
        self.levels = levels
        self.num_quantizers = num_quantizers
        self.is_channel_first = is_channel_first
        self.has_projections = dim != width
        self.dim = dim
        self.project_in = projection(dim, width, self.has_projections)
        self.project_out = projection(width, dim, self.has_projections)
        options = {**kwargs, "dim": width, "preserve_symmetry": True, "bound_hard_clamp": bound_hard_clamp}
        self.layers: Any = nn.ModuleList(FSQ(levels, **options) for _ in range(num_quantizers))
        self.codebook_size = math.prod(int(level) for level in levels)
        self._dropout = StageDropout(
            num_quantizers, quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        )
        self.quantize_dropout = self._dropout.enabled

        clamp = soft_clamp_input_value
        self._clamp = clamp.tolist() if isinstance(clamp, Tensor) else clamp
        self._clamp_dtype = clamp.dtype if isinstance(clamp, Tensor) else torch.float32
        self._bounded = bound_hard_clamp
        self.register_buffer("soft_clamp_input_value", None, persistent=False)
        self._hold()

    def _derive(self) -> dict[str, Tensor]:
        count = torch.tensor(list(self.levels), device="cpu")
        found = {"scales": torch.stack([count.float() ** -i for i in range(self.num_quantizers)])}
        if self._bounded:
            found["soft_clamp_input_value"] = 1 + 1 / (count - 1)
        elif self._clamp is not None:
            found["soft_clamp_input_value"] = torch.tensor(self._clamp, dtype=self._clamp_dtype, device="cpu")
        return found

    @property
    def codebooks(self) -> Tensor:
        """Every stage's codes as vectors, not scaled: (S, codebook_size, d)."""
        return torch.stack([layer.implicit_codebook for layer in self.layers])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Vectors of every stage, (S, b, ..., d), for codes as forward returns them (or of q < S stages, with
        quantize_dropout); -1 is a zero vector.
        """
        numbers = integers(indices, "indices")
        numbers = channel_last(numbers) if self.is_channel_first else numbers
        numbers = pad_stages(numbers, self.num_quantizers, self.quantize_dropout)
        seen = _checks.in_range(numbers, self.codebook_size, "indices")
        parts = zip(self.layers, self.scales, numbers.unbind(-1), strict=True)
        vectors = torch.stack([layer._vectors(code) * scale for layer, scale, code in parts])
        return vectors if seen else _checks.only_rows(vectors, numbers.movedim(-1, 0), self.codebook_size)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Codes back to quantised features, both in the layout that forward returns them in."""
        total = self.get_codes_from_indices(indices).sum(0)
        out: Tensor = self.project_out(like_weights(total, self.project_out))
        return channel_first(out) if self.is_channel_first else out

    def forward(
        self,
        x: Tensor,
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: int | None = None,
        *,
        num_stages: int | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantises x; see the class."""
        check_width(x, self.dim, 1 if self.is_channel_first else -1)
        x = project_rows(self.project_in, channel_last(x) if self.is_channel_first else x)
        dropping = self.training and torch.is_grad_enabled()
        active = self._dropout.active(dropping, num_stages, rand_quantize_dropout_fixed_seed, x.device, generator)
        with no_autocast(x):
            dtype, x = (
                x.dtype,
                working(x),
            )  # what is left over after a stage needs more digits than a 16-bit input has
            if self.soft_clamp_input_value is not None:
                x = blank(x, lost_rows(x), torch.nan)
                x = (x / self.soft_clamp_input_value).tanh() * self.soft_clamp_input_value
            flat = x.flatten(1, -2) if x.dim() > 3 else x  # a stage would take four axes as channel first
            done = run_cascade(flat, [self._stage(i, generator) for i in range(self.num_quantizers)], active)
            quantized, codes = (
                done.quantized.to(dtype).view(x.shape),
                done.codes.view(*x.shape[:-1], done.codes.shape[-1]),
            )
        out = project_rows(self.project_out, quantized)
        if self.is_channel_first:
            out, codes = channel_first(out), channel_first(codes)
        return (out, codes, self.get_codes_from_indices(codes)) if return_all_codes else (out, codes)

    def _stage(self, i: int, generator: Generator | None) -> Any:
        layer, scale = self.layers[i], self.scales[i]

        def stage(residual: Tensor) -> tuple[Tensor, Tensor, None]:
            quantized, codes = layer(residual / scale, generator=generator)
            return quantized * scale, codes, None

        return stage


def _refuse_several_codebooks(cls: str, kwargs: dict[str, Any]) -> None:
    """A stage of a cascade has one code of the cascade's own width."""
    if kwargs.get("num_codebooks", 1) != 1:
        raise ValueError(f"{cls}: num_codebooks={kwargs['num_codebooks']} is not supported: a stage has one code")
    if kwargs.get("channel_first"):
        raise ValueError(f"{cls}: channel_first is not supported: stages see features on the last axis")
    if not kwargs.get("return_indices", True):
        raise ValueError(f"{cls}: return_indices=False is not supported: stages are told apart by their codes")


class GroupedResidualFSQ(GroupedResidual):
    """Residual FSQ on each of G slices of the features; codes (G, ..., S). Arguments after `groups` as
    ResidualFSQ.

    With accept_image_fmap the features are on axis 1, and the cascades are told so (is_channel_first).

    Shapes:
        x (b, ..., dim) to (quantised like x, codes (G, b, ..., S)), and on request a tuple of all groups' codes.
    """

    _stacked = 1

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any) -> None:
        options = on_axis("is_channel_first", accept_image_fmap, kwargs)
        super().__init__(dim, groups, accept_image_fmap, lambda width: ResidualFSQ(dim=width, **options))
        self.codebook_size = self.rvqs[0].codebook_size

    def get_output_from_indices(self, indices: Tensor | Sequence[Tensor]) -> Tensor:
        """Codes (G, ...) back to quantised features, both in the layout that forward returns them in."""
        return decode_groups(self, indices)

    def forward(
        self,
        x: Tensor,
        return_all_codes: bool = False,
        *,
        num_stages: int | None = None,
        generator: Generator | None = None,
    ) -> tuple[Any, ...]:
        """x to (quantised like x, codes (G, ..., S)), and a tuple of each group's vectors on request."""
        seed = self._seed(x, generator)
        parts = [
            rvq(part, return_all_codes, seed, num_stages=num_stages, generator=generator)
            for rvq, part in zip(self.rvqs, self._chunks(x), strict=True)
        ]
        return self._join(parts)
