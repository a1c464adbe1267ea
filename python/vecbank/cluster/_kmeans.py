"""k-means on the library's verbs: `nearest` assigns, `segment_sum` averages; no N x K matrix is ever made.

Assignment is exact with ties to the lower index, every sum has a fixed order and every draw comes from the caller's
generator, so the answer depends on neither processor nor thread count.

Sources: Lloyd, "Least squares quantization in PCM", IEEE Trans. Information Theory 28, 1982; Sculley, "Web-scale
k-means clustering", WWW 2010; Dhillon and Modha, "Concept decompositions for large sparse text data using clustering",
Machine Learning 42, 2001 (cosine); for the starts, `_starts`; for what is not compared again, `_assignment`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import SupportsIndex

import torch
from torch import Generator, Tensor

from .. import _checks
from .._numpy import entry_point
from .._progress import Progress
from ..functional import nearest, segment_sum
from ..results import KMeans
from ._assignment import Assignment
from ._samples import BLOCK, FAR, FLOOR, Samples, largest_of, prepared, scaled, sums_of, total, unit, working
from ._starts import permutation, starts

STARTS = ("k-means++", "random")
_METRICS = ("l2", "sqeuclidean", "cosine")


def _means(data: Samples, centroids: Tensor, sums: Tensor, sizes: Tensor) -> Tensor:
    """New centroids; one without any weight (or, for cosine, whose rows cancel) stays where it was."""
    means = sums / sizes.unsqueeze(1).to(sums.dtype)
    if not data.cosine and float(sizes.min()) > 0:
        return means.to(centroids.dtype)
    alive = (sizes > 0).unsqueeze(1)
    if data.cosine:
        norms = torch.linalg.vector_norm(means, dim=1, keepdim=True)
        means, alive = means / norms, alive & (norms >= FLOOR)
    return torch.where(alive, means.to(centroids.dtype), centroids)


def _worst(data: Samples, distances: Tensor, count: int) -> Tensor:
    """`count` samples that are far from their centroids and lie apart: not all of them come from one far cluster.

    Candidates are spread evenly over the total error (k-means++ without the draw); among those the farthest is taken,
    then the farthest from the centroids and it, and so on.
    """
    mass = data.weighted(distances).cumsum(0)
    shares = (torch.arange(max(16 * count, 1024), device=mass.device) + 0.5) / max(16 * count, 1024)
    candidates = torch.searchsorted(mass, shares * mass[-1]).clamp_max_(len(mass) - 1).unique()
    gap, part, chosen = distances[candidates], data.select(candidates), []
    for _ in range(min(count, len(candidates))):
        farthest = gap.argmax().view(1)
        chosen.append(candidates[farthest])
        gap = torch.minimum(gap, part.assign(part.rows(farthest))[0])
        gap[farthest] = -1
    return torch.cat(chosen)


def _reseed(data: Samples, distances: Tensor, codes: Tensor, sums: Tensor, sizes: Tensor) -> Tensor:
    """Gives each empty code a sample that is far from its centroid, taken from the code it was with; in place.

    Returns the codes whose sums are others now.
    """
    if float(sizes.min()) > 0:
        return codes.new_empty(0)
    empty = (sizes == 0).nonzero().squeeze(1)
    worst = _worst(data, distances, len(empty))
    empty, moved = empty[: len(worst)], data.select(worst)
    rows, weights = sums_of(moved, torch.arange(len(worst), device=codes.device), len(worst))
    sums.sub_(segment_sum(rows, codes[worst], len(sums)))
    sizes.sub_(segment_sum(weights.unsqueeze(1), codes[worst], len(sizes)).squeeze(1)).clamp_min_(0)
    sums[empty], sizes[empty] = rows, weights
    return torch.cat([empty, codes[worst]])


def _lloyd(data: Samples, centroids: Tensor, iterations: int, limit: float, bar: Progress) -> KMeans:
    k, done = len(centroids), 0
    assignment = Assignment(data, k)
    distances, codes = assignment.step(centroids)
    sums = torch.zeros_like(centroids)
    stale: Tensor | None = None  # codes whose sums are not those of their samples; None: all, or not known
    while done < iterations:
        fresh, sizes = sums_of(data, codes, k, stale)
        sums = fresh if stale is None else torch.where(stale.unsqueeze(1), fresh, sums)
        reseeded = _reseed(data, distances, codes, sums, sizes)
        old, before = centroids, codes
        if stale is None:
            moved = centroids = _means(data, old, sums, sizes)
        else:
            stale[reseeded] = True
            # The others have the sums that they had, and stay where they are.
            rows = stale.nonzero().squeeze(1)
            old = centroids[rows]
            moved = _means(data, old, sums[rows], sizes[rows])
            centroids = centroids.index_copy(0, rows, moved)
        done += 1
        bar.step(partial(_progress_of, data, distances))
        distances, codes = assignment.step(centroids)
        # The centroids are the means of this assignment, or near enough to them. Where none moves, no code changes.
        if limit > 0 and total((moved - old).double().square().flatten()) <= limit:
            break
        if torch.equal(codes, before):
            break
        if assignment.selective:
            changed = (codes != before).nonzero().squeeze(1)
            stale = torch.zeros(k, dtype=torch.bool, device=codes.device)
            stale[torch.cat([reseeded, before[changed], codes[changed]])] = True
    return KMeans(centroids, codes, data.inertia(distances), done)


def _progress_of(data: Samples, distances: Tensor) -> str:
    return data.shown(data.inertia(distances))


def _mini_batch(
    data: Samples,
    centroids: Tensor,
    passes: int,
    batch: int,
    limit: float,
    generator: Generator | None,
    bar: Progress,
) -> KMeans:
    """Each centroid moves to the running mean of all samples it has been given: a step of 1 / count."""
    k, done = centroids.shape[0], 0
    counts = torch.zeros(k, dtype=torch.float64, device=centroids.device)
    for _ in range(passes):
        before, seen = centroids, torch.zeros_like(counts)
        batches = permutation(data.x.shape[0], generator, data.x.device).split(batch)
        for index in batches:
            part = data.select(index)
            _, codes = part.assign(centroids)
            sums, sizes = sums_of(part, codes, k)
            seen += sizes
            counts += sizes
            rate = torch.where(counts > 0, sizes / counts, 0.0).unsqueeze(1).to(centroids.dtype)
            moved = _means(part, centroids, sums, sizes)
            centroids = centroids + (moved - centroids) * rate
            if data.cosine:
                centroids = unit(centroids)
        lost = (seen == 0).nonzero().squeeze(1)
        if lost.numel():  # unused in a whole pass: start again from samples of a batch (the last one may be small)
            part = data.select(batches[0])
            worst = _worst(part, part.assign(centroids)[0], len(lost))
            centroids[lost[: len(worst)]] = part.rows(worst)
            counts[lost] = 0
        done += 1
        bar.step()
        if total((centroids - before).double().square().flatten()) <= limit:
            break
    distances, codes = data.assign(centroids)
    return KMeans(centroids, codes, data.inertia(distances), done)


@entry_point
@torch.no_grad()
def kmeans(
    x: Tensor,
    k: SupportsIndex,
    *,
    init: str | Tensor = "k-means++",
    metric: str = "l2",
    weights: Tensor | None = None,
    iterations: SupportsIndex = 100,
    tolerance: float = 1e-4,
    restarts: SupportsIndex = 1,
    batch_size: SupportsIndex | None = None,
    local_trials: SupportsIndex | None = None,
    generator: Generator | SupportsIndex | None = None,
    progress: bool = False,
) -> KMeans:
    """k centroids that (locally) minimise the sum over samples of the distance to the nearest one.

    Lloyd's iteration: `code_i = argmin_j |x_i - c_j|^2`, then `c_j = mean of the x_i with code j`. A centroid without
    samples moves to one of the samples that are far from their own. With `metric="cosine"` the samples count as unit
    vectors, centroids are unit vectors and the distance is `1 - cos`; a zero sample has no direction and counts for
    nothing.

    Args:
        x: (N, d) float32, float64, bfloat16 or float16, dense and finite. 16-bit samples are read as they are.
        k: the number of centroids, 1 to N.
        init: "k-means++": each next centroid is drawn in proportion to its distance to those before it, and is the
            best of `local_trials` draws (greedy k-means++, as in scikit-learn). "random": k different samples. Or
            starts (r, d) with r <= k: those given come first, the other k - r are drawn as in k-means++.
        metric: "l2" (or "sqeuclidean", the same clustering) or "cosine".
        weights: (N,) floating point, finite, not negative, not all zero: how much each sample counts.
        iterations: at most this many steps. It stops early when no sample changes its code, or the squared moves of
            all centroids together are at most `tolerance` times the mean variance of a feature (scikit-learn's rule).
        tolerance: the factor in that rule; 0 goes on until no sample changes its code.
        restarts: runs from different starts, of which the one with the smallest inertia is returned.
        batch_size: mini-batches of this many samples; `iterations` and the result's then count passes over x.
        local_trials: draws that k-means++ compares for each centroid, by the inertia that they would leave. None: 2 +
            floor(ln k), as in scikit-learn. 1: the plain k-means++ of 2007. The start compares each sample with
            `k * local_trials` draws and takes the time of two to four times `local_trials` iterations: give less, or
            "random", where few iterations follow.
        generator: source of all draws: a torch.Generator, or an int that seeds one on the CPU. None: torch's global
            generator.
        progress: draw a bar on stderr.

    Returns:
        KMeans(centroids, codes, inertia, iterations): centroids (k, d) in x's dtype (float32 for 16-bit x) and codes
        (N,) int64 of the nearest of these centroids. The same bits for any number of threads.

    Raises:
        TypeError: a dtype, a sparse tensor, a number or a generator of another type.
        ValueError: a shape, a device or a value that is not allowed. The message of both errors names the argument.

    Example:
        >>> import torch, vecbank
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> found = vecbank.cluster.kmeans(x, 2, init=torch.tensor([[0.0], [10.0]]))
        >>> found.centroids.tolist(), found.codes.tolist(), found.inertia
        ([[0.5], [10.5]], [0, 0, 1, 1], 1.0)
    """
    _checks.dense("x", x)
    if x.is_meta:
        raise ValueError("x must hold numbers, got a tensor on the device meta")
    if x.dim() != 2:
        raise ValueError(f"x must have shape (N, d), got {tuple(x.shape)}")
    n, d = x.shape
    k, steps, restarts = (
        _checks.at_least(1, "k", k),
        _checks.at_least(0, "iterations", iterations),
        _checks.at_least(1, "restarts", restarts),
    )
    batch = None if batch_size is None else _checks.at_least(1, "batch_size", batch_size)
    trials = 2 + int(math.log(k)) if local_trials is None else _checks.at_least(1, "local_trials", local_trials)
    if k > n:
        raise ValueError(f"k must not exceed the number of samples N = {n}, got k = {k}")
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {', '.join(_METRICS)}, got {metric!r}")
    _checks.number("tolerance", tolerance)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    generator = _checks.generator(generator)
    _check_init(init, k, d, x)
    if weights is not None:
        _check_weights(weights, x)
    largest = largest_of("x", x)
    if isinstance(init, Tensor) and init.shape[0] == k and batch is None:
        restarts = 1  # nothing is drawn: every run would be the same

    x = x.detach()
    data = prepared(x, largest, weights, metric == "cosine")
    if isinstance(init, Tensor) and not data.cosine and math.frexp(largest_of("init", init))[1] - data.power > FAR:
        raise ValueError(f"init must not be 2^{FAR} times as large as x, got {largest_of('init', init):.3g}")
    limit = tolerance * _variance(data) if tolerance else 0.0
    best: KMeans | None = None
    with Progress(f"k-means {n} x {k}", restarts * steps, progress) as bar:
        for _ in range(restarts):
            centroids = starts(data, k, init, trials, generator)
            if batch is None:
                found = _lloyd(data, centroids, steps, limit, bar)
            else:
                found = _mini_batch(data, centroids, steps, batch, limit, generator, bar)
            bar.step(data.shown(found.inertia), count=steps - found.iterations)
            if best is None or found.inertia < best.inertia:
                best = found
    assert best is not None
    return _undone(data, best)


def _check_weights(weights: Tensor, x: Tensor) -> None:
    _checks.dense("weights", weights)
    if weights.shape != x.shape[:1]:
        raise ValueError(f"weights must have shape ({x.shape[0]},), got {tuple(weights.shape)}")
    if weights.device != x.device:
        raise ValueError(f"weights must be on x's device {x.device}, got {weights.device}")
    largest_of("weights", weights)
    low, high = (float(v) for v in torch.aminmax(weights))
    if low < 0:
        raise ValueError(f"weights must not be negative, got {low}")
    if high == 0:
        raise ValueError("weights must not all be zero")


def _check_init(init: str | Tensor, k: int, d: int, x: Tensor) -> None:
    if isinstance(init, str):
        if init not in STARTS:
            raise ValueError(f"init must be one of {', '.join(STARTS)} or a tensor of starts, got {init!r}")
        return
    _checks.dense("init", init)
    if init.dim() != 2 or init.shape[1] != d or not 1 <= init.shape[0] <= k:
        raise ValueError(f"init must have shape (r, {d}) with 1 <= r <= k = {k}, got {tuple(init.shape)}")
    if init.device != x.device:
        raise ValueError(f"init must be on x's device {x.device}, got {init.device}")
    largest_of("init", init)


def _undone(data: Samples, found: KMeans) -> KMeans:
    """What was found, for the samples as they came."""
    centroids = scaled(found.centroids, data.power)
    back = scaled(centroids, -data.power)
    if not torch.equal(back, found.centroids):  # too small for the dtype: rounded, and another may be nearer now
        distances, codes = data.assign(back)
        found = found._replace(codes=codes, inertia=data.inertia(distances))
    try:
        inertia = math.ldexp(found.inertia, data.inertia_power)
    except OverflowError:
        raise ValueError("x (and weights) are too large: no float64 can hold the inertia; scale them down") from None
    return found._replace(centroids=centroids, inertia=inertia)


def _variance(data: Samples) -> float:
    """Mean variance of a feature, as the squared distance to the mean."""
    n, d = data.x.shape
    # several segments, so that several threads can work
    blocks = torch.arange(n, device=data.x.device) // BLOCK
    sums, sizes = sums_of(data, blocks, int(blocks[-1]) + 1)
    mean = sums.double().cumsum(0)[-1:] / sizes.cumsum(0)[-1]
    if data.cosine:  # unit rows: |u - mean|^2 averages to 1 - |mean|^2
        return max(0.0, 1.0 - total((mean * mean).flatten())) / max(d, 1)
    distances = nearest(data.x, mean.to(working(data.x)), "sqeuclidean").values.double()
    return total(data.weighted(distances)) / (total(sizes) * max(d, 1))
