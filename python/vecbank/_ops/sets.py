"""Candidate sets as the ops take them: lists of tensors, and a program in postfix notation that joins them."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor


class Kind(IntEnum):
    """The kinds of sets, by the codes of core/allowed.h."""

    mask = 0  # bools, expanded to (..., M)
    bits = 1  # bytes (n, W); n here and below: 1, or one row for each query
    ranges = 2  # (n, 2): start and stop
    exclude = 3  # ids (n, e), ascending
    not_self = 4  # no tensor: the operand is the bank row of the first query
    same = 5  # labels (n, 1), those of the bank (1 or B, M), and its rows in order of label (1 or B, M)
    rows = 6  # ids (n, r), ascending; -1, and what is not below M, is none


BOTH, EITHER, NOT = -1, -2, -3  # joins of the sets before them
MOST_SETS = 64  # core/allowed.h


class Lowered(NamedTuple):
    """`program`: pairs of a code (of a kind, or a join below) and its operand, the number of its first tensor."""

    sets: list[Tensor]
    program: list[int]

    def holds(self, first: int, last: int, lead: torch.Size, bank: Tensor, columns: Tensor | None = None) -> Tensor:
        """Which bank rows queries [first, last) may be given, by their order in x; with a batched bank all of these
        queries are of one batch.

        columns: (last - first, k), the rows of each query that are asked for; None: all of them. Returns as many bools.
        """
        m = bank.shape[-2]
        if columns is None:
            columns = torch.arange(m, device=bank.device).unsqueeze(0)
        of = _Asked(
            torch.arange(first, last, device=bank.device), columns, lead, m, int(lead[-1]) if bank.dim() == 3 else 0
        )
        stack: list[Tensor] = []
        for step, operand in zip(self.program[::2], self.program[1::2], strict=True):
            if step == NOT:
                stack.append(~stack.pop())
            elif step == BOTH:
                stack.append(stack.pop() & stack.pop())
            elif step == EITHER:
                stack.append(stack.pop() | stack.pop())
            elif step == Kind.not_self:
                own = of.queries + (operand - of.batch * of.batch_size)
                stack.append(columns != own.unsqueeze(-1))
            else:
                stack.append(_HOLDS[Kind(step)](self.sets[operand:], of))
        return stack.pop().expand(last - first, columns.shape[1])


class _Asked(NamedTuple):
    queries: Tensor  # (n,)
    columns: Tensor  # (n, k), or (1, k) for all
    lead: torch.Size
    rows: int
    batch_size: int  # queries of a batch; 0: one bank

    @property
    def batch(self) -> int:
        return int(self.queries[0]) // self.batch_size if self.batch_size and self.queries.numel() else 0

    def of_each(self, t: Tensor) -> Tensor:
        """The rows of a set that are these queries', or the one that is everybody's."""
        return t if t.shape[0] == 1 else t[self.queries]

    def at(self, t: Tensor) -> Tensor:
        """The elements (n or 1, M) of the columns."""
        n = max(t.shape[0], self.columns.shape[0])
        return t.expand(n, -1).gather(-1, self.columns.expand(n, -1))


def _mask(sets: list[Tensor], of: _Asked) -> Tensor:
    own = torch.unravel_index(of.queries, of.lead) if of.lead else ()
    at = (*(i.unsqueeze(-1) for i in own), of.columns)
    found: Tensor = sets[0][at]  # no more of them than are asked for
    return found


def _bits(sets: list[Tensor], of: _Asked) -> Tensor:
    n = max(of.of_each(sets[0]).shape[0], of.columns.shape[0])
    columns = of.columns.expand(n, -1)
    words = of.of_each(sets[0]).expand(n, -1).gather(-1, columns // 8)
    return (words >> (columns % 8).to(torch.uint8)) & 1 != 0


def _ranges(sets: list[Tensor], of: _Asked) -> Tensor:
    ends = of.of_each(sets[0])
    return (of.columns >= ends[:, :1]) & (of.columns < ends[:, 1:])


def _same(sets: list[Tensor], of: _Asked) -> Tensor:
    labels = sets[1][of.batch if sets[1].shape[0] > 1 else 0].unsqueeze(0)
    return of.of_each(sets[0]) == of.at(labels)


def _rows(sets: list[Tensor], of: _Asked) -> Tensor:
    return _listed(of.of_each(sets[0]), of)


def _exclude(sets: list[Tensor], of: _Asked) -> Tensor:
    return ~_listed(of.of_each(sets[0]), of)


def _listed(ids: Tensor, of: _Asked) -> Tensor:
    """ids (n or 1, r), ascending."""
    if ids.shape[1] == 0:
        return torch.zeros(1, 1, dtype=torch.bool, device=ids.device)
    n = max(ids.shape[0], of.columns.shape[0])
    columns, ids = of.columns.expand(n, -1).contiguous(), ids.expand(n, -1).contiguous()
    place = torch.searchsorted(ids, columns).clamp_max(ids.shape[1] - 1)
    return ids.gather(-1, place) == columns


_HOLDS = {
    Kind.mask: _mask,
    Kind.bits: _bits,
    Kind.ranges: _ranges,
    Kind.exclude: _exclude,
    Kind.same: _same,
    Kind.rows: _rows,
}
