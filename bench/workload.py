"""What a workload consists of. Each file of bench/workloads holds one, named WORKLOAD; registry.py finds it.

To add a workload, add a file there. A search needs `op`, `place`, `tables`, `cases` and `candidates`; where inputs, the
product, the expected answer or what is compared differ from a search's, they are functions of the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import check
from bench.cases import OURS, Case, Data, draw
from bench.check import Expected
from bench.cuda_cases import CudaCase
from bench.timing import Call

Prepare = Callable[[Case, Data, int], Call]  # the last argument is how many threads the call may use
Answer = Callable[[Case, str, tuple[Any, ...], np.ndarray], tuple[Any, ...]]
SEARCH_TABLES = ("speed", "memory", "growth", "overhead")


@dataclass(frozen=True)
class Candidate:
    """One that answers a case: `prepare` runs outside the clock, the call that it returns is timed.

    A missing package raises ImportError from `prepare`. A call returns `(values or None, indices, ...)`, or what the
    workload's own `answer` takes.
    """

    prepare: Prepare
    note: str | None = None
    package: str | None = None  # whose version the JSON states
    other_question: str | None = None  # why the answers are timed but not checked: same cost, another ranking


@dataclass(frozen=True)
class Tiny:
    """One call on one query and a bank so small that the call itself is what costs; the `bool` asks for gradients."""

    ours: Callable[[Data, bool], Call]
    torch: Callable[[Data], Call]  # what a user writes: the least that a Python call into torch costs


@dataclass(frozen=True, kw_only=True)
class OnCuda:
    """The rows of a workload on a GPU. Ours is the same candidate as on the CPU, on each path."""

    cases: tuple[CudaCase, ...]
    # What a user writes for a block of rows around a cuBLAS product; it is timed as written and compiled.
    expression: Callable[[Case, Data], Callable[[Tensor], tuple[Any, ...]]] | None = None
    candidates: Mapping[str, Candidate] = field(default_factory=dict)  # besides those of the CPU
    parameters: bool = False  # the bank is a module's parameter, which stays float32


def bank_of(case: Case, data: Data) -> Tensor:
    del case
    return data.bank


def quick(case: Case) -> Case:
    """A case small enough for a smoke run; its figures are no evidence for the targets."""
    return replace(case, n=max(1, case.n // 8), m=case.m // 8 if case.m > 100_000 else case.m)


def quick_codebook(case: Case) -> Case:
    return replace(case, n=max(256, case.n // 32))


def small(case: Case) -> Case:
    return replace(case, n=8, m=max(64, case.k), data="gaussian")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A kind of question with all that the runners, the processes of the memory rows and the report need."""

    op: str  # `op` of its cases
    place: int  # workloads stand in the tables in ascending order of their place
    candidates: Mapping[str, Candidate] = field(default_factory=dict)  # OURS, and by the names in Case.candidates
    tables: tuple[str, ...] = ()  # of cpu_run.CpuBench, the one of times first
    cases: tuple[Case, ...] = ()  # on the CPU
    data: Callable[[Case, torch.Generator], Data] = draw
    product: Callable[[Case, Data], Tensor] = bank_of  # the (m, d) matrix whose plain product with x is the baseline
    expected: Callable[[Case, Data, Tensor], Expected] = check.best_rows
    answer: Answer = check.values_and_indices  # the part of a result that `check.compare` needs
    quick: Callable[[Case], Case] = quick
    small: Callable[[Case], Case] = small  # a first call, so that libraries load and their threads start
    tiny: Tiny | None = None
    cuda: OnCuda | None = None
    left_out: str | None = None  # cases that this machine lacks the data of, and how to get it

    def make_data(self, case: Case, seed: int = 0, device: str = "cpu") -> Data:
        """Seeded float32 inputs, drawn on `device`."""
        gen = torch.Generator(device).manual_seed(seed)
        with torch.device(device):
            return self.data(case, gen)

    def expect(self, case: Case, data: Data) -> Expected:
        """The right answers for a sample of the queries."""
        return self.expected(case, data, check.sample(case))

    def judge(
        self, case: Case, name: str, candidate: Candidate, result: tuple[Any, ...], expected: Expected
    ) -> dict[str, object]:
        """How the result of a candidate differs from what is expected, as figures for the JSON."""
        if candidate.other_question is not None:
            return {"ok": None, "why": candidate.other_question}
        return check.compare(name, self.answer(case, name, result, expected.rows), expected)

    @property
    def ours(self) -> Candidate:
        return self.candidates[OURS]
