"""A code for every coordinate by itself: values of a table, multiples of a step, a finite grid."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._numpy import entry_point
from ..functional import lookup
from ..results import Quantized
from ._packing import MOST_BITS
from ._straight_through import straight_through


def _tables(tables: Tensor, width: int) -> Tensor:
    _checks.floating("tables", tables)
    if tables.dim() != 2 or tables.shape[0] != width or tables.shape[1] == 0:
        raise ValueError(f"tables must have shape (d, V) with d = {width} and V > 0, got {tuple(tables.shape)}")
    return tables


@entry_point
def scalar_quantize(z: Tensor, tables: Tensor) -> Quantized:
    """Each coordinate replaced by the nearest value of its own table: `argmin_v |z_j - tables[j, v]|`.

    Args:
        z: (..., d).
        tables: (d, V), learned through `scalar_lookup`.

    Returns:
        Quantized(quantized, codes): values (..., d) in z's dtype, codes (..., d) int64. Ties go to the lower code; NaN
        has the value NaN and the code -1.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> tables = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 10.0, 20.0]])
        >>> vecbank.codes.scalar_quantize(torch.tensor([[0.4, 17.0]]), tables).codes.tolist()
        [[1, 2]]
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
    """The values of scalar codes: `tables[j, codes[..., j]]`.

    Args:
        codes: (..., d) integers; -1 gives 0.
        tables: (d, V).

    Returns:
        (..., d) in the tables' dtype. Differentiable in the tables (a deterministic scatter-add).

    Raises:
        IndexError: a code of V or more.
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> tables = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 10.0, 20.0]])
        >>> vecbank.codes.scalar_lookup(torch.tensor([[1, 2], [-1, 0]]), tables).tolist()
        [[0.0, 20.0], [0.0, 0.0]]
    """
    codes = _checks.integers(codes)
    if codes.dim() == 0:
        raise ValueError("codes must have shape (..., d), got a scalar")
    d, count = _tables(tables, codes.shape[-1]).shape
    rows = _checks.stacked_rows(codes, count, d, torch.arange(d, device=codes.device))
    return lookup(rows, tables.reshape(-1, 1)).squeeze(-1)


@entry_point
def round_quantize(x: Tensor, step: float) -> Quantized:
    """Multiples of a step: `step * round(x / step)`.

    Args:
        x: (...).
        step: greater than 0.

    Returns:
        Quantized(quantized, codes): (...) in x's dtype, and the multiples as int64, which may be negative.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> quantized, codes = vecbank.codes.round_quantize(torch.tensor([0.6, -1.1]), 0.5)
        >>> quantized.tolist(), codes.tolist()
        ([0.5, -1.0], [1, -2])
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
    if math.prod(found) >= 1 << MOST_BITS:
        raise ValueError(f"levels must make fewer than 2^{MOST_BITS} codes, got {levels}")
    return found, math.prod(found)


def _mixed_radix(levels: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Levels, and the place value of each dimension in a code: the first dimension counts fastest."""
    count = torch.tensor(levels, device=device)
    return count, count.cumprod(0) // count


class _Constants(NamedTuple):
    """What `fsq_quantize` needs to know of its levels, (d,) each."""

    half: Tensor
    offset: Tensor
    shift: Tensor
    middle: Tensor
    place: Tensor  # value of each digit: int64, or in the dtype of the others where that counts all codes


def _fsq_constants(levels: list[int], dtype: torch.dtype, device: torch.device) -> _Constants:
    count, place = _mixed_radix(levels, device)
    half = (count - 1).to(dtype) * ((1 + 1e-3) / 2)
    offset = (1 - count % 2).to(dtype) / 2
    # A code is a whole number below three times the product of the levels: of many levels, a digit may be a few more.
    counts = math.prod(levels) < (1 << 51 if dtype == torch.float64 else 1 << 22)
    return _Constants(
        half, offset, torch.atanh(offset / half), (count // 2).to(dtype), place.to(dtype) if counts else place
    )


@functools.lru_cache(maxsize=64)
def _kept_constants(levels: tuple[int, ...], dtype: torch.dtype) -> _Constants:
    """Those of the CPU, which take longer to make than few vectors take."""
    with torch.inference_mode(False):
        return _fsq_constants(list(levels), dtype, torch.device("cpu"))


@entry_point
def fsq_quantize(z: Tensor, levels: Sequence[int]) -> Quantized:
    """Finite scalar quantisation: each coordinate squashed and rounded to one of `levels[j]` values in [-1, 1].

    With L levels, h = (L - 1) * (1 + 1e-3) / 2 and o = 1/2 for even L (0 for odd):
    `round(h * tanh(z + atanh(o / h)) - o) / (L // 2)`. Only the rounding is straight-through.

    Args:
        z: (..., d). 16-bit z is squashed in float32, where the grid is exact, and only the result is rounded to its
            dtype.
        levels: d ints of at least 2.

    Returns:
        Quantized(quantized, codes): (..., d) in z's dtype, and codes (...) int64 below the product of the levels, in
        mixed radix, the first dimension fastest; a vector with NaN has code -1.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> quantized, codes = vecbank.codes.fsq_quantize(torch.tensor([[0.0, 9.0]]), [3, 5])
        >>> quantized.tolist(), codes.tolist()
        ([[0.0, 1.0]], [13])

    Source: Mentzer et al. 2024.
    """
    _checks.floating("z", z)
    if z.dim() == 0:
        raise ValueError("z must have shape (..., d), got a scalar")
    found, total = _levels(levels, z.shape[-1])
    wide = z if z.dtype == torch.float64 else z.float()
    if not _checks.plain(wide):
        fixed = _fsq_constants(found, wide.dtype, z.device)
        bounded = torch.tanh(wide + fixed.shift) * fixed.half - fixed.offset
        grid = bounded.detach().round()
        values = straight_through(bounded, grid) / fixed.middle
    else:
        fixed = _kept_constants(tuple(found), wide.dtype)
        grid = (wide + fixed.shift).tanh_().mul_(fixed.half).sub_(fixed.offset).round_()
        values = grid / fixed.middle
    if fixed.place.is_floating_point():
        codes = (grid + fixed.middle).mul_(fixed.place).sum(-1).nan_to_num(nan=-1.0).long()
    else:
        lost = grid.isnan()
        codes = (torch.where(lost, 0, grid + fixed.middle).long() * fixed.place).sum(-1).masked_fill(lost.any(-1), -1)
    return Quantized(values.to(z.dtype), codes)


@entry_point
def fsq_lookup(codes: Tensor, levels: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The grid points of codes of `fsq_quantize`.

    Args:
        codes: (...) integers; -1 gives zeros.
        levels: the same as were given to `fsq_quantize`.
        dtype: dtype of the result.

    Returns:
        (..., d).

    Raises:
        IndexError: a code of the product of the levels or more.
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> vecbank.codes.fsq_lookup(torch.tensor([13, 0]), [3, 5]).tolist()
        [[0.0, 1.0], [-1.0, -1.0]]
    """
    _checks.float_dtype("dtype", dtype)
    found, total = _levels(levels, None)
    codes = _checks.rows(codes, total)
    count, place = _mixed_radix(found, codes.device)
    middle = count // 2
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    points = ((codes.unsqueeze(-1) // place) % count - middle).to(wide) / middle.to(wide)
    return _checks.only_rows(points, codes, total).to(dtype)
