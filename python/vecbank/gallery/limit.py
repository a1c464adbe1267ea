"""LIMIT: the number of different top-k sets that any query can reach is bounded by the dimension of the vectors.

Weller et al., "On the Theoretical Limitations of Embedding-Based Retrieval", 2025.

    count of { the set topk_j dot(q, b_j) : q in R^d }, k = 2, against all M (M - 1) / 2 sets

Several vectors a side lift the bound: MaxSim(Q, P) = sum_{q in Q} max_{p in P} dot(q, p).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import vecbank

from ._data import normal, unit
from ._sheet import Sheet

TITLE = "LIMIT"
FAMILY = "top-k search"
DOCUMENTS, QUERIES = 12, 200_000
EXPECTED = {2: 12, 3: 30, 4: 48, 6: 64, 8: 66}


def different(pairs: Tensor) -> int:
    """How many different sets of two (N, 2) holds, in whatever order."""
    low, high = pairs.aminmax(dim=-1)
    return len(torch.unique(low * DOCUMENTS + high))


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    counts, equal = [], []
    for d, expected in EXPECTED.items():
        documents, queries = unit(normal(DOCUMENTS, d, seed=sheet.seed)), normal(QUERIES, d, seed=sheet.seed + 1)
        found = vecbank.topk(queries, documents, 2, "dot").indices
        counts.append(different(found))
        brute = np.argsort(-(queries.double() @ documents.double().T).numpy(), axis=-1, kind="stable")[:, :2]
        equal.append(torch.equal(found, torch.from_numpy(brute)))
        sheet.check(f"d = {d}: different top-2 sets of 66", counts[-1], expected, abs(counts[-1] - expected) <= 4)
    sheet.check("all top-2 lists, by brute force in float64", all(equal), "yes", all(equal))
    sheet.check("on the circle there are as many as documents", counts[0], DOCUMENTS, counts[0] == DOCUMENTS)

    documents, queries = unit(normal(2 * DOCUMENTS, 2, seed=sheet.seed)), normal(QUERIES, 2, 2, seed=sheet.seed + 1)
    products = vecbank.project(unit(queries), documents, "dot").view(QUERIES, 2, DOCUMENTS, 2)
    many = different(products.amax(-1).sum(1).topk(2).indices)
    sheet.check("d = 2, MaxSim of 2 vectors a side: different top-2 sets", many, 38, many > 2 * DOCUMENTS)

    plot = Figure(figsize=(5, 3))
    axes = plot.subplots()
    axes.plot(list(EXPECTED), counts, "o-", label="one vector")
    axes.plot([2], [many], "s", label="MaxSim, 2 vectors a side")
    axes.axhline(DOCUMENTS * (DOCUMENTS - 1) // 2, ls=":", c="gray")
    axes.set(xlabel="dimensions", ylabel="different top-2 sets")
    axes.legend()
    plot.tight_layout()
    sheet.picture("Sets of two that queries reach among 12 documents; the dotted line is all of them.", plot)
