"""A product quantiser that trains: each slice of the input has a codebook, moved by averages or by gradient."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from .. import pq
from .._finite import counted, finite_rows, voided, zeroed
from .._pq_parts import turned
from ..functional import lookup, project, quantize_train
from ._arguments import drawn_by, features, floats, integers, memory_for, number, numbers, whole
from ._checkpointing import ForwardRecord, ForwardRecords, inside_backward, may_repeat
from ._distributed import Ranks, draw_rows
from ._estimators import keep_alive
from ._state_updates import state_update


class ProductQuantized(NamedTuple):
    """What a `ProductQuantizer` returns."""

    quantized: Tensor  # (..., dim)
    codes: Tensor  # (..., parts) int64
    loss: Tensor  # (): the terms of commitment and of the codebooks


torch.utils._pytree._register_namedtuple(ProductQuantized, serialized_type_name="vecbank.nn.ProductQuantized")


class ProductQuantizer(nn.Module):
    """A product quantiser that trains: `x -> concat_i codebooks[i][argmin_j |x_i - codebooks[i][j]|]` over slices x_i.

    With `decay` the codebooks are moving averages of what they are given: `N <- decay * N + (1 - decay) * n`,
    `S <- decay * S + (1 - decay) * s` for the count n and sum s of a code's slices in this batch, and `S / N'` is the
    code (N' = N after Laplace smoothing). Without `decay` they are a parameter that learns from |quantized - x|^2 with
    x held still.

    `codebooks` (parts, codes, dim / parts) may be assigned: averages go on from what it is given. In a state_dict, and
    among parameters and buffers, it is named `books`.

    Args:
        dim, parts: width and number of slices; dim must be a multiple of parts.
        codes: number of rows of each codebook.
        decay: decay of the moving averages, or None for codebooks that learn by gradient.
        commitment_weight: weight in `loss` of the mean of (x - quantized)^2, where quantized is held still.
        rare: codes whose moving average count N is under this become random slices of the batch (0: never).
        rotation: quantise `x @ R` and turn back, R an orthogonal buffer that `fit_` learns (identity until then).
        sync: share counts and draws over all ranks of torch.distributed, where there are several; before the first
            step all take the first rank's codebooks.
        generator: draws the first codebooks and the replacements.

    Shapes:
        x (..., dim), 16-bit or of the codebooks' dtype.

    Returns:
        ProductQuantized(quantized, codes, loss): quantized (..., dim) in the codebooks' dtype, codes (..., parts)
        int64, loss (). Straight-through: the gradient of quantized goes to x as it is. In eval mode nothing moves, and
        `loss` is still the commitment term. A row with NaN or inf becomes NaN with codes -1; it does not
        change the codebooks, and its gradient is zero.

    Raises:
        TypeError, ValueError: an argument of another kind, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> quantizer = vecbank.nn.ProductQuantizer(dim=8, parts=4, codes=16)
        >>> quantized, codes, loss = quantizer(torch.randn(5, 8))
        >>> quantized.shape, codes.shape, quantizer.codebooks.shape
        (torch.Size([5, 8]), torch.Size([5, 4]), torch.Size([4, 16, 2]))

    Sources: Jegou, Douze, Schmid, "Product quantization for nearest neighbor search", PAMI 33, 2011; trained with van
    den Oord et al., "Neural discrete representation learning", NeurIPS 2017 (straight-through, commitment, moving
    averages).
    """

    books: Tensor  # `codebooks`, by the name that it has in states
    sizes: Tensor
    sums: Tensor
    rotation: Tensor | None

    def __init__(
        self,
        dim: int,
        parts: int,
        codes: int = 256,
        *,
        decay: float | None = 0.99,
        commitment_weight: float = 1.0,
        rare: float = 0.0,
        rotation: bool = False,
        sync: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        dim, parts, codes = whole("dim", dim), whole("parts", parts), whole("codes", codes)
        numbers(commitment_weight=commitment_weight, rare=rare)
        generator = drawn_by(generator)
        if dim % parts:
            raise ValueError(f"dim must be a multiple of parts, got dim = {dim} and parts = {parts}")
        if decay is not None and not 0 <= number("decay", decay, -math.inf) < 1:
            raise ValueError(f"decay must lie in [0, 1) or be None, got {decay}")
        self.dim, self.parts, self.codes, self.decay = dim, parts, codes, decay
        self.commitment_weight, self.rare, self.sync, self.generator = commitment_weight, rare, sync, generator
        with memory_for(f"{parts} codebooks of {codes} x {dim // parts} numbers, and their averages"):
            codebooks = torch.randn(parts, codes, dim // parts, generator=generator)
            sums = None if decay is None else codebooks.clone()
        if decay is None:
            self.books = nn.Parameter(codebooks)
        else:
            self.register_buffer("books", codebooks)
            self.register_buffer("sizes", torch.ones(parts, codes))
            self.register_buffer("sums", sums)
        self.register_buffer("rotation", torch.eye(dim) if rotation else None)
        self._recall = ForwardRecords()
        self._shared = False  # whether the ranks have agreed on what to start from
        self._loading = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Codebooks that are assigned take the place of the old ones: averages go on from them."""
        name = "books" if name == "codebooks" else name
        if name != "books" or "books" not in self.__dict__.get("_buffers", ()) or self._loading:
            super().__setattr__(name, value)
            return
        floats("codebooks", value)
        if value.shape != self.codebooks.shape:
            raise ValueError(f"codebooks must be {tuple(self.codebooks.shape)}, got {tuple(value.shape)}")
        with torch.no_grad():
            self._start_from(value)

    @property
    def codebooks(self) -> Tensor:
        """(parts, codes, dim / parts), a buffer or, without `decay`, a parameter."""
        return self.books

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._loading = True  # torch may put a state's own tensors in the place of the buffers
        super()._load_from_state_dict(*args, **kwargs)
        self._loading = False

    def _start_from(self, codebooks: Tensor) -> None:
        """The codebooks, and averages in which each code has one row (three times `rare`, where that is more)."""
        size = max(1.0, 3 * self.rare)
        self.codebooks.copy_(codebooks)
        self.sizes.fill_(size)
        self.sums.copy_(self.codebooks * size)

    def _turned(self, x: Tensor) -> Tensor:
        return x if self.rotation is None else turned(x.to(self.rotation.dtype), self.rotation)

    def forward(self, x: Tensor) -> ProductQuantized:
        features("x", x, self.dim)
        moves = self.training and self.decay is not None
        if moves and inside_backward():  # a checkpoint's repeated forward: on the codebooks that the first one saw
            repeated = self._recall.find(x)
            if repeated is None:
                return self._code(x, False)
            with repeated.restored({"codebooks": self.codebooks}, self.generator):
                return self._code(x, False)
        ranks = Ranks(self.sync)
        if ranks.several and self.training and not self._shared:
            ranks.share(*self.parameters(), *self.buffers())
            self._shared = True
        if not moves or not may_repeat():
            return self._code(x, moves)
        seen = ForwardRecord(x, {"codebooks": self.codebooks}, self.generator, draws=self.rare > 0)
        self._recall.add(seen)
        found = self._code(x, True)
        seen.finish()
        return found._replace(quantized=keep_alive(found.quantized, seen))

    def _code(self, x: Tensor, move: bool) -> ProductQuantized:
        lead, finite = x.shape[:-1], finite_rows(x)
        y = self._turned(zeroed(x, finite))
        parts = y.reshape(-1, self.parts, self.dim // self.parts).transpose(0, 1)
        mask = None if finite is None else finite.reshape(1, -1).expand(parts.shape[:2])
        found = quantize_train(parts, self.codebooks.detach(), valid=mask)
        loss = self.commitment_weight * found.loss
        if self.decay is None:
            offset = self.codes * torch.arange(self.parts, device=x.device).unsqueeze(1)
            rows = torch.where(found.codes < 0, -1, found.codes + offset)
            chosen = lookup(rows, self.codebooks.flatten(0, 1))
            gap = zeroed(chosen - parts.detach().to(chosen.dtype), mask).square()
            loss = loss + gap.sum() / (counted(mask, parts.shape[:2]) * parts.shape[-1])
        elif move:
            self._move(parts.detach(), mask, found.counts, found.sums)
        quantized = found.quantized.transpose(0, 1).reshape(*lead, self.dim)
        if self.rotation is not None:
            quantized = project(quantized, self.rotation, "dot")
        quantized = voided(quantized, finite)
        return ProductQuantized(quantized, found.codes.T.reshape(*lead, self.parts), loss)

    @state_update
    def _move(self, parts: Tensor, mask: Tensor | None, counts: Tensor, sums: Tensor) -> None:
        ranks, dtype = Ranks(self.sync), self.codebooks.dtype
        counts, sums = ranks.total(counts).to(dtype), ranks.total(sums).to(dtype)
        some = (counts.sum(-1, keepdim=True) > 0).to(dtype)  # a batch without rows moves nothing
        weight = some * (1 - (self.decay or 0.0))
        self.sizes.lerp_(counts, weight)
        self.sums.lerp_(sums, weight.unsqueeze(-1))
        if self.rare:
            keep = None if mask is None else mask[0]
            for sizes, total, part in zip(self.sizes, self.sums, parts, strict=True):
                rows, available = draw_rows(part.to(dtype), keep, self.codes, self.generator, ranks)
                rare = (sizes < self.rare) & (available > 0)
                total.copy_(torch.where(rare.unsqueeze(1), rows * self.rare, total))
                sizes.copy_(torch.where(rare, self.rare, sizes))
        total = self.sizes.sum(1, keepdim=True)
        smooth = (self.sizes + 1e-5) / (total + self.codes * 1e-5) * total
        self.codebooks.copy_(self.sums / smooth.clamp_min(1e-12).unsqueeze(-1))

    @torch.no_grad()
    def fit_(
        self, samples: Tensor, *, iterations: int = 25, generator: Generator | None = None, progress: bool = False
    ) -> ProductQuantizer:
        """Starts the codebooks (and the rotation) from k-means on samples; `codes` must be a power of two.

        Of several ranks all call it, and the first one's answer counts.

        Args:
            samples: (..., dim); those with NaN or inf are left out.
            iterations: k-means steps.
            generator: source of the draws.
            progress: draw a bar on stderr.

        Returns:
            The module.
        """
        bits = self.codes.bit_length() - 1
        if self.codes != 1 << bits or bits < 1:
            raise ValueError(f"fit_ needs a power of two of codes, from 2, got {self.codes}")
        features("samples", samples, self.dim)
        rows = samples.detach().reshape(-1, self.dim).to(self.codebooks.dtype)
        rows = rows[rows.isfinite().all(-1)]
        if rows.shape[0] < self.codes:
            raise ValueError(f"samples must have at least codes = {self.codes} finite rows, got {rows.shape[0]}")
        codec = pq.train(
            rows,
            self.parts,
            bits,
            rotation=self.rotation is not None,
            iterations=iterations,
            generator=generator,
            progress=progress,
        )
        if self.decay is None:
            self.codebooks.copy_(codec.codebooks)
        else:
            self._start_from(codec.codebooks)
        if self.rotation is not None and codec.rotation is not None:
            self.rotation.copy_(codec.rotation)
        self._shared = False
        return self

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., parts) int64; -1 for a row with NaN or inf."""
        features("x", x, self.dim)
        x = voided(x, finite_rows(x))
        return pq.encode(x, self.codebooks.detach(), self.rotation)

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors (..., dim) of codes (..., parts) of any integer dtype."""
        return pq.decode(integers(codes), self.codebooks, self.rotation)

    @property
    def codec(self) -> pq.ProductCodec:
        """These codebooks for stored vectors: packed codes, distance tables."""
        return pq.ProductCodec(self.codebooks.detach(), self.dim, self.rotation)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, parts={self.parts}, codes={self.codes}, decay={self.decay}, rare={self.rare}"
