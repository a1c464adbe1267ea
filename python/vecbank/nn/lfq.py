"""Lookup-free quantisation: the code is the sign of every feature, the codebook {-s, s}^d is never searched.

Formula: q = s sign(x) (-s at 0), code = sum of 2^(d-1-i) over the positive features. The training loss is
w_e (E H(p_n) - gamma H(E p_n)) + w_c E (x - q)^2, where p_n is the softmax over all 2^d codes of 2 tau x.c.
Because the codes are all sign vectors, p_n is a product of d independent bits with log-odds 4 tau s x_i (see
`_bits`).

What needs the size of the codebook, and what does not: codes and vectors need d numbers each. H(E p_n) is
defined over all 2^d codes, which takes 2^d numbers, but no N x 2^d. E H(p_n) visits N x 2^d numbers a block
at a time, because its logarithm is cut off at 1e-5 (else it would be a sum over bits). With
entropy_loss_weight = 0 neither is computed.

Sources: Yu et al., "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", ICLR 2024;
spherical: Zhao et al., "Image and Video Tokenization with Binary Spherical Quantization", 2024; rotation:
Tseng et al., "QuIP#", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .. import _checks
from ._arguments import function, integers, maybe_numbers, maybe_whole, memory_for, numbers, whole
from ._bits import bit_entropy, entropy, mean_code_probability, pack_bits, unpack_bits
from ._derived import Derived
from ._distributed import mean_over_ranks
from ._draws import uniform
from ._estimators import sign_through, straight_through
from ._layout import (
    CosineSimLinear,
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
    row_mask,
    working,
)
from ._residual import GroupedResidual, StageDropout, pad_stages, run_cascade

_FLOOR = 1e-5  # inside the entropies' logarithms


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


class LFQ(Derived):
    """Lookup-free quantisation. Same arguments and state_dict as `vector_quantize_pytorch.LFQ`.

    Args:
        dim, codebook_size: features of the input and number of codes, a power of two up to 2^62; one gives
            the other. A linear map goes in front and behind where dim differs from log2(codebook_size) *
            num_codebooks.
        entropy_loss_weight, commitment_loss_weight, diversity_gamma: w_e, w_c and gamma above.
        straight_through_activation: the gradient passes to the input through this module; identity by
            default.
        num_codebooks, keep_num_codebooks_dim: codes per vector, and whether the codes keep that axis.
        codebook_scale: s.
        frac_per_sample_entropy: share of the rows, drawn at random, that the entropies are taken over.
        has_projections, projection_has_bias: of the linear maps.
        soft_clamp_input_value: c; the input becomes c tanh(x / c).
        cosine_sim_project_in, cosine_sim_project_in_scale: project in by scaled cosines (scale:
            codebook_scale).
        channel_first: features on axis 1; None takes inputs of four and more axes so.
        experimental_softplus_entropy_loss, entropy_loss_offset: softplus(entropy loss + offset) in its place.
        spherical: unit vectors times s on both sides; then q = s / sqrt(d) sign(x).
        force_quantization_f32: decide in float32.
        orthogonal_rotation: a fixed random rotation before, and back after.

    `forward(x, inv_temperature=100.0, return_loss_breakdown=False, mask=None, *, generator=None)`: x (b, ...,
    dim) to LFQResult; with the breakdown (LFQResult, LFQLosses). mask (b,) or (b, n): rows that count in the
    losses (none at all: losses 0). A vector with NaN or inf has code -1, comes out as NaN and counts in no loss,
    whatever it is clamped to.
    `indices_to_codes` takes codes of any integer dtype back to what forward returned; -1 is a zero vector, before the
    linear map behind.
    """

    mask: Tensor
    zero: Tensor
    orthogonal_rot: Tensor
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
        keep = num_codebooks > 1 if keep_num_codebooks_dim is None else keep_num_codebooks_dim
        if num_codebooks > 1 and not keep:
            raise ValueError(f"keep_num_codebooks_dim=False needs num_codebooks=1, got {num_codebooks}")
        numbers(0, 1, True, frac_per_sample_entropy=frac_per_sample_entropy)
        if soft_clamp_input_value is not None and soft_clamp_input_value < codebook_scale:
            raise ValueError(
                f"soft_clamp_input_value must be at least codebook_scale = {codebook_scale}, "
                f"got {soft_clamp_input_value}"
            )
        wide = width * num_codebooks
        dim = wide if dim is None else dim
        projected = dim != wide if has_projections is None else has_projections
        if cosine_sim_project_in and projected:
            scale = codebook_scale if cosine_sim_project_in_scale is None else cosine_sim_project_in_scale
            self.project_in: nn.Module = CosineSimLinear(dim, wide, scale)
        else:
            self.project_in = projection(dim, wide, projected, projection_has_bias)
        self.project_out = projection(wide, dim, projected, projection_has_bias)
        self.has_projections = projected
        self.dim = dim
        self.codebook_size = codebook_size
        self.codebook_dim = width
        self.num_codebooks = num_codebooks
        self.keep_num_codebooks_dim = keep
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
        self.orthogonal_rotation = orthogonal_rotation
        if orthogonal_rotation:
            self.register_buffer("orthogonal_rot", nn.init.orthogonal_(torch.empty(width, width)))
        self.register_buffer("mask", 2 ** torch.arange(width - 1, -1, -1))  # the value of every bit
        self._hold()
        self._amplitude = codebook_scale / math.sqrt(width) if spherical else float(codebook_scale)

    # ---- Codes -------------------------------------------------------------------------------------------------------

    def _derive(self) -> dict[str, Tensor]:
        return {"zero": torch.tensor(0.0, device="cpu")}

    @property
    def dtype(self) -> torch.dtype:
        """What codes are turned into."""
        return self.zero.dtype

    @property
    def codebook(self) -> Tensor:
        """All codes as vectors of +-codebook_scale, (codebook_size, d): made when asked for."""
        with memory_for(f"all {self.codebook_size} codes"):
            numbers = torch.arange(self.codebook_size, device=self.mask.device)
            return self.bits_to_codes(unpack_bits(numbers, self.mask).float())

    def bits_to_codes(self, bits: Tensor) -> Tensor:
        """Zeros and ones to -codebook_scale and +codebook_scale."""
        return bits * self.codebook_scale * 2 - self.codebook_scale

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """Codes back to quantised features, in the layout `forward` returns them in."""
        numbers = integers(indices, "indices")
        image = numbers.dim() >= 3 + int(self.keep_num_codebooks_dim)
        first = image if self.channel_first is None else self.channel_first
        codes = self._decode(numbers)
        if self.keep_num_codebooks_dim:
            codes = codes.flatten(-2)
        if project_out:
            codes = self.project_out(like_weights(codes, self.project_out))
        return channel_first(codes) if first else codes

    def _decode(self, numbers: Tensor) -> Tensor:
        """Codes (...) int64 to vectors (..., d), turned back where there is a rotation."""
        seen, vectors = _checks.in_range(numbers, self.codebook_size, "indices"), self._vectors(numbers)
        return vectors if seen else _checks.only_rows(vectors, numbers, self.codebook_size)

    def _vectors(self, numbers: Tensor) -> Tensor:
        """`_decode` of int64 row numbers."""
        signs = torch.where(unpack_bits(numbers, self.mask), self._amplitude, -self._amplitude).to(self.dtype)
        return self._turn(signs, back=True)

    def _turn(self, x: Tensor, back: bool) -> Tensor:
        if not self.orthogonal_rotation:
            return x
        rotation = self.orthogonal_rot.to(x.dtype)
        return x @ (rotation.t() if back else rotation)

    # ---- Losses ------------------------------------------------------------------------------------------------------

    def _entropies(
        self, rows: Tensor, weights: Tensor, inv_temperature: float, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """E H(p_n) and H(E p_n), averaged over the codebooks, for rows (N, c, d); weights (N,) sum to 1."""
        if self.frac_per_sample_entropy < 1.0:
            rows, weights = self._sample(rows, weights, generator)
        books = (rows * (4.0 * inv_temperature * self._amplitude)).unbind(1)
        each = torch.stack([bit_entropy(logits, weights, _FLOOR) for logits in books]).mean()
        means = [mean_over_ranks(mean_code_probability(logits, weights)) for logits in books]
        return each, torch.stack([entropy(mean, _FLOOR) for mean in means]).mean()

    def _sample(self, rows: Tensor, weights: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """A random share of the rows that count; how many count is not asked, so nothing waits for the
        device.
        """
        draw = uniform(weights.shape, rows, generator)
        most = torch.sym_int(weights.shape[0] * self.frac_per_sample_entropy)  # int() would fix it in a traced program
        order = draw.masked_fill(weights == 0, 2.0).argsort()[:most]
        taken = ((weights > 0).sum() * self.frac_per_sample_entropy).long()
        chosen = torch.arange(order.shape[0], device=rows.device) < taken
        return rows[order], chosen.to(weights.dtype) / taken.clamp_min(1)

    def _losses(
        self,
        x: Tensor,
        signs: Tensor,
        mask: Tensor | None,
        inv_temperature: float,
        all_parts: bool,
        generator: Generator | None,
    ) -> tuple[Tensor, LFQLosses]:
        """The weighted loss and its parts, for x and signs (b, n, c, d); rows with NaN or inf count in neither."""
        rows = working(x).flatten(0, -3)
        lost = lost_rows(rows.flatten(1))
        if lost is None and mask is None:
            weights = rows.new_full((rows.shape[0],), 1.0 / max(rows.shape[0], 1))
        else:
            counted = rows.new_ones(rows.shape[0], dtype=torch.bool) if lost is None else ~lost.squeeze(1)
            rows = blank(rows, None if lost is None else lost.unsqueeze(-1), 0.0)
            if mask is not None:
                counted = counted & row_mask(mask, x.shape[:-2]).flatten()
            weights = counted.to(rows.dtype) / counted.sum().clamp_min(1)
        each = batch = commitment = loss = rows.new_zeros(())
        if self.entropy_loss_weight != 0 or all_parts:
            each, batch = self._entropies(rows, weights, inv_temperature, generator)
            loss = each - self.diversity_gamma * batch
        if self.experimental_softplus_entropy_loss:
            loss = F.softplus(loss + self.entropy_loss_offset)
        loss = loss * self.entropy_loss_weight
        if self.commitment_loss_weight > 0:
            apart = (rows - working(signs).detach().flatten(0, -3)).square().flatten(1).mean(1)
            commitment = (apart * weights).sum()
            loss = loss + commitment * self.commitment_loss_weight
        return loss, LFQLosses(each, batch, commitment)

    # ---- Layout ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        inv_temperature: float = 100.0,
        return_loss_breakdown: bool = False,
        mask: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> LFQResult | tuple[LFQResult, LFQLosses]:
        """Quantises x; see the class. `generator` draws the rows of frac_per_sample_entropy."""
        first = (isinstance(x, Tensor) and x.dim() >= 4) if self.channel_first is None else self.channel_first
        check_width(x, self.dim, 1 if first else -1)
        x = project_rows(self.project_in, channel_last(x) if first else x)
        shape, lost = x.shape, lost_rows(x)
        x = blank(x, lost, torch.nan)  # before a bound makes a number of infinity
        rows = shape[0], math.prod(shape[1:-1])
        lost = None if lost is None else lost.view(*rows, 1, 1)
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
            indices = pack_bits(x > 0, self.mask)
            indices = indices if lost is None else indices.masked_fill(lost.squeeze(-1), -1)
            if self.training:
                plain = isinstance(self.activation, nn.Identity)
                signs = sign_through(x if plain else x.detach(), self._amplitude)
                loss, parts = self._losses(x, signs, mask, inv_temperature, return_loss_breakdown, generator)
                signs = signs if plain else straight_through(self.activation(x), signs)
            else:
                signs = sign_through(x.detach(), self._amplitude)
                zero = torch.zeros_like(self.zero)  # a new one: losses are added to in place
                loss, parts = zero, LFQLosses(zero, zero, zero)
            out = self._turn(blank(signs, lost, torch.nan), back=True).to(dtype)
        out = project_rows(self.project_out, out.reshape(shape))
        indices = indices.view(*shape[:-1], self.num_codebooks)
        if not self.keep_num_codebooks_dim:
            indices = indices.squeeze(-1)
        result = LFQResult(channel_first(out) if first else out, indices, loss)
        return (result, parts) if return_loss_breakdown else result

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}, num_codebooks={self.num_codebooks}"


class ResidualLFQ(nn.Module):
    """A cascade of LFQ stages, stage s with codebook_scale 2^-s. Remaining arguments as LFQ.

    Args:
        dim: features; a linear map to log2(codebook_size) goes in front and back behind where they differ.
        num_quantizers: stages S. codebook_size: codes per stage.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: as ResidualFSQ.
        soft_clamp_input_value: of the first stage, halved at every further one.

    `forward(x, mask=None, return_all_codes=False, rand_quantize_dropout_fixed_seed=None, *, num_stages=None,
    generator=None)` to (quantised like x, codes (..., S), losses (S,)), and all stages' vectors (S, ..., d)
    on request.
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
        super().__init__()
        if kwargs.get("num_codebooks", 1) != 1 or kwargs.get("has_projections"):
            named = "num_codebooks" if kwargs.get("num_codebooks", 1) != 1 else "has_projections"
            raise ValueError(
                f"ResidualLFQ: {named}={kwargs[named]} is not supported: a stage has one code of its own width"
            )
        dim, num_quantizers = whole("dim", dim), whole("num_quantizers", num_quantizers)
        codebook_size = whole("codebook_size", codebook_size)
        width = codebook_size.bit_length() - 1
        if codebook_size < 2 or codebook_size != 1 << width:
            raise ValueError(f"codebook_size must be a power of two, got {codebook_size}")
        self.dim = dim
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.has_projections = width != dim
        self.project_in = projection(dim, width, self.has_projections)
        self.project_out = projection(width, dim, self.has_projections)
        self.channel_first: bool | None = kwargs.pop("channel_first", None)
        self.layers: Any = nn.ModuleList()
        for i in range(num_quantizers):
            clamp = None if soft_clamp_input_value is None else soft_clamp_input_value * 0.5**i
            self.layers.append(
                LFQ(
                    dim=width,
                    codebook_scale=2.0**-i,
                    soft_clamp_input_value=clamp,
                    channel_first=False,
                    **kwargs,
                )
            )
        self._dropout = StageDropout(
            num_quantizers, quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        )
        self.quantize_dropout = self._dropout.enabled

    @property
    def codebooks(self) -> Tensor:
        """Every stage's codes as vectors, (S, codebook_size, d): made when asked for."""
        return torch.stack([layer.codebook for layer in self.layers])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Vectors of every stage, (S, ..., d), for codes (..., q): q < S with quantize_dropout; -1 is a zero
        vector.
        """
        numbers = pad_stages(integers(indices, "indices"), self.num_quantizers, self.quantize_dropout)
        seen = _checks.in_range(numbers, self.codebook_size, "indices")
        vectors = torch.stack([layer._vectors(c) for layer, c in zip(self.layers, numbers.unbind(-1), strict=True)])
        return vectors if seen else _checks.only_rows(vectors, numbers.movedim(-1, 0), self.codebook_size)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Codes (b, ..., q) back to quantised features, in the layout that forward returned them in."""
        total = self.get_codes_from_indices(indices).sum(0)
        out: Tensor = self.project_out(like_weights(total, self.project_out))
        return channel_first(out) if self._first(indices) else out

    def _first(self, like: Tensor) -> bool:
        """Whether features are on axis 1, for an input, or codes of one, of `like`'s rank."""
        return (isinstance(like, Tensor) and like.dim() >= 4) if self.channel_first is None else self.channel_first

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
        """Quantises x; see the class."""
        first = self._first(x)
        check_width(x, self.dim, 1 if first else -1)
        x = project_rows(self.project_in, channel_last(x) if first else x)
        dropping = self.training and torch.is_grad_enabled()
        active = self._dropout.active(dropping, num_stages, rand_quantize_dropout_fixed_seed, x.device, generator)
        with no_autocast(x):
            stages = [lambda r, layer=layer: layer(r, mask=mask, generator=generator) for layer in self.layers]
            done = run_cascade(working(x).flatten(1, -2) if x.dim() > 3 else working(x), stages, active)
            quantized = done.quantized.to(x.dtype).view(x.shape)
            codes = done.codes.view(*x.shape[:-1], done.codes.shape[-1])
        out = project_rows(self.project_out, quantized)
        result = (channel_first(out) if first else out, codes, done.losses)
        return (*result, self.get_codes_from_indices(codes)) if return_all_codes else result


class GroupedResidualLFQ(GroupedResidual):
    """Residual LFQ on each of G slices of the features; codes (G, ..., S). Arguments after `groups` as
    ResidualLFQ.

    Shapes:
        x (b, ..., dim) to (quantised like x, codes (G, b, ..., S), losses (G, S)), and on request a tuple of all
        groups' codes.
    """

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any) -> None:
        options = on_axis("channel_first", accept_image_fmap, kwargs)
        super().__init__(dim, groups, accept_image_fmap, lambda width: ResidualLFQ(dim=width, **options))

    def get_output_from_indices(self, indices: Tensor | Sequence[Tensor]) -> Tensor:
        """Codes (G, ...) back to quantised features, both in the layout that forward returns them in."""
        return decode_groups(self, indices)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        return_all_codes: bool = False,
        *,
        num_stages: int | None = None,
        generator: Generator | None = None,
    ) -> tuple[Any, ...]:
        """x to (quantised like x, codes (G, ..., S), losses (G, S)), and a tuple of each group's vectors on
        request.
        """
        seed = self._seed(x, generator)
        parts = [
            rvq(part, mask, return_all_codes, seed, num_stages=num_stages, generator=generator)
            for rvq, part in zip(self.rvqs, self._chunks(x), strict=True)
        ]
        return self._join(parts)
