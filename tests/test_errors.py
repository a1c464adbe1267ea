"""Wrong arguments: the right exception, naming the argument, what came and (where it matters) the shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import gauss

import vecbank

X, BANK = gauss(4, 3), gauss(5, 3)
CODES = torch.tensor([[0, 1], [2, -1]])
MASK = torch.ones(5, dtype=torch.bool)
SEARCHES: dict[str, Callable[..., Any]] = {
    "project": vecbank.project,
    "topk": lambda x, bank, *rest: vecbank.topk(x, bank, 2, *rest),
    "nearest": vecbank.nearest,
    "quantize": vecbank.quantize,
}

# what is wrong: (call, exception, words the message must hold)
Row = tuple[Callable[[], Any], type[Exception], tuple[str, ...]]
ROWS: dict[str, Row] = {}
for _name, _call in SEARCHES.items():
    ROWS |= {
        f"{_name}: width": (lambda f=_call: f(gauss(4, 7), BANK), ValueError, ("x", "bank", "7", "3")),
        f"{_name}: scalar x": (lambda f=_call: f(torch.tensor(1.0), BANK), ValueError, ("x", "scalar")),
        f"{_name}: one-dimensional bank": (lambda f=_call: f(X, BANK[0]), ValueError, ("bank", "(3,)")),
        f"{_name}: four-dimensional bank": (
            lambda f=_call: f(X, gauss(2, 2, 5, 3)),
            ValueError,
            ("bank", "(2, 2, 5, 3)"),
        ),
        f"{_name}: batches differ": (
            lambda f=_call: f(gauss(2, 4, 3), gauss(3, 5, 3)),
            ValueError,
            ("(2, 4, 3)", "(3, 5, 3)"),
        ),
        f"{_name}: flat x, batched bank": (
            lambda f=_call: f(X, gauss(2, 5, 3)),
            ValueError,
            ("(4, 3)", "(2, 5, 3)"),
        ),
        f"{_name}: no tensor x": (lambda f=_call: f([[1.0, 2.0, 3.0]], BANK), TypeError, ("x", "list")),
        f"{_name}: no tensor bank": (lambda f=_call: f(X, [[1.0, 2.0, 3.0]]), TypeError, ("bank", "list")),
        f"{_name}: integer x": (lambda f=_call: f(X.long(), BANK), TypeError, ("x", "int64")),
        f"{_name}: integer bank": (lambda f=_call: f(X, BANK.long()), TypeError, ("bank", "int64")),
        f"{_name}: complex x": (
            lambda f=_call: f(X.to(torch.complex64), BANK),
            TypeError,
            ("x", "complex64"),
        ),
        f"{_name}: float64 beside float32": (
            lambda f=_call: f(X.double(), BANK),
            TypeError,
            ("float64", "float32"),
        ),
        f"{_name}: float32 beside bfloat16": (
            lambda f=_call: f(X, BANK.bfloat16()),
            TypeError,
            ("float32", "bfloat16"),
        ),
        f"{_name}: bfloat16 beside float16": (
            lambda f=_call: f(X.bfloat16(), BANK.half()),
            TypeError,
            ("bfloat16", "float16"),
        ),
        f"{_name}: unknown metric": (
            lambda f=_call: f(X, BANK, "manhattan"),
            ValueError,
            ("metric", "manhattan"),
        ),
        f"{_name}: metric of another type": (
            lambda f=_call: f(X, BANK, 3),
            (TypeError, ValueError),
            ("metric",),
        ),
        f"{_name}: other device": (
            lambda f=_call: f(X, BANK.to("meta")),
            (ValueError, TypeError),
            ("bank", "meta", "cpu"),
        ),
    }
ROWS |= {
    "topk: k zero": (lambda: vecbank.topk(X, BANK, 0), ValueError, ("k", "0", "5")),
    "topk: k negative": (lambda: vecbank.topk(X, BANK, -3), ValueError, ("k", "-3", "5")),
    "topk: k beyond M": (lambda: vecbank.topk(X, BANK, 6), ValueError, ("k", "6", "5")),
    "topk: empty bank": (lambda: vecbank.topk(X, BANK[:0], 1), ValueError, ("k", "1", "0")),
    "topk: empty x, k beyond M": (lambda: vecbank.topk(X[:0], BANK, 6), ValueError, ("k", "6", "5")),
    "topk: fractional k": (lambda: vecbank.topk(X, BANK, 2.5), TypeError, ("k", "float")),
    "topk: mask shape": (
        lambda: vecbank.topk(X, BANK, 2, mask=torch.ones(4, 4, dtype=torch.bool)),
        ValueError,
        ("mask", "(4, 4)", "(4, 5)"),
    ),
    "topk: mask too deep": (
        lambda: vecbank.topk(X, BANK, 2, mask=torch.ones(2, 4, 5, dtype=torch.bool)),
        ValueError,
        ("mask", "(2, 4, 5)"),
    ),
    "topk: mask dtype": (lambda: vecbank.topk(X, BANK, 2, mask=MASK.float()), TypeError, ("mask", "float32")),
    "topk: mask type": (lambda: vecbank.topk(X, BANK, 2, mask=[True] * 5), TypeError, ("mask", "list")),
    "project: out_dtype": (
        lambda: vecbank.project(X, BANK, out_dtype=torch.int32),
        (TypeError, ValueError),
        ("out_dtype", "int32"),
    ),
    "lookup: float codes": (lambda: vecbank.lookup(CODES.float(), BANK), TypeError, ("codes", "float32")),
    "lookup: codes type": (lambda: vecbank.lookup([0, 1], BANK), TypeError, ("codes", "list")),
    "lookup: code too large": (lambda: vecbank.lookup(CODES + 3, BANK), IndexError, ("codes", "5")),
    "lookup: code too small": (lambda: vecbank.lookup(CODES - 1, BANK), IndexError, ("codes", "-2")),
    "lookup: code for an empty bank": (lambda: vecbank.lookup(CODES, BANK[:0]), IndexError, ("codes", "2")),
    "lookup: reduce": (lambda: vecbank.lookup(CODES, BANK, reduce="max"), ValueError, ("reduce", "max")),
    "lookup: reduce of one code": (
        lambda: vecbank.lookup(torch.tensor(1), BANK, reduce="sum"),
        ValueError,
        ("codes", "scalar"),
    ),
    "lookup: weights shape": (
        lambda: vecbank.lookup(CODES, BANK, gauss(2, 3), reduce="sum"),
        ValueError,
        ("weights", "(2, 3)", "(2, 2)"),
    ),
    "lookup: weights dtype": (
        lambda: vecbank.lookup(CODES, BANK, CODES, reduce="sum"),
        TypeError,
        ("weights", "int64"),
    ),
    "lookup: bank dtype": (lambda: vecbank.lookup(CODES, BANK.long()), TypeError, ("bank", "int64")),
    "lookup: bank rank": (lambda: vecbank.lookup(CODES, BANK[0]), ValueError, ("bank", "(3,)")),
    "segment_sum: shapes": (
        lambda: vecbank.segment_sum(X, torch.tensor([0, 1]), 3),
        ValueError,
        ("codes", "(2,)", "(4, 3)"),
    ),
    "segment_sum: codes dtype": (
        lambda: vecbank.segment_sum(X, torch.ones(4), 3),
        TypeError,
        ("codes", "float32"),
    ),
    "segment_sum: code too large": (
        lambda: vecbank.segment_sum(X, torch.tensor([0, 1, 2, 3]), 3),
        IndexError,
        ("codes", "3"),
    ),
    "segment_sum: num_codes": (
        lambda: vecbank.segment_sum(X, torch.tensor([0, 1, 2, 3]), -1),
        ValueError,
        ("num_codes", "-1"),
    ),
    "segment_sum: weights": (
        lambda: vecbank.segment_sum(X, torch.tensor([0, 1, 2, 0]), 3, gauss(3)),
        ValueError,
        ("weights", "(3,)"),
    ),
    "segment_sum: x dtype": (
        lambda: vecbank.segment_sum(X.long(), torch.tensor([0, 1, 2, 0]), 3),
        TypeError,
        ("x", "int64"),
    ),
    "segment_sum: x rank": (
        lambda: vecbank.segment_sum(torch.tensor(1.0), torch.tensor(0), 3),
        ValueError,
        ("x", "()"),
    ),
    "Bank: type": (lambda: vecbank.Bank([[1.0]]), TypeError, ("vectors", "list")),
    "Bank: rank": (lambda: vecbank.Bank(BANK[0]), ValueError, ("vectors", "(3,)")),
    "Bank: dtype": (lambda: vecbank.Bank(BANK.long()), TypeError, ("vectors", "int64")),
    "Bank: metric type": (lambda: vecbank.Bank(BANK, ["dot"]), ValueError, ("metric", "['dot']")),
    "topk: no metric": (lambda: vecbank.topk(X, BANK, 1, ""), ValueError, ("metric", "''")),
    "lookup: reduce type": (lambda: vecbank.lookup(CODES, BANK, reduce=["sum"]), ValueError, ("reduce", "['sum']")),
    "Bank: metric": (lambda: vecbank.Bank(BANK, metric="manhattan"), ValueError, ("metric", "manhattan")),
    "Bank: width": (
        lambda: vecbank.Bank(BANK, metric="l2").nearest(gauss(2, 4)),
        ValueError,
        ("x", "(2, 4)", "3"),
    ),
    "Bank.update_: shapes": (
        lambda: vecbank.Bank(BANK).update_(torch.tensor([0, 1]), gauss(3, 3)),
        ValueError,
        ("vectors", "(3, 3)"),
    ),
    "Bank.update_: width": (
        lambda: vecbank.Bank(BANK).update_(torch.tensor([0, 1]), gauss(2, 4)),
        ValueError,
        ("vectors", "(2, 4)"),
    ),
    "Bank.update_: row": (
        lambda: vecbank.Bank(BANK).update_(torch.tensor([0, 5]), gauss(2, 3)),
        IndexError,
        ("rows", "5"),
    ),
    "set_isa": (lambda: vecbank._C.set_isa("mmx"), ValueError, ("mmx",)),
}


@pytest.mark.parametrize("name", list(ROWS))
def test_message(name: str) -> None:
    call, kind, words = ROWS[name]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"


def test_a_refused_isa_changes_nothing() -> None:
    before = vecbank._C.isa()
    with pytest.raises(ValueError):
        vecbank._C.set_isa("")
    assert vecbank._C.isa() == before
