"""Which centroid is nearest to each sample, from one step of k-means to the next.

What stayed where it was need not be compared again: of the centroids that did not move, none was nearer to a sample
than its own. So all samples are compared with the centroids that moved. Then a sample is done if one of these is nearer
than its own was, or if its own did not move and none of these comes as near. Only the others are compared with all.

Source: Kaukoranta, Franti and Nevalainen, "A fast exact GLA based on code vector activity detection", IEEE Trans. Image
Processing 9, 2000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import nearest
from ._samples import Samples

# What a sample costs besides its products, in comparisons with one centroid: to be read, and to be read and copied.
_READ, _COPIED = 600, 1000
_CALLS = 2_000_000  # and what it costs to find out which samples can be left out, whatever their number
_GAIN = 0.9  # the share of a whole comparison below which the other way is taken
_ELEMENTS = 1 << 24  # of samples that are copied at a time


class Assignment:
    """The codes of samples while centroids move: `data.assign(centroids)` with fewer comparisons, to the last bit."""

    def __init__(self, data: Samples, k: int) -> None:
        self._data = data
        # Whether to look for what can be left out: of few samples, all are compared in less time.
        self.selective = _GAIN * len(data.x) * (_READ + k) > _CALLS
        self._centroids: Tensor | None = None  # of the last step
        self._values, self._codes = data.x.new_empty(0), data.x.new_empty(0, dtype=torch.int64)

    def step(self, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """Distance to the nearest centroid (N,), float64 and not negative, and its number (N,)."""
        last, self._centroids = self._centroids, centroids
        if last is None or not self.selective or not self._with_moved(centroids, (centroids != last).any(1)):
            self._values, self._codes = nearest(self._data.x, centroids, self._data.metric)
        return self._data.distances(self._values), self._codes

    def _with_moved(self, centroids: Tensor, moved: Tensor) -> bool:
        """Whether the moved centroids were compared first, and then as few others as this allowed."""
        active, stayed = moved.nonzero().squeeze(1), ~moved[self._codes]
        if len(active) == 0:
            return True
        k, of_moved = len(centroids), 1.0 - float(stayed.double().mean())
        # About half of the centroids that move come nearer to a sample.
        if _READ + len(active) + of_moved / 2 * (_COPIED + k) > _GAIN * (_READ + k):
            return False
        values, at = nearest(self._data.x, centroids[active], self._data.metric)
        nearer = self._before(values, self._values)
        # Equal values may hide scores that are not: these samples are compared with all.
        left = (~(nearer | (stayed & self._before(self._values, values)))).nonzero().squeeze(1)
        self._values = torch.where(nearer, values, self._values)
        self._codes = torch.where(nearer, active[at], self._codes)
        for part in left.split(max(1, _ELEMENTS // max(1, centroids.shape[1]))):
            found = nearest(self._data.x[part], centroids, self._data.metric)
            self._values[part], self._codes[part] = found.values, found.indices
        return True

    def _before(self, a: Tensor, b: Tensor) -> Tensor:
        return a > b if self._data.cosine else a < b
