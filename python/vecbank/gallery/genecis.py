"""GeneCIS: each query is an image and a condition, and ranks a small gallery of its own by cosine under that condition.

Vaze, Carion and Misra, "GeneCIS: A Benchmark for General Conditional Image Similarity", CVPR 2023.

    rank of j for query i: by cos(x_i[D], b_j[D]), over the rows j of gallery i alone; Recall@1, 2, 3 of its one target

The galleries hold 10 to 15 vectors and lie one after another in one flat bank. D are the dimensions that the condition
looks at: here the first half of a vector tells the object, and the second half its attribute.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import generator, unit
from ._sheet import Sheet

TITLE = "GeneCIS"
FAMILY = "top-k search"
QUERIES, HALF = 400, 32
CONDITIONS = {"object": slice(0, HALF), "attribute": slice(HALF, 2 * HALF)}


def recall(ranked: Tensor, target: Tensor) -> list[float]:
    """Recall@1, 2, 3."""
    return [float((ranked[:, :k] == target[:, None]).any(-1).double().mean()) for k in (1, 2, 3)]


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    draw = generator(sheet.seed)
    sizes = torch.randint(10, 16, (QUERIES,), generator=draw)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    x = torch.cat([unit(torch.randn(QUERIES, HALF, generator=draw)) for _ in CONDITIONS], -1)
    rows = torch.cat([unit(torch.randn(int(offsets[-1]), HALF, generator=draw)) for _ in CONDITIONS], -1)
    # A gallery holds one image with the query's object and one with its attribute; all else in it is of other kinds.
    places = offsets[:-1, None] + torch.rand(QUERIES, 10, generator=draw).argsort(-1)
    targets = dict(zip(CONDITIONS, (places[:, 0], places[:, 1]), strict=True))
    for condition, dims in CONDITIONS.items():
        rows[targets[condition], dims] = unit(x[:, dims] + 0.1 * torch.randn(QUERIES, HALF, generator=draw))

    bank, galleries = vecbank.Bank(rows, "cosine"), vecbank.Allowed.ranges(offsets[:-1], offsets[1:])
    blind = bank.topk(x, 3, allowed=galleries).indices
    plot, flips = Figure(figsize=(6, 2.5), layout="constrained"), torch.ones(QUERIES, dtype=torch.bool)
    axes = plot.subplots()
    for i, (condition, dims) in enumerate(CONDITIONS.items()):
        ranked = bank.dims(dims).topk(x[:, dims], 3, allowed=galleries).indices

        loop = torch.empty_like(ranked)
        for j, gallery in enumerate(rows.split(sizes.tolist())):
            scores = torch.cosine_similarity(x[j, dims].double(), gallery[:, dims].double())
            loop[j] = offsets[j] + scores.argsort(descending=True, stable=True)[:3]
        equal = int((ranked == loop).all(-1).sum())
        sheet.check(f"by {condition}: galleries whose top 3 are those of a loop", equal, QUERIES, equal == QUERIES)
        ours, without = recall(ranked, targets[condition]), recall(blind, targets[condition])
        sheet.check(f"by {condition}: Recall@1, 2, 3, and without a condition", ours, without, ours[0] > without[0])
        flips &= ranked[:, 0] == targets[condition]

        of_first = vecbank.project(x[0, dims], rows[: int(offsets[1]), dims])
        axes.bar(torch.arange(len(of_first)).numpy() + 0.4 * i, of_first.numpy(), 0.4, label=f"same {condition}")
    share = float(flips.double().mean())
    sheet.check("queries whose winner flips with the condition as constructed", share, 1.0, share == 1)

    axes.set(xlabel="image of the gallery", ylabel="cosine")
    axes.legend()
    sheet.picture("One query's gallery by each condition: another image wins", plot)
