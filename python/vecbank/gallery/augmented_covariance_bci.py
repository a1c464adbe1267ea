"""Augmented covariance BCI: signals are told apart by covariance matrices of the channels and of delayed copies.

Carrara and Papadopoulo, "Classification of BCI-EEG based on augmented covariance matrix", arXiv 2023.

    C = covariance of (x(t), x(t + lag), ...), symmetric and positive definite; class = argmin_k delta(C, M_k)
    affine-invariant: delta(C, M)^2 = sum log^2 eig(C M^-1)
    log-Euclidean: |log C - log M|, which is l2 between the vectors of `log_euclidean`

Trials are synthetic: rhythms in noise. M_k has the mean logarithm of its class, not the geometric mean of the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import vecbank

from ._data import accuracy, generator, normal, rotation
from ._sheet import Sheet

TITLE = "Augmented covariance BCI"
FAMILY = "other metrics"
CHANNELS, TIMES, TRIALS, LAG, COPIES = 3, 256, 240, 3, (1, 2, 4)


def signals(y: Tensor, seed: int) -> Tensor:
    """(trials, channels, times), 128 a second: 10 or 14 Hz, and 20 Hz."""
    draw = generator(seed)
    hertz = torch.stack([10 + 4 * y, 20 + 0 * y], 1) + torch.randn(TRIALS, 2, generator=draw)
    turns = hertz.unsqueeze(-1) * torch.arange(TIMES) / 128 + torch.rand(TRIALS, 2, 1, generator=draw)
    mixture = normal(CHANNELS, 2, seed=seed + 1) + 0.2 * torch.randn(TRIALS, CHANNELS, 2, generator=draw)
    return mixture @ torch.sin(2 * math.pi * turns) + torch.randn(TRIALS, CHANNELS, TIMES, generator=draw)


def covariances(x: Tensor, copies: int) -> Tensor:
    x = torch.cat([x[..., i * LAG : TIMES - (copies - 1 - i) * LAG] for i in range(copies)], 1)
    return torch.stack([trial.cov() for trial in x.double()])


def mapped(c: Tensor, f: str) -> Tensor:
    values, vectors = torch.linalg.eigh(c)
    return (vectors * getattr(values, f)().unsqueeze(-2)) @ vectors.mT


def delta(c: Tensor, m: Tensor) -> Tensor:
    back = mapped(m, "rsqrt")  # back C back has the eigenvalues of C M^-1
    return torch.linalg.eigvalsh(back @ c @ back).log().norm(dim=-1)


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure
    from sklearn.linear_model import LogisticRegression

    y, half, rates = torch.arange(TRIALS) % 2, TRIALS // 2, []
    for c in (every := [covariances(signals(y, sheet.seed), copies) for copies in COPIES]):
        v, logs = vecbank.log_euclidean(c), mapped(c, "log")
        means, centres = (t[:half].unflatten(0, (-1, 2)).mean(0) for t in (v, logs))  # classes alternate
        by_delta = accuracy(delta(c[half:].unsqueeze(1), mapped(centres, "exp")).argmin(1), y[half:])
        linear = LogisticRegression().fit(v[:half], y[:half]).score(v[half:], y[half:])
        rates.append([accuracy(vecbank.nearest(v[half:], means, "l2").indices, y[half:]), by_delta, linear])
    (plain, *_), (near, *others), *_ = rates
    sheet.check("accuracy: channels alone, with a delayed copy", [plain, near], "0.5, above", plain < 0.65 < near)
    sheet.check("with it: delta, linear classifier", others, "alike", max(abs(rate - near) for rate in others) < 0.12)
    a, b = every[1][:50].unsqueeze(1), every[1][half:]
    q = rotation(6, sheet.seed).double() * torch.linspace(0.5, 2, 6)
    error = float((delta(q @ a @ q.mT, q @ b @ q.mT) - delta(a, b)).abs().max())
    sheet.check("delta of Q C Q^T and Q M Q^T less that of C and M", error, "6e-15; below 1e-12", error < 1e-12)
    change = float(((q @ (a - b) @ q.mT).norm(dim=(2, 3)) / (a - b).norm(dim=(2, 3)) - 1).abs().mean())
    sheet.check("relative change of |C - M|, mean", change, "above 0.1", change > 0.1)
    d = vecbank.project(vecbank.log_euclidean(every[1][:50]), vecbank.log_euclidean(b), "l2")
    error = float((d - (mapped(a, "log") - mapped(b, "log")).norm(dim=(2, 3))).abs().max())
    sheet.check("l2 of vectors less |log C - log M|", error, "below 1e-12", error < 1e-12)
    axes = (plot := Figure(figsize=(4, 2.8))).subplots(subplot_kw={"xlabel": "copies", "xticks": COPIES})
    axes.plot(COPIES, rates, "o-", label=["log-Euclidean", "delta", "linear classifier"])
    axes.legend()
    sheet.picture("Accuracy: delayed copies see more of the spectrum.", plot)
