"""OCA: new features are turned by an orthogonal map, so that their first dimensions are comparable with an old gallery.

Ricci et al., "Backward-Compatible Aligned Representations via an Orthogonal Transformation Layer", 2024.

    new query, old gallery: |(x Q)[:d_old] - b_old|        new query, new gallery: |x Q - b Q|

with Q orthogonal, learned such that the first d_old coordinates of x Q are the old features. Q leaves all dot products
as they are, and so it changes no search among new features. Here PCA with 12 dimensions is the old model, and PCA with
32 dimensions, turned at random, is the new one. A singular value decomposition gives Q.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import accuracy, digits, normal
from ._sheet import Sheet

TITLE = "OCA"
FAMILY = "top-k search"
OLD, NEW = 12, 32


def alignment(new: Tensor, old: Tensor) -> Tensor:
    """The orthogonal Q that brings the first coordinates of new Q closest to old (orthogonal Procrustes)."""
    u, _, vt = torch.linalg.svd(new.mT @ old)
    return torch.cat([u[:, : old.shape[1]] @ vt, u[:, old.shape[1] :]], 1)


def run(sheet: Sheet) -> None:
    data = digits(597, sheet.seed)
    x, x_test = (part.double() - data.x.double().mean(0) for part in (data.x, data.x_test))
    axes = torch.linalg.svd(x, full_matrices=False).Vh.mT
    turn, _ = torch.linalg.qr(normal(NEW, NEW, seed=sheet.seed).double())
    old_features, old_queries = x @ axes[:, :OLD], x_test @ axes[:, :OLD]
    features, queries = x @ axes[:, :NEW] @ turn, x_test @ axes[:, :NEW] @ turn

    q = alignment(features, old_features)
    old, new = vecbank.Bank(old_features, "l2"), vecbank.Bank(features @ q, "l2")  # nobody indexes the old one again
    first = new.dims(slice(0, OLD))  # what an old query is compared with in the new gallery

    def top1(bank: vecbank.Bank, x: Tensor) -> float:
        return accuracy(data.y[bank.nearest(x).indices], data.y_test)

    of_old, of_new = top1(old, old_queries), top1(new, queries @ q)
    sheet.check("top-1, old query in the old gallery", of_old, 0.972, of_old > 0.972 - 0.02)
    unaligned = top1(old, queries[:, :OLD])
    sheet.check("top-1, new query in the old gallery, without Q", unaligned, 0.044, unaligned < 0.3)
    across = top1(old, (queries @ q)[:, :OLD])
    sheet.check("top-1, new query in the old gallery", across, 0.972, abs(across - of_old) < 0.005)
    backward = top1(first, old_queries)
    sheet.check(
        "top-1, old query in the new gallery", backward, "as in the old gallery", abs(backward - of_old) < 0.005
    )
    sheet.check("top-1, new query in the new gallery", of_new, 0.981, of_new > max(of_old, 0.981 - 0.02))

    before, after = vecbank.project(queries, features, "dot"), vecbank.project(queries @ q, new.vectors, "dot")
    change = float((before - after).abs().max())
    sheet.check("largest change of a dot product by Q", change, "below 1e-9", change < 1e-9)
    same = torch.equal(vecbank.topk(queries, features, 10, "l2").indices, new.topk(queries @ q, 10).indices)
    sheet.check("the ten nearest of new queries are the same without Q", same, "yes", same)
