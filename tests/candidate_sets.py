"""Candidate sets of every kind, as an `Allowed` and as the bools that it stands for, by definitions of their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from vecbank import Allowed, Column

Made = tuple[Allowed, Tensor]  # the set, and bools that broadcast to (..., M)
Shape = tuple[int, ...]


def _mask(lead: Shape, m: int, g: Generator) -> Made:
    dense = torch.rand(*lead, m, generator=g) < 0.4
    return Allowed.mask(dense), dense


def _bits(lead: Shape, m: int, g: Generator) -> Made:
    dense = torch.rand(*lead, m, generator=g) < 0.3
    words = np.packbits(dense.numpy(), axis=-1, bitorder="little")
    return Allowed.bits(torch.from_numpy(words)), dense


def _words(lead: Shape, m: int, g: Generator) -> Made:
    """For all queries, in words of 64 bits."""
    dense = torch.rand(m, generator=g) < 0.6
    packed = np.packbits(dense.numpy(), bitorder="little")
    packed = np.pad(packed, (0, -len(packed) % 8))
    return Allowed.bits(torch.from_numpy(packed.view("<i8").copy())), dense


def _ranges(lead: Shape, m: int, g: Generator) -> Made:
    start = torch.randint(-3, m + 3, lead, generator=g)
    stop = start + torch.randint(0, m + 3, lead, generator=g)
    rows = torch.arange(m)
    return Allowed.ranges(start, stop), (rows >= start[..., None]) & (rows < stop[..., None])


def _range(lead: Shape, m: int, g: Generator) -> Made:
    rows = torch.arange(m)
    return Allowed.ranges(m // 3, m - 2), (rows >= m // 3) & (rows < m - 2)


def _named(ids: Tensor, m: int) -> Tensor:
    return (ids.unsqueeze(-1) == torch.arange(m)).any(-2)


def _exclude(lead: Shape, m: int, g: Generator) -> Made:
    ids = torch.randint(-1, max(m, 1), (*lead, 4), generator=g)
    return Allowed.exclude(ids), ~_named(ids, m)


def _exclude_all(lead: Shape, m: int, g: Generator) -> Made:
    ids = torch.randint(-1, max(m, 1), (5,), generator=g).int()
    return Allowed.exclude(ids), ~_named(ids, m)


def _rows_each(lead: Shape, m: int, g: Generator) -> Made:
    ids = torch.randint(-1, max(m, 1), (*lead, 9), generator=g)
    return Allowed.rows(ids), _named(ids, m)


def _rows(lead: Shape, m: int, g: Generator) -> Made:
    ids = torch.randint(-1, max(m, 1), (max(1, m // 4),), generator=g)
    return Allowed.rows(ids), _named(ids, m)


def _not_self(lead: Shape, m: int, g: Generator, *, batched: bool = False, first: int = 0) -> Made:
    count = lead[-1] if batched else torch.Size(lead).numel()
    own = first + torch.arange(count).expand(lead) if batched else first + torch.arange(count).reshape(lead)
    return Allowed.not_self(first), torch.arange(m) != own.unsqueeze(-1)


def _labels(lead: Shape, m: int, g: Generator, *, other: bool, count: int) -> Made:
    own, bank = torch.randint(count, lead, generator=g), torch.randint(count, (m,), generator=g)
    same = own.unsqueeze(-1) == bank
    return (Allowed.other(own, bank), ~same) if other else (Allowed.same(own, bank.int()), same)


def _where(lead: Shape, m: int, g: Generator) -> Made:
    year, kind = torch.randint(2000, 2010, (m,), generator=g), torch.randint(3, (m,), generator=g)
    names = np.array(["a", "b", "c"])[kind.numpy()]
    tags = [[n, "x"] if i % 2 else [n] for i, n in enumerate(names)]
    allowed = Allowed.where(Column(year).between(2002, 2008), Column(names) != "a", Column(tags).contains("x"))
    return allowed, (year >= 2002) & (year <= 2008) & (kind != 0) & (torch.arange(m) % 2 == 1)


def _nothing(lead: Shape, m: int, g: Generator) -> Made:
    return Allowed.rows(torch.tensor([-1])), torch.zeros(m, dtype=torch.bool)


def _joined(lead: Shape, m: int, g: Generator) -> Made:
    (a, in_a), (b, in_b), (c, in_c) = _ranges(lead, m, g), _exclude(lead, m, g), _words(lead, m, g)
    return a & b & c, in_a & in_b & in_c


def _either(lead: Shape, m: int, g: Generator) -> Made:
    (a, in_a), (b, in_b), (c, in_c) = _rows_each(lead, m, g), _ranges(lead, m, g), _words(lead, m, g)
    return (a | b) & c, (in_a | in_b) & in_c


def _negated(lead: Shape, m: int, g: Generator) -> Made:
    (a, in_a), (b, in_b), (c, in_c) = _ranges(lead, m, g), _bits(lead, m, g), _mask(lead, m, g)
    return ~(a & ~b) | (c & ~a), ~(in_a & ~in_b) | (in_c & ~in_a)


def _tensor(lead: Shape, m: int, g: Generator) -> Made:
    """Joined with a bool tensor, and masks for all queries with each other."""
    (a, in_a), (b, in_b) = _where(lead, m, g), _mask(lead, m, g)
    columns = torch.rand(m, generator=g) < 0.7
    return b & (columns | ~a), in_b & (columns | ~in_a)


SETS: dict[str, Callable[..., Made]] = {
    "mask": _mask,
    "bits": _bits,
    "bits, words for all": _words,
    "ranges": _ranges,
    "ranges, one for all": _range,
    "exclude": _exclude,
    "exclude, for all": _exclude_all,
    "rows": _rows,
    "rows of each": _rows_each,
    "not_self": _not_self,
    "not_self of a part": lambda *a, batched=False: _not_self(*a, batched=batched, first=2),
    "same": lambda *a: _labels(*a, other=False, count=3),
    "same, many labels": lambda *a: _labels(*a, other=False, count=40),
    "other": lambda *a: _labels(*a, other=True, count=3),
    "where": _where,
    "nothing": _nothing,
    "a & b": _joined,
    "a | b": _either,
    "~a": _negated,
    "with tensors": _tensor,
}


def make(kind: str, lead: Shape, m: int, generator: Generator, *, batched: bool = False) -> Made:
    """The set and its bools, expanded to (*lead, M)."""
    options = {"batched": True} if batched and kind.startswith("not_self") else {}
    allowed, dense = SETS[kind](lead, m, generator, **options)
    return allowed, dense.expand(*lead, m)


def to(allowed: Allowed, device: str) -> Allowed:
    """The same set on another device."""
    moved = Allowed.__new__(Allowed)
    moved._program = allowed._program
    moved._leaves = tuple(leaf._replace(tensors=tuple(t.to(device) for t in leaf.tensors)) for leaf in allowed._leaves)
    return moved
