"""Are the answers right? A sample of queries against vecbank.reference in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vecbank
from bench.cases import OURS, Case, Data

SAMPLE = 64
WORK = 2e9  # multiplications spent on the reference per case
TILE = 1 << 25  # elements of a reference tile, so that float64 intermediates stay near 256 MiB


@dataclass
class Expected:
    """The right answer for the sampled queries `rows`; without indices and scores there is no single right answer."""

    rows: np.ndarray
    indices: np.ndarray | None = None  # (sample, k)
    values: np.ndarray | None = None  # float32, rounded once
    scores: list[Tensor] | None = None  # float64: scores of the sample, then full gradients
    allowed: list[float] | None = None  # largest error the contract allows for each of them


def to_numpy(values: Any) -> np.ndarray:
    """From any device; 16-bit floats as float32."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).cpu().numpy()


def sample(case: Case) -> Tensor:
    """The queries whose answers are checked, in ascending order."""
    count = int(min(SAMPLE, case.n, max(1, WORK // (case.m * case.d))))
    gen = torch.Generator().manual_seed(1)
    return torch.randperm(case.n, generator=gen)[:count].sort().values


# ---- What is expected -----------------------------------------------------------------------------------------------


def best_rows(case: Case, data: Data, rows: Tensor) -> Expected:
    """The k best rows of the bank and their values, from the reference in pieces of the bank."""
    x = data.x[rows].double()
    count = len(rows)
    step = max(case.k, TILE // (count * case.d))
    # Distances are merged by their squares: two squares may share one square root.
    metric = "sqeuclidean" if case.metric == "l2" else case.metric
    sign = 1.0 if metric == "sqeuclidean" else -1.0
    keys, codes = np.empty((count, 0)), np.empty((count, 0), dtype=np.int64)
    for start in range(0, case.m, step):
        part = data.bank[start : start + step].double()
        found = vecbank.reference.topk(x, part, min(case.k, len(part)), metric)
        keys = np.concatenate([keys, to_numpy(found.values)], 1)
        codes = np.concatenate([codes, to_numpy(found.indices) + start], 1)
        # Best first, equal scores by the lower index: float64 keys, so merging chunks is exact.
        order = np.lexsort((codes, sign * keys), axis=1)[:, : case.k]
        keys, codes = np.take_along_axis(keys, order, 1), np.take_along_axis(codes, order, 1)
    values = np.sqrt(keys) if case.metric == "l2" else keys
    return Expected(rows.numpy(), codes, values.astype(np.float32))


# ---- What a candidate answered --------------------------------------------------------------------------------------


def values_and_indices(case: Case, name: str, result: tuple[Any, ...], rows: np.ndarray) -> tuple[Any, ...]:
    """Both for the sampled rows."""
    del name
    picked = [None if part is None else to_numpy(part) for part in result[:2]]
    return tuple(None if p is None else p.reshape(case.n, -1)[rows] for p in picked)


def codes_alone(case: Case, name: str, result: tuple[Any, ...], rows: np.ndarray) -> tuple[Any, ...]:
    """Codes of the sampled rows, where values are not compared."""
    del case, name
    return None, to_numpy(result[1])[rows].astype(np.int64)


def compare(name: str, part: tuple[Any, ...], expected: Expected) -> dict[str, object]:
    """What differs, as figures for the JSON; `ok` is None where nothing was to be judged."""
    if expected.scores is not None and expected.allowed is not None:
        errors = [float(np.abs(p - to_numpy(w)).max()) for p, w in zip(part, expected.scores, strict=True)]
        return {
            "ok": all(e <= a for e, a in zip(errors, expected.allowed, strict=True)),
            "largest_error": errors,
            "allowed_error": expected.allowed,
        }
    if expected.indices is None:
        return {"ok": None, "why": "no single right answer: float32 sums in another order part the runs"}
    values, indices = part
    wrong = (indices.astype(np.int64) != expected.indices).any(1)
    hits = [len(np.intersect1d(got, exp)) for got, exp in zip(indices.astype(np.int64), expected.indices, strict=True)]
    report: dict[str, object] = {
        "sample": len(expected.rows),
        "wrong_rows": int(wrong.sum()),
        "recall": round(float(np.mean(hits)) / expected.indices.shape[1], 6),
    }
    # Ours, on whatever path, also promises the bits of the values.
    if name.startswith(OURS) and values is not None and expected.values is not None:
        report["wrong_values"] = int((values.view(np.uint32) != expected.values.view(np.uint32)).sum())
    report["ok"] = report["wrong_rows"] == 0 and report.get("wrong_values", 0) == 0
    return report
