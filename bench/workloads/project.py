"""project by cosine: every score, with and without the gradients to x and the bank."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import vecbank
from bench.cases import OURS, PLAIN, Case, Data, Target
from bench.check import Expected, to_numpy
from bench.cuda_cases import BF16, EXPRESSION, F32, PROJECT_PATHS, WRITTEN, CudaCase, row
from bench.timing import Call
from bench.workload import SEARCH_TABLES, Candidate, OnCuda, Tiny, Workload

NORMALIZED, SKLEARN = "torch normalize+mm", "scikit-learn"


def _case(n: int, m: int, d: int, grad: bool = False) -> Case:
    name = f"project cosine {n} x {m}, d {d}" + (", forward + backward" if grad else "")
    target = Target(1.25 if grad else 1.05)
    peers = (NORMALIZED,) if grad else (NORMALIZED, SKLEARN)
    return Case(
        name, "project", n, m, d, "cosine", target, peers, grad=grad, baseline="three" if grad else "alloc"
    )  # fmt: skip


def _row(rank: int, dtype: str, target: Target, **more: Any) -> CudaCase:
    more = {"metric": "cosine", "baseline": "alloc", "paths": PROJECT_PATHS, **more}
    return row("project", rank, 65536, 1024, 768, dtype, target, WRITTEN, **more)


# ---- Candidates -----------------------------------------------------------------------------------------------------


def _ours(case: Case, data: Data, threads: int) -> Call:
    """A Bank made beforehand; with gradients a learnable one, which is packed in every call."""
    del threads  # torch's own setting is obeyed
    bank = vecbank.Bank(data.bank, metric=case.metric, learnable=case.grad).prepare("project")
    if not case.grad:
        return lambda: (bank.project(data.x),)
    x, leaf = data.x.clone().requires_grad_(), bank.vectors

    def step() -> tuple[Tensor, ...]:
        out = bank.project(x)
        return (out.detach(), *torch.autograd.grad(out, (x, leaf), data.upstream))

    return step


def _plain(case: Case, data: Data, threads: int) -> Call:
    del threads
    return lambda: (vecbank.project(data.x, data.bank, case.metric),)


def _normalized(case: Case, data: Data, threads: int) -> Call:
    del threads
    if case.grad:
        x, bank = data.x.clone().requires_grad_(), data.bank.clone().requires_grad_()

        def step() -> tuple[Tensor, ...]:
            out = F.normalize(x, dim=1) @ F.normalize(bank, dim=1).T
            return (out.detach(), *torch.autograd.grad(out, (x, bank), data.upstream))

        return step
    unit = F.normalize(data.bank, dim=1)
    return lambda: (F.normalize(data.x, dim=1) @ unit.T,)


def _sklearn(case: Case, data: Data, threads: int) -> Call:
    del case, threads
    from sklearn.metrics.pairwise import cosine_similarity

    x, bank = data.x.numpy(), data.bank.numpy()
    return lambda: (cosine_similarity(x, bank),)


def _expression(case: Case, data: Data) -> Callable[[Tensor], tuple[Any, ...]]:
    del case
    unit = F.normalize(data.bank, dim=1).T
    return lambda x: (F.normalize(x, dim=1) @ unit,)


def _tiny(data: Data, grad: bool) -> Call:
    bank, x = vecbank.Bank(data.bank, metric="cosine"), data.x.clone().requires_grad_(grad)
    return lambda: bank.project(x)


def _tiny_torch(data: Data) -> Call:
    x, unit = data.x, F.normalize(data.bank, dim=1)
    return lambda: F.normalize(x, dim=1) @ unit.T


# ---- Are the answers right? -----------------------------------------------------------------------------------------


def _in_dtype(data: Data, dtype: torch.dtype, grad: bool) -> list[Tensor]:
    """ATen's expression in `dtype`: scores, then with `grad` the gradients to x and the bank."""
    x, bank = data.x.to(dtype), data.bank.to(dtype)
    if not grad:
        return [F.normalize(x, dim=1, eps=1e-8) @ F.normalize(bank, dim=1, eps=1e-8).T]
    x, bank = x.requires_grad_(), bank.requires_grad_()
    out = F.normalize(x, dim=1, eps=1e-8) @ F.normalize(bank, dim=1, eps=1e-8).T
    assert data.upstream is not None
    return [out.detach(), *torch.autograd.grad(out, (x, bank), data.upstream.to(dtype))]


def _expected(case: Case, data: Data, rows: Tensor) -> Expected:
    """Float64 scores and gradients; an error may be twice that of ATen in the case's dtype, and two units.

    ATen's error is that of the whole x: a library sums a product of few rows in another order, and more exactly.
    """
    dtype = data.x.dtype
    aten = _in_dtype(data, dtype, case.grad)
    if not case.grad:
        data, aten = Data(data.x[rows], data.bank), [aten[0][rows]]
    exact = _in_dtype(data, torch.float64, case.grad)
    allowed = []
    for want, got in zip(exact, aten, strict=True):
        ulp = 2.0 ** math.floor(math.log2(float(want.abs().max()))) * torch.finfo(dtype).eps
        allowed.append(2 * float((got.double() - want).abs().max()) + 2 * ulp)
    if case.grad:
        exact[0] = exact[0][rows]
    return Expected(rows.numpy(), scores=exact, allowed=allowed)


def _answer(case: Case, name: str, result: tuple[Any, ...], rows: np.ndarray) -> tuple[Any, ...]:
    del case, name
    return (to_numpy(result[0][rows]), *(to_numpy(part) for part in result[1:]))


WORKLOAD = Workload(
    op="project",
    place=10,
    tables=SEARCH_TABLES,
    cases=(
        _case(16384, 1024, 768),
        _case(65536, 300, 384),
        _case(16384, 1024, 768, grad=True),
        _case(65536, 300, 384, grad=True),
    ),
    expected=_expected,
    answer=_answer,
    candidates={
        OURS: Candidate(_ours),
        PLAIN: Candidate(_plain),
        NORMALIZED: Candidate(_normalized, "bank normalised beforehand, except with gradients"),
        SKLEARN: Candidate(_sklearn, "cosine_similarity", "scikit-learn"),
    },
    tiny=Tiny(_tiny, _tiny_torch),
    cuda=OnCuda(
        cases=(
            _row(30, BF16, Target(1.70, ((EXPRESSION, 1.0),))),
            _row(65, F32, Target(1.15), tf32=True),
            _row(66, F32, Target(1.25)),
        ),
        expression=_expression,
    ),
)
