"""The baselines that ratios are taken against on a CPU: plain products by torch.mm, or one read of the bank."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases import Case, Data
from bench.timing import Timed, clock, steady

CHUNK_QUERIES, CHUNK_ROWS = 4096, 65536


@dataclass
class Baseline:
    """What one case is measured against, as candidates for `interleave`; the fastest of them counts."""

    kind: str
    how: str
    calls: dict[str, Timed]


def baseline(case: Case, data: Data, product: Tensor) -> Baseline:
    """The baseline named by the case; the matrix `product` is what x is multiplied with ("x sgemm" in the tables)."""
    x = data.x
    if case.baseline == "chunks":
        return _chunked(case, x, product)
    if case.baseline == "alloc":
        calls = {"sgemm": clock(lambda: torch.mm(x, product.T))}
        return Baseline("sgemm", "one torch.mm that allocates its result", calls)
    if case.baseline == "three":
        up = data.upstream
        assert up is not None

        def three() -> object:
            return torch.mm(x, product.T), torch.mm(up, product), torch.mm(up.T, x)

        return Baseline("sgemm", "three torch.mm that allocate: x b', g b, g' x", {"sgemm": clock(three)})
    if case.baseline == "read":
        flat = product.view(-1)
        # Calls of a millisecond: after a pause they would mostly wait for the second thread to wake up.
        calls = {"read: torch.sum": steady(flat.sum), "read: torch.amax": steady(flat.amax)}
        return Baseline("read", "one pass over the bank by torch.sum or torch.amax, the faster of the two", calls)
    raise ValueError(f"baseline must be chunks, alloc, three or read, got {case.baseline!r}")


def _chunked(case: Case, x: Tensor, product: Tensor, per_round_s: float = 0.5) -> Baseline:
    """torch.mm over full chunks into one reused out=: the median chunk, scaled to the whole product."""
    queries, rows = min(CHUNK_QUERIES, case.n), min(CHUNK_ROWS, case.m)
    out = torch.empty(queries, rows)
    pairs = [(i, j) for i in range(0, case.n - queries + 1, queries) for j in range(0, case.m - rows + 1, rows)]
    scale = case.flops / (2.0 * queries * rows * case.d)
    position = 0

    def timed() -> float:
        nonlocal position
        chunk_s: list[float] = []
        while len(chunk_s) < len(pairs) and (sum(chunk_s) < per_round_s or len(chunk_s) < 3):
            i, j = pairs[position % len(pairs)]
            position += 1
            a, b = x[i : i + queries], product[j : j + rows]
            start = time.perf_counter()
            torch.mm(a, b.T, out=out)
            chunk_s.append(time.perf_counter() - start)
        return statistics.median(chunk_s) * scale

    how = (
        f"torch.mm, {queries} queries x {rows} bank rows a chunk into one reused out=; each sample is the "
        f"median of up to {len(pairs)} chunks (as many as fit {per_round_s} s) times {scale:.2f}"
    )
    return Baseline("sgemm", how, {"sgemm": timed})
