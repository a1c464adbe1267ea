"""The starts of k-means: given centroids, random samples, and greedy k-means++.

Every draw comes from the caller's generator and every distance is exact, so the starts depend on neither processor nor
thread count.

Sources: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007; the greedy form is in
section 4.4.1 of Arthur's thesis "Analyzing and improving local search: k-means and ICP", Stanford 2009, and is
scikit-learn's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ..functional import segment_sum, topk
from ._samples import Samples, largest_of, power_of, scaled, unit, working

_REACH_BLOCK, _CANDIDATES = 1 << 14, 512  # k-means++ compares so many samples at a time with at most so many candidates


def _draw(count: int, generator: Generator | None) -> Tensor:
    """Uniform numbers in [0, 1), drawn where the generator lives: the same for data on any device."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.rand(count, dtype=torch.float64, generator=generator, device=device)


def permutation(count: int, generator: Generator | None, device: torch.device) -> Tensor:
    source = generator.device if generator is not None else torch.device("cpu")
    return torch.randperm(count, generator=generator, device=source).to(device)


class _Reach(NamedTuple):
    """A candidate for a centroid, and the samples that lie closer to it than to any centroid there is."""

    sample: Tensor  # () int64: its own number
    rows: Tensor  # (m,) int64
    distances: Tensor  # (m,) float64


def _reaches(data: Samples, candidates: Tensor, gap: Tensor) -> list[_Reach]:
    """What each of these samples would change; gap (N,) is the distance to the nearest centroid.

    Most samples are near few of the candidates. So the nearest few are looked for, and more of them only for those
    samples that are nearer to all of these.
    """
    centroids, count = data.rows(candidates), len(candidates)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(gap), _REACH_BLOCK):
        x, threshold = data.x[start : start + _REACH_BLOCK], gap[start : start + _REACH_BLOCK]
        rows, width = torch.arange(start, start + len(x), device=x.device), min(2, count)
        while len(rows):
            values, codes = topk(x, centroids, width, data.metric)
            distances = data.distances(values)
            closer = distances < threshold.unsqueeze(1)
            unfinished = closer[:, -1] if width < count else closer.new_zeros(len(rows))
            row, rank = (closer & ~unfinished.unsqueeze(1)).nonzero(as_tuple=True)
            found.append((codes[row, rank], rows[row], distances[row, rank]))
            x, threshold, rows, width = x[unfinished], threshold[unfinished], rows[unfinished], min(4 * width, count)
    codes, rows, near = (torch.cat(part) for part in zip(*found, strict=True))
    order, sizes = codes.argsort(stable=True), torch.bincount(codes, minlength=count).tolist()
    parts = zip(candidates, rows[order].split(sizes), near[order].split(sizes), strict=True)
    return [_Reach(*part) for part in parts]


def _best(data: Samples, gap: Tensor, trials: list[_Reach]) -> _Reach:
    """The candidate that lowers the sum of weighted distances most; the first of equals."""
    if len(trials) == 1:
        return trials[0]
    rows, near = torch.cat([t.rows for t in trials]), torch.cat([t.distances for t in trials])
    which = torch.cat([torch.full_like(t.rows, i) for i, t in enumerate(trials)])
    gain = (gap[rows] - near).clamp_min_(0)
    gain = gain if data.weights is None else gain * data.weights[rows]
    return trials[int(segment_sum(gain.unsqueeze(1), which, len(trials)).argmax())]


def _careful(data: Samples, given: Tensor, k: int, trials: int, generator: Generator | None) -> Tensor:
    """Greedy k-means++: each next centroid is the best of `trials` samples, each drawn in proportion to its distance to
    the centroids there are. Given centroids come first and count as chosen.

    Candidates for several steps are drawn at once, so that one pass over the samples serves them all. By its turn a
    candidate may be nearer to a centroid than when it was drawn; taking it with probability distance now / distance
    then is the same draw as one made now.
    """
    n, chosen = data.x.shape[0], []
    weights = torch.ones(n, dtype=torch.float64, device=data.x.device) if data.weights is None else data.weights
    gap, mass = torch.full_like(weights, torch.inf), weights.cumsum(0)  # one dimension: torch adds in order
    if len(given):
        gap = data.assign(given)[0]
    else:
        place = mass[-1:] * _draw(1, generator).to(mass.device)
        chosen.append(torch.searchsorted(mass, place, right=True).clamp_max_(n - 1)[0])
        gap = data.assign(data.rows(chosen[0].view(1)))[0]
    ready: list[_Reach] = []
    steps, count = 1, k - len(given)
    while len(chosen) < count:
        mass = data.weighted(gap).cumsum(0)
        if not mass[-1] > 0:  # every sample lies on a centroid: any will do
            chosen += (_draw(count - len(chosen), generator) * n).long().to(mass.device)
            break
        size = min(trials * min(steps, count - len(chosen)), max(trials, _CANDIDATES))
        place, accept = _draw(2 * size, generator).to(mass.device).view(2, size)
        pool = torch.searchsorted(mass, mass[-1:] * place, right=True).clamp_max_(n - 1)
        reaches, threshold, at, steps = _reaches(data, pool, gap), accept * gap[pool], 0, 1
        while len(chosen) < count:
            taken = (threshold[at:] < gap[pool[at:]]).nonzero().squeeze(1)[: trials - len(ready)].tolist()
            ready += [reaches[at + i] for i in taken]
            if len(ready) < trials:
                break
            at += taken[-1] + 1
            best, ready = _best(data, gap, ready), []
            gap[best.rows] = torch.minimum(gap[best.rows], best.distances)
            chosen.append(best.sample)
            steps += 1
        steps += steps // 4
    return torch.cat([given, data.rows(torch.stack(chosen))])


def starts(data: Samples, k: int, init: str | Tensor, trials: int, generator: Generator | None) -> Tensor:
    """k centroids (k, d) to start from, as `kmeans` describes them for `init`; `trials` draws for each."""
    given = data.x.new_empty((0, data.x.shape[1]), dtype=working(data.x))
    if isinstance(init, Tensor):
        given = init.detach().double()
        if data.cosine:
            given = unit(scaled(given, -power_of(largest_of("init", init), True)))
        given = scaled(given, -data.power).to(working(data.x))
        return given if given.shape[0] == k else _careful(data, given, k, trials, generator)
    if init == "random":
        return data.rows(permutation(data.x.shape[0], generator, data.x.device)[:k])
    return _careful(data, given, k, trials, generator)
