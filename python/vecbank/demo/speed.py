"""Speed: vecbank and what one writes without it, interleaved so that both meet the same machine."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from tqdm import tqdm

from .. import Bank


@dataclass
class Timing:
    case: str
    usual: str  # the expression one writes today
    ours_ms: float
    usual_ms: float
    ours_mib: float | None  # most memory held at once beyond the inputs; None where it cannot be read
    usual_mib: float | None
    differ: int | None  # queries for which the two do not give the same indices
    queries: int


@dataclass
class _Case:
    name: str
    usual: str
    ours_call: Callable[[], Tensor]  # the indices, or the scores
    usual_call: Callable[[], Tensor]


def _cases(quick: bool) -> list[_Case]:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    part = 8 if quick else 1
    x1, b1 = normal(8192 // part, 768), normal(1024, 768)
    x2, b2 = normal(16384 // part, 64), normal(4096, 64)
    x3, b3 = normal(512 // part, 128), normal(100_000 // part, 128)
    anchors, codebook, base = Bank(b1, "cosine"), Bank(b2, "l2"), Bank(b3, "dot")
    normalize = torch.nn.functional.normalize

    def shape(x: Tensor, b: Tensor) -> str:
        return f"{len(x)} x {len(b)}, d {b.shape[1]}"

    return [
        _Case(
            f"project, cosine, {shape(x1, b1)}",
            "normalize + mm",
            lambda: anchors.project(x1),
            lambda: normalize(x1, dim=-1) @ normalize(b1, dim=-1).T,
        ),
        _Case(
            f"nearest, l2, {shape(x2, b2)}",
            "cdist + argmin",
            lambda: codebook.nearest(x2).indices,
            lambda: torch.cdist(x2, b2).argmin(1),
        ),
        _Case(
            f"topk, dot, k 10, {shape(x3, b3)}",
            "mm + topk",
            lambda: base.topk(x3, 10).indices,
            lambda: (x3 @ b3.T).topk(10).indices,
        ),
    ]


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(field + ":")[1].split()[0])  # kB


def _peak_mib(call: Callable[[], Tensor]) -> float | None:
    """Growth of the process while `call` runs, result included, by Linux's resettable high-water mark."""
    try:
        # Freed memory that malloc keeps would be used again without the process growing: return it (glibc).
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        result = call()
        peak = _status("VmHWM")
        del result
    except (OSError, AttributeError, IndexError, ValueError):
        return None
    return max(0.0, (peak - before) / 1024)


def run(quick: bool = False) -> list[Timing]:
    rounds = 2 if quick else 5
    table = []
    cases = _cases(quick)
    with torch.inference_mode(), tqdm(total=len(cases) * rounds, desc="speed", unit="round") as bar:
        for case in cases:
            ours, usual = case.ours_call(), case.usual_call()  # also the warm-up
            queries = len(ours)
            differ = None if ours.is_floating_point() else _different_rows(ours, usual)
            del ours, usual
            memory = (_peak_mib(case.ours_call), _peak_mib(case.usual_call))
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                for call, taken in zip((case.ours_call, case.usual_call), times, strict=True):
                    start = time.perf_counter()
                    call()
                    taken.append(1000 * (time.perf_counter() - start))
                bar.update()
            table.append(Timing(case.name, case.usual, median(times[0]), median(times[1]), *memory, differ, queries))
    return table


def _different_rows(a: Tensor, b: Tensor) -> int:
    return int((a.reshape(len(a), -1) != b.reshape(len(b), -1)).any(1).sum())
