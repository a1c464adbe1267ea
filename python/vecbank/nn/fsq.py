"""Finite scalar quantisation: every feature is rounded to one of a few levels, and no codebook is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from .._finite import finite_rows, voided
from ._arguments import features, integers, maybe_numbers, maybe_whole, memory_for, numbers, warn, whole, wholes
from ._arguments import rows as row_numbers
from ._derived import Derived
from ._draws import uniform
from ._estimators import round_through
from ._layout import channel_first, channel_last, features_first, no_autocast
from ._residual import Cascade, GroupedResidual, ResidualQuantizer, Stage, on_axis, run_cascade
from ._scalar import ScalarQuantizer, digits_of, place_values

_EPS = 1e-3  # how far the outermost levels' bound lies outside them
_EXACT = 2**53  # codes are summed in float64


class _Bounds(NamedTuple):
    """What follows from the numbers of levels, in the names of FSQ's formula."""

    span: Tensor  # h; L - 1 in the symmetric form
    offset: Tensor  # o
    shift: Tensor  # o / h, and its atanh
    turned: Tensor
    middle: Tensor  # L // 2
    width: Tensor  # between neighbouring values of the symmetric form


def _plain(levels: Tensor) -> _Bounds:
    half, offset = (levels - 1) * (1 + _EPS) / 2, 0.5 * (1 - levels % 2)
    shift = offset / half
    return _Bounds(half, offset, shift, shift.atanh(), levels // 2, half)


def _symmetric(levels: Tensor) -> _Bounds:
    span = levels - 1
    return _Bounds(span, span, span, span, span, 2.0 / span)


class FSQ(ScalarQuantizer):
    """Finite scalar quantisation, with the arguments and state_dict of `vector_quantize_pytorch.FSQ`.

    The gradient passes straight through the rounding. A vector with NaN or inf has code -1 and comes out as NaN,
    whatever it is bounded by.

    Formula, for L levels: with the bound of the paper y = h * tanh(z + s) - o, where h = (L - 1) * (1 + 1e-3) / 2,
    o = 1/2 for even L else 0, and s = atanh(o / h); digit = round(y) + L // 2 and value = round(y) / (L // 2).
    The symmetric form: digit = floor((L - 1) * (tanh(z) + 1) / 2 + 1/2) and value = 2 * digit / (L - 1) - 1, which
    is symmetric about 0 for every L. A code is the mixed-radix number of its digits, the first feature's being the
    lowest.

    Args:
        levels: levels per feature, each at least 3, or 2 with `preserve_symmetry`.
        dim: features of the input; a linear map goes in front and behind where it differs from
            len(levels) * num_codebooks.
        num_codebooks: codes per vector, each of len(levels) features.
        keep_num_codebooks_dim: keep that axis in the codes; by default where there is more than one.
        scale: kept as an attribute and not used (as in the peer).
        allowed_dtypes: dtypes that are quantised as they are; others as float32 (with force_quantization_f32).
        channel_first: features on axis 1. Inputs of four and more axes have them there in any case.
        projection_has_bias: whether the linear maps have a bias.
        return_indices: False returns None for the codes.
        force_quantization_f32: decide in float32 or wider whatever the input's dtype.
        preserve_symmetry: use the symmetric form of the formula.
        noise_dropout: in training, the share of features that get uniform noise in [-1/2, 1/2] on top of
            their value.
        bound_hard_clamp: clamp to [-1, 1] in place of tanh.
        orthogonal_rotation: a fixed random rotation before, and back after.

    Shapes:
        z (b, ..., dim), or (b, dim, ...) channel first; codes (b, ...) int32, or int64 where there are more than 2^31.

    Raises:
        ValueError, TypeError: arguments out of range, or that exclude each other, by name.

    Example:
        >>> import torch
        >>> from vecbank.nn import FSQ
        >>> module = FSQ(levels=[8, 5, 5])
        >>> quantized, codes = module(torch.randn(2, 7, 3))
        >>> quantized.shape, codes.shape, module.codebook_size
        (torch.Size([2, 7, 3]), torch.Size([2, 7]), 200)
        >>> torch.allclose(module.indices_to_codes(codes), quantized)
        True

    Sources: Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", ICLR 2024; symmetric form and noise:
    Parker et al., "Scaling Transformers for Low-Bitrate High-Quality Speech Coding", 2024; rotation: Tseng et al.,
    "QuIP#", 2024.
    """

    _levels: Tensor
    _basis: Tensor

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
        self._set_codes(math.prod(levels), len(levels), num_codebooks, keep_num_codebooks_dim)
        if return_indices and self.codebook_size > _EXACT:
            raise ValueError(f"levels give {self.codebook_size} codes, more than 2^53: use return_indices=False")

        self._counts = levels
        self._hold()

        self.scale = scale
        self.effective_codebook_dim = self.codebook_dim * num_codebooks
        dim = self.effective_codebook_dim if dim is None else dim
        self._project(dim, self.effective_codebook_dim, bias=projection_has_bias)
        self.channel_first = channel_first
        self.return_indices = return_indices
        self.allowed_dtypes = allowed_dtypes
        self.force_quantization_f32 = force_quantization_f32
        self.preserve_symmetry = preserve_symmetry
        self.noise_dropout = noise_dropout
        self.bound_hard_clamp = bound_hard_clamp
        if orthogonal_rotation and len(set(levels)) > 1:
            warn(f"orthogonal_rotation mixes features of different levels {levels}")
        self._set_rotation(orthogonal_rotation)

    # ---- Numbers -----------------------------------------------------------------------------------------------------

    def _derive(self) -> dict[str, Tensor]:
        places = place_values(self._counts) if self.codebook_size <= _EXACT else [0]
        return {
            "_levels": torch.tensor(self._counts, dtype=torch.int32, device="cpu"),
            "_basis": torch.tensor(places, dtype=torch.int64, device="cpu"),
        }

    def _bounds(self) -> _Bounds:
        return self._followed(self._levels, _symmetric if self.preserve_symmetry else _plain)

    def _steps(self, z: Tensor) -> Tensor:
        """The level of every feature as a float with a straight-through gradient, counted from 0, or from the middle
        one where the form is not symmetric.
        """
        bounds = self._bounds()
        if self.preserve_symmetry:
            bounded = z.clamp(-1.0, 1.0) if self.bound_hard_clamp else z.tanh()
            return round_through(bounds.span * (bounded + 1) / 2.0 + 0.5, down=True)
        shift = bounds.shift if self.bound_hard_clamp else bounds.turned
        bounded = (z + shift).clamp(-1.0, 1.0) if self.bound_hard_clamp else (z + shift).tanh()
        return round_through(bounded * bounds.span - bounds.offset)

    def _values(self, digits: Tensor) -> Tensor:
        """Levels, counted from 0, as numbers in [-1, 1]."""
        return self._values_of_steps(digits if self.preserve_symmetry else digits - self._bounds().middle)

    def _values_of_steps(self, steps: Tensor) -> Tensor:
        bounds = self._bounds()
        return steps * bounds.width - 1.0 if self.preserve_symmetry else steps / bounds.middle

    def _number(self, digits: Tensor) -> Tensor:
        """Levels (..., d), counted from 0, as one number (...)."""
        counts = torch.float32 if self.codebook_size <= 2**24 else torch.float64  # exact up to there
        number = (digits.detach().to(counts) * self._basis).sum(-1)
        dtype = torch.int32 if self.codebook_size <= 2**31 else torch.int64
        return number.nan_to_num(-1.0).to(dtype)

    @property
    def implicit_codebook(self) -> Tensor:
        """All codes as vectors, (codebook_size, d); made when it is read, and never needed to quantise."""
        with memory_for(f"all {self.codebook_size} codes"):
            return self._values(self._digits_of(torch.arange(self.codebook_size, device=self._levels.device)))

    def quantize(self, z: Tensor) -> Tensor:
        """Nearest levels' values, the shape of z (..., d)."""
        return self._values_of_steps(self._steps(z))

    def indices_to_level_indices(self, indices: Tensor) -> Tensor:
        """Codes (...) to digits (..., d), -1 for code -1."""
        numbers = row_numbers(indices, self.codebook_size, "indices")
        return torch.where(numbers.unsqueeze(-1) < 0, -1, self._digits_of(numbers))

    def _digits_of(self, numbers: Tensor) -> Tensor:
        if self.codebook_size > _EXACT:
            raise ValueError(
                f"levels give {self.codebook_size} codes; more than 2^53 cannot be numbered: set return_indices=False"
            )
        return digits_of(numbers, self._basis, self._levels)

    def codes_to_indices(self, zhat: Tensor) -> Tensor:
        """Values (..., d), as `quantize` gives them, to codes (...)."""
        features("zhat", zhat, self.codebook_dim)
        half = (self._levels - 1) / 2.0 if self.preserve_symmetry else self._levels // 2
        return self._number((zhat * half + half).round())

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """The quantised features of codes, of any integer dtype, in the layout of `forward`.

        The vector of -1 is zero, before the linear map behind.
        """
        numbers = integers(indices, "indices")
        first = features_first(self.channel_first or None, numbers, 1 - int(self.keep_num_codebooks_dim))
        return self._features_of(numbers, first)

    def _vectors(self, numbers: Tensor) -> Tensor:
        return self._turn(self._values(self._digits_of(numbers)), back=True)

    def _add_noise(self, codes: Tensor, generator: Generator | None) -> Tensor:
        chosen = uniform(codes.shape, codes, generator) < self.noise_dropout
        noise = uniform(codes.shape, codes, generator, codes.dtype) - 0.5
        return torch.where(chosen, codes + noise, codes).clamp(-1.0, 1.0)

    # ---- Forward -----------------------------------------------------------------------------------------------------

    def forward(self, z: Tensor, *, generator: Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """z to (quantised like z, codes); `generator` draws the noise of noise_dropout."""
        first = features_first(self.channel_first or None, z)
        z, finite = self._enter_finite(z, first, "z")
        with no_autocast(z):
            dtype = z.dtype
            if self.force_quantization_f32 and dtype not in self.allowed_dtypes:
                z = z.float()
                finite = finite if dtype != torch.float64 else finite_rows(z)
            z = self._split(voided(z, finite))  # before a bound makes a number of infinity
            steps = self._steps(self._turn(z, back=False))
            codes = None
            if self.return_indices:
                digits = steps.detach() if self.preserve_symmetry else steps.detach() + self._bounds().middle
                codes = self._as_returned(self._number(digits))
            values = self._values_of_steps(steps)
            if self.training and self.noise_dropout > 0:
                values = self._add_noise(values, generator)
            quantized = self._turn(values, back=True).flatten(-2).to(dtype)
        return self._leave(quantized, first), codes

    def extra_repr(self) -> str:
        return f"levels={self._levels.tolist()}, dim={self.dim}, num_codebooks={self.num_codebooks}"


class ResidualFSQ(ResidualQuantizer, Derived):
    """A cascade of `FSQ` stages on ever finer grids, with the arguments and state_dict of
    `vector_quantize_pytorch.ResidualFSQ`. Stage s quantises residual / levels^-s.

    A vector with NaN or inf has codes -1 and comes out as NaN, whatever it is clamped to.

    Args:
        levels: levels per feature, as in `FSQ`, of which the stages use the symmetric form.
        num_quantizers: stages S.
        dim: features of the input; a linear map goes in front and behind where it differs from len(levels).
        is_channel_first: features on axis 1 of the input, stages on axis 1 of the codes.
        quantize_dropout: train with a random number of stages (with grad enabled only); codes of the others are -1.
        quantize_dropout_cutoff_index: at least this number of stages plus one run.
        quantize_dropout_multiple_of: their number is rounded up to a multiple of this one.
        soft_clamp_input_value: c; the input becomes c * tanh(x / c). With bound_hard_clamp it is
            1 + 1 / (levels - 1), and must not be given.
        bound_hard_clamp: as in `FSQ`, for every stage.
        **kwargs: further arguments of `FSQ`, for every stage.

    Shapes:
        x (b, ..., dim), or (b, dim, ...) channel first; codes (b, ..., S), or (b, S, ...) channel first.

    Example:
        >>> import torch
        >>> from vecbank.nn import ResidualFSQ
        >>> module = ResidualFSQ(levels=[8, 5, 5], num_quantizers=2, dim=16)
        >>> quantized, codes = module(torch.randn(2, 7, 16))
        >>> quantized.shape, codes.shape
        (torch.Size([2, 7, 16]), torch.Size([2, 7, 2]))

    Sources: those of `FSQ`; cascade: Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", 2021.
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
        _refuse_several_codebooks("ResidualFSQ", kwargs)
        if bound_hard_clamp and soft_clamp_input_value is not None:
            raise ValueError(
                "soft_clamp_input_value follows from the levels with bound_hard_clamp=True: give one of them"
            )
        levels = wholes("levels", levels)
        width = len(levels)
        if not isinstance(soft_clamp_input_value, (Sequence, Tensor)):
            maybe_numbers(0, math.inf, True, soft_clamp_input_value=soft_clamp_input_value)
        dropout = quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        super().__init__(width if dim is None else whole("dim", dim), width, num_quantizers, dropout)
        self.levels = levels
        self.is_channel_first = is_channel_first
        options = {**kwargs, "dim": width, "preserve_symmetry": True, "bound_hard_clamp": bound_hard_clamp}
        self.layers = nn.ModuleList(FSQ(levels, **options) for _ in range(self.num_quantizers))

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
        """The codes of every stage as vectors, not scaled: (S, codebook_size, d)."""
        return torch.stack([layer.implicit_codebook for layer in self.layers])

    def _features_first(self, like: Tensor) -> bool:
        return self.is_channel_first

    def _all_stages(self, indices: Tensor) -> Tensor:
        codes = integers(indices, "indices")
        return super()._all_stages(channel_last(codes) if self.is_channel_first else codes)

    def _stage_vectors(self, codes: Sequence[Tensor]) -> list[Tensor]:
        parts = zip(self.layers, self.scales, codes, strict=True)
        return [layer._vectors(code) * scale for layer, scale, code in parts]

    def forward(
        self,
        x: Tensor,
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: int | None = None,
        *,
        num_stages: int | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantises x.

        Args:
            x: (b, ..., dim), or (b, dim, ...) channel first.
            return_all_codes: return the vectors of every stage too.
            rand_quantize_dropout_fixed_seed: seed of the number of stages that quantize_dropout draws.
            num_stages: run only so many stages.
            generator: draws that seed otherwise, and the noise of noise_dropout.

        Returns:
            (quantised like x, codes), and on request the vectors (S, b, ..., d).
        """

        def run(rows: Tensor) -> Cascade:
            dropping, seed = self.training and torch.is_grad_enabled(), rand_quantize_dropout_fixed_seed
            active = self._dropout.active(dropping, num_stages, seed, rows.device, generator)
            clamp = self.soft_clamp_input_value
            if clamp is not None:
                rows = (voided(rows, finite_rows(rows)) / clamp).tanh() * clamp
            return run_cascade(rows, [self._stage(i, generator) for i in range(self.num_quantizers)], active)

        out, codes, _ = self._on_rows(x, run)
        codes = channel_first(codes) if self.is_channel_first else codes
        return (out, codes, self.get_codes_from_indices(codes)) if return_all_codes else (out, codes)

    def _stage(self, i: int, generator: Generator | None) -> Stage:
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
    """`ResidualFSQ` on each of G slices of the features, with the arguments and state_dict of
    `vector_quantize_pytorch.GroupedResidualFSQ`.

    Args:
        dim: features, a multiple of groups.
        groups: G.
        accept_image_fmap: features on axis 1, (b, dim, h, w).
        **kwargs: further arguments of `ResidualFSQ`; `is_channel_first` follows from accept_image_fmap.

    Shapes:
        x (b, ..., dim), or (b, dim, h, w); codes (G, b, ..., S), or (G, b, S, h, w).

    Example:
        >>> import torch
        >>> from vecbank.nn import GroupedResidualFSQ
        >>> module = GroupedResidualFSQ(dim=16, groups=2, levels=[8, 5, 5], num_quantizers=2)
        >>> quantized, codes = module(torch.randn(2, 7, 16))
        >>> quantized.shape, codes.shape
        (torch.Size([2, 7, 16]), torch.Size([2, 2, 7, 2]))

    Sources: those of `ResidualFSQ`; groups: Yang et al., "HiFi-Codec: Group-residual Vector quantization for High
    Fidelity Audio Codec", 2023.
    """

    _stacked = 1

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any) -> None:
        options = on_axis("is_channel_first", accept_image_fmap, kwargs)
        super().__init__(dim, groups, accept_image_fmap, lambda width: ResidualFSQ(dim=width, **options))
        self.codebook_size = self.rvqs[0].codebook_size

    def forward(
        self,
        x: Tensor,
        return_all_codes: bool = False,
        *,
        num_stages: int | None = None,
        generator: Generator | None = None,
    ) -> tuple[Any, ...]:
        """x to (quantised like x, codes (G, ...)), and on request a tuple of each group's vectors."""
        options = {"return_all_codes": return_all_codes, "num_stages": num_stages}
        return self._join(self._run_groups(x, generator, generator=generator, **options))
