"""HypCD: categories are found by distances in the Poincare ball, which has room for a tree.

Liu, He and Han, "Hyperbolic Category Discovery", CVPR 2025.

    d(u, v) = 2 / sqrt(c) artanh(sqrt(c) |-u (+) v|), with Moebius addition (+): `vecbank.Poincare(c)`
    z = tanh(sqrt(c) |f|) f / (sqrt(c) |f|), f: a feature whose norm was clipped
    loss = InfoNCE of the similarities -d(z_i, z'_j) / T; the category is that of the nearest centre

A binary tree lies on circles of the disk, a level on each. InfoNCE trains a linear map of 16 categories into the disk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import vecbank

from ._data import accuracy, generator, normal, unit
from ._sheet import Sheet

TITLE = "HypCD"
FAMILY = "other metrics"
METRIC, CLIP = vecbank.Poincare(0.5), 2.0


def in_ball(f: Tensor) -> Tensor:
    norm = (root := math.sqrt(METRIC.curvature)) * f.norm(dim=-1, keepdim=True)
    return torch.tanh(norm.clamp_max(root * CLIP)) * f / norm


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure
    from scipy.sparse.csgraph import shortest_path
    from scipy.stats import spearmanr

    on_circle, far = unit(normal(700, 2, seed=sheet.seed).double()), torch.rand(700, 1, generator=generator(sheet.seed))
    u, v = (0.9 * far * on_circle).split([500, 200])
    a, b, flat = torch.view_as_complex(u).unsqueeze(1), torch.view_as_complex(v), vecbank.project(u, v, "l2")
    ratio = 2 * (a - b).abs().square() / ((1 - a.abs().square()) * (1 - b.abs().square()))
    scaled = [vecbank.project(u / r, v / r, vecbank.Poincare(r * r)) * r for r in (0.5, 1, 2)]  # balls of radius 1 / r
    forms = 2 * torch.atanh(((b - a) / (1 - a.conj() * b)).abs()), torch.acosh(1 + ratio)  # of complex numbers
    errors = [max(float((d - form).abs().max()) for d in scaled) for form in forms]
    sheet.check("d less its forms by artanh, by arcosh", errors, "2e-14; below 1e-11", max(errors) < 1e-11)
    bends = [float((vecbank.project(u, v, vecbank.Poincare(10.0**-i)) / flat - 2).abs().max()) for i in (2, 4, 6)]
    sheet.check("d / |u - v| - 2, c: 1e-2, 1e-4, 1e-6", bends, "falls as c", bends[2] < bends[1] / 50 < bends[0] / 2500)
    u, v = ((0.95 + 0.049 * far) * on_circle).split([500, 200])
    other = 1 - accuracy(vecbank.nearest(u, v, "poincare").indices, vecbank.nearest(u, v, "l2").indices)
    sheet.check("nearest rows that are not Euclid's, |x| above 0.95", other, 0.24, abs(other - 0.24) < 0.1)
    edge, true = torch.tensor([[1 - 1e-7]], dtype=torch.float64, requires_grad=True), 2 / (1 - (1 - 1e-7) ** 2)
    slope = float(torch.autograd.grad(vecbank.project(edge, torch.zeros(1, 1).double(), "poincare"), edge)[0])
    sheet.check("gradient at |x| = 1 - 1e-7, b = 0", f"{slope:.9g}", f"{true:.9g}", abs(slope / true - 1) < 1e-9)
    node = torch.arange(1, 64)  # node i has the children 2 i and 2 i + 1
    level, upper = node.double().log2().floor(), node.unsqueeze(1) < node
    tree = torch.view_as_real(torch.polar(torch.tanh(level / 2), 2 * math.pi * (node + 0.5) / 2**level))
    hops = torch.from_numpy(shortest_path((node.unsqueeze(1) == node // 2).numpy(), directed=False))[upper]
    found = [vecbank.project(tree, tree, metric) for metric in ("poincare", "l2")]
    ranks = [float(spearmanr(hops, d[upper])[0]) for d in found]
    sheet.check("rank correlation with hops: d, Euclid", ranks, "0.850, 0.663", math.dist(ranks, (0.85, 0.663)) < 0.02)
    families = normal(4, 1, 16, seed=sheet.seed) + normal(4, 4, 16, seed=sheet.seed + 1) / 3
    views, tests = (families.view(16, 16) + normal(2, 20, 16, 16, seed=sheet.seed + 2) / 4) / 4
    weight, y, figures = normal(16, 2, seed=sheet.seed + 3).requires_grad_(), torch.arange(16).repeat(20), []
    for _ in range(61):
        centres, z = in_ball(views.mean(0) @ weight), in_ball(tests.flatten(0, 1) @ weight)
        d = vecbank.project(in_ball(views.flatten(0, 1) @ weight), centres, METRIC)
        loss = nn.functional.cross_entropy(-d / 0.2, y)
        figures.append((float(loss.detach()), accuracy(vecbank.nearest(z, centres, METRIC).indices, y)))
        weight = (weight - 0.5 * torch.autograd.grad(loss, weight)[0]).detach().requires_grad_()
    losses, hits = zip(figures[0], figures[-1], strict=True)
    sheet.check("InfoNCE before and after 60 steps", losses, "falls", losses[1] < 0.8 * losses[0])
    sheet.check("accuracy of the nearest centre", hits, "rises", hits[1] > hits[0] + 0.04)
    left, right = (plot := Figure(figsize=(7, 3.2), layout="constrained")).subplots(1, 2)
    left.plot(*tree[torch.stack([node, node // 2])[:, 1:] - 1].unbind(-1), "k", lw=0.5)
    plot.colorbar(left.scatter(*tree.mT.numpy(), c=found[0][-1], zorder=2), label="d to the last leaf")
    left.set(aspect="equal", xticks=[], yticks=[])
    right.plot(hops - 0.15, found[0][upper], ".", hops + 0.15, 5 * found[1][upper], ".", alpha=0.3)
    right.set(xlabel="hops; left dots: d, right dots: 5 |u - v|", ylabel="distance")
    sheet.picture("A tree in the disk, and the distances of its nodes.", plot)
