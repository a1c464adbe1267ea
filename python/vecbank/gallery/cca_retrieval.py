"""CCA multi-space retrieval: an item has an embedding for each condition, and each ranks the gallery in its own space.

Song et al., "Conditional Cross Attention Network for Multi-Space Embedding without Entanglement in Only a SINGLE
Network", ICCV 2023.

    rank of j for query i under condition c: cos(W_c x_i, W_c b_j)

Items have three attributes here. W_c is fitted by least squares, so that space c shows attribute c alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import generator, mean_average_precision, normal
from ._sheet import Sheet

TITLE = "CCA multi-space retrieval"
FAMILY = "top-k search"
CONDITIONS, VALUES, WIDTH = 3, 5, 48


def items(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy sums of one vector for each attribute; and the attributes (CONDITIONS, N)."""
    attributes = torch.randint(VALUES, (CONDITIONS, count), generator=generator(seed))
    parts = normal(CONDITIONS, VALUES, WIDTH)[torch.arange(CONDITIONS).unsqueeze(1), attributes]
    return parts.sum(0) + 0.5 * normal(count, WIDTH, seed=seed + 1), attributes


def run(sheet: Sheet) -> None:
    x, attributes = items(1000, sheet.seed)
    (gallery, stored), (queries, wanted) = items(800, sheet.seed + 2), items(100, sheet.seed + 4)
    maps = torch.linalg.pinv(x) @ (torch.nn.functional.one_hot(attributes).float() - 1 / VALUES)

    bank = vecbank.Bank(gallery @ maps, "cosine")  # three banks, (3, M, d)
    ranked = bank.topk(queries @ maps, len(gallery)).indices
    alone = [vecbank.topk(queries @ w, gallery @ w, len(gallery), "cosine").indices for w in maps]
    same = torch.equal(ranked, torch.stack(alone))
    sheet.check("one search of all spaces: equal to three searches", same, "yes", same)

    relevant = stored.unsqueeze(1) == wanted.unsqueeze(2)  # (attribute, N, M)
    scores = torch.stack(
        [mean_average_precision(relevant.gather(-1, of_space.expand_as(relevant))) for of_space in ranked]
    )
    chance = float(relevant.double().mean())
    own, others = scores.diagonal(), scores[~torch.eye(CONDITIONS, dtype=torch.bool)]
    sheet.check("mAP for the attribute of the space", own.tolist(), "near 1: 0.95 or more", bool((own >= 0.95).all()))
    near = float((others - chance).abs().max()) < 0.05
    sheet.check("mAP for other attributes", others.tolist(), f"near chance, {chance:.3f}", near)

    caption = "Mean average precision for each attribute in each space."
    sheet.heat_map(caption, scores, "attribute", "space")
