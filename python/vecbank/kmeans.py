"""k-means on the library's verbs: `nearest` assigns, `segment_sum` averages; no N x K matrix is ever made.

Assignment is exact with ties to the lower index, every sum has a fixed order and every draw comes from the
caller's generator, so the answer depends on neither processor nor thread count.

Sources: Lloyd, "Least squares quantization in PCM", IEEE Trans. Information Theory 28, 1982; Arthur and
Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007; Bahmani et al., "Scalable
k-means++", VLDB 2012; Sculley, "Web-scale k-means clustering", WWW 2010; Dhillon and Modha, "Concept
decompositions for large sparse text data using clustering", Machine Learning 42, 2001 (cosine).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from . import _checks
from ._numpy import entry_point
from ._progress import Progress
from .functional import nearest, segment_sum

STARTS = ("k-means++", "random")
_METRICS = ("l2", "sqeuclidean", "cosine")
_FLOOR = 1e-8  # a norm below this counts as this, as everywhere in the library
_BLOCK = 1 << 16  # rows widened at a time
# k-means++ looks at all samples again after so many centres, or so many rejected draws
_LATE, _MISSES = 64, 8
# Squares, and sums of many, stay inside float32 for samples of at most 2^30; others are scaled by a power of two. So
# are those so small that the floor of a norm would count.
_HIGH, _LOW, _LOW_COSINE, _FAR = 30, -30, -10, 60


class KMeans(NamedTuple):
    """What `kmeans` returns."""

    centres: Tensor  # (k, d)
    codes: Tensor  # (N,) int64: the nearest of these centres
    inertia: float  # sum of (weighted) squared distances, or of 1 - cosine, to these centres
    iterations: int  # steps (or passes over the data) of the restart that won


class _Data(NamedTuple):
    """The samples, and what every step needs to know about them."""

    x: Tensor
    weights: Tensor | None  # (N,) float64, at most 1
    row_weights: Tensor | None  # (N,) float64: what each row is multiplied by when it is summed
    cosine: bool
    power: int  # what is returned is 2 ** power times as large as these samples
    inertia_power: int  # and its inertia, 2 ** inertia_power times

    @property
    def metric(self) -> str:
        return "cosine" if self.cosine else "sqeuclidean"

    def rows(self, index: Tensor) -> Tensor:
        """Samples as centres: in the centres' dtype, of unit length for cosine."""
        rows = self.x[index].to(_working(self.x))
        return _unit(rows) if self.cosine else rows

    def select(self, index: Tensor) -> _Data:
        take = [None if t is None else t[index] for t in (self.weights, self.row_weights)]
        return self._replace(x=self.x[index], weights=take[0], row_weights=take[1])

    def assign(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Distance to the nearest centre, float64 and not negative, and its number."""
        values, codes = nearest(self.x, centres, self.metric)
        return ((1 - values.double()).clamp_min_(0) if self.cosine else values.double()), codes

    def weighted(self, values: Tensor) -> Tensor:
        return values if self.weights is None else values * self.weights

    def inertia(self, distances: Tensor) -> float:
        return _total(self.weighted(distances))

    def shown(self, inertia: float) -> str:
        try:
            return f"inertia {math.ldexp(inertia, self.inertia_power):.6g}"
        except OverflowError:
            return "inertia inf"


def _working(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32


def _unit(rows: Tensor) -> Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(_FLOOR)


def _scaled(x: Tensor, power: int) -> Tensor:
    """x 2^power, exactly where the dtype can hold it; in two steps, as one factor might not be a float."""
    return x if power == 0 else x.mul(2.0 ** (power // 2)).mul_(2.0 ** (power - power // 2))


def _total(values: Tensor) -> float:
    """Sum of (N,) float64 values in an order of its own: torch splits a full sum by the number of threads."""
    while values.numel() > 1:
        values = torch.nn.functional.pad(values, (0, -values.numel() % 1024)).view(-1, 1024).sum(1)
    return float(values) if values.numel() else 0.0


def _sums(data: _Data, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sum of the rows of each code (k, d), float64 if they have weights; and what they weigh together (k,) float64."""
    if data.row_weights is None:
        return _row_sums(data.x, codes, k, None), torch.bincount(codes, minlength=k).double()
    # In units of the heaviest row of each code: powers of two, so nothing is rounded, and light codes do not vanish.
    heaviest = data.row_weights.new_zeros(k).scatter_reduce_(0, codes, data.row_weights, "amax")
    unit = torch.where(heaviest > 0, heaviest / torch.frexp(heaviest).mantissa, 1.0)
    sums = _row_sums(data.x, codes, k, (data.row_weights / unit[codes]).to(_working(data.x)))
    counted = torch.ones_like(data.row_weights) if data.weights is None else data.weights
    return sums.double() * unit.unsqueeze(1), segment_sum(counted.unsqueeze(1), codes, k).squeeze(1)


def _row_sums(x: Tensor, codes: Tensor, k: int, weights: Tensor | None) -> Tensor:
    dtype = _working(x)
    if x.dtype == dtype:
        return segment_sum(x, codes, k, weights)
    # a 16-bit sum would be too coarse: widen a block at a time
    sums = torch.zeros(k, x.shape[1], dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[0], _BLOCK):
        block = slice(start, start + _BLOCK)
        sums += segment_sum(x[block].to(dtype), codes[block], k, None if weights is None else weights[block])
    return sums.to(dtype)


def _means(data: _Data, centres: Tensor, sums: Tensor, sizes: Tensor) -> Tensor:
    """New centres; one without any weight (or, for cosine, whose rows cancel) stays where it was."""
    means = sums / sizes.unsqueeze(1).to(sums.dtype)
    alive = (sizes > 0).unsqueeze(1)
    if data.cosine:
        norms = torch.linalg.vector_norm(means, dim=1, keepdim=True)
        means, alive = means / norms, norms >= _FLOOR
    return torch.where(alive, means.to(centres.dtype), centres)


def _worst(data: _Data, distances: Tensor, count: int) -> Tensor:
    """`count` samples that are served badly and lie apart, so that not all of them come from one far cluster.

    Candidates are spread evenly over the total error (k-means++ without the draw); among those the farthest
    is taken, then the farthest from the centres and it, and so on.
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


def _reseed(data: _Data, distances: Tensor, codes: Tensor, sums: Tensor, sizes: Tensor) -> None:
    """Gives each empty code a sample that is served badly, taken from the code it was with; in place."""
    empty = (sizes == 0).nonzero().squeeze(1)
    if not empty.numel():
        return
    worst = _worst(data, distances, len(empty))
    empty, moved = empty[: len(worst)], data.select(worst)
    rows, weights = _sums(moved, torch.arange(len(worst), device=codes.device), len(worst))
    sums.sub_(segment_sum(rows, codes[worst], len(sums)))
    sizes.sub_(segment_sum(weights.unsqueeze(1), codes[worst], len(sizes)).squeeze(1)).clamp_min_(0)
    sums[empty], sizes[empty] = rows, weights


# ---- Starts ------------------------------------------------------------------------------------------------


def _draw(count: int, generator: Generator | None) -> Tensor:
    """Uniform numbers in [0, 1), drawn where the generator lives: the same for data on any device."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.rand(count, dtype=torch.float64, generator=generator, device=device)


def _permutation(count: int, generator: Generator | None, device: torch.device) -> Tensor:
    source = generator.device if generator is not None else torch.device("cpu")
    return torch.randperm(count, generator=generator, device=source).to(device)


def _spread(data: _Data, given: Tensor, k: int, generator: Generator | None) -> Tensor:
    """k-means++: each next centre is a sample drawn in proportion to its distance to those there are.

    Only the running smallest distance of each sample is kept, and it may lag behind by some centres: it is
        then an
    upper bound, so drawing by it and accepting with probability true / bound is the same draw. A pass over
    the data thus serves many centres. Given centres come first and count as chosen.
    """
    n, chosen = data.x.shape[0], list(given)
    weight = torch.ones(n, dtype=torch.float64, device=data.x.device) if data.weights is None else data.weights
    gap, mass, late, misses = torch.full_like(weight, torch.inf), weight.cumsum(0), len(chosen), 0
    while len(chosen) < k:
        if late and (late == len(chosen) or late >= _LATE or misses >= _MISSES):
            gap = torch.minimum(gap, data.assign(torch.stack(chosen[-late:]))[0])
            mass, late, misses = data.weighted(gap).cumsum(0), 0, 0  # one dimension: torch adds in order
            if not mass[-1] > 0:  # every sample lies on a centre: any will do
                fill = (_draw(k - len(chosen), generator) * n).long().to(mass.device)
                return torch.cat([torch.stack(chosen), data.rows(fill)])
        place, accept = _draw(2, generator).tolist()
        index = torch.searchsorted(mass, mass[-1:] * place, right=True).clamp_max_(n - 1)
        if late and not accept * gap[index] < data.select(index).assign(torch.stack(chosen[-late:]))[0]:
            misses += 1
            continue
        chosen.append(data.rows(index)[0])
        late += 1
    return torch.stack(chosen)


def _start(data: _Data, k: int, init: str | Tensor, generator: Generator | None) -> Tensor:
    given = data.x.new_empty((0, data.x.shape[1]), dtype=_working(data.x))
    if isinstance(init, Tensor):
        given = init.detach().double()
        if data.cosine:
            given = _unit(_scaled(given, -_power(_largest("init", init), True)))
        given = _scaled(given, -data.power).to(_working(data.x))
        return given if given.shape[0] == k else _spread(data, given, k, generator)
    if init == "random":
        return data.rows(_permutation(data.x.shape[0], generator, data.x.device)[:k])
    return _spread(data, given, k, generator)


# ---- Iterations --------------------------------------------------------------------------------------------


def _lloyd(data: _Data, centres: Tensor, iterations: int, limit: float, bar: Progress) -> KMeans:
    codes: Tensor | None = None
    done = 0
    while True:
        distances, new = data.assign(centres)
        # the centres are the means of this very assignment
        settled = codes is not None and torch.equal(codes, new)
        codes = new
        if settled or done >= iterations:
            break
        sums, sizes = _sums(data, codes, centres.shape[0])
        _reseed(data, distances, codes, sums, sizes)
        moved = _means(data, centres, sums, sizes)
        shift = _total((moved - centres).double().square().flatten())
        centres = moved
        done += 1
        bar.step(data.shown(data.inertia(distances)))
        if shift <= limit:
            distances, codes = data.assign(centres)
            break
    return KMeans(centres, codes, data.inertia(distances), done)


def _mini_batch(
    data: _Data,
    centres: Tensor,
    passes: int,
    batch: int,
    limit: float,
    generator: Generator | None,
    bar: Progress,
) -> KMeans:
    """Each centre moves to the running mean of all samples it has been given: a step of 1 / count."""
    k, done = centres.shape[0], 0
    counts = torch.zeros(k, dtype=torch.float64, device=centres.device)
    for _ in range(passes):
        before, seen = centres, torch.zeros_like(counts)
        batches = _permutation(data.x.shape[0], generator, data.x.device).split(batch)
        for index in batches:
            part = data.select(index)
            _, codes = part.assign(centres)
            sums, sizes = _sums(part, codes, k)
            seen += sizes
            counts += sizes
            rate = torch.where(counts > 0, sizes / counts, 0.0).unsqueeze(1).to(centres.dtype)
            moved = _means(part, centres, sums, sizes)
            centres = centres + (moved - centres) * rate
            if data.cosine:
                centres = _unit(centres)
        lost = (seen == 0).nonzero().squeeze(1)
        if lost.numel():  # unused in a whole pass: start again from samples of a batch (the last one may be small)
            part = data.select(batches[0])
            worst = _worst(part, part.assign(centres)[0], len(lost))
            centres[lost[: len(worst)]] = part.rows(worst)
            counts[lost] = 0
        done += 1
        bar.step()
        if _total((centres - before).double().square().flatten()) <= limit:
            break
    distances, codes = data.assign(centres)
    return KMeans(centres, codes, data.inertia(distances), done)


@entry_point
@torch.no_grad()
def kmeans(
    x: Tensor,
    k: int,
    *,
    init: str | Tensor = "k-means++",
    metric: str = "l2",
    weights: Tensor | None = None,
    iterations: int = 100,
    tolerance: float = 1e-4,
    restarts: int = 1,
    batch_size: int | None = None,
    generator: Generator | int | None = None,
    progress: bool = False,
) -> KMeans:
    """k centres that (locally) minimise the sum over samples of the distance to the nearest one.

    Lloyd's iteration: ``code_i = argmin_j |x_i - c_j|^2``, then ``c_j = mean of the x_i with code j``. An
    empty centre moves to one of the samples that are served worst. With ``metric="cosine"`` the samples
    count as unit vectors, centres are unit vectors and the distance is ``1 - cos``; a zero sample has no
    direction and counts for nothing.

    Args:
        x: (N, d) float32, float64, bfloat16 or float16, finite. 16-bit samples are read as they are.
        k: 1 to N.
        init: "k-means++"; "random" samples; or starts (r, d) with r <= k: those given come first, the other
            k - r are drawn as in k-means++.
        metric: "l2" (or "sqeuclidean", the same clustering) or "cosine".
        weights: (N,), not negative: how much each sample counts.
        iterations: most steps. Stops when no sample changes its code, or the squared moves of all centres
            together are at most ``tolerance`` times the mean variance of a feature (scikit-learn's rule).
        restarts: runs from different starts, of which the one with the smallest inertia is returned.
        batch_size: mini-batches of this many samples; ``iterations`` and the result's then count passes
            over x.
        generator: source of all draws, or the seed of one; without it torch's global generator.
        progress: draw a bar on stderr.

    Returns:
        KMeans(centres, codes, inertia, iterations): centres (k, d) in x's dtype (float32 for 16-bit x) and
            codes
        (N,) int64 of the nearest of these centres. The same bits for any number of threads.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    _checks.floating("x", x)
    if x.dim() != 2:
        raise ValueError(f"x must have shape (N, d), got {tuple(x.shape)}")
    n, d = x.shape
    generator, k, iterations = (
        _checks.generator(generator),
        _checks.integer("k", k),
        _checks.integer("iterations", iterations),
    )
    restarts = _checks.integer("restarts", restarts)
    batch_size = None if batch_size is None else _checks.integer("batch_size", batch_size)
    numbers = (("k", k, 1), ("iterations", iterations, 0), ("restarts", restarts, 1), ("batch_size", batch_size, 1))
    for name, value, low in numbers:
        if value is not None and value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    if k > n:
        raise ValueError(f"k must not exceed the number of samples N = {n}, got k = {k}")
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {', '.join(_METRICS)}, got {metric!r}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    _check_init(init, k, d, x)
    largest = _largest("x", x)
    if isinstance(init, Tensor) and init.shape[0] == k and batch_size is None:
        restarts = 1  # nothing is drawn: every run would be the same

    x = x.detach()
    data = _prepare(x, largest, weights, metric == "cosine")
    if isinstance(init, Tensor) and not data.cosine and math.frexp(_largest("init", init))[1] - data.power > _FAR:
        raise ValueError(f"init must not be 2^{_FAR} times as large as x, got {_largest('init', init):.3g}")
    limit = tolerance * _variance(data) if tolerance else 0.0
    best: KMeans | None = None
    with Progress(f"k-means {n} x {k}", restarts * iterations, progress) as bar:
        for _ in range(restarts):
            centres = _start(data, k, init, generator)
            if batch_size is None:
                found = _lloyd(data, centres, iterations, limit, bar)
            else:
                found = _mini_batch(data, centres, iterations, batch_size, limit, generator, bar)
            bar.step(data.shown(found.inertia), count=iterations - found.iterations)
            if best is None or found.inertia < best.inertia:
                best = found
    assert best is not None
    return _undone(data, best)


def _check_init(init: str | Tensor, k: int, d: int, x: Tensor) -> None:
    if isinstance(init, str):
        if init not in STARTS:
            raise ValueError(f"init must be one of {', '.join(STARTS)} or a tensor of starts, got {init!r}")
        return
    _checks.floating("init", init)
    if init.dim() != 2 or init.shape[1] != d or not 1 <= init.shape[0] <= k:
        raise ValueError(f"init must have shape (r, {d}) with 1 <= r <= k = {k}, got {tuple(init.shape)}")
    if init.device != x.device:
        raise ValueError(f"init must be on x's device {x.device}, got {init.device}")
    _largest("init", init)


def _largest(name: str, x: Tensor) -> float:
    """Largest magnitude; NaN and infinity are refused."""
    low, high = (float(v) for v in torch.aminmax(x)) if x.numel() else (0.0, 0.0)
    largest = max(-low, high)  # either is NaN where x has one
    if not math.isfinite(largest):
        raise ValueError(f"{name} must be finite, got NaN or inf")
    return largest


def _power(largest: float, cosine: bool) -> int:
    """The power of two to scale down by; 0 where that is not needed."""
    power = math.frexp(largest)[1]
    return 0 if (_LOW_COSINE if cosine else _LOW) <= power <= _HIGH else power


def _prepare(x: Tensor, largest: float, weights: Tensor | None, cosine: bool) -> _Data:
    # a power of two changes no bit of the answer, as long as everything stays inside the dtype's range
    power = _power(largest, cosine)
    x, inertia_power = _scaled(x, -power), 0 if cosine else 2 * power
    if weights is not None:
        _checks.floating("weights", weights)
        if weights.shape != x.shape[:1]:
            raise ValueError(f"weights must have shape ({x.shape[0]},), got {tuple(weights.shape)}")
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()) or not bool((weights > 0).any()):
            raise ValueError("weights must be finite and not negative, and not all zero")
        heaviest = math.frexp(_largest("weights", weights))[1]
        weights = _scaled(weights.detach().double(), -heaviest)
        inertia_power += heaviest
    row_weights = weights
    if cosine:
        norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
        if bool((norms == 0).any()):  # no direction: any centre serves it as badly, and none should move there
            weights = (norms > 0).double() if weights is None else torch.where(norms > 0, weights, 0.0)
        norms.clamp_min_(_FLOOR)
        row_weights = norms.reciprocal_() if weights is None else weights / norms
    return _Data(x, weights, row_weights, cosine, 0 if cosine else power, inertia_power)


def _undone(data: _Data, found: KMeans) -> KMeans:
    """What was found, for the samples as they came."""
    centres = _scaled(found.centres, data.power)
    back = _scaled(centres, -data.power)
    if not torch.equal(back, found.centres):  # too small for the dtype: rounded, and another may be nearer now
        distances, codes = data.assign(back)
        found = found._replace(codes=codes, inertia=data.inertia(distances))
    try:
        inertia = math.ldexp(found.inertia, data.inertia_power)
    except OverflowError:
        raise ValueError("x (and weights) are too large: no float64 can hold the inertia; scale them down") from None
    return found._replace(centres=centres, inertia=inertia)


def _variance(data: _Data) -> float:
    """Mean variance of a feature, as the squared distance to the mean."""
    n, d = data.x.shape
    # several segments, so that several threads can work
    blocks = torch.arange(n, device=data.x.device) // _BLOCK
    sums, sizes = _sums(data, blocks, int(blocks[-1]) + 1)
    mean = sums.double().cumsum(0)[-1:] / sizes.cumsum(0)[-1]
    if data.cosine:  # unit rows: |u - mean|^2 averages to 1 - |mean|^2
        return max(0.0, 1.0 - _total((mean * mean).flatten())) / max(d, 1)
    distances = nearest(data.x, mean.to(_working(data.x)), "sqeuclidean").values.double()
    return _total(data.weighted(distances)) / (_total(sizes) * max(d, 1))
