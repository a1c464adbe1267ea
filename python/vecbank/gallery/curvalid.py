"""CurvaLID: adversarial prompts are told from others by their intrinsic dimension and by how their words turn.

Yung et al., "CurvaLID: Geometrically-guided Adversarial Prompt Detection", 2025.

    LID(x) = -1 / mean_{i < k} log(r_i / r_k), r_1 <= ... <= r_k the distances to the k nearest other prompts (`topk`)
    curvature at a word = angle between the step to it and the step from it / their mean length

Prompts are synthetic here: benign ones lie in 3 of 64 dimensions, adversarial ones in 10. The words of a prompt are a
walk from it, and the mean of its words is its vector. A step of a benign prompt keeps a part of the step before, one
of an adversarial prompt does not. The lengths of steps differ from prompt to prompt, and blur the curvature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._data import generator, lid, normal, rotation, unit
from ._sheet import Sheet

TITLE = "CurvaLID"
FAMILY = "similarity kernel statistics"
D, PROMPTS, WORDS = 64, 250, 30
CUBES = {2: 2.00, 5: 4.57, 10: 8.24, 20: 14.45}  # true dimension -> LID that was measured, k = 50, 4000 points


def curvature(path: Tensor) -> Tensor:
    """Of a path of words (..., words, d), at all words but the first and the last."""
    steps = path.diff(dim=-2)
    a, b = unit(steps[..., :-1, :]), unit(steps[..., 1:, :])
    angle = 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))  # also exact where it is small
    lengths = steps.norm(dim=-1)
    return 2 * angle / (lengths[..., :-1] + lengths[..., 1:])


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    means = [float(lid(torch.rand(4000, d, generator=generator(sheet.seed + d))).mean()) for d in CUBES]
    near = all(abs(mean / level - 1) < 0.03 for mean, level in zip(means, CUBES.values(), strict=True))
    sheet.check("LID of uniform cubes of 2, 5, 10 and 20 dimensions", means, list(CUBES.values()), near)

    turn, t = rotation(D, sheet.seed).double(), torch.linspace(0, 2 * math.pi, 200).double().unsqueeze(-1)
    bend = float(curvature(t * turn[0]).max())
    sheet.check("largest curvature of a straight line", bend, "below 1e-9", bend < 1e-9)
    circle, radii = torch.cat([t.cos(), t.sin()], 1) @ turn[:2], torch.tensor([0.5, 2, 8]).double()
    of_circles = curvature(radii.view(-1, 1, 1) * circle).mean(-1)
    near = bool(((of_circles * radii - 1).abs() < 1e-3).all())
    sheet.check("curvature of circles of radius 0.5, 2 and 8", of_circles.tolist(), (1 / radii).tolist(), near)
    noise, level = float(curvature(normal(10_000, D, seed=sheet.seed)).mean()), 2 / 3 * math.pi / math.sqrt(2 * D)
    sheet.check("curvature of noise, which turns by 120 degrees", noise, level, abs(noise / level - 1) < 0.02)

    draw, adversarial = generator(sheet.seed), torch.arange(2 * PROMPTS) >= PROMPTS
    flat = [normal(PROMPTS, d, seed=sheet.seed + d) @ rotation(D, sheet.seed + 20 + d)[:d] for d in (3, 10)]
    of_lid = lid(torch.cat(flat), 20)
    alone = float(roc_auc_score(adversarial, of_lid))
    sheet.check("AUROC of LID, prompts in 3 and 10 dimensions", alone, 0.995, abs(alone - 0.995) < 0.01)

    steps = torch.randn(2 * PROMPTS, WORDS, D, generator=draw)
    steps[:PROMPTS, 1:] = (steps[:PROMPTS, 1:] + steps[:PROMPTS, :-1]) / math.sqrt(2)
    size = 0.02 * torch.exp(0.4 * torch.randn(2 * PROMPTS, 1, 1, generator=draw))
    words = torch.cat(flat).unsqueeze(1) + (size * steps).cumsum(1)
    found = torch.stack([lid(words.mean(1), 20), curvature(words).mean(1).double()], 1)
    reached = []
    for x in (found.log()[:, used].numpy() for used in ([0], [1], [0, 1])):
        model = LogisticRegression().fit(x[::2], adversarial[::2])
        reached.append(float(roc_auc_score(adversarial[1::2], model.decision_function(x[1::2]))))
    what = "AUROC on other prompts, means of their words: LID, curvature, both"
    sheet.check(what, reached, "both is best", reached[2] > max(reached[:2]))

    axes = (plot := Figure(figsize=(4.5, 3))).subplots()
    for name, family in (("benign", found[:PROMPTS]), ("adversarial", found[PROMPTS:])):
        axes.plot(*family.mT.numpy(), "o", ms=2.5, label=name)
    axes.set(xlabel="LID of the prompt", ylabel="mean curvature of its words")
    axes.legend()
    sheet.picture("What tells the prompts apart: a prompt is a point.", plot)
