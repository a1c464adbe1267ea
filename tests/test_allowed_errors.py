"""`vecbank.Allowed`: what its constructors, its joins and the calls that take one refuse."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same
from test_allowed import ALL, BANK, I64, X, long, search

import vecbank
from vecbank import Allowed, Column

pytestmark = pytest.mark.usefixtures("one_thread")


def joined(count: int) -> Allowed:
    """So many sets of each query's own, which all hold rows 0 to 4."""
    sets = [Allowed.ranges(torch.zeros(4, dtype=I64), torch.full((4,), 5)) for _ in range(count)]
    return functools.reduce(operator.and_, sets)


# What is refused when it is made, and what only the call can see: error, and what the message says.
MADE: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no constructor": (lambda: Allowed(), TypeError, "an Allowed is made by Allowed.mask"),
    "mask: a list": (lambda: Allowed.mask([True]), TypeError, "allowed must be a torch.Tensor, got list"),
    "mask: floats": (lambda: Allowed.mask(torch.ones(9)), TypeError, "allowed must be bool .* got torch.float32"),
    "mask: integers": (lambda: Allowed.mask(long(0, 1)), TypeError, "allowed must be bool .* got torch.int64"),
    "mask: sparse": (lambda: Allowed.mask(ALL.to_sparse()), TypeError, "allowed must be a dense tensor"),
    "mask: floats of numpy": (lambda: Allowed.mask(np.ones(9)), TypeError, "allowed must be bool .* got torch.float64"),
    "bits: floats": (lambda: Allowed.bits(torch.ones(2)), TypeError, "words must be integers .* got torch.float32"),
    "bits: bools": (lambda: Allowed.bits(ALL), TypeError, "words must be integers of 8 to 64 bits, got torch.bool"),
    "bits: a number": (lambda: Allowed.bits(torch.tensor(3)), ValueError, r"words must have shape \(..., W\)"),
    "bits: a list": (lambda: Allowed.bits([1]), TypeError, "words must be a torch.Tensor, got list"),
    "ranges: floats": (lambda: Allowed.ranges(torch.zeros(4), 3), TypeError, "start must be integers, got torch.float"),
    "ranges: a float": (lambda: Allowed.ranges(0, 2.5), TypeError, "stop must be an int, got float"),
    "ranges: a bool": (lambda: Allowed.ranges(0, torch.tensor([True])), TypeError, "stop must be integers, got .*bool"),
    "ranges: shapes": (
        lambda: Allowed.ranges(long(0, 0, 0, 0), long(1, 1, 1)),
        ValueError,
        r"start and stop must broadcast to each other, got \(4,\) and \(3,\)",
    ),
    "ranges: offsets that descend": (
        lambda: Allowed.ranges(long(0, 5), long(3, 4)),
        ValueError,
        "start must not exceed stop, got start 5 and stop 4 at 1",
    ),
    "ranges: offsets that overflowed": (
        lambda: Allowed.ranges(
            torch.tensor([0, 2**31 - 10], dtype=torch.int32), torch.tensor([9, 2**31 - 10], dtype=torch.int32) + 100
        ),
        ValueError,
        "start 2147483638 and stop -2147483558 at 1: .* has one overflowed",
    ),
    "ranges: numbers": (lambda: Allowed.ranges(4, 3), ValueError, "got start 4 and stop 3 at 0"),
    "exclude: floats": (lambda: Allowed.exclude(torch.ones(2)), TypeError, "ids must be integers, got torch.float32"),
    "exclude: a number": (lambda: Allowed.exclude(torch.tensor(3)), ValueError, r"ids must have shape \(e,\) or"),
    "exclude: below -1": (lambda: Allowed.exclude(long(0, -2)), IndexError, "ids must be row numbers, or -1 .* got -2"),
    "rows: floats": (lambda: Allowed.rows(torch.ones(2)), TypeError, "ids must be integers, got torch.float32"),
    "rows: bools": (lambda: Allowed.rows(ALL), TypeError, "ids must be integers, got torch.bool"),
    "rows: a number": (lambda: Allowed.rows(torch.tensor(3)), ValueError, r"ids must have shape \(e,\) or"),
    "rows: a list": (lambda: Allowed.rows([1, 2]), TypeError, "ids must be a tensor of integers, got list"),
    "ranges: a list": (lambda: Allowed.ranges([1], 2), TypeError, "start must be a tensor of integers, got list"),
    "rows: below -1": (lambda: Allowed.rows(long(-3)), IndexError, "ids must be row numbers, or -1 for none, got -3"),
    "rows: from 2^63 on": (
        lambda: Allowed.rows(torch.tensor([2**63], dtype=torch.uint64)),
        IndexError,
        "ids must lie below 2",
    ),
    "not_self: negative": (lambda: Allowed.not_self(-1), ValueError, "first must be at least 0, got -1"),
    "not_self: a float": (lambda: Allowed.not_self(0.0), TypeError, "first must be an int, got float"),
    "same: floats": (lambda: Allowed.same(X[:, 0], long(0)), TypeError, "labels_x must be integers, got torch.float32"),
    "same: floats of the bank": (
        lambda: Allowed.same(long(0), BANK[:, 0]),
        TypeError,
        "labels_bank must be integers, got torch.float32",
    ),
    "same: a label": (
        lambda: Allowed.same(long(0), torch.tensor(1)),
        ValueError,
        r"labels_bank must have shape \(M,\)",
    ),
    "other: three dimensions": (
        lambda: Allowed.other(long(0), torch.zeros(1, 1, 9, dtype=I64)),
        ValueError,
        r"labels_bank must have shape \(M,\) or \(B, M\), got \(1, 1, 9\)",
    ),
    "other: strings": (lambda: Allowed.other(["a"], ["a"]), TypeError, "labels_x must be a torch.Tensor, got list"),
    "where: nothing": (lambda: Allowed.where(), ValueError, "where needs at least one condition"),
    "where: a number": (lambda: Allowed.where(ALL, 3), TypeError, "where takes Allowed or bool tensors, got int"),
    "where: a column": (lambda: Allowed.where(Column([1])), TypeError, "where takes .* got Column"),
    "where: integers": (lambda: Allowed.where(long(0, 1)), TypeError, "allowed must be bool"),
    "join: a number": (lambda: Allowed.not_self() & 3, TypeError, "unsupported operand"),
    "join: a list": (lambda: Allowed.not_self() | [True], TypeError, "unsupported operand"),
    "join: None": (lambda: Allowed.not_self() & None, TypeError, "unsupported operand"),
    "join: floats": (lambda: Allowed.not_self() & torch.ones(9), TypeError, "allowed must be bool"),
    "join: masks of two banks": (
        lambda: Allowed.mask(ALL) & ALL[:8],
        ValueError,
        "masks for 9 and for 8 rows do not belong to one bank",
    ),
    "join: `and`": (lambda: Allowed.not_self() and Allowed.not_self(), TypeError, "join two by & and |, not by `and`"),
    "join: `or`": (lambda: Allowed.not_self() or Allowed.not_self(), TypeError, "neither true nor false"),
    "join: `not`": (lambda: not Allowed.not_self(), TypeError, "neither true nor false"),
}
CALLED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a list": (lambda: [True] * 9, TypeError, "allowed must be a vecbank.Allowed or a bool tensor, got list"),
    "a column": (lambda: Column(range(9)), TypeError, "allowed must be a vecbank.Allowed or a bool tensor, got Column"),
    "an array beside tensors": (lambda: ALL.numpy(), TypeError, "allowed a numpy array|x is a torch tensor"),
    "mask: of fewer rows": (
        lambda: Allowed.mask(ALL[:8]),
        ValueError,
        r"allowed must broadcast to \(..., M\) = \(4, 9\), got \(8,\)",
    ),
    "mask: of fewer rows, in a join": (
        lambda: ~Allowed.rows(long(1)) & ALL[:8],
        ValueError,
        r"allowed must broadcast to \(..., M\) = \(4, 9\), got \(8,\)",
    ),
    "mask: of fewer queries": (lambda: Allowed.mask(ALL.expand(3, 9)), ValueError, r"got \(3, 9\)"),
    "bits: too few words": (
        lambda: Allowed.bits(torch.zeros(1, dtype=torch.uint8)),
        ValueError,
        "words must hold a bit for each of the bank's 9 rows, got 8 bits",
    ),
    "bits: of fewer queries": (
        lambda: Allowed.bits(torch.zeros(3, 2, dtype=torch.uint8)),
        ValueError,
        r"words must broadcast to \(4, 2\), got \(3, 2\)",
    ),
    "ranges: of fewer queries": (
        lambda: Allowed.ranges(long(0, 0, 0), 5),
        ValueError,
        r"start and stop must broadcast to \(4,\), got \(3,\)",
    ),
    "exclude: from M on": (
        lambda: Allowed.exclude(long(0, 9)),
        IndexError,
        "ids must lie below the bank's number of rows 9, got 9",
    ),
    "rows: from M on": (
        lambda: Allowed.rows(long(10, 3)),
        IndexError,
        "ids must lie below the bank's number of rows 9, got 10",
    ),
    "rows: the last of int64": (
        lambda: Allowed.rows(long(2**63 - 1)),
        IndexError,
        "ids must lie below the bank's number of rows 9, got 9223372036854775807",
    ),
    "rows: of fewer queries": (
        lambda: Allowed.rows(torch.zeros(3, 2, dtype=I64)),
        ValueError,
        r"ids must broadcast to \(4, 2\), got \(3, 2\)",
    ),
    "same: fewer labels": (
        lambda: Allowed.same(long(0, 0, 0, 0), torch.zeros(8, dtype=I64)),
        ValueError,
        r"labels_bank must have one label for each of the bank's rows \(9,\), got \(8,\)",
    ),
    "same: labels of a batched bank": (
        lambda: Allowed.same(long(0, 0, 0, 0), torch.zeros(1, 9, dtype=I64)),
        ValueError,
        r"labels_bank must have one label for each of the bank's rows \(9,\), got \(1, 9\)",
    ),
    "same: fewer queries": (
        lambda: Allowed.same(long(0, 0, 0), torch.zeros(9, dtype=I64)),
        ValueError,
        r"labels_x must broadcast to \(4,\), got \(3,\)",
    ),
    "70 sets": (lambda: joined(70), ValueError, "allowed joins 70 sets, and at most 64 sets can be searched"),
    "another device: mask": (lambda: Allowed.mask(ALL.to("meta")), ValueError, "allowed must be on x's device cpu"),
    **{
        f"another device: {name}": (made, ValueError, rf"allowed \({name}\) must be on x's device cpu, got meta")
        for name, made in {
            "bits": lambda: Allowed.bits(long(1, device="meta")),
            "ranges": lambda: Allowed.ranges(long(1, device="meta"), 4),
            "exclude": lambda: Allowed.exclude(long(1, device="meta")),
            "rows": lambda: ALL & Allowed.rows(long(1, device="meta")),
            "same": lambda: Allowed.same(long(1, device="meta"), torch.zeros(9, dtype=I64)),
        }.items()
    },
}


@pytest.mark.parametrize("what", MADE)
def test_refused_where_it_is_made(what: str) -> None:
    make_it, kind, text = MADE[what]
    with pytest.raises(kind, match=text):
        make_it()


@pytest.mark.parametrize("what", CALLED)
def test_refused_by_the_call(what: str) -> None:
    """By every function that takes a set, in the same words."""
    make_it, kind, text = CALLED[what]
    allowed: Any = make_it()
    calls: list[Callable[[], Any]] = [
        lambda: search(allowed),
        lambda: vecbank.nearest(X, BANK, allowed=allowed),
        lambda: vecbank.radius(X, BANK, 1.0, allowed=allowed),
        lambda: vecbank.radius_count(X, BANK, 1.0, allowed=allowed),
        lambda: vecbank.verify(X, BANK, torch.zeros(4, 1, dtype=I64), allowed=allowed),
        lambda: vecbank.search_part(X, BANK, 2, allowed=allowed),
        lambda: vecbank.Bank(BANK, "l2").topk(X, 2, allowed=allowed),
        lambda: vecbank.Bank(BANK, "l2").nearest(X, allowed=allowed),
        lambda: vecbank.Bank(BANK, "l2").radius(X, 1.0, allowed=allowed),
    ]
    for call in calls:
        with pytest.raises(kind, match=text):
            call()


def test_up_to_64_sets_are_joined() -> None:
    assert_same(tuple(search(joined(64))), tuple(search(torch.arange(9) < 5)))
    chosen = functools.reduce(operator.or_, [torch.arange(9) == i for i in range(9)] * 9, Allowed.mask(~ALL))
    assert_same(tuple(search(chosen)), tuple(search(None)))  # masks for all queries are one at once
