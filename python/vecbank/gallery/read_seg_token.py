"""READ: the similarity of a `<SEG>` token to the patches of its image chooses points that prompt a segmenter.

Qian et al., "Reasoning to Attend: Try to Understand How <SEG> Token Works", CVPR 2025.

    S[b, p] = cos(seg_b, patch_{b, p}); positive points: the largest of S[b, :], negative points: the smallest

Each image has its own query and its own patches: a batch of banks. The points carry a gradient to the query.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import generator, normal, unit
from ._sheet import Sheet

TITLE = "READ (Reasoning to Attend)"
FAMILY = "anchor projection"
IMAGES, SIDE, WIDTH, POINTS = 200, 16, 64, 5


def images(noise: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, 1, d), patches (B, P, d), and which of these lie in the blob (B, P), where all share a direction."""
    centres = torch.randint(3, SIDE - 3, (IMAGES, 1, 2), generator=generator(seed))
    places = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE))
    inside = (places - centres).square().sum(-1) <= 9
    direction = unit(normal(IMAGES, 1, WIDTH, seed=seed + 1))
    patches = inside.unsqueeze(-1) * direction + noise / WIDTH**0.5 * normal(IMAGES, SIDE**2, WIDTH, seed=seed + 2)
    return direction + noise / WIDTH**0.5 * normal(IMAGES, 1, WIDTH, seed=seed + 3), patches, inside


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    for noise in (0.5, 1.0):  # the length of the noise, where that of the direction is 1
        seg, patches, inside = images(noise, sheet.seed)
        seg.requires_grad_()
        positive = vecbank.topk(seg, patches, POINTS, "cosine")
        negative = vecbank.topk(seg, patches, POINTS, "cosine", order="worst")

        hits = inside.gather(1, positive.indices.squeeze(1)).all(-1).double().mean().item()
        misses = (~inside).gather(1, negative.indices.squeeze(1)).all(-1).double().mean().item()
        sheet.check(f"noise {noise}: images with all positive points in the blob", hits, "0.95 or more", hits >= 0.95)
        sheet.check(f"noise {noise}: images with no negative point in it", misses, "0.95 or more", misses >= 0.95)

    dense = torch.nn.functional.cosine_similarity(seg.double(), patches.double(), dim=-1)
    best, worst = dense.argsort(dim=-1, descending=True)[:, :POINTS], dense.argsort(dim=-1)[:, :POINTS]
    same = torch.equal(positive.indices.squeeze(1), best) and torch.equal(negative.indices.squeeze(1), worst)
    sheet.check("both lists are those of a full sort", same, "yes", same)

    (ours,) = torch.autograd.grad(positive.values.sum() - negative.values.sum(), seg)
    (theirs,) = torch.autograd.grad(dense.gather(1, best).sum() - dense.gather(1, worst).sum(), seg)
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    sheet.check("gradient to the query, relative error against the dense map", error, "below 1e-5", error < 1e-5)

    plot = Figure(figsize=(9, 3.2))
    for i, axes in enumerate(plot.subplots(1, 3)):
        axes.imshow(dense[i].detach().view(SIDE, SIDE).numpy(), cmap="gray")
        for found, marker, colour in ((positive, "P", "tab:green"), (negative, "X", "tab:red")):
            at = found.indices[i, 0].numpy()
            axes.scatter(at % SIDE, at // SIDE, c=colour, marker=marker)
        axes.set_axis_off()
    plot.tight_layout()
    sheet.picture("The similarity map of three images; green: positive points, red: negative points.", plot)
