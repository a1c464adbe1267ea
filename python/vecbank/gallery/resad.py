"""ResAD++: patches less the most similar reference of their class look alike in all classes, and defects stand out.

Yao et al., "ResAD++: Towards Class Agnostic Anomaly Detection via Residual Feature Learning", 2025.

    r_i = x_i - ref[argmax_j cos(x_i, ref_j)], ref: patches of few normal images of the class of x_i
    score = |r_i|, or |r_i - c(r_i)|, c: the nearest code of a codebook of normal residuals of other classes

A class is a texture here, and a patch is its 8 x 8 grey levels. Defects are squares of the next class's texture: what
is normal in one class is a defect in another. Half of the classes are new, and the codebook has not seen them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vecbank

from ._data import generator, unit
from ._sheet import Sheet

TITLE = "ResAD++"
FAMILY = "top-k search"
CLASSES, NEW, SHOTS, IMAGES, SIDE = 8, 4, 12, 5, 32  # classes from NEW on are new


def textures(draw: torch.Generator) -> Tensor:
    """(classes, images, side, side): two waves and a grey level of the class, phases of the image, and noise."""
    waves = unit(torch.randn(CLASSES, 1, 2, 2, generator=draw)) * (0.4 + torch.rand(CLASSES, 1, 2, 1, generator=draw))
    at = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).float()
    phases = 2 * torch.pi * torch.rand(CLASSES, SHOTS + IMAGES, 2, 1, generator=draw)
    grey = torch.sin(waves @ at.mT + phases).sum(2) + torch.randn(CLASSES, 1, 1, generator=draw)
    return (grey + 0.2 * torch.randn(grey.shape, generator=draw)).unflatten(-1, (SIDE, SIDE))


def patches(images: Tensor) -> Tensor:
    return nn.functional.unfold(images.flatten(0, 1).unsqueeze(1), 8, stride=4).mT.reshape(CLASSES, -1, 64)


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_auc_score

    shots, images = textures(generator(sheet.seed)).split([SHOTS, IMAGES], 1)
    middle = torch.randint(7, 25, (CLASSES, IMAGES, 2, 1), generator=generator(sheet.seed + 1))
    down, across = ((torch.arange(SIDE) - middle).abs() < 7).float().unbind(2)
    defect = down.unsqueeze(-1) * across.unsqueeze(-2)
    images = torch.where(defect > 0, images.roll(-1, 0), images)
    x, ref, share = patches(images), patches(shots), patches(defect).mean(-1)

    def auroc(scores: Tensor, first: int = 0) -> float:
        whole = ((share == 0) | (share == 1))[first:]  # no patches at the edge of a defect
        return float(roc_auc_score(share[first:][whole], scores[first:][whole]))

    found = vecbank.quantize(x, ref, "cosine")  # each class has its own references
    r, cosines = x - found.quantized, unit(x.double()) @ unit(ref.double()).mT
    same = torch.equal(r, x - ref.gather(1, cosines.argmax(-1, keepdim=True).expand_as(x)))
    sheet.check("r, by argmax, gather and difference in plain torch", same, "equal", same)
    same = torch.equal(r, x - vecbank.lookup(vecbank.nearest(x, ref, "cosine").indices, ref))
    sheet.check("r, by nearest and lookup", same, "equal", same)
    lower = torch.equal(found.codes, vecbank.nearest(x, ref.repeat(1, 2, 1), "cosine").indices)
    sheet.check("every reference twice: the lower row is found", lower, "yes", lower)
    reached = [auroc(r.norm(dim=-1)), auroc(vecbank.nearest(x, ref.flatten(0, 1)).values)]
    sheet.check("AUROC of |r|, one threshold for all classes", reached[0], 1.0, reached[0] > 0.995)
    sheet.check("AUROC of distances to references of all classes", reached[1], "below 0.9", reached[1] < 0.9)
    normal, shared, scores = share == 0, [], []
    for v in (x, r):
        seen, new = v[:NEW][normal[:NEW]], v[NEW:][normal[NEW:]]
        book = vecbank.Bank(vecbank.cluster.kmeans(seen, 64, generator=sheet.seed).centroids, "l2")
        used = [book.nearest(part).indices.bincount(minlength=64) / len(part) for part in (seen, new)]
        shared.append(float(torch.minimum(*used).sum()))
        scores.append(auroc((v - book.quantize(v).quantized).norm(dim=-1), NEW))
    sheet.check("use of codes that seen and new classes share: x, r", shared, "rises", shared[1] > shared[0] + 0.1)
    sheet.check("AUROC in new classes: |x - c(x)|, |r - c(r)|", scores, "rises to 1", scores[1] > 0.99 > scores[0])

    plot, maps = Figure(figsize=(7, 3.4)), r.norm(dim=-1).view(CLASSES, IMAGES, 7, 7)
    for i, axes in enumerate(plot.subplots(2, 4, subplot_kw={"xticks": [], "yticks": []}).T):
        axes[0].imshow(images[NEW + i, 0].numpy(), cmap="gray")
        axes[1].imshow(maps[NEW + i, 0].numpy(), vmin=0, vmax=float(maps.max()))
    sheet.picture("A defect in each of the new classes, and |r| of the patches.", plot)
