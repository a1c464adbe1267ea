"""InterCLR: a memory bank is clustered as batches stream by, and negatives come from a range of ranks, not the top.

Xie, Zhan, Liu, Ong and Loy, "Delving into Inter-Image Invariance for Unsupervised Visual Representations", IJCV 2022.

    pseudo-label of i: argmax_c cos(x_i, centroid_c); each batch moves the centroids to the running means of their rows
    negatives of i: the rows of other pseudo-labels at ranks 20 to 49 of the list by cosine (semi-hard)

The published loss takes the cosines of these pairs and a margin; `score_pairs` gives such cosines with their gradients.
Here the features are digits, which do not change as they stream by.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank
from vecbank import Allowed

from ._data import digits, generator, unit
from ._sheet import Sheet

TITLE = "InterCLR"
FAMILY = "codebook lookup"
CLUSTERS, BATCH, PASSES, FIRST, LAST = 10, 31, 8, 20, 50


def stream(batches: list[Tensor], centroids: Tensor, *, plain: bool = False) -> tuple[Tensor, Tensor]:
    """The centroids after all batches, and the codes that the rows got on the way. plain: by torch alone."""
    seen, path = torch.zeros(CLUSTERS, dtype=centroids.dtype), []
    for part in batches:
        if plain:
            codes = (part @ unit(centroids).T).argmax(1)
            sums = torch.zeros_like(centroids).index_add_(0, codes, part)
        else:
            codes = vecbank.nearest(part, centroids, "cosine").indices
            sums = vecbank.segment_sum(part, codes, CLUSTERS)
        counts = torch.bincount(codes, minlength=CLUSTERS)
        seen += counts
        centroids = centroids + (sums - counts[:, None] * centroids) / seen.clamp_min(1)[:, None]
        path.append(codes)
    return centroids, torch.cat(path)


def run(sheet: Sheet) -> None:
    from sklearn.metrics import adjusted_rand_score

    data = digits(0, sheet.seed)
    x, online, whole, equal = unit(data.x.double()), [], [], []
    for seed in range(sheet.seed, sheet.seed + 5):
        draw = generator(seed)
        batches = [x[b] for _ in range(PASSES) for b in torch.randperm(len(x), generator=draw).split(BATCH)]
        start = x[vecbank.anchors.random(x, CLUSTERS, generator=draw)]
        (centroids, path), brute = stream(batches, start), stream(batches, start, plain=True)
        equal.append(torch.equal(centroids, brute[0]) and torch.equal(path, brute[1]))
        codes = vecbank.nearest(x, centroids, "cosine").indices
        online.append(adjusted_rand_score(data.y, codes))
        clusters = vecbank.kmeans(x, CLUSTERS, metric="cosine", restarts=4, generator=draw)
        whole.append(adjusted_rand_score(data.y, clusters.codes))
    sheet.check("five streams: codes and centroids equal those of plain float64", equal, "all", all(equal))
    for name, reached, (low, high) in (("the stream", online, (0.46, 0.67)), ("batch k-means", whole, (0.6, 0.68))):
        mean, what = sum(reached) / 5, f"ARI of {name}: mean, lowest, highest"
        sheet.check(what, [mean, min(reached), max(reached)], f"from {low} to {high}", low <= mean <= high)

    memory, q, own = vecbank.Bank(x, "cosine"), x[:300], codes[:300]
    negatives = memory.topk(q, LAST, allowed=Allowed.other(own, codes)).indices[:, FIRST:]

    # Digits hold whole numbers, so that some cosines are equal: the full sort is one of the same scores.
    scores = vecbank.score_pairs(q, memory, torch.arange(len(x)).expand(len(q), -1))
    masked = scores.masked_fill(own[:, None] == codes, -torch.inf)
    ranks = masked.argsort(dim=1, descending=True, stable=True)[:, FIRST:LAST]
    right, pairs = int((negatives == ranks).sum()), negatives.numel()
    sheet.check(f"negatives at ranks {FIRST} to {LAST - 1} of the full sort", right, pairs, right == pairs)
    error = float((scores - q @ x.T).abs().max())
    sheet.check("scores of that sort, largest error", error, "below 1e-12", error < 1e-12)
