"""Dynamic Subspace Learners: an embedding in slices, each with a learner and clusters of its own; retrieval uses all.

Adiga et al., "Attention-based Dynamic Subspace Learners for Medical Image Analysis", IEEE Journal of Biomedical and
Health Informatics, 2022.

    in slice s: argmin_j |x_i[s] - b_j[s]|; over all slices: argmin_j |x_i - b_j|

Slices are added while training goes on. One that is still zero must change no ranking.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import accuracy, generator, normal
from ._sheet import Sheet

TITLE = "Dynamic Subspace Learners"
FAMILY = "top-k search"
SLICES, VALUES, WIDTH = 4, 3, 16


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Vectors in slices, each of which separates one of the attributes (N, SLICES)."""
    attributes = torch.randint(VALUES, (count, SLICES), generator=generator(seed))
    clean = normal(SLICES, VALUES, WIDTH)[torch.arange(SLICES), attributes]
    return (clean + 0.5 * normal(count, SLICES, WIDTH, seed=seed + 1)).flatten(1), attributes


def run(sheet: Sheet) -> None:
    from sklearn.metrics import adjusted_rand_score

    (gallery, attributes), (queries, wanted) = samples(1000, sheet.seed), samples(200, sheet.seed + 2)
    bank = vecbank.Bank(gallery, "l2")

    rows, agreement = [], []
    for i in range(SLICES):
        dims = slice(i * WIDTH, (i + 1) * WIDTH)
        part = bank.dims(dims)
        found = part.nearest(queries[:, dims]).indices
        rows.append([accuracy(attributes[found, j], wanted[:, j]) for j in range(SLICES)])
        clusters = vecbank.kmeans(part.vectors, VALUES, restarts=3, generator=sheet.seed)
        agreement.append(float(adjusted_rand_score(attributes[:, i].numpy(), clusters.codes.numpy())))
    shares = torch.tensor(rows)
    own, others = shares.diagonal(), shares[~torch.eye(SLICES, dtype=torch.bool)]
    sheet.check("each slice alone: its attribute is right", own.tolist(), "0.99 or more", bool((own >= 0.99).all()))
    chance, largest = 1 / VALUES, float((others - 1 / VALUES).abs().max())
    sheet.check("other attributes, by chance", float(others.mean()), chance, largest < 0.12)
    clear = min(agreement) > 0.95
    sheet.check("adjusted Rand index of each slice's clusters", agreement, "above 0.95", clear)

    whole = bank.topk(queries, 10)
    joint = float((attributes[whole.indices[:, 0]] == wanted).all(-1).double().mean())
    sheet.check("all slices: all attributes are right", joint, "0.95 or more", joint >= 0.95)
    wider, longer = (torch.nn.functional.pad(t, (0, WIDTH)) for t in (gallery, queries))
    added = vecbank.topk(longer, wider, 10, "l2")
    same = torch.equal(added.indices, whole.indices) and torch.equal(added.values, whole.values)
    sheet.check("with a slice of zeros: the same rankings and distances", same, "yes", same)

    caption = "Share of queries whose nearest row in a slice has their value of an attribute."
    sheet.heat_map(caption, shares, "attribute", "slice")
