"""Who answers the rows of the CUDA bench: our ops on each path, and what a user would run on a GPU today.

As in peers.py, preparation is outside the clock, a missing package raises ImportError, and calls return
`(values or None, indices, ...)`, or `(scores,)` for project.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import vecbank
from bench import codebooks, ours
from bench.cases import OURS, Data
from bench.cuda_cases import COMPILED, EXPRESSION, FLASH, NARROW, NEAREST, PATHS, VQP, CudaCase
from bench.timing import Call

Prepare = Callable[[CudaCase, Data], Call]
PACKAGES = {FLASH: "flash-kmeans", VQP: "vector-quantize-pytorch", "triton": "triton"}
NOTES = {
    EXPRESSION: "cuBLAS product, then normalise, argmin or topk; bank norms beforehand; in chunks of rows where the "
    "scores would not fit",
    COMPILED: "torch.compile of that expression",
    FLASH: "its Triton assignment kernel; squared norms of both sides beforehand, as its own k-means does",
    NEAREST: "the bare search of the same row",
    NARROW: "our search of the same data rounded to bfloat16",
}
SHARED = (VQP,)  # needs N x M twice over: see CudaCase.share
OTHER_QUESTION = (NEAREST, NARROW)  # timed, not checked
SCORES_BYTES = 16 << 30  # of the N x M scores a peer may hold, if a quarter of the memory allows


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Our bindings read their settings at every call."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _on_path(values: dict[str, str], call: Call) -> Call:
    def with_path() -> Any:
        with environment(values):
            return call()

    return with_path


def with_tf32(allowed: bool, call: Call) -> Call:
    """The call under torch's flag for float32 products."""

    def flagged() -> Any:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = allowed
        try:
            return call()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return flagged


# ---- Ours ---------------------------------------------------------------------------------------------------------


def _ours(case: CudaCase, data: Data) -> Call:
    if case.op in codebooks.CANDIDATES:
        return codebooks.CANDIDATES[case.op][OURS](case, data, 0)
    if case.op in ("quantize", "quantize_train"):
        bank, x = vecbank.Bank(data.bank, metric=case.metric), data.x
        if case.op == "quantize":
            return lambda: (None, *reversed(bank.quantize(x)))
        return lambda: (lambda found: (None, found.codes, *found))(vecbank.quantize_train(x, bank))
    return ours.prepared(case, data, 0)


def _nearest(case: CudaCase, data: Data) -> Call:
    bank = vecbank.Bank(data.bank, metric="l2")
    return lambda: tuple(bank.nearest(data.x))


def _narrow(case: CudaCase, data: Data) -> Call:
    return _nearest(case, Data(data.x.bfloat16(), data.bank.bfloat16()))


# ---- The expression around a product ------------------------------------------------------------------------------


def expression(case: CudaCase, data: Data) -> Callable[[Tensor], tuple[Any, ...]]:
    """What a user writes, of a block of rows. Search results are `(values or None, indices)`."""
    bank = data.bank
    if case.op == "project":
        unit = F.normalize(bank, dim=1).T
        return lambda x: (F.normalize(x, dim=1) @ unit,)
    if case.op == "topk":
        return lambda x: tuple((x @ bank.T).topk(case.k, dim=1))
    if case.op == "sparse_encode":
        bias = bank.new_zeros(case.m)
        return lambda x: tuple(torch.addmm(bias, x, bank.T).relu_().topk(case.k, dim=1))
    half = bank.float().square().sum(1).mul(-0.5).to(bank.dtype)

    def search(x: Tensor) -> tuple[Any, ...]:
        codes = torch.addmm(half, x, bank.T).argmax(1)
        if case.op == "nearest":
            return None, codes
        rows = F.embedding(codes, bank)
        if case.op == "quantize":
            return None, codes, rows
        return None, codes, rows, (rows - x).square().sum(), torch.bincount(codes, minlength=case.m)

    return search


def rows_at_once(case: CudaCase, data: Data) -> int:
    room = SCORES_BYTES
    if data.x.is_cuda:
        room = min(room, torch.cuda.get_device_properties(data.x.device).total_memory // 4)
    return max(1, min(case.n, room // (case.m * data.x.element_size())))


def _whole(case: CudaCase, data: Data, block: Callable[[Tensor], tuple[Any, ...]]) -> Call:
    """All rows at once where the scores fit, else in blocks whose answers are put together."""
    step = rows_at_once(case, data)
    if step >= case.n:
        return lambda: block(data.x)

    def call() -> tuple[Any, ...]:
        parts = [block(x)[:2] for x in data.x.split(step)]
        return tuple(None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True))

    return call


def _expression(case: CudaCase, data: Data) -> Call:
    return _whole(case, data, expression(case, data))


def _compiled(case: CudaCase, data: Data) -> Call:
    torch._dynamo.reset()  # every case its own graph, whatever came before
    return _whole(case, data, torch.compile(expression(case, data), dynamic=False))


# ---- Packages -----------------------------------------------------------------------------------------------------


def _flash(case: CudaCase, data: Data) -> Call:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    x, bank = data.x[None], data.bank[None]
    x_squares, bank_squares = x.float().square().sum(-1), bank.float().square().sum(-1)
    return lambda: (None, euclid_assign_triton(x, bank, x_squares, c_sq=bank_squares)[0])


def _vqp(case: CudaCase, data: Data) -> Call:
    return codebooks.CANDIDATES[case.op][VQP](case, data, 0)


CANDIDATES: dict[str, Prepare] = {
    OURS: _ours,
    EXPRESSION: _expression,
    COMPILED: _compiled,
    FLASH: _flash,
    VQP: _vqp,
    NEAREST: _nearest,
    NARROW: _narrow,
}


def prepare(name: str, case: CudaCase, data: Data) -> Call:
    """The candidate's call; a path of ours is our call under that path's setting."""
    if name not in PATHS:
        return CANDIDATES[name](case, data)
    with environment(PATHS[name]):
        call = _ours(case, data)
    return _on_path(PATHS[name], call)
