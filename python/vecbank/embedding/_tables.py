"""Rows that are made of rows of smaller tables: hashed, two tables, low rank, product codes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, pq
from .._numpy import entry_point
from .._pq_parts import check_codebooks, check_width
from ..codes import unpack_bits
from ..functional import lookup, project
from ._store import check_packed

COMBINE = ("mul", "add", "concat")
_I64 = 1 << 64


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that has it."""
    value %= _I64
    return value - _I64 if value >= _I64 // 2 else value


_GOLDEN, _MIX_1, _MIX_2 = (_signed(v) for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shifted(x: Tensor, count: int) -> Tensor:
    """x >> count with zeros shifted in, as on unsigned numbers."""
    return (x >> count) & ((1 << (64 - count)) - 1)


@entry_point
def hash_rows(ids: Tensor, rows: int, probes: int = 1, *, feature: int | Tensor = 0, seed: int = 0) -> Tensor:
    """Row numbers below `rows` for each id, pseudo-random and repeatable.

    They come from the finaliser of the splitmix64 generator, on id, feature, probe and seed, and are the same on every
    machine.

    Args:
        ids: (...) integers; -1 gives -1.
        rows: the number of rows of the table.
        probes: the number of row numbers for each id.
        feature: which feature the id is a value of, an int or integers that broadcast with ids: features share the
            table and collide independently.
        seed: another seed gives other rows.

    Returns:
        (..., probes) int64.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> vecbank.embedding.hash_rows(torch.tensor([7, 8, -1]), 1000, 2).tolist()
        [[443, 394], [59, 454], [-1, -1]]
    """
    ids = _checks.integers(ids, "ids")
    rows, probes = _checks.at_least(1, "rows", rows), _checks.at_least(1, "probes", probes)
    seed = _checks.index("seed", seed)
    if isinstance(feature, Tensor):
        feature = _checks.integers(feature, "feature")
        try:
            torch.broadcast_shapes(feature.shape, ids.shape)
        except RuntimeError:
            raise ValueError(
                f"feature must broadcast with ids {tuple(ids.shape)}, got {tuple(feature.shape)}"
            ) from None
    else:
        feature = _checks.integer("feature", feature)
    salt = torch.as_tensor(feature, dtype=torch.int64, device=ids.device).unsqueeze(-1)
    stream = (salt * probes + torch.arange(probes, device=ids.device) + 1) * _GOLDEN
    start = _signed(seed * 0xD1B54A32D192ED03)
    x = ids.unsqueeze(-1) * _MIX_2 + stream + start
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    x = (x ^ _shifted(x, 31)) & ((1 << 63) - 1)
    return torch.where(ids.unsqueeze(-1) < 0, -1, x % rows)


@entry_point
def hashed_lookup(
    ids: Tensor,
    table: Tensor,
    probes: int = 1,
    *,
    feature: int | Tensor = 0,
    seed: int = 0,
    reduce: str = "concat",
) -> Tensor:
    """Hashed rows of one table that all features share: `concat_u table[h_u(id)]`.

    Args:
        ids: (...) integers; -1 gives zeros.
        table: (M, w).
        probes: the number of rows that are read for each id.
        feature, seed: as in `hash_rows`.
        reduce: "concat", "sum" or "mean" of the rows of an id.

    Returns:
        (..., probes * w) for "concat", else (..., w), in the table's dtype. Differentiable in the table.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> vecbank.embedding.hashed_lookup(torch.tensor([3, 10**12]), torch.randn(100, 8), probes=2).shape
        torch.Size([2, 16])
    """
    _checks.shaped("table", table, ("M", "w"))
    codes = hash_rows(ids, table.shape[0], probes, feature=feature, seed=seed)
    if reduce == "concat":
        return lookup(codes, table).flatten(-2)
    return lookup(codes, table, reduce=reduce)


@entry_point
def two_table_lookup(ids: Tensor, remainders: Tensor, quotients: Tensor, combine: str = "mul") -> Tensor:
    """Row `id mod R` of one table with row `id div R` of another: all ids below R * Q stay different.

    Args:
        ids: (...) integers; -1 gives zeros.
        remainders: (R, w).
        quotients: (Q, v).
        combine: "mul" or "add" (w = v), or "concat".

    Returns:
        (..., w), or (..., w + v) for "concat". Differentiable in both tables.

    Raises:
        IndexError: an id of R * Q or more.
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> low, high = torch.tensor([[1.0], [2.0]]), torch.tensor([[10.0], [20.0], [30.0]])
        >>> vecbank.embedding.two_table_lookup(torch.tensor([0, 1, 5]), low, high, "add").flatten().tolist()
        [11.0, 12.0, 32.0]
    """
    if combine not in COMBINE:
        raise ValueError(f"combine must be one of {', '.join(COMBINE)}, got {combine!r}")
    ids = _checks.integers(ids, "ids")
    _checks.shaped("remainders", remainders, ("R", "w"))
    _checks.shaped("quotients", quotients, ("Q", "v" if combine == "concat" else remainders.shape[1]))
    base = remainders.shape[0]
    seen = _checks.in_range(ids, base * quotients.shape[0], "ids")
    quotient = ids // base
    remainder = ids - quotient * base  # a division takes longer than all the rest
    if not seen:
        remainder, quotient = (torch.where(ids < 0, -1, rows) for rows in (remainder, quotient))
    low, high = lookup(remainder, remainders), lookup(quotient, quotients)
    if combine == "concat":
        return torch.cat([low, high], -1)
    if not (_checks.plain(low) and _checks.plain(high) and low.dtype == high.dtype):
        return low * high if combine == "mul" else low + high
    return low.mul_(high) if combine == "mul" else low.add_(high)  # in the memory of rows that nobody else has


@entry_point
def low_rank_lookup(ids: Tensor, factors: Tensor, basis: Tensor) -> Tensor:
    """Rows of a table of low rank: `factors[id] @ basis`.

    Args:
        ids: (...) integers; -1 gives zeros.
        factors: (V, r).
        basis: (r, d).

    Returns:
        (..., d). Differentiable in both.

    Raises:
        IndexError: an id of V or more.
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> factors, basis = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 3.0]])
        >>> vecbank.embedding.low_rank_lookup(torch.tensor([1, -1]), factors, basis).tolist()
        [[2.0, 6.0], [0.0, 0.0]]
    """
    _checks.shaped("factors", factors, ("V", "r"))
    _checks.shaped("basis", basis, (factors.shape[1], "d"))
    rows = lookup(_checks.rows(ids, factors.shape[0], "ids"), factors)
    _checks.pair(rows, basis.T, "basis", "factors")
    return project(rows, basis.T, "dot")


@entry_point(books="codebooks")
def coded_lookup(ids: Tensor, packed: Tensor, codebooks: Tensor, bits: int, dim: int | None = None) -> Tensor:
    """Rows from product codes: `concat_i codebooks[i][code_i(id)]`.

    Args:
        ids: (...) integers; -1 gives zeros.
        packed: (V, bytes) uint8, from `vecbank.codes.pack_bits` or `ProductCodec.encode(..., packed=True)`.
        codebooks: (m, K, w).
        bits: the number of bits of one code.
        dim: width of a row, m * w by default.

    Returns:
        (..., dim) in the codebooks' dtype. Differentiable in the codebooks.

    Raises:
        IndexError: an id of V or more.
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> codec = vecbank.pq.train(torch.randn(200, 8), parts=4, bits=4)
        >>> packed = codec.encode(torch.randn(50, 8), packed=True)
        >>> vecbank.embedding.coded_lookup(torch.tensor([3, 49]), packed, codec.codebooks, bits=4).shape
        torch.Size([2, 8])
    """
    check_packed("packed", packed)
    _, _, w = check_codebooks(codebooks)
    dim = None if dim is None else check_width("dim", dim, codebooks.shape[0] * w)
    ids = _checks.rows(ids, packed.shape[0], "ids")
    codes = unpack_bits(packed[ids.clamp_min(0)], codebooks.shape[0], bits)
    return pq.decode(torch.where(ids.unsqueeze(-1) < 0, -1, codes), codebooks, width=dim)
