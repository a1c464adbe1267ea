"""Sets of vectors for tests, and the scores of all of them by the definition."""

from __future__ import annotations

import torch
from helpers import gauss, seeded
from torch import Tensor

from vecbank import TokenSets, reference
from vecbank.results import TopK


def drawn(sizes: list[int], width: int, seed: int, dtype: torch.dtype = torch.float32) -> TokenSets:
    """Sets of these sizes."""
    return TokenSets.of([gauss(n, width, seed=seed + i, dtype=dtype) for i, n in enumerate(sizes)])


def sizes_of(count: int, most: int, seed: int) -> list[int]:
    """Sizes from 0 to `most`, some of them 0."""
    return [int(n) for n in torch.randint(0, most + 1, (count,), generator=seeded(seed))]


def truth(q: TokenSets, d: TokenSets, metric: str = "dot") -> Tensor:
    """(Q, D) float64: sums, in order, of the best float64 scores."""
    scores = reference.project(q.rows, d.rows, metric, out_dtype=torch.float64).detach()
    if metric not in ("dot", "cosine"):
        scores = 0.0 - scores
    ends = d.offsets.tolist()
    best = [
        scores[:, begin:end].amax(1) if begin < end else scores.new_zeros(len(scores))  # NaN where one is
        for begin, end in zip(ends, ends[1:], strict=False)
    ]
    each = torch.stack(best, 1) if best else scores.new_zeros((len(scores), 0))
    out = scores.new_zeros((q.count, d.count))
    for i, (first, last) in enumerate(zip(q.offsets.tolist(), q.offsets.tolist()[1:], strict=False)):
        for t in range(first, last):
            out[i] = out[i] + each[t]
    return out.masked_fill(d.offsets.diff() == 0, -torch.inf)


def best_of(scores: Tensor, k: int, dtype: torch.dtype, allowed: Tensor | None = None) -> TopK:
    """The answer of a search from all scores (Q, D)."""
    n, d = scores.shape
    values, indices = torch.full((n, k), -torch.inf, dtype=torch.float64), torch.full((n, k), -1)
    for i in range(n):
        own = scores[i].tolist()
        may = [j for j in range(d) if own[j] > -torch.inf and (allowed is None or allowed[i, j])]
        order = sorted(may, key=lambda j: (-own[j], j))[:k]
        values[i, : len(order)] = scores[i, order]
        indices[i, : len(order)] = torch.tensor(order, dtype=torch.int64)
    return TopK(values.to(torch.float64 if dtype == torch.float64 else torch.float32), indices)


SIZES = {  # sizes of queries, of documents; width
    "one of each": ([1], [1], 1),
    "ragged": ([3, 0, 20, 7], sizes_of(60, 30, 1), 24),
    "one long document": ([5, 18], [3, 700, 0, 2], 33),
    "many short ones": ([32], sizes_of(900, 3, 2), 40),
    "wide": ([4, 4], sizes_of(20, 40, 3), 1024),
    "more query tokens than a panel": ([16, 17, 40], sizes_of(40, 20, 4), 128),
    "all empty": ([3, 1], [0, 0, 0], 5),
    "no documents' tokens but one": ([3, 1], [0, 1, 0], 5),
    "no query tokens": ([0, 0], [2, 0, 1], 5),
    "no queries": ([], [2, 1], 5),
    "no width": ([2, 1], [2, 0, 1], 0),
}


def case(name: str, dtype: torch.dtype = torch.float32) -> tuple[TokenSets, TokenSets]:
    queries, documents, width = SIZES[name]
    q = (
        drawn(queries, width, 1, dtype)
        if queries
        else TokenSets(torch.empty(0, width, dtype=dtype), torch.zeros(1).long())
    )
    return q, drawn(documents, width, 1000, dtype)


def close(got: Tensor, want: Tensor, q: TokenSets) -> None:
    """Scores that may be rounded in another order."""
    wide = want.to(got.dtype)
    assert torch.equal(got.isinf(), wide.isinf()) and torch.equal(got.isnan(), wide.isnan())
    finite = wide.isfinite()
    eps = torch.finfo(got.dtype).eps
    scale = float(want[finite].abs().max()) + 1 if bool(finite.any()) else 1.0
    torch.testing.assert_close(got[finite], wide[finite], rtol=0, atol=16 * eps * scale)


def hard(kind: str) -> tuple[TokenSets, TokenSets]:
    """Numbers that bounds and orders break on."""
    q, d = case("ragged")
    rows, asked = d.rows.clone(), q.rows.clone()
    if kind == "ties":
        rows, asked = rows.round(), asked.round()
        rows[40:400] = rows[40]
    elif kind == "cancellation":
        rows += 1000
        asked -= asked.mean(1, keepdim=True)
    elif kind == "large":
        rows *= 1e18
        asked *= 1e18
    elif kind == "small":
        rows *= 1e-30
        asked *= 1e-12
    elif kind == "odd":
        rows[5, 3], rows[100, 0], rows[200, 1], rows[333] = torch.nan, torch.inf, -torch.inf, 3e38
    else:
        rows *= 10.0 ** torch.randint(-20, 15, (len(rows), 1), generator=seeded(1))
    return TokenSets(asked, q.offsets), TokenSets(rows, d.offsets)
