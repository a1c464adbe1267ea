"""Infinite-depth kernel classifiers: an infinitely wide and deep network votes over its training set, in one of 3 ways.

Radhakrishnan, Belkin and Uhler, "Wide and deep neural networks achieve optimality for classification", PNAS 2023.

    class of x: argmax_c sum_{j of class c} w(d_j), d_j = |x - x_j|, over all training points
    w = 1: the majority; w = R(d) / d^alpha: a singular kernel; alpha to infinity: the nearest neighbour (1-NN)

The vote is `attend` whose weight is a function and whose values are the labels. R is exp(-d), which the source does not
fix. A layer whose activation is the sum of sqrt(c_p) times the normalised Hermite polynomials h_p takes the cosine s of
two inputs to k(s) = sum_p c_p s^p, and L layers to k(k(... s)). Which way depth votes is read off c_0 and c_1; where
c_0 = 0 < c_1, alpha is -2 log k'(0) / log k'(1). If alpha is the dimension, the answers become as good as they can with
more data: here, with points of a plane, of whose labels a fifth is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

import vecbank

from ._data import accuracy, digits, generator
from ._sheet import Sheet

TITLE = "Infinite-depth kernel classifiers"
FAMILY = "similarity kernel statistics"
ALPHAS, REFERENCE, DEPTHS = (2, 8, 64, 256), [0.957, 0.987, 0.985, 0.983], (1, 2, 3, 4, 6, 8, 10, 12)
LAYERS = {"majority": lambda s: (2 + s + s * s) / 4, "singular": lambda s: (s + s**3) / 2, "1-NN": lambda s: s * s}


def vote(x: Tensor, bank: Tensor, values: Tensor, alpha: float) -> Tensor:
    return vecbank.attend(x, bank, values, "l2", weight=lambda z: z.exp() * (-z).pow(-alpha))  # z: distances, negative


def deep(s: Tensor, layer: Callable[[Tensor], Tensor], layers: int) -> Tensor:
    return functools.reduce(lambda t, _: layer(t), range(layers), s)


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    data = digits(597, sheet.seed)
    x, queries, labels = data.x.double(), data.x_test.double(), torch.eye(10).double()[data.y]
    nearest, cosine = (data.y[vecbank.nearest(queries, x, metric).indices] for metric in ("l2", "cosine"))
    found = [vote(queries, x, labels, alpha) for alpha in ALPHAS]
    right = [accuracy(given, data.y_test) for given in (*(v.argmax(1) for v in found[:3]), nearest)]
    good = max(abs(a - b) for a, b in zip(right, REFERENCE, strict=True)) < 0.02
    sheet.check("accuracy of the singular kernel, alpha 2, 8, 64; of 1-NN", right, REFERENCE, good)
    same = [accuracy(v.argmax(1), nearest) for v in found]
    sheet.check("answers of 1-NN, alpha 2, 8, 64, 256", same, "rise to 1", same[0] < same[1] <= same[3] == 1)
    d = torch.cdist(queries, x, compute_mode="donot_use_mm_for_euclid_dist")
    error = max(float((((-d).exp() * d**-a) @ labels / v - 1).abs().max()) for a, v in zip(ALPHAS, found, strict=True))
    sheet.check("votes less those of a dense matrix, relative", error, "below 1e-12", error < 1e-12)
    axes, ends = (plot := Figure(figsize=(4.5, 3))).subplots(), []
    for name, layer in LAYERS.items():
        kernels = [functools.partial(deep, layer=layer, layers=n) for n in DEPTHS]
        given = [vecbank.attend(queries, x, labels, "cosine", weight=k).argmax(1) for k in kernels]
        axes.plot(DEPTHS, [accuracy(g, data.y_test) for g in given], "o-", label=name)
        ends.append(given[-1])
    limits = [accuracy((counts := data.y.bincount())[ends[0]], counts.max()), accuracy(ends[2], cosine)]
    sheet.check(f"answers in {DEPTHS[-1]} layers: of the majority, of 1-NN", limits, "above 0.99", min(limits) > 0.99)
    short = torch.tensor([1e-5, 1e-3]).double()  # of unit vectors: |a - b|^2 = 2 - 2 s
    slope = float((deep(1 - short.square() / 2, LAYERS["singular"], 60).log10().diff() / short.log10().diff()).neg())
    at_0, at_1 = (torch.func.grad(LAYERS["singular"])(torch.tensor(end)).log() for end in (0.0, 1.0))
    good = abs(slope - (alpha := float(-2 * at_0 / at_1))) < 0.02
    sheet.check("alpha of 60 singular layers, by the slope at 1e-5 to 1e-3", slope, alpha, good)
    plane = torch.rand(9000, 2, generator=generator(sheet.seed)).double()
    side = ((3 * plane).long().sum(1, keepdim=True) % 2 * 2 - 1).double()  # of a board of 3 x 3 squares
    seen = torch.where(torch.rand(9000, 1, generator=generator(sheet.seed + 1)) < 0.2, -side, side)
    bank, kept, others = plane[:8000], seen[:8000], plane[8000:]
    votes = [kept[vecbank.nearest(others, bank).indices], *(vote(others, bank[:m], kept[:m], 2) for m in (500, 8000))]
    best = [accuracy(v.sign(), side[8000:]) for v in votes]
    good = best[2] > max(best[0] + 0.05, best[1])
    sheet.check("right sides: 1-NN of 8000 points, alpha 2 of 500, of 8000", best, "0.8, rises", good)
    axes.set(xlabel="layers", ylabel="accuracy")
    axes.legend()
    sheet.picture("Deep networks, each on the way to its limit.", plot)
