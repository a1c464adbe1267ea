"""SimMatchV2: labels spread from few labelled rows, along similarities to two memory banks, in closed form.

Zheng et al., "SimMatchV2: Semi-Supervised Learning with Graph Consistency", ICCV 2023.

    estimate: softmax(q U^T / t) P, U: a bank of unlabelled rows, P: the predictions stored beside it
    graph of q: itself and its n best labelled rows; A = exp(similarity / t) off the diagonal, S = D^-1/2 A D^-1/2
    pseudo-label of q: its row of (I - a S)^-1 Y, where Y is the estimate for q and one-hot for labelled rows
    edge loss: cross-entropy of softmax(q U^T / t) and softmax(q' U^T / t), q': a view of q that was changed more

The cross-entropy over a whole bank is log-sum-exp(q' U^T / t) - q' . attend(q) / t, so that no relations are kept. Five
digits of each class have labels; q are unit vectors of pixels less their mean, and predictions those of a network that
learned the labels. The published system trains an encoder, whose running average fills the banks; here q are fixed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vecbank

from ._data import Largest, accuracy, digits, fit, mlp, normal, unit
from ._sheet import Sheet

TITLE = "SimMatchV2"
FAMILY = "top-k search"
LABELLED, T, NEAR, A = 5, 0.1, 8, 0.5


def propagated(q: Tensor, estimate: Tensor, bank: Tensor, labels: Tensor, n: int, a: float) -> Tensor:
    found = vecbank.topk(q, bank, n, "dot").indices
    nodes, one = torch.cat([q[:, None], bank[found]], 1), torch.eye(n + 1)
    edges = (vecbank.project(nodes, nodes, "dot") / T).exp() * (1 - one)
    s = edges / (edges.sum(-1, keepdim=True) * edges.sum(-2, keepdim=True)).sqrt()
    return torch.linalg.solve(one - a * s, torch.cat([estimate[:, None], labels[found]], 1))[:, 0]


def run(sheet: Sheet) -> None:
    data = digits(0, sheet.seed)
    x, order = data.x.double() - data.x.double().mean(0), data.y.argsort(stable=True)
    first = torch.searchsorted(data.y[order], torch.arange(10))
    chosen = order[first[:, None] + torch.arange(LABELLED)].flatten()
    rest = torch.ones(len(x), dtype=torch.bool).index_fill(0, chosen, value=False)
    labels, y, bank, u = nn.functional.one_hot(data.y[chosen]).double(), data.y[rest], unit(x[chosen]), unit(x[rest])
    head = fit(mlp(64, 128, 10, seed=sheet.seed).double(), x[chosen], data.y[chosen], seed=sheet.seed)
    stored = head(x[rest]).softmax(1).detach()

    def fused(q: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        edge = vecbank.logsumexp(other, u, beta=1 / T) - (other * vecbank.attend(q, u, beta=1 / T)).sum(1) / T
        return vecbank.attend(q, u, stored, beta=1 / T), edge.mean()

    def dense(q: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        relation = (q @ u.mT / T).softmax(1)
        return relation @ stored, nn.functional.cross_entropy(other @ u.mT / T, relation)

    views = [unit(x[rest] + noise * normal(*u.shape, seed=sheet.seed)).requires_grad_() for noise in (0, 0.1)]
    found, most = [], []
    for way in (fused, dense):
        with Largest() as largest:
            estimate, edge = way(*views)
            found.append((estimate.detach(), *torch.autograd.grad(edge, views)))
        most.append(largest.most)
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True)]
    sheet.check("estimates less those of two dense steps", errors[0], "below 1e-6", errors[0] < 1e-6)
    sheet.check("gradients of the edge loss in q and q', too", errors[1:], "below 1e-10", max(errors[1:]) < 1e-10)
    sheet.check("largest tensor; of the dense steps", most, "below a quarter", most[0] < most[1] / 4)

    estimate = found[0][0]
    pseudo = propagated(u, estimate, bank, labels, NEAR, A)
    right = [accuracy(p.argmax(1), y) for p in (pseudo, estimate, stored)]
    sheet.check("accuracy of pseudo-labels, estimates, the head", right, "above the head", min(right[:2]) > right[2])
    sizes = [0, 0.25, 0.5, 0.75, 0.9]
    curves = {f"{n} rows": [propagated(u, estimate, bank, labels, n, a) for a in sizes] for n in (4, 8, 16)}
    lines = {name: [accuracy(p.argmax(1), y) for p in curve] for name, curve in curves.items()}
    caption = "Accuracy of pseudo-labels, by the number of labelled rows in a graph; at a = 0 the estimates alone."
    sheet.lines(caption, "a, how far labels spread", "accuracy", sizes, lines | {"head": [right[2]] * 5})
    sheet.note(
        "Most of the gain comes from the estimates; with these features the graph adds little to them, or nothing."
    )
