"""quantize_train: codes, rows, the loss and the counts of a training step in one call. Timed on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import vecbank
from bench.cases import OURS, Case, Data, Target
from bench.cuda_cases import BF16, EXPRESSION, WIDE, row
from bench.timing import Call
from bench.workload import Candidate, OnCuda, Workload
from bench.workloads.nearest import BARE, BARE_SEARCH, codes_by_product


def _ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    bank, x = vecbank.Bank(data.bank, metric=case.metric).prepare("search"), data.x

    def step() -> tuple[Any, ...]:
        found = vecbank.quantize_train(x, bank)
        return None, found.codes, *found

    return step


def _expression(case: Case, data: Data) -> Callable[[Tensor], tuple[Any, ...]]:
    codes_of, bank = codes_by_product(data), data.bank

    def step(x: Tensor) -> tuple[Any, ...]:
        codes = codes_of(x)
        rows = F.embedding(codes, bank)
        return None, codes, rows, (rows - x).square().sum(), torch.bincount(codes, minlength=case.m)

    return step


WORKLOAD = Workload(
    op="quantize_train",
    place=45,
    candidates={OURS: Candidate(_ours)},
    cuda=OnCuda(
        cases=(
            row(
                "quantize_train", 150, *WIDE, 64, BF16, Target(None, ((BARE, 1.15),)), (BARE, EXPRESSION),
                name="quantize with gather, loss and counts 1,048,576 x 8,192, d 64",
            ),
        ),
        expression=_expression,
        candidates={BARE: BARE_SEARCH},
    ),
)  # fmt: skip
