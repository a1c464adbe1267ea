"""Tables without some of their rows (pruned), or without some columns of a block of rows (ragged)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._numpy import entry_point
from ..functional import lookup
from ._store import check_store


class PrunedRows(NamedTuple):
    """A table without its pruned rows, `table[remap[id]]`, and zeros where `remap[id]` is -1: `prune_rows` makes it.

    Example:
        >>> import torch, vecbank
        >>> vecbank.embedding.prune_rows(torch.ones(3, 2), torch.tensor([True, False, True])).remap.tolist()
        [0, -1, 1]
    """

    table: Tensor  # (kept, d)
    remap: Tensor  # (V,) int32


@entry_point
def prune_rows(table: Tensor, keep: Tensor) -> PrunedRows:
    """The rows of a table that are kept, and where they went.

    Args:
        table: (V, d).
        keep: (V,) bool.

    Returns:
        PrunedRows(table, remap): table (kept, d), remap (V,) int32.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> rows = vecbank.embedding.prune_rows(torch.ones(3, 2), torch.tensor([True, False, True]))
        >>> rows.table.shape, rows.remap.tolist()
        (torch.Size([2, 2]), [0, -1, 1])
    """
    _checks.shaped("table", table, ("V", "d"))
    _checks.boolean("keep", keep, "the row is kept")
    if keep.shape != table.shape[:1]:
        raise ValueError(f"keep must be bool ({table.shape[0]},), got {tuple(keep.shape)}")
    place = keep.cumsum(0) - 1
    return PrunedRows(table.detach()[keep].clone(), torch.where(keep, place, -1).to(torch.int32))


@entry_point
def pruned_lookup(ids: Tensor, rows: PrunedRows) -> Tensor:
    """Rows of a pruned table by their old ids: zeros for pruned ones.

    Args:
        ids: (...) integers; -1 gives zeros.
        rows: PrunedRows, as `prune_rows` returns them.

    Returns:
        (..., d). Differentiable in the table.

    Raises:
        IndexError: an id of V or more.
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> rows = vecbank.embedding.prune_rows(torch.ones(3, 2), torch.tensor([True, False, True]))
        >>> vecbank.embedding.pruned_lookup(torch.tensor([1, 2]), rows).tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """
    check_store(rows, PrunedRows, "table")
    ids = _checks.rows(ids, rows.remap.shape[0], "ids")
    moved = rows.remap[ids.clamp_min(0)].long()
    return lookup(torch.where(ids < 0, -1, moved), rows.table)


class RaggedRows(NamedTuple):
    """Rows, end to end, of which each block of ids keeps its own columns: `ragged_rows` makes them.

    Example:
        >>> import torch, vecbank
        >>> keep = torch.tensor([[True, False], [True, True]])
        >>> vecbank.embedding.ragged_rows(torch.ones(3, 2), torch.tensor([0, 0, 1]), keep).start.tolist()
        [0, 1, 2]
    """

    values: Tensor  # (total,)
    start: Tensor  # (V,) int64: where a row begins
    block: Tensor  # (V,) int16 or int32
    columns: Tensor  # (blocks, d) int16 or int32: a column's place in the row, -1 where the block has cut it


@entry_point
def ragged_rows(table: Tensor, block: Tensor, keep: Tensor) -> RaggedRows:
    """A table in which row v keeps the columns `keep[block[v]]`.

    Args:
        table: (V, d).
        block: (V,) integers below B (a field, a frequency range).
        keep: (B, d) bool.

    Returns:
        RaggedRows(values, start, block, columns).

    Raises:
        IndexError: a block outside 0 .. B - 1.
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> table, keep = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, False], [True, True]])
        >>> vecbank.embedding.ragged_rows(table, torch.tensor([0, 1]), keep).values.tolist()
        [1.0, 3.0, 4.0]
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
    """Rows of a ragged table, zeros in the columns that their block has cut.

    Args:
        ids: (...) integers; -1 gives zeros.
        rows: RaggedRows, as `ragged_rows` returns them.

    Returns:
        (..., d). Differentiable in the values.

    Raises:
        IndexError: an id of V or more.
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> table, keep = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, False], [True, True]])
        >>> rows = vecbank.embedding.ragged_rows(table, torch.tensor([0, 1]), keep)
        >>> vecbank.embedding.ragged_lookup(torch.tensor([0, 1]), rows).tolist()
        [[1.0, 0.0], [3.0, 4.0]]
    """
    check_store(rows, RaggedRows, "values")
    ids = _checks.rows(ids, rows.start.shape[0], "ids")
    at = ids.clamp_min(0)
    columns = rows.columns[rows.block[at].long()].long()
    missing = (columns < 0) | (ids < 0).unsqueeze(-1)
    place = torch.where(missing, -1, rows.start[at].unsqueeze(-1) + columns)
    return lookup(place, rows.values.unsqueeze(1)).squeeze(-1)
