"""Codes as strings of bits, and bits as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from .._numpy import entry_point

_BLOCK = 1 << 22  # bits expanded at a time
MOST_BITS = 63  # of one code: int64 without its sign


def _bits(bits: int | Sequence[int]) -> int | list[int]:
    """The same for all codes, or one for each."""
    if isinstance(bits, (list, tuple)) or getattr(bits, "ndim", 0) == 1:
        return [_checks.integer("bits", each) for each in bits]  # type: ignore[union-attr]
    return _checks.integer("bits", bits)


def _total(bits: int | list[int], count: int) -> int:
    """Bits of `count` codes together."""
    if not isinstance(bits, int) and len(bits) != count:
        raise ValueError(f"bits must be a number or one for each of the {count} codes, got {len(bits)}")
    if any(not 1 <= w <= MOST_BITS for w in ([bits] if isinstance(bits, int) else bits)):
        raise ValueError(f"bits must lie between 1 and {MOST_BITS}, got {bits}")
    return bits * count if isinstance(bits, int) else sum(bits)


def packed_bytes(count: int, bits: int | Sequence[int]) -> int:
    """The bytes of one row of codes, packed.

    Args:
        count: codes in a row.
        bits: 1 to 63, the same for all or one per code.

    Returns:
        ceil(sum of bits / 8), an int.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import vecbank
        >>> vecbank.codes.packed_bytes(5, 3)
        2
    """
    return (_total(_bits(bits), _checks.at_least(0, "count", count)) + 7) // 8


def _widths(bits: int | list[int], count: int) -> list[int]:
    """Bits of each of `count` codes."""
    return [bits] * count if isinstance(bits, int) else bits


def _positions(widths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """For each bit of a row: which code it belongs to, and its place there."""
    width = torch.tensor(widths, device=device, dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(widths), device=device), width)
    return owner, torch.arange(len(owner), device=device) - (width.cumsum(0) - width)[owner]


@entry_point
def pack_bits(codes: Tensor, bits: int | Sequence[int] = 1) -> Tensor:
    """Codes as one string of bits per row: code j takes the next `bits` (or `bits[j]`), lowest bit first.

    Codes cross byte boundaries where they fall; nothing is rounded up but the row's last byte.

    Args:
        codes: (..., n) integers, 0 <= code < 2^bits; or bool, for 1 bit.
        bits: 1 to 63, the same for all or one per code.

    Returns:
        (..., ceil(sum of bits / 8)) uint8.

    Raises:
        ValueError: a code that does not fit.
        TypeError: another dtype.

    Example:
        >>> import torch, vecbank
        >>> vecbank.codes.pack_bits(torch.tensor([[1, 2, 3], [7, 0, 1]]), 3).tolist()
        [[209, 0], [71, 0]]
    """
    if not isinstance(codes, Tensor) or codes.dtype != torch.bool:
        codes = _checks.integers(codes)
    if codes.dim() == 0:
        raise ValueError("codes must have shape (..., n), got a scalar")
    n, bits = codes.shape[-1], _bits(bits)
    widths, total = _widths(bits, n), _total(bits, n)
    flat = codes.reshape(math.prod(codes.shape[:-1]), n)
    if codes.dtype != torch.bool and flat.numel():
        limit = torch.tensor([(1 << w) - 1 for w in widths], device=codes.device)
        if bool(((flat < 0) | (flat > limit)).any()):
            raise ValueError(
                f"codes must lie between 0 and 2^bits - 1 for bits = {bits}, "
                f"got values from {int(flat.min())} to {int(flat.max())}"
            )
    size = (total + 7) // 8
    out = torch.empty((flat.shape[0], size), dtype=torch.uint8, device=codes.device)
    plain = isinstance(bits, int) and 8 % bits == 0  # then no code crosses a byte
    unit = widths[0] if plain and n else 1
    per_byte = 8 // unit
    shift = torch.arange(per_byte, device=codes.device, dtype=torch.uint8) * unit
    owner, place = _positions(widths, codes.device)
    for start in range(0, flat.shape[0], max(1, _BLOCK // max(total, 1))):
        rows = slice(start, start + max(1, _BLOCK // max(total, 1)))
        part = flat[rows]
        if not plain:
            part = (part[:, owner].long() >> place) & 1
        part = torch.nn.functional.pad(part.to(torch.uint8), (0, size * per_byte - part.shape[1]))
        # the bits of a byte's codes do not overlap, so their sum is their union
        out[rows] = (part.view(len(part), size, per_byte) << shift).sum(-1, dtype=torch.uint8)
    return out.reshape(*codes.shape[:-1], size)


@entry_point
def unpack_bits(packed: Tensor, count: int, bits: int | Sequence[int] = 1) -> Tensor:
    """The codes that `pack_bits` packed.

    Args:
        packed: (..., bytes) uint8.
        count: codes in a row.
        bits: those of `pack_bits`.

    Returns:
        (..., count) int64.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> packed = vecbank.codes.pack_bits(torch.tensor([[1, 2, 3], [7, 0, 1]]), 3)
        >>> vecbank.codes.unpack_bits(packed, 3, 3).tolist()
        [[1, 2, 3], [7, 0, 1]]
    """
    _checks.tensor("packed", packed)
    bits, count = _bits(bits), _checks.at_least(0, "count", count)
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must be uint8, got {packed.dtype}")
    total = _total(bits, count)
    size = (total + 7) // 8
    if packed.dim() == 0 or packed.shape[-1] != size:
        raise ValueError(
            f"packed must have shape (..., {size}) for {count} codes of {bits} bits, got {tuple(packed.shape)}"
        )
    flat = packed.reshape(math.prod(packed.shape[:-1]), size)
    out = torch.zeros((flat.shape[0], count), dtype=torch.int64, device=packed.device)
    shift = torch.arange(8, device=packed.device, dtype=torch.uint8)
    owner, place = _positions(_widths(bits, count), packed.device)
    step = max(1, _BLOCK // max(total, 1))
    for start in range(0, flat.shape[0], step):
        part = flat[start : start + step]
        if isinstance(bits, int) and 8 % bits == 0:
            codes = (part.unsqueeze(-1) >> shift[::bits]) & ((1 << bits) - 1)
            out[start : start + step] = codes.view(len(part), -1)[:, :count]
        else:
            single = ((part.unsqueeze(-1) >> shift) & 1).view(len(part), -1)[:, :total].long() << place
            out[start : start + step].index_add_(1, owner, single)
    return out.reshape(*packed.shape[:-1], count)


def check_bits(bits: Tensor) -> None:
    """`bits` are bool, or integers 0 and 1."""
    if not isinstance(bits, Tensor) or bits.dtype is not torch.bool:
        _checks.in_range(_checks.integers(bits, "bits"), 2, "bits", 0, ValueError)


@entry_point
def bits_to_index(bits: Tensor) -> Tensor:
    """Bits as one number: `sum_j bits[..., j] 2^j`.

    Args:
        bits: (..., n) bool, or integers 0 and 1; n at most 63.

    Returns:
        (...) int64.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> vecbank.codes.bits_to_index(torch.tensor([[True, False, True], [False, True, False]])).tolist()
        [5, 2]
    """
    check_bits(bits)
    if bits.dim() == 0:
        raise ValueError("bits must have shape (..., n), got a scalar")
    if bits.shape[-1] > MOST_BITS:
        raise ValueError(f"bits must have at most {MOST_BITS} in the last dimension, got {bits.shape[-1]}")
    return (bits.long() << torch.arange(bits.shape[-1], device=bits.device)).sum(-1)


@entry_point
def index_to_bits(index: Tensor, count: int) -> Tensor:
    """The bits of numbers, lowest first: the inverse of `bits_to_index`.

    Args:
        index: (...) integers below 2^count.
        count: 1 to 63.

    Returns:
        (..., count) bool.

    Raises:
        IndexError: a number of 2^count or more, or below 0.
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> vecbank.codes.index_to_bits(torch.tensor([5, 2]), 3).int().tolist()
        [[1, 0, 1], [0, 1, 0]]
    """
    index, count = _checks.integers(index, "index"), _checks.integer("count", count)
    if not 1 <= count <= MOST_BITS:
        raise ValueError(f"count must lie between 1 and {MOST_BITS}, got {count}")
    _checks.in_range(index, 1 << count, "index", low=0)
    return ((index.unsqueeze(-1) >> torch.arange(count, device=index.device)) & 1).bool()
