"""ST-ProtoPNet: an image is classified by how well its best patch matches each prototype of each class.

Wang et al., "Learning Support and Trivial Prototypes for Interpretable Image Classification", ICCV 2023.

    s[b, p] = max over positions h, w of z[b, h, w] . u_p / |u_p|        logits: a linear map of s

The map starts at +1 for prototypes of the own class and -0.5 for others. There are two banks: trivial prototypes lie in
the middle of a class, support prototypes near to other classes. A push step replaces each prototype by the nearest
training patch of its class. Here the patches are nine 4 x 4 windows of a digit, and k-means gives the prototypes. The
patches of an image are a bank of their own, so that the maximum over positions is `nearest` in a batch of banks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vecbank
from vecbank import Allowed

from ._data import accuracy, digits, fit, unit
from ._sheet import Sheet

TITLE = "ST-ProtoPNet"
FAMILY = "anchor projection"
REFERENCE = {1: 0.691, 2: 0.593, 5: 0.898, 10: 0.950}  # accuracy of so many centres for each class


def centres(patches: Tensor, of: Tensor, each: int, seed: int) -> Tensor:
    """Unit prototypes, so many for each class, by k-means of the patches of the class."""
    return unit(torch.cat([vecbank.kmeans(patches[of == c], each, generator=seed).centroids for c in range(10)]))


def score(prototypes: Tensor, z: Tensor) -> vecbank.Nearest:
    """Of the best patch of every image: how well it matches each prototype, and which one it is."""
    return vecbank.nearest(prototypes.expand(len(z), -1, -1), z, "dot")


def run(sheet: Sheet) -> None:
    data = digits(597, sheet.seed)
    pixels = [(x - data.x.mean(0)).double().view(-1, 8, 8) for x in (data.x, data.x_test)]
    z, z_test = (x.unfold(1, 4, 2).unfold(2, 4, 2).reshape(len(x), 9, 16) for x in pixels)
    patches, of = z.flatten(0, 1), data.y.repeat_interleave(9)

    def classified(prototypes: Tensor, owner: Tensor) -> float:
        s, s_test = score(prototypes, z).values, score(prototypes, z_test).values
        head = nn.Linear(len(owner), 10, dtype=torch.float64)
        with torch.no_grad():
            head.weight.copy_(torch.where(owner == torch.arange(10)[:, None], 1.0, -0.5))
            head.bias.zero_()
        fit(head, (s - s.mean(0)) / s.std(0), data.y, lr=0.05, seed=sheet.seed)
        return accuracy(head((s_test - s.mean(0)) / s.std(0)).argmax(-1), data.y_test)

    alone, both = [], []
    for each, reference in REFERENCE.items():
        trivial, owner = centres(patches, of, each, sheet.seed), torch.arange(10).repeat_interleave(each)
        alone.append(classified(trivial, owner))
        why = "one centre is the mean of all patches of a class, and says little" if each == 1 else ""
        sheet.check(f"accuracy, trivial bank, {each} a class", alone[-1], reference, alone[-1] > reference - 0.05, why)
        gap = vecbank.nearest(unit(patches), trivial, "l2", allowed=Allowed.other(of, owner)).values
        near = gap < gap.quantile(0.3)  # patches that look like those of other classes
        support = centres(patches[near], of[near], each, sheet.seed)
        both.append(classified(torch.cat([trivial, support]), owner.repeat(2)))
    sheet.check("accuracy of both banks together", both, alone, sum(both) > sum(alone))

    fused, dense = score(trivial, z), vecbank.project(z, trivial, "dot").max(1)
    error = float((fused.values - dense.values).abs().max())
    sheet.check("largest difference to dense products and their maximum", error, "below 1e-12", error < 1e-12)

    pushed = vecbank.nearest(trivial, unit(patches), "l2", allowed=Allowed.same(owner, of)).indices
    gaps = (trivial[:, None] - unit(patches)).square().sum(-1)
    exact = torch.equal(pushed, gaps.masked_fill(owner[:, None] != of, torch.inf).argmin(1))
    sheet.check("the push step returns the nearest patch of the class, by brute force", exact, "yes", exact)
    after = classified(unit(patches[pushed]), owner)
    sheet.check("accuracy of the trivial bank after the push", after, alone[-1], after > alone[-1] - 0.05)
