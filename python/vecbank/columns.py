"""Attributes of bank rows, and conditions on them: the filters of filtered search."""

from __future__ import annotations

import datetime
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .allowed import Allowed

_Array = np.ndarray[Any, Any]
_LISTS = (list, tuple, set, frozenset, np.ndarray)
_FAMILIES = {"b": "numbers", "i": "numbers", "u": "numbers", "f": "numbers", "U": "strings", "T": "strings"}
_FINE = ("ms", "us", "ns", "ps", "fs", "as")  # units below a second
_FAMILIES |= {"S": "bytes", "M": "dates", "m": "durations"}


class Column:
    """One attribute of every bank row; its comparisons are candidate sets for `vecbank.Allowed.where`.

    Missing values (None, NaN, NaT, Arrow's nulls) meet no condition but `is_null`, not even `!=`; only `~` turns that
    round.

    Args:
        values: M numbers, bools, strings, dates or durations (a list, a torch tensor, a numpy or an Arrow array), or M
            lists of tags (a list of lists or sets, or Arrow lists) for `contains`.
        device: where the sets that conditions give are to lie; None: where a tensor lies, else the CPU.

    Raises:
        TypeError: values of another kind or of several, or not one for each row.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> price, kind = vecbank.Column(torch.tensor([5, 7, 9, 7])), vecbank.Column(["a", "b", "b", None])
        >>> chosen = vecbank.Allowed.where(price <= 7, kind != "a")
        >>> vecbank.topk(torch.ones(1), bank, 1, allowed=chosen).indices.tolist()
        [1]
    """

    def __init__(self, values: Any, *, device: torch.device | str | None = None) -> None:
        self._device = None if device is None else torch.device(device)
        self._tensor: Tensor | None = None
        self._array: _Array | None = None  # None beside no tensor and no tags: every value is missing
        self._missing: _Array | None = None
        self._tags: tuple[_Array, _Array] | None = None  # the tags of all rows, and the row of each
        if isinstance(values, Tensor):
            if values.dim() != 1 or values.is_complex():
                what = f"{tuple(values.shape)} of {values.dtype}"
                raise TypeError(f"values must hold one number for each row (M,), got a tensor {what}")
            self._tensor, self._rows = values.detach(), values.shape[0]
            return
        if type(values).__module__.partition(".")[0] == "pyarrow":
            values = _of_arrow(values)
        masked = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
        if masked is not None:
            values = [None if none else v for v, none in zip(values.data, masked, strict=True)]
        if isinstance(values, np.ndarray) and values.ndim != 1:
            raise TypeError(f"values must hold one value for each row (M,), got an array {values.shape}")
        single = isinstance(values, (str, bytes, Column, Mapping)) or not isinstance(values, Iterable)
        if single:
            kind = type(values).__name__
            raise TypeError(f"values must be a tensor, an array or a list of one value for each row, got {kind}")
        if not isinstance(values, np.ndarray):
            values = list(values)
        self._rows = len(values)
        objects = not isinstance(values, np.ndarray) or values.dtype.kind == "O"
        if objects and any(isinstance(v, _LISTS) for v in values):
            self._take_tags(values)
        else:
            self._take_values(values)

    def _take_tags(self, values: Any) -> None:
        wrong = next((v for v in values if v is not None and not isinstance(v, _LISTS)), None)
        if wrong is not None:
            raise TypeError(f"values must all be lists of tags, or none of them, got {wrong!r} too")
        self._missing = np.array([v is None for v in values], dtype=bool)
        tags = [[] if v is None else list(v) for v in values]
        flat = [tag for of_row in tags for tag in of_row]
        kinds = {_kind(tag) for tag in flat}
        held = _array(flat, "tags") if len(kinds) <= 1 else np.array(flat, dtype=object)
        self._tags = held, np.repeat(np.arange(self._rows), [len(of_row) for of_row in tags])

    def _take_values(self, values: Any) -> None:
        if isinstance(values, np.ndarray) and values.dtype.kind in _FAMILIES and values.dtype.kind != "T":
            self._array = values
        else:
            missing = np.array([_is_none(v) for v in values], dtype=bool)
            present = [v for v in values if not _is_none(v)]
            self._missing = missing
            if present:
                filled = _array(present, "values")
                self._array = np.zeros(len(values), dtype=filled.dtype)
                self._array[~missing] = filled
        kind = "" if self._array is None else self._array.dtype.kind
        if self._array is not None and kind in "fMm":
            none = np.isnan(self._array) if kind == "f" else np.isnat(self._array)
            self._missing = none if self._missing is None else self._missing | none

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        held = self._array if self._tensor is None else self._tensor
        kind = "tags" if self._tags is not None else "nothing" if held is None else held.dtype
        return f"Column({self._rows} rows, {kind})"

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
        found = self._none()
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
        if self._tags is None and self._tensor is None and (not self._rows or self._array is None):
            return self._none()  # no row has a list
        if self._tags is None:
            raise TypeError("contains is for a Column of lists of tags; compare single values by ==")
        tags, rows = self._tags
        found = np.zeros(self._rows, dtype=bool)
        if len(tags):
            tag = _as_value(tag, tags)
            found[rows[_each(operator.eq, tags, tag)]] = True
        return self._set(found)

    def is_null(self) -> Allowed:
        """Rows that have no value.

        Example:
            >>> import vecbank
            >>> vecbank.Column([1, None]).is_null()
            Allowed[mask(2,)]
        """
        if self._tensor is not None and self._tensor.is_floating_point():
            return self._moved(self._tensor.isnan())
        return self._none() if self._missing is None else self._set(self._missing)

    def _compared(self, compare: Callable[[Any, Any], Any], value: Any) -> Allowed:
        if self._tags is not None:
            raise TypeError("a Column of lists of tags is not compared: ask it contains(tag)")
        many = isinstance(value, (Column, Mapping, *_LISTS)) and not (isinstance(value, np.ndarray) and value.ndim == 0)
        if many or (isinstance(value, Tensor) and value.dim() > 0):
            raise TypeError(f"a Column is compared with one value, got {type(value).__name__}")
        if value is None:
            raise TypeError("a Column is not compared with None: ask is_null()")
        if isinstance(value, (Tensor, np.ndarray)):
            value = value.item()
        if self._tensor is not None:
            return self._moved(_of_tensor(compare, self._tensor, value))
        if self._array is None:
            return self._none()  # every value is missing
        value = _as_value(value, self._array)
        found = _each(compare, self._array, value)
        return self._set(found if self._missing is None else found & ~self._missing)

    def _none(self) -> Allowed:
        held = self._tensor
        mask = torch.zeros(self._rows, dtype=torch.bool, device=None if held is None else held.device)
        return self._moved(mask)

    def _set(self, found: _Array) -> Allowed:
        return self._moved(torch.from_numpy(np.ascontiguousarray(found, dtype=bool)))

    def _moved(self, mask: Tensor) -> Allowed:
        return Allowed.mask(mask if self._device is None else mask.to(self._device))


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _array(values: list[Any], name: str) -> _Array:
    """Values of one kind as an array."""
    kinds = {_kind(v) for v in values}
    if len(kinds) > 1:
        raise TypeError(f"{name} must be of one kind, got {', '.join(sorted(kinds))}")
    kind = kinds.pop() if kinds else "numbers"
    if kind not in _FAMILIES.values():
        raise TypeError(f"{name} must be numbers, bools, strings, dates or durations, got {kind}")
    scale = {"dates": "datetime64", "durations": "timedelta64"}.get(kind)
    if scale is None:
        if kind in ("strings", "bytes") and any(v[-1:] in ("\0", b"\0") for v in values):
            return np.array(values, dtype=object)  # numpy's own strings lose it
        made = np.array(values)
        whole = bool(values) and all(isinstance(v, (int, np.integer)) for v in values)
        if made.dtype.kind not in _FAMILIES or (whole and made.dtype.kind == "f"):
            raise TypeError(f"{name} must be numbers of at most 64 bits, got {max(values, key=abs)}")
        return made
    # Of datetime and numpy's own alike, each by its own unit; numpy takes the finest.
    dates = [_date(v) if kind == "dates" else np.timedelta64(v) for v in values]
    made = np.array(dates, dtype=scale)
    if any(made[i].astype(f"{scale}[s]") != date.astype(f"{scale}[s]") for i, date in enumerate(dates)):
        raise ValueError(f"{name} hold dates or durations too far apart for their finest unit")  # numpy wraps
    return made


def _kind(value: Any) -> str:
    if isinstance(value, (datetime.date, np.datetime64)):  # datetime.datetime is a date too
        return "dates"
    if isinstance(value, (datetime.timedelta, np.timedelta64)):
        return "durations"
    if isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        return "numbers"
    return "strings" if isinstance(value, str) else "bytes" if isinstance(value, bytes) else type(value).__name__


def _each(compare: Callable[[Any, Any], Any], held: _Array, value: Any) -> _Array:
    """Every value of a column beside another one, where numpy would lose something of either."""
    if isinstance(value, (str, bytes)) and value[-1:] in ("\0", b"\0"):
        return np.array([compare(own, value) for own in held.tolist()], dtype=bool)
    if isinstance(value, (np.datetime64, np.timedelta64)) and held.dtype != value.dtype:
        return _by_seconds(compare, held, value)
    return np.asarray(compare(held, value), dtype=bool)


def _by_seconds(compare: Callable[[Any, Any], Any], held: _Array, value: Any) -> _Array:
    """Dates or durations of two units: numpy would bring both to the finer one, and wrap what lies beyond its range."""
    name = "datetime64" if held.dtype.kind == "M" else "timedelta64"

    def parts(t: Any) -> tuple[Any, Any]:  # whole seconds, and the rest
        seconds = t.astype(f"{name}[s]")
        if np.datetime_data(t.dtype)[0] not in _FINE:
            return seconds, np.zeros(t.shape, "timedelta64[ps]")
        return seconds, (t - seconds.astype(t.dtype)).astype("timedelta64[ps]")

    (seconds, rest), (of_value, rest_of_value) = parts(held), parts(value)
    same = seconds == of_value
    if compare in (operator.eq, operator.ne):
        equal = same & (rest == rest_of_value)
        return np.asarray(equal if compare is operator.eq else ~equal, dtype=bool)
    ahead = operator.lt if compare in (operator.lt, operator.le) else operator.gt
    return np.asarray(ahead(seconds, of_value) | (same & compare(rest, rest_of_value)), dtype=bool)


def _date(value: Any) -> np.datetime64:
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)  # numpy's have no zone
    return np.datetime64(value)


def _as_value(value: Any, among: _Array) -> Any:
    """A value to compare with: numpy says of values of two kinds that they differ, or nothing at all."""
    if among.dtype.kind == "O":  # tags of several kinds
        return value
    own, given = _FAMILIES[among.dtype.kind], _kind(value)
    if own == given == "dates":
        return _date(value)
    if own == given == "durations":
        return np.timedelta64(value)
    if own == "dates" and given == "strings":
        try:
            return np.datetime64(value)
        except ValueError:
            raise ValueError(f"this Column holds dates, and {value!r} is none (as 2021-01-31)") from None
    if given == "numbers":
        value = _number(value)
    if own != given:
        raise TypeError(f"this Column holds {own}, and is not compared with {value!r} ({type(value).__name__})")
    return value


def _number(value: Any) -> Any:
    """Integers beyond any float as infinities, which compare alike."""
    if isinstance(value, int) and abs(value) > 1 << 1000:
        return math.inf if value > 0 else -math.inf
    return value


def _of_tensor(compare: Callable[[Any, Any], Any], held: Tensor, value: Any) -> Tensor:
    """As numpy compares: a column of floats rounds the number to its own type, one of integers compares exactly."""
    if _kind(value) != "numbers":
        raise TypeError(f"this Column holds numbers ({held.dtype}), got {value!r} ({type(value).__name__})")
    value = _number(value)
    if held.is_floating_point():
        found: Tensor = compare(held, float(value))
        return found & ~held.isnan()
    if held.device.type == "cpu" and held.dtype is not torch.bool:
        return torch.from_numpy(np.asarray(compare(held.numpy(), value), dtype=bool))  # which wraps no number
    exact: Tensor = compare(held.double(), float(value))
    return exact


def _of_arrow(values: Any) -> Any:
    """An Arrow array as numpy's, or as a list where it holds lists, strings or nulls."""
    import pyarrow as arrow  # type: ignore[import-untyped]

    if isinstance(values, arrow.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, arrow.Array):
        raise TypeError(f"values must be an Arrow array, got {type(values).__name__} (of a table: table['column'])")
    if arrow.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    types = arrow.types
    whole = types.is_integer(values.type) and values.null_count == 0
    if types.is_temporal(values.type) or types.is_floating(values.type) or whole:
        return values.to_numpy(zero_copy_only=False)  # nulls become NaT and NaN
    return values.to_pylist()
