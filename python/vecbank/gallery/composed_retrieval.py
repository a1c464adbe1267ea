"""Composed image retrieval (uncertainty): a picture and a text that changes it are one query, and learning is noisy.

Chen et al., "Composed Image Retrieval with Text Feedback via Multi-grained Uncertainty Regularization", ICLR 2024.

    query = compose(x, text); the gallery is ranked by its distance to it
    t' = a t + b, a ~ N(1, s), b ~ N(m, s), m, s: mean and deviation of the batch's targets t, by coordinate
    loss = w (InfoNCE(query, t') / v + log(v) / 2) + (1 - w) InfoNCE(query, t), v = 1 + |t' - t|^2 / d

Pictures are digits, the text asks for the next class: compose adds the difference of two class means. Learning changes
these and a linear map of pictures. InfoNCE leaves other targets of the class out. On digits w = 0 does as well as 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank
from vecbank import Allowed
from vecbank.losses import info_nce

from ._data import accuracy, digits, generator, unit
from ._sheet import Sheet

TITLE = "Composed image retrieval (uncertainty)"
FAMILY = "top-k search"
RANKS, STEPS, BATCH, T, W = 50, 50, 128, 0.1, 0.5


def nce(q: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return info_nce(q, t, temperature=T, allowed=~(Allowed.same(y, y) & Allowed.not_self()), reduction="none")


def dense_nce(q: Tensor, t: Tensor, y: Tensor) -> Tensor:
    scores, allowed = unit(q) @ unit(t).mT / T, (y[:, None] != y) | torch.eye(len(q)).bool()
    return scores.masked_fill(~allowed, -torch.inf).logsumexp(1) - scores.diagonal()


def loss(q: Tensor, t: Tensor, noise: Tensor, y: Tensor, *, dense: bool = False) -> Tensor:
    f = dense_nce if dense else nce
    deviation, mean = torch.std_mean(t, 0)
    rough = t * (1 + noise[0] * deviation) + mean + noise[1] * deviation
    v = 1 + (rough - t).square().mean(1)
    return (W * (f(q, rough, y) / v + v.log() / 2) + (1 - W) * f(q, t, y)).mean()


def run(sheet: Sheet) -> None:
    data, draw = digits(797, sheet.seed), generator(sheet.seed)
    x, y, x_test = data.x.double(), data.y, data.x_test.double()
    means = vecbank.segment_sum(x, y, 10) / torch.bincount(y)[:, None]
    plain = [torch.eye(64).double(), means]

    def compose(rows: Tensor, of: Tensor, maps: list[Tensor]) -> Tensor:
        return rows @ maps[0] + maps[1][(of + 1) % 10] - means[of]

    def share(q: Tensor, gallery: Tensor, metric: str) -> float:
        return accuracy(y[vecbank.topk(q, gallery, RANKS, metric).indices], (data.y_test[:, None] + 1) % 10)

    composed = compose(x_test, data.y_test, plain)
    shares = [share(q, x, "l2") for q in (composed, x_test)]
    near = abs(shares[0] - 0.779) < 0.03 and abs(shares[1] - 0.03) < 0.015
    sheet.check("share of the wanted class in the first 50: composed, x alone", shares, "0.779, 0.030", near)

    optimiser = torch.optim.Adam(maps := [m.clone().requires_grad_() for m in plain], lr=3e-3)
    for _ in range(STEPS):
        chosen = torch.randint(len(x), (BATCH,), generator=draw)
        targets = torch.rand(BATCH, len(x), generator=draw).masked_fill((y[chosen, None] + 1) % 10 != y, -1).argmax(1)
        noise = torch.randn(2, BATCH, 64, generator=draw, dtype=torch.float64)
        batch = compose(x[chosen], y[chosen], maps), x[targets] @ maps[0], noise, y[chosen]
        optimiser.zero_grad()
        loss(*batch).backward(retain_graph=True)
        optimiser.step()
    slopes = [torch.autograd.grad(loss(*batch, dense=d), maps, retain_graph=True) for d in (False, True)]
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*slopes, strict=True))
    sheet.check("gradients of the loss less those of a dense one", error, "below 1e-10", error < 1e-10)
    after = [share(compose(x_test, data.y_test, m), x @ m[0], "cosine") for m in (plain, maps)]
    sheet.check("share by cosine, before and after learning", after, "rises by 0.1", after[1] > after[0] + 0.1)
    found = x[vecbank.topk(composed[:5], x, 6, "l2").indices]
    images = torch.cat([torch.stack([x_test, composed], 1)[:5], found], 1).view(5, 8, 8, 8)
    sheet.images("Digits, as the next class, and what is found.", images, ["x", "query", *map(str, range(1, 7))])
