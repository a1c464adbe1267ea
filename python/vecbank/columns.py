"""Attributes of bank rows, and conditions on them: the filters of filtered search."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .allowed import Allowed

_Array = np.ndarray[Any, Any]


class Column:
    """One attribute of every bank row; its comparisons are candidate sets for `vecbank.Allowed.where`.

    Missing values (None, NaN, NaT, Arrow's nulls) meet no condition but `is_null`, also under `!=`; only `~` turns that
    round.

    Args:
        values: M numbers, bools, strings or dates (a list, a torch tensor, a numpy or an Arrow array), or M lists of
            tags (a list of lists or sets, or Arrow lists) for `contains`.
        device: where the sets that conditions give are to lie; None: where a tensor lies, else the CPU.

    Raises:
        TypeError: values of another kind, or not one for each row.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> price, kind = vecbank.Column(torch.tensor([5, 7, 9, 7])), vecbank.Column(["a", "b", "b", None])
        >>> chosen = vecbank.Allowed.where(price <= 7, kind != "a")
        >>> vecbank.topk(torch.ones(1), bank, 1, allowed=chosen).indices.tolist()
        [1]
    """

    def __init__(self, values: Any, *, device: torch.device | str | None = None) -> None:
        self._device = torch.device(device) if device is not None else None
        self._tensor: Tensor | None = None
        self._array: _Array | None = None
        self._missing: _Array | None = None
        self._tags: tuple[_Array, _Array] | None = None  # the tags of all rows, and the row of each
        if isinstance(values, Column):
            raise TypeError("values must be an array of attributes, got a Column")
        if isinstance(values, Tensor):
            if values.dim() != 1:
                raise TypeError(f"values must hold one number for each row (M,), got a tensor {tuple(values.shape)}")
            self._tensor, self._rows = values.detach(), values.shape[0]
            return
        if type(values).__module__.partition(".")[0] == "pyarrow":
            values = _of_arrow(values)
        if isinstance(values, np.ndarray):
            if values.ndim != 1:
                raise TypeError(f"values must hold one value for each row (M,), got an array {values.shape}")
        elif isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise TypeError(
                f"values must be a tensor, an array or a list of one value for each row, got {type(values).__name__}"
            )
        else:
            values = list(values)
        self._rows = len(values)
        if any(isinstance(v, (list, tuple, set, frozenset, np.ndarray)) for v in values[:1000]) or (
            not isinstance(values, np.ndarray) and any(isinstance(v, (list, tuple, set, frozenset)) for v in values)
        ):
            self._take_tags(values)
        else:
            self._take_values(values)

    def _take_tags(self, values: Any) -> None:
        self._missing = np.array([v is None for v in values], dtype=bool)
        wrong = next(
            (v for v in values if v is not None and not isinstance(v, (list, tuple, set, frozenset, np.ndarray))), None
        )
        if wrong is not None:
            raise TypeError(f"values must all be lists of tags, or none of them, got {wrong!r} too")
        tags = [list(v) if v is not None else [] for v in values]
        rows = np.repeat(np.arange(self._rows), [len(t) for t in tags])
        flat = [tag for t in tags for tag in t]
        self._tags = np.array(flat, dtype=object if _mixed(flat) else None), rows

    def _take_values(self, values: Any) -> None:
        if isinstance(values, np.ndarray) and values.dtype.kind != "O":
            self._array = values
        else:
            missing = np.array([v is None for v in values], dtype=bool)
            present = [v for v in values if v is not None]
            if _mixed(present):
                kinds = ", ".join(sorted({type(v).__name__ for v in present})[:3])
                raise TypeError(f"values must be of one kind, got {kinds}")
            filled = np.array(present) if present else np.zeros(0)
            if filled.ndim != 1 or filled.dtype.kind == "O":
                raise TypeError(f"values must be numbers, bools, strings or dates, got {type(present[0]).__name__}")
            self._array = np.zeros(len(values), dtype=filled.dtype)
            self._array[~missing] = filled
            self._missing = missing
        kind = self._array.dtype.kind
        if kind not in "biufUSTMm":
            raise TypeError(f"values must be numbers, bools, strings or dates, got numpy's {self._array.dtype}")
        if kind == "f" or kind in "Mm":
            none = np.isnan(self._array) if kind == "f" else np.isnat(self._array)
            self._missing = none if self._missing is None else self._missing | none

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        held = self._array if self._tensor is None else self._tensor
        return f"Column({self._rows} rows, {'tags' if held is None else held.dtype})"

    # ---- Conditions -------------------------------------------------------------------------------------------------

    def __eq__(self, value: object) -> Allowed:  # type: ignore[override]
        return self._compared(operator.eq, value)

    def __ne__(self, value: object) -> Allowed:  # type: ignore[override]
        return self._compared(operator.ne, value)

    def __lt__(self, value: object) -> Allowed:
        return self._compared(operator.lt, value)

    def __le__(self, value: object) -> Allowed:
        return self._compared(operator.le, value)

    def __gt__(self, value: object) -> Allowed:
        return self._compared(operator.gt, value)

    def __ge__(self, value: object) -> Allowed:
        return self._compared(operator.ge, value)

    __hash__ = None  # type: ignore[assignment]  # == does not say whether two are the same

    def between(self, low: object, high: object) -> Allowed:
        """Rows with low <= value <= high, both ends included.

        Example:
            >>> import vecbank
            >>> vecbank.Column([1, 5, 9]).between(5, 9)
            Allowed[mask(3,)]
        """
        return (self >= low) & (self <= high)

    def isin(self, values: Iterable[object]) -> Allowed:
        """Rows whose value is one of these.

        Example:
            >>> import vecbank
            >>> vecbank.Column(["a", "b", "c"]).isin(["a", "c"])
            Allowed[mask(3,)]
        """
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise TypeError(f"isin takes a list of values, got {type(values).__name__}")
        found = (
            self._set(np.zeros(self._rows, dtype=bool))
            if self._tensor is None
            else Allowed.mask(torch.zeros(self._rows, dtype=torch.bool, device=self._tensor.device))
        )
        for value in values:
            found = found | (self == value)
        return found

    def contains(self, tag: object) -> Allowed:
        """Rows whose list of tags has this one.

        Raises:
            TypeError: a column of single values (compare those by ==).

        Example:
            >>> import vecbank
            >>> vecbank.Column([["a"], ["a", "b"], []]).contains("b")
            Allowed[mask(3,)]
        """
        if self._tags is None:
            raise TypeError("contains is for a Column of lists of tags; compare single values by ==")
        tags, rows = self._tags
        found = np.zeros(self._rows, dtype=bool)
        if len(tags):
            self._check_kind(tag, tags)
            found[rows[tags == tag]] = True
        return self._set(found)

    def is_null(self) -> Allowed:
        """Rows that have no value.

        Example:
            >>> import vecbank
            >>> vecbank.Column([1, None]).is_null()
            Allowed[mask(2,)]
        """
        if self._tensor is not None:
            none = (
                self._tensor.isnan()
                if self._tensor.is_floating_point()
                else torch.zeros_like(self._tensor, dtype=torch.bool)
            )
            return Allowed.mask(none)
        return self._set(np.zeros(self._rows, dtype=bool) if self._missing is None else self._missing)

    def _compared(self, compare: Callable[[Any, Any], Any], value: object) -> Allowed:
        if self._tags is not None:
            raise TypeError("a Column of lists of tags is not compared: ask it contains(tag)")
        if isinstance(value, Column) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0):
            raise TypeError(f"a Column is compared with one value, got {type(value).__name__}")
        if value is None:
            raise TypeError("a Column is not compared with None: ask is_null()")
        if self._tensor is not None:
            if isinstance(value, (str, bytes)):
                raise TypeError(f"this Column holds numbers ({self._tensor.dtype}), got {value!r}")
            found = compare(self._tensor, value)
            return Allowed.mask(found & ~self._tensor.isnan() if self._tensor.is_floating_point() else found)
        assert self._array is not None
        self._check_kind(value, self._array)
        found = np.asarray(compare(self._array, value))
        return self._set(found if self._missing is None else found & ~self._missing)

    def _check_kind(self, value: object, among: _Array) -> None:
        """Numbers are not compared with strings: numpy would say that they differ, or nothing at all."""
        kinds = {"b": "n", "i": "n", "u": "n", "f": "n", "U": "s", "T": "s", "S": "y", "M": "d", "m": "t"}
        own, other = kinds.get(among.dtype.kind), kinds.get(np.asarray(value).dtype.kind)
        if own is None or own == other or (own in "dt" and isinstance(value, str)):
            return
        if own == "d" and other is None:  # datetime.datetime
            return
        raise TypeError(f"this Column holds {among.dtype}, and is not compared with {value!r} ({type(value).__name__})")

    def _set(self, found: _Array) -> Allowed:
        mask = torch.from_numpy(np.ascontiguousarray(found, dtype=bool))
        return Allowed.mask(mask if self._device is None else mask.to(self._device))


def _mixed(values: list[Any]) -> bool:
    """Whether values are of kinds that numpy would make strings of."""
    kinds = {
        str if isinstance(v, (str, np.str_)) else float if isinstance(v, (int, float, np.number, np.bool_)) else type(v)
        for v in values
    }
    return len(kinds) > 1


def _of_arrow(values: Any) -> Any:
    """An Arrow array as numpy's, or as a list where it holds lists, strings or nulls."""
    import pyarrow as arrow  # type: ignore[import-untyped]

    if isinstance(values, arrow.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, arrow.Array):
        raise TypeError(f"values must be an Arrow array, got {type(values).__name__} (of a table: table['column'])")
    if arrow.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    plain = (
        arrow.types.is_integer(values.type)
        or arrow.types.is_floating(values.type)
        or arrow.types.is_temporal(values.type)
    )
    if plain and values.null_count == 0:
        return values.to_numpy(zero_copy_only=False)
    if plain and arrow.types.is_temporal(values.type):
        return values.to_numpy(zero_copy_only=False)  # nulls become NaT
    return values.to_pylist()
