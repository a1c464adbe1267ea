"""HNSW recall study: exact neighbours as the ground truth of recall, and intrinsic dimension from their distances.

Elliott and Clark, "The Impacts of Data, Ordering, and Intrinsic Dimensionality on Recall in Hierarchical Navigable
Small Worlds", 2024.

    LID(x) = -1 / mean_{i < k} log(r_i / r_k), r_1 <= ... <= r_k the distances from x to its k nearest neighbours

The recall of a graph depends on the order of insertion (here by LID, up or down), which exact search does not see.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank
from vecbank import Allowed

from ._data import generator, lid, normal, rotation
from ._sheet import Sheet

TITLE = "HNSW recall study"
FAMILY = "top-k search"


def by_graph(x: Tensor, bank: Tensor, links: int = 6, beam: int = 10) -> Tensor:
    """What a flat small world finds: a row is linked with the nearest of those before it; a beam follows the links."""
    earlier = Allowed.ranges(torch.tensor(0), torch.arange(len(bank)))
    before = vecbank.topk(bank, bank, links, "l2", allowed=earlier).indices
    linked = torch.zeros(len(bank), len(bank) + 1, dtype=torch.bool).scatter(1, before + 1, True)[:, 1:]
    linked = torch.nn.functional.pad(linked | linked.T | torch.eye(len(bank), dtype=torch.bool), (0, 0, 0, 1))
    found, last = torch.zeros(len(x), 1, dtype=torch.long), None  # it begins at row 0, and none (-1) has no links
    while last is None or not torch.equal(found, last):
        last, known = found, Allowed.mask(linked[found].any(1))
        found = vecbank.topk(x, bank, beam, "l2", allowed=known).indices
    return found


def run(sheet: Sheet) -> None:
    grid, order = normal(1050, 4, seed=sheet.seed).mul(2).round(), torch.randperm(1000, generator=generator(sheet.seed))
    x, bank = grid[:50], grid[50:]  # whole numbers: many distances are equal
    found, permuted = vecbank.topk(x, bank, 10, "l2"), vecbank.topk(x, bank[order], 10, "l2")
    brute = torch.cdist(x.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    last = brute.sort(-1).values[:, 9:10]
    recall = float((brute.gather(-1, found.indices) <= last).double().mean())
    sheet.check("recall of exact search, by brute force, with ties", recall, 1.0, recall == 1)
    same = torch.equal(found.values, permuted.values)
    same &= bool(vecbank.verify(x, bank, order[permuted.indices], "l2").right_up_to_ties.all())
    sheet.check("the same neighbours from permuted rows, up to ties", same, "yes", same)

    for d, expected in ((2, 2.0), (5, 4.57), (10, 8.24), (20, 14.45)):
        mean = float(lid(torch.rand(4000, d, generator=generator(sheet.seed + d))).mean())
        sheet.check(f"LID of a uniform cube of {d} dimensions", mean, expected, abs(mean / expected - 1) < 0.03)

    turn = rotation(32, sheet.seed)
    cubes = [torch.rand(300, d, generator=generator(sheet.seed + d)) - 0.5 for d in (2, 5, 10, 20)]
    points = torch.cat([cube @ turn.roll(5 * i, 0)[: cube.shape[1]] for i, cube in enumerate(cubes)])
    points = points[torch.randperm(len(points), generator=generator(sheet.seed))]
    x, bank = points[:100], points[100:]
    up = lid(bank).argsort()
    inserted = bank[up], bank[up.flip(0)]
    rising, falling = (vecbank.verify(x, b, by_graph(x, b), "l2").recall.mean().item() for b in inserted)
    both, moves = [rising, falling], abs(rising - falling) > 0.01
    sheet.check("recall of a graph, LID rising and falling", both, "differ, by up to 0.12 in the paper", moves)
