"""Filtered ANN benchmark (arxiv-for-fanns): exact filtered search is the truth by which filtered indexes are scored.

Iff et al., "Benchmarking Filtered Approximate Nearest Neighbor Search Algorithms on Transformer-based Embedding
Vectors", 2025.

    topk_j { |q - x_j| : predicate(attributes of j) }; predicates: exact match, range, set containment

The naive way searches first and filters what it has found. It loses neighbours where the predicate leaves few rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import vecbank
from vecbank import Allowed, Column

from ._data import normal
from ._sheet import Sheet

TITLE = "Filtered ANN benchmark"
FAMILY = "top-k search"
K, SHARES, NAIVE = 10, (0.5, 0.1, 0.01), (1.0, 0.891, 0.086)


def by_brute_force(distances: Tensor, mask: Tensor) -> Tensor:
    """The K nearest of the rows that a mask leaves; -1 where there are fewer."""
    found = distances.masked_fill(~mask, torch.inf).topk(K, largest=False)
    return torch.where(found.values.isinf(), -1, found.indices)


def run(sheet: Sheet) -> None:
    queries, vectors = normal(100, 128, seed=sheet.seed + 1), normal(20_000, 128, seed=sheet.seed)
    draw = np.random.default_rng(sheet.seed)
    kinds = draw.choice(["large", "middle", "small", "other"], len(vectors), p=[*SHARES, 1 - sum(SHARES)])
    years = draw.integers(1000, 2000, len(vectors))
    lists = [[tag for tag, share in zip("abc", SHARES, strict=True) if u < share] for u in draw.random(len(vectors))]
    has = {tag: np.array([tag in of_row for of_row in lists]) for tag in "abc"}

    bank, kind, year, tags = vecbank.Bank(vectors, "l2"), Column(kinds), Column(years), Column(lists)
    distances = torch.cdist(queries.double(), vectors.double())
    first = Allowed.rows(vecbank.topk(queries, bank, 100).indices)
    for name, tag, share, expected in zip(("large", "middle", "small"), "abc", SHARES, NAIVE, strict=True):
        last = 999 + int(1000 * share)
        predicates = {
            "exact match": (kind == name, kinds == name),
            "range": (year.between(1000, last), (years >= 1000) & (years <= last)),
            "containment": (tags.contains(tag), has[tag]),
        }
        right, recalls = [], []
        for condition, mask in predicates.values():
            found = vecbank.topk(queries, bank, K, allowed=Allowed.where(condition)).indices
            right.append(torch.equal(found, by_brute_force(distances, torch.from_numpy(mask))))
            naive = vecbank.topk(queries, bank, K, allowed=first & condition).indices
            recalls.append(vecbank.verify(queries, bank, naive, allowed=condition).recall)
        sheet.check(f"{', '.join(predicates)}, {share:.0%} of the rows: equal to brute force", right, "yes", all(right))
        recall = float(torch.cat(recalls).mean())
        near = abs(recall - expected) < 0.08
        sheet.check(f"{share:.0%}: recall of the naive way, 100 found and then filtered", recall, expected, near)

    mask = (kinds == "small") & (years < 1250) & has["b"]
    few = Allowed.where(kind == "small", year < 1250, tags.contains("b"))
    found = vecbank.topk(queries, bank, K, allowed=few).indices
    same = torch.equal(found, by_brute_force(distances, torch.from_numpy(mask)))
    sheet.check(f"three predicates at once, {mask.sum()} rows for k = {K}: equal to brute force", same, "yes", same)

    wanted, decade = torch.from_numpy(draw.integers(0, 100, len(queries))), torch.from_numpy(years - 1000) // 10
    found = vecbank.topk(queries, bank, K, allowed=Allowed.same(wanted, decade)).indices
    same = torch.equal(found, by_brute_force(distances, wanted.unsqueeze(1) == decade))
    sheet.check("each query asks for a decade of its own: equal to brute force", same, "yes", same)
