"""Candidate sets: which bank rows may be returned to which query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import _checks
from ._numpy import tensor_of
from ._ops.sets import BOTH, EITHER, MOST_SETS, NOT, Kind, Lowered

F = TypeVar("F", bound=Callable[..., Any])
_WORDS = tuple(getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64))


class _Leaf(NamedTuple):
    """One set as it was given: its tensors, and a number beside them."""

    kind: Kind
    tensors: tuple[Tensor, ...]
    number: int = 0


class Allowed:
    """Which bank rows may be returned to which query, in `topk`, `nearest`, `radius`, `radius_count` and `verify`.

    Made by one of its constructors, and joined by `&` (both), `|` (either) and `~` (all others). A bool tensor joins
    too. The answer is that of the rows that are left, by the same scores and in the same order. Nothing of the size
    N x M is made unless it was given.

    Shapes: `(...)` is the shape of x without its last dimension, or what broadcasts to it; M the number of bank rows.
    Against a batched bank (B, M, d) rows are numbered within their own bank. Tensors must lie on the device of x;
    numpy arrays are taken too. Memory is shared, not copied, where the constructor says so: it must not change during
    a call.

    It works under `torch.compile` (made within, join by `Allowed.mask(tensor)` and call `.other` in place of `~same`);
    the transforms of torch.func and forward mode take bool tensors alone.

    How a search goes about it, which changes no answer: where all queries share a set that leaves few rows, these are
    gathered first; where a query is left with few rows, they are scored at once; else the others are passed over where
    they are met. A numbered set (`ranges`, `rows`, `same`) costs what it holds, not M.

    Example:
        >>> import torch, vecbank
        >>> x = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> vecbank.nearest(x, x, allowed=vecbank.Allowed.not_self()).indices.tolist()
        [1, 0, 3, 2]
        >>> odd = torch.tensor([False, True, False, True])
        >>> chosen = vecbank.Allowed.mask(odd) & ~vecbank.Allowed.rows(torch.tensor([3]))
        >>> vecbank.nearest(x, x, allowed=chosen).indices.tolist()
        [1, 1, 1, 1]
    """

    __slots__ = ("_leaves", "_program")
    __array_ufunc__ = None  # numpy leaves joins with its arrays to us
    _leaves: tuple[_Leaf, ...]
    _program: tuple[int, ...]  # postfix: a leaf's number, or a join

    def __init__(self) -> None:
        raise TypeError(
            "an Allowed is made by Allowed.mask, bits, ranges, exclude, not_self, same, other, rows or where"
        )

    # ---- Constructors -----------------------------------------------------------------------------------------------

    @classmethod
    def mask(cls, allowed: Tensor) -> Allowed:
        """A bool for every pair: (..., M), or what broadcasts to it, as (M,) for all queries. Memory is shared.

        Raises:
            TypeError: it is not bool.

        Example:
            >>> import torch, vecbank
            >>> bank, odd = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([False, True, False])
            >>> vecbank.topk(torch.ones(1), bank, 1, allowed=vecbank.Allowed.mask(odd)).indices.tolist()
            [1]
        """
        allowed = _tensor(allowed, "allowed")
        _checks.boolean("allowed", allowed, "may be returned")
        return _made(_Leaf(Kind.mask, (allowed,)))

    @classmethod
    def bits(cls, words: Tensor) -> Allowed:
        """A bit for every pair, packed in Arrow's order: row j is bit j % 8 of byte j // 8, the lowest first.

        Args:
            words: (..., W) integers of 8 to 64 bits (wider words lie in memory lowest byte first), or (W,) for all
                queries, with room for M rows; bits beyond M are not looked at. Memory is shared where a row's words
                lie side by side. `numpy.packbits(mask, axis=-1, bitorder="little")` makes them.

        Raises:
            TypeError: words that are no integers. ValueError, of the call: too few words for M rows.

        Example:
            >>> import torch, vecbank
            >>> bank = torch.tensor([[1.0], [2.0], [3.0]])
            >>> words = torch.tensor([0b011], dtype=torch.uint8)
            >>> vecbank.topk(torch.ones(1), bank, 1, allowed=vecbank.Allowed.bits(words)).indices.tolist()
            [1]
        """
        words = _tensor(words, "words")
        if words.dtype not in _WORDS:
            raise TypeError(f"words must be integers of 8 to 64 bits, got {words.dtype}")
        if words.dim() == 0:
            raise ValueError("words must have shape (..., W), got a scalar")
        if words.shape[-1] > 1 and words.stride(-1) != 1:
            words = words.contiguous()
        return _made(_Leaf(Kind.bits, (words if words.dtype is torch.uint8 else words.view(torch.uint8),)))

    @classmethod
    def ranges(cls, start: Tensor | int, stop: Tensor | int) -> Allowed:
        """Rows start <= j < stop, for each query its own: windows, caches that grow, galleries laid one after another.

        A range reaches no further than the bank: what lies below 0 or from M on is not there. `start == stop` is empty.

        Args:
            start, stop: integers (...), or numbers for all queries. Of galleries one after another, `offsets[:-1]` and
                `offsets[1:]`.

        Raises:
            TypeError: not integers. ValueError: a range that ends before it starts (offsets that descend, or that
                overflowed their integers), looked for on the CPU alone; elsewhere it is empty.

        Example:
            >>> import torch, vecbank
            >>> bank = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
            >>> offsets = torch.tensor([0, 3, 4])  # two galleries
            >>> own = vecbank.Allowed.ranges(offsets[:-1], offsets[1:])
            >>> vecbank.topk(torch.ones(2, 1), bank, 1, allowed=own).indices.tolist()
            [[2], [3]]
        """
        ends = [_integers(t, name) for t, name in ((start, "start"), (stop, "stop"))]
        if ends[0].device != ends[1].device:  # a number beside a tensor
            ends = [t.to(max(ends, key=lambda other: other.dim()).device) for t in ends]
        try:
            low, high = torch.broadcast_tensors(*ends)
        except RuntimeError:
            shapes = " and ".join(str(tuple(t.shape)) for t in ends)
            raise ValueError(f"start and stop must broadcast to each other, got {shapes}") from None
        if _checks.readable(low) and _checks.readable(high):
            falling = (low > high).reshape(-1).nonzero()
            if falling.numel():
                at = int(falling[0])
                raise ValueError(
                    f"start must not exceed stop, got start {int(low.reshape(-1)[at])} and stop "
                    f"{int(high.reshape(-1)[at])} at {at}: do the offsets descend, or has one overflowed?"
                )
        return _made(_Leaf(Kind.ranges, (torch.stack((low, high), -1),)))

    @classmethod
    def exclude(cls, ids: Tensor | Sequence[Tensor]) -> Allowed:
        """All rows but these.

        Args:
            ids: integers (..., e), or (e,) for all queries; -1 stands for none (as in the indices of `topk`). Or a list
                of tensors, one for each query, of any lengths.

        Raises:
            TypeError: not integers. IndexError: ids below -1, or (of the call, on the CPU) from M on.

        Example:
            >>> import torch, vecbank
            >>> bank = torch.tensor([[1.0], [2.0], [3.0]])
            >>> others = vecbank.Allowed.exclude(torch.tensor([2, -1]))
            >>> vecbank.topk(torch.ones(1), bank, 1, allowed=others).indices.tolist()
            [1]
        """
        return _made(_Leaf(Kind.exclude, (_ids(ids).sort(-1).values,)))

    @classmethod
    def not_self(cls, first: int = 0) -> Allowed:
        """All rows but the query itself: query i is bank row `first` + i, by the order in which the queries lie.

        Against a batched bank queries are counted within their own batch.

        Args:
            first: the bank row that the first query is, for queries that are a part of the bank.

        Example:
            >>> import torch, vecbank
            >>> x = torch.tensor([[0.0], [1.0], [5.0]])
            >>> vecbank.nearest(x[1:], x, allowed=vecbank.Allowed.not_self(first=1)).indices.tolist()
            [0, 1]
        """
        return _made(_Leaf(Kind.not_self, (), _checks.at_least(0, "first", first)))

    @classmethod
    def same(cls, labels_x: Tensor, labels_bank: Tensor) -> Allowed:
        """Rows of the query's own label: classes, authors, the group that a query belongs to.

        Args:
            labels_x: integers or bools (...). labels_bank: (M,), or (B, M) with a batched bank.

        Raises:
            TypeError: labels that are neither. ValueError, of the call: shapes that do not fit.

        Example:
            >>> import torch, vecbank
            >>> x, labels = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 1, 0])
            >>> vecbank.topk(x, x, 2, "l2", allowed=vecbank.Allowed.same(labels, labels)).indices.tolist()
            [[0, 2], [1, -1], [2, 0]]
        """
        own, all_labels = _labels(labels_x, "labels_x"), _labels(labels_bank, "labels_bank")
        if all_labels.dim() not in (1, 2):
            raise ValueError(f"labels_bank must have shape (M,) or (B, M), got {tuple(all_labels.shape)}")
        all_labels = all_labels.clone()  # so that the two below stay of one another
        # The rows in order of label: those of one label are a run, which is found without a look at the others.
        return _made(_Leaf(Kind.same, (own, all_labels, torch.argsort(all_labels, dim=-1, stable=True))))

    @classmethod
    def other(cls, labels_x: Tensor, labels_bank: Tensor) -> Allowed:
        """Rows of every label but the query's own: `~Allowed.same(labels_x, labels_bank)`.

        Example:
            >>> import torch, vecbank
            >>> x, labels = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 1, 0])
            >>> vecbank.nearest(x, x, allowed=vecbank.Allowed.other(labels, labels)).indices.tolist()
            [1, 0, 1]
        """
        return cls.same(labels_x, labels_bank).__invert__()

    @classmethod
    def rows(cls, ids: Tensor | Sequence[Tensor]) -> Allowed:
        """These rows: a list for all queries, or for each query its own candidates.

        Args:
            ids: integers (..., r), or (r,) for all queries, in any order; one that comes twice counts once, -1 stands
                for none. Or a list of tensors, one for each query, of any lengths.

        Raises:
            TypeError: not integers. IndexError: ids below -1, or (of the call, on the CPU) from M on.

        Example:
            >>> import torch, vecbank
            >>> bank = torch.tensor([[1.0], [2.0], [3.0]])
            >>> candidates = vecbank.Allowed.rows(torch.tensor([[0, 1], [1, -1]]))
            >>> vecbank.topk(torch.ones(2, 1), bank, 1, allowed=candidates).indices.tolist()
            [[1], [1]]
        """
        listed = _ids(ids)
        return _made(_Leaf(Kind.rows, (listed.sort(-1).values,)))

    @classmethod
    def where(cls, *conditions: Allowed | Tensor) -> Allowed:
        """Rows that meet all conditions on attributes, each of one `vecbank.Column`.

        Args:
            conditions: what comparisons of a Column give (`column == 3`, `column.between(a, b)`, `tags.contains(t)`),
                other Allowed, or bool tensors.

        Example:
            >>> import torch, vecbank
            >>> bank = torch.tensor([[1.0], [2.0], [3.0]])
            >>> year, tags = vecbank.Column([1999, 2005, 2010]), vecbank.Column([["a"], ["a", "b"], ["c"]])
            >>> chosen = vecbank.Allowed.where(year.between(2000, 2012), tags.contains("a"))
            >>> vecbank.topk(torch.ones(1), bank, 1, allowed=chosen).indices.tolist()
            [1]
        """
        if not conditions:
            raise ValueError("where needs at least one condition, as in where(column == 3)")
        joined = _joined("where", conditions[0])
        for condition in conditions[1:]:
            joined = joined & _joined("where", condition)
        return joined

    # ---- Joins ------------------------------------------------------------------------------------------------------

    def __and__(self, other: Allowed | Tensor) -> Allowed:
        return _both(self, other, BOTH, torch.logical_and)

    def __or__(self, other: Allowed | Tensor) -> Allowed:
        return _both(self, other, EITHER, torch.logical_or)

    __rand__, __ror__ = __and__, __or__  # neither depends on the order

    def __invert__(self) -> Allowed:
        mask = self._columns()
        if mask is not None:
            return Allowed.mask(~mask)
        if self._program[-1:] == (NOT,):
            return _new(self._leaves, self._program[:-1])
        return _new(self._leaves, (*self._program, NOT))

    def __bool__(self) -> NoReturn:
        raise TypeError("an Allowed is neither true nor false: join two by & and |, not by `and` and `or`")

    def __repr__(self) -> str:
        stack: list[str] = []
        for step in self._program:
            if step == NOT:
                stack.append(f"~{stack.pop()}")
            elif step in (BOTH, EITHER):
                right, left = stack.pop(), stack.pop()
                stack.append(f"({left} {'&' if step == BOTH else '|'} {right})")
            else:
                leaf = self._leaves[step]
                shapes = ", ".join(str(tuple(t.shape)) for t in leaf.tensors[:2])
                stack.append(f"{leaf.kind.name}{shapes or f'({leaf.number})'}")
        return f"Allowed[{stack[0]}]"

    # ---- What the functions ask -------------------------------------------------------------------------------------

    def _mask(self) -> Tensor | None:
        """The one mask that it is."""
        alone = len(self._program) == 1 and self._leaves[0].kind is Kind.mask
        return self._leaves[0].tensors[0] if alone else None

    def _columns(self) -> Tensor | None:
        """The one mask (M,) that it is, for all queries."""
        mask = self._mask()
        return None if mask is None or mask.dim() != 1 else mask

    def _lowered(self, x: Tensor, bank: Tensor) -> Lowered:
        """As the ops take it, for queries x (..., d) and a bank (M, d) or (B, M, d)."""
        if len(self._leaves) > MOST_SETS:
            raise ValueError(
                f"allowed joins {len(self._leaves)} sets, and at most {MOST_SETS} sets can be searched: "
                "join bool tensors for all queries before"
            )
        sets: list[Tensor] = []
        program: list[int] = []
        for step in self._program:
            if step < 0:
                program += (step, 0)
                continue
            leaf = self._leaves[step]
            program += (int(leaf.kind), leaf.number if leaf.kind is Kind.not_self else len(sets))
            sets += _fitted(leaf, x, bank)
        return Lowered(sets, program)


def _new(leaves: tuple[_Leaf, ...], program: tuple[int, ...]) -> Allowed:
    allowed = Allowed.__new__(Allowed)
    allowed._leaves, allowed._program = leaves, program
    return allowed


def _made(leaf: _Leaf) -> Allowed:
    return _new((leaf,), (0,))


def _joined(what: str, value: object) -> Allowed:
    if isinstance(value, Allowed):
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        return Allowed.mask(value)  # type: ignore[arg-type]  # an array becomes a tensor there
    raise TypeError(f"{what} takes Allowed or bool tensors, got {type(value).__name__}")


def _both(one: Allowed, value: object, step: int, of_masks: Callable[[Tensor, Tensor], Tensor]) -> Allowed:
    if not isinstance(value, (Allowed, Tensor, np.ndarray)):
        return NotImplemented
    other = _joined("a join", value)
    a, b = one._columns(), other._columns()
    if a is not None and b is not None and a.device == b.device:  # masks for all queries are one at once
        if a.shape != b.shape:
            raise ValueError(f"masks for {a.shape[0]} and for {b.shape[0]} rows do not belong to one bank")
        return Allowed.mask(of_masks(a, b))
    moved = tuple(s if s < 0 else s + len(one._leaves) for s in other._program)
    return _new(one._leaves + other._leaves, (*one._program, *moved, step))


# ---- Arguments ------------------------------------------------------------------------------------------------------


def _tensor(value: Any, name: str) -> Tensor:
    t = tensor_of(value, name) if isinstance(value, np.ndarray) else value
    _checks.tensor(name, t)
    if t.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {t.layout}")
    result: Tensor = t.detach()
    return result


def _integers(value: Any, name: str) -> Tensor:
    if not isinstance(value, (Tensor, np.ndarray)):
        if isinstance(value, (list, tuple)):
            raise TypeError(f"{name} must be a tensor of integers, got {type(value).__name__}: torch.tensor makes one")
        return torch.tensor(_checks.integer(name, value))
    return _checks.integers(_tensor(value, name), name)


def _ids(ids: Any) -> Tensor:
    if isinstance(ids, (list, tuple)) and ids and all(isinstance(own, (Tensor, np.ndarray)) for own in ids):
        lists = [_integers(own, "ids") for own in ids]
        if any(own.dim() != 1 for own in lists):
            raise ValueError("ids, as a list, must hold one tensor (e,) for each query")
        ids = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=-1.0)
    listed = _integers(ids, "ids")
    if listed.dim() == 0:
        raise ValueError("ids must have shape (e,) or (..., e), got a scalar")
    if _checks.readable(listed) and listed.numel() and int(listed.min()) < -1:
        raise IndexError(f"ids must be row numbers, or -1 for none, got {int(listed.min())}")
    return listed


def _labels(labels: Any, name: str) -> Tensor:
    t = _tensor(labels, name)
    return t.long() if t.dtype is torch.bool else _checks.integers(t, name)


def _fitted(leaf: _Leaf, x: Tensor, bank: Tensor) -> list[Tensor]:
    """The tensors of a set as the ops take them: (N, ...) or (1, ...) for all N queries."""
    lead, m = x.shape[:-1], bank.shape[-2]
    for t in leaf.tensors:
        if t.device != x.device:
            raise ValueError(f"allowed ({leaf.kind.name}) must be on x's device {x.device}, got {t.device}")
    if leaf.kind is Kind.mask:
        return [expand_mask(leaf.tensors[0], x, m)]
    if leaf.kind is Kind.same:
        own, labels, order = leaf.tensors
        wanted = (m,) if labels.dim() == 1 else tuple(bank.shape[:-1])
        if tuple(labels.shape) != wanted:
            raise ValueError(
                f"labels_bank must have one label for each of the bank's rows {wanted}, got {tuple(labels.shape)}"
            )
        return [
            _per_query(own.unsqueeze(-1), lead, "labels_x"),
            *(t.contiguous() if t.dim() == 2 else t.contiguous().unsqueeze(0) for t in (labels, order)),
        ]
    names = {Kind.bits: "words", Kind.ranges: "start and stop", Kind.exclude: "ids", Kind.rows: "ids"}
    fitted = [_per_query(t, lead, names[leaf.kind]) for t in leaf.tensors]
    if leaf.kind is Kind.bits and fitted[0].shape[-1] * 8 < m:
        raise ValueError(f"words must hold a bit for each of the bank's {m} rows, got {fitted[0].shape[-1] * 8} bits")
    if leaf.kind in (Kind.exclude, Kind.rows) and _checks.readable(fitted[0]) and fitted[0].numel():
        most = int(fitted[0].max())
        if most >= m:
            raise IndexError(f"ids must lie below the bank's number of rows {m}, got {most}")
    return fitted


def _per_query(t: Tensor, lead: torch.Size, name: str) -> Tensor:
    """t (..., W) as (N, W), or as (1, W) where it is for all queries."""
    width = t.shape[-1]
    if t.shape[:-1].numel() == 1 and t.dim() - 1 <= max(len(lead), 1):
        return t.reshape(1, width)
    try:
        full = t.expand(*lead, width)
    except RuntimeError:
        whole = name in ("ids", "words")  # of others the last axis is ours
        shape, got = (*lead, width) if whole else tuple(lead), tuple(t.shape if whole else t.shape[:-1])
        raise ValueError(f"allowed: {name} must broadcast to {shape}, got {got}") from None
    full = full.reshape(lead.numel(), width)
    return full if width <= 1 or full.stride(-1) == 1 else full.contiguous()


def expand_mask(mask: Tensor, x: Tensor, rows: int) -> Tensor:
    """A mask expanded to (..., M)."""
    _checks.boolean("allowed", mask, "may be returned")
    if mask.device != x.device:
        raise ValueError(f"allowed must be on x's device {x.device}, got {mask.device}")
    shape = (*x.shape[:-1], rows)
    try:
        return mask.expand(shape)
    except RuntimeError:
        raise ValueError(f"allowed must broadcast to (..., M) = {tuple(shape)}, got {tuple(mask.shape)}") from None


def lower(allowed: Allowed | Tensor, x: Tensor, vectors: Tensor) -> Lowered | Tensor:
    """A candidate set as the ops take it: a mask expanded to (..., M), or else a program."""
    if not isinstance(allowed, Allowed):
        if not isinstance(allowed, Tensor):
            raise TypeError(f"allowed must be a vecbank.Allowed or a bool tensor, got {type(allowed).__name__}")
        return expand_mask(allowed, x, vectors.shape[-2])
    mask = allowed._mask()
    return allowed._lowered(x, vectors) if mask is None else expand_mask(mask, x, vectors.shape[-2])


def lowered(allowed: Allowed | Tensor | None, x: Tensor, vectors: Tensor) -> Lowered | None:
    """The same as a program, a mask too; None: all rows."""
    if allowed is None:
        return None
    sets = lower(allowed, x, vectors)
    return Lowered([sets], [0, 0]) if isinstance(sets, Tensor) else sets
