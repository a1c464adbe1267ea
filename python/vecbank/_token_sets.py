"""Sets of vectors, laid one after the other: what `multivector` compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _checks


class TokenSets(NamedTuple):
    """Sets of vectors ("tokens") of any sizes: set s is rows[offsets[s]:offsets[s + 1]].

    rows: (R, d). offsets: (S + 1,) int64, from 0 to R, never falling; a set may be empty.

    It is a tuple of the two: `count`, and not `len`, is the number of sets, and `sets._replace(rows=sets.rows.half())`
    has other rows with the same offsets.

    Example:
        >>> import torch, vecbank
        >>> sets = vecbank.TokenSets.of([torch.ones(3, 8), torch.ones(1, 8)])
        >>> sets.rows.shape, sets.offsets.tolist()
        (torch.Size([4, 8]), [0, 3, 4])
    """

    rows: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, sets: Sequence[Tensor]) -> TokenSets:
        """One set for each tensor (T, d), copied into one tensor; gradients go back to each.

        Args:
            sets: at least one tensor (they say the width d), all of one width, dtype and device.

        Raises:
            ValueError: no tensors, widths or devices that differ. TypeError: dtypes.

        Example:
            >>> import torch, vecbank
            >>> vecbank.TokenSets.of([torch.zeros(2, 4), torch.zeros(0, 4)]).offsets.tolist()
            [0, 2, 2]
        """
        if isinstance(sets, Tensor) or not isinstance(sets, Sequence):
            raise TypeError(f"sets must be a list of tensors (T, d), got {type(sets).__name__}")
        if not sets:
            raise ValueError("sets must hold at least one tensor (T, d), which says the width d, got none")
        for i, rows in enumerate(sets):
            name = f"sets[{i}]"
            _checks.shaped(name, rows, ("T", "d" if i == 0 else sets[0].shape[1]))
            if rows.dtype != sets[0].dtype:
                raise TypeError(f"{name} must have the dtype of sets[0], {sets[0].dtype}, got {rows.dtype}")
            if rows.device != sets[0].device:
                raise ValueError(f"{name} must be on the device of sets[0], {sets[0].device}, got {rows.device}")
        ends = torch.tensor([0, *(rows.shape[0] for rows in sets)]).cumsum(0)
        return cls(torch.cat(list(sets)), ends.to(sets[0].device))

    @classmethod
    def padded(cls, tokens: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None) -> TokenSets:
        """The sets of a padded batch.

        Args:
            tokens: (S, T, d).
            lengths: integers (S,): how many of the first tokens of each set count.
            mask: bools (S, T): which tokens count (`attention_mask.bool()` of a tokenizer). At most one of
                `lengths` and `mask`.

        Returns:
            TokenSets. Without `lengths` and `mask` it is a view; else the tokens that count are copied, and gradients
            go back to them.

        Raises:
            ValueError: shapes, lengths outside 0..T, both of `lengths` and `mask`. TypeError: dtypes.

        Example:
            >>> import torch, vecbank
            >>> vecbank.TokenSets.padded(torch.zeros(2, 5, 4), lengths=torch.tensor([5, 2])).offsets.tolist()
            [0, 5, 7]
        """
        _checks.shaped("tokens", tokens, ("S", "T", "d"))
        sets, most, width = tokens.shape
        if lengths is not None and mask is not None:
            raise ValueError("at most one of lengths and mask may be given, got both")
        if lengths is not None:
            found = _checks.integers(lengths, "lengths")
            if found.shape != (sets,):
                raise ValueError(f"lengths must have shape ({sets},), got {tuple(found.shape)}")
            _same_device("lengths", found, "tokens", tokens)
            _checks.in_range(found, most + 1, "lengths", low=0, kind=ValueError)
            mask = torch.arange(most, device=tokens.device) < found.unsqueeze(1)
        if mask is None:
            offsets = torch.arange(sets + 1, device=tokens.device) * most
            return cls(tokens.reshape(sets * most, width), offsets)
        _checks.boolean("mask", mask, "the token counts")
        if mask.shape != (sets, most):
            raise ValueError(f"mask must have shape ({sets}, {most}), got {tuple(mask.shape)}")
        _same_device("mask", mask, "tokens", tokens)
        return cls(tokens[mask], torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)))

    @property
    def count(self) -> int:  # type: ignore[override]  # of sets; a tuple's own count() is of no use here
        """The number of sets."""
        return self.offsets.shape[0] - 1


def _same_device(name: str, t: Tensor, of: str, other: Tensor) -> None:
    if t.device != other.device:
        raise ValueError(f"{name} must be on the device of {of}, {other.device}, got {t.device}")


def check_offsets(name: str, offsets: object, count: int, device: torch.device) -> Tensor:
    """Offsets of sets of `count` rows in all, as int64: from 0 to `count`, never falling."""
    found = _checks.integers(offsets, name)
    if found.dim() != 1 or found.shape[0] < 1:
        raise ValueError(f"{name} must have shape (S + 1,), one more than there are sets, got {tuple(found.shape)}")
    if found.device != device:
        raise ValueError(f"{name} must be on the device of the rows, {device}, got {found.device}")
    if _checks.readable(found):
        first, last = int(found[0]), int(found[-1])
        if first != 0 or last != count:
            raise ValueError(f"{name} must lead from 0 to the number of rows {count}, got {first} to {last}")
        falls = found[1:] < found[:-1]  # the difference of two int64 may wrap around
        if bool(falls.any()):
            s = int(falls.nonzero()[0, 0])
            raise ValueError(f"{name} must never fall, but go from {int(found[s])} to {int(found[s + 1])} at set {s}")
    return found


def token_sets(name: str, value: Any) -> TokenSets:
    """`value` as sets of rows: TokenSets, a tuple (rows, offsets), or a dense tensor (S, T, d)."""
    if isinstance(value, Tensor):
        if value.dim() != 3:
            hint = f" (one set: {name}[None])" if value.dim() == 2 else ""
            got = f"a tensor {tuple(value.shape)}{hint}"
            raise ValueError(f"{name} must be TokenSets, (rows, offsets) or a tensor (S, T, d), got {got}")
        _checks.dense(name, value)
        return TokenSets.padded(value)
    if not isinstance(value, tuple) or len(value) != 2:
        kind = f"{len(value)} of them" if isinstance(value, tuple) else type(value).__name__
        hint = " (of a list of tensors: TokenSets.of)" if isinstance(value, (list, tuple)) else ""
        raise TypeError(f"{name} must be TokenSets, a tuple (rows, offsets) or a tensor (S, T, d), got {kind}{hint}")
    rows, offsets = value
    _checks.dense(f"{name}.rows", rows)
    if rows.dim() != 2:
        raise ValueError(f"{name}.rows must have shape (R, d), got {tuple(rows.shape)}")
    return TokenSets(rows, check_offsets(f"{name}.offsets", offsets, rows.shape[0], rows.device))
