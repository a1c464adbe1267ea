"""Relative representations, variants: other forms of the similarities, and of what is made of them.

Moschella et al., "Relative representations enable zero-shot latent space communication", ICLR 2023; its public code.

    inner products    x_i . a_j / sqrt(d)
    least squares     the shortest c that minimises |x_i - sum_j c_j a_j|
    class means       mean of R[i, j] over the anchors j of a class
    rounded           0.1 * round(R / 0.1), through which the gradient passes as if it were R
    attention         sum_j softmax(R[i])_j v_j, where v are the anchors, or a table that is trained
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vecbank

from ._data import accuracy, digits, generator, unit
from ._sheet import Sheet
from .relative_representations import latents, transfer

TITLE = "Relative representations: variants"
FAMILY = "anchor projection"


def attend(x: Tensor, anchors: Tensor, values: Tensor) -> Tensor:
    similarity, order = vecbank.topk(x, anchors, len(anchors), "cosine")
    return vecbank.lookup(order, values, similarity.softmax(-1), reduce="sum")


def forms(x: Tensor, a: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Every form by the library, and in plain torch."""
    r, plain, root = vecbank.project(x, a), unit(x) @ unit(a).mT, x.shape[-1] ** 0.5
    shortest = torch.linalg.lstsq(a.mT, x.mT, driver="gelsd").solution.mT
    means = torch.stack([plain[:, labels == c].mean(-1) for c in range(10)], -1)
    rounded = plain + ((plain / 0.1).round() * 0.1 - plain).detach()
    return {
        "inner products": (vecbank.project(x / root, a, "dot"), x @ a.mT / root),
        "least squares": (vecbank.project(x, torch.linalg.pinv(a).mT, "dot"), shortest),
        "class means": (vecbank.segment_sum(r.mT, labels, 10).mT / labels.bincount(), means),
        "rounded": (vecbank.codes.round_quantize(r, 0.1).quantized, rounded),
        "attention to anchors": (attend(x, a, a), plain.softmax(-1) @ a),
    }


def run(sheet: Sheet) -> None:
    data = digits(597, sheet.seed)
    spaces = [latents(data, 2 * sheet.seed + i, 200) for i in (1, 2)]
    chosen = vecbank.anchors.stratified(data.y, 128, generator=sheet.seed)
    anchors, labels = [train[chosen] for train, _ in spaces], data.y[chosen]

    errors, leaves = [], [t.double().requires_grad_() for t in (spaces[0][1][:20], anchors[0])]
    for pair in forms(leaves[0], leaves[1], labels).values():
        grads = (torch.autograd.grad(v.square().sum(), leaves, retain_graph=True) for v in pair)
        for ours, plain in (pair, *zip(*grads, strict=True)):
            errors.append(float((ours - plain).detach().norm() / plain.detach().norm()))
    sheet.check("largest error of values and gradients", max(errors), "below 1e-10, relative", max(errors) < 1e-10)

    rows = [[forms(part, a, labels) for part in space] for space, a in zip(spaces, anchors, strict=True)]
    for name in rows[0][0]:
        own, stitched = transfer(data, *((train[name][0], test[name][0]) for train, test in rows))
        works = name != "attention to anchors"  # which lies in the encoder's own space, and no other encoder shares it
        reference = "0.15 lost at most" if works else "not comparable: 0.15 lost or more"
        sheet.check(f"{name}: own encoder, stitched", [own, stitched], reference, (own - stitched < 0.15) == works)

    table = nn.Parameter(torch.zeros(len(chosen), 10))  # the score of every class for every anchor
    optimiser = torch.optim.Adam([table], lr=1)
    for batch in torch.randint(len(data.x), (100, 256), generator=generator(sheet.seed)):
        optimiser.zero_grad()
        nn.functional.cross_entropy(attend(spaces[0][0][batch], anchors[0], table), data.y[batch]).backward()
        optimiser.step()
    classes = [attend(test, a, table).argmax(-1) for (_, test), a in zip(spaces, anchors, strict=True)]
    own, stitched = (accuracy(found, data.y_test) for found in classes)
    sheet.check("attention to a trained table", [own, stitched], "0.15 lost at most", own - stitched < 0.15)
