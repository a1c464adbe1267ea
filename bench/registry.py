"""All workloads: one of every file in bench/workloads. Every other module finds a workload through this list."""

from __future__ import annotations

import importlib
import pkgutil

from bench import workloads
from bench.cases import Case
from bench.cuda_cases import CudaCase
from bench.workload import Workload


def _found() -> tuple[Workload, ...]:
    names = [module.name for module in pkgutil.iter_modules(workloads.__path__)]
    found = [importlib.import_module(f"{workloads.__name__}.{name}").WORKLOAD for name in names]
    return tuple(sorted(found, key=lambda workload: workload.place))


WORKLOADS = _found()
_BY_OP = {workload.op: workload for workload in WORKLOADS}
# A run that is short of time leaves out the last ones.
CUDA_CASES: tuple[CudaCase, ...] = tuple(
    sorted((case for workload in WORKLOADS if workload.cuda for case in workload.cuda.cases), key=lambda c: c.rank)
)


def workload_of(case: Case) -> Workload:
    return _BY_OP[case.op]


def cases(table: str) -> list[Case]:
    """The cases on the CPU whose workloads stand in that table, in its order."""
    return [case for workload in WORKLOADS if table in workload.tables for case in workload.cases]


def case_named(name: str) -> Case:
    """A case on the CPU by its name."""
    return next(case for workload in WORKLOADS for case in workload.cases if case.name == name)


def packages() -> set[str]:
    """The distributions of every peer on the CPU."""
    return {c.package for workload in WORKLOADS for c in workload.candidates.values() if c.package}
