"""vecbank's own candidates: the calls that the bench rows time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import vecbank
from bench.cases import OURS, PLAIN, TINY, Case, Data
from bench.timing import Call

Prepare = Callable[[Case, Data, int], Call]


def to_numpy(values: Any) -> np.ndarray:
    """From any device; 16-bit floats as float32."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).cpu().numpy()


def prepared(case: Case, data: Data, threads: int) -> Call:
    """A Bank made beforehand; with gradients a learnable one, which is packed in every call."""
    del threads  # torch's own setting is obeyed
    if case.grad:
        bank = vecbank.Bank(data.bank, metric=case.metric, learnable=True)
        x = data.x.clone().requires_grad_()
        leaf = bank.vectors

        def step() -> tuple[torch.Tensor, ...]:
            out = bank.project(x)
            return (out.detach(), *torch.autograd.grad(out, (x, leaf), data.upstream))

        return step
    bank = vecbank.Bank(data.bank, metric=case.metric)
    x = data.x
    if case.op == "project":
        return lambda: (bank.project(x),)
    if case.op == "topk":
        return lambda: tuple(bank.topk(x, case.k))
    return lambda: tuple(bank.nearest(x))


def plain(case: Case, data: Data, threads: int) -> Call:
    """The functions on a plain tensor, packed on the fly."""
    del threads
    x, bank, metric = data.x, data.bank, case.metric
    if case.op == "project":
        return lambda: (vecbank.project(x, bank, metric),)
    if case.op == "topk":
        return lambda: tuple(vecbank.topk(x, bank, case.k, metric))
    return lambda: tuple(vecbank.nearest(x, bank, metric))


OURS_CANDIDATES: dict[str, Prepare] = {OURS: prepared, PLAIN: plain}


def tiny(op: str, mode: str, data: Data) -> Call:
    """One Bank method on tiny inputs; `mode` is a key of cases.TINY_LIMITS_US, entered by the caller."""
    metric = "cosine" if op == "project" else "dot" if op == "topk" else "l2"
    bank = vecbank.Bank(data.bank, metric=metric, learnable=mode == "requires_grad" and op == "lookup")
    x = data.x.clone().requires_grad_(mode == "requires_grad")
    codes = torch.zeros(1, dtype=torch.int64)
    calls: dict[str, Call] = {
        "project": lambda: bank.project(x),
        "topk": lambda: bank.topk(x, TINY.k),
        "nearest": lambda: bank.nearest(x),
        "quantize": lambda: bank.quantize(x),
        "lookup": lambda: bank.lookup(codes),
    }
    return calls[op]
