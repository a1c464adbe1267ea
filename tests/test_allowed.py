"""`vecbank.Allowed`: what is defined at the edges, what it shares and keeps.

That each of them is the set of bools that it stands for is `test_exact::test_table` (sets of `candidate_sets.py`).
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from candidate_sets import SETS, make
from cases import METRICS
from helpers import ISAS, assert_same, gauss, seeded
from torch import Tensor

import vecbank
from vecbank import Allowed, reference

pytestmark = pytest.mark.usefixtures("one_thread")

X, BANK = gauss(4, 3), gauss(9, 3, seed=1)
I64 = torch.int64
ALL = torch.ones(9, dtype=torch.bool)
WAYS = (0, 1, 2, 3)  # of a search: see vecbank._C.force_ways


def long(*values: Any, **options: Any) -> Tensor:
    return torch.tensor(values, dtype=I64, **options)


def search(allowed: Any) -> Any:
    return vecbank.topk(X, BANK, 2, "l2", allowed=allowed)


# ---- What is defined ------------------------------------------------------------------------------------------------

# Allowed, and the rows that it holds for queries 0 to 3.
DEFINED: dict[str, tuple[Callable[[], Allowed], list[set[int]]]] = {
    "an empty mask": (lambda: Allowed.mask(~ALL), [set()] * 4),
    "one bool": (lambda: Allowed.mask(torch.tensor(True)), [set(range(9))] * 4),
    "no bit": (lambda: Allowed.bits(torch.zeros(2, dtype=torch.uint8)), [set()] * 4),
    "bits beyond the bank": (lambda: Allowed.bits(torch.tensor([0b100], dtype=torch.int64)), [{2}] * 4),
    "all bits of a negative word": (lambda: Allowed.bits(torch.tensor([-1], dtype=torch.int16)), [set(range(9))] * 4),
    "windows outside the bank": (
        lambda: Allowed.ranges(long(-9, -3, 7, 9), long(-2, 2, 40, 50)),
        [set(), {0, 1}, {7, 8}, set()],
    ),
    "windows at both ends of int64": (lambda: Allowed.ranges(-(2**63), 2**63 - 1), [set(range(9))] * 4),
    "empty windows": (lambda: Allowed.ranges(long(0, 3, 9, 12), long(0, 3, 9, 12)), [set()] * 4),
    "-1 among ids": (lambda: Allowed.rows(long(-1, 4, -1)), [{4}] * 4),
    "nothing but -1": (lambda: Allowed.rows(torch.full((4, 3), -1)), [set()] * 4),
    "no ids": (lambda: Allowed.rows(long()), [set()] * 4),
    "no ids of each": (lambda: Allowed.rows(torch.zeros(4, 0, dtype=I64)), [set()] * 4),
    "ids twice": (lambda: Allowed.rows(long(5, 1, 5, 5, 1)), [{1, 5}] * 4),
    "ids of each": (lambda: Allowed.rows(long([8, 0], [0, -1], [3, 3], [-1, -1])), [{0, 8}, {0}, {3}, set()]),
    "exclude nothing": (lambda: Allowed.exclude(long()), [set(range(9))] * 4),
    "exclude -1": (lambda: Allowed.exclude(long(-1, 8, 8)), [set(range(8))] * 4),
    "exclude all": (lambda: Allowed.exclude(torch.arange(9)), [set()] * 4),
    "a label of no row": (
        lambda: Allowed.same(long(0, 1, 7, -1), torch.arange(9) % 2),
        [{0, 2, 4, 6, 8}, {1, 3, 5, 7}, set(), set()],
    ),
    "a label for all": (lambda: Allowed.other(torch.tensor(1), torch.arange(9) // 8), [set(range(8))] * 4),
    "labels at both ends of int64": (
        lambda: Allowed.same(long(-(2**63), 2**63 - 1, 0, 1), long(2**63 - 1, 0, -(2**63), 5, 5, 5, 5, 5, 5)),
        [{2}, {0}, {1}, set()],
    ),
    "bools for labels": (lambda: Allowed.same(torch.tensor([True] * 4), torch.arange(9) > 6), [{7, 8}] * 4),
    "not_self beyond the bank": (
        lambda: Allowed.not_self(7),
        [set(range(9)) - {7}, set(range(8)), set(range(9)), set(range(9))],
    ),
    "a twofold negation": (lambda: ~~Allowed.rows(long(2)), [{2}] * 4),
    "one condition": (lambda: Allowed.where(torch.arange(9) > 6), [{7, 8}] * 4),
    "arrays of numpy": (lambda: Allowed.where(np.arange(9) > 3, Allowed.not_self()) & (np.arange(9) < 5), [{4}] * 4),
    "an array of numpy first": (lambda: (np.arange(9) > 3) & Allowed.rows(long(2, 4)), [{4}] * 4),
    "a tensor first": (lambda: (torch.arange(9) > 7) | Allowed.rows(long(2, 4)), [{2, 4, 8}] * 4),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("what", DEFINED)
def test_defined(what: str, metric: str) -> None:
    """The rows that are left, best first; then -1 and the worst value."""
    make_it, held = DEFINED[what]
    dense = torch.tensor([[j in rows for j in range(9)] for rows in held])
    want = reference.topk(X, BANK, 9, metric, dense)
    bank = vecbank.Bank(BANK, metric)
    for source in (BANK, bank):
        assert_same(tuple(vecbank.topk(X, source, 9, metric, allowed=make_it())), tuple(want))
        assert_same(tuple(vecbank.nearest(X, source, metric, allowed=make_it())), (want[0][:, 0], want[1][:, 0]))
    worst = float("-inf") if metric in ("dot", "cosine") else float("inf")
    counts = torch.tensor([len(rows) for rows in held])
    assert bool(((want.indices >= 0).sum(-1) == counts).all()) and bool((want.values[want.indices < 0] == worst).all())


def test_a_bank_without_rows() -> None:
    for allowed in (
        Allowed.not_self(),
        Allowed.rows(long(-1)),
        Allowed.exclude(long()),
        Allowed.ranges(0, 5),
        ~Allowed.bits(long(1)),
    ):
        assert vecbank.nearest(X, BANK[:0], allowed=allowed).indices.tolist() == [-1] * 4
        assert vecbank.topk(X, BANK[:0], 2, allowed=allowed, pad=True).indices.tolist() == [[-1, -1]] * 4
    with pytest.raises(IndexError, match="ids must lie below the bank's number of rows 0, got 0"):
        vecbank.nearest(X, BANK[:0], allowed=Allowed.rows(long(0)))


def test_no_queries() -> None:
    for allowed in (
        Allowed.not_self(),
        Allowed.rows(torch.zeros(0, 3, dtype=I64)),
        Allowed.ranges(0, 5),
        Allowed.ranges(long(), long()),
    ):
        assert vecbank.topk(X[:0], BANK, 2, allowed=allowed).indices.shape == (0, 2)


# ---- Shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (1, 3), (2, 3), (1, 1)], ids=str)
def test_sets_broadcast_to_the_queries(shape: tuple[int, ...]) -> None:
    """What is each query's own has any shape that broadcasts to x's leading one."""
    g = seeded(1)
    x, m = gauss(2, 3, 5), 9
    bank = gauss(m, 5)
    rows = torch.arange(m)
    start = torch.randint(0, 5, shape, generator=g)
    ids = torch.randint(-1, m, (*shape, 4), generator=g)
    label, labels = torch.randint(3, shape, generator=g), torch.randint(3, (m,), generator=g)
    dense = torch.rand(*shape, m, generator=g) < 0.5
    packed = torch.from_numpy(np.packbits(dense.numpy(), axis=-1, bitorder="little"))
    named = (ids.unsqueeze(-1) == rows).any(-2)
    sets: list[tuple[Allowed, Tensor]] = [
        (Allowed.mask(dense), dense),
        (Allowed.bits(packed), dense),
        (Allowed.ranges(start, start + 4), (rows >= start[..., None]) & (rows < start[..., None] + 4)),
        (Allowed.ranges(start, 6), (rows >= start[..., None]) & (rows < 6)),
        (Allowed.rows(ids), named),
        (Allowed.exclude(ids), ~named),
        (Allowed.same(label, labels), label[..., None] == labels),
    ]
    sets += [(a & ~b, in_a & ~in_b) for (a, in_a), (b, in_b) in zip(sets, sets[1:], strict=False)]
    for allowed, want in sets:
        want = want.expand(2, 3, m)
        assert_same(
            tuple(vecbank.topk(x, bank, 4, "l2", allowed=allowed)), tuple(reference.topk(x, bank, 4, "l2", want))
        )
        mixed = allowed | (torch.arange(m) == 0)
        assert_same(
            tuple(vecbank.nearest(x, bank, allowed=mixed)), tuple(reference.nearest(x, bank, "l2", want | (rows == 0)))
        )


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("lead", [(), (2, 1, 3)], ids=str)
def test_queries_of_any_leading_shape(kind: str, lead: tuple[int, ...]) -> None:
    """Queries are counted by the order in which they lie, through strides of any kind."""
    allowed, dense = make(kind, lead, 40, seeded(2))
    x = gauss(*lead, 5) if not lead else gauss(*lead[::-1], 5).permute(2, 1, 0, 3)
    bank = gauss(40, 5, seed=3)
    assert_same(tuple(vecbank.topk(x, bank, 6, allowed=allowed)), tuple(reference.topk(x, bank, 6, "dot", dense)))


@pytest.mark.parametrize("metric", METRICS)
def test_labels_of_each_batch(metric: str) -> None:
    g = seeded(3)
    x, bank = gauss(2, 6, 5), gauss(2, 30, 5)
    own, labels = torch.randint(4, (2, 6), generator=g), torch.randint(4, (2, 30), generator=g)
    same = own.unsqueeze(-1) == labels.unsqueeze(1)
    for allowed, dense in ((Allowed.same(own, labels), same), (Allowed.other(own, labels), ~same)):
        both, apart = allowed & Allowed.not_self(), torch.arange(30) != torch.arange(6).unsqueeze(-1)
        for a, in_a in ((allowed, dense), (both, dense & apart)):
            for way in WAYS:
                vecbank._C.force_ways(search=way)
                assert_same(
                    tuple(vecbank.topk(x, bank, 5, metric, allowed=a)), tuple(reference.topk(x, bank, 5, metric, in_a))
                )


# ---- Memory, text, copies -------------------------------------------------------------------------------------------


def test_bits_and_masks_share_memory() -> None:
    """What is written into them is seen by the next call."""
    words, mask = torch.zeros(2, dtype=torch.uint8), torch.zeros(9, dtype=torch.bool)
    array = np.zeros(2, dtype=np.uint8)
    sets = [
        Allowed.bits(words),
        Allowed.mask(mask),
        Allowed.bits(array),
        ~(~Allowed.bits(words) | ~Allowed.bits(array)),
    ]
    for row in (3, 8):
        words.zero_(), mask.zero_(), array.fill(0)
        words[row // 8] = array[row // 8] = 1 << row % 8
        mask[row] = True
        for allowed in sets:
            assert search(allowed).indices.tolist() == [[row, -1]] * 4
    wide = torch.zeros(4, 2, dtype=torch.int64)  # of wider words and of every query
    each = Allowed.bits(wide)
    wide[2, 0] = 1 << 5
    assert search(each).indices.tolist() == [[-1, -1], [-1, -1], [5, -1], [-1, -1]]


def test_rows_that_do_not_lie_side_by_side() -> None:
    """Words with gaps between them, and masks with any strides."""
    dense = torch.rand(4, 9, generator=seeded(4)) < 0.5
    packed = torch.from_numpy(np.packbits(dense.numpy(), axis=-1, bitorder="little"))
    gaps, turned = packed.repeat_interleave(3, -1)[:, ::3], packed.t().contiguous().t()
    far = torch.zeros(4, 5, dtype=torch.uint8)
    far[:, :2] = packed
    want = tuple(reference.topk(X, BANK, 4, "l2", dense))
    for words in (packed, gaps, turned, far[:, :2], torch.cat([packed] * 2).reshape(2, 4, 2)[1]):
        assert_same(tuple(vecbank.topk(X, BANK, 4, "l2", allowed=Allowed.bits(words))), want)
    steps = dense.repeat_interleave(2, -1)[:, ::2]
    assert_same(tuple(vecbank.topk(X, BANK, 4, "l2", allowed=Allowed.mask(steps) & ~Allowed.rows(long(-1)))), want)


def test_arrays_of_numpy() -> None:
    """In constructors, beside tensors as beside arrays; with arrays the results are arrays."""
    ids, labels = np.array([2, 5, 7], dtype=np.int32), np.arange(9) % 2
    sets = [
        (Allowed.mask(labels > 0), Allowed.mask(torch.arange(9) % 2 > 0)),
        (Allowed.rows(ids), Allowed.rows(torch.from_numpy(ids))),
        (Allowed.exclude(ids), Allowed.exclude(torch.from_numpy(ids))),
        (Allowed.ranges(np.arange(4), np.arange(4) + 3), Allowed.ranges(torch.arange(4), torch.arange(4) + 3)),
        (Allowed.ranges(np.int64(2), np.uint8(7)), Allowed.ranges(2, 7)),
        (Allowed.same(labels[:4], labels), Allowed.same(torch.arange(4) % 2, torch.arange(9) % 2)),
        (Allowed.bits(np.packbits(labels > 0, bitorder="little")), Allowed.mask(torch.arange(9) % 2 > 0)),
    ]
    for given, want in sets:
        assert_same(tuple(search(given)), tuple(search(want)))
        found = vecbank.topk(X.numpy(), BANK.numpy(), 2, "l2", allowed=given)
        assert isinstance(found.indices, np.ndarray)
        assert_same(tuple(torch.from_numpy(t) for t in found), tuple(search(want)))
    mask = vecbank.topk(X.numpy(), BANK.numpy(), 2, "l2", allowed=labels > 0)
    assert np.array_equal(mask.indices, search(torch.arange(9) % 2 > 0).indices.numpy())
    read_only = np.packbits(labels > 0, bitorder="little")
    read_only.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(tuple(search(Allowed.bits(read_only))), tuple(search(torch.arange(9) % 2 > 0)))


def test_repr() -> None:
    rows, mask = Allowed.rows(long(2, 5)), Allowed.mask(ALL)
    assert repr(rows) == "Allowed[rows(2,)]" and repr(Allowed.not_self(3)) == "Allowed[not_self(3)]"
    assert repr(~(rows & Allowed.not_self()) | mask) == "Allowed[(~(rows(2,) & not_self(0)) | mask(9,))]"
    assert repr(Allowed.same(long(0), long(0, 1))) == "Allowed[same(1,), (2,)]"


def test_copies_and_pickles() -> None:
    allowed = ~(Allowed.rows(long(2, 5)) & Allowed.not_self()) | Allowed.bits(long(0b10))
    for other in (copy.copy(allowed), copy.deepcopy(allowed), pickle.loads(pickle.dumps(allowed))):
        assert repr(other) == repr(allowed)
        assert_same(tuple(search(other)), tuple(search(allowed)))


# ---- Old ways of calling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["topk", "nearest", "Bank.topk", "Bank.nearest"])
def test_a_positional_set_warns(name: str) -> None:
    """It works for one release more, and the warning is at the caller's line; `exact` is ignored with one."""
    bank, allowed = vecbank.Bank(BANK, "l2"), Allowed.rows(long(2, 5))
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "topk": (vecbank.topk, (X, BANK, 2, "l2")),
        "nearest": (vecbank.nearest, (X, BANK, "l2")),
        "Bank.topk": (bank.topk, (X, 2)),
        "Bank.nearest": (bank.nearest, (X,)),
    }
    function, given = calls[name]
    want = function(*given, allowed=allowed)
    with pytest.warns(FutureWarning, match="allowed is a keyword now") as caught:
        assert_same(tuple(function(*given, allowed)), tuple(want))
        assert_same(tuple(function(*given, torch.arange(9) > 3)), tuple(function(*given, allowed=torch.arange(9) > 3)))
    assert len(caught) == 2 and {w.filename for w in caught} == {__file__}
    with pytest.raises(TypeError, match="allowed twice"):
        function(*given, allowed, allowed=allowed)
    with pytest.warns(FutureWarning, match="ignores exact"):
        assert_same(tuple(function(*given, allowed=allowed, exact=False)), tuple(want))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(*given, allowed=allowed)
        function(*given, exact=None)


# ---- What it is called in -------------------------------------------------------------------------------------------

TRACED: dict[str, Callable[[], Any]] = {
    "mask": lambda: Allowed.mask(torch.arange(9) % 2 == 0),
    "bits": lambda: Allowed.bits(long(0b101)),
    "ranges": lambda: Allowed.ranges(torch.arange(4), torch.arange(4) + 4),
    "exclude": lambda: Allowed.exclude(long(2, -1)),
    "not_self": lambda: Allowed.not_self(1),
    "same": lambda: Allowed.same(torch.arange(4) % 2, torch.arange(9) % 2),
    "rows": lambda: Allowed.rows(torch.arange(12).reshape(4, 3) % 9),
    "joined": lambda: (Allowed.not_self() & Allowed.rows(long(2, 5, 7))) | Allowed.mask(torch.arange(9) % 2 == 0),
    "negated": lambda: ~(Allowed.not_self() & Allowed.rows(long(2, 5, 7))),
    "other": lambda: Allowed.other(torch.arange(4) % 2, torch.arange(9) % 2),
    "with a tensor": lambda: Allowed.not_self() & (torch.arange(9) % 2 == 0),
}
# torch's compiler follows no `~` of an object, and takes an operator beside a tensor for one of tensors.
MADE_BEFORE = ("negated", "with a tensor")


@pytest.mark.parametrize("kind", TRACED)
def test_compile(kind: str) -> None:
    """Made in the program, made before it, and an argument of it: one graph, the same bits, gradients too."""
    made, bank = TRACED[kind], vecbank.Bank(BANK, "l2")
    before = made()

    def inside(x: Tensor) -> Any:
        return vecbank.topk(x, BANK, 3, "l2", allowed=made())

    def outside(x: Tensor) -> Any:
        return bank.topk(x, 3, allowed=before)

    def given(x: Tensor, allowed: Allowed) -> Any:
        return vecbank.topk(x, BANK, 3, "l2", allowed=allowed)

    want = vecbank.topk(X, BANK, 3, "l2", allowed=before)
    ways: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [(outside, ()), (given, (before,))]
    for function, arguments in ways if kind in MADE_BEFORE else [(inside, ()), *ways]:
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_same(tuple(compiled(X, *arguments)), tuple(want))
        a, b = X.clone().requires_grad_(), X.clone().requires_grad_()
        compiled(a, *arguments).values.sum().backward()
        function(b, *arguments).values.sum().backward()
        assert_same(a.grad, b.grad)
    torch._dynamo.reset()


def test_compiled_for_any_number_of_queries() -> None:
    def call(x: Tensor, start: Tensor) -> Any:
        return vecbank.topk(x, BANK, 3, "l2", allowed=Allowed.ranges(start, start + 4) & Allowed.not_self())

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 7, 5):
        x, start = gauss(n, 3), torch.arange(n) % 6
        assert_same(tuple(compiled(x, start)), tuple(call(x, start)))
    torch._dynamo.reset()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["ranges", "rows of each", "same", "a & b", "~a", "with tensors", "nothing"])
def test_gradients(kind: str, metric: str) -> None:
    """Those of the dense mask, to x and to a tensor bank; through a Bank, to x."""
    allowed, dense = make(kind, (6,), 20, seeded(5))
    grads = []
    for chosen in (allowed, dense):
        for nearest in (False, True):
            x, bank = gauss(6, 4).requires_grad_(), gauss(20, 4).requires_grad_()
            values = (
                vecbank.nearest(x, bank, metric, allowed=chosen).values
                if nearest
                else vecbank.topk(x, bank, 5, metric, allowed=chosen).values
            )
            (values.masked_fill(values.isinf(), 0) * gauss(*values.shape)).sum().backward()
            prepared = vecbank.Bank(bank.detach(), metric)
            y = x.detach().clone().requires_grad_()
            values = (
                prepared.nearest(y, allowed=chosen).values if nearest else prepared.topk(y, 5, allowed=chosen).values
            )
            (values.masked_fill(values.isinf(), 0) * gauss(*values.shape)).sum().backward()
            grads.append((x.grad, bank.grad, y.grad))
            assert_same(x.grad, y.grad)
    for got, want in zip(grads[:2], grads[2:], strict=True):
        assert_same(got, want)


def test_gradient_of_a_bias() -> None:
    allowed, dense = make("a | b", (6,), 20, seeded(6))
    grads = []
    for chosen in (allowed, dense):
        x, bank, bias = (t.requires_grad_() for t in (gauss(6, 4), gauss(20, 4), gauss(20)))
        values = vecbank.topk(x, bank, 5, allowed=chosen, bias=bias).values
        values.masked_fill(values.isinf(), 0).square().sum().backward()
        grads.append((x.grad, bank.grad, bias.grad))
    assert_same(*grads)


@pytest.mark.parametrize("kind", SETS)
def test_isas_and_threads(kind: str) -> None:
    """The same bits whatever the processor, the threads and the way of a search."""
    allowed, dense = make(kind, (12,), 3000, seeded(7))
    x, bank = gauss(12, 20), gauss(3000, 20)
    want = tuple(vecbank.topk(x, bank, 10, "cosine", allowed=dense))
    for isa in ISAS:
        vecbank._C.set_isa(isa)
        prepared = vecbank.Bank(bank, "cosine")
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for way in WAYS:
                vecbank._C.force_ways(search=way)
                for source in (bank, prepared):
                    assert_same(tuple(vecbank.topk(x, source, 10, "cosine", allowed=allowed)), want, f"{isa} {way}")


def test_several_threads_share_one_set() -> None:
    from concurrent.futures import ThreadPoolExecutor

    allowed, dense = make("~a", (40,), 500, seeded(8))
    x, bank = gauss(40, 8), vecbank.Bank(gauss(500, 8), "l2")
    want = tuple(bank.topk(x, 5, allowed=dense))
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: tuple(bank.topk(x, 5, allowed=allowed)), range(12)):
            assert_same(got, want)


def test_lists_of_any_lengths() -> None:
    """What each user has seen, for example: lists become rows of one tensor."""
    x, bank = gauss(3, 4), gauss(9, 4, seed=1)
    lists = [torch.tensor([0, 4]), torch.tensor([], dtype=torch.int64), torch.tensor([8])]
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[0, [0, 4]] = mask[2, 8] = True
    assert_same(
        tuple(vecbank.topk(x, bank, 3, allowed=Allowed.rows(lists))), tuple(vecbank.topk(x, bank, 3, allowed=mask))
    )
    others, bools = (vecbank.topk(x, bank, 3, allowed=a) for a in (Allowed.exclude(lists), ~mask))
    assert_same(tuple(others), tuple(bools))
    with pytest.raises(ValueError, match="one tensor"):
        Allowed.rows([mask.long()])


@pytest.mark.parametrize("way", range(4))
def test_ops_end_on_lists_that_do_not_ascend(way: int) -> None:
    """Direct calls may bring anything: the rows are then any, but the call ends, and touches nothing outside."""
    vecbank._C.force_ways(search=way)
    x, bank = gauss(5, 8), gauss(3000, 8, seed=1)
    draw = torch.Generator().manual_seed(way)
    for _ in range(20):
        ids = torch.randint(-100, 3100, (1, 5000), generator=draw)
        labels, order = torch.randint(3, (1, 3000), generator=draw), torch.arange(2999, -1, -1).unsqueeze(0)
        sets, own = [ids, labels[:, :5].T.contiguous(), labels, order], [6, 0, 5, 1, -2, 0, 4, 0, -1, 0]
        indices = torch.ops.vecbank.topk_among(x, bank, None, 7, 0, sets, own)[1]
        assert int(indices.min()) >= -1 and int(indices.max()) < 3000
        for program in ([6, 0], [3, 0], [5, 1]):
            found = torch.ops.vecbank.radius(x, bank, None, torch.zeros(5, dtype=torch.float64), 0, sets, program)[1]
            assert found.numel() == 0 or (int(found.min()) >= 0 and int(found.max()) < 3000)


@pytest.mark.parametrize("way", range(4))
def test_any_byte_but_zero_is_true(way: int) -> None:
    """torch and numpy take it so; such bytes come of views of pictures, for example."""
    vecbank._C.force_ways(search=way)
    x, bank = gauss(4, 8), gauss(500, 8, seed=1)
    true = torch.full((4, 500), 255, dtype=torch.uint8).view(torch.bool)
    true[:, 7] = False
    for mask in (true, true[0]):
        got, want = (vecbank.topk(x, bank, 5, allowed=m) for m in (mask, Allowed.exclude(torch.tensor([7]))))
        assert_same(tuple(got), tuple(want))
        assert vecbank.radius_count(x, bank, 1e9, allowed=mask).tolist() == [499] * 4


def test_labels_are_those_of_then() -> None:
    """The rows in order of label belong to the labels that were given, whatever is written there later."""
    labels = torch.tensor([0, 1, 0, 1])
    allowed = Allowed.same(torch.tensor([1]), labels)
    labels.zero_()
    for way in range(4):
        vecbank._C.force_ways(search=way)
        assert vecbank.topk(torch.ones(1, 2), torch.eye(4, 2), 2, allowed=allowed).indices.tolist() == [[1, 3]]
