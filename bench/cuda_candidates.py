"""How a candidate is prepared on a GPU: our ops on each path, a user's expression as written and compiled, packages."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case, Data
from bench.cuda_cases import COMPILED, EXPRESSION, PATHS, CudaCase
from bench.registry import CUDA_CASES, workload_of
from bench.timing import Call
from bench.workload import Candidate, OnCuda

SCORES_BYTES = 16 << 30  # of the N x M scores a peer may hold, if a quarter of the memory allows


def on_cuda(case: Case) -> OnCuda:
    found = workload_of(case).cuda
    assert found is not None
    return found


def make_data(case: CudaCase, device: str, seed: int = 0) -> Data:
    """Inputs drawn on the device, in the case's dtype; a module's parameters stay float32."""
    data = workload_of(case).make_data(case, seed, device)
    dtype = getattr(torch, case.dtype)
    bank = data.bank if on_cuda(case).parameters else data.bank.to(dtype)
    return Data(data.x.to(dtype), bank, None if data.upstream is None else data.upstream.to(dtype))


# ---- Settings that last for a call ----------------------------------------------------------------------------------


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


# ---- The expression around a product ------------------------------------------------------------------------------


def rows_at_once(case: Case, data: Data) -> int:
    room = SCORES_BYTES
    if data.x.is_cuda:
        room = min(room, torch.cuda.get_device_properties(data.x.device).total_memory // 4)
    return max(1, min(case.n, room // (case.m * data.x.element_size())))


def _whole(case: Case, data: Data, block: Callable[[Tensor], tuple[Any, ...]]) -> Call:
    """All rows at once where the scores fit, else in blocks whose answers are put together."""
    step = rows_at_once(case, data)
    if step >= case.n:
        return lambda: block(data.x)

    def call() -> tuple[Any, ...]:
        parts = [block(x)[:2] for x in data.x.split(step)]
        return tuple(None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True))

    return call


def _expression(case: Case, data: Data) -> Callable[[Tensor], tuple[Any, ...]]:
    write = on_cuda(case).expression
    assert write is not None
    return write(case, data)


def _written(case: Case, data: Data, threads: int) -> Call:
    del threads
    return _whole(case, data, _expression(case, data))


def _compiled(case: Case, data: Data, threads: int) -> Call:
    del threads
    torch._dynamo.reset()  # every case its own graph, whatever came before
    return _whole(case, data, torch.compile(_expression(case, data), dynamic=False))


# ---- By name --------------------------------------------------------------------------------------------------------

_AROUND_A_PRODUCT: Mapping[str, Candidate] = {
    EXPRESSION: Candidate(
        _written,
        "cuBLAS product, then normalise, argmin or topk; bank norms beforehand; in chunks of rows where the "
        "scores would not fit",
    ),
    COMPILED: Candidate(_compiled, "torch.compile of that expression", "triton"),
}


def candidate(name: str, case: CudaCase) -> Candidate:
    """The candidate of that name in this case; a path of ours is our candidate."""
    workload = workload_of(case)
    known = {**workload.candidates, **_AROUND_A_PRODUCT, **on_cuda(case).candidates}
    return workload.ours if name in PATHS else known[name]


def prepare(name: str, case: CudaCase, data: Data) -> Call:
    """The candidate's call; a path of ours is our call under that path's setting."""
    found = candidate(name, case)
    if name not in PATHS:
        return found.prepare(case, data, 0)
    with environment(PATHS[name]):
        call = found.prepare(case, data, 0)
    return _on_path(PATHS[name], call)


def packages() -> set[str]:
    """The distributions of every peer on a GPU."""
    found = {candidate(name, case).package for case in CUDA_CASES for name in case.candidates}
    return {package for package in found if package}
