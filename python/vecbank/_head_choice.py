"""When the head of a pack is chosen: once it pays, and again where what was chosen turns out to cost more."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _C, _checks, _head
from ._packable import recorded

_QUERIES = 128  # of a sample, or a few more
# Parts of the queries that save as much as turning the bank costs: by which a head is given up, and by which the next
# one is chosen, while every query takes longer than it should.
_GIVEN_UP, _CHOSEN_AGAIN = 1 / 4, 1 / 8
_TRIED_AGAIN = 2  # times as many, until a head is tried again
_PATIENCE = 2  # each choice lasts so many times as many queries as the one before, at least
LOSS = 1.1  # a head that cost so many times as much as all coordinates is given up


def watchable(queries: Tensor) -> bool:
    """Queries whose values can be looked at without a trace of it."""
    return not recorded() and _checks.concrete(queries)


def use_of(pack: Tensor) -> _head.Use:
    """What the head of this pack left to do since this was last asked."""
    return _head.Use(*_C.take_head_use(pack.data_ptr()))


class Asked:
    """Queries: how many, and a sample of the last of them."""

    def __init__(self, enough: float, last: float) -> None:
        self.enough = int(enough)
        self.calls = self.count = 0
        self._skipped = max(0, self.enough - int(last))  # earlier ones may be unlike those that will come
        self._every = max(1, int(last) // _QUERIES)
        self._rows: list[Tensor] = []

    def add(self, queries: Tensor) -> bool:
        """Whether there were enough of them now."""
        count, to_come = queries.shape[:-1].numel(), self._skipped - self.count
        first = to_come if to_come > 0 else to_come % self._every
        if first < count:
            flat = queries.detach().reshape(-1, queries.shape[-1])
            self._rows.append(flat[first :: self._every][:_QUERIES].clone())
        self.count += count
        self.calls += 1
        return self.count >= self.enough

    def sample(self) -> Tensor:
        return torch.cat(self._rows)

    @property
    def few(self) -> bool:
        """Whether a call asks for so few that memory limits its speed."""
        return self.count <= _head.FEW * self.calls


class Chooser:
    """The queries since a pack of codes was made, and whether they ask for another head than it has.

    Without a head, they are counted, and a sample of them is kept, until choosing one would pay. With a head, what it
    left to do is added up, because queries may be unlike those that it was chosen for, or masked: where it costs more
    than all coordinates would, a sample decides again. With each choice it takes more queries until the next one, so
    that queries of two kinds in turn do not make a pack each time.
    """

    def __init__(self, width: int, head: _head.Head | None = None, last: Chooser | None = None) -> None:
        self._width, self._head = width, head
        self._patience: int = 1 if last is None else _PATIENCE * last._patience
        self._asked: Asked | None = None
        self.measured: tuple[int, float] | None = None  # a head that is to be given up, and the share that it left
        self.gave_up = last.measured[0] if last is not None and last.measured is not None else None
        self._kept = _head.Use()
        worth = _head.worth_choosing_after(width)
        self._window, self._again = self._patience * _GIVEN_UP * worth, _CHOSEN_AGAIN * worth
        if head is None:
            self._asked = Asked(worth, worth)
        elif head.rotation is None:
            self._asked = Asked(self._patience * _TRIED_AGAIN * worth, worth)
        self._count = 0  # queries since it was last looked at

    def due(self, queries: Tensor, pack: Tensor, rows: int) -> bool:
        """Whether a head should be chosen now, for the searches of this pack of so many rows."""
        if self._asked is None:
            self._count += queries.shape[:-1].numel()
            if self._count < self._window:
                return False
            self._count = 0
            self.keep(pack)
            use, self._kept = self._kept, _head.Use()
            if self._head is not None and use.cost(self._width, self._head.width, rows) > LOSS:
                self.measured = self._head.width, use.left
                self._asked = Asked(self._again, self._again)
        if self._asked is None or not self._asked.add(queries):
            return False
        if self.measured is not None and (use := use_of(pack)).scanned > 0:
            self.measured = self.measured[0], use.left  # of the queries that were sampled
        return True

    def keep(self, pack: Tensor) -> None:
        """Keeps what searches with this pack did so far, for the next look at it."""
        self._kept = self._kept.plus(use_of(pack))

    @property
    def to_come(self) -> int | None:
        """After how many more queries a head is chosen; None: once this one costs too much."""
        return None if self._asked is None else max(0, self._asked.enough - self._asked.count)

    def searches(self, k: int) -> _head.Searches:
        """What to choose a head for. Only where a choice is due."""
        assert self._asked is not None
        return _head.Searches(self._asked.sample(), k, self._asked.few, self.measured)
