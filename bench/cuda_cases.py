"""What a case on a GPU is: a dtype, a rank among the rows, limits in milliseconds or kernels, and how it is judged.

Importing this needs no GPU. The rows are in bench/workloads, `bench/run.py --device cuda` runs them (cuda_run.py).
**No row has ever been measured.**
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.cases import OURS, Case, Target

# Our own call on another path than the default, beside it in the same run. A path that this build or this GPU does
# not have raises an error when it is called, and the row reports it as not run.
PATHS: dict[str, dict[str, str]] = {
    "vecbank mma16": {"VECBANK_CUDA_PATH": "mma16"},
    "vecbank sm90": {"VECBANK_CUDA_PATH": "sm90"},
    "vecbank kernel": {"VECBANK_CUDA_PROJECT": "kernel"},
    "vecbank library": {"VECBANK_CUDA_PROJECT": "library"},
}
SEARCH_PATHS = ("vecbank mma16", "vecbank sm90")
PROJECT_PATHS = ("vecbank kernel", "vecbank library")

EXPRESSION, COMPILED = "torch", "torch.compile"  # the expression a user writes around a cuBLAS product
WRITTEN = (EXPRESSION, COMPILED)

BF16, F32 = "bfloat16", "float32"
WIDE = (1 << 20, 8192)  # n and m of the rows with the most queries
AHEAD = 1 / 1.5  # the backend's own aim: this much of the better of cuBLAS + argmin/topk and torch.compile of it
TIMED_ON = ("H100", "H200")  # limits in milliseconds are stated for these
KERNEL_SHARE = 0.05
MEMORY_MIB = 64.0


def _predictions() -> dict[int, float]:
    lines = (Path(__file__).parent / "cuda_rows.csv").read_text().splitlines()
    return {int(rank): float(ms) for rank, ms, _ in csv.reader(line for line in lines if not line.startswith("#"))}


PREDICTED_MS = _predictions()  # by rank


@dataclass(frozen=True)
class CudaCase(Case):
    """A case on a GPU. `target.limit` counts products (or reads of the bank at copy bandwidth) as everywhere."""

    rank: int = 0  # rows run in ascending order: those come first that are most worth having
    dtype: str = F32
    tf32: bool = False  # torch's flag, for every candidate
    most_ms: float | None = None  # on one of TIMED_ON
    most_kernels: int | None = None  # that take more than KERNEL_SHARE of the call
    share: tuple[str, int] | None = None  # this peer gets 1 / so many of the rows, its time counted so many times

    def describe(self) -> dict[str, object]:
        return {**super().describe(), "dtype": self.dtype, "tf32": self.tf32, "predicted_ms": self.predicted_ms}

    @property
    def predicted_ms(self) -> float | None:
        """What this row was predicted to take, of the sizes of the table."""
        return PREDICTED_MS.get(self.rank)

    @property
    def arithmetic(self) -> str:
        """The large product whose rate this row's is a fraction of."""
        return "tf32" if self.tf32 else self.dtype

    def target_text(self) -> str:
        unit = "one read at copy bandwidth" if self.baseline == "read" else "product"
        parts = [] if self.target.limit is None else [f"≤ {self.target.limit:.2f} x {unit}"]
        parts += [] if self.most_ms is None else [f"≤ {self.most_ms:g} ms"]
        for name, limit in self.target.peers:
            parts.append(f"≤ {limit:.2f} x {name}" if limit >= 1 else f"{1 / limit:.3g} x faster than {name}")
        parts += [] if self.most_kernels is None else [f"{self.most_kernels} main kernel"]
        return ", ".join(parts)


def faster(factor: float, *more: tuple[str, float]) -> Target:
    """`factor` times faster than the expression, and ahead of its compiled form; `more` are limits of other peers."""
    return Target(None, ((EXPRESSION, 1 / factor), (COMPILED, AHEAD), *more))


def row(
    op: str, rank: int, n: int, m: int, d: int, dtype: str, target: Target, peers: tuple[str, ...], **more: Any
) -> CudaCase:
    """A case with our other paths among its candidates; its name ends with the dtype and a `suffix`."""
    name = more.pop("name", f"{op} {n:,} x {m:,}, d {d}")
    name += f", {'float32 as tf32' if more.get('tf32') else dtype}" + more.pop("suffix", "")
    candidates = (*more.pop("paths", SEARCH_PATHS), *peers)
    metric = more.pop("metric", "l2")
    return CudaCase(
        name, op, n, m, d, metric, target, candidates, rank=rank, dtype=dtype, memory_limit_mib=MEMORY_MIB, **more
    )


def quick(case: CudaCase) -> CudaCase:
    """Small enough for a smoke run, and for a test on a CPU; its figures are no evidence for the targets."""
    share = case.share and (case.share[0], min(case.share[1], 2))
    m = min(case.m, 16 if case.products > 1 else 256)
    n, d, k = min(case.n, 32), min(case.d, 16), min(case.k, 8)
    return replace(case, n=n, m=m, d=d, k=k, share=share, most_ms=None, rank=0)  # no prediction is of this size


def judge(case: CudaCase, entries: dict[str, dict[str, Any]], path: str, device_name: str) -> dict[str, Any]:
    """Does `path` (one of ours) reach everything the case asks? None where something needed was not measured.

    `line` is the strictest of the limits in units of the baseline, for the plots.
    """
    ours = entries[path]
    limits: list[float] = []
    verdicts: list[bool | None] = [ours["check"]["ok"] is not False]
    absent: list[str] = []
    unit_s = ours["median_s"] / ours["ratio"]
    if case.target.limit is not None:
        limits.append(case.target.limit)
    if case.most_ms is not None:
        if any(name in device_name for name in TIMED_ON):
            limits.append(case.most_ms * 1e-3 / unit_s)
        else:
            absent.append(f"a GPU that {case.most_ms:g} ms is stated for")
    for name, limit in case.target.peers:
        if entries.get(name, {}).get("status") == "ok":
            limits.append(limit * entries[name]["ratio"])
        else:
            absent.append(name)
    if case.most_kernels is not None:
        count = ours.get("kernels")
        absent += ["a count of kernels"] if count is None else []
        verdicts.append(None if count is None else count <= case.most_kernels)
    verdicts += [ours["ratio"] <= limit for limit in limits] + [None] * len(absent)
    met = False if False in verdicts else None if None in verdicts else True
    return {"met": met, "absent": absent, "line": min(limits, default=None)}


def against(entries: dict[str, dict[str, Any]], case: CudaCase) -> dict[str, Any]:
    """Ours over every other candidate that ran, with the limit the case sets for it."""
    limits = dict(case.target.peers)
    return {
        name: {"ours_over_peer": round(entries[OURS]["ratio"] / entry["ratio"], 4), "limit": limits.get(name)}
        for name, entry in entries.items()
        if name != OURS and entry["status"] == "ok"
    }
