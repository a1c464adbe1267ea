"""Wrong arguments: the right exception, naming the argument, what came and (where it matters) the shapes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import error_cases
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

ROWS: dict[str, error_cases.Row] = dict(error_cases.ROWS)
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
    "topk: allowed shape": (
        lambda: vecbank.topk(X, BANK, 2, allowed=torch.ones(4, 4, dtype=torch.bool)),
        ValueError,
        ("allowed", "(4, 4)", "(4, 5)"),
    ),
    "topk: allowed too deep": (
        lambda: vecbank.topk(X, BANK, 2, allowed=torch.ones(2, 4, 5, dtype=torch.bool)),
        ValueError,
        ("allowed", "(2, 4, 5)"),
    ),
    "topk: allowed dtype": (lambda: vecbank.topk(X, BANK, 2, allowed=MASK.float()), TypeError, ("allowed", "float32")),
    "topk: allowed type": (lambda: vecbank.topk(X, BANK, 2, allowed=[True] * 5), TypeError, ("allowed", "list")),
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
    "topk: k beyond M, and the way out": (lambda: vecbank.topk(X, BANK, 6), ValueError, ("pad=True",)),
    "topk: k zero, padded": (lambda: vecbank.topk(X, BANK, 0, pad=True), ValueError, ("k", "0")),
    "topk: sparse allowed": (
        lambda: vecbank.topk(X, BANK, 2, allowed=MASK.to_sparse()),
        TypeError,
        ("allowed", "sparse_coo"),
    ),
    "quantize_train: valid dtype": (
        lambda: vecbank.quantize_train(X, BANK, valid=torch.ones(4)),
        TypeError,
        ("valid", "float32"),
    ),
    "lookup: sparse codes": (lambda: vecbank.lookup(CODES.to_sparse(), BANK), TypeError, ("codes", "sparse_coo")),
    "lookup: bool codes": (lambda: vecbank.lookup(CODES > 0, BANK), TypeError, ("codes", "bool")),
    "segment_sum: fractional num_codes": (
        lambda: vecbank.segment_sum(X, torch.tensor([0, 1, 2, 0]), 4.0),
        TypeError,
        ("num_codes", "float"),
    ),
    "firing_counts: index": (lambda: vecbank.firing_counts(CODES, 2), IndexError, ("indices", "2")),
    "firing_counts: values": (lambda: vecbank.firing_counts(CODES, 3, X), ValueError, ("values", "(4, 3)", "(2, 2)")),
    "Bank: sparse": (lambda: vecbank.Bank(BANK.to_sparse()), TypeError, ("vectors", "sparse_coo")),
    "Bank: quantized": (
        lambda: vecbank.Bank(torch._empty_affine_quantized([5, 3], scale=1.0, zero_point=0, dtype=torch.qint8)),
        TypeError,
        ("vectors", "qint8"),
    ),
    "Bank: bias of another metric": (
        lambda: vecbank.Bank(BANK, "l2", bias=BANK[:, 0]),
        ValueError,
        ("bias", "dot", "'l2'", "(5, 3)"),
    ),
    "topk: bias of another metric": (
        lambda: vecbank.topk(X, BANK, 2, "cosine", bias=BANK[:, 0]),
        ValueError,
        ("bias", "dot", "'cosine'"),
    ),
    "sparse_encode: allowed type": (
        lambda: vecbank.sparse_encode(X, BANK, None, 2, allowed=[True] * 5),
        TypeError,
        ("allowed", "list"),
    ),
    "sparse_encode: allowed dtype": (
        lambda: vecbank.sparse_encode(X, BANK, None, 2, allowed=torch.ones(5)),
        TypeError,
        ("allowed", "float32"),
    ),
    "sparse_encode: allowed shape": (
        lambda: vecbank.sparse_encode(X, BANK, None, 2, allowed=MASK[:4]),
        ValueError,
        ("allowed", "(5,)", "(4,)"),
    ),
    "sparse_encode: score": (lambda: vecbank.sparse_encode(X, BANK, None, 2, score="a"), TypeError, ("score", "str")),
    "sparse_encode: scores": (
        lambda: vecbank.sparse_encode(X, BANK, None, 2, score=[1.0] * 5),
        TypeError,
        ("score", "list"),
    ),
    "sparse_encode: k beyond K": (lambda: vecbank.sparse_encode(X, BANK, None, 6), ValueError, ("k", "5", "6")),
    "sparse_encode_threshold: bandwidth": (
        lambda: vecbank.sparse_encode_threshold(X, BANK, None, bandwidth=float("nan")),
        ValueError,
        ("bandwidth", "nan"),
    ),
    "sparse_encode_norm: norms": (
        lambda: vecbank.sparse_encode_norm(X, BANK, None, [1.0] * 5),
        TypeError,
        ("norms", "list"),
    ),
    "sparse_decode: bias": (
        lambda: vecbank.sparse_decode(X[:2, :2], CODES, BANK, X[0, :2]),
        ValueError,
        ("bias", "(3,)", "(2,)"),
    ),
    "residual_quantize: books": (lambda: vecbank.residual_quantize(X, 5), TypeError, ("books", "int")),
    "pq_scores: tables": (lambda: vecbank.pq_scores([[[1.0]]], CODES), TypeError, ("tables", "list")),
    "unpack_bits: type": (lambda: vecbank.codes.unpack_bits([1], 2), TypeError, ("packed", "list")),
    "VectorQuantize: topk": (
        lambda: vecbank.nn.VectorQuantize(dim=3, codebook_size=12)(gauss(1, 4, 3), topk=13),
        ValueError,
        ("topk", "12", "13"),
    ),
    "SparseAutoencoder: aux_k": (
        lambda: vecbank.nn.SparseAutoencoder(3, 12, 4, aux_k=13),
        ValueError,
        ("aux_k", "12", "13"),
    ),
    "set_isa": (lambda: vecbank._C.set_isa("mmx"), ValueError, ("mmx",)),
}

_THRESHOLDS: tuple[tuple[Any, type[Exception]], ...] = (
    (float("nan"), ValueError),
    (-0.5, ValueError),
    (torch.tensor(-0.5), ValueError),
    (torch.tensor([0.0, 0.0, torch.nan, 0.0, 0.0]), ValueError),
    (torch.ones(4), ValueError),
    (torch.ones(5, dtype=torch.int64), TypeError),
    (None, TypeError),
    ("a", TypeError),
    (True, TypeError),
)
for _threshold, _kind in _THRESHOLDS:
    ROWS[f"sparse_encode_threshold: {_threshold!r}"] = (
        lambda t=_threshold: vecbank.sparse_encode_threshold(X, BANK, None, t),
        _kind,
        ("threshold", "must"),
    )
for _name, _call in SEARCHES.items():
    for _layout in ("to_sparse", "to_sparse_csr"):
        ROWS[f"{_name}: {_layout} x"] = (
            lambda f=_call, to=_layout: f(getattr(X, to)(), BANK),
            TypeError,
            ("x must be a dense tensor", _layout[3:]),
        )
        ROWS[f"{_name}: {_layout} bank"] = (
            lambda f=_call, to=_layout: f(X, getattr(BANK, to)()),
            TypeError,
            ("bank must be a dense tensor", _layout[3:]),
        )
    for _how in (torch.strided, torch.jagged):
        ROWS[f"{_name}: nested x, {_how}"] = (
            lambda f=_call, how=_how: f(torch.nested.nested_tensor([X, X[:2]], layout=how), BANK),
            TypeError,
            ("x must be a dense tensor", "nested"),
        )


@pytest.mark.parametrize("name", list(ROWS))
@pytest.mark.filterwarnings("ignore:.*nested tensors|Sparse CSR:UserWarning")
def test_message(name: str) -> None:
    call, kind, words = ROWS[name]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"


class Subclass(torch.Tensor):
    """A tensor whose numbers the checks in Python do not look at."""


def test_a_code_that_only_the_op_looks_at_is_an_index_error() -> None:
    for codes in (torch.tensor([7]), torch.tensor([-2])):
        with pytest.raises(IndexError, match="^codes must lie between -1 and"):
            vecbank.lookup(codes.as_subclass(Subclass), BANK)
        with pytest.raises(IndexError, match="^codes must lie between -1 and"):
            vecbank.segment_sum(X[:1], codes.as_subclass(Subclass), 5)


def test_missing_memory_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an op's result, in what torch allocates for a function, in an op's workspace, and in a backward pass."""
    wide, long = torch.ones(1, 1).expand(1 << 30, 1), torch.ones(1, 1).expand(1 << 25, 1)
    with pytest.raises(MemoryError, match="^project: there is not enough memory$"):
        vecbank.project(wide, long)
    with pytest.raises(
        MemoryError,
        match=rf"^sparse.firing_counts: there is not enough memory for {8 * (2**55 + 1)} bytes \(latents = ",
    ):
        vecbank.firing_counts(CODES, 1 << 55)

    def full(*args: Any) -> Any:
        raise RuntimeError("check_status, /csrc/torch/common.h:123, vecbank: out of memory for the workspace\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(vecbank.functional, "_nearest", full)
        with pytest.raises(MemoryError, match="^nearest: there is not enough memory$"):
            vecbank.nearest(X, BANK)
        patch.setattr(vecbank._ops.project, "as_if_op", full)
        scores = vecbank.project(X.clone().requires_grad_(), BANK)
        with pytest.raises(MemoryError, match="^project_backward: there is not enough memory$"):
            scores.sum().backward()


def test_other_errors_of_ops_begin_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: Any) -> Any:
        raise RuntimeError("pair_rows, /csrc/torch/common.h:160, vecbank: x (4, 3) and bank (5, 3) differ")

    monkeypatch.setattr(vecbank.functional, "_nearest", refuses)
    with pytest.raises(ValueError, match="^x \\(4, 3\\) and bank"):
        vecbank.nearest(X, BANK)
    for kind in (NotImplementedError, RuntimeError):  # what is not an op's report stays as it is

        def raises(*args: Any, kind: type[Exception] = kind) -> Any:
            raise kind("a message of another kind")

        monkeypatch.setattr(vecbank.functional, "_nearest", raises)
        with pytest.raises(kind, match="^a message of another kind"):
            vecbank.nearest(X, BANK)


def test_a_refused_isa_changes_nothing() -> None:
    before = vecbank._C.isa()
    with pytest.raises(ValueError):
        vecbank._C.set_isa("")
    assert vecbank._C.isa() == before


@pytest.mark.parametrize("training", [False, True])
def test_missing_memory_in_a_module_is_a_memory_error(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise RuntimeError("check_status, /csrc/torch/common.h:123, vecbank: out of memory for the workspace\nmore")

    module = vecbank.nn.VectorQuantize(3, 5).train(training)
    monkeypatch.setattr(vecbank.nn._vq.ops, "_ops", SimpleNamespace(quantize=full, quantize_train=full))
    with pytest.raises(MemoryError, match="^VectorQuantize: there is not enough memory$"):
        module(X.unsqueeze(0))
