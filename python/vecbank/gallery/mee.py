"""MEE: a generator that repeats itself is spread by an entropy, which the distances to nearest samples estimate.

Liu et al., "Combating Mode Collapse in GANs via Manifold Entropy Estimation", AAAI 2023.

    H = mean_i log min_{j != i} |z_i - z_j|, to be maximised for a batch; z: embedded samples

This is `topk` of a batch in itself, without the row itself; the gradient goes to both rows of a pair. Two terms of the
paper shape the embedding: each sample is to be made of its k nearest ones with the weights that it had before, and
distances are to be those along the graph of nearest samples. Here a clumped cloud spreads in a square, and the two
terms are looked at on a sheet that was rolled up: both hold for the sheet laid flat. No GAN is trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import vecbank

from ._data import generator, normal
from ._sheet import Sheet

TITLE = "MEE"
FAMILY = "similarity kernel statistics"
OTHERS = vecbank.Allowed.not_self()


def entropy(z: Tensor) -> Tensor:
    return vecbank.topk(z, z, 1, "l2", allowed=OTHERS).values.log().mean()


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import dijkstra

    p = start = 0.1 * normal(200, 2, seed=sheet.seed).double()
    same = torch.autograd.gradcheck(entropy, start[:40].clone().requires_grad_(), raise_exception=False)
    sheet.check("gradient of the entropy, by finite differences", same, "equal", same)
    apart = torch.cdist(start, start).fill_diagonal_(torch.inf).amin(1).log().mean()
    error = float((entropy(start) - apart).abs())
    sheet.check("entropy less that of a dense matrix", error, "below 1e-12", error < 1e-12)
    before = float(entropy(start.tanh()))
    for step in range(300):  # of samples tanh(p), which cannot leave the square
        (slope,) = torch.autograd.grad(entropy(p.requires_grad_().tanh()), p)
        p = (p + 0.03 * 0.99**step * slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-9)).detach()
    z, even = p.tanh(), (-0.5772 - math.log(math.pi * 199 / 4)) / 2
    ends = [before, float(entropy(z))]
    sheet.check("entropy before and after 300 steps", ends, f"above {even:.2f}, of uniform points", ends[1] > even)
    first = start.detach().tanh()
    spread = [float(t.std(0).mean()) for t in (first, z)]
    sheet.check("standard deviation", spread, "rises", spread[1] > 4 * spread[0])
    wide = normal(4000, 2, seed=sheet.seed + 1).double()
    guess, true = float(2 * entropy(wide) + math.log(math.pi * 3999) + 0.5772), 1 + math.log(2 * math.pi)
    sheet.check("entropy of 4000 normal points, by H and its constants", guess, true, abs(guess - true) < 0.1)
    flat = torch.rand(1200, 2, generator=generator(sheet.seed)).double() * torch.tensor([40.0, 10.0])
    t = (2 * flat[:, 0] + 8).sqrt()  # so that lengths along the roll are nearly those of the flat sheet
    rolled = torch.stack([t * t.cos(), t * t.sin(), flat[:, 1]], 1)
    d, j = vecbank.topk(rolled, rolled, 8, "l2", allowed=OTHERS)
    steps = rolled[j] - rolled.unsqueeze(1)
    gram = steps @ steps.mT + 1e-3 * steps.square().sum((1, 2)).view(-1, 1, 1) * torch.eye(8)
    w = torch.linalg.solve(gram, gram.new_ones(1200, 8))
    w = w / w.sum(1, keepdim=True)
    rests = [
        float((vecbank.sparse_decode(w, j, e) - e).square().mean() / e.var()) for e in (rolled, flat, flat.flip(0))
    ]
    good = max(rests[:2]) < 1e-4 < 0.1 < rests[2]
    sheet.check("rest of samples made of 8 nearest: rolled, flat, of others", rests, "small, small, not", good)
    graph = csr_matrix((d.flatten(), j.flatten(), torch.arange(0, 9601, 8)), (1200, 1200))
    along = torch.from_numpy(dijkstra(graph, directed=False, indices=range(100)))
    far, near = (vecbank.project(e[:100], e, "l2").flatten() for e in (flat, rolled))
    fits = torch.corrcoef(torch.stack([far, near, along.flatten()]))[0, 1:].tolist()
    good = fits[1] > max(0.98, fits[0])
    sheet.check("correlation with flat distances: straight, along the graph", fits, "near 1", good)
    axes = (plot := Figure(figsize=(4, 3.5))).subplots()
    axes.plot(*z.mT, "o", *first.mT, "o", ms=3)
    axes.set(aspect="equal")
    sheet.picture("A clumped cloud (orange) has spread in the square (blue).", plot)
