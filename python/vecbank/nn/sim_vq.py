"""SimVQ: the codebook is a learned map of a frozen random table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .._finite import counted, finite_rows, voided, zeroed
from ..functional import lookup, quantize_train
from ._arguments import function, memory_for, numbers, whole
from ._arguments import rows as row_numbers
from ._estimators import codebook_loss, rotate_to, straight_through
from ._layout import channel_first as to_channel_first
from ._layout import channel_last, check_width, no_autocast
from ._residual import Cascade, ResidualQuantizer, encode_stages, run_cascade


def _unchanged(table: Tensor) -> Tensor:
    return table


def _together(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """x and the codebook in dtypes that go together; a 16-bit x beside a float32 codebook is read as it is."""
    if x.dtype == codebook.dtype or (codebook.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)):
        return x, codebook
    dtype = torch.promote_types(x.dtype, codebook.dtype)
    return x.to(dtype), codebook.to(dtype)


class SimVQ(nn.Module):
    """Vector quantisation by a mapped table, with the arguments and state_dict of `vector_quantize_pytorch.SimVQ`.

    Evaluation returns the same as training. The codebook is read in the dtype of its map, whatever autocast says. A
    row with NaN or inf becomes NaN with code -1, and counts nowhere.

    Formula: codebook C = f(T) with the table T frozen and the map f learned, so that every training step updates all
    codes; code = argmin_k |x - C_k|; loss w * (mean((sg(x) - C_k)^2) + w_x * mean((x - sg(C_k))^2)), where sg stops the
    gradient. The gradient to x is turned by the rotation trick or passed straight through; the codebook's is
    2 * w * (n_k * C_k - S_k) / numel from the codes' counts n and sums S, without a row per x.

    Args:
        dim: features d.
        codebook_size: codes M.
        codebook_transform: the map f, (M, frozen_codebook_dim) to (M, d); by default linear without bias.
        init_fn: makes the frozen table from draws (M, frozen_codebook_dim) of N(0, 1 / frozen_codebook_dim).
        channel_first: features on axis 1.
        rotation_trick: gradient to x by the rotation trick instead of straight through.
        input_to_quantize_commit_loss_weight: w_x of the loss.
        commitment_weight: w of the loss.
        frozen_codebook_dim: width of the frozen table; dim by default.

    Shapes:
        x (b, ..., d), or (b, d, ...) channel first; codes int64 (b, ...); loss ().

    Example:
        >>> import torch
        >>> from vecbank.nn import SimVQ
        >>> module = SimVQ(dim=8, codebook_size=16)
        >>> quantized, codes, loss = module(torch.randn(2, 5, 8))
        >>> torch.equal(module.indices_to_codes(codes), quantized)
        True

    Source: Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer", 2024.
    """

    frozen_codebook: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_transform: nn.Module | None = None,
        init_fn: Callable[[Tensor], Tensor] = _unchanged,
        channel_first: bool = False,
        rotation_trick: bool = True,
        input_to_quantize_commit_loss_weight: float = 0.25,
        commitment_weight: float = 1.0,
        frozen_codebook_dim: int | None = None,
    ) -> None:
        super().__init__()
        dim, codebook_size = whole("dim", dim), whole("codebook_size", codebook_size)
        width = dim if frozen_codebook_dim is None else whole("frozen_codebook_dim", frozen_codebook_dim)
        numbers(commitment_weight=commitment_weight)
        function("codebook_transform", codebook_transform)
        numbers(input_to_quantize_commit_loss_weight=input_to_quantize_commit_loss_weight)
        self.dim = dim
        self.codebook_size = codebook_size
        self.channel_first = channel_first
        with memory_for(f"a codebook of {codebook_size} x {width} numbers"):
            table = init_fn(torch.randn(codebook_size, width) * width**-0.5)
        self.code_transform = nn.Linear(width, dim, bias=False) if codebook_transform is None else codebook_transform
        self.register_buffer("frozen_codebook", table)
        self.rotation_trick = rotation_trick
        self.input_to_quantize_commit_loss_weight = input_to_quantize_commit_loss_weight
        self.commitment_weight = commitment_weight

    @property
    def codebook(self) -> Tensor:
        """The codes as they are now, (M, d); differentiable in the map."""
        with no_autocast(self.frozen_codebook):
            codebook: Tensor = self.code_transform(self.frozen_codebook)
        return codebook

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """The vectors of codes (b, ...), of any integer dtype, in the layout of `forward`; that of -1 is zero.

        Differentiable in the map.
        """
        codes = lookup(row_numbers(indices, self.codebook_size, "indices"), self.codebook)
        return to_channel_first(codes) if self.channel_first else codes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (b, ..., d), or (b, d, ...) channel first, to (quantised like x, codes (b, ...), loss)."""
        check_width(x, self.dim, 1 if self.channel_first else -1)
        quantized, codes, loss = self._quantize(channel_last(x) if self.channel_first else x)
        return to_channel_first(quantized) if self.channel_first else quantized, codes, loss

    def _quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for features on the last axis."""
        dtype = x.dtype
        with no_autocast(x):
            x, codebook = _together(x, self.codebook)
            finite, weight = finite_rows(x), self.input_to_quantize_commit_loss_weight
            x = zeroed(x, finite)
            rows, codes, loss, counts, sums = quantize_train(x.detach(), codebook.detach(), valid=finite)
            elements = counted(finite, x.shape[:-1]) * x.shape[-1]
            loss = codebook_loss(x, codebook, rows, counts, sums, loss, weight, elements)
            quantized = rotate_to(x, rows) if self.rotation_trick else straight_through(x, rows)
            return voided(quantized, finite).to(dtype), codes, loss * self.commitment_weight

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}"


class ResidualSimVQ(ResidualQuantizer):
    """A cascade of `SimVQ` stages, each with a table and a map of its own, with the arguments and state_dict of
    `vector_quantize_pytorch.ResidualSimVQ`. Without gradients the cascade is one call.

    Args:
        dim: features d.
        num_quantizers: stages S.
        codebook_size: codes M of every stage.
        heads: only 1 is supported.
        quantize_dropout: train with a random number of stages; codes of the others are -1.
        quantize_dropout_cutoff_index: at least this number of stages plus one run.
        quantize_dropout_multiple_of: their number is rounded up to a multiple of this one.
        channel_first: features on axis 1.
        rotation_trick: gradient to x by the rotation trick instead of straight through.
        **sim_vq_kwargs: further arguments of `SimVQ`, for every stage.

    Shapes:
        x (b, ..., d), or (b, d, ...) channel first; codes int64 (b, ..., S); losses (S,).

    Example:
        >>> import torch
        >>> from vecbank.nn import ResidualSimVQ
        >>> module = ResidualSimVQ(dim=8, num_quantizers=3, codebook_size=16)
        >>> quantized, codes, losses = module(torch.randn(2, 5, 8))
        >>> quantized.shape, codes.shape, losses.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 5, 3]), torch.Size([3]))

    Sources: that of `SimVQ`; cascade: Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", 2021.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int,
        codebook_size: int,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        channel_first: bool = False,
        rotation_trick: bool = True,
        **sim_vq_kwargs: Any,
    ) -> None:
        if heads != 1:
            raise ValueError(f"ResidualSimVQ: heads={heads} is not supported: a stage has one code")
        dim = whole("dim", dim)
        dropout = quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        super().__init__(dim, dim, num_quantizers, dropout)
        self.channel_first = channel_first
        options = {"rotation_trick": rotation_trick, "channel_first": channel_first, **sim_vq_kwargs}
        self.layers = nn.ModuleList(
            SimVQ(dim=dim, codebook_size=codebook_size, **options) for _ in range(self.num_quantizers)
        )

    @property
    def codebook_dim(self) -> int:
        """Features of a code."""
        return self.dim

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The vectors of every stage, (S, b, ..., d), or (S, b, d, ...) channel first, for codes (b, ..., q).

        q < S only with quantize_dropout. The vector of -1 is zero.
        """
        vectors = super().get_codes_from_indices(indices)
        return vectors.movedim(-1, 2) if self.channel_first else vectors

    def _features_first(self, like: Tensor) -> bool:
        return self.channel_first

    def _stage_vectors(self, codes: Sequence[Tensor]) -> list[Tensor]:
        return [lookup(code, layer.codebook) for layer, code in zip(self.layers, codes, strict=True)]

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
            x: (b, ..., d), or (b, d, ...) channel first.
            return_all_codes: return the vectors of every stage too.
            rand_quantize_dropout_fixed_seed: seed of the number of stages that quantize_dropout draws.
            num_stages: run only so many stages.
            generator: draws that seed otherwise.

        Returns:
            (quantised like x, codes (b, ..., S), losses (S,)), and on request what `get_codes_from_indices` returns.
        """

        def run(rows: Tensor) -> Cascade:
            seed = rand_quantize_dropout_fixed_seed
            active = self._dropout.active(self.training, num_stages, seed, rows.device, generator)
            rows = rows.contiguous()
            rows = voided(rows, finite_rows(rows))
            if torch.is_grad_enabled():
                return run_cascade(rows, [layer._quantize for layer in self.layers], active)
            return self._encode(rows, active)

        result = self._on_rows(x, run)
        return (*result, self.get_codes_from_indices(result.codes)) if return_all_codes else tuple(result)

    def _encode(self, x: Tensor, active: int) -> Cascade:
        """The cascade where nothing learns: the same answer in one call."""
        codebooks = [layer.codebook for layer in self.layers[:active]]
        x = _together(x, codebooks[0])[0]
        done = encode_stages(x, [_together(x, codebook)[1] for codebook in codebooks], self.num_quantizers)
        first = self.layers[0]
        scale = (1 + first.input_to_quantize_commit_loss_weight) * first.commitment_weight
        return done._replace(losses=done.losses * scale)
