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
_AS_THEY_ARE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # dtypes torch computes in
_WORDS = {
    1: torch.int64,
    2: torch.int32,
    4: torch.int16,
    8: torch.uint8,
}  # as many bytes as codes of so many bits fit in 1


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
        count: the number of codes in a row.
        bits: the number of bits of one code, 1 to 63: one number for all codes, or one for each of them.

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


def _check_fit(codes: Tensor, bits: int | list[int]) -> None:
    """Codes (rows, n), of which there are some, lie below 2^bits."""
    least, most = (int(v) for v in torch.aminmax(codes))
    fits = least >= 0
    if isinstance(bits, int):
        fits = fits and most < 1 << bits
    else:
        limit = torch.tensor([(1 << w) - 1 for w in bits], device=codes.device)
        fits = fits and not bool((codes > limit).any())
    if not fits:
        raise ValueError(
            f"codes must lie between 0 and 2^bits - 1 for bits = {bits}, got values from {least} to {most}"
        )


def _whole_bytes(codes: Tensor, bits: int, size: int) -> Tensor:
    """Codes (rows, n) of 1, 2, 4 or 8 bits, none of which crosses a byte, as (rows, size) bytes."""
    count = 8 // bits
    # The codes of a byte are the bytes of one word, code j at bit 8 j. Of the word times the sum of the powers
    # 2^(8 (count - 1) - (8 - bits) i), the terms j = i are the packed byte, in the highest byte. No other term reaches
    # into that byte, and no two terms share a bit, so nothing is carried.
    word, factor = _WORDS[bits], sum(1 << (8 * (count - 1) - (8 - bits) * i) for i in range(count))
    out = torch.empty((codes.shape[0], size), dtype=torch.uint8, device=codes.device)
    step = max(1, _BLOCK // max(size * count, 1))
    for start in range(0, codes.shape[0] if size else 0, step):
        part = codes[start : start + step].to(torch.uint8)
        if part.shape[1] != size * count:
            part = torch.nn.functional.pad(part, (0, size * count - part.shape[1]))
        if not part.is_contiguous() or part.storage_offset() % count:
            part = part.clone(memory_format=torch.contiguous_format)  # whole words
        product = part.view(-1).view(word) * factor
        out[start : start + step] = product.view(torch.uint8)[count - 1 :: count].view(len(part), size)
    return out


@entry_point
def pack_bits(codes: Tensor, bits: int | Sequence[int] = 1) -> Tensor:
    """Codes as one string of bits per row: code j takes the next `bits` (or `bits[j]`), lowest bit first.

    Codes cross byte boundaries where they fall; nothing is rounded up but the row's last byte.

    Args:
        codes: (..., n) integers, 0 <= code < 2^bits; or bool, for 1 bit.
        bits: the number of bits of one code, 1 to 63: one number for all codes, or one for each of them.

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
    if not isinstance(codes, Tensor) or codes.dtype not in _AS_THEY_ARE:
        codes = _checks.integers(codes)
    if codes.dim() == 0:
        raise ValueError("codes must have shape (..., n), got a scalar")
    n, bits = codes.shape[-1], _bits(bits)
    widths, total = _widths(bits, n), _total(bits, n)
    flat = codes.reshape(math.prod(codes.shape[:-1]), n)
    if codes.dtype != torch.bool and flat.numel():
        _check_fit(flat, bits)
    size = (total + 7) // 8
    if isinstance(bits, int) and bits in _WORDS:
        return _whole_bytes(flat, bits, size).reshape(*codes.shape[:-1], size)
    out = torch.empty((flat.shape[0], size), dtype=torch.uint8, device=codes.device)
    owner, place = _positions(widths, codes.device)
    for start in range(0, flat.shape[0], max(1, _BLOCK // max(total, 1))):
        rows = slice(start, start + max(1, _BLOCK // max(total, 1)))
        out[rows] = _whole_bytes((flat[rows][:, owner].long() >> place) & 1, 1, size)
    return out.reshape(*codes.shape[:-1], size)


@entry_point
def unpack_bits(packed: Tensor, count: int, bits: int | Sequence[int] = 1) -> Tensor:
    """The codes that `pack_bits` packed.

    Args:
        packed: (..., bytes) uint8.
        count: the number of codes in a row.
        bits: the same as was given to `pack_bits`.

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
    """Bits as one number: `sum_j bits[..., j] * 2^j`.

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
        count: the number of bits, 1 to 63.

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
