"""SimVQ: a frozen random table seen through a learned map, so that every training step moves all codes.

Formula: book C = f(T) with T frozen and f learned (a linear map by default), code = argmin_k |x - C_k|, and
the loss w (mean (sg(x) - C_k)^2 + w_x mean (x - sg(C_k))^2). The gradient to x is turned by the rotation
trick or passed straight through; the book's is 2 w (n_k C_k - S_k) / numel from the codes' counts n and sums
S, without a row per x.

Source: Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer",
2024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .._finite import counted, finite_rows, voided, zeroed
from ..functional import lookup, quantize_train
from ._arguments import function, integers, memory_for, numbers, whole
from ._arguments import rows as row_numbers
from ._estimators import codebook_loss, rotate_to, straight_through
from ._layout import channel_first as to_channel_first
from ._layout import channel_last, check_width, no_autocast, working
from ._passes import encode_stages
from ._residual import StageDropout, pad_stages, run_cascade


def _unchanged(table: Tensor) -> Tensor:
    return table


def _together(x: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
    """x and book in dtypes that go together; a 16-bit x beside a float32 book is read as it is."""
    if x.dtype == book.dtype or (book.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)):
        return x, book
    both = torch.promote_types(x.dtype, book.dtype)
    return x.to(both), book.to(both)


class SimVQ(nn.Module):
    """Vector quantisation by a mapped table. Same arguments and state_dict as
    `vector_quantize_pytorch.SimVQ`.

    Args:
        dim: features d. codebook_size: codes M.
        codebook_transform: f, (M, frozen_codebook_dim) to (M, d); a linear map without bias by default.
        init_fn: makes the frozen table from N(0, 1 / frozen_codebook_dim) draws (M, frozen_codebook_dim).
        channel_first: features on axis 1.
        rotation_trick: gradient to x by the rotation trick instead of straight through.
        input_to_quantize_commit_loss_weight, commitment_weight: w_x and w above.
        frozen_codebook_dim: width of the frozen table; dim by default.

    `forward(x)`: x (b, ..., d), or (b, d, ...) channel first, to (quantised like x, codes int64 (b, ...),
    loss), in eval as in training. The book is read in the dtype its map has, whatever autocast says. A row with
    NaN or inf becomes NaN with code -1, and counts nowhere.
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
            book: Tensor = self.code_transform(self.frozen_codebook)
        return book

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Codes (b, ...) of any integer dtype to vectors in the layout of `forward`; -1 is a zero vector.
        Differentiable in the map.
        """
        codes = lookup(row_numbers(indices, self.codebook_size, "indices"), self.codebook)
        return to_channel_first(codes) if self.channel_first else codes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantises x; see the class."""
        check_width(x, self.dim, 1 if self.channel_first else -1)
        quantized, codes, loss = self._quantize(channel_last(x) if self.channel_first else x)
        return to_channel_first(quantized) if self.channel_first else quantized, codes, loss

    def _quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for features on the last axis."""
        dtype = x.dtype
        with no_autocast(x):
            x, book = _together(x, self.codebook)
            finite, weight = finite_rows(x), self.input_to_quantize_commit_loss_weight
            x = zeroed(x, finite)
            rows, codes, loss, counts, sums = quantize_train(x.detach(), book.detach(), valid=finite)
            elements = counted(finite, x.shape[:-1]) * x.shape[-1]
            loss = codebook_loss(x, book, rows, counts, sums, loss, weight, elements)
            quantized = rotate_to(x, rows) if self.rotation_trick else straight_through(x, rows)
            return voided(quantized, finite).to(dtype), codes, loss * self.commitment_weight

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}"


class ResidualSimVQ(nn.Module):
    """A cascade of SimVQ stages, each with a table and a map of its own.

    Args:
        dim, codebook_size: of every stage. num_quantizers: stages S. heads: only 1.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: train with a random
            number of stages, at least cutoff + 1, rounded up to a multiple; codes of the others are -1.
        channel_first, rotation_trick and the rest: as SimVQ.

    `forward(x, return_all_codes=False, rand_quantize_dropout_fixed_seed=None, *, num_stages=None,
    generator=None)` to (quantised like x, codes (b, ..., S), losses (S,)), and all stages' vectors (S, b,
    ..., d), or (S, b, d, ...) channel first, on request. `num_stages` runs only so many. Without gradients
    the cascade is one call.
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
        super().__init__()
        if heads != 1:
            raise ValueError(f"ResidualSimVQ: heads={heads} is not supported: a stage has one code")
        dim, num_quantizers = whole("dim", dim), whole("num_quantizers", num_quantizers)
        self.dim = dim
        self.channel_first = channel_first
        self.num_quantizers = num_quantizers
        options = {"rotation_trick": rotation_trick, "channel_first": channel_first, **sim_vq_kwargs}
        self.layers: Any = nn.ModuleList(
            SimVQ(dim=dim, codebook_size=codebook_size, **options) for _ in range(num_quantizers)
        )
        self._dropout = StageDropout(
            num_quantizers, quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        )
        self.quantize_dropout = self._dropout.enabled

    @property
    def codebook_size(self) -> int:
        """Codes per stage."""
        size: int = self.layers[0].codebook_size
        return size

    @property
    def codebook_dim(self) -> int:
        """Features of a code."""
        return self.dim

    @property
    def codebooks(self) -> Tensor:
        """Every stage's codes as they are now, (S, M, d)."""
        return torch.stack([layer.codebook for layer in self.layers])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Vectors of every stage, (S, b, ..., d), or (S, b, d, ...) channel first, for codes (b, ..., q).

        q < S only with quantize_dropout; -1 is a zero vector.
        """
        indices = pad_stages(integers(indices, "indices"), self.num_quantizers, self.quantize_dropout)
        parts = zip(self.layers, indices.unbind(-1), strict=True)
        return torch.stack([layer.indices_to_codes(code) for layer, code in parts])

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Codes (b, ..., q) to quantised features in the layout of `forward`."""
        return self.get_codes_from_indices(indices).sum(0)

    def _active(self, x: Tensor, num_stages: int | None, seed: int | None, generator: Generator | None) -> int:
        return self._dropout.active(self.training, num_stages, seed, x.device, generator)

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
        check_width(x, self.dim, 1 if self.channel_first else -1)
        active = self._active(x, num_stages, rand_quantize_dropout_fixed_seed, generator)
        rows = channel_last(x).contiguous() if self.channel_first else x
        rows = voided(rows, finite_rows(rows))
        if torch.is_grad_enabled():
            done = run_cascade(working(rows), [layer._quantize for layer in self.layers], active)
            quantized, codes, losses = done.quantized.to(x.dtype), done.codes, done.losses
        else:
            quantized, codes, losses = self._encode(rows, active)
        result = (to_channel_first(quantized) if self.channel_first else quantized, codes, losses)
        return (*result, self.get_codes_from_indices(codes)) if return_all_codes else result

    def _encode(self, x: Tensor, active: int) -> tuple[Tensor, Tensor, Tensor]:
        """The cascade where nothing learns: the same answer in fewer passes."""
        with no_autocast(x):
            books = [layer.codebook for layer in self.layers[:active]]
            dtype, x = x.dtype, _together(x, books[0])[0]
            done = encode_stages(x, [_together(x, book)[1] for book in books])
        first = self.layers[0]
        losses = done.losses * ((1 + first.input_to_quantize_commit_loss_weight) * first.commitment_weight)
        rest = self.num_quantizers - active
        codes = nn.functional.pad(done.codes, (0, rest), value=-1)
        return done.quantized.to(dtype), codes, nn.functional.pad(losses, (0, rest))
