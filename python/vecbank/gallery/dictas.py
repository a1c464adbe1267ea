"""DictAS: the patches of a few normal images are a dictionary, and what it cannot reproduce is an anomaly.

Qu et al., "DictAS: A Framework for Class-Generalizable Few-Shot Anomaly Segmentation via Dictionary Lookup", ICCV 2025.

    W = sparsemax(Q K^T / sqrt(d)), retrieved = W V, anomaly = 1 - cos(query, retrieved)

Keys and values are all patches of all normal images: `attend` with the weight "sparsemax", which keeps few of them.
Here an image is a grating with noise (so much that about as many keys are kept as in the reference), a patch a window
of it, and in an anomaly the grating runs another way. Q and K may be mapped by a learned matrix, which serves others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import vecbank

from ._data import generator, normal, unit
from ._sheet import Sheet

TITLE = "DictAS"
FAMILY = "anchor projection"


def grating(angle: Tensor, wave: float, noise: float, draw: torch.Generator, step: int = 3) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(*map(torch.arange, angle.shape), indexing="ij")
    phase = 2 * math.pi * ((x * angle.cos() + y * angle.sin()) / wave + torch.rand((), generator=draw))
    image = phase.sin() + noise * torch.randn(angle.shape, generator=draw)
    p = image.double().unfold(0, 8, step).unfold(1, 8, step).reshape(-1, 64)
    return image, unit(p - p.mean(1, keepdim=True)) * 8


def anomaly(q: Tensor, k: Tensor, w: Tensor, weight: str = "sparsemax") -> Tensor:
    return 1 - torch.cosine_similarity(q, vecbank.attend(q @ w, k @ w, k, beta=1 / 8, weight=weight))


def auroc(scores: Tensor, bad: Tensor) -> float:
    return float((scores[bad].unsqueeze(1) > scores[~bad]).double().mean())


def task(draw: torch.Generator, count: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:  # q, k, which are anomalies
    a, b, wave = torch.rand(3, generator=draw).tolist()
    one, other = (torch.full((48, 48), t * math.pi) for t in (a, a + 0.25 + b / 2))
    *k, good, bad = (grating(t, 4 + 4 * wave, noise, draw)[1] for t in (one, one, one, one, one, other))
    return torch.cat([good, bad]), torch.cat(k)[:count], torch.arange(2 * len(bad)) >= len(bad)


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    draw, w, one = generator(sheet.seed), torch.eye(64).double(), torch.eye(600).double()
    (q, k, _), _ = tasks = task(draw, 600, 0.7), task(draw, 600, 1.2)
    weights, z = vecbank.attend(q, k, one, beta=1 / 8, weight="sparsemax"), q @ k.mT / 8
    sheet.check("keys kept, of 600", kept := float((weights > 0).sum(1).double().mean()), 5.3, abs(kept - 5.3) < 0.7)
    tau = ((z.sort(descending=True).values.cumsum(1) - 1) / torch.arange(1, 601)).amax(1, keepdim=True)
    errors = [float(e.abs().max()) for e in (weights.sum(1) - 1, weights - (z - tau).clamp_min(0))]
    sheet.check("sum of weights less 1, weights less those by a sort", errors, "below 1e-12", max(errors) < 1e-12)
    same = torch.autograd.gradcheck(anomaly, [t.clone().requires_grad_() for t in (q, k, w)], fast_mode=True)
    sheet.check("gradients to queries, keys and the map, by finite differences", same, "equal", same)
    a = [auroc(anomaly(q, k, w, how), bad) for q, k, bad in tasks for how in ("sparsemax", "softmax")]
    sheet.check("AUROC: sparsemax, softmax; with more noise", a, "1; is higher", a[0] > 0.995 and a[2] > a[3] + 0.1)
    w, areas = (normal(64, 8, seed=sheet.seed) / 3).double().requires_grad_(), []
    for q, k, bad in (task(draw, 150, 1.2) for _ in range(100)):  # each is new, and so the next one is a test
        areas.append(auroc(scores := anomaly(q, k, w), bad))
        loss = nn.functional.softplus(10 * (scores[~bad].unsqueeze(1) - scores[bad])).mean()
        w = (w - torch.autograd.grad(loss, w)[0] / 2).detach().requires_grad_()
    ends = [sum(areas[:20]) / 20, sum(areas[80:]) / 20]
    sheet.check("AUROC on new textures, learned map to 8, first and last 20", ends, "rises", ends[1] > ends[0] + 0.01)
    k = torch.cat([grating(angle := torch.full((64, 64), 0.5), 6, 0.8, draw)[1] for _ in range(4)])
    angle[20:40, 30:52] = 1.7
    image, q = grating(angle, 6, 0.8, draw, 1)
    area = auroc(found := anomaly(q, k, torch.eye(64).double()).view(57, 57), angle[4:61, 4:61] > 1)
    sheet.check("AUROC of the windows of an image, by their centres", area, "above 0.95", area > 0.95)
    left, right = (plot := Figure(figsize=(5, 2.6), layout="constrained")).subplots(1, 2)
    left.imshow(image[4:61, 4:61])
    right.imshow(found)
    sheet.picture("An image with an anomaly, and the anomaly by the patches of four normal images.", plot)
