"""3D-text latent alignment: rows of two unrelated feature sets are matched by their similarities to a few known pairs.

Hadgi et al., "Escaping Plato's Cave: Towards the Alignment of 3D and Text Latent Spaces", CVPR 2025.

    R_u[i, j] = cos(u_i - m_u, u_anchor(j) - m_u)        match of i: argmax_k cos(R_u[i], R_v[k])

The anchors are the same samples in both sets, and m is the mean of a set's anchors. Instead, both sets may be projected
on subspaces that correlate, which the anchors give too. How much the sets have in common is their centred kernel
alignment, tr(K H L H) / (|H K H| |H L H|), for K and L the dot products among the rows of a set. It is computed from
the d x d side, where the columns are the vectors. Pixels of digits stand for the one set, and a random nonlinear map of
them for the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import digits, random_features
from ._sheet import Sheet

TITLE = "3D-text latent alignment"
FAMILY = "similarity kernel statistics"
ANCHORS, PAIRS = 100, 500


def relative(u: Tensor) -> Tensor:
    """All rows after the anchors, by their centred cosines to the anchors."""
    r = vecbank.project(u[ANCHORS:], u[:ANCHORS])
    return r - r.mean(0)


def kernel_alignment(u: Tensor, v: Tensor) -> float:
    u, v = ((x - x.mean(0)).mT for x in (u, v))  # the vectors are the columns
    uv, uu, vv = (vecbank.project(a, b, "dot").norm() for a, b in ((u, v), (u, u), (v, v)))
    return float(uv**2 / (uu * vv))


def run(sheet: Sheet) -> None:
    from sklearn.cross_decomposition import PLSCanonical

    pixels = digits(ANCHORS + PAIRS, sheet.seed).x_test
    u, v = (x - x[:ANCHORS].mean(0) for x in (pixels, random_features(pixels, 256, sheet.seed)))
    rows_u, rows_v = relative(u), relative(v)

    def matched(x: Tensor, bank: Tensor, k: int = 1) -> float:
        found = vecbank.topk(x, bank, k, "cosine").indices
        return float((found == torch.arange(PAIRS)[:, None]).any(-1).double().mean())

    top1, top5 = matched(rows_u, rows_v), matched(rows_u, rows_v, 5)
    sheet.check("pairs matched by cosines to the anchors", top1, 0.886, top1 > 0.886 - 0.02)
    sheet.check("pairs among the first five", top5, "not below the first", top5 >= top1)
    direct = matched(u[ANCHORS:], v[ANCHORS:, : u.shape[1]])
    sheet.check("pairs matched by the cosine of the features themselves", direct, 0.0, direct < 0.02)
    subspaces = PLSCanonical(20).fit(u[:ANCHORS], v[:ANCHORS])
    of_u, of_v = (torch.from_numpy(x) for x in subspaces.transform(u[ANCHORS:], v[ANCHORS:]))
    in_subspace = matched(of_u, of_v)
    sheet.check("pairs matched in subspaces of 20 dimensions", in_subspace, "more than 0.9", in_subspace > 0.9)

    double_u, double_v = u.double(), v.double()
    h = torch.eye(len(u), dtype=torch.float64) - 1 / len(u)
    k, kernel = h @ double_u @ double_u.mT @ h, h @ double_v @ double_v.mT @ h
    brute, reached = float((k * kernel).sum() / (k.norm() * kernel.norm())), kernel_alignment(double_u, double_v)
    sheet.check("centred kernel alignment, by the N x N kernels", reached, brute, abs(reached - brute) < 1e-12)

    caption = "Similarities of the relative rows of both sets. Pairs lie on the diagonal."
    cosine = vecbank.project(rows_u[:40], rows_v[:40])
    sheet.heat_map(
        caption, cosine, "row of the other set", "row of one set", span=None, label="cosine of the rows of cosines"
    )
