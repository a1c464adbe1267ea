"""The start of a codebook: k-means on the rows of its first batch.

The rule is vector_quantize_pytorch's: centroids start at random rows, run a fixed number of steps, and one without
rows stays where it is. `vecbank.cluster.kmeans` does more: it starts by k-means++, re-seeds empty centroids, and stops
when nothing moves. A step here is the pass of a training step (`quantize_train`), so that it obeys a mask, its sums can
be taken over ranks, and no shape or branch waits for data.

Source: Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", 2021.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ...functional import quantize_train
from .._distributed import Ranks, draw_rows
from .._layout import working
from .ops import unit


class Start(NamedTuple):
    centroids: Tensor  # (K, d)
    counts: Tensor  # (K,) rows of each centroid in the last step
    drawn: Tensor  # () bool: there were rows to start from


def assign_and_average(
    rows: Tensor, centroids: Tensor, metric: str, mask: Tensor | None, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """One step of k-means: the means of the rows nearest to each centroid, over all ranks, and their numbers.

    A centroid without rows stays; for the metric "dot" means are normalised.
    """
    found = quantize_train(rows, centroids, metric, mask)
    counts, sums = ranks.total(found.counts), ranks.total(found.sums)
    means = sums / counts.clamp_min(1).unsqueeze(-1)
    means = unit(means) if metric == "dot" else means
    return torch.where(counts.unsqueeze(-1) > 0, means, centroids), counts


def kmeans_start(
    rows: Tensor,
    mask: Tensor | None,
    count: int,
    steps: int,
    metric: str,
    generator: Generator | None,
    ranks: Ranks,
) -> Start:
    """`count` centroids of rows (R, d) after `steps` (at least 1) of k-means; mask (R,), True = counts."""
    centroids, available = draw_rows(working(rows), mask, count, generator, ranks)
    for _ in range(steps):
        centroids, counts = assign_and_average(rows, centroids, metric, mask, ranks)
    return Start(centroids, counts, available > 0)
