"""One step of Lloyd's k-means on the library's verbs: ``nearest`` to assign, ``segment_sum`` to average."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..functional import nearest, segment_sum


class LloydStep(NamedTuple):
    centres: Tensor  # (K, d) means of the samples assigned to each of the centres that went in
    codes: Tensor  # (N,) int64, the assignment those means were taken over
    distances: Tensor  # (N,) squared distance of each sample to the centre it was assigned to


@torch.no_grad()
def lloyd_step(samples: Tensor, centres: Tensor) -> LloydStep:
    """Assigns ``samples (N, d)`` to ``centres (K, d)`` and returns the new means.

    A centre that nothing was assigned to moves to one of the samples that are served worst, so that no code
    is wasted. Same input, same bits, on any number of threads: assignment is exact with ties to the lower
    index, and the sums are added in a fixed order.
    """
    count = centres.shape[0]
    distances, codes = nearest(samples, centres, "sqeuclidean")
    sums = segment_sum(samples, codes, count)
    sizes = torch.bincount(codes, minlength=count)
    means = sums / sizes.clamp_min(1).unsqueeze(1).to(sums.dtype)
    empty = (sizes == 0).nonzero().squeeze(1)
    if empty.numel() > 0:
        worst = torch.argsort(distances, descending=True, stable=True)[: empty.numel()]
        means[empty] = samples[worst]
    return LloydStep(means, codes, distances)
