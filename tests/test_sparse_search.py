"""Retrieval with sparse vectors: the bits of the dense product, in the order of the query's terms."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import assert_same, gauss, seeded
from torch import Tensor, nn
from torch.autograd import gradcheck

import vecbank
from vecbank import Allowed, reference
from vecbank._sparse_bank import invert, invert_elsewhere
from vecbank.sparse import SparseBank, scores, topk


def matrix(m: int, width: int, *, share: float = 0.2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Documents with their zeros; every seventh is empty, and nobody has the last term."""
    held = torch.rand(m, width, generator=seeded(seed)) < share
    held[::7] = False
    held[:, -1:] = False
    return torch.where(held, gauss(m, width, seed=seed + 1, dtype=dtype), 0.0)


def asked(*shape: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Terms, some of them -1 and some twice, and their weights."""
    return torch.randint(-1, width, shape, generator=seeded(seed)), gauss(*shape, seed=seed + 1, dtype=dtype)


SIZES = {
    "small": (50, 20, (7, 4), 5),
    "k is M": (30, 8, (3, 5), 30),
    "several blocks": (9000, 40, (6, 5), 10),
    "a large k": (9000, 12, (2, 3), 700),
    "many queries": (300, 30, (200, 6), 3),
    "one query": (20_000, 30, (6,), 10),
    "leading dimensions": (40, 9, (2, 3, 4), 2),
    "one term": (40, 9, (8, 1), 4),
    "no terms": (40, 9, (3, 0), 4),
    "no queries": (40, 9, (0, 3), 4),
    "one document": (1, 3, (2, 2), 1),
    "full documents": (100, 6, (9, 6), 7),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_bits_of_the_dense_product(size: str, dtype: torch.dtype, way: str) -> None:
    m, width, shape, k = SIZES[size]
    dense = matrix(m, width, share=1.0 if size == "full documents" else 0.2, dtype=dtype)
    ids, weights = asked(*shape, width=width, seed=3, dtype=dtype)
    bank = SparseBank.from_dense(dense)
    assert_same(bank.to_dense(), dense)
    want, best = reference.sparse_scores(ids, weights, dense), reference.sparse_topk(ids, weights, dense, k)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            got = scores(ids, weights, bank)
            assert_same(got, want)
            assert torch.equal(got.signbit(), want.signbit())
            assert_same(tuple(topk(ids, weights, bank, k)), tuple(best))
    finally:
        torch.set_num_threads(before)


def test_the_order_of_terms_is_that_of_the_query(way: str) -> None:
    """2^60 + 1 - 2^60 is 0 or 1 in float64, by the order."""
    bank = SparseBank.from_dense(torch.tensor([[2.0**60, 1.0, -(2.0**60)]]))
    ids = torch.tensor([[0, 1, 2], [0, 2, 1], [2, 0, 1]])
    assert scores(ids, None, bank).tolist() == [[0.0], [1.0], [1.0]]


def test_products_are_rounded_before_they_are_added(way: str) -> None:
    """(1 + e)(1 - e) is 1 when rounded, so that nothing is left of it; fused it would leave -e^2."""
    e = 2.0**-40
    bank = SparseBank.from_dense(torch.tensor([[1.0, 1.0 - e]], dtype=torch.float64))
    weights = torch.tensor([-1.0, 1.0 + e], dtype=torch.float64)
    assert scores(torch.tensor([0, 1]), weights, bank).tolist() == [0.0]


def test_a_term_counts_as_often_as_it_comes(way: str) -> None:
    bank = SparseBank.from_dense(torch.tensor([[0.0, 3.0], [1.0, 0.0]]))
    ids, table = torch.tensor([[1, 1, 0, -1], [-1, -1, -1, -1]]), torch.tensor([10.0, 0.5])
    assert scores(ids, table, bank).tolist() == [[3.0, 10.0], [0.0, 0.0]]
    assert scores(ids, None, bank).tolist() == [[6.0, 1.0], [0.0, 0.0]]


def test_documents_without_a_term_score_zero(way: str) -> None:
    bank = SparseBank.from_dense(torch.tensor([[0.0, -1.0], [0.0, 0.0], [0.0, 2.0], [5.0, 0.0]]))
    found = topk(torch.tensor([[1], [-1]]), torch.tensor([[1.0], [1.0]]), bank, 4)
    assert found.indices.tolist() == [[2, 1, 3, 0], [0, 1, 2, 3]]
    assert found.values.tolist() == [[2.0, 0.0, 0.0, -1.0], [0.0] * 4]


def test_no_entries_and_no_documents(way: str) -> None:
    ids, weights = asked(4, 3, width=5)
    empty = SparseBank.from_dense(torch.zeros(6, 5))
    assert scores(ids, weights, empty).tolist() == [[0.0] * 6] * 4
    assert topk(ids, weights, empty, 2).indices.tolist() == [[0, 1]] * 4
    nobody = SparseBank.from_dense(torch.zeros(0, 5))
    assert scores(ids, weights, nobody).shape == (4, 0)
    found = topk(ids, weights, nobody, 2, pad=True)
    assert found.indices.tolist() == [[-1, -1]] * 4 and bool((found.values == -torch.inf).all())
    none = SparseBank(torch.zeros(4, dtype=torch.int64), ids[0, :0], weights[0, :0], width=0)
    assert scores(torch.full((2, 3), -1), torch.zeros(2, 3), none).tolist() == [[0.0] * 3] * 2


def test_scores_that_are_no_numbers(way: str) -> None:
    """NaN never wins, and what a document does not hold adds nothing, whatever the query's weight is."""
    dense = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [0.0, 1.0], [-torch.inf, 0.0], [torch.inf, 1.0]])
    bank = SparseBank.from_dense(dense)
    found = topk(torch.tensor([[0, 1]]), torch.tensor([[1.0, 2.0]]), bank, 5)
    assert found.indices.tolist() == [[4, 2, 0, 3, -1]]
    assert found.values.tolist() == [[torch.inf, 2.0, 1.0, -torch.inf, -torch.inf]]
    odd = torch.tensor([[torch.nan], [torch.inf]])
    assert scores(torch.tensor([[1], [1]]), odd, bank).nan_to_num(7.0, posinf=9.0).tolist() == [
        [0.0, 0.0, 7.0, 0.0, 7.0],
        [0.0, 0.0, 9.0, 0.0, 9.0],
    ]
    assert topk(torch.tensor([[1]]), odd[:1], bank, 5).indices.tolist() == [[0, 1, 3, -1, -1]]


def test_allowed(way: str) -> None:
    m, width, n = 5000, 20, 12
    dense, (ids, weights) = matrix(m, width), asked(n, 4, width=width)
    bank = SparseBank.from_dense(dense)
    some = torch.rand(n, m, generator=seeded(5)) < 0.01
    sets: dict[str, tuple[Allowed | Tensor, Tensor]] = {
        "a mask": (some, some),
        "a mask for all": (some[0], some[0].expand(n, m)),
        "ranges": (Allowed.ranges(torch.arange(n), 4500), torch.arange(m).expand(n, m) >= torch.arange(n)[:, None]),
        "none": (torch.zeros(m, dtype=torch.bool), torch.zeros(n, m, dtype=torch.bool)),
        "joined": (Allowed.mask(some) & Allowed.not_self(), some & ~torch.eye(n, m, dtype=torch.bool)),
    }
    few = torch.randint(-1, m, (n, 9), generator=seeded(6))
    place = torch.where(few < 0, m, few)
    named = torch.zeros(n, m + 1).scatter_(1, place, 1.0)[:, :m] > 0
    sets["few rows"] = (Allowed.rows(few), named)
    sets["few rows, joined"] = (
        Allowed.rows(few) & Allowed.mask(some | named.roll(1, 0)),
        named & (some | named.roll(1, 0)),
    )
    sets["labels"] = (
        Allowed.same(torch.arange(n) % 4, torch.arange(m) % 4),
        torch.arange(n)[:, None] % 4 == torch.arange(m) % 4,
    )
    sets["ranges"] = (sets["ranges"][0], sets["ranges"][1] & (torch.arange(m) < 4500))
    for what, (allowed, mask) in sets.items():
        for k in (1, 10, 60):
            want = reference.sparse_topk(ids, weights, dense, k, mask)
            assert_same(tuple(topk(ids, weights, bank, k, allowed=allowed)), tuple(want), what)


def test_pad(way: str) -> None:
    dense, (ids, weights) = matrix(9, 6), asked(4, 3, width=6)
    found, want = (
        topk(ids, weights, SparseBank.from_dense(dense), 12, pad=True),
        reference.sparse_topk(ids, weights, dense, 9),
    )
    assert_same((found.values[:, :9], found.indices[:, :9]), tuple(want))
    assert bool((found.indices[:, 9:] == -1).all()) and bool((found.values[:, 9:] == -torch.inf).all())


# ---- Gradients ------------------------------------------------------------------------------------------------------


def leaves() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dense = matrix(15, 6, share=0.5, dtype=torch.float64)
    bank = SparseBank.from_dense(dense)
    ids, weights = asked(4, 3, width=6, dtype=torch.float64)
    return bank.offsets, bank.ids, bank.weights.clone().requires_grad_(), ids, weights.requires_grad_()


@pytest.mark.parametrize("table", [False, True], ids=["weights", "table"])
def test_gradcheck(way: str, table: bool) -> None:  # noqa: FBT001
    offsets, terms, held, ids, weights = leaves()
    weights = gauss(6, dtype=torch.float64).requires_grad_() if table else weights

    def bank(values: Tensor) -> SparseBank:
        return SparseBank(offsets, terms, values, 6)

    assert gradcheck(lambda w, v: scores(ids, w, bank(v)), (weights, held))
    assert gradcheck(lambda w, v: topk(ids, w, bank(v), 5).values, (weights, held))
    mask = torch.arange(15) % 5 == 0  # fewer than five: -inf, which has no gradient
    assert gradcheck(lambda w, v: topk(ids, w, bank(v), 5, allowed=mask).values[:, :3], (weights, held))


def test_gradients_are_sums_in_float64(way: str) -> None:
    """Of float32 leaves: the float64 gradient of the dense product, rounded once."""
    dense, (ids, weights) = matrix(300, 12, share=0.6), asked(40, 5, width=12)
    values = SparseBank.from_dense(dense).weights.clone().requires_grad_()
    offsets, terms = SparseBank.from_dense(dense).offsets, SparseBank.from_dense(dense).ids
    weights.requires_grad_()
    grad = gauss(40, 300, seed=9)
    scores(ids, weights, SparseBank(offsets, terms, values, 12)).backward(grad)
    w, d = weights.detach().double().requires_grad_(), dense.double().requires_grad_()
    reference.sparse_scores(ids, w, d).backward(grad.double())
    assert weights.grad is not None and values.grad is not None and w.grad is not None and d.grad is not None
    torch.testing.assert_close(weights.grad, w.grad.float(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(values.grad, d.grad[dense != 0].float(), rtol=1e-7, atol=1e-9)


def test_the_gradient_is_the_same_on_any_number_of_threads() -> None:
    dense, (ids, weights) = matrix(3000, 25), asked(50, 8, width=25)
    grads, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            w, d = weights.clone().requires_grad_(), dense.clone().requires_grad_()
            bank = SparseBank.from_dense(d)
            (topk(ids, w, bank, 20).values.square().sum() + scores(ids, w, bank).square().sum()).backward()
            grads.append((w.grad, d.grad))
    finally:
        torch.set_num_threads(before)
    assert_same(grads[1], grads[0])
    assert_same(grads[2], grads[0])


def test_learning_a_parameter() -> None:
    """An optimiser writes into the weights, and the next call sees it."""
    given = SparseBank.from_dense(matrix(20, 5, share=0.6))
    bank = SparseBank(given.offsets, given.ids, nn.Parameter(given.weights.clone()), 5)
    assert [name for name, _ in bank.named_parameters()] == ["weights"]
    optimiser, target = torch.optim.SGD(bank.parameters(), lr=0.1), torch.arange(20) / 10.0
    ids = torch.arange(5)
    losses = []
    for _ in range(30):
        loss = (scores(ids, None, bank) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        with torch.no_grad():
            assert_same(scores(ids, None, bank), reference.sparse_scores(ids, torch.ones(5), bank.to_dense()))
    assert losses[-1] < 0.5 * losses[0]


# ---- The bank -------------------------------------------------------------------------------------------------------


def test_forms_of_one_matrix() -> None:
    dense, (ids, weights) = matrix(30, 9), asked(5, 4, width=9)
    want = scores(ids, weights, SparseBank.from_dense(dense))
    rows = scipy.sparse.csr_matrix(dense.numpy())
    turned = SparseBank.from_dense(dense)  # every row backwards: the order within a row is the caller's
    ends = list(zip(turned.offsets[:-1].tolist(), turned.offsets[1:].tolist(), strict=True))
    back = torch.cat([torch.arange(begin, end).flip(0) for begin, end in ends])
    forms = {
        "torch": SparseBank.from_csr(dense.to_sparse_csr()),
        "scipy": SparseBank.from_csr(rows),
        "numpy": SparseBank(rows.indptr, rows.indices, rows.data, 9),
        "numpy, dense": SparseBank.from_dense(dense.numpy()),
        "backwards": SparseBank(turned.offsets, turned.ids[back], turned.weights[back], 9),
    }
    for what, bank in forms.items():
        assert len(bank) == 30 and bank.width == 9
        assert_same(scores(ids, weights, bank), want, what)
        assert_same(bank.to_dense(), dense, what)
    rows.data[:] = 0.0  # an array's memory is its owner's: the bank has a copy
    assert_same(scores(ids, weights, forms["scipy"]), want)


def test_numpy_queries() -> None:
    dense, (ids, weights) = matrix(30, 9), asked(5, 4, width=9)
    bank = SparseBank.from_dense(dense)
    found, want = topk(ids.numpy(), weights.numpy(), bank, 3), topk(ids, weights, bank, 3)
    assert isinstance(found.indices, np.ndarray) and np.array_equal(found.indices, want.indices.numpy())
    assert np.array_equal(scores(ids.int().numpy(), weights.numpy(), bank), scores(ids, weights, bank).numpy())


def test_state_copies_and_writes() -> None:
    dense, (ids, weights) = matrix(30, 9), asked(5, 4, width=9)
    bank = SparseBank.from_dense(dense)
    want = scores(ids, weights, bank)
    for other in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        assert_same(scores(ids, weights, other), want)
    other = SparseBank.from_dense(torch.where(dense != 0, 1.0, 0.0))
    assert not torch.equal(scores(ids, weights, other), want)
    other.load_state_dict(bank.state_dict())
    assert_same(scores(ids, weights, other), want)
    other.weights.mul_(2.0)
    assert_same(scores(ids, weights, other), reference.sparse_scores(ids, weights, 2 * dense))
    wide = copy.deepcopy(bank).double()
    assert_same(scores(ids, weights.double(), wide), reference.sparse_scores(ids, weights.double(), dense.double()))
    fewer = SparseBank.from_dense(dense.flip(0))  # as many entries, in other places
    fewer.load_state_dict(bank.state_dict())
    assert_same(scores(ids, weights, fewer), want)
    with torch.inference_mode():
        assert_same(scores(ids, weights, SparseBank.from_dense(dense)), want)


def test_the_transposition_of_other_devices_is_the_same() -> None:
    bank = SparseBank.from_dense(matrix(200, 30))
    assert_same(tuple(invert_elsewhere(bank.offsets, bank.ids, 30)), tuple(invert(bank.offsets, bank.ids, 30)))


@pytest.mark.parametrize("turn", [invert, invert_elsewhere], ids=["kernel", "plain torch"])
def test_rows_that_are_wrong_are_named(turn: Callable[..., Any]) -> None:
    offsets = torch.tensor([0, 2, 3, 6])
    for ids, message in (
        ([0, 1, 2, 3, 0, 3], "row 2 has 3 twice"),
        ([0, 1, 4, 3, 0, 1], "width - 1 = 3, but row 1 has 4"),
        ([0, -1, 2, 3, 0, 1], "row 0 has -1"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=re.escape(message)):
            turn(offsets, torch.tensor(ids), 4)
    for ends in ([0, 2, 1, 6], [1, 2, 3, 6], [0, 2, 3, 5]):
        with pytest.raises((ValueError, RuntimeError), match="offsets must"):
            turn(torch.tensor(ends), torch.arange(6), 6)


def test_lists_that_are_out_of_order_are_not_read_beyond() -> None:
    """The op called directly with documents that no bank would list: any answer, but nothing outside is touched."""
    starts, weights = torch.tensor([0, 6, 12]), torch.ones(12)
    listed = torch.tensor([5, 9, -3, 2**31 - 1, 4095, 4096, 0, 99, 7, 7, -(2**31), 1], dtype=torch.int32)
    ids, asked_weights = torch.tensor([[0, 1]]), torch.ones(1, 2)
    for count in (1, 10, 5000):
        lists = (starts, listed, weights, count)
        assert torch.ops.vecbank.sparse_scores(ids, asked_weights, *lists).shape == (1, count)
        found = torch.ops.vecbank.sparse_topk(ids, asked_weights, *lists, 1, [], [])
        assert 0 <= int(found[1]) < count
        for indices in (None, torch.tensor([[2**40]])):
            grad = torch.ones(1, count if indices is None else 1)
            made = torch.ops.vecbank.sparse_backward(grad, ids, asked_weights, *lists, indices, True, True)
            assert made[0].shape == (1, 2) and made[1].shape == (12,)


# ---- Compiled -------------------------------------------------------------------------------------------------------


def test_compile() -> None:
    torch._dynamo.reset()
    dense, (ids, weights) = matrix(40, 9), asked(5, 4, width=9)
    bank = SparseBank.from_dense(dense)

    def program(ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return scores(ids, weights, bank), *topk(ids, weights, bank, 3, allowed=Allowed.not_self())

    w, plain = (weights.clone().requires_grad_() for _ in range(2))
    got, want = torch.compile(program, fullgraph=True)(ids, w), program(ids, plain)
    assert_same(got, want)
    (got[0].sum() + got[1].sum()).backward()
    (want[0].sum() + want[1].sum()).backward()
    assert_same(w.grad, plain.grad)


# ---- Errors ---------------------------------------------------------------------------------------------------------

DENSE = matrix(8, 5, share=0.8)
BANK = SparseBank.from_dense(DENSE)
IDS, WEIGHTS = torch.tensor([[0, 1], [2, -1]]), torch.ones(2, 2)
ROW = (torch.tensor([0, 2]), torch.tensor([1, 3]), torch.ones(2))
ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "documents": (lambda: scores(IDS, WEIGHTS, DENSE), TypeError, "documents must be a sparse.SparseBank"),
    "float ids": (
        lambda: scores(IDS.float(), WEIGHTS, BANK),
        TypeError,
        "query_ids must be integers, got torch.float32",
    ),
    "a scalar": (
        lambda: scores(IDS[0, 0], WEIGHTS, BANK),
        ValueError,
        "query_ids must have shape (..., T), got a scalar",
    ),
    "a term": (lambda: scores(IDS + 3, WEIGHTS, BANK), IndexError, "query_ids must lie between -1 and 4"),
    "a term below": (lambda: topk(IDS - 1, WEIGHTS, BANK, 1), IndexError, "query_ids must lie between -1 and 4"),
    "dtype": (lambda: scores(IDS, WEIGHTS.double(), BANK), TypeError, "dtype torch.float32, got torch.float64"),
    "shape": (lambda: scores(IDS, WEIGHTS[:, :1], BANK), ValueError, "(2, 2), or be a table of shape (5,), got (2, 1)"),
    "device": (lambda: scores(IDS.to("meta"), WEIGHTS, BANK), ValueError, "documents' device cpu, got meta"),
    "device of weights": (lambda: scores(IDS, WEIGHTS.to("meta"), BANK), ValueError, "query_weights must be on"),
    "k 0": (lambda: topk(IDS, WEIGHTS, BANK, 0), ValueError, "k must lie between 1 and the 8 documents"),
    "k above": (lambda: topk(IDS, WEIGHTS, BANK, 9), ValueError, "got k = 9"),
    "k 0, padded": (lambda: topk(IDS, WEIGHTS, BANK, 0, pad=True), ValueError, "got k = 0"),
    "k": (lambda: topk(IDS, WEIGHTS, BANK, 1.5), TypeError, "k must be an int, got float"),  # type: ignore[arg-type]
    "allowed": (
        lambda: topk(IDS, WEIGHTS, BANK, 1, allowed=torch.ones(7, dtype=torch.bool)),
        ValueError,
        "allowed must broadcast to (..., M) = (2, 8), got (7,)",
    ),
    "allowed, dtype": (lambda: topk(IDS, WEIGHTS, BANK, 1, allowed=torch.ones(8)), TypeError, "allowed must be bool"),
    "an id twice": (
        lambda: SparseBank(ROW[0], torch.tensor([3, 3]), ROW[2], 5),
        ValueError,
        "ids must name a term once in a row, but row 0 has 3 twice",
    ),
    "an id": (lambda: SparseBank(*ROW, 3), ValueError, "ids must lie between 0 and width - 1 = 2, but row 0 has 3"),
    "offsets": (
        lambda: SparseBank(ROW[0] + 1, *ROW[1:], 5),
        ValueError,
        "offsets must lead from 0 to the number of ids 2",
    ),
    "offsets, ids": (
        lambda: SparseBank(torch.tensor([0, 2, 1, 2]), *ROW[1:], 5),
        ValueError,
        "offsets must ascend, but row 1 goes from 2 to 1",
    ),
    "offsets of two dimensions": (lambda: SparseBank(ROW[0][None], *ROW[1:], 5), ValueError, "offsets must have shape"),
    "float offsets": (lambda: SparseBank(ROW[0].float(), *ROW[1:], 5), TypeError, "offsets must be integers"),
    "float terms": (lambda: SparseBank(ROW[0], ROW[1].float(), ROW[2], 5), TypeError, "ids must be integers"),
    "lengths": (lambda: SparseBank(*ROW[:2], torch.ones(3), 5), ValueError, "one shape (nnz,), got (2,) and (3,)"),
    "half": (lambda: SparseBank(*ROW[:2], torch.ones(2).half(), 5), TypeError, "weights must be float32 or float64"),
    "width": (lambda: SparseBank(*ROW, -1), ValueError, "width must be at least 0, got -1"),
    "devices": (
        lambda: SparseBank(*ROW[:2], ROW[2].to("meta"), 5),
        ValueError,
        "weights must be on the device of offsets",
    ),
    "from_csr of a dense tensor": (lambda: SparseBank.from_csr(DENSE), TypeError, "matrix.to_sparse_csr() makes it so"),
    "from_csr of a list": (
        lambda: SparseBank.from_csr([[1.0]]),
        TypeError,
        "matrix must be a CSR matrix of torch or scipy",
    ),
    "from_csr of coo": (
        lambda: SparseBank.from_csr(scipy.sparse.coo_matrix(DENSE.numpy())),
        TypeError,
        "matrix.tocsr() makes one",
    ),
    "from_dense of a vector": (lambda: SparseBank.from_dense(DENSE[0]), ValueError, "matrix must have shape (M, V)"),
    "numpy and torch": (lambda: scores(IDS.numpy(), WEIGHTS, BANK), TypeError, "query_weights is a torch tensor"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what: str) -> None:
    call, kind, message = ERRORS[what]
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_it_is_in_the_namespace() -> None:
    assert {"SparseBank", "scores", "topk"} <= set(vecbank.sparse.__all__)
