"""SF(DA)2: a source-trained model adapts to a target without labels, by its neighbours in a memory bank.

Hwang, Lee, Shin and Yoon, "SF(DA)^2: Source-free Domain Adaptation Through the Lens of Data Augmentation", ICLR 2024.

    loss = -mean_i p_i . sum_{j in N(i)} s_j  +  w mean_i sum_{l != i in the batch} p_i . p_l

N(i): the 5 rows of the bank of normalised target features with the largest dot product with f_i, without i itself;
p: softmax predictions of the batch, s: those stored beside the bank. In each step the batch is written in place before
the search. The published loss has more terms, by class-wise covariances, which are left out here, and w is 1. The
source is digits, and the target is other digits, turned by 15 degrees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import vecbank

from ._data import accuracy, digits, fit, generator, mlp, unit
from ._sheet import Sheet

TITLE = "SF(DA)2"
FAMILY = "top-k search"
K, PASSES, ANGLE = 5, 6, math.radians(15)


def turned(x: Tensor) -> Tensor:
    """8 x 8 images, turned."""
    matrix = torch.tensor([[math.cos(ANGLE), -math.sin(ANGLE), 0.0], [math.sin(ANGLE), math.cos(ANGLE), 0.0]])
    images = x.view(-1, 1, 8, 8)
    grid = nn.functional.affine_grid(matrix.expand(len(x), 2, 3), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False).view(-1, 64)


def run(sheet: Sheet) -> None:
    data = digits(897, sheet.seed)
    x, y = turned(data.x_test), data.y_test
    encoder, head = mlp(64, 128, 64, seed=sheet.seed), mlp(64, 10, seed=sheet.seed)
    model = fit(nn.Sequential(encoder, head), data.x, data.y, seed=sheet.seed)
    with torch.no_grad():
        before = accuracy(model(x).argmax(1), y)
        bank = vecbank.Bank(unit(encoder(x)), "dot")
        scores = model(x).softmax(1)

    plain = bank.vectors.clone()  # the same features once more, for the brute force
    asked = own = equal = stale = 0
    optimiser, draw = torch.optim.Adam(model.parameters(), 1e-3), generator(sheet.seed)
    for batch in (b for _ in range(PASSES) for b in torch.randperm(len(x), generator=draw).split(64)):
        z = encoder(x[batch])
        f, p = unit(z.detach()), head(z).softmax(1)
        not_self = vecbank.Allowed.exclude(batch[:, None])
        old = bank.topk(f, K, allowed=not_self).indices
        bank.update_(batch, f)
        scores[batch] = p.detach()
        near = bank.topk(f, K, allowed=not_self).indices
        pull = (p * vecbank.lookup(near, scores, reduce="sum")).sum(1).mean()
        push = (p @ p.T).fill_diagonal_(0).sum(1).mean()
        optimiser.zero_grad()
        (push - pull).backward()
        optimiser.step()
        plain[batch] = f
        brute = (f.double() @ plain.double().T).scatter(1, batch[:, None], -torch.inf).topk(K).indices
        asked += near.numel()
        own += int((near == batch[:, None]).sum())
        equal += int((near == brute).sum())
        stale += int((old != near).sum())

    after = accuracy(model(x).argmax(1), y)
    sheet.check("accuracy on the target, before and after", [before, after], [0.851, 0.893], after > before)
    sheet.check("neighbours that are the query itself", own, 0, own == 0)
    sheet.check("neighbours that are those of brute force on the rows as written", equal, asked, equal == asked)
    sheet.check("neighbours that a search before the write gets wrong", stale, "some", stale > 0)
