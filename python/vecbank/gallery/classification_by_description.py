"""Classification by description: a class is scored by the mean similarity to its descriptors, not by its name.

Menon and Vondrick, "Visual Classification via Description from Large Language Models", ICLR 2023.

    score[i, c] = mean over descriptors t of class c of cos(x_i, e_t)        prediction: argmax_c

Classes may have different numbers of descriptors. A mean of dot products is the dot product with the mean, so that the
mean unit descriptor of a class is one row of a bank, and the N x T matrix is never made.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import accuracy, generator, normal, unit
from ._sheet import Sheet

TITLE = "Classification by description"
FAMILY = "anchor projection"
CLASSES, EACH, WIDTH, IMAGES = 20, 8, 64, 2000
NOISE = 3.2  # of names, descriptors and images, for class vectors of variance 1


def class_rows(descriptors: Tensor, members: Tensor) -> Tensor:
    """The mean unit descriptor of every class. members (C, T): the descriptors of each class, filled up with -1."""
    return vecbank.lookup(members, unit(descriptors), reduce="mean")


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    centre, noise = normal(CLASSES, WIDTH, seed=sheet.seed).double(), generator(sheet.seed + 1)
    every = torch.arange(CLASSES)
    labels = torch.randint(CLASSES, (IMAGES,), generator=noise)
    names, descriptors, images = (
        centre[of] + NOISE * torch.randn(len(of), WIDTH, generator=noise, dtype=torch.float64)
        for of in (every, every.repeat_interleave(EACH), labels)
    )
    members = torch.arange(CLASSES * EACH).view(CLASSES, EACH)
    by_name = accuracy(vecbank.nearest(images, names, "cosine").indices, labels)
    by_count = [
        accuracy(vecbank.nearest(images, class_rows(descriptors, members[:, :t]), "dot").indices, labels)
        for t in range(1, EACH + 1)
    ]
    sheet.check("accuracy, by the name alone", by_name, 0.132, by_name < by_count[-1] - 0.15)
    sheet.check(f"accuracy, by {EACH} descriptors", by_count[-1], 0.440, by_count[-1] > 0.440 - 0.06)

    ragged = members.masked_fill(torch.rand(CLASSES, EACH, generator=noise) < 0.4, -1)
    ragged[:, 0] = members[:, 0]  # no class is left without a descriptor
    fused = vecbank.project(unit(images), class_rows(descriptors, ragged), "dot")
    cosines = vecbank.project(images, descriptors, "cosine")
    in_two_steps = torch.stack([cosines[:, row[row >= 0]].mean(-1) for row in ragged], -1)
    error = float((fused - in_two_steps).abs().max())
    sheet.check(
        "largest difference to all cosines, then their means (ragged classes)", error, "below 1e-12", error < 1e-12
    )
    same = torch.equal(fused.argmax(-1), in_two_steps.argmax(-1))
    sheet.check("the same predictions", same, "yes", same)

    plot = Figure((4, 3))
    axes = plot.subplots()
    axes.plot(range(1, EACH + 1), by_count, "o-", label="descriptors")
    axes.axhline(by_name, color="grey", label="name")
    axes.set(xlabel="descriptors of each class", ylabel="accuracy")
    axes.legend()
    sheet.picture("More descriptors average their noise away.", plot)
