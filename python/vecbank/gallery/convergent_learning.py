"""Convergent Learning: which units of one network correspond to which units of another one.

Li et al., "Convergent Learning: Do different neural networks learn the same representations?", ICLR 2016.

    C[i, j] = Pearson correlation of unit i of one network and unit j of another one, over a data set

A unit is the row of its activations on all samples. The correlation is the cosine of centred rows, and so the units of
a network are a bank. The partner of a unit is the argmax of |C|, which others may share, or that of a bipartite
matching. A few partners predict a unit by regression. Spectral clustering of all correlations finds groups of units.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import vecbank

from ._data import Split, digits, fit, generator, mlp
from ._sheet import Sheet

TITLE = "Convergent Learning"
FAMILY = "similarity kernel statistics"


def units(data: Split, seed: int) -> Tensor:
    """Centred activations (units, samples) of 48 hidden units, less those that never fire: they correlate with none."""
    network = mlp(64, 48, 10, seed=seed)
    fit(network, data.x, data.y, lr=3e-3, seed=seed)
    hidden: Tensor = network[:-1](data.x).detach().double()
    return (hidden - hidden.mean(0)).mT[hidden.std(0) > 0]


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure
    from sklearn.cluster import SpectralClustering

    data = digits(597, sheet.seed)
    first, second = units(data, 2 * sheet.seed + 1), units(data, 2 * sheet.seed + 2)
    order = torch.randperm(len(first), generator=generator(sheet.seed))
    recovered = float((vecbank.nearest(first[order], first, "cosine").indices == order).double().mean())
    sheet.check("units of a permuted copy that the argmax finds again", recovered, 1.0, recovered == 1)

    correlation = vecbank.project(first, second, "cosine")
    brute = torch.corrcoef(torch.cat([first, second]))[: len(first), len(first) :]
    error = float((correlation - brute).abs().max())
    sheet.check("largest difference to a Pearson correlation", error, "below 1e-12", error < 1e-12)

    size = correlation.abs()
    rows, columns = linear_sum_assignment(size, maximize=True)
    matched, random = float(size[rows, columns].mean()), float(size.mean())  # a random pair has the mean of all pairs
    sheet.check("mean |correlation| of matched pairs", matched, 0.746, matched > 0.746 - 0.05)
    sheet.check("mean |correlation| of random pairs", random, 0.332, random < matched - 0.2)

    partners = vecbank.topk(first, torch.cat([second, -second]), 3, "cosine").indices % len(second)
    explained = []
    for few in (partners[:, :1], partners):
        weights = torch.linalg.lstsq(second[few].mT, first.unsqueeze(-1)).solution.squeeze(-1)
        rest = first - vecbank.lookup(few, second, weights, reduce="sum")
        explained.append(float(1 - rest.square().sum() / first.square().sum()))
    one, three = explained
    sheet.check("variance that three partners explain, and one", three, one, three > one)

    every = torch.cat([first, second])
    spectral = SpectralClustering(6, affinity="precomputed", random_state=sheet.seed)
    found = spectral.fit_predict(vecbank.project(every, every).abs())
    shared = len(set(found[: len(first)]) & set(found[len(first) :]))
    sheet.check("of six clusters of units, those with units of both networks", shared, 6, shared >= 5)

    plot = Figure((7, 3))
    left, right = plot.subplots(1, 2)
    left.imshow(size, vmin=0, vmax=1)
    right.imshow(size[rows][:, columns], vmin=0, vmax=1)
    sheet.picture("|Correlation| of the units of one network and of the other one, as they come and matched.", plot)
