"""Exact search of packed bits: by Hamming distance, by its weighted form on bit planes, and of floats among codes.

Rows are strings of bits in uint8, lowest bit of byte 0 first, as `vecbank.codes.pack_signs` and `pack_bits` write them.
The distance of two rows is the number of their bits that differ. Rows of several planes (`pack_signs(planes=...)`), of
which plane u weighs 2^-u, have the distance

    S = sum over planes u of x and v of the bank of 2^((P - 1 - u) + (Q - 1 - v)) hamming(x_u, b_v),

a whole number, of which `plane_dot` makes the dot product of the values that the codes stand for. Distances are int32,
ties go to the lower index, and the answer is the same on every processor.

Sources: Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002; Gan et al., "Binary
embedding-based retrieval at Tencent" (BEBR), KDD 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _bits_blocks as blocks
from . import _bits_floats as floats
from . import _checks
from ._bits_bank import PackedRows, resolve, whole_radii
from ._bits_blocks import Bits
from ._numpy import entry_point
from ._ops import ops
from ._ops.bits import NO_DISTANCE, largest_distance
from ._select import kernels
from .allowed import Allowed
from .results import Nearest, RadiusHits, TopK

__all__ = [
    "BitBank",
    "float_nearest",
    "float_scores",
    "float_topk",
    "nearest",
    "plane_dot",
    "radius",
    "radius_count",
    "score_pairs",
    "scores",
    "topk",
]


@entry_point
def topk(
    x: Tensor,
    bank: Tensor | PackedRows,
    k: int,
    *,
    bits: int | None = None,
    x_planes: int = 1,
    bank_planes: int = 1,
    allowed: Allowed | Tensor | None = None,
    pad: bool = False,
) -> TopK:
    """The k nearest rows of packed bits for every query, nearest first.

    Args:
        x: (..., x_planes * W) uint8.
        bank: (M, bank_planes * W) uint8, or a BitBank.
        k: 1 to M; any number from 1 with `pad`.
        bits: bits of a plane, of which W bytes hold 8 (W - 1) < bits <= 8 W. None (default): those of a BitBank, else
            8 W. The bits of a plane's last byte beyond them are ignored, whatever they are.
        x_planes, bank_planes: planes of a row, one after another, the one that weighs most first. (A BitBank knows its
            own.)
        allowed: which rows may be returned to whom: a `vecbank.Allowed`, or a bool tensor that broadcasts to (..., M).
        pad: a bank of fewer than k rows is no error: what it does not have is index -1.

    Returns:
        TopK(values, indices), both (..., k): int32 distances and int64 indices, ties to the lower index. Where there
        are fewer than k rows: index -1 and 2^31 - 1.

    Raises:
        TypeError: floats, or anything but uint8. ValueError: bits, planes and widths that do not fit each other, planes
        whose distances int32 does not hold, k outside 1..M (below 1 with `pad`), devices.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[0b1111], [0b0001], [0b0000], [0b0001]], dtype=torch.uint8)
        >>> values, indices = vecbank.bits.topk(torch.tensor([[0b0011]], dtype=torch.uint8), bank, k=3)
        >>> values.tolist(), indices.tolist()
        ([[1, 1, 2]], [[1, 3, 0]])
    """
    k = _checks.integer("k", k)
    b = resolve(x, bank, bits, x_planes, bank_planes, allowed)
    rows = b.words.shape[0]
    if k < 1 or (k > rows and not pad):
        raise ValueError(f"k must lie between 1 and the bank's M = {rows} (pad=True: fills up with -1), got k = {k}")
    return TopK(*_topk(b, k))


def _topk(b: Bits, k: int) -> tuple[Tensor, Tensor]:
    if kernels(b.x):
        found: tuple[Tensor, Tensor] = ops.hamming_topk(b.x, b.words, *b.sizes(), k, *b.sets())
        return found
    return blocks.topk(b, k)


@entry_point
def nearest(
    x: Tensor,
    bank: Tensor | PackedRows,
    *,
    bits: int | None = None,
    x_planes: int = 1,
    bank_planes: int = 1,
    allowed: Allowed | Tensor | None = None,
) -> Nearest:
    """The nearest row of packed bits for every query: `topk` with k = 1.

    Args: as of `topk`.

    Returns:
        Nearest(values, indices), both (...); 2^31 - 1 and index -1 where the bank has no rows, or none is allowed.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[0b1100], [0b0011]], dtype=torch.uint8)
        >>> vecbank.bits.nearest(torch.tensor([0b0111], dtype=torch.uint8), bank)
        Nearest(values=tensor(1, dtype=torch.int32), indices=tensor(1))
    """
    values, indices = _topk(resolve(x, bank, bits, x_planes, bank_planes, allowed), 1)
    return Nearest(values.squeeze(-1), indices.squeeze(-1))


@entry_point
def radius(
    x: Tensor,
    bank: Tensor | PackedRows,
    r: Tensor | float,
    *,
    bits: int | None = None,
    x_planes: int = 1,
    bank_planes: int = 1,
    allowed: Allowed | Tensor | None = None,
) -> RadiusHits:
    """All rows of packed bits at most r away from every query: near duplicates, collisions of hashes.

    Args:
        r: a number, or one for each query, (...); not negative (looked for on the CPU alone).
        x, bank, bits, x_planes, bank_planes, allowed: as of `topk`.

    Returns:
        RadiusHits(offsets, indices, values), as `vecbank.radius` returns them: the hits of query i are the elements
        offsets[i]:offsets[i + 1] of indices (int64) and values (int32), nearest first, ties by index.

    Raises:
        TypeError, ValueError: as of `topk`, and of r.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[0b1111], [0b0001], [0b0011]], dtype=torch.uint8)
        >>> offsets, indices, values = vecbank.bits.radius(torch.tensor([[0b0011]], dtype=torch.uint8), bank, 1)
        >>> offsets.tolist(), indices.tolist(), values.tolist()
        ([0, 2], [2, 1], [0, 1])
    """
    b = resolve(x, bank, bits, x_planes, bank_planes, allowed)
    radii = whole_radii(r, b.x)
    if kernels(b.x):
        return RadiusHits(*ops.hamming_radius(b.x, b.words, *b.sizes(), radii, *b.sets()))
    return RadiusHits(*blocks.radius(b, radii))


@entry_point
def radius_count(
    x: Tensor,
    bank: Tensor | PackedRows,
    r: Tensor | float,
    *,
    bits: int | None = None,
    x_planes: int = 1,
    bank_planes: int = 1,
    allowed: Allowed | Tensor | None = None,
) -> Tensor:
    """How many rows of packed bits are at most r away from every query.

    Args: as of `radius`.

    Returns:
        (...) int64.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[0b1111], [0b0001], [0b0011]], dtype=torch.uint8)
        >>> vecbank.bits.radius_count(torch.tensor([[0b0011]], dtype=torch.uint8), bank, 1).tolist()
        [2]
    """
    b = resolve(x, bank, bits, x_planes, bank_planes, allowed)
    radii = whole_radii(r, b.x)
    if kernels(b.x):
        counts: Tensor = ops.hamming_radius_count(b.x, b.words, *b.sizes(), radii, *b.sets())
    else:
        counts = blocks.radius_count(b, radii)
    return counts.reshape(x.shape[:-1])


@entry_point
def scores(
    x: Tensor,
    bank: Tensor | PackedRows,
    *,
    bits: int | None = None,
    x_planes: int = 1,
    bank_planes: int = 1,
) -> Tensor:
    """All distances of packed bits.

    Args: as of `topk`.

    Returns:
        (..., M) int32.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[0b1111], [0b0001]], dtype=torch.uint8)
        >>> vecbank.bits.scores(torch.tensor([[0b0011]], dtype=torch.uint8), bank).tolist()
        [[2, 1]]
    """
    b = resolve(x, bank, bits, x_planes, bank_planes, None)
    if kernels(b.x):
        found: Tensor = ops.hamming_scores(b.x, b.words, *b.sizes())
        return found
    return blocks.scores(b)


@entry_point
def score_pairs(
    x: Tensor,
    bank: Tensor | PackedRows,
    indices: Tensor,
    *,
    bits: int | None = None,
    x_planes: int = 1,
    bank_planes: int = 1,
) -> Tensor:
    """The distances of chosen pairs of packed bits.

    Args:
        indices: integers (..., k), bank rows for each query; -1 stands for none.
        x, bank, bits, x_planes, bank_planes: as of `topk`.

    Returns:
        (..., k) int32; 2^31 - 1 for -1.

    Raises:
        IndexError: an index outside -1..M-1. TypeError, ValueError: as of `topk`.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[0b1111], [0b0001]], dtype=torch.uint8)
        >>> x = torch.tensor([[0b0011]], dtype=torch.uint8)
        >>> vecbank.bits.score_pairs(x, bank, torch.tensor([[1, -1]])).tolist()
        [[1, 2147483647]]
    """
    b = resolve(x, bank, bits, x_planes, bank_planes, None)
    return blocks.pairs(b, _checks.listed(indices, x, b.words.shape[0]))


@entry_point
def plane_dot(
    distances: Tensor, bits: int, x_planes: int = 1, bank_planes: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The dot products of the values that codes stand for, of their distances: (T - 2 S) / 2^(P + Q - 2), where T is
    the largest distance, bits (2^P - 1) (2^Q - 1).

    Args:
        distances: (...) integers, as the functions here return them; those of missing ranks (2^31 - 1) become -inf.
        bits, x_planes, bank_planes: what they were computed with.
        dtype: of the result, which float64 holds exactly.

    Returns:
        (...).

    Example:
        >>> import torch, vecbank
        >>> vecbank.bits.plane_dot(torch.tensor([0, 1, 4]), bits=4).tolist()
        [4.0, 2.0, -4.0]
    """
    distances = _checks.integers(distances, "distances")
    bits = _checks.at_least(1, "bits", bits)
    x_planes = _checks.at_least(1, "x_planes", x_planes)
    bank_planes = _checks.at_least(1, "bank_planes", bank_planes)
    _checks.float_dtype("dtype", dtype)
    most = largest_distance(bits, x_planes, bank_planes)
    dots = (most - 2 * distances).double() * 0.5 ** (x_planes + bank_planes - 2)
    return torch.where(distances == NO_DISTANCE, -torch.inf, dots).to(dtype)


@entry_point
def float_topk(
    x: Tensor,
    bank: Tensor | PackedRows,
    k: int,
    *,
    bits: int | None = None,
    bank_planes: int = 1,
    scale: float | Tensor | None = None,
    allowed: Allowed | Tensor | None = None,
    pad: bool = False,
) -> TopK:
    """The k best rows of packed bits by the dot product of a float query with the values that the codes stand for:
    asymmetric search, which loses less than coding the query too.

    The answer is that of `vecbank.topk(x, values, k, "dot")`, by float64 scores, where `values` are
    `vecbank.codes.unpack_signs(words, bits, planes) * scale` in float32 (float64 for float64 x). They are decoded a
    block of rows at a time.

    Args:
        x: (..., bits) floats.
        bank: (M, bank_planes * W) uint8, or a BitBank.
        k: 1 to M; any number from 1 with `pad`.
        bits: None (default): the width of x.
        bank_planes: as of `topk`.
        scale: a number, or one for each of the `bits` values; None (default): 1.
        allowed, pad: as of `topk`.

    Returns:
        TopK(values, indices), both (..., k), as of `vecbank.topk` by "dot"; differentiable once in x.

    Raises:
        TypeError, ValueError: as of `topk`, and where x is not floats.

    Source: Gordo et al., "Asymmetric distances for binary embeddings", PAMI 2014.

    Example:
        >>> import torch, vecbank
        >>> words = vecbank.codes.pack_signs(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        >>> vecbank.bits.float_topk(torch.tensor([[0.5, 2.0]]), words, k=2).values.tolist()
        [[2.5, -1.5]]
    """
    k = _checks.integer("k", k)
    c = floats.resolve(x, bank, bits, bank_planes, scale)
    rows = c.words.shape[0]
    if k < 1 or (k > rows and not pad):
        raise ValueError(f"k must lie between 1 and the bank's M = {rows} (pad=True: fills up with -1), got k = {k}")
    return floats.topk(c, k, allowed)


@entry_point
def float_nearest(
    x: Tensor,
    bank: Tensor | PackedRows,
    *,
    bits: int | None = None,
    bank_planes: int = 1,
    scale: float | Tensor | None = None,
    allowed: Allowed | Tensor | None = None,
) -> Nearest:
    """The best row of packed bits for every float query: `float_topk` with k = 1.

    Args: as of `float_topk`.

    Returns:
        Nearest(values, indices), both (...); -inf and index -1 where there is no row.

    Example:
        >>> import torch, vecbank
        >>> words = vecbank.codes.pack_signs(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        >>> vecbank.bits.float_nearest(torch.tensor([0.5, 2.0]), words)
        Nearest(values=tensor(2.5000), indices=tensor(1))
    """
    values, indices = floats.topk(floats.resolve(x, bank, bits, bank_planes, scale), 1, allowed)
    return Nearest(values.squeeze(-1), indices.squeeze(-1))


@entry_point
def float_scores(
    x: Tensor,
    bank: Tensor | PackedRows,
    *,
    bits: int | None = None,
    bank_planes: int = 1,
    scale: float | Tensor | None = None,
) -> Tensor:
    """The dot products of float queries with the values of all codes: `vecbank.project` of what they stand for.

    Args: as of `float_topk`.

    Returns:
        (..., M) in x's dtype, to the accuracy of `vecbank.project`. Differentiable in x, for which the decoded values
        are kept.

    Example:
        >>> import torch, vecbank
        >>> words = vecbank.codes.pack_signs(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        >>> vecbank.bits.float_scores(torch.tensor([0.5, 2.0]), words).tolist()
        [-1.5, 2.5]
    """
    return floats.scores(floats.resolve(x, bank, bits, bank_planes, scale))


class BitBank(PackedRows):
    """Rows of packed bits that know how many bits and planes they have.

    The words are a buffer: they move with the module and are in its `state_dict`. Nothing is cached, so that they may
    be written to at any time.

    Args:
        words: (M, planes * W) uint8, a tensor or a numpy array, kept as it is.
        bits: bits of a plane, 8 (W - 1) < bits <= 8 W; None (default): 8 W.
        planes: planes of a row, one after another (`vecbank.codes.pack_signs`).

    Attributes:
        words, bits, planes: as given.

    Raises:
        TypeError: floats, or anything but uint8. ValueError: a shape that does not fit bits and planes.

    Example:
        >>> import torch, vecbank
        >>> bank = vecbank.bits.BitBank(vecbank.codes.pack_signs(torch.eye(3)), bits=3)
        >>> bank
        BitBank(3 rows of 3 bits)
        >>> bank.topk(vecbank.codes.pack_signs(torch.tensor([[1.0, 1.0, -1.0]])), k=2).indices.tolist()
        [[0, 1]]
    """

    def topk(
        self, x: Tensor, k: int, *, x_planes: int = 1, allowed: Allowed | Tensor | None = None, pad: bool = False
    ) -> TopK:
        """`vecbank.bits.topk` with this bank."""
        return topk(x, self, k, x_planes=x_planes, allowed=allowed, pad=pad)

    def nearest(self, x: Tensor, *, x_planes: int = 1, allowed: Allowed | Tensor | None = None) -> Nearest:
        """`vecbank.bits.nearest` with this bank."""
        return nearest(x, self, x_planes=x_planes, allowed=allowed)

    def radius(
        self, x: Tensor, r: Tensor | float, *, x_planes: int = 1, allowed: Allowed | Tensor | None = None
    ) -> RadiusHits:
        """`vecbank.bits.radius` with this bank."""
        return radius(x, self, r, x_planes=x_planes, allowed=allowed)

    def radius_count(
        self, x: Tensor, r: Tensor | float, *, x_planes: int = 1, allowed: Allowed | Tensor | None = None
    ) -> Tensor:
        """`vecbank.bits.radius_count` with this bank."""
        return radius_count(x, self, r, x_planes=x_planes, allowed=allowed)

    def scores(self, x: Tensor, *, x_planes: int = 1) -> Tensor:
        """`vecbank.bits.scores` with this bank."""
        return scores(x, self, x_planes=x_planes)

    def float_topk(
        self,
        x: Tensor,
        k: int,
        *,
        scale: float | Tensor | None = None,
        allowed: Allowed | Tensor | None = None,
        pad: bool = False,
    ) -> TopK:
        """`vecbank.bits.float_topk` with this bank."""
        return float_topk(x, self, k, scale=scale, allowed=allowed, pad=pad)

    def score_pairs(self, x: Tensor, indices: Tensor, *, x_planes: int = 1) -> Tensor:
        """`vecbank.bits.score_pairs` with this bank."""
        return score_pairs(x, self, indices, x_planes=x_planes)

    def plane_dot(self, distances: Tensor, *, x_planes: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        """`vecbank.bits.plane_dot` of distances from this bank."""
        return plane_dot(distances, self.bits, x_planes, self.planes, dtype)

    def float_nearest(
        self, x: Tensor, *, scale: float | Tensor | None = None, allowed: Allowed | Tensor | None = None
    ) -> Nearest:
        """`vecbank.bits.float_nearest` with this bank."""
        return float_nearest(x, self, bank_planes=self.planes, scale=scale, allowed=allowed)

    def float_scores(self, x: Tensor, *, scale: float | Tensor | None = None) -> Tensor:
        """`vecbank.bits.float_scores` with this bank."""
        return float_scores(x, self, bank_planes=self.planes, scale=scale)
