"""LisGAN: generated features of a class are pulled to the nearest of that class's own soul samples.

Li et al., "Leveraging the Invariant Side of Generative Zero-Shot Learning", CVPR 2019.

    loss = mean_i min_{j in class(i)} |x_i - s_j|^2 + mean_c min_{j in class c} |mean of the x_i of c - s_j|^2

The soul samples s are the means of clusters of each class's real features. Here the features are digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import digits, generator
from ._sheet import Sheet

TITLE = "LisGAN"
FAMILY = "codebook lookup"
CLASSES, SOULS = 10, 3


def to_souls(x: Tensor, y: Tensor, souls: Tensor, of_soul: Tensor) -> vecbank.Nearest:
    """The nearest soul of each row's own class."""
    return vecbank.nearest(x, souls, "sqeuclidean", allowed=vecbank.Allowed.same(y, of_soul))


def loss(x: Tensor, y: Tensor, souls: Tensor, of_soul: Tensor) -> Tensor:
    means = vecbank.segment_sum(x, y, CLASSES) / torch.bincount(y, minlength=CLASSES).unsqueeze(1)
    of_means = to_souls(means, torch.arange(CLASSES), souls, of_soul)
    return to_souls(x, y, souls, of_soul).values.mean() + of_means.values.mean()


def brute_force(x: Tensor, y: Tensor, souls: Tensor, of_soul: Tensor) -> Tensor:
    means = torch.stack([x[y == c].mean(0) for c in range(CLASSES)])
    terms = []
    for rows, labels in ((x, y), (means, torch.arange(CLASSES))):
        squares = (rows.unsqueeze(1) - souls).square().sum(-1)
        terms.append(squares.masked_fill(labels.unsqueeze(1) != of_soul, torch.inf).min(-1).values.mean())
    return terms[0] + terms[1]


def run(sheet: Sheet) -> None:
    data = digits(seed=sheet.seed)
    clusters = [vecbank.kmeans(data.x[data.y == c], SOULS, generator=sheet.seed) for c in range(CLASSES)]
    souls, of_soul = torch.cat([c.centroids for c in clusters]), torch.arange(CLASSES).repeat_interleave(SOULS)

    start = torch.rand(300, 64, generator=generator(sheet.seed))
    y = torch.arange(300) % CLASSES
    x, exact = start.clone().requires_grad_(), start.double().requires_grad_()
    ours, theirs = loss(x, y, souls, of_soul), brute_force(exact, y, souls.double(), of_soul)
    sheet.check(
        "loss of random points, by brute force", ours.item(), theirs.item(), abs(ours.item() / theirs.item() - 1) < 1e-6
    )
    (g,), (h,) = torch.autograd.grad(ours, x), torch.autograd.grad(theirs, exact)
    error = float((g - h).abs().max() / h.abs().max())
    sheet.check("its gradient, relative error against brute force", error, "below 1e-5", error < 1e-5)

    for _ in range(40):  # gradient descent on the first term, whose minima are the souls
        (g,) = torch.autograd.grad(to_souls(x, y, souls, of_soul).values.sum(), x)
        x = (x - 0.25 * g).detach().requires_grad_()
    end = to_souls(x, y, souls, of_soul)
    landed = float(((end.values < 1e-8) & (of_soul[end.indices] == y)).double().mean())
    sheet.check("random points that land on a soul of their own class", landed, "all", landed == 1)
    kept = float((end.indices == to_souls(start, y, souls, of_soul).indices).double().mean())
    sheet.check("points that land on the soul that was nearest at first", kept, "all", kept == 1)
