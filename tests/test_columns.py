"""`vecbank.Column`: every kind of values and comparison, by the rows written out by hand; missing values; errors."""

from __future__ import annotations

import datetime as dt
import operator
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
import torch
from helpers import assert_same, gauss

import vecbank
from vecbank import Allowed, Column, reference

NAN, INF = float("nan"), float("inf")
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def rows(condition: Allowed) -> list[int]:
    """The bank rows that a condition holds, as a search is given them."""
    mask = condition._mask()
    assert isinstance(condition, Allowed) and mask is not None and mask.dtype is torch.bool and mask.dim() == 1
    found: list[int] = mask.nonzero().reshape(-1).tolist()
    m = len(mask)
    if m:
        want = vecbank.topk(torch.zeros(1), torch.zeros(m, 1), m, allowed=condition).indices
        assert [i for i in want.tolist() if i >= 0] == found
    return found


def strings(*values: Any, **options: Any) -> Any:
    return np.array(values, dtype=np.dtypes.StringDType(**options))


def days(*values: str) -> Any:
    return np.array(values, dtype="datetime64[D]")


DAY, LATER = dt.date(2020, 1, 1), dt.date(2021, 5, 1)

# Values, what they are compared with, and the rows for ==, !=, <, <=, >, >=.
ORDERED: dict[str, tuple[Callable[[], Any], Any, list[list[int]]]] = {
    "integers": (lambda: [3, 1, 2], 2, [[2], [0, 1], [1], [1, 2], [0], [0, 2]]),
    "floats": (lambda: [2.5, -1.0, 2.0], 2, [[2], [0, 1], [1], [1, 2], [0], [0, 2]]),
    "integers and floats": (lambda: [3, 1.5, 2], 2.0, [[2], [0, 1], [1], [1, 2], [0], [0, 2]]),
    "a value missing": (lambda: [3, None, 2], 2, [[2], [0], [], [2], [0], [0, 2]]),
    "NaN": (lambda: [3.0, NAN, 2.0, INF, -INF], 2, [[2], [0, 3, 4], [4], [2, 4], [0, 3], [0, 2, 3]]),
    "against NaN": (lambda: [3.0, NAN], NAN, [[], [0], [], [], [], []]),
    "against infinity": (lambda: [3.0, NAN, INF], INF, [[2], [0], [0], [0, 2], [], [2]]),
    "bools": (lambda: [True, False, None], True, [[0], [1], [1], [0, 1], [], [0]]),
    "bools against a number": (lambda: [True, False], 1, [[0], [1], [1], [0, 1], [], [0]]),
    "bools among numbers": (lambda: [True, 2], 1, [[0], [1], [], [0], [1], [0, 1]]),
    "integers of 64 bits": (
        lambda: [2**53 + 1, None, 2**53],
        2**53 + 1,
        [[0], [2], [2], [0, 2], [], [0]],
    ),
    "strings": (lambda: ["b", "a", "ba"], "b", [[0], [1, 2], [1], [0, 1], [2], [0, 2]]),
    "strings, one missing": (lambda: ["b", None, "", "é"], "b", [[0], [2, 3], [2], [0, 2], [3], [0, 3]]),
    "a longer string": (lambda: ["b", "c"], "bbbb", [[], [0, 1], [0], [0], [1], [1]]),
    "bytes": (lambda: [b"b", b"a"], b"b", [[0], [1], [1], [0, 1], [], [0]]),
    "a generator": (lambda: (i for i in (3, 1, 2)), 2, [[2], [0, 1], [1], [1, 2], [0], [0, 2]]),
    "a range": (lambda: range(4), 2, [[2], [0, 1, 3], [0, 1], [0, 1, 2], [3], [2, 3]]),
    "dates": (lambda: [DAY, LATER, None], LATER, [[1], [0], [0], [0, 1], [], [1]]),
    "times of day": (
        lambda: [dt.datetime(2020, 1, 1, 5), None],
        dt.datetime(2020, 1, 1, 6),
        [[], [0], [0], [0], [], []],
    ),
    # torch
    "torch, integers": (lambda: torch.tensor([3, 1, 2]), 2, [[2], [0, 1], [1], [1, 2], [0], [0, 2]]),
    "torch, against a float": (lambda: torch.tensor([3, 1, 2]), 1.5, [[], [0, 1, 2], [1], [1], [0, 2], [0, 2]]),
    "torch, NaN": (lambda: torch.tensor([3.0, NAN, 2.0]), 2, [[2], [0], [], [2], [0], [0, 2]]),
    "torch, 16 bits": (lambda: torch.tensor([3.0, NAN, 2.0]).half(), 2, [[2], [0], [], [2], [0], [0, 2]]),
    "torch, bools": (lambda: torch.tensor([True, False]), True, [[0], [1], [1], [0, 1], [], [0]]),
    "torch, 8 bits against more": (
        lambda: torch.tensor([3, -1], dtype=torch.int8),
        1000,
        [[], [0, 1], [0, 1], [0, 1], [], []],
    ),
    "torch, unsigned against -1": (
        lambda: torch.tensor([3, 255], dtype=torch.uint8),
        -1,
        [[], [0, 1], [], [], [0, 1], [0, 1]],
    ),
    **{
        f"torch, {dtype}": (
            lambda dtype=dtype: torch.tensor([3, 1, 2], dtype=dtype),
            2,
            [[2], [0, 1], [1], [1, 2], [0], [0, 2]],
        )
        for dtype in (torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64, torch.bfloat16)
    },
    "torch, the largest integers": (
        lambda: torch.tensor([2**63 + 1, 3], dtype=torch.uint64),
        2**63,
        [[], [0, 1], [1], [1], [0], [0]],
    ),
    "torch, integers against NaN": (lambda: torch.tensor([3, 1]), NAN, [[], [0, 1], [], [], [], []]),
    "torch, integers against infinity": (
        lambda: torch.tensor([3, 2**63 - 1]),
        INF,
        [[], [0, 1], [0, 1], [0, 1], [], []],
    ),
    "torch, integers against 2^70": (lambda: torch.tensor([3]), 2**70, [[], [0], [0], [0], [], []]),
    "torch, a number that is rounded": (lambda: torch.tensor([0.1, 0.2]), 0.1, [[0], [1], [], [0], [1], [0, 1]]),
    "torch, against a tensor": (lambda: torch.tensor([3, 1]), torch.tensor(1), [[1], [0], [], [1], [0], [0, 1]]),
    "torch, with a gradient": (lambda: torch.tensor([3.0, 1.0]).requires_grad_(), 2, [[], [0, 1], [1], [1], [0], [0]]),
    # numpy
    "numpy, integers": (lambda: np.array([3, 1, 2], np.int16), np.int64(2), [[2], [0, 1], [1], [1, 2], [0], [0, 2]]),
    "numpy, 8 bits against more": (lambda: np.array([3, -1], np.int8), 1000, [[], [0, 1], [0, 1], [0, 1], [], []]),
    "numpy, unsigned against -1": (lambda: np.array([3], np.uint8), -1, [[], [0], [], [], [0], [0]]),
    "numpy, NaN": (lambda: np.array([3.0, NAN, 2.0]), 2, [[2], [0], [], [2], [0], [0, 2]]),
    "numpy, a number that is rounded": (
        lambda: np.array([0.1, 0.2], np.float32),
        0.1,
        [[0], [1], [], [0], [1], [0, 1]],
    ),
    "numpy, with gaps": (lambda: np.arange(8)[::-3], 4, [[1], [0, 2], [2], [1, 2], [0], [0, 1]]),
    "numpy, another byte order": (lambda: np.array([3, 1], dtype=">i4"), 3, [[0], [1], [1], [0, 1], [], [0]]),
    "numpy, strings": (lambda: np.array(["b", "a"]), np.str_("b"), [[0], [1], [1], [0, 1], [], [0]]),
    "numpy, strings of any length": (lambda: strings("b", "a"), "b", [[0], [1], [1], [0, 1], [], [0]]),
    "numpy, such strings, one missing": (
        lambda: strings("b", None, "a", na_object=None),
        "b",
        [[0], [2], [2], [0, 2], [], [0]],
    ),
    "numpy, objects": (lambda: np.array(["b", None, "a"], object), "b", [[0], [2], [2], [0, 2], [], [0]]),
    "numpy, objects that are dates": (lambda: np.array([DAY, None], object), DAY, [[0], [], [], [0], [], [0]]),
    "numpy, dates": (
        lambda: days("2020-01-01", "2021-05-01"),
        np.datetime64("2021-05-01"),
        [[1], [0], [0], [0, 1], [], [1]],
    ),
    "numpy, NaT": (
        lambda: days("2020-01-01", "NaT", "2021-05-01"),
        np.datetime64("2021-05-01"),
        [[2], [0], [0], [0, 2], [], [2]],
    ),
    "numpy, NaT against a date": (lambda: days("2020-01-01", "NaT"), LATER, [[], [0], [0], [0], [], []]),
    "numpy, dates against a date": (lambda: days("2020-01-01"), LATER, [[], [0], [0], [0], [], []]),
    "numpy, dates against a string": (lambda: days("2020-01-01"), "2021-05-01", [[], [0], [0], [0], [], []]),
    "numpy, seconds against a date": (
        lambda: days("2020-01-01", "2022-01-01").astype("datetime64[s]"),
        LATER,
        [[], [0, 1], [0], [0], [1], [1]],
    ),
    "numpy, durations": (
        lambda: np.array([1, 3, "NaT"], "timedelta64[h]"),
        np.timedelta64(60, "m"),
        [[0], [1], [], [0], [1], [0, 1]],
    ),
    "numpy, durations against Python's": (
        lambda: np.array([1, 3], "timedelta64[h]"),
        dt.timedelta(hours=2),
        [[], [0, 1], [0], [0], [1], [1]],
    ),
}


def chunks(*parts: Any, **options: Any) -> Any:
    return arrow.chunked_array(list(parts), **options)


ARROW: dict[str, tuple[Callable[[], Any], Any, list[list[int]]]] = {
    "integers": (lambda: arrow.array([3, 1, 2]), 2, [[2], [0, 1], [1], [1, 2], [0], [0, 2]]),
    "integers with nulls": (lambda: arrow.array([3, None, 2]), 2, [[2], [0], [], [2], [0], [0, 2]]),
    "large integers with nulls": (
        lambda: arrow.array([2**62 + 1, None, 2**62]),
        2**62 + 1,
        [[0], [2], [2], [0, 2], [], [0]],
    ),
    "floats with nulls and NaN": (lambda: arrow.array([3.0, NAN, None]), 2, [[], [0], [], [], [0], [0]]),
    "16 bits": (lambda: arrow.array(np.array([3, 1], np.float16)), 2, [[], [0, 1], [1], [1], [0], [0]]),
    "bools": (lambda: arrow.array([True, None, False]), True, [[0], [2], [2], [0, 2], [], [0]]),
    "strings": (lambda: arrow.array(["b", None, "a"]), "b", [[0], [2], [2], [0, 2], [], [0]]),
    "large strings": (lambda: arrow.array(["b", "a"], arrow.large_string()), "b", [[0], [1], [1], [0, 1], [], [0]]),
    "string views": (lambda: arrow.array(["b", "a"], arrow.string_view()), "b", [[0], [1], [1], [0, 1], [], [0]]),
    "binary": (lambda: arrow.array([b"b", None]), b"b", [[0], [], [], [0], [], [0]]),
    "dictionary": (
        lambda: arrow.array(["b", "a", None, "b"]).dictionary_encode(),
        "b",
        [[0, 3], [1], [1], [0, 1, 3], [], [0, 3]],
    ),
    "chunks": (lambda: chunks([3, None], [], [2]), 2, [[2], [0], [], [2], [0], [0, 2]]),
    "chunks of a dictionary": (
        lambda: chunks(["b", "a"], ["b"]).dictionary_encode(),
        "b",
        [[0, 2], [1], [1], [0, 1, 2], [], [0, 2]],
    ),
    "a slice": (lambda: arrow.array([9, 3, None, 2, 9]).slice(1, 3), 2, [[2], [0], [], [2], [0], [0, 2]]),
    "a table's column": (lambda: arrow.table({"a": [3, 2]})["a"], 2, [[1], [0], [], [1], [0], [0, 1]]),
    "dates": (lambda: arrow.array([DAY, LATER]), np.datetime64("2021-05-01"), [[1], [0], [0], [0, 1], [], [1]]),
    "dates with nulls": (lambda: arrow.array([DAY, None]), LATER, [[], [0], [0], [0], [], []]),
    "timestamps": (
        lambda: arrow.array([dt.datetime(2020, 1, 1), None]),
        np.datetime64("2021-05-01T07:00"),
        [[], [0], [0], [0], [], []],
    ),
    "timestamps of a zone": (
        lambda: arrow.array([dt.datetime(2020, 1, 1)], arrow.timestamp("us", tz="UTC")),
        np.datetime64("2021-05-01"),
        [[], [0], [0], [0], [], []],
    ),
    "durations": (
        lambda: arrow.array([dt.timedelta(hours=1), None]),
        np.timedelta64(2, "h"),
        [[], [0], [0], [0], [], []],
    ),
    "nothing, of strings": (lambda: arrow.array([], arrow.string()), "b", [[]] * 6),
    "nulls alone": (lambda: arrow.array([None, None]), 1, [[]] * 6),
    "nulls alone, of strings": (lambda: arrow.array([None, None], arrow.string()), "b", [[]] * 6),
    "no chunks": (lambda: chunks(type=arrow.int64()), 1, [[]] * 6),
}
TABLE = {**ORDERED, **{f"arrow, {name}": row for name, row in ARROW.items()}}


@pytest.mark.parametrize("what", TABLE)
def test_comparisons(what: str) -> None:
    values, value, want = TABLE[what]
    for symbol, held in zip(COMPARE, want, strict=True):
        assert rows(COMPARE[symbol](Column(values()), value)) == held, symbol
    column = Column(values())
    assert rows(column.between(value, value)) == want[0]
    assert rows(column.isin([value, value])) == want[0] and rows(column.isin([])) == []
    if bool(value == value):  # no NaN: each row that has a value is equal or not, and below or not
        assert sorted(want[0] + want[1]) == sorted(want[2] + want[5]) == rows(~column.is_null())


@pytest.mark.parametrize("symbol", COMPARE)
def test_the_value_may_stand_first(symbol: str) -> None:
    column, values = Column([3, None, 2, 1]), [3, NAN, 2, 1]
    want = [i for i, v in enumerate(values) if v == v and COMPARE[symbol](2, v)]
    assert rows(COMPARE[symbol](2, column)) == want


NULLS: dict[str, tuple[Callable[[], Any], list[int]]] = {
    "None among numbers": (lambda: [3, None, NAN], [1, 2]),
    "None among strings": (lambda: ["a", None], [1]),
    "None alone": (lambda: [None, None], [0, 1]),
    "no None": (lambda: ["a"], []),
    "nothing": (lambda: [], []),
    "None among tags": (lambda: [["a"], None, []], [1]),
    "torch, NaN": (lambda: torch.tensor([1.0, NAN]), [1]),
    "torch, integers": (lambda: torch.tensor([1, 2]), []),
    "numpy, NaN": (lambda: np.array([1.0, NAN]), [1]),
    "numpy, NaT": (lambda: days("2020-01-01", "NaT"), [1]),
    "numpy, integers": (lambda: np.array([1, 2]), []),
    "numpy, objects": (lambda: np.array([1, None, NAN], object), [1, 2]),
    "numpy, strings of any length, one missing": (lambda: strings("a", None, na_object=None), [1]),
    "arrow, integers": (lambda: arrow.array([1, None]), [1]),
    "arrow, floats": (lambda: arrow.array([1.0, None, NAN]), [1, 2]),
    "arrow, dictionary": (lambda: arrow.array(["a", None]).dictionary_encode(), [1]),
    "arrow, timestamps": (lambda: arrow.array([dt.datetime(2020, 1, 1), None]), [1]),
    "arrow, lists": (lambda: arrow.array([["a"], None, []]), [1]),
    "arrow, nulls": (lambda: arrow.nulls(2), [0, 1]),
}


@pytest.mark.parametrize("what", NULLS)
def test_missing_values(what: str) -> None:
    make, want = NULLS[what]
    assert rows(Column(make()).is_null()) == want
    assert rows(~Column(make()).is_null()) == [i for i in range(len(Column(make()))) if i not in want]


def test_only_a_negation_turns_missing_values_round() -> None:
    column = Column([3, None, 2])
    assert rows(column != 3) == [2] and rows(~(column == 3)) == [1, 2]
    assert rows(~(column.between(0, 9))) == [1] and rows(column.is_null() | (column < 3)) == [1, 2]


TAGS: dict[str, tuple[Callable[[], Any], Any, list[int]]] = {
    "lists": (lambda: [["a"], ["a", "b"], []], "b", [1]),
    "one missing": (lambda: [["a"], None, ["b", "b"]], "b", [2]),
    "sets": (lambda: [{"a"}, frozenset({"b"}), ("c", "b")], "b", [1, 2]),
    "integers": (lambda: [[1, 2], [2], [3]], 2, [0, 1]),
    "integers and strings": (lambda: [[1, "2"], [2]], 2, [1]),
    "strings and integers": (lambda: [[1, "2"], [2]], "2", [0]),
    "a tag of none": (lambda: [["a"], ["b"]], "z", []),
    "a longer tag": (lambda: [["a"], ["b"]], "bb", []),
    "no tags": (lambda: [[], []], "a", []),
    "no rows": (lambda: [["a"]][:0], "a", []),
    "lists of equal length": (lambda: [[1, 2], [3, 4]], 3, [1]),
    "arrays": (lambda: [np.array(["a", "b"]), np.array(["c"])], "b", [0]),
    "an array of lists": (lambda: np.array([["a"], ["b", "c"]], object), "c", [1]),
    "a list after many missing": (lambda: [None] * 2000 + [["a"]], "a", [2000]),
    "an array of a list after many missing": (
        lambda: np.array([None] * 2000 + [["a"]], object),
        "a",
        [2000],
    ),
    "arrow": (lambda: arrow.array([["a"], None, ["a", "b"], []]), "b", [2]),
    "arrow, integers": (lambda: arrow.array([[1], [2, 3]]), 3, [1]),
    "arrow, large lists": (lambda: arrow.array([[1], [2, 3]], arrow.large_list(arrow.int8())), 3, [1]),
    "arrow, fixed lists": (lambda: arrow.array([[1, 2], [2, 3]], arrow.list_(arrow.int8(), 2)), 3, [1]),
    "arrow, chunks": (lambda: chunks([["a"]], [["b"], ["a", "b"]]), "b", [1, 2]),
    "arrow, no rows": (lambda: arrow.array([], arrow.list_(arrow.string())), "b", []),
}


@pytest.mark.parametrize("what", TAGS)
def test_tags(what: str) -> None:
    make, tag, want = TAGS[what]
    assert rows(Column(make()).contains(tag)) == want
    if len(Column(make())):
        assert repr(Column(make())) == f"Column({len(Column(make()))} rows, tags)"


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a string": (lambda: Column("abc"), "values must be a tensor, an array or a list .* got str"),
    "a number": (lambda: Column(3), "values must be a tensor, an array or a list .* got int"),
    "nothing": (lambda: Column(None), "values must be a tensor, an array or a list .* got NoneType"),
    "a column": (
        lambda: Column(Column([1])),
        "values must be a tensor, an array or a list of one value for each row, got Column",
    ),
    "numbers and strings": (lambda: Column([1, "a"]), "values must be of one kind, got numbers, strings"),
    "tags and strings": (lambda: Column([["a"], "b"]), "values must all be lists of tags, or none of them, got 'b'"),
    "objects": (lambda: Column([object()]), "values must be numbers, bools, strings, dates or durations, got object"),
    "complex": (lambda: Column([1j]), "values must be numbers, bools, strings, dates or durations, got complex"),
    "integers of 70 bits": (lambda: Column([2**70]), "values must be numbers"),
    "records": (lambda: Column(np.zeros(3, [("a", int)])), "values must be numbers"),
    "a matrix": (lambda: Column(np.zeros((2, 2))), r"one value for each row \(M,\), got an array \(2, 2\)"),
    "an array without dimensions": (lambda: Column(np.zeros(())), r"one value for each row \(M,\), got an array \(\)"),
    "a tensor of two": (lambda: Column(torch.zeros(2, 2)), r"one number for each row \(M,\), got a tensor \(2, 2\)"),
    "a table": (lambda: Column(arrow.table({"a": [1]})), "values must be an Arrow array, got Table .*table"),
    "an Arrow number": (lambda: Column(arrow.scalar(1)), "values must be an Arrow array, got Int64Scalar"),
    "Arrow's structs": (lambda: Column(arrow.array([{"a": 1}])), "values must be numbers, .* got dict"),
    "== None": (lambda: Column([1]) == None, r"not compared with None: ask is_null\(\)"),  # noqa: E711
    "torch == None": (lambda: Column(torch.tensor([1])) == None, "not compared with None"),  # noqa: E711
    "== a column": (lambda: Column([1]) == Column([1]), "compared with one value, got Column"),
    "== an array": (lambda: Column([1]) == np.array([1]), "compared with one value, got ndarray"),
    "== a tensor": (lambda: Column([1]) == torch.tensor([1]), "compared with one value, got Tensor"),
    "== a list": (lambda: Column([1, 2]) == [1, 2, 3], "compared with .*list"),
    "torch == a list": (lambda: Column(torch.tensor([1])) == [1], "compared with .*list"),
    "numbers == a string": (lambda: Column([1]) == "a", r"holds numbers, and is not compared with 'a' \(str\)"),
    "strings == a number": (lambda: Column(["a"]) == 1, r"holds strings, and is not compared with 1 \(int\)"),
    "strings == bytes": (lambda: Column(["a"]) == b"a", r"holds strings, and is not compared with b'a'"),
    "torch == a string": (lambda: Column(torch.tensor([1])) < "a", r"holds numbers \(torch.int64\), got 'a'"),
    "dates == a number": (
        lambda: Column(days("2020-01-01")) == 3,
        r"holds dates, and is not compared with 3",
    ),
    "dates == a float": (lambda: Column(days("2020-01-01")) == 3.5, r"holds dates, and is not compared"),
    "durations == a number": (lambda: Column(np.array([1], "timedelta64[h]")) < 2, "is not compared with 2"),
    "tags == a tag": (lambda: Column([["a"]]) == "a", r"not compared: ask it contains\(tag\)"),
    "tags between": (lambda: Column([["a"]]).between("a", "b"), r"not compared: ask it contains\(tag\)"),
    "tags in a list": (lambda: Column([["a"]]).isin(["a"]), r"not compared: ask it contains\(tag\)"),
    "tags of strings, a number": (lambda: Column([["a"]]).contains(1), "holds strings, and is not compared with 1"),
    "a tag of single values": (lambda: Column([1]).contains(1), "contains is for a Column of lists of tags"),
    "a tag of a tensor": (lambda: Column(torch.tensor([1])).contains(1), "contains is for a Column of lists of tags"),
    "in a string": (lambda: Column(["a"]).isin("ab"), "isin takes a list of values, got str"),
    "in a number": (lambda: Column([1]).isin(3), "isin takes a list of values, got int"),
    "in a list of None": (lambda: Column([1]).isin([1, None]), "not compared with None"),
    "hash": (lambda: hash(Column([1])), "unhashable"),
    "truth": (lambda: bool(Column([1]) == 1), "neither true nor false"),
    "a chain": (lambda: 0 < Column([1]) < 3, "neither true nor false"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    call, text = REFUSED[what]
    with pytest.raises(TypeError, match=text):
        call()


def test_dates_of_zones() -> None:
    """They are instants: compared as such, without a warning."""
    zone = dt.timezone(dt.timedelta(hours=5))
    column_of = [dt.datetime(2020, 1, 1, 3, tzinfo=zone), dt.datetime(2020, 1, 1, 3, tzinfo=dt.timezone.utc)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows(Column(column_of) < dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)) == [0]


def test_a_string_that_is_no_date() -> None:
    with pytest.raises(ValueError, match="this Column holds dates, and 'soon' is none"):
        assert Column([DAY]) < "soon"


def test_isin_takes_any_values() -> None:
    column = Column(["a", "b", None, "c"])
    for values in (["a", "c"], {"a", "c"}, ("c", "a", "z"), np.array(["a", "c"]), (v for v in "ac")):
        assert rows(column.isin(values)) == [0, 3]
    numbers = Column(torch.tensor([1, 5, 9]))
    assert rows(numbers.isin(torch.tensor([9, 1]))) == rows(numbers.isin(np.array([9, 1]))) == [0, 2]


def test_length_and_text() -> None:
    assert len(Column([1, 2])) == len(Column(torch.zeros(2))) == len(Column([["a"], None])) == 2
    assert repr(Column([1, 2])) == "Column(2 rows, int64)"
    assert repr(Column(torch.zeros(2))) == "Column(2 rows, torch.float32)"
    assert repr(Column(["a"])) == "Column(1 rows, <U1)"


@pytest.mark.parametrize("kind", ["array", "tags", "tensor"])
def test_the_device_of_the_sets(kind: str) -> None:
    """The one that is asked for; else a tensor's own, else the CPU."""
    values: Any = {"array": [1, 2], "tags": [[1], [2]], "tensor": torch.tensor([1, 2])}[kind]
    own = Column(values)
    conditions = [own.is_null(), own.contains(1) if kind == "tags" else own.between(1, 1)]
    assert [c._leaves[0].tensors[0].device.type for c in conditions] == ["cpu"] * 2
    moved = Column(values, device="meta")
    conditions = [moved.is_null(), moved.contains(1) if kind == "tags" else moved.between(1, 1)]
    conditions += [] if kind == "tags" else [moved.isin([1]), moved.isin([])]
    assert {c._leaves[0].tensors[0].device.type for c in conditions} == {"meta"}


def test_the_tensor_of_a_column_is_shared() -> None:
    values = torch.tensor([1, 2, 3])
    column = Column(values)
    values[0] = 3
    assert rows(column == 3) == [0, 2]


def test_a_search_by_attributes() -> None:
    """Conditions joined with each other and with sets of each query, against the mask written out."""
    year, kind = torch.randint(2000, 2010, (50,)), torch.randint(3, (50,))
    names = [None if k == 2 else "ab"[k] for k in kind.tolist()]
    tags = [["x"] * (i % 3) + ["y"] * (i % 2) for i in range(50)]
    x, bank = gauss(50, 6), gauss(50, 6)
    allowed = Allowed.where(
        Column(year).between(2002, 2007) | Column(year).isin([2009]),
        Column(names) != "a",
        ~Column(tags).contains("y"),
        Allowed.not_self(),
        torch.arange(50) > 4,
    )
    rows_of = torch.arange(50)
    mask = ((year >= 2002) & (year <= 2007) | (year == 2009)) & (kind == 1) & (rows_of % 2 == 0) & (rows_of > 4)
    mask = mask & (rows_of != rows_of.unsqueeze(-1))
    assert_same(tuple(vecbank.topk(x, bank, 9, "l2", allowed=allowed)), tuple(reference.topk(x, bank, 9, "l2", mask)))
    assert_same(
        vecbank.radius_count(x, bank, 3.0, "l2", allowed=allowed),
        reference.radius(x, bank, 3.0, "l2", mask).offsets.diff(),
    )


def test_columns_of_another_length() -> None:
    x, bank = gauss(2, 3), gauss(5, 3)
    with pytest.raises(ValueError, match="masks for 5 and for 4 rows do not belong to one bank"):
        Allowed.where(Column([1] * 5) == 1, Column(["a"] * 4) == "a")
    with pytest.raises(ValueError, match=r"allowed must broadcast to \(..., M\) = \(2, 5\), got \(4,\)"):
        vecbank.topk(x, bank, 1, allowed=Allowed.where(Column([1] * 4) == 1))


def test_values_that_numpy_would_change() -> None:
    """Dates beyond the range of their unit, strings that end with NUL, masked arrays, integers of more than 64 bits."""
    days = Column(np.array(["2020-01-01", "2030-01-01"], "datetime64[ns]"))
    assert rows(days <= dt.date(9999, 12, 31)) == [0, 1] and rows(days > dt.date(9999, 12, 31)) == []
    with pytest.raises(ValueError, match="too far apart"):
        Column([np.datetime64("2020-01-01T00:00:00.000000001"), dt.date(9999, 1, 1)])
    assert rows(Column(["a\0", "a"]) == "a") == [1] and rows(Column(["a", "b"]) == "a\0") == []
    assert rows(Column(np.ma.array([1, 2, 3], mask=[0, 1, 0])) >= 1) == [0, 2]
    assert rows(Column(arrow.array([0.1, None], arrow.float32())) == 0.1) == [0]
    with pytest.raises(TypeError, match="at most 64 bits"):
        Column([2**63, -1])
    assert rows(Column([1.0]) < 2**2000) == [0]


def test_dates_of_two_units() -> None:
    """Neither side wraps, and nothing below a second is lost."""
    last = dt.datetime.max
    assert rows(Column([last]) == last) == [0] and rows(Column([last]) >= last) == [0]
    assert rows(Column([last]) <= last - dt.timedelta(microseconds=1)) == []
    assert rows(Column(np.array(["9999-12-31"], "M8[D]")) > np.datetime64("2020-01-01T00", "ns")) == [0]
    assert rows(Column(np.array([1], "m8[ns]")) < dt.timedelta(days=200_000)) == [0]
    assert rows(Column(np.array([200_000, -200_000], "m8[D]")) > np.timedelta64(1, "ns")) == [0]
    fine = np.array(["1969-12-31T23:59:59.500000001", "1970-01-01T00:00:00.5"], "M8[ns]")
    assert rows(Column(fine) < dt.datetime(1970, 1, 1)) == [0] and rows(Column(fine) >= dt.date(1970, 1, 1)) == [1]
    assert rows(Column(fine) != dt.datetime(1970, 1, 1, 0, 0, 0, 500_000)) == [0]
