"""FaceNet: faces are unit vectors of 128 bytes; squared L2 verifies them, and semi-hard negatives train them.

Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering", CVPR 2015.

    two faces are of one person where |f_i - f_j|^2 < threshold
    loss = mean max(0, |f_a - f_p|^2 - |f_a - f_n|^2 + margin), n: the nearest of other persons beyond p

Here the faces are digits, and f is a linear map of random nonlinear features.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank
from vecbank import Allowed

from ._data import digits, generator, random_features, unit
from ._sheet import Sheet

TITLE = "FaceNet"
FAMILY = "top-k search"


def semi_hard(f: Tensor, y: Tensor, anchor: Tensor, positive: Tensor) -> Tensor:
    """The row of another class that is nearest to each anchor beyond its positive; -1 where there is none."""
    a, other = f[anchor], Allowed.other(y[anchor], y)
    to_positive = vecbank.score_pairs(a, f, positive.unsqueeze(-1), "sqeuclidean").squeeze(-1)
    nearer = vecbank.radius_count(a, f, to_positive, "sqeuclidean", allowed=other).unsqueeze(-1)
    ranked = vecbank.topk(a, f, int(nearer.max()) + 1, "sqeuclidean", allowed=other).indices
    return ranked.gather(-1, nearer).squeeze(-1)


def by_brute_force(f: Tensor, y: Tensor, anchor: Tensor, positive: Tensor) -> Tensor:
    squares = (f[anchor].unsqueeze(1) - f).square().sum(-1)
    within = squares <= squares.gather(-1, positive.unsqueeze(-1))
    found = squares.masked_fill(within | (y[anchor].unsqueeze(1) == y), torch.inf).min(-1)
    return torch.where(found.values.isinf(), -1, found.indices)


def auroc(f: Tensor, y: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    i, j = torch.triu_indices(len(f), len(f), 1)
    return float(roc_auc_score(y[i] == y[j], -vecbank.project(f, f, "sqeuclidean")[i, j]))


def run(sheet: Sheet) -> None:
    data = digits(seed=sheet.seed)
    train, f = (unit(random_features(x - data.x.mean(0), 128, sheet.seed)) for x in (data.x, data.x_test))
    step = float(f.abs().max()) / 127
    stored = vecbank.codes.round_quantize(f, step).codes.to(torch.int8)  # 128 bytes a face
    in_float, in_bytes = auroc(f, data.y_test), auroc(stored * step, data.y_test)
    sheet.check("AUROC of verification, in float", in_float, 0.8857, abs(in_float - 0.8857) < 0.03)
    sheet.check("AUROC in 128 bytes, by that in float", in_bytes, in_float, abs(in_bytes - in_float) < 1e-3)
    squares = [vecbank.project(v, v, "sqeuclidean") for v in (f, stored * step)]
    error = float((squares[0] - squares[1]).abs().max())
    sheet.check("largest error of a squared distance in bytes", error, "0.013; below 0.02", error < 0.02)

    weight, draw, equal = torch.eye(128), generator(sheet.seed), []
    for _ in range(12):
        batch, weight = torch.randperm(len(train), generator=draw)[:60], weight.detach().requires_grad_()
        y, e = data.y[batch], unit(train[batch] @ weight)
        anchor, positive = ((y.unsqueeze(1) == y) & ~torch.eye(len(y), dtype=torch.bool)).nonzero().unbind(-1)
        exact = e.detach().double()  # no distance is rounded before it is compared
        negative = semi_hard(exact, y, anchor, positive)
        equal.append(torch.equal(negative, by_brute_force(exact, y, anchor, positive)))
        near, far = vecbank.score_pairs(e[anchor], e, torch.stack([positive, negative], -1), "sqeuclidean").unbind(-1)
        (gradient,) = torch.autograd.grad((near - far + 0.2).clamp_min(0).mean(), weight)
        weight = weight - 3 * gradient
    sheet.check("semi-hard negatives of 12 batches: equal to brute force", all(equal), "yes", all(equal))
    trained = auroc(unit(f @ weight.detach()), data.y_test)
    sheet.check("AUROC after 12 steps on triplets with them", trained, f"above {in_float:.3f}", trained > in_float)
