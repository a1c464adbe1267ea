"""Relative representations: a vector is described by its cosines to the same few samples in every network's space.

Moschella et al., "Relative representations enable zero-shot latent space communication", ICLR 2023.

    R[i, j] = cos(x_i, a_j)        a_j: the encodings of fixed samples (anchors), in one order for all encoders

R does not change if the space is turned, reflected or scaled, and two trainings of one network differ by about that.
So a classifier that was fitted on the relative rows of one encoder reads those of another one. The other forms of R are
in `relative_variants`.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import Split, accuracy, digits, fit, mlp, normal
from ._sheet import Sheet

TITLE = "Relative representations"
FAMILY = "anchor projection"
Rows = tuple[Tensor, Tensor]  # of the training digits, and of the test digits


def latents(data: Split, seed: int, steps: int = 300) -> Rows:
    """Digits in the hidden layer of a network of this seed. Cosines need the mean at the origin."""
    network = mlp(64, 128, 64, 10, seed=seed)
    fit(network, data.x, data.y, steps=steps, lr=3e-3, seed=seed)
    train, test = (network[:-1](x).detach() for x in (data.x, data.x_test))
    return train - train.mean(0), test - train.mean(0)


def transfer(data: Split, own: Rows, other: Rows) -> list[float]:
    """Fit a linear classifier on own rows. Test accuracy on own rows, and on those of the other encoder."""
    mean, spread = own[0].mean(0), own[0].std(0).clamp_min(1e-9)
    head = mlp(own[0].shape[1], 10)
    fit(head, (own[0] - mean) / spread, data.y, steps=200, lr=0.05)
    return [accuracy(head((test - mean) / spread).argmax(-1), data.y_test) for _, test in (own, other)]


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    data = digits(597, sheet.seed)
    a, b = spaces = [latents(data, 2 * sheet.seed + i) for i in (1, 2)]
    (own, across), back = transfer(data, a, b), transfer(data, b, a)[1]
    sheet.check("absolute vectors, own encoder", own, 0.980, own > 0.980 - 0.03)
    sheet.check("absolute vectors, stitched", [across, back], [0.107, 0.081], max(across, back) < 0.4)

    for count, reference in ((16, [0.946]), (128, [0.970, 0.965])):
        anchors = vecbank.anchors.stratified(data.y, count, generator=sheet.seed)
        r_a, r_b = relative = [(vecbank.project(z, z[anchors]), vecbank.project(t, z[anchors])) for z, t in spaces]
        (own, across), back = transfer(data, r_a, r_b), transfer(data, r_b, r_a)[1]
        sheet.check(f"{count} anchors, stitched", [across, back], reference, min(across, back) > min(reference) - 0.05)
    sheet.check("128 anchors, own encoder", own, 0.967, own > 0.967 - 0.03)

    z, (q, _) = a[0].double(), torch.linalg.qr(normal(64, 64, seed=sheet.seed).double())
    turned = 3.7 * z @ q
    change = float((vecbank.project(z, z[anchors]) - vecbank.project(turned, turned[anchors])).abs().max())
    sheet.check("largest change of R if x becomes 3.7 x Q", change, 1e-15, change < 4e-15)

    plot = Figure((8, 2.5))
    panels = iter(plot.subplots(1, 4, subplot_kw={"xticks": [], "yticks": []}))
    for name, rows in (("absolute", spaces), ("relative", relative)):
        plane = torch.linalg.svd(rows[0][0] - rows[0][0].mean(0), full_matrices=False).Vh[:2].mT
        for encoder, (_, test) in zip("AB", rows, strict=True):
            horizontal, vertical = (test @ plane).mT
            axes = next(panels)
            axes.set_title(f"{name}, {encoder}")
            axes.scatter(horizontal, vertical, c=data.y_test, s=4, cmap="tab10")
    sheet.picture("Test digits of two encoders, in the plane of the two main directions of A.", plot)
