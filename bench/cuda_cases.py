"""The rows of the CUDA bench: what is asked on a GPU, in which dtype, and what has to be reached.

Importing this needs no GPU. `bench/run.py --device cuda` runs the rows (cuda_run.py); who answers them is in
cuda_peers.py. **No row has ever been measured.**
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from bench import cases
from bench.cases import OURS, Case, Data, Target

# Our own call on another path than the default, beside it in the same run. A path that this build or this GPU does
# not have says so when it is called, and the row reports it as not run.
PATHS: dict[str, dict[str, str]] = {
    "vecbank mma": {"VECBANK_CUDA_PATH": "mma"},
    "vecbank mma16": {"VECBANK_CUDA_PATH": "mma16"},
    "vecbank sm90": {"VECBANK_CUDA_PATH": "sm90"},
    "vecbank kernel": {"VECBANK_CUDA_PROJECT": "kernel"},
    "vecbank library": {"VECBANK_CUDA_PROJECT": "library"},
}
_SEARCH_PATHS = ("vecbank mma", "vecbank mma16", "vecbank sm90")
_PROJECT_PATHS = ("vecbank kernel", "vecbank library")

EXPRESSION, COMPILED = "torch", "torch.compile"  # the expression a user writes around a cuBLAS product
FLASH, VQP = "flash-kmeans", "vector-quantize-pytorch"
NEAREST, NARROW = "nearest by vecbank", "bfloat16 by vecbank"

AHEAD = 1 / 1.5  # the backend's own aim: this much of the better of cuBLAS + argmin/topk and torch.compile of it
TIMED_ON = ("H100", "H200")  # limits in milliseconds are stated for these
MEMORY_MIB = 64.0


@dataclass(frozen=True)
class CudaCase(Case):
    """A case on a GPU. `target.limit` counts products (or reads of the bank at copy bandwidth) as everywhere."""

    dtype: str = "float32"
    tf32: bool = False  # torch's flag, for everybody
    most_ms: float | None = None  # on one of TIMED_ON
    most_kernels: int | None = None  # that take more than KERNEL_SHARE of the call
    share: int = 1  # peers marked in cuda_peers.SHARED get 1 / share of the rows, their time counted `share` times

    def describe(self) -> dict[str, object]:
        return {**super().describe(), "dtype": self.dtype, "tf32": self.tf32}

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


KERNEL_SHARE = 0.05


def _target(limit: float | None = None, **faster: float) -> Target:
    """Peers by keyword: torch=1.5 is 1.5 x faster than both of the expression and its compiled form."""
    limits: list[tuple[str, float]] = []
    if "torch" in faster:
        limits += [(EXPRESSION, 1 / faster["torch"]), (COMPILED, min(AHEAD, 1 / faster.get("compiled", 1.5)))]
    if "flash" in faster:
        limits.append((FLASH, 1 / faster["flash"]))
    return Target(limit, tuple(limits))


def _row(op: str, n: int, m: int, d: int, dtype: str, target: Target, peers: tuple[str, ...], **more: Any) -> CudaCase:
    metric = more.pop("metric", "dot" if op in ("topk", "sparse_encode") else "cosine" if op == "project" else "l2")
    k = more.get("k", 1)
    name = more.pop("name", f"{op} {n:,} x {m:,}, d {d}") + (f", k {k}" if op == "topk" else "")
    name += f", {'float32 as tf32' if more.get('tf32') else dtype}" + more.pop("suffix", "")
    paths = _PROJECT_PATHS if op == "project" else _SEARCH_PATHS
    return CudaCase(
        name, op, n, m, d, metric, target, (*paths, *peers), dtype=dtype, memory_limit_mib=MEMORY_MIB, **more
    )


_BOTH = (EXPRESSION, COMPILED)
_BF16, _F32 = "bfloat16", "float32"
_WIDE = (1 << 20, 8192)

# In the order in which they are worth having: a run that is short of time leaves out the last ones.
CASES: tuple[CudaCase, ...] = (
    _row("nearest", *_WIDE, 64, _BF16, _target(torch=1.5, flash=1.3), (*_BOTH, FLASH), most_ms=2.2),
    _row("topk", 4096, 1_000_000, 128, _BF16, _target(torch=3.0), _BOTH, k=10, most_ms=2.6),
    _row("project", 65536, 1024, 768, _BF16, _target(1.10), _BOTH, baseline="alloc"),
    _row("project", 65536, 1024, 768, _F32, _target(1.15), _BOTH, baseline="alloc", tf32=True),
    _row("project", 65536, 1024, 768, _F32, _target(1.25), _BOTH, baseline="alloc"),
    _row("nearest", 65536, 8192, 64, _F32, _target(torch=1.5), (*_BOTH, FLASH)),
    _row("quantize", 65536, 8192, 64, _F32, _target(torch=1.5), _BOTH),
    _row("topk", 4096, 262_144, 128, _F32, _target(torch=1.5), _BOTH, k=10),
    _row("topk", 4096, 262_144, 128, _F32, _target(torch=1.5), _BOTH, k=100),
    _row("nearest", *_WIDE, 128, _BF16, _target(torch=1.5, flash=1.3), (*_BOTH, FLASH), most_ms=3.7),
    _row("topk", 4096, 1_000_000, 128, _BF16, _target(torch=3.0), _BOTH, k=100, most_ms=2.6),
    _row("topk", 1, 1_000_000, 128, _BF16, _target(1 / 0.7), _BOTH, k=10, baseline="read"),
    _row("topk", 64, 1_000_000, 128, _BF16, _target(1 / 0.7), _BOTH, k=10, baseline="read"),
    _row("nearest", *_WIDE, 64, _F32, Target(None, ((NARROW, 1.5), *_target(torch=1.5).peers)), (NARROW, *_BOTH)),
    _row("quantize_train", *_WIDE, 64, _BF16, Target(None, ((NEAREST, 1.15),)), (NEAREST, EXPRESSION),
         name="quantize with gather, loss and counts 1,048,576 x 8,192, d 64"),
    _row("vq_train", *_WIDE, 64, _BF16, Target(None, ((VQP, 0.1), (NEAREST, 1.5))), (NEAREST, VQP), share=16,
         name="VectorQuantize train step 1,048,576 x 8,192, d 64"),
    _row("residual", 65536, 1024, 128, _F32, Target(None, ()), (VQP,), products=8, most_kernels=1,
         name="ResidualVQ 8 x 1024, d 128, N 65,536"),
    _row("sparse_encode", 4096, 32768, 768, _F32, _target(torch=1.5), _BOTH, k=32,
         name="sparse_encode 4,096 x 32,768, d 768, k 32"),
    _row("sparse_encode", 4096, 32768, 768, _BF16, _target(torch=1.5), _BOTH, k=32,
         name="sparse_encode 4,096 x 32,768, d 768, k 32"),
    _row("nearest", *_WIDE, 128, _F32, Target(None, ((NARROW, 1.5), *_target(torch=1.5).peers)), (NARROW, *_BOTH)),
    _row("nearest", 65536, 8192, 64, _F32, _target(6.0), _BOTH, data="equal", suffix=", all rows equal"),
    _row("nearest", 65536, 8192, 64, _F32, _target(6.0), _BOTH, data="offset", suffix=", data at 1000 ± 0.01"),
)  # fmt: skip


def make_data(case: CudaCase, device: str, seed: int = 0) -> Data:
    """Inputs drawn on the device, in the case's dtype; books of a module stay float32, as its parameters are."""
    data = cases.make_data(case, seed, device)
    dtype = getattr(torch, case.dtype)
    bank = data.bank if case.op in ("vq_train", "residual") else data.bank.to(dtype)
    return Data(data.x.to(dtype), bank, None if data.upstream is None else data.upstream.to(dtype))


def quick(case: CudaCase) -> CudaCase:
    """Small enough for a smoke run, and for a test on a CPU; its figures say nothing about the targets."""
    return replace(
        case,
        n=min(case.n, 32),
        m=16 if case.op == "residual" else min(case.m, 256),
        d=min(case.d, 16),
        k=min(case.k, 8),
        share=min(case.share, 2),
        most_ms=None,
    )


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
