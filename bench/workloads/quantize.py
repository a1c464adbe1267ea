"""quantize: the nearest rows themselves beside their codes. Timed on a GPU, and as one tiny call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import vecbank
from bench.cases import OURS, Case, Data
from bench.cuda_cases import F32, WRITTEN, faster, row
from bench.timing import Call
from bench.workload import Candidate, OnCuda, Tiny, Workload
from bench.workloads.nearest import codes_by_product


def _ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    bank, x = vecbank.Bank(data.bank, metric=case.metric).prepare("search"), data.x
    return lambda: (None, *reversed(bank.quantize(x)))


def _expression(case: Case, data: Data) -> Callable[[Tensor], tuple[Any, ...]]:
    del case
    codes_of, bank = codes_by_product(data), data.bank

    def search(x: Tensor) -> tuple[Any, ...]:
        codes = codes_of(x)
        return None, codes, F.embedding(codes, bank)

    return search


def _tiny(data: Data, grad: bool) -> Call:
    bank, x = vecbank.Bank(data.bank, metric="l2"), data.x.clone().requires_grad_(grad)
    return lambda: bank.quantize(x)


def _tiny_torch(data: Data) -> Call:
    x, bank = data.x, data.bank
    return lambda: bank[torch.cdist(x, bank).argmin(1)]


WORKLOAD = Workload(
    op="quantize",
    place=40,
    candidates={OURS: Candidate(_ours)},
    tiny=Tiny(_tiny, _tiny_torch),
    cuda=OnCuda(cases=(row("quantize", 70, 65536, 8192, 64, F32, faster(1.5), WRITTEN),), expression=_expression),
)
