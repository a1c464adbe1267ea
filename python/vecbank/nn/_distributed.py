"""One codebook trained by several processes: sums over ranks, the first rank's tensors, rows drawn from all ranks.

Everything here is built from one collective, all_reduce, which every rank calls in the same order whatever the data:
so ranks may have batches that differ in size, are empty or are masked out.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Generator, Tensor

from ._draws import permutation, uniform


def several_ranks() -> bool:
    """Whether this process is one of several in torch.distributed's default group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_over_ranks(t: Tensor) -> Tensor:
    """The mean over all ranks, differentiable."""
    return dist_nn.all_reduce(t) / dist.get_world_size() if several_ranks() else t


class Ranks:
    """The processes that share a codebook; one process alone when not `enabled`."""

    def __init__(self, enabled: bool) -> None:
        self.several = enabled and several_ranks()

    def total(self, t: Tensor) -> Tensor:
        """The sum over ranks, the same bits on each of them. May write into `t`."""
        if self.several:
            t = t.contiguous()
            dist.all_reduce(t)
        return t

    def mean(self, t: Tensor) -> Tensor:
        """The mean over ranks. May write into `t`."""
        return self.total(t) / dist.get_world_size() if self.several else t

    def first(self, t: Tensor) -> Tensor:
        """The first rank's `t` on every rank: a broadcast, written as the sum of one tensor and zeros."""
        if not self.several:
            return t
        return self.total(t.clone() if dist.get_rank() == 0 else torch.zeros_like(t))

    def share(self, *tensors: Tensor) -> None:
        """Overwrites the tensors of every rank with the first rank's."""
        for t in tensors if self.several else ():
            t.data.copy_(self.first(t.detach().float() if t.dtype == torch.bool else t.detach()))


def _shuffled(rows: Tensor, mask: Tensor | None, count: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """Up to `count` row numbers in random order, those the mask keeps first; and how many it keeps."""
    n = rows.shape[0]
    if mask is None:
        order = permutation(n, rows.device, generator)[:count]
        return order, torch.full((), n, dtype=torch.int64, device=rows.device)
    keys = uniform(n, rows, generator) + (~mask).to(torch.float32)
    return keys.topk(torch.sym_min(n, count), largest=False).indices, mask.sum()


def draw_rows(
    rows: Tensor, mask: Tensor | None, count: int, generator: Generator | None, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """`count` of the ranks' rows at random, the same on every rank, without repeats while there are enough.

    Every rank's share follows the number of rows that it has, so a draw is uniform over all rows. Shapes do not depend
    on the data, so nothing waits for a device and torch.compile can trace it.

    Args:
        rows: (N, d), N of this rank. mask: (N,) bool, True = may be drawn.

    Returns:
        (count, d) in rows' dtype, and the number of rows there were to draw from, over all ranks (0: the first result
        means nothing).
    """
    if rows.shape[0] == 0:  # this rank has no row, but takes part in the sums
        rows, mask = rows.new_zeros(1, rows.shape[1]), torch.zeros(1, dtype=torch.bool, device=rows.device)
    order, available = _shuffled(rows, mask, count, generator)
    turn = torch.arange(count, device=rows.device)
    if not ranks.several:
        return rows[order[turn % available.clamp_min(1)]], available
    rank, world = dist.get_rank(), dist.get_world_size()
    sizes = torch.where(torch.arange(world, device=rows.device) == rank, available.double(), 0.0)
    edges = ranks.total(sizes).cumsum(0)
    draws = ranks.first(uniform(count, rows, generator, torch.float64)) * edges[-1]
    mine = torch.searchsorted(edges, draws, right=True) == rank
    turn = (mine.cumsum(0) - 1).clamp_min(0)
    drawn = torch.where(mine.unsqueeze(1), rows[order[turn % available.clamp_min(1)]], 0)
    return ranks.total(drawn), edges[-1]
