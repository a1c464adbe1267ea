"""The samples of k-means as its steps read them: scaled into range, with weights, and their ordered sums."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..functional import nearest, segment_sum

FLOOR = 1e-8  # a norm below this counts as this, as everywhere in the library
BLOCK = 1 << 16  # rows widened at a time
# Squares, and sums of many, stay inside float32 for samples of at most 2^30; others are scaled by a power of two. So
# are those so small that the floor of a norm would count.
_HIGH, _LOW, _LOW_COSINE, FAR = 30, -30, -10, 60


class Samples(NamedTuple):
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
        """Samples as centroids: in the centroids' dtype, of unit length for cosine."""
        rows = self.x[index].to(working(self.x))
        return unit(rows) if self.cosine else rows

    def select(self, index: Tensor) -> Samples:
        take = [None if t is None else t[index] for t in (self.weights, self.row_weights)]
        return self._replace(x=self.x[index], weights=take[0], row_weights=take[1])

    def assign(self, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """Distance to the nearest centroid, float64 and not negative, and its number."""
        values, codes = nearest(self.x, centroids, self.metric)
        return self.distances(values), codes

    def distances(self, values: Tensor) -> Tensor:
        """What a search by this metric returned, as distances: float64 and not negative."""
        return (1 - values.double()).clamp_min_(0) if self.cosine else values.double()

    def weighted(self, values: Tensor) -> Tensor:
        return values if self.weights is None else values * self.weights

    def inertia(self, distances: Tensor) -> float:
        return total(self.weighted(distances))

    def shown(self, inertia: float) -> str:
        try:
            return f"inertia {math.ldexp(inertia, self.inertia_power):.6g}"
        except OverflowError:
            return "inertia inf"


def working(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32


def unit(rows: Tensor) -> Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(FLOOR)


def scaled(x: Tensor, power: int) -> Tensor:
    """x * 2^power, exactly where the dtype can hold it; in two steps, as one factor might not be a float."""
    return x if power == 0 else x.mul(2.0 ** (power // 2)).mul_(2.0 ** (power - power // 2))


def total(values: Tensor) -> float:
    """Sum of (N,) float64 values in an order of its own: torch splits a full sum by the number of threads."""
    while values.numel() > 1:
        values = torch.nn.functional.pad(values, (0, -values.numel() % 1024)).view(-1, 1024).sum(1)
    return float(values) if values.numel() else 0.0


def sums_of(data: Samples, codes: Tensor, k: int, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of the rows of each code (k, d), float64 if they have weights; and what they weigh together (k,) float64.

    Where there is `wanted` (k,), the sums of other codes are left out, and are zero.
    """
    summed = codes if wanted is None else torch.where(wanted[codes], codes, -1)
    if data.row_weights is None:
        return _row_sums(data.x, summed, k, None), torch.bincount(codes, minlength=k).double()
    # In units of the heaviest row of each code: powers of two, so nothing is rounded, and light codes do not vanish.
    heaviest = data.row_weights.new_zeros(k).scatter_reduce_(0, codes, data.row_weights, "amax")
    unit = torch.where(heaviest > 0, heaviest / torch.frexp(heaviest).mantissa, 1.0)
    sums = _row_sums(data.x, summed, k, (data.row_weights / unit[codes]).to(working(data.x)))
    counted = torch.ones_like(data.row_weights) if data.weights is None else data.weights
    return sums.double() * unit.unsqueeze(1), segment_sum(counted.unsqueeze(1), codes, k).squeeze(1)


def _row_sums(x: Tensor, codes: Tensor, k: int, weights: Tensor | None) -> Tensor:
    dtype = working(x)
    if x.dtype == dtype:
        return segment_sum(x, codes, k, weights)
    # a 16-bit sum would be too coarse: widen a block at a time
    sums = torch.zeros(k, x.shape[1], dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[0], BLOCK):
        block = slice(start, start + BLOCK)
        sums += segment_sum(x[block].to(dtype), codes[block], k, None if weights is None else weights[block])
    return sums.to(dtype)


def largest_of(name: str, x: Tensor) -> float:
    """Largest magnitude; NaN and infinity are refused."""
    low, high = (float(v) for v in torch.aminmax(x)) if x.numel() else (0.0, 0.0)
    largest = max(-low, high)  # either is NaN where x has one
    if not math.isfinite(largest):
        raise ValueError(f"{name} must be finite, got NaN or inf")
    return largest


def power_of(largest: float, cosine: bool) -> int:
    """The power of two to scale down by; 0 where that is not needed."""
    power = math.frexp(largest)[1]
    return 0 if (_LOW_COSINE if cosine else _LOW) <= power <= _HIGH else power


def prepared(x: Tensor, largest: float, weights: Tensor | None, cosine: bool) -> Samples:
    """x (N, d), whose largest magnitude is `largest`, and weights (N,) of any scale, both checked before."""
    # a power of two changes no bit of the answer, as long as everything stays inside the dtype's range
    power = power_of(largest, cosine)
    x, inertia_power = scaled(x, -power), 0 if cosine else 2 * power
    if weights is not None:
        heaviest = math.frexp(largest_of("weights", weights))[1]
        weights = scaled(weights.detach().double(), -heaviest)
        inertia_power += heaviest
    row_weights = weights
    if cosine:
        norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
        if bool((norms == 0).any()):  # no direction: it is as far from any centroid, and none should move there
            weights = (norms > 0).double() if weights is None else torch.where(norms > 0, weights, 0.0)
        norms.clamp_min_(FLOOR)
        row_weights = norms.reciprocal_() if weights is None else weights / norms
    return Samples(x, weights, row_weights, cosine, 0 if cosine else power, inertia_power)
