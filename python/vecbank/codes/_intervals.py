"""Scalar codes that say between which two values of its dimension a coordinate lies, and so how near it can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks
from .._numpy import entry_point
from ._packing import pack_bits, unpack_bits

_MOST_BITS, _ROUNDS = 16, 12


@dataclass(frozen=True, eq=False, repr=False)
class IntervalCodec:
    """Codes of the interval that each coordinate lies in, with a number of bits of its own for each dimension:
    `interval_train` makes it. A search asks `lower_bounds` which vectors may be near, and scores those. That is for
    vectors that are not in memory: among those that are, an exact search takes less time than the bounds.

    Args:
        edges: (d, L - 1) float64 ascending: code c of dimension j stands for edges[j, c - 1] <= x_j < edges[j, c];
            what is left of the first and right of the last is infinite. Dimensions of fewer intervals end in infinity.
        centres: (d, L) float64: what a code is decoded to.
        bits: one number for each dimension, from 0 (not coded) up.

    Source: Oakley and Ferhatosmanoglu, "SQUASH: Serverless and distributed quantization-based attributed vector
    similarity search", 2025; the bounds are those of the VA-file, Weber et al., VLDB 1998.

    Example:
        >>> import torch, vecbank
        >>> codec = vecbank.codes.interval_train(torch.randn(1000, 8) * torch.arange(1, 9), 3)
        >>> sum(codec.bits), codec.bytes_per_vector, min(codec.bits) < max(codec.bits)
        (24, 3, True)
    """

    edges: Tensor
    centres: Tensor
    bits: tuple[int, ...]

    def __repr__(self) -> str:
        return f"IntervalCodec({len(self.bits)} dimensions, {sum(self.bits)} bits a vector)"

    @property
    def bytes_per_vector(self) -> int:
        """Of a packed row."""
        return -(-sum(self.bits) // 8)

    def _coded(self) -> list[int]:
        """The dimensions that have bits."""
        return [j for j, width in enumerate(self.bits) if width]

    def _most(self, device: torch.device) -> Tensor:
        """The largest code of each dimension."""
        return torch.tensor([(1 << width) - 1 for width in self.bits], device=device)

    def _fits(self, name: str, x: Tensor) -> None:
        _checks.floating(name, x)
        if x.dim() == 0 or x.shape[-1] != len(self.bits):
            raise ValueError(
                f"{name} must be (..., {len(self.bits)}) like what the codec was made of, got {tuple(x.shape)}"
            )

    @entry_point
    def encode(self, x: Tensor, packed: bool = False) -> Tensor:
        """Codes of vectors (..., d): int64 (..., d); packed, uint8 (..., bytes_per_vector) by `codes.pack_bits`.

        Raises:
            ValueError: another width, or NaN, which lies in no interval.
        """
        self._fits("x", x)
        wide = x.detach().double()
        if _checks.readable(wide) and bool(wide.isnan().any()):
            raise ValueError("x must not hold NaN, which lies in no interval")
        columns = wide.reshape(-1, len(self.bits)).T.contiguous()
        codes = torch.searchsorted(self.edges, columns, right=True).T.reshape(x.shape)
        codes = torch.minimum(codes, self._most(x.device))  # infinity lies in the last interval
        if not packed:
            return codes
        return pack_bits(codes[..., self._coded()], [self.bits[j] for j in self._coded()])

    @entry_point
    def unpack(self, packed: Tensor) -> Tensor:
        """Codes (..., d) of packed rows."""
        kept = self._coded()
        found = unpack_bits(packed, len(kept), [self.bits[j] for j in kept])
        codes = found.new_zeros((*found.shape[:-1], len(self.bits)))
        codes[..., kept] = found
        return codes

    @entry_point
    def decode(self, codes: Tensor) -> Tensor:
        """Vectors (..., d) float32 of codes (..., d)."""
        codes = self._checked(codes)
        dimension = torch.arange(len(self.bits), device=codes.device)
        return self.centres[dimension, codes].float()

    def _checked(self, codes: Tensor) -> Tensor:
        if isinstance(codes, Tensor) and codes.dtype == torch.uint8:
            raise TypeError("codes must be integers of more than 8 bits, got uint8: packed codes are unpacked first")
        codes = _checks.integers(codes)
        if codes.dim() == 0 or codes.shape[-1] != len(self.bits):
            raise ValueError(f"codes must be (..., {len(self.bits)}), got {tuple(codes.shape)}")
        if _checks.in_range(codes, self.centres.shape[1], low=0):
            most = self._most(codes.device)
            beyond = (codes > most).reshape(-1, len(self.bits)).any(0)
            if bool(beyond.any()):
                j = int(beyond.nonzero()[0, 0])
                raise IndexError(f"codes of dimension {j} must lie between 0 and {int(most[j])}, got larger ones")
        return codes

    @entry_point
    def tables(self, x: Tensor) -> Tensor:
        """The squared distance of each coordinate of queries (..., d) from each interval: (..., d, L) float64."""
        self._fits("x", x)
        wide = x.detach().double().unsqueeze(-1)
        outside = torch.full((len(self.bits), 1), torch.inf, dtype=torch.float64, device=self.edges.device)
        least, most = torch.cat([-outside, self.edges], 1), torch.cat([self.edges, outside], 1)
        # Infinity lies in the last interval; of NaN nothing is known.
        return torch.maximum(least - wide, wide - most).nan_to_num(nan=0.0, posinf=torch.inf).clamp_min(0).square()

    @entry_point
    def lower_bounds(self, x: Tensor, codes: Tensor) -> Tensor:
        """What the squared Euclidean distance of queries (Q, d) from coded vectors (N, d) is at least: (Q, N) float64.

        It is never above the squared distance in float64, rounding included. Beside distances that were rounded to
        float32, as `score_pairs` returns them, keep what is at most 1 + 2^-23 times as large.

        Example:
            >>> import torch, vecbank
            >>> x = torch.randn(100, 4)
            >>> codec = vecbank.codes.interval_train(x, 2)
            >>> bool((codec.lower_bounds(x, codec.encode(x)) <= vecbank.project(x, x, "sqeuclidean") + 1e-4).all())
            True
        """
        codes = self._checked(codes)
        if x.dim() != 2 or codes.dim() != 2:
            raise ValueError(f"x must be (Q, d) and codes (N, d), got {tuple(x.shape)} and {tuple(codes.shape)}")
        tables = self.tables(x)
        sums = tables.new_zeros(x.shape[0], codes.shape[0])
        for table, part in zip(tables.unbind(1), codes.unbind(1), strict=True):
            sums += table.index_select(1, part)
        return sums.mul_(1 - (len(self.bits) + 8) * 2.0**-52)


@entry_point
@torch.no_grad()
def interval_train(x: Tensor, bits: float | Sequence[int]) -> IntervalCodec:
    """Intervals of each dimension that suit vectors: those of k-means in one dimension.

    Args:
        x: (N, d), finite; a sample will do.
        bits: a sequence of d, the bits of each dimension, 0 to 16. Or one number, how many a dimension has on average
            (not each): bits are then given out one by one to the dimension whose intervals are the widest, so that
            dimensions that vary more have more.

    Raises:
        ValueError: no rows, NaN or infinity, bits outside 0..16, a sequence of another length.

    Example:
        >>> import torch, vecbank
        >>> x = torch.tensor([[0.0], [0.1], [4.0], [4.1]])
        >>> codec = vecbank.codes.interval_train(x, [1])
        >>> codec.encode(x).flatten().tolist(), codec.decode(torch.tensor([[1]])).item()
        ([0, 0, 1, 1], 4.050000190734863)
    """
    _checks.floating("x", x)
    if x.dim() != 2 or 0 in x.shape:
        raise ValueError(f"x must be (N, d) with N and d above 0, got {tuple(x.shape)}")
    wide = x.detach().double()
    if not bool(wide.isfinite().all()):
        raise ValueError("x must be finite")
    widths = _allocated(wide, bits)
    most = 1 << max(widths)
    edges = torch.full((len(widths), most - 1), torch.inf, dtype=torch.float64, device=x.device)
    centres = torch.zeros(len(widths), most, dtype=torch.float64, device=x.device)
    for j, width in enumerate(widths):
        own_edges, own_centres = _intervals(wide[:, j], 1 << width)
        edges[j, : len(own_edges)] = own_edges
        centres[j, : len(own_centres)] = own_centres
    return IntervalCodec(edges, centres, tuple(widths))


def _allocated(x: Tensor, bits: float | Sequence[int]) -> list[int]:
    d = x.shape[1]
    if isinstance(bits, Sequence) or getattr(bits, "ndim", 0) == 1:
        widths = [_checks.integer("bits", width) for width in bits]  # type: ignore[union-attr]
        if len(widths) != d:
            raise ValueError(f"bits must be a number or one for each of the {d} dimensions, got {len(widths)}")
        if not all(0 <= width <= _MOST_BITS for width in widths):
            raise ValueError(f"bits must lie between 0 and {_MOST_BITS}, got {widths}")
        return widths
    _checks.number("bits", bits)
    if not 0 <= float(bits) <= _MOST_BITS:
        raise ValueError(f"bits must lie between 0 and {_MOST_BITS}, got {bits}")
    widths, spread = [0] * d, x.std(0, correction=0)
    for _ in range(round(float(bits) * d)):
        open_ = torch.tensor([width < _MOST_BITS for width in widths], device=x.device)
        j = int(torch.where(open_, spread, -1.0).argmax())
        widths[j] += 1
        spread[j] /= 2  # one bit more halves the intervals
    return widths


def _intervals(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """count - 1 edges and count centres: Lloyd's algorithm from quantiles."""
    ordered = values.sort().values
    at = (torch.arange(count, device=values.device, dtype=torch.float64) + 0.5) / count * len(ordered)
    centres = ordered[at.long().clamp(max=len(ordered) - 1)]
    totals = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    edges = (centres[1:] + centres[:-1]) / 2
    for _ in range(_ROUNDS):
        inner = torch.searchsorted(ordered, edges)
        cuts = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])
        held = cuts.diff()
        centres = torch.where(held > 0, totals[cuts].diff() / held.clamp_min(1), centres)
        edges = (centres[1:] + centres[:-1]) / 2
    return edges, centres
