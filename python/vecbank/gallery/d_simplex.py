"""d-Simplex: all versions of a model learn towards the same fixed class vectors, so that their features compare.

Biondi et al., "Stationary Representations: Optimally Approximating Compatibility and Implications for Improved Model
Replacements", CVPR 2024.

    logit[i, c] = f_i . w_c        w_1 .. w_K: the vertices of a regular simplex in K - 1 dimensions

All cosines between two vertices are -1 / (K - 1). The table is never trained. There are more vertices than classes, so
that classes may come later. Retrieval is the nearest item, or the nearest class mean, of a gallery that any version
made. Versions are compatible if a newer one finds more in the gallery of an older one than the older one itself does.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import Split, accuracy, digits, random_features, unit
from ._sheet import Sheet
from .relative_representations import latents

TITLE = "d-Simplex"
FAMILY = "anchor projection"
VERTICES, WIDTHS = 64, (32, 96, 256)  # of the table; of the versions of a model, the oldest first


def simplex(k: int) -> Tensor:
    """k unit vectors (k, k - 1) in float64: the axes and one more point, less their mean."""
    last = torch.full((1, k - 1), (1 - k**0.5) / (k - 1), dtype=torch.float64)
    points = torch.cat([torch.eye(k - 1, dtype=torch.float64), last])
    return unit(points - points.mean(0))


def version(width: int, data: Split, table: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Features of gallery and queries: a random nonlinear map, regressed onto the vertices of the classes."""
    gallery, queries = (random_features(x, width, seed + width) for x in (data.x, data.x_test))
    weight = torch.linalg.lstsq(gallery, table[data.y]).solution
    return gallery @ weight, queries @ weight


def run(sheet: Sheet) -> None:
    data, table = digits(597, sheet.seed), simplex(VERTICES)
    cosines = vecbank.project(table, table, "cosine")
    error = float((cosines - torch.full_like(cosines, -1 / (VERTICES - 1)).fill_diagonal_(1)).abs().max())
    sheet.check("largest error of a cosine between vertices", error, "below 1e-14", error < 1e-14)

    def top1(queries: Tensor, gallery: Tensor) -> float:
        return accuracy(data.y[vecbank.nearest(queries, gallery, "cosine").indices], data.y_test)

    versions = [version(width, data, table.float(), sheet.seed) for width in WIDTHS]
    scores = [[top1(queries, gallery) for gallery, _ in versions] for _, queries in versions]
    sheet.check("top-1, a gallery of its own", scores[1][1], 0.924, scores[1][1] > 0.924 - 0.03)
    sheet.check("top-1, the gallery of a newer version", scores[1][2], 0.939, scores[1][2] > 0.939 - 0.03)
    better = sum(scores[new][old] > scores[old][old] for new in range(3) for old in range(new))
    why = "a version that is hardly better than another one may find no more than it does"
    sheet.check("compatible pairs of versions, of three", better, 3, better == 3, why)
    means = vecbank.segment_sum(unit(versions[2][0]), data.y, 10)  # the length of a mean changes no cosine
    by_mean = accuracy(vecbank.nearest(versions[1][1], means, "cosine").indices, data.y_test)
    sheet.check("nearest class mean of the newer version", by_mean, scores[1][2], by_mean > scores[1][2] - 0.05)

    (own_gallery, queries), (other_gallery, _) = (latents(data, 2 * sheet.seed + i) for i in (1, 2))
    own, across = top1(queries, own_gallery), top1(queries, other_gallery)
    sheet.check("ordinary hidden layers: a gallery of its own", own, 0.981, own > 0.981 - 0.03)
    sheet.check("ordinary hidden layers: the gallery of another network", across, 0.124, across < 0.4)

    caption = "Top-1 of every version in every gallery. Below the diagonal the version that asks is newer."
    sheet.heat_map(
        caption,
        torch.tensor(scores),
        "version that made the gallery",
        "version that asks",
        span=(0.8, 1),
        label="top-1",
    )
