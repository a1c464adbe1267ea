"""What `test_interrupt` runs in a process of its own: long calls, Ctrl-C in their midst, and what came of it.

Every call takes many seconds on one thread of the scalar instruction set. Prints a line of JSON for each name that it
is given.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vecbank
from vecbank import nn
from vecbank._ops import ops

Call = Callable[[], Any]
Facts = dict[str, Any]
randn = torch.randn


def _search_bank(metric: str) -> vecbank.Bank:
    return vecbank.Bank(randn(100_000, 64), metric)


def _topk() -> Call:
    x, bank = randn(40_000, 64), _search_bank("dot")
    return lambda: bank.topk(x, 10)


def _topk_tensor() -> Call:
    x, bank = randn(40_000, 64), randn(100_000, 64)
    return lambda: vecbank.topk(x, bank, 10, "l2")


def _topk_large_k() -> Call:
    x, bank = randn(4000, 64), _search_bank("dot")
    return lambda: bank.topk(x, 25_000)


def _topk_masked() -> Call:
    x, bank, mask = randn(40_000, 64), _search_bank("dot"), torch.rand(100_000) < 0.5
    return lambda: bank.topk(x, 10, allowed=mask)


def _topk_equal_rows() -> Call:
    x, bank = randn(40_000, 64), randn(1, 64).expand(100_000, 64)
    return lambda: vecbank.topk(x, bank, 10)


def _topk_among() -> Call:
    x, bank, start = randn(40_000, 64), _search_bank("dot"), torch.randint(0, 50_000, (40_000,))
    allowed = vecbank.Allowed.ranges(start, start + 50_000) & vecbank.Allowed.not_self()
    return lambda: bank.topk(x, 10, allowed=allowed)


def _radius() -> Call:
    x, bank = randn(40_000, 64), _search_bank("l2")
    return lambda: bank.radius(x, 7.0)


def _radius_count() -> Call:
    x, bank = randn(40_000, 64), randn(100_000, 64)
    return lambda: vecbank.radius_count(x, bank, 11.0, "l1")


def _bits(call: Callable[[Tensor, Tensor], Any]) -> Call:
    x, bank = (torch.randint(0, 256, (n, 64), dtype=torch.uint8) for n in (40_000, 100_000))
    return lambda: call(x, bank)


def _worst() -> Call:
    x, bank = randn(40_000, 64), _search_bank("l2")
    return lambda: bank.topk(x, 10, order="worst")


def _nearest() -> Call:
    x, bank = randn(40_000, 64), _search_bank("l2")
    return lambda: bank.nearest(x)


def _quantize() -> Call:
    x, bank = randn(40_000, 64), _search_bank("cosine")
    return lambda: bank.quantize(x)


def _quantize_train() -> Call:
    x, bank = randn(40_000, 64), randn(100_000, 64)
    return lambda: vecbank.quantize_train(x, bank)


def _project() -> Call:
    x, bank = randn(2000, 4096), randn(1, 4096).expand(10_000, 4096)
    return lambda: vecbank.project(x, bank)


def _project_l1_backward() -> Call:
    x, bank = randn(20_000, 64), randn(10_000, 64)
    grad = randn(20_000, 10_000)
    return lambda: torch.ops.vecbank.project_backward(grad, x, bank, vecbank.METRICS["l1"])


def _topk_l1() -> Call:
    x, bank = randn(4000, 64), _search_bank("l1")
    return lambda: bank.topk(x, 10)


def _project_float64() -> Call:
    x, bank = randn(1000, 4096).double(), randn(1, 4096).double().expand(10_000, 4096)
    return lambda: vecbank.project(x, bank, "l2")


def _exact_scores() -> Call:
    x, rotation = randn(20_000, 1024), randn(1024, 1024)
    return lambda: vecbank._pq_parts.turned(x, rotation)


def _residual() -> Call:
    x, books = randn(65_536, 64), randn(4, 8192, 64)
    return lambda: vecbank.residual_quantize(x, books)


def _product() -> Call:
    x, books = randn(100_000, 64), randn(4, 8192, 16)
    return lambda: vecbank.pq.encode(x, books)


def _lookup() -> Call:
    codes, bank = torch.randint(0, 64, (1, 20_000_000)), randn(64, 1024)
    return lambda: vecbank.lookup(codes, bank, reduce="sum")


def _segment_sum() -> Call:
    x, codes = randn(1, 2048).expand(10_000_000, 2048), torch.zeros(10_000_000, dtype=torch.int64)
    return lambda: vecbank.segment_sum(x, codes, 4)


def _attend() -> Call:
    x, bank = randn(20_000, 64), randn(200_000, 64)
    return lambda: vecbank.attend(x, bank)


def _attend_backward() -> Call:
    x, bank, beta, lse = randn(20_000, 64), randn(200_000, 64), torch.ones(20_000), torch.full((20_000,), 9.0).double()
    needs = (True, True, False, True)
    return lambda: ops.attend_backward(None, beta, x, bank, None, beta, lse, [], [], *needs)


def _sparse_topk() -> Call:
    documents = vecbank.sparse.SparseBank.from_dense(torch.rand(20_000, 50))
    terms = torch.randint(0, 50, (20_000, 50))
    return lambda: vecbank.sparse.topk(terms, torch.rand(50), documents, 10)


def _sets(search: Callable[[Tensor, Tensor], Any]) -> Call:
    queries, documents = randn(400, 32, 32), randn(20_000, 64, 32)
    return lambda: search(queries, documents)


def _backward() -> Call:
    """The gradient of a sum over few rows, made long: what was saved for it comes back as many codes."""
    bank, few, many = randn(64, 1024).requires_grad_(), torch.zeros(1, 4).long(), torch.zeros(1, 20_000_000).long()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t if t.is_floating_point() else many):
        total = vecbank.lookup(few, bank, reduce="sum").sum()
    return total.backward


def _kmeans() -> Call:
    x = randn(100_000, 32)
    return lambda: vecbank.kmeans(x, 1024)


def _pq_train() -> Call:
    x = randn(65_536, 32)
    return lambda: vecbank.pq.train(x, 4, 10)


def _module() -> Call:
    module, x = nn.VectorQuantize(64, 50_000), randn(1, 80_000, 64)
    return lambda: module(x)


CALLS: dict[str, Callable[[], Call]] = {
    "topk": _topk,
    "topk of a tensor": _topk_tensor,
    "topk of a large k": _topk_large_k,
    "topk with a mask": _topk_masked,
    "topk of equal rows": _topk_equal_rows,
    "nearest": _nearest,
    "topk among candidates": _topk_among,
    "topk, the worst": _worst,
    "radius": _radius,
    "radius_count": _radius_count,
    "bits.topk": lambda: _bits(lambda x, bank: vecbank.bits.topk(x, bank, 10)),
    "bits.radius_count": lambda: _bits(lambda x, bank: vecbank.bits.radius_count(x, bank, 200)),
    "quantize": _quantize,
    "quantize_train": _quantize_train,
    "project": _project,
    "gradients of project by l1": _project_l1_backward,
    "topk by l1": _topk_l1,
    "project in float64": _project_float64,
    "exact scores": _exact_scores,
    "residual_quantize": _residual,
    "pq_encode": _product,
    "lookup": _lookup,
    "segment_sum": _segment_sum,
    "attend": _attend,
    "attend backward": _attend_backward,
    "sparse.topk": _sparse_topk,
    "maxsim": lambda: _sets(vecbank.maxsim),
    "maxsim by a distance": lambda: _sets(lambda x, bank: vecbank.maxsim(x, bank, "l2")),
    "maxsim_topk": lambda: _sets(lambda x, bank: vecbank.maxsim_topk(x, bank, 10, "cosine")),
    "backward": _backward,
    "kmeans": _kmeans,
    "pq_train": _pq_train,
    "VectorQuantize": _module,
}


def _action() -> bytes:
    """The address of what the system calls on SIGINT: the first field of `struct sigaction`."""
    action = ctypes.create_string_buffer(512)
    assert ctypes.CDLL(None).sigaction(int(signal.SIGINT), None, action) == 0
    return action.raw[: ctypes.sizeof(ctypes.c_void_p)]


def pressed(call: Call, after: float = 0.2) -> Facts:
    """Runs a call and presses Ctrl-C so many seconds after its start: whether it was interrupted (or what else it
    raised), and how long after the signal.
    """
    sent: list[float] = []
    during: list[bytes] = []

    def press() -> None:
        time.sleep(after)
        during.append(_action())
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    thread, before, raised, again = threading.Thread(target=press), _action(), "", False
    thread.start()
    try:
        call()
    except BaseException as error:
        raised = repr(error)
    latency = time.monotonic() - sent[0] if sent else None
    try:
        thread.join()
        time.sleep(0.01)
    except KeyboardInterrupt:
        again = True
    listened, restored = during[0] != before, _action() == before
    return {"raised": raised, "latency": latency, "again": again, "listened": listened, "restored": restored}


def _short() -> tuple[Call, Tensor]:
    """A call of some tenths of a second, and its result."""
    x, bank = randn(300, 64), randn(100_000, 64)
    vecbank._C.set_isa(vecbank._C.available_isas()[-1])
    want = vecbank.topk(x, bank, 5, "l2").indices
    vecbank._C.set_isa("scalar")
    return lambda: vecbank.topk(x, bank, 5, "l2").indices, want


def own_handler() -> Facts:
    """A program with a handler of its own: it is called, the call ends, the result is right. And with none."""
    call, want = _short()
    got: list[Tensor] = []
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    facts = pressed(lambda: got.append(call()), 0.05)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ignored = pressed(lambda: got.append(call()), 0.05)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    right = [torch.equal(indices, want) for indices in got]
    return facts | {"seen": seen, "right": right, "ignored": ignored["raised"]}


def other_thread() -> Facts:
    """Calls of another thread go on, while the main one is interrupted in a call of its own, and while it waits."""
    call, want = _short()
    got: list[Tensor] = []
    main = _topk()
    facts: list[Facts] = []
    for meanwhile in (main, lambda: time.sleep(30)):
        thread = threading.Thread(target=lambda: got.append(call()))
        thread.start()
        facts.append(pressed(meanwhile, 0.05))
        thread.join()
    return {"right": [torch.equal(indices, want) for indices in got], "main": [f["raised"] for f in facts]}


def many_times() -> Facts:
    """One KeyboardInterrupt for each Ctrl-C, and calls that are not interrupted are right in between."""
    call, want = _topk(), _short()
    facts = [pressed(call, 0.05 * (i + 1)) for i in range(4)]
    right = torch.equal(want[0](), want[1])
    return {"raised": [f["raised"] for f in facts], "again": [f["again"] for f in facts], "right": right}


def bank_stays_right() -> Facts:
    """A Bank that was interrupted while it was searched, written into or prepared answers as a new one does."""
    vecbank._C.set_isa(vecbank._C.available_isas()[-1])
    x, right, raised = randn(50, 64), [], []
    bank = vecbank.Bank(randn(50_000, 64), "l2")

    def update() -> None:
        while True:
            bank.update_(torch.randint(0, 50_000, (1000,)), randn(1000, 64))

    def repack() -> None:
        while True:
            bank.repack()

    queries = randn(400_000, 64)
    for call in (update, repack, lambda: bank.nearest(queries)):
        for after in (0.01, 0.05):
            raised.append(pressed(call, after)["raised"])
            got, want = bank.topk(x, 5), vecbank.Bank(bank.vectors.clone(), "l2").topk(x, 5)
            right.append(torch.equal(got.indices, want.indices) and torch.equal(got.values, want.values))
    return {"right": right, "raised": raised}


SCENES: dict[str, Callable[[], Facts]] = {
    f.__name__: f for f in (own_handler, other_thread, many_times, bank_stays_right)
}


def main(names: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started this process may have it ignored
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name in names:
        vecbank._C.set_isa("scalar")
        facts = SCENES[name]() if name in SCENES else pressed(CALLS[name]())
        print(json.dumps({"name": name} | facts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
