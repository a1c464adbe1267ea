"""Are the answers right? A sample of queries against vecbank.reference in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import vecbank
from bench import codebooks
from bench.cases import OURS, Case, Data
from bench.ours import to_numpy
from bench.peers import UNCHECKED

SAMPLE = 64
WORK = 2e9  # multiplications spent on the reference per case
TILE = 1 << 25  # elements of a reference tile, so that float64 intermediates stay near 256 MiB


@dataclass
class Expected:
    """The right answer for the sampled queries `rows`."""

    rows: np.ndarray
    indices: np.ndarray | None = None  # (sample, k)
    values: np.ndarray | None = None  # float32, rounded once
    scores: list[torch.Tensor] | None = None  # float64: scores of the sample, then full gradients
    allowed: list[float] | None = None  # largest error the contract allows for each of them


def expected(case: Case, data: Data) -> Expected:
    count = int(min(SAMPLE, case.n, max(1, WORK // (case.m * case.d))))
    gen = torch.Generator().manual_seed(1)
    rows = torch.randperm(case.n, generator=gen)[:count].sort().values
    if case.op in codebooks.CANDIDATES:
        return Expected(rows.numpy(), codebooks.expected_codes(case, data, rows))
    if case.op == "project":
        return _expected_project(case, data, rows)
    x = data.x[rows].double()
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


def _normalized_product(data: Data, dtype: torch.dtype, grad: bool) -> list[torch.Tensor]:
    """ATen's expression in `dtype`: scores, then with `grad` the gradients to x and the bank."""
    x, bank = data.x.to(dtype), data.bank.to(dtype)
    if not grad:
        return [F.normalize(x, dim=1, eps=1e-8) @ F.normalize(bank, dim=1, eps=1e-8).T]
    x, bank = x.requires_grad_(), bank.requires_grad_()
    out = F.normalize(x, dim=1, eps=1e-8) @ F.normalize(bank, dim=1, eps=1e-8).T
    assert data.upstream is not None
    return [out.detach(), *torch.autograd.grad(out, (x, bank), data.upstream.to(dtype))]


def _expected_project(case: Case, data: Data, rows: torch.Tensor) -> Expected:
    if not case.grad:
        data = Data(data.x[rows], data.bank)
    dtype = data.x.dtype
    exact = _normalized_product(data, torch.float64, case.grad)
    aten = _normalized_product(data, dtype, case.grad)
    allowed = []
    for want, got in zip(exact, aten, strict=True):
        ulp = 2.0 ** math.floor(math.log2(float(want.abs().max()))) * torch.finfo(dtype).eps
        allowed.append(2 * float((got.double() - want).abs().max()) + 2 * ulp)
    if case.grad:
        exact[0] = exact[0][rows]
    return Expected(rows.numpy(), scores=exact, allowed=allowed)


def extract(case: Case, name: str, result: tuple[Any, ...], rows: np.ndarray) -> tuple[Any, ...]:
    """The part of a result that `compare` needs, copied so that the rest can be freed."""
    if case.op == "project":
        return (to_numpy(result[0][rows]), *(to_numpy(part) for part in result[1:]))
    values, indices = result[:2]
    if case.op in codebooks.CANDIDATES:
        return (None, None if case.op == "kmeans" else codebooks.codes_of(case, name, indices, rows))
    picked = [None if part is None else to_numpy(part) for part in (values, indices)]
    return tuple(None if p is None else p.reshape(case.n, -1)[rows].copy() for p in picked)


def compare(case: Case, name: str, part: tuple[Any, ...], want: Expected) -> dict[str, object]:
    """What differs, as figures for the JSON; `ok` is None where nothing was to be judged."""
    if (name, case.op) in UNCHECKED:
        return {"ok": None, "why": "answers another question (Euclidean distance)"}
    if want.scores is not None and want.allowed is not None:
        errors = [float(np.abs(p - to_numpy(w)).max()) for p, w in zip(part, want.scores, strict=True)]
        return {
            "ok": all(e <= a for e, a in zip(errors, want.allowed, strict=True)),
            "largest_error": errors,
            "allowed_error": want.allowed,
        }
    if want.indices is None:
        return {"ok": None, "why": "no single right answer: float32 sums in another order part the runs"}
    values, indices = part
    wrong = (indices.astype(np.int64) != want.indices).any(1)
    hits = [len(np.intersect1d(got, exp)) for got, exp in zip(indices.astype(np.int64), want.indices, strict=True)]
    report: dict[str, object] = {
        "sample": len(want.rows),
        "wrong_rows": int(wrong.sum()),
        "recall": round(float(np.mean(hits)) / want.indices.shape[1], 6),
    }
    # Ours, on whatever path, also promises the bits of the values.
    if name.startswith(OURS) and values is not None and want.values is not None:
        report["wrong_values"] = int((values.view(np.uint32) != want.values.view(np.uint32)).sum())
    report["ok"] = report["wrong_rows"] == 0 and report.get("wrong_values", 0) == 0
    return report
