"""A short CUDA bench: our ops beside cuBLAS with torch.topk or argmin, interleaved, event medians, as JSON.

`python bench/cuda_cases.py --out result.json`. Needs a GPU and a CUDA build; says so and stops otherwise.
Has never run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vecbank
from vecbank import _cuda

Candidate = Callable[[Tensor, Tensor], Any]
L2_BYTES = 128 << 20  # written between calls, so that no call finds the last one's data in cache


def _argmin(x: Tensor, bank: Tensor) -> Any:
    return (bank.square().sum(-1) - 2 * x @ bank.T).argmin(-1)


CASES: list[tuple[str, tuple[int, int, int], torch.dtype, Candidate, Candidate]] = [
    ("project cosine", (65536, 1024, 256), torch.float32,
     lambda x, b: vecbank.project(x, b, "cosine"),
     lambda x, b: torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(b).T),
    ("nearest", (65536, 8192, 64), torch.float32, lambda x, b: vecbank.nearest(x, b), _argmin),
    ("quantize", (65536, 8192, 64), torch.float32, lambda x, b: vecbank.quantize(x, b),
     lambda x, b: b[_argmin(x, b)]),
    ("topk 10", (4096, 262144, 128), torch.float32, lambda x, b: vecbank.topk(x, b, 10),
     lambda x, b: (x @ b.T).topk(10)),
    ("topk 100", (4096, 262144, 128), torch.float32, lambda x, b: vecbank.topk(x, b, 100),
     lambda x, b: (x @ b.T).topk(100)),
    ("topk 10, one query", (1, 1_000_000, 128), torch.float32, lambda x, b: vecbank.topk(x, b, 10),
     lambda x, b: (x @ b.T).topk(10)),
]  # fmt: skip


def medians(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Milliseconds of each, taken in turn."""
    scratch = torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            scratch.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or _cuda.module is None:
        raise SystemExit(f"bench: not run: {_cuda.reason or 'no GPU'}")
    rows = []
    for name, (n, m, d), dtype, ours, theirs in CASES:
        generator = torch.Generator("cuda").manual_seed(0)
        x = torch.randn(n, d, generator=generator, device="cuda").to(dtype)
        bank = torch.randn(m, d, generator=generator, device="cuda").to(dtype)
        memory: dict[str, int] = {}
        calls: dict[str, Callable[[], Any]] = {
            "vecbank": partial(ours, x, bank),
            "torch": partial(theirs, x, bank),
            "product": partial(torch.mm, x, bank.T),
        }
        for label, call in calls.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            torch.cuda.synchronize()
            memory[label] = torch.cuda.max_memory_allocated() - before
        times = medians(calls, arguments.repeats)
        row = {"case": name, "n": n, "m": m, "d": d, "ms": times, "extra_bytes": memory}
        print(row)
        rows.append(row)
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "vecbank": vecbank.__version__,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
