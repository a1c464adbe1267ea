"""Gaussian-AD: a Gaussian of normal images, and the Mahalanobis distance to its mean as the score of an anomaly.

Rippel et al., "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly Detection", ICPR 2020.

    m(x)^2 = (x - mean)^T covariance^-1 (x - mean), of a covariance that was shrunk (Ledoit-Wolf)
    score = sum of m over levels; anomaly where m^2 > the quantile 1 - p of chi-square with d degrees of freedom

Each class of digits is normal in turn: half of its images are fitted, and the other half is told from all other digits.
The levels are the pixels and means of 2 x 2 and 4 x 4 of them. A Bank of one row, the mean, gives m. It is also the
length of the principal components divided by their deviations, of which a variant keeps those of low variance alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vecbank

from ._data import digits, normal
from ._sheet import Sheet

TITLE = "Gaussian-AD"
FAMILY = "other metrics"
P, KEPT = 0.05, (8, 16, 32, 48, 64)  # the stated share of false alarms; numbers of components
REFERENCE = {"m": 0.9966, "Euclid to the mean": 0.9664, "nearest image": 0.9972}


def gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (1, d), and the shrunk covariance (d, d)."""
    from sklearn.covariance import ledoit_wolf

    return x.mean(0, keepdim=True), torch.from_numpy(ledoit_wolf(x.double().numpy())[0])


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure
    from scipy.stats import chi2
    from sklearn.metrics import roc_auc_score

    x, y = digits(0, sheet.seed)[:2]
    levels = [nn.functional.avg_pool2d(x.view(-1, 1, 8, 8), side).flatten(1) for side in (1, 2, 4)]
    limit, errors, aurocs, laws = chi2.isf(P, 64), [], [], []
    for c in range(10):
        known, held = (y == c).nonzero().flatten().tensor_split(2)
        test, n = torch.cat([held, (y != c).nonzero().flatten()]), len(held)
        m, *coarse = (vecbank.whiten(*gaussian(v[known])).project(v[test]).squeeze(1) for v in levels)
        anomaly, (mean, covariance) = torch.arange(len(test)) >= n, gaussian(x[known])
        apart, (variances, axes) = (x[test] - mean).double(), torch.linalg.eigh(covariance)  # ascending
        form, parts = (apart @ torch.linalg.inv(covariance) * apart).sum(1), (apart @ axes).square() / variances
        errors.append(float((m.double().square() / form - 1).abs().max()))
        plain = vecbank.project(x[test], mean, "l2").squeeze(1), vecbank.nearest(x[test], x[known]).values
        scores = m, *plain, sum(coarse, m), *parts.cumsum(1).mT[[k - 1 for k in KEPT]]
        aurocs.append([roc_auc_score(anomaly, score) for score in scores])
        drawn = mean + normal(2000, 64, seed=10 * sheet.seed + c) @ torch.linalg.cholesky(covariance).float().mT
        exact, few = (vecbank.whiten(*g).project(drawn[n:]) for g in ((mean, covariance), gaussian(drawn[:n])))
        laws.append([[float((s > limit).float().mean()), float(s.std())] for s in (exact**2, m[:n] ** 2, few**2)])

    auroc, (alarm, spread) = torch.tensor(aurocs).mean(0).tolist(), torch.tensor(laws).mean(0).mT.tolist()
    for reached, (what, wanted) in zip(auroc, REFERENCE.items(), strict=False):
        sheet.check(f"mean AUROC: {what}", f"{reached:.4f}", f"{wanted:.4f}", abs(reached - wanted) < 0.01)
    for i, what in ((3, "m summed over 3 levels"), (4 + KEPT.index(48), "48 components of low variance")):
        sheet.check(f"mean AUROC: {what}", f"{auroc[i]:.4f}", "near that of m", abs(auroc[i] - auroc[0]) < 0.006)
    sheet.check("m^2 against the quadratic form, relative", max(errors), "below 1e-5", max(errors) < 1e-5)
    holds = abs(alarm[0] - P) < 0.006 < alarm[1] - P
    sheet.check("false alarms, stated 0.05: Gaussian images, digits", alarm[:2], "0.050, more", holds)
    holds = abs(spread[0] - 128**0.5) < 1 and spread[1] > 20
    sheet.check("deviation of m^2, of the same", spread[:2], "11.314, above 20: not Gaussian", holds)
    sheet.check("that of Gaussian images, after as small a fit", spread[2], "between them", 12 < spread[2] < 18)

    left, right = (plot := Figure(figsize=(7, 2.8))).subplots(1, 2)
    left.plot(KEPT, auroc[4:], "o-")
    left.set(xlabel="components, of the lowest variance on", ylabel="mean AUROC")
    for name, values in (("normal", m[:n]), ("anomaly", m[n:])):  # of the last class
        right.hist(values.numpy() ** 2, range(0, 400, 8), density=True, alpha=0.6, label=name)
    right.plot(range(400), chi2.pdf(range(400), 64), "k", label="chi-square")
    right.set(xlabel="m^2", yticks=[])
    right.legend()
    sheet.picture("Components that are kept. The squares of class 9, and their law if digits were Gaussian.", plot)
