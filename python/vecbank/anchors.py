"""Choosing anchors: samples that describe all the others.

Every function returns the int64 indices `(num,)` of distinct samples (`kmeans_centroids` alone returns vectors), on the
device of what it was given. Relative representations need indices: the same samples, in the same order, go through
every encoder. Functions that draw take a `torch.Generator` or a seed and give the same answer for the same generator
state; without one they draw from torch's global generator.

Sources: random anchors are those of Moschella et al., "Relative representations enable zero-shot latent space
communication", ICLR 2023; farthest point is the greedy 2-approximation of Gonzalez, "Clustering to minimize
the maximum intercluster distance", Theoretical Computer Science 38, 1985; stratified seats are dealt by
Adams' rule of apportionment; for k-means, `vecbank.cluster`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
import torch
from torch import Generator, Tensor

from . import _checks
from ._deprecated import old_names
from ._numpy import entry_point
from .cluster import kmeans
from .functional import nearest

__all__ = ["farthest_point", "kmeans_centroids", "kmeans_medoids", "random", "stratified", "stride"]

if not TYPE_CHECKING:  # a type checker would take any name for one of the module
    __getattr__ = old_names(__name__, {"kmeans_centres": "kmeans_centroids"})


def _check_num(num: SupportsIndex, available: int, what: str) -> int:
    found = _checks.integer("num", num)
    if not 1 <= found <= available:
        raise ValueError(f"num must lie between 1 and {available} (the number of {what}), got {found}")
    return found


def _check_samples(samples: object) -> Tensor:
    _checks.dense("samples", samples)
    assert isinstance(samples, Tensor)
    if samples.dim() != 2:
        raise ValueError(f"samples must have shape (N, d), got {tuple(samples.shape)}")
    # One NaN or inf would be the farthest point from everything, and the mean of its whole cluster.
    if not bool(torch.isfinite(samples).all()):
        raise ValueError("samples must be finite, got NaN or inf")
    return samples.detach()


def _count_and_device(samples: Tensor | SupportsIndex) -> tuple[int, torch.device]:
    if isinstance(samples, Tensor):
        if samples.dim() == 0:
            raise ValueError("samples must have shape (N, ...) or be an int N, got a tensor without dimensions")
        return samples.shape[0], samples.device
    if isinstance(samples, bool) or not isinstance(samples, (int, np.integer)):
        raise TypeError(f"samples must be a torch.Tensor (N, ...) or an int N, got {type(samples).__name__}")
    return int(samples), torch.device("cpu")


def _permutation(count: int, generator: Generator | None, device: torch.device) -> Tensor:
    # Drawn where the generator lives: a CPU generator then gives the same choice for data on any device.
    source = generator.device if generator is not None else torch.device("cpu")
    return torch.randperm(count, generator=generator, device=source).to(device)


@entry_point
def random(
    samples: Tensor | SupportsIndex, num: SupportsIndex, *, generator: Generator | SupportsIndex | None = None
) -> Tensor:
    """Different samples drawn uniformly.

    A smaller `num` from the same generator state gives a prefix of a larger one.

    Args:
        samples: (N, ...), any dtype (only N and the device are read), or N itself.
        num: the number of anchors, 1 to N.
        generator: source of the draw, or the seed of one.

    Returns:
        Indices (num,) int64.

    Raises:
        TypeError, ValueError: `samples` or `num` of another kind, or `num` out of range.

    Example:
        >>> from vecbank import anchors
        >>> index = anchors.random(1000, 5, generator=0)
        >>> index.shape, index.unique().numel()
        (torch.Size([5]), 5)
    """
    count, device = _count_and_device(samples)
    return _permutation(count, _checks.generator(generator), device)[: _check_num(num, count, "samples")]


@entry_point
def stride(samples: Tensor | SupportsIndex, num: SupportsIndex) -> Tensor:
    """Samples at equal steps, `floor(i * N / num)` for `i < num`; for data without an order of its own.

    Args:
        samples: (N, ...), any dtype (only N and the device are read), or N itself.
        num: the number of anchors, 1 to N.

    Returns:
        Indices (num,) int64, ascending.

    Raises:
        TypeError, ValueError: `samples` or `num` of another kind, or `num` out of range.

    Example:
        >>> from vecbank import anchors
        >>> anchors.stride(10, 4).tolist()
        [0, 2, 5, 7]
    """
    count, device = _count_and_device(samples)
    num = _check_num(num, count, "samples")
    return torch.arange(num, device=device) * count // num


@entry_point
def stratified(labels: Tensor, num: SupportsIndex, *, generator: Generator | SupportsIndex | None = None) -> Tensor:
    """Samples drawn per label, where each label gets its share of `num`.

    Within a label the draw is uniform. Seats go by Adams' rule, one at a time to the label with the smallest
    `seats / size`: every label has one before any has two, then shares are in proportion to size. A smaller
    `num` from the same generator state gives a prefix of a larger one.

    Args:
        labels: (N,), integer or bool.
        num: the number of anchors, 1 to N.
        generator: source of the draw, or the seed of one.

    Returns:
        Indices (num,) int64.

    Raises:
        TypeError: labels that are not integers.
        ValueError: another shape, or `num` out of range.

    Example:
        >>> import torch, vecbank
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
        >>> labels[vecbank.anchors.stratified(labels, 4, generator=0)].bincount().tolist()
        [3, 1]
    """
    _checks.tensor("labels", labels)
    if labels.dim() != 1:
        raise ValueError(f"labels must have shape (N,), got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be integers or bool, got {labels.dtype}")
    count = labels.shape[0]
    num = _check_num(num, count, "labels")
    order = _permutation(count, _checks.generator(generator), labels.device)
    _, group, sizes = torch.unique(labels[order], return_inverse=True, return_counts=True)
    order = order[torch.argsort(group, stable=True)]
    group = torch.sort(group, stable=True).values
    rank = torch.arange(count, device=labels.device) - (sizes.cumsum(0) - sizes)[group]
    # Two stable sorts make one lexicographic sort: by rank / size, equal ones with the larger label first.
    by_size = torch.argsort(sizes[group], descending=True, stable=True)
    share = rank.double() / sizes[group].double()
    return order[by_size[torch.argsort(share[by_size], stable=True)]][:num]


@entry_point
@torch.no_grad()
def farthest_point(
    samples: Tensor,
    num: SupportsIndex,
    *,
    metric: str = "l2",
    first: SupportsIndex | None = None,
    generator: Generator | SupportsIndex | None = None,
) -> Tensor:
    """Greedy farthest-point choice: each next sample is the one farthest from all chosen so far.

    The result covers the data: no sample is farther from its nearest anchor than twice the best possible
    for `num` anchors (for "l2"). It chooses outliers first. Ties go to the lower index. It reads `samples`
    `num` times.

    Args:
        samples: (N, d), floating point, finite.
        num: the number of anchors, 1 to N.
        metric: "l2", "sqeuclidean" (the same choice), "l1" or "cosine" (least similar is farthest).
        first: index of the first anchor; drawn when not given.
        generator: source of that draw, or the seed of one.

    Returns:
        Indices (num,) int64 in order of choice, so that a smaller `num` with the same start gives a prefix.

    Raises:
        TypeError, ValueError: samples of another kind or shape or not finite, `num` out of range, another
            metric.
        IndexError: `first` out of range.

    Example:
        >>> import torch, vecbank
        >>> samples = torch.tensor([[0.0], [1.0], [9.0], [5.0]])
        >>> vecbank.anchors.farthest_point(samples, 3, first=0).tolist()
        [0, 2, 3]
    """
    samples = _check_samples(samples)
    count = samples.shape[0]
    num = _check_num(num, count, "samples")
    if metric not in ("l2", "sqeuclidean", "l1", "cosine"):
        raise ValueError(f"metric must be one of l2, sqeuclidean, l1, cosine, got {metric!r}")
    generator = _checks.generator(generator)
    if first is None:
        start = int(_permutation(count, generator, samples.device)[0])
    elif not 0 <= (start := _checks.integer("first", first)) < count:
        raise IndexError(f"first must lie between 0 and {count - 1}, got {start}")
    chosen = [start]
    gap = torch.full((count,), torch.inf, device=samples.device)
    while len(chosen) < num:
        # `nearest` with a bank of one row is the exact score of every sample to it: the same bits everywhere.
        score = nearest(samples, samples[chosen[-1]].unsqueeze(0), metric).values
        gap = torch.minimum(gap.to(score.dtype), 1 - score if metric == "cosine" else score)
        gap[chosen[-1]] = -torch.inf  # never again, even when every other sample is a copy of a chosen one
        chosen.append(int(gap.argmax()))
    return torch.tensor(chosen, device=samples.device)


def _clusters(
    samples: Tensor, num: SupportsIndex, iterations: SupportsIndex, generator: Generator | SupportsIndex | None
) -> tuple[Tensor, int, Tensor]:
    """The samples and their number of clusters, checked, and the centroids of these."""
    samples = _check_samples(samples)
    count = _check_num(num, samples.shape[0], "samples")
    found = kmeans(samples, count, init="random", iterations=iterations, tolerance=0.0, generator=generator)
    return samples, count, found.centroids


@entry_point
@torch.no_grad()
def kmeans_centroids(
    samples: Tensor,
    num: SupportsIndex,
    *,
    iterations: SupportsIndex = 20,
    generator: Generator | SupportsIndex | None = None,
) -> Tensor:
    """Centroids of `num` clusters by k-means from random samples.

    They are means, not samples: they serve one latent space. `kmeans_medoids` is for stitching. This is
    `vecbank.cluster.kmeans` with `init="random"` and no tolerance, which has more options.

    Args:
        samples: (N, d), floating point, finite.
        num: the number of anchors, 1 to N.
        iterations: at most this many steps; it stops early when no sample changes its cluster.
        generator: source of the starting samples, or the seed of one.

    Returns:
        Centroids (num, d) in the dtype of `samples`, or float32 for bfloat16 and float16 samples (16 bits are
        too coarse for a mean). Bit for bit the same for any number of threads.

    Raises:
        TypeError, ValueError: samples of another kind or shape or not finite, `num` or `iterations` out
            of range.

    Example:
        >>> import torch, vecbank
        >>> samples = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> vecbank.anchors.kmeans_centroids(samples, 2, generator=0).sort(0).values.tolist()
        [[0.5], [10.5]]
    """
    return _clusters(samples, num, iterations, generator)[2]


@entry_point
@torch.no_grad()
def kmeans_medoids(
    samples: Tensor,
    num: SupportsIndex,
    *,
    iterations: SupportsIndex = 20,
    generator: Generator | SupportsIndex | None = None,
) -> Tensor:
    """For each of `kmeans_centroids` the nearest sample of its cluster.

    When the data has fewer than `num` different rows, empty clusters take the lowest indices that are free.

    Args:
        samples: (N, d), floating point, finite.
        num: the number of anchors, 1 to N.
        iterations: at most this many steps; it stops early when no sample changes its cluster.
        generator: source of the starting samples, or the seed of one.

    Returns:
        Indices (num,) int64, distinct, ordered by cluster.

    Raises:
        TypeError, ValueError: samples of another kind or shape or not finite, `num` or `iterations` out
            of range.

    Example:
        >>> import torch, vecbank
        >>> samples = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
        >>> vecbank.anchors.kmeans_medoids(samples, 2, generator=0).sort().values.tolist()
        [1, 4]
    """
    samples, num, centroids = _clusters(samples, num, iterations, generator)
    distances, codes = nearest(samples.to(centroids.dtype), centroids, "sqeuclidean")
    # Sorted by cluster, nearest first (two stable sorts); the first of each run is the medoid.
    order = torch.argsort(distances, stable=True)
    order = order[torch.argsort(codes[order], stable=True)]
    starts = torch.ones_like(order, dtype=torch.bool)
    starts[1:] = codes[order][1:] != codes[order][:-1]
    medoids = order[starts]
    spare = torch.ones_like(starts)
    spare[medoids] = False
    return torch.cat([medoids, spare.nonzero().squeeze(1)])[:num]
