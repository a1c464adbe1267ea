"""Lookup-free quantisation: the code is the sign of every feature, and no codebook is searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .._finite import finite_rows, uncoded, voided, zeroed
from ._arguments import function, integers, maybe_numbers, maybe_whole, memory_for, numbers, whole
from ._bits import pack_bits, unpack_bits
from ._code_entropy import code_entropies, sample_rows
from ._estimators import sign_through, straight_through
from ._layout import CosineSimLinear, features_first, no_autocast, row_mask, working
from ._residual import Cascade, GroupedResidual, ResidualQuantizer, on_axis, run_cascade
from ._scalar import ScalarQuantizer


class LFQResult(NamedTuple):
    """What LFQ returns: vectors like x, int64 codes, a scalar loss."""

    quantized: Tensor
    indices: Tensor
    entropy_aux_loss: Tensor


class LFQLosses(NamedTuple):
    """The parts of LFQ's loss, not weighted; zeros in eval."""

    per_sample_entropy: Tensor
    batch_entropy: Tensor
    commitment: Tensor


for _tuple in (LFQResult, LFQLosses):  # so that torch.export can save programs that return them
    torch.utils._pytree._register_namedtuple(_tuple, serialized_type_name=f"vecbank.nn.{_tuple.__name__}")


class LFQ(ScalarQuantizer):
    """Lookup-free quantisation, with the arguments and state_dict of `vector_quantize_pytorch.LFQ`.

    A vector with NaN or inf has code -1, comes out as NaN and counts in no loss, whatever it is clamped to.

    Formula: q = s * sign(x) (-s at 0), code = sum of 2^(d-1-i) over the positive features. The training loss is
    w_e * (E(H(p_n)) - gamma * H(E(p_n))) + w_c * E((x - q)^2), where E is a mean, H an entropy, and p_n the
    softmax over all 2^d codes c of 2 * tau * x.c. Because the codes are all sign vectors, p_n is a product of d
    independent bits with log-odds 4 * tau * s * x_i.

    Codes and vectors need d numbers each. H(E(p_n)) is defined over all 2^d codes, which takes 2^d numbers, but no
    N x 2^d. E(H(p_n)) takes up to N x 2^d numbers, a block at a time, because its logarithm is cut off at 1e-5
    (otherwise it would be a sum over bits). With entropy_loss_weight = 0 neither is computed.

    Args:
        dim: features of the input; by default log2(codebook_size) * num_codebooks. A linear map goes in front and
            behind where it differs from that number.
        codebook_size: number of codes, a power of two up to 2^62; by default 2^dim.
        entropy_loss_weight: w_e of the training loss.
        commitment_loss_weight: w_c of the training loss.
        diversity_gamma: gamma of the training loss.
        straight_through_activation: the gradient passes to the input through this module; identity by default.
        num_codebooks: codes per vector.
        keep_num_codebooks_dim: keep that axis in the codes; by default where there is more than one.
        codebook_scale: s of the formula.
        frac_per_sample_entropy: share of the rows, drawn at random, that the entropies are taken over.
        has_projections: whether there are linear maps; by default only where dim asks for them.
        projection_has_bias: whether the linear maps have a bias.
        soft_clamp_input_value: c; the input becomes c * tanh(x / c).
        cosine_sim_project_in: project in by scaled cosines.
        cosine_sim_project_in_scale: their scale; codebook_scale by default.
        channel_first: features on axis 1; None means that they are there in inputs of four and more axes.
        experimental_softplus_entropy_loss: softplus(entropy loss + entropy_loss_offset) in place of that loss.
        entropy_loss_offset: the number that is added in that softplus.
        spherical: unit vectors times s on both sides; then q = s / sqrt(d) * sign(x).
        force_quantization_f32: decide in float32.
        orthogonal_rotation: a fixed random rotation before, and back after.

    Shapes:
        x (b, ..., dim), or (b, dim, ...) channel first; codes int64 (b, ...), with one more axis where it is kept.

    Raises:
        ValueError, TypeError: arguments out of range, or that exclude each other, by name.

    Example:
        >>> import torch
        >>> from vecbank.nn import LFQ
        >>> module = LFQ(dim=8, codebook_size=256).eval()
        >>> quantized, codes, loss = module(torch.randn(2, 5, 8))
        >>> quantized.shape, codes.shape, torch.equal(module.indices_to_codes(codes), quantized)
        (torch.Size([2, 5, 8]), torch.Size([2, 5]), True)

    Sources: Yu et al., "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", ICLR 2024; spherical:
    Zhao et al., "Image and Video Tokenization with Binary Spherical Quantization", 2024; rotation: Tseng et al.,
    "QuIP#", 2024.
    """

    mask: Tensor
    zero: Tensor
    _cast = ("zero",)

    def __init__(
        self,
        *,
        dim: int | None = None,
        codebook_size: int | None = None,
        entropy_loss_weight: float = 0.1,
        commitment_loss_weight: float = 0.0,
        diversity_gamma: float = 1.0,
        straight_through_activation: nn.Module | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        codebook_scale: float = 1.0,
        frac_per_sample_entropy: float = 1.0,
        has_projections: bool | None = None,
        projection_has_bias: bool = True,
        soft_clamp_input_value: float | None = None,
        cosine_sim_project_in: bool = False,
        cosine_sim_project_in_scale: float | None = None,
        channel_first: bool | None = None,
        experimental_softplus_entropy_loss: bool = False,
        entropy_loss_offset: float = 5.0,
        spherical: bool = False,
        force_quantization_f32: bool = True,
        orthogonal_rotation: bool = False,
    ) -> None:
        super().__init__()
        dim, codebook_size = maybe_whole("dim", dim), maybe_whole("codebook_size", codebook_size)
        num_codebooks = whole("num_codebooks", num_codebooks)
        numbers(0, math.inf, True, codebook_scale=codebook_scale)
        maybe_numbers(0, math.inf, True, cosine_sim_project_in_scale=cosine_sim_project_in_scale)
        function("straight_through_activation", straight_through_activation)
        numbers(commitment_loss_weight=commitment_loss_weight)
        factors = {"entropy_loss_weight": entropy_loss_weight, "diversity_gamma": diversity_gamma}
        numbers(-math.inf, entropy_loss_offset=entropy_loss_offset, **factors)
        if codebook_size is None:
            if dim is None:
                raise ValueError("either dim or codebook_size must be given")
            codebook_size = 2**dim
        width = codebook_size.bit_length() - 1
        if codebook_size < 2 or codebook_size != 1 << width or width > 62:
            raise ValueError(f"codebook_size must be a power of two from 2 to 2^62, got {codebook_size}")
        self._set_codes(codebook_size, width, num_codebooks, keep_num_codebooks_dim)
        numbers(0, 1, True, frac_per_sample_entropy=frac_per_sample_entropy)
        if soft_clamp_input_value is not None and soft_clamp_input_value < codebook_scale:
            raise ValueError(
                f"soft_clamp_input_value must be at least codebook_scale = {codebook_scale}, "
                f"got {soft_clamp_input_value}"
            )
        wide = width * num_codebooks
        dim = wide if dim is None else dim
        projected = dim != wide if has_projections is None else has_projections
        front = None
        if cosine_sim_project_in and projected:
            scale = codebook_scale if cosine_sim_project_in_scale is None else cosine_sim_project_in_scale
            front = CosineSimLinear(dim, wide, scale)
        self._project(dim, wide, projected, projection_has_bias, front)
        self.channel_first = channel_first
        self.activation = nn.Identity() if straight_through_activation is None else straight_through_activation
        self.spherical = spherical
        self.frac_per_sample_entropy = frac_per_sample_entropy
        self.diversity_gamma = diversity_gamma
        self.entropy_loss_weight = entropy_loss_weight
        self.codebook_scale = codebook_scale
        self.commitment_loss_weight = commitment_loss_weight
        self.soft_clamp_input_value = soft_clamp_input_value
        self.entropy_loss_offset = entropy_loss_offset
        self.experimental_softplus_entropy_loss = experimental_softplus_entropy_loss
        self.force_quantization_f32 = force_quantization_f32
        self._set_rotation(orthogonal_rotation)
        self.register_buffer("mask", 2 ** torch.arange(width - 1, -1, -1))  # the value of every bit
        self._hold()
        self._amplitude = codebook_scale / math.sqrt(width) if spherical else float(codebook_scale)

    # ---- Codes -------------------------------------------------------------------------------------------------------

    def _derive(self) -> dict[str, Tensor]:
        return {"zero": torch.tensor(0.0, device="cpu")}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of decoded vectors."""
        return self.zero.dtype

    @property
    def codebook(self) -> Tensor:
        """All codes as vectors of +-codebook_scale, (codebook_size, d); made when it is read."""
        with memory_for(f"all {self.codebook_size} codes"):
            numbers = torch.arange(self.codebook_size, device=self.mask.device)
            return self.bits_to_codes(unpack_bits(numbers, self.mask).float())

    def bits_to_codes(self, bits: Tensor) -> Tensor:
        """Zeros and ones to -codebook_scale and +codebook_scale."""
        return bits * self.codebook_scale * 2 - self.codebook_scale

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """The quantised features of codes, of any integer dtype, in the layout of `forward`.

        The vector of -1 is zero, before the linear map behind; project_out=False leaves that map out.
        """
        numbers = integers(indices, "indices")
        first = features_first(self.channel_first, numbers, 1 - int(self.keep_num_codebooks_dim))
        return self._features_of(numbers, first, project_out)

    def _vectors(self, numbers: Tensor) -> Tensor:
        signs = torch.where(unpack_bits(numbers, self.mask), self._amplitude, -self._amplitude).to(self.dtype)
        return self._turn(signs, back=True)

    # ---- Losses ------------------------------------------------------------------------------------------------------

    def _losses(
        self,
        x: Tensor,
        signs: Tensor,
        mask: Tensor | None,
        inv_temperature: float,
        all_parts: bool,
        generator: Generator | None,
        known: bool,
    ) -> tuple[Tensor, LFQLosses]:
        """The weighted loss and its parts, for x and signs (b, n, c, d); rows with NaN or inf count in neither.

        `known`: there are none of these.
        """
        rows = working(x).flatten(0, -3)
        finite = None if known else finite_rows(rows.flatten(1))
        every = finite is None and mask is None
        if every:
            weights = rows.new_full((rows.shape[0],), 1.0 / max(rows.shape[0], 1))
        else:
            counts = rows.new_ones(rows.shape[0], dtype=torch.bool) if finite is None else finite
            rows = zeroed(rows, finite)
            if mask is not None:
                counts = counts & row_mask(mask, x.shape[:-2]).flatten()
            weights = counts.to(rows.dtype) / counts.sum().clamp_min(1)
        each = batch = commitment = loss = rows.new_zeros(())
        if self.entropy_loss_weight != 0 or all_parts:
            sample = rows, weights
            if self.frac_per_sample_entropy < 1.0:
                sample = sample_rows(rows, weights, self.frac_per_sample_entropy, generator)
            each, batch = code_entropies(sample[0] * (4.0 * inv_temperature * self._amplitude), sample[1])
            loss = each - self.diversity_gamma * batch
        if self.experimental_softplus_entropy_loss:
            loss = F.softplus(loss + self.entropy_loss_offset)
        loss = loss * self.entropy_loss_weight
        if self.commitment_loss_weight > 0:
            target = working(signs).detach().flatten(0, -3)
            if every:
                commitment = F.mse_loss(rows, target, reduction="sum") / max(rows.numel(), 1)
            else:
                commitment = ((rows - target).square().flatten(1).mean(1) * weights).sum()
            loss = loss + commitment * self.commitment_loss_weight
        return loss, LFQLosses(each, batch, commitment)

    # ---- Forward -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        inv_temperature: float = 100.0,
        return_loss_breakdown: bool = False,
        mask: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> LFQResult | tuple[LFQResult, LFQLosses]:
        """Quantises x.

        Args:
            x: (b, ..., dim), or (b, dim, ...) channel first.
            inv_temperature: tau of the training loss (see the class).
            return_loss_breakdown: return the parts of the loss too.
            mask: bool (b,) or (b, n), True = counts in the losses. Where no row counts the losses are 0.
            generator: draws the rows of frac_per_sample_entropy.

        Returns:
            LFQResult(quantised like x, codes, loss), or on request (LFQResult, LFQLosses).
        """
        first = features_first(self.channel_first, x)
        x, finite = self._enter_finite(x, first)
        shape = x.shape
        x = voided(x, finite)  # before a bound makes a number of infinity
        rows = shape[0], math.prod(shape[1:-1])
        finite = None if finite is None else finite.reshape(rows)
        x = x.reshape(*rows, self.num_codebooks, self.codebook_dim)
        if self.soft_clamp_input_value is not None:
            x = (x / self.soft_clamp_input_value).tanh() * self.soft_clamp_input_value
        with no_autocast(x):
            dtype = x.dtype
            if self.force_quantization_f32:
                x = x.float()
            x = self._turn(x, back=False)
            if self.spherical:
                x = F.normalize(working(x), dim=-1).to(x.dtype) * self.codebook_scale
            codes = uncoded(pack_bits(x > 0, self.mask), finite)
            if self.training:
                plain = isinstance(self.activation, nn.Identity)
                signs = sign_through(x if plain else x.detach(), self._amplitude)
                known = finite is None and not self.orthogonal_rotation  # a rotation adds up numbers
                loss, parts = self._losses(x, signs, mask, inv_temperature, return_loss_breakdown, generator, known)
                signs = signs if plain else straight_through(self.activation(x), signs)
            else:
                signs = sign_through(x.detach(), self._amplitude)
                zero = torch.zeros_like(self.zero)  # a new one, as callers add to losses in place
                loss, parts = zero, LFQLosses(zero, zero, zero)
            quantized = self._turn(voided(signs, finite), back=True).to(dtype)
        codes = self._as_returned(codes.view(*shape[:-1], self.num_codebooks))
        result = LFQResult(self._leave(quantized.reshape(shape), first), codes, loss)
        return (result, parts) if return_loss_breakdown else result

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}, num_codebooks={self.num_codebooks}"


class ResidualLFQ(ResidualQuantizer):
    """A cascade of `LFQ` stages, stage s with codebook_scale 2^-s, with the arguments and state_dict of
    `vector_quantize_pytorch.ResidualLFQ`.

    Args:
        dim: features of the input; a linear map goes in front and behind where it differs from log2(codebook_size).
        num_quantizers: stages S.
        codebook_size: codes per stage, a power of two.
        quantize_dropout: train with a random number of stages (with grad enabled only); codes of the others are -1.
        quantize_dropout_cutoff_index: at least this number of stages plus one run.
        quantize_dropout_multiple_of: their number is rounded up to a multiple of this one.
        soft_clamp_input_value: as in `LFQ`, for the first stage; every further stage has half of the one before.
        **kwargs: further arguments of `LFQ`, for every stage.

    Shapes:
        x (b, ..., dim), or (b, dim, ...) channel first; codes int64 (b, ..., S); losses (S,).

    Example:
        >>> import torch
        >>> from vecbank.nn import ResidualLFQ
        >>> module = ResidualLFQ(dim=8, codebook_size=256, num_quantizers=2).eval()
        >>> quantized, codes, losses = module(torch.randn(2, 5, 8))
        >>> quantized.shape, codes.shape, losses.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 5, 2]), torch.Size([2]))

    Sources: those of `LFQ`; cascade: Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", 2021.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int,
        codebook_size: int,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        soft_clamp_input_value: float | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("num_codebooks", 1) != 1 or kwargs.get("has_projections"):
            named = "num_codebooks" if kwargs.get("num_codebooks", 1) != 1 else "has_projections"
            raise ValueError(
                f"ResidualLFQ: {named}={kwargs[named]} is not supported: a stage has one code of its own width"
            )
        dim, codebook_size = whole("dim", dim), whole("codebook_size", codebook_size)
        width = codebook_size.bit_length() - 1
        if codebook_size < 2 or codebook_size != 1 << width:
            raise ValueError(f"codebook_size must be a power of two, got {codebook_size}")
        dropout = quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        super().__init__(dim, width, num_quantizers, dropout)
        self.channel_first: bool | None = kwargs.pop("channel_first", None)
        self.layers = nn.ModuleList()
        for i in range(self.num_quantizers):
            clamp = None if soft_clamp_input_value is None else soft_clamp_input_value * 0.5**i
            stage = LFQ(dim=width, codebook_scale=2.0**-i, soft_clamp_input_value=clamp, channel_first=False, **kwargs)
            self.layers.append(stage)

    def _features_first(self, like: Tensor) -> bool:
        return features_first(self.channel_first, like)

    def _stage_vectors(self, codes: Sequence[Tensor]) -> list[Tensor]:
        return [layer._vectors(code) for layer, code in zip(self.layers, codes, strict=True)]

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: int | None = None,
        *,
        num_stages: int | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantises x.

        Args:
            x: (b, ..., dim), or (b, dim, ...) channel first.
            mask: bool (b,) or (b, n), True = counts in the losses.
            return_all_codes: return the vectors of every stage too.
            rand_quantize_dropout_fixed_seed: seed of the number of stages that quantize_dropout draws.
            num_stages: run only so many stages.
            generator: draws that seed otherwise, and the rows of frac_per_sample_entropy.

        Returns:
            (quantised like x, codes (b, ..., S), losses (S,)), and on request the vectors (S, b, ..., d).
        """

        def run(rows: Tensor) -> Cascade:
            dropping, seed = self.training and torch.is_grad_enabled(), rand_quantize_dropout_fixed_seed
            active = self._dropout.active(dropping, num_stages, seed, rows.device, generator)
            stages = [partial(layer, mask=mask, generator=generator) for layer in self.layers]
            return run_cascade(rows, stages, active)

        result = self._on_rows(x, run)
        return (*result, self.get_codes_from_indices(result.codes)) if return_all_codes else tuple(result)


class GroupedResidualLFQ(GroupedResidual):
    """`ResidualLFQ` on each of G slices of the features, with the arguments and state_dict of
    `vector_quantize_pytorch.GroupedResidualLFQ`.

    Args:
        dim: features, a multiple of groups.
        groups: G.
        accept_image_fmap: features on axis 1, (b, dim, h, w).
        **kwargs: further arguments of `ResidualLFQ`; `channel_first` follows from accept_image_fmap.

    Shapes:
        x (b, ..., dim), or (b, dim, h, w); codes int64 (G, b, ..., S); losses (G, S).

    Example:
        >>> import torch
        >>> from vecbank.nn import GroupedResidualLFQ
        >>> module = GroupedResidualLFQ(dim=8, groups=2, codebook_size=16, num_quantizers=2).eval()
        >>> quantized, codes, losses = module(torch.randn(2, 5, 8))
        >>> quantized.shape, codes.shape, losses.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 2, 5, 2]), torch.Size([2, 2]))

    Sources: those of `ResidualLFQ`; groups: Yang et al., "HiFi-Codec: Group-residual Vector quantization for High
    Fidelity Audio Codec", 2023.
    """

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any) -> None:
        options = on_axis("channel_first", accept_image_fmap, kwargs)
        super().__init__(dim, groups, accept_image_fmap, lambda width: ResidualLFQ(dim=width, **options))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        return_all_codes: bool = False,
        *,
        num_stages: int | None = None,
        generator: Generator | None = None,
    ) -> tuple[Any, ...]:
        """x to (quantised like x, codes (G, b, ..., S), losses (G, S)), and on request a tuple of each group's vectors.

        The other arguments are those of `ResidualLFQ.forward`.
        """
        options = {"mask": mask, "return_all_codes": return_all_codes, "num_stages": num_stages}
        return self._join(self._run_groups(x, generator, generator=generator, **options))
