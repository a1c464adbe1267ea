"""Choosing anchors: which samples describe all the others.

Every chooser returns the int64 **indices** ``(num,)`` of distinct samples (``kmeans_centres`` alone returns
vectors), on the device of what it was given. Indices are what relative representations need: the same
samples, in the same order, go through every encoder. Those that draw take a ``torch.Generator`` and give the
same answer for the same generator state; without one they draw from torch's global generator.

Sources: random anchors are those of Moschella et al., "Relative representations enable zero-shot latent space
communication", ICLR 2023; farthest point is the greedy 2-approximation of Gonzalez, "Clustering to minimize
the maximum intercluster distance", Theoretical Computer Science 38, 1985; stratified seats are dealt by
Adams' rule of apportionment; k-means is Lloyd's, "Least squares quantization in PCM", IEEE Transactions on
Information Theory 28, 1982.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from .._checks import integer
from ..functional import nearest
from ._lloyd import lloyd_step

__all__ = ["farthest_point", "kmeans_centres", "kmeans_medoids", "random", "stratified", "stride"]


def _check_num(num: int, available: int, what: str) -> int:
    num = integer("num", num)
    if not 1 <= num <= available:
        raise ValueError(f"num: expected 1 to {available} (the number of {what}), got {num}")
    return num


def _check_samples(samples: object) -> Tensor:
    if not isinstance(samples, Tensor):
        raise TypeError(f"samples: expected a Tensor of shape (N, d), got {type(samples).__name__}")
    if samples.dim() != 2:
        raise ValueError(f"samples: expected shape (N, d), got {tuple(samples.shape)}")
    if not samples.is_floating_point():
        raise TypeError(f"samples: expected a floating point dtype, got {samples.dtype}")
    # One NaN or inf would be the farthest point from everything, and the mean of its whole cluster.
    if not bool(torch.isfinite(samples).all()):
        raise ValueError("samples: expected finite values, got NaN or inf")
    return samples.detach()


def _count_and_device(samples: Tensor | int) -> tuple[int, torch.device]:
    if isinstance(samples, Tensor):
        if samples.dim() == 0:
            raise ValueError("samples: expected at least one dimension (N, ...) or an int, got a 0-d tensor")
        return samples.shape[0], samples.device
    if isinstance(samples, bool) or not isinstance(samples, (int, np.integer)):
        raise TypeError(f"samples: expected a Tensor (N, ...) or an int N, got {type(samples).__name__}")
    return int(samples), torch.device("cpu")


def _permutation(count: int, generator: Generator | None, device: torch.device) -> Tensor:
    # Drawn where the generator lives: a CPU generator then gives the same choice for data on any device.
    source = generator.device if generator is not None else torch.device("cpu")
    return torch.randperm(count, generator=generator, device=source).to(device)


def random(samples: Tensor | int, num: int, *, generator: Generator | None = None) -> Tensor:
    """``num`` different samples drawn uniformly, ``(num,)`` int64.

    A smaller ``num`` from the same generator state gives a prefix of a larger one.

    Args:
        samples: ``(N, ...)``, any dtype (only N and the device are read), or N itself.
        num: 1 to N.
        generator: source of the draw.

    Raises:
        TypeError, ValueError: ``samples`` or ``num`` of another kind, or ``num`` out of range.
    """
    count, device = _count_and_device(samples)
    return _permutation(count, generator, device)[: _check_num(num, count, "samples")]


def stride(samples: Tensor | int, num: int) -> Tensor:
    """``num`` samples at equal steps, ``floor(i N / num)`` for ``i < num``: ``(num,)`` int64, ascending.

    Nothing is drawn; meant for data without an order of its own. Arguments and errors as for :func:`random`.
    """
    count, device = _count_and_device(samples)
    _check_num(num, count, "samples")
    return torch.arange(num, device=device) * count // num


def stratified(labels: Tensor, num: int, *, generator: Generator | None = None) -> Tensor:
    """Samples drawn per label, each label getting its share of ``num``: ``(num,)`` int64.

    Within a label the draw is uniform. Seats go by Adams' rule, one at a time to the label with the smallest
    ``seats / size``: every label has one before any has two, then shares are in proportion to size. A smaller
    ``num`` from the same generator state gives a prefix of a larger one.

    Args:
        labels: ``(N,)``, integer or bool.
        num: 1 to N.
        generator: source of the draw.

    Raises:
        TypeError: labels that are not integers. ValueError: another shape, or ``num`` out of range.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels: expected a Tensor of shape (N,), got {type(labels).__name__}")
    if labels.dim() != 1:
        raise ValueError(f"labels: expected shape (N,), got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels: expected an integer dtype, got {labels.dtype}")
    count = labels.shape[0]
    _check_num(num, count, "labels")
    order = _permutation(count, generator, labels.device)
    _, group, sizes = torch.unique(labels[order], return_inverse=True, return_counts=True)
    order = order[torch.argsort(group, stable=True)]
    group = torch.sort(group, stable=True).values
    rank = torch.arange(count, device=labels.device) - (sizes.cumsum(0) - sizes)[group]
    # Two stable sorts make one lexicographic sort: by rank / size, equal ones with the larger label first.
    by_size = torch.argsort(sizes[group], descending=True, stable=True)
    share = rank.double() / sizes[group].double()
    return order[by_size[torch.argsort(share[by_size], stable=True)]][:num]


@torch.no_grad()
def farthest_point(
    samples: Tensor,
    num: int,
    *,
    metric: str = "l2",
    first: int | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Greedy farthest-point choice: each next sample is the one farthest from all chosen so far.

    The result covers the data: no sample is farther from its nearest anchor than twice the best possible
    for ``num`` anchors (for ``"l2"``). It likes outliers. Ties go to the lower index. It reads ``samples``
    ``num`` times.

    Args:
        samples: ``(N, d)``, floating point, finite.
        num: 1 to N.
        metric: ``"l2"``, ``"sqeuclidean"`` (the same choice) or ``"cosine"`` (least similar is farthest).
        first: index of the first anchor; drawn when not given.
        generator: source of that draw.

    Returns:
        ``(num,)`` int64 in order of choice, so a smaller ``num`` with the same start gives a prefix.

    Raises:
        TypeError, ValueError: samples of another kind or shape or not finite, ``num`` out of range, another
            metric.
        IndexError: ``first`` out of range.
    """
    samples = _check_samples(samples)
    count = samples.shape[0]
    _check_num(num, count, "samples")
    if metric not in ("l2", "sqeuclidean", "cosine"):
        raise ValueError(f"metric: expected 'l2', 'sqeuclidean' or 'cosine', got {metric!r}")
    if first is None:
        first = int(_permutation(count, generator, samples.device)[0])
    elif not 0 <= integer("first", first) < count:
        raise IndexError(f"first: expected 0 to {count - 1}, got {first}")
    chosen = [first]
    gap = torch.full((count,), torch.inf, device=samples.device)
    while len(chosen) < num:
        # `nearest` with a bank of one row is the exact score of every sample to it: the same bits everywhere.
        score = nearest(samples, samples[chosen[-1]].unsqueeze(0), metric).values
        gap = torch.minimum(gap.to(score.dtype), 1 - score if metric == "cosine" else score)
        gap[chosen[-1]] = -torch.inf  # never again, even when every other sample is a copy of a chosen one
        chosen.append(int(gap.argmax()))
    return torch.tensor(chosen, device=samples.device)


@torch.no_grad()
def kmeans_centres(samples: Tensor, num: int, *, iterations: int = 20, generator: Generator | None = None) -> Tensor:
    """Centres of ``num`` clusters by Lloyd's k-means from random samples: ``(num, d)``.

    These are means, not samples: they serve one latent space. For stitching take :func:`kmeans_medoids`.

    Args:
        samples: ``(N, d)``, floating point, finite.
        num: 1 to N.
        iterations: most steps; stops early when no sample changes its cluster.
        generator: source of the starting samples.

    Returns:
        Centres in the dtype of ``samples``, or float32 for bfloat16 and float16 samples (half precision is
        too coarse for a mean). Bit for bit the same for any number of threads.

    Raises:
        TypeError, ValueError: samples of another kind or shape or not finite, ``num`` or ``iterations`` out
            of range.
    """
    samples = _check_samples(samples)
    if samples.dtype in (torch.bfloat16, torch.float16):
        samples = samples.float()
    if integer("iterations", iterations) < 0:
        raise ValueError(f"iterations: expected 0 or more, got {iterations}")
    centres = samples[random(samples, num, generator=generator)]
    codes: Tensor | None = None
    for _ in range(iterations):
        step = lloyd_step(samples, centres)
        if codes is not None and torch.equal(codes, step.codes):
            break
        centres, codes = step.centres, step.codes
    return centres


@torch.no_grad()
def kmeans_medoids(samples: Tensor, num: int, *, iterations: int = 20, generator: Generator | None = None) -> Tensor:
    """For each centre of :func:`kmeans_centres` the nearest sample of its cluster: ``(num,)`` distinct int64.

    Arguments and errors as there. When the data has fewer than ``num`` different rows, empty clusters take
    the lowest indices left.
    """
    samples = _check_samples(samples)
    centres = kmeans_centres(samples, num, iterations=iterations, generator=generator)
    distances, codes = nearest(samples.to(centres.dtype), centres, "sqeuclidean")
    # Sorted by cluster, nearest first (two stable sorts); the first of each run is the medoid.
    order = torch.argsort(distances, stable=True)
    order = order[torch.argsort(codes[order], stable=True)]
    starts = torch.ones_like(order, dtype=torch.bool)
    starts[1:] = codes[order][1:] != codes[order][:-1]
    medoids = order[starts]
    spare = torch.ones_like(starts)
    spare[medoids] = False
    return torch.cat([medoids, spare.nonzero().squeeze(1)])[:num]
