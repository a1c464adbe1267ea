"""Scalar and binary codes, where the codebook is implied and nothing is searched, and the packing of any
codes in bits.

Each ``*_quantize`` returns Quantized(quantized, codes); ``quantized`` is straight-through (its gradient
goes to the input unchanged) and the matching ``*_lookup`` turns codes back into values, with gradients to a
table if there is one.

Sources: tables per dimension, Hsu et al., "Disentanglement via latent quantization" (QLAE), NeurIPS 2023;
grids, Mentzer et al., "Finite scalar quantization: VQ-VAE made simple", ICLR 2024; signs, Yu et al.,
"Language model beats diffusion" (lookup-free quantisation), ICLR 2024; Bernoulli bits, Wang et al., "Binary
latent diffusion", CVPR 2023; halving planes, Gan et al., "Binary embedding-based retrieval at Tencent"
(BEBR), KDD 2023; straight-through, Bengio et al., 2013.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from . import _checks
from ._forward import Function
from ._numpy import entry_point
from .functional import lookup
from .results import Quantized

_BLOCK = 1 << 22  # bits expanded at a time
_MOST_BITS = 63  # of one code: int64 without its sign
_MOST_PLANES = 62  # whose sum, and twice it, int64 holds


class _StraightThrough(Function):
    operation = "straight_through"

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, None


@entry_point
def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """The value of ``quantized``, bit for bit, with the gradient passed to x as it is."""
    _checks.floating("x", x)
    _checks.tensor("quantized", quantized)
    if quantized.is_complex():
        raise TypeError(f"quantized must be real, got {quantized.dtype}")
    if x.shape != quantized.shape:
        raise ValueError(f"quantized must have x's shape {tuple(x.shape)}, got {tuple(quantized.shape)}")
    result: Tensor = _StraightThrough.apply(x, quantized.detach().to(x.dtype))
    return result


# ---- Packing -----------------------------------------------------------------------------------------------


def _bits(bits: int | Sequence[int]) -> int | list[int]:
    """The same for all codes, or one for each."""
    if isinstance(bits, (list, tuple)) or getattr(bits, "ndim", 0) == 1:
        return [_checks.integer("bits", each) for each in bits]  # type: ignore[union-attr]
    return _checks.integer("bits", bits)


def _total(bits: int | list[int], count: int) -> int:
    """Bits of `count` codes together."""
    if not isinstance(bits, int) and len(bits) != count:
        raise ValueError(f"bits must be a number or one for each of the {count} codes, got {len(bits)}")
    if any(not 1 <= w <= _MOST_BITS for w in ([bits] if isinstance(bits, int) else bits)):
        raise ValueError(f"bits must lie between 1 and {_MOST_BITS}, got {bits}")
    return bits * count if isinstance(bits, int) else sum(bits)


def packed_bytes(count: int, bits: int | Sequence[int]) -> int:
    """Bytes of one row of `count` codes, packed."""
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
    """Codes as one string of bits per row: code j takes the next ``bits`` (or ``bits[j]``), lowest bit first.

    Codes cross byte boundaries where they fall; nothing is rounded up but the row's last byte.

    Args:
        codes: (..., n) integers, 0 <= code < 2^bits; or bool, for 1 bit.
        bits: 1 to 63, the same for all or one per code.

    Returns:
        (..., ceil(sum of bits / 8)) uint8.

    Raises:
        ValueError: a code that does not fit. TypeError: another dtype.
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
            raise ValueError(f"codes must lie between 0 and 2^bits - 1 for bits = {bits}, and some do not")
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
    """The codes (..., count) int64 that `pack_bits` made into ``packed (..., bytes)`` uint8."""
    _checks.tensor("packed", packed)
    bits, count = _bits(bits), _checks.at_least(0, "count", count)
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must be uint8, got {packed.dtype}")
    total = _total(bits, count)
    size = (total + 7) // 8
    if packed.dim() == 0 or packed.shape[-1] != size:
        raise ValueError(
            f"packed must have shape (..., {size}) for {count} codes of these bits, got {tuple(packed.shape)}"
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


def _check_bits(bits: Tensor) -> None:
    """`bits` are bool, or integers 0 and 1."""
    if not isinstance(bits, Tensor) or bits.dtype is not torch.bool:
        _checks.in_range(_checks.integers(bits, "bits"), 2, "bits", 0, ValueError)


@entry_point
def bits_to_index(bits: Tensor) -> Tensor:
    """``sum_j bits[..., j] 2^j``: bits (..., n) as one number (...) int64, n at most 63."""
    _check_bits(bits)
    if bits.dim() == 0:
        raise ValueError("bits must have shape (..., n), got a scalar")
    if bits.shape[-1] > _MOST_BITS:
        raise ValueError(f"bits must have at most {_MOST_BITS} in the last dimension, got {bits.shape[-1]}")
    return (bits.long() << torch.arange(bits.shape[-1], device=bits.device)).sum(-1)


@entry_point
def index_to_bits(index: Tensor, count: int) -> Tensor:
    """The inverse of `bits_to_index`: (..., count) bool."""
    index, count = _checks.integers(index, "index"), _checks.integer("count", count)
    if not 1 <= count <= _MOST_BITS:
        raise ValueError(f"count must lie between 1 and {_MOST_BITS}, got {count}")
    _checks.in_range(index, 1 << count, "index", low=0)
    return ((index.unsqueeze(-1) >> torch.arange(count, device=index.device)) & 1).bool()


# ---- Scalars -----------------------------------------------------------------------------------------------


def _tables(tables: Tensor, width: int) -> Tensor:
    _checks.floating("tables", tables)
    if tables.dim() != 2 or tables.shape[0] != width or tables.shape[1] == 0:
        raise ValueError(f"tables must have shape (d, V) with d = {width} and V > 0, got {tuple(tables.shape)}")
    return tables


@entry_point
def scalar_quantize(z: Tensor, tables: Tensor) -> Quantized:
    """Each coordinate replaced by the nearest value of its own table: ``argmin_v |z_j - tables[j, v]|``.

    Args:
        z: (..., d).
        tables: (d, V), learned through `scalar_lookup`.

    Returns:
        Quantized: values (..., d) in z's dtype, and codes (..., d) int64; ties to the lower index, NaN to
            NaN and -1.
    """
    _checks.floating("z", z)
    if z.dim() == 0:
        raise ValueError("z must have shape (..., d), got a scalar")
    tables = _tables(tables, z.shape[-1]).detach()
    exact, values = z.detach().double(), tables.double()
    gap = torch.full_like(exact, torch.inf)
    codes = torch.full(z.shape, -1, dtype=torch.int64, device=z.device)
    chosen = torch.full_like(z, torch.nan)
    for v in range(tables.shape[1]):
        distance = (exact - values[:, v]).abs_()
        closer = distance < gap
        gap = torch.where(closer, distance, gap)
        codes.masked_fill_(closer, v)
        chosen = torch.where(closer, tables[:, v].to(z.dtype), chosen)
    return Quantized(straight_through(z, chosen), codes)


@entry_point
def scalar_lookup(codes: Tensor, tables: Tensor) -> Tensor:
    """``tables[j, codes[..., j]]``, (..., d): differentiable in tables (a deterministic scatter-add); -1
    gives 0.
    """
    codes = _checks.integers(codes)
    if codes.dim() == 0:
        raise ValueError("codes must have shape (..., d), got a scalar")
    d, count = _tables(tables, codes.shape[-1]).shape
    rows = _checks.stacked_rows(codes, count, d, torch.arange(d, device=codes.device))
    return lookup(rows, tables.reshape(-1, 1)).squeeze(-1)


@entry_point
def round_quantize(x: Tensor, step: float) -> Quantized:
    """Multiples of ``step``: ``step round(x / step)``, and the multiples themselves as codes (int64, may be
    negative).
    """
    _checks.floating("x", x)
    _checks.number("step", step)
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}")
    multiple = (x.detach() / step).round()
    return Quantized(straight_through(x, multiple * step), multiple.long())


def _levels(levels: Sequence[int], width: int | None) -> tuple[list[int], int]:
    """Checked levels, and how many codes they make."""
    if isinstance(levels, str) or not isinstance(levels, Iterable) or getattr(levels, "ndim", 1) != 1:
        raise TypeError(f"levels must be a sequence of ints, got {type(levels).__name__} {levels!r}")
    found = [_checks.integer("levels", v) for v in levels]
    if not found or min(found) < 2:
        raise ValueError(f"levels must be a list of ints of at least 2, got {levels}")
    if width is not None and len(found) != width:
        raise ValueError(f"levels must have one entry for each of the {width} dimensions of z, got {len(found)}")
    if math.prod(found) >= 1 << _MOST_BITS:
        raise ValueError(f"levels must make fewer than 2^{_MOST_BITS} codes, got {levels}")
    return found, math.prod(found)


def _mixed_radix(levels: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Levels, and the place value of each dimension in a code: the first dimension counts fastest."""
    count = torch.tensor(levels, device=device)
    return count, count.cumprod(0) // count


@entry_point
def fsq_quantize(z: Tensor, levels: Sequence[int]) -> Quantized:
    """Finite scalar quantisation: each coordinate squashed and rounded to one of ``levels[j]`` values in
    [-1, 1].

    With L levels, h = (L - 1)(1 + 1e-3) / 2 and o = 1/2 for even L (0 for odd):
    ``round(h tanh(z + atanh(o / h)) - o) / (L // 2)``. Only the rounding is straight-through.

    16-bit z is squashed in float32, where the grid is exact, and only the result is rounded to its dtype.

    Returns:
        Quantized: (..., d) and codes (...) int64 below the product of the levels, in mixed radix, the first
            dimension
        fastest; a vector with NaN has code -1.

    Source: Mentzer et al. 2024.
    """
    _checks.floating("z", z)
    if z.dim() == 0:
        raise ValueError("z must have shape (..., d), got a scalar")
    found, _ = _levels(levels, z.shape[-1])
    count, place = _mixed_radix(found, z.device)
    wide = z if z.dtype == torch.float64 else z.float()
    half = (count - 1).to(wide.dtype) * ((1 + 1e-3) / 2)
    offset = (1 - count % 2).to(wide.dtype) / 2
    bounded = torch.tanh(wide + torch.atanh(offset / half)) * half - offset
    grid = bounded.detach().round()
    middle = count // 2
    lost = grid.isnan()
    codes = (torch.where(lost, 0, grid + middle).long() * place).sum(-1).masked_fill(lost.any(-1), -1)
    return Quantized((straight_through(bounded, grid) / middle.to(wide.dtype)).to(z.dtype), codes)


@entry_point
def fsq_lookup(codes: Tensor, levels: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The grid points (..., d) of codes (...); -1 gives 0."""
    _checks.float_dtype("dtype", dtype)
    found, total = _levels(levels, None)
    codes = _checks.rows(codes, total)
    count, place = _mixed_radix(found, codes.device)
    middle = count // 2
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    points = ((codes.unsqueeze(-1) // place) % count - middle).to(wide) / middle.to(wide)
    return _checks.only_rows(points, codes, total).to(dtype)


# ---- Bits --------------------------------------------------------------------------------------------------


@entry_point
def sign_quantize(z: Tensor, scale: float | Tensor = 1.0) -> Quantized:
    """Lookup-free quantisation: ``scale`` where z > 0, else ``-scale``; codes are bits (..., d) bool.

    `bits_to_index` makes one number of a row of bits, `pack_bits` bytes.
    """
    _checks.floating("z", z)
    bits = z.detach() > 0
    return Quantized(straight_through(z, sign_lookup(bits, scale, z.dtype)), bits)


@entry_point
def sign_lookup(bits: Tensor, scale: float | Tensor = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """``+scale`` for a set bit, ``-scale`` for a clear one."""
    _check_bits(bits)
    _checks.float_dtype("dtype", dtype)
    _checks.scale(scale, bits.shape)
    return (bits.to(dtype) * 2 - 1) * scale


@entry_point
def bernoulli_quantize(probability: Tensor, generator: Generator | int | None = None) -> Quantized:
    """Bits drawn with the given probabilities (sigmoid(h), say), as 0 and 1; codes are the bits (..., d)
    bool.

    The gradient goes to the probability as it is. Draws are made where the generator lives (the CPU without
    one).
    """
    _checks.floating("probability", probability)
    generator = _checks.generator(generator)
    source = generator.device if generator is not None else torch.device("cpu")
    draw = torch.rand(probability.shape, generator=generator, device=source, dtype=torch.float32)
    bits = draw.to(probability.device) < probability.detach()
    return Quantized(straight_through(probability, bits.to(probability.dtype)), bits)


def _check_planes(name: str, planes: int) -> None:
    if not 1 <= planes <= _MOST_PLANES:
        raise ValueError(f"{name} must lie between 1 and {_MOST_PLANES}, got {planes}")


@entry_point
def residual_binary_quantize(x: Tensor, planes: int, scale: float | Tensor = 1.0) -> Quantized:
    """Signs of x, then of what is left, with halving weights: ``scale (b_0 + b_1 / 2 + b_2 / 4 + ...)``, b
    = +-1.

    Args:
        x: (..., d).
        planes: 1 to 62; reach is +-2 scale, and each plane halves the error within it.
        scale: a number, or a tensor that broadcasts to x (one per dimension, say). The mean of |x| is a
            good first.

    Returns:
        Quantized: (..., d), and the bit planes (..., planes, d) bool, most significant first.
    """
    _checks.floating("x", x)
    if x.dim() == 0:
        raise ValueError("x must have shape (..., d), got a scalar")
    _check_planes("planes", planes := _checks.integer("planes", planes))
    rest, bits = x.detach(), []
    for u in range(planes):
        bits.append(rest > 0)
        rest = rest - sign_lookup(bits[-1], scale, x.dtype) * 0.5**u
    stacked = torch.stack(bits, -2)
    return Quantized(straight_through(x, residual_binary_lookup(stacked, scale, x.dtype)), stacked)


@entry_point
def residual_binary_lookup(bits: Tensor, scale: float | Tensor = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values (..., d) of bit planes (..., planes, d), 1 to 62 of them: an exact integer times a power of two,
    times scale.
    """
    _check_bits(bits)
    if bits.dim() < 2:
        raise ValueError(f"bits must have shape (..., planes, d), got {tuple(bits.shape)}")
    planes = bits.shape[-2]
    _check_planes("the planes of bits", planes)
    _checks.float_dtype("dtype", dtype)
    _checks.scale(scale, bits.shape[:-2] + bits.shape[-1:])
    weight = 2 ** torch.arange(planes - 1, -1, -1, device=bits.device).unsqueeze(1)
    whole = ((bits.long() * 2 - 1) * weight).sum(-2)
    return whole.to(dtype) * 0.5 ** (planes - 1) * scale
