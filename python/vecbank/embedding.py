"""Compressed embedding tables: ``row(id)`` read from a store much smaller than one row per id.

Every function turns ids (..., ), of any integer dtype, into rows (..., d) and ends in `vecbank.lookup`, so gradients
are deterministic scatter-adds into the store and id -1 is a zero row (`segment_sum` and bags work as on any table).
What a store weighs is what its tensors weigh: `stored_bytes`.

Sources: shared hashed rows, Coleman et al., "Unified embedding: battle-tested feature representations for web-scale ML
systems", NeurIPS 2023; two tables, Shi et al., "Compositional embeddings using complementary partitions", KDD 2020;
integer rows with trained scale, Esser et al., "Learned step size quantization", ICLR 2020; product codes, Chen et al.,
"Differentiable product quantization for end-to-end embedding compression", ICML 2020; pruned rows, Lyu et al.,
"OptEmbed", CIKM 2022; rows of different widths, Cheng et al., "Differentiable neural input search for recommender
systems" (DNIS), 2020. The families are those of Zhang et al., "Experimental analysis of large-scale learnable vector
storage compression", VLDB 2023.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _checks
from ._numpy import entry_point
from .codes import pack_bits, straight_through, unpack_bits
from .functional import lookup, project
from .pq import check_books, check_width, pq_decode

COMBINE = ("mul", "add", "concat")
_I64 = 1 << 64


def stored_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the tensors (or numpy arrays) of a store, exactly."""
    total = 0
    for t in tensors:
        if t is not None and not isinstance(t, (Tensor, np.ndarray)):
            raise TypeError(f"tensors must hold tensors, numpy arrays or None, got {type(t).__name__}")
        total += 0 if t is None else t.nbytes
    return total


def _table(name: str, t: Tensor) -> None:
    """`t` is a table (V, d) with columns."""
    _checks.shaped(name, t, ("V", "d"))
    if t.shape[1] == 0:
        raise ValueError(f"{name} must have at least one column, got {tuple(t.shape)}")


def _bytes(name: str, t: Tensor) -> None:
    """`t` holds packed rows."""
    _checks.tensor(name, t)
    if t.dtype != torch.uint8 or t.dim() != 2:
        raise TypeError(f"{name} must be uint8 of shape (V, bytes), got {t.dtype} {tuple(t.shape)}")


def _store(rows: Any, kind: type[NamedTuple], floats: str) -> None:
    """`rows` is a store of this kind: tensors of integers, and one of floats, called so."""
    if not isinstance(rows, kind):
        raise TypeError(f"rows must be {kind.__name__}, got {type(rows).__name__}")
    for name, t in zip(kind._fields, rows, strict=True):
        if name == floats:
            _checks.floating(f"rows.{name}", t)
        else:
            _checks.integral(t, f"rows.{name}")


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
    """``probes`` row numbers below ``rows`` for each id, as good as drawn at random but always the same.

    The finaliser of the splitmix64 generator, on id, feature, probe and seed. The same on every machine.

    Args:
        ids: (...) integers; -1 gives -1.
        rows: rows of the table.
        probes: numbers per id.
        feature: which feature the id is a value of, an int or integers that broadcast with ids: features share the
            table and collide independently.

    Returns:
        (..., probes) int64.
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
    """``concat_u table[h_u(id)]``: several hashed rows of one table (M, w), shared by all features.

    Args:
        reduce: "concat" for (..., probes w), "sum" or "mean" for (..., w).
    """
    _checks.shaped("table", table, ("M", "w"))
    codes = hash_rows(ids, table.shape[0], probes, feature=feature, seed=seed)
    if reduce == "concat":
        return lookup(codes, table).flatten(-2)
    return lookup(codes, table, reduce=reduce)


@entry_point
def two_table_lookup(ids: Tensor, remainders: Tensor, quotients: Tensor, combine: str = "mul") -> Tensor:
    """Row ``id mod R`` of one table (R, w) with row ``id div R`` of another (Q, v): all ids below R Q stay different.

    Args:
        combine: "mul" or "add" (w = v), or "concat" for (..., w + v).

    Raises:
        IndexError: an id of R Q or more.
    """
    if combine not in COMBINE:
        raise ValueError(f"combine must be one of {', '.join(COMBINE)}, got {combine!r}")
    ids = _checks.integers(ids, "ids")
    _checks.shaped("remainders", remainders, ("R", "w"))
    _checks.shaped("quotients", quotients, ("Q", "v" if combine == "concat" else remainders.shape[1]))
    base = remainders.shape[0]
    _checks.in_range(ids, base * quotients.shape[0], "ids")
    low = lookup(torch.where(ids < 0, -1, ids % base), remainders)
    high = lookup(torch.where(ids < 0, -1, ids // base), quotients)
    if combine == "concat":
        return torch.cat([low, high], -1)
    return low * high if combine == "mul" else low + high


@entry_point
def low_rank_lookup(ids: Tensor, factors: Tensor, basis: Tensor) -> Tensor:
    """``factors[id] basis`` with factors (V, r) and basis (r, d)."""
    _checks.shaped("factors", factors, ("V", "r"))
    _checks.shaped("basis", basis, (factors.shape[1], "d"))
    rows = lookup(_checks.rows(ids, factors.shape[0], "ids"), factors)
    _checks.pair(rows, basis.T, "basis", "factors")
    return project(rows, basis.T, "dot")


# ---- Integer rows -------------------------------------------------------------------------------------------------


class IntegerRows(NamedTuple):
    """Rows as integers: ``scale[id] (code - 2^(bits - 1))``."""

    packed: Tensor  # (V, ceil(d bits / 8)) uint8
    scale: Tensor  # (V,) float


def _check_bits(bits: int) -> int:
    bits = _checks.integer("bits", bits)
    if not 2 <= bits <= 16:
        raise ValueError(f"bits must be an int between 2 and 16, got {bits}")
    return 1 << (bits - 1)


@entry_point
def row_scale(table: Tensor, bits: int, *, steps: int = 8) -> Tensor:
    """(V,) scale of each row with (nearly) the least squared error: from the largest value, then alternating.

    Codes for a scale are rounded quotients; the best scale for codes q is ``x.q / q.q``.
    """
    half, steps = _check_bits(bits), _checks.at_least(0, "steps", steps)
    _table("table", table)
    scale = table.detach().abs().amax(-1).clamp_min(1e-12) / (half - 1)
    best, least = scale, torch.full_like(scale, torch.inf)
    for _ in range(steps + 1):
        q = (table / scale.unsqueeze(-1)).round().clamp(-half, half - 1)
        wrong = (table - q * scale.unsqueeze(-1)).square().sum(-1)
        best, least = torch.where(wrong < least, scale, best), torch.minimum(wrong, least)
        scale = ((table * q).sum(-1) / q.square().sum(-1).clamp_min(1e-12)).clamp_min(1e-12)
    return best


@entry_point
def quantize_rows(table: Tensor, bits: int, scale: Tensor | None = None) -> IntegerRows:
    """A table (V, d) as packed integers of ``bits`` (2 to 16) and one scale per row, (V,) (`row_scale`'s by default).

    A trained scale may be negative: it stands for the same values, with the signs of the integers turned.
    """
    _table("table", table)
    half, bits = _check_bits(bits), _checks.integer("bits", bits)
    if scale is None:
        scale = row_scale(table, bits)
    _checks.shaped("scale", scale, (table.shape[0],))
    step = torch.where(scale == 0, 1, scale).detach().unsqueeze(-1)
    q = (table.detach() / step).round().clamp(-half, half - 1)
    return IntegerRows(pack_bits(q.long() + half, bits), scale.detach().clone())


@entry_point
def integer_lookup(ids: Tensor, rows: IntegerRows, dim: int, bits: int) -> Tensor:
    """``scale[id] q[id]`` (..., dim): only the rows asked for are unpacked. Differentiable in the scale."""
    _store(rows, IntegerRows, "scale")
    _bytes("rows.packed", rows.packed)
    _checks.shaped("rows.scale", rows.scale, (rows.packed.shape[0],))
    ids = _checks.rows(ids, rows.packed.shape[0], "ids")
    half = _check_bits(bits)
    q = unpack_bits(rows.packed[ids.clamp_min(0)], dim, bits) - half
    scale = lookup(ids, rows.scale.unsqueeze(1))  # 0 for id -1
    return q.to(scale.dtype) * scale


@entry_point
def fake_integer_lookup(ids: Tensor, table: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The value of `integer_lookup` from a table (V, d) that still trains, and a scale (V,) that trains with it.

    Gradients: straight through to the table where it is in range; to the scale, ``q - w / scale`` in range and the
    limit beyond it, over ``sqrt(d (2^(bits - 1) - 1))``, which gives scale and table steps of like size (learned step
    size quantisation).
    """
    half = _check_bits(bits)
    _table("table", table)
    _checks.shaped("scale", scale, (table.shape[0],))
    ids = _checks.rows(ids, table.shape[0], "ids")
    rows, step = lookup(ids, table), lookup(ids, scale.unsqueeze(1))
    step = step.detach() + (step - step.detach()) * (table.shape[1] * (half - 1)) ** -0.5
    ratio = torch.where(step == 0, 0, rows / torch.where(step == 0, 1, step)).clamp(-half, half - 1)
    return straight_through(ratio, ratio.detach().round()) * step


# ---- Coded, pruned and ragged rows --------------------------------------------------------------------------------


@entry_point
def coded_lookup(ids: Tensor, packed: Tensor, books: Tensor, bits: int, dim: int | None = None) -> Tensor:
    """Rows from product codes: ``concat_i books[i][code_i(id)]`` with packed codes (V, bytes) and books (m, K, w).

    Differentiable in the books.
    """
    _bytes("packed", packed)
    _, _, w = check_books(books)
    dim = None if dim is None else check_width("dim", dim, books.shape[0] * w)
    ids = _checks.rows(ids, packed.shape[0], "ids")
    codes = unpack_bits(packed[ids.clamp_min(0)], books.shape[0], bits)
    return pq_decode(torch.where(ids.unsqueeze(-1) < 0, -1, codes), books, width=dim)


class PrunedRows(NamedTuple):
    """A table without its pruned rows: ``table[remap[id]]``, and zeros where ``remap[id]`` is -1."""

    table: Tensor  # (kept, d)
    remap: Tensor  # (V,) int32


@entry_point
def prune_rows(table: Tensor, keep: Tensor) -> PrunedRows:
    """The rows of a table (V, d) where ``keep`` (V,) bool says so, and where they went."""
    _checks.shaped("table", table, ("V", "d"))
    _checks.boolean("keep", keep, "the row is kept")
    if keep.shape != table.shape[:1]:
        raise ValueError(f"keep must be bool ({table.shape[0]},), got {tuple(keep.shape)}")
    place = keep.cumsum(0) - 1
    return PrunedRows(table.detach()[keep].clone(), torch.where(keep, place, -1).to(torch.int32))


@entry_point
def pruned_lookup(ids: Tensor, rows: PrunedRows) -> Tensor:
    """Rows (..., d) by their old ids: zeros for pruned ones. Differentiable in the table."""
    _store(rows, PrunedRows, "table")
    ids = _checks.rows(ids, rows.remap.shape[0], "ids")
    moved = rows.remap[ids.clamp_min(0)].long()
    return lookup(torch.where(ids < 0, -1, moved), rows.table)


class RaggedRows(NamedTuple):
    """Rows of which each block of ids keeps its own columns, one after the other in one long vector."""

    values: Tensor  # (total,)
    start: Tensor  # (V,) int64: where a row begins
    block: Tensor  # (V,) int16 or int32
    columns: Tensor  # (blocks, d) int16 or int32: a column's place in the row, -1 where the block has cut it


@entry_point
def ragged_rows(table: Tensor, block: Tensor, keep: Tensor) -> RaggedRows:
    """A table (V, d) in which row v keeps the columns ``keep[block[v]]``.

    Args:
        block: (V,) int64 below B (a field, a frequency range).
        keep: (B, d) bool.
    """
    _checks.floating("table", table)
    _checks.boolean("keep", keep, "the block keeps the column")
    block = _checks.integers(block, "block")
    if block.shape != table.shape[:1] or keep.dim() != 2 or keep.shape[1] != table.shape[1]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (table, block, keep))
        raise ValueError(f"need table (V, d), block (V,) and keep (B, d), got {shapes}")
    _checks.in_range(block, keep.shape[0], "block", low=0)
    width = keep.sum(1)
    length = width[block]
    small = torch.int16 if max(keep.shape) < 1 << 15 else torch.int32
    columns = torch.where(keep, keep.cumsum(1) - 1, -1)
    return RaggedRows(table.detach()[keep[block]], length.cumsum(0) - length, block.to(small), columns.to(small))


@entry_point
def ragged_lookup(ids: Tensor, rows: RaggedRows) -> Tensor:
    """Rows (..., d), zeros in the columns that their block has cut. Differentiable in the values."""
    _store(rows, RaggedRows, "values")
    ids = _checks.rows(ids, rows.start.shape[0], "ids")
    at = ids.clamp_min(0)
    columns = rows.columns[rows.block[at].long()].long()
    missing = (columns < 0) | (ids < 0).unsqueeze(-1)
    place = torch.where(missing, -1, rows.start[at].unsqueeze(-1) + columns)
    return lookup(place, rows.values.unsqueeze(1)).squeeze(-1)
