"""EBV: fixed class vectors, all nearly at right angles to each other, take the place of a trained classifier.

Shen et al., "Equiangular Basis Vectors", CVPR 2023.

    prediction: argmax_c cos(f_i, v_c)        bound: |cos(v_a, v_b)| <= t for all a != b

N vectors fit into d < N dimensions if t is large enough. They are generated once, by descent on

    sum over a != b of max(0, |cos(v_a, v_b)| - t)

to which only the pairs beyond t contribute. `radius` finds these and passes the gradient on to both vectors. The
network then learns by the cross-entropy of scaled cosines.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vecbank

from ._data import accuracy, digits, fit, mlp, normal, unit
from ._sheet import Sheet

TITLE = "EBV"
FAMILY = "anchor projection"
REFERENCE = {(100, 64): 0.10, (200, 64): 0.16, (10, 16): 0.02}  # largest cosine of so many vectors in d dimensions


def equiangular(n: int, d: int, bound: float, seed: int = 0) -> Tensor:
    v = nn.Parameter(unit(normal(n, d, seed=seed)))
    optimiser = torch.optim.Adam([v], lr=1e-2)
    others, target = vecbank.Allowed.not_self(), 0.95 * bound  # a little below, so that the bound itself is reached
    for _ in range(500):
        close = vecbank.radius(v, torch.cat([v, -v]), target, "cosine", allowed=others).values
        if not (close > bound).any():
            break
        optimiser.zero_grad()
        (close - target).sum().backward()
        optimiser.step()
        with torch.no_grad():
            v.copy_(unit(v))
    return v.detach()


class Classifier(nn.Module):
    """A network that is trained, in front of class vectors that are not."""

    def __init__(self, network: nn.Module, classes: Tensor) -> None:
        super().__init__()
        self.network, self.classes = network, vecbank.Bank(classes, "cosine")

    def forward(self, x: Tensor) -> Tensor:
        return self.classes.project(self.network(x)) * 10  # a temperature of 0.1


def run(sheet: Sheet) -> None:
    for (n, d), bound in REFERENCE.items():
        vectors = equiangular(n, d, bound, sheet.seed)
        exact = unit(vectors.double())
        largest = float((exact @ exact.mT).fill_diagonal_(0).abs().max())
        floor = (max(0, n - d) / (d * (n - 1))) ** 0.5  # no set of vectors is below it (Welch)
        reference = f"{bound:.2f} (no set is below {floor:.3f})"
        sheet.check(f"largest cosine, {n} vectors in {d} dimensions", largest, reference, largest <= bound)

    data = digits(597, sheet.seed)
    ours = Classifier(mlp(64, 128, 16, seed=sheet.seed), vectors)
    fit(ours, data.x, data.y, seed=sheet.seed)
    softmax = fit(mlp(64, 128, 10, seed=sheet.seed), data.x, data.y, seed=sheet.seed)
    reached = accuracy(ours.classes.nearest(ours.network(data.x_test)).indices, data.y_test)
    theirs = accuracy(softmax(data.x_test).argmax(-1), data.y_test)
    sheet.check("accuracy on digits, beside a trained softmax head", reached, theirs, reached > theirs - 0.02)
