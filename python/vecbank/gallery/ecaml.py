"""ECAML: a metric is learned on some classes, with a term that confuses pairs of them, and is used on unseen classes.

Chen and Deng, "Energy Confused Adversarial Metric Learning for Zero-Shot Image Retrieval and Clustering", AAAI 2019.

    loss = metric loss + weight * mean_{i in class a, j in class b} |x_i - x_j|^2
    that mean = |mean_a - mean_b|^2 + variance_a + variance_b

The metric is a linear map here, learned by batch-hard triplets. Recall@1 and the NMI of k-means measure it.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank
from vecbank import Allowed

from ._data import accuracy, digits, generator, normal
from ._sheet import Sheet

TITLE = "ECAML"
FAMILY = "top-k search"


def metric_loss(e: Tensor, y: Tensor) -> Tensor:
    far = vecbank.topk(e, e, 1, "l2", allowed=Allowed.same(y, y), order="worst").values.squeeze(-1)
    near = vecbank.nearest(e, e, "l2", allowed=Allowed.other(y, y)).values
    return (far - near + 0.5).clamp_min(0).mean()


def confusion(a: Tensor, b: Tensor) -> Tensor:
    return vecbank.project(a, b, "sqeuclidean").mean()


def learned(x: Tensor, y: Tensor, weight: float, seed: int) -> Tensor:
    metric, draw = (normal(64, 32, seed=seed) / 8).requires_grad_(), generator(seed)
    for _ in range(30):
        batch, (a, b) = torch.randint(len(x), (64,), generator=draw), torch.randperm(5, generator=draw)[:2]
        e, of_e = x[batch] @ metric, y[batch]
        loss = metric_loss(e, of_e) + weight * confusion(e[of_e == a], e[of_e == b])
        metric = (metric - 0.03 * torch.autograd.grad(loss, metric)[0]).detach().requires_grad_()
    return metric.detach()


def mutual_information(codes: Tensor, y: Tensor) -> float:
    """Normalised by the mean of both entropies."""
    joint = vecbank.segment_sum(torch.nn.functional.one_hot(y).double(), codes, int(codes.max()) + 1) / len(y)
    of_codes, of_y, of_both = (-torch.special.xlogy(p, p).sum() for p in (joint.sum(1), joint.sum(0), joint))
    return float(2 * (of_codes + of_y - of_both) / (of_codes + of_y))


def run(sheet: Sheet) -> None:
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.neighbors import NearestNeighbors

    data = digits(0, sheet.seed)
    seen, x, y = data.y < 5, data.x[data.y >= 5], data.y[data.y >= 5] - 5
    e, plain = ((x @ learned(data.x[seen], data.y[seen], w, sheet.seed)).double() for w in (0.3, 0.0))
    recall = accuracy(y[vecbank.nearest(e, e, allowed=Allowed.not_self()).indices], y)
    listed = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(e.numpy()).kneighbors(return_distance=False)
    theirs = accuracy(y[listed[:, 0]], y)
    sheet.check("Recall@1 on unseen classes, by scikit-learn", recall, theirs, recall == theirs)
    start = vecbank.kmeans(e, 5, iterations=0, generator=sheet.seed).centroids
    ours = mutual_information(vecbank.kmeans(e, 5, init=start, tolerance=0).codes, y)
    labels = KMeans(5, init=start.numpy(), n_init=1, tol=0).fit_predict(e.numpy())
    nmi = float(normalized_mutual_info_score(y.numpy(), labels))
    sheet.check("NMI of k-means on them from one start, by scikit-learn", ours, nmi, abs(ours - nmi) < 1e-9)
    a, b = e[y == 0], e[y == 1]
    mean = float(confusion(a, b))
    closed = float((a.mean(0) - b.mean(0)).square().sum() + (a.var(0, correction=0) + b.var(0, correction=0)).sum())
    sheet.check("mean distance of two classes, in closed form", mean, closed, abs(mean / closed - 1) < 1e-12)
    best = [mutual_information(vecbank.kmeans(v, 5, restarts=5, generator=sheet.seed).codes, y) for v in (e, plain)]
    sheet.note(f"NMI with the term {best[0]:.2f}, without it {best[1]:.2f}: a linear map is no test of its gain.")
