"""DMT-JEPA: the target of a masked patch is a sum of those patches of its neighbourhood that are most similar to it.

Mo and Yun, "DMT-JEPA: Discriminative Masked Targets for Joint-Embedding Predictive Architecture", 2024.

    N(i) = the k patches in the window of i with the largest cos(f_i, f_j);  W: a dozen of patches, k = 4
    target_i = sum_{j in N(i)} softmax_j(beta cos(f_i, f_j)) f_j: a light cross-attention, here without learned maps

`attend` does both steps, with the windows as sets of allowed rows. An image has two textures, stripes in noise; f are
the amplitudes of a patch's spectrum. The published system trains an encoder to predict these targets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import vecbank

from ._data import generator, unit
from ._sheet import Sheet

TITLE = "DMT-JEPA"
FAMILY = "top-k search"
IMAGES, SIDE, K, BETA = 16, 14, 4, 10.0  # patches of 4 x 4 pixels


def textured(seed: int) -> tuple[Tensor, Tensor]:
    """Images of two textures, and which of them a pixel is of: (IMAGES, 56, 56)."""
    draw, at = generator(seed), torch.arange(4 * SIDE) - 4 * SIDE / 2
    turn, cut, offset = torch.rand(3, IMAGES, 1, 1, generator=draw) * math.tau
    u, v = ((at[:, None] * (turn + a).cos() + at * (turn + a).sin()) for a in (0, math.pi / 2))
    second = at[:, None] * cut.cos() + at * cut.sin() > 3 * (offset - math.pi)
    image = torch.where(second, (u * math.tau / 8).sin(), (v * math.tau / 4).sin())
    return image + 0.4 * torch.randn(image.shape, generator=draw), second


def apartness(x: Tensor, of: Tensor) -> float:
    """The squared distance of the means of two textures over the variance within them, as a mean of images."""
    means = of.mT @ x / of.sum(1)[..., None]
    return float(((means[:, 0] - means[:, 1]).square().sum(1) / (x - of @ means).square().sum(2).mean(1)).mean())


def run(sheet: Sheet) -> None:
    image, second = textured(sheet.seed)
    patches, of_pixels = (x.double().unfold(1, 4, 4).unfold(2, 4, 4).flatten(1, 2) for x in (image, second))
    f, texture = torch.fft.rfft2(patches).abs().flatten(2).requires_grad_(), of_pixels.mean((2, 3)) > 0.5
    places = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).float()
    steps = vecbank.project(places, places, "l1")
    window = (steps > 0) & (steps <= 2)
    kept = vecbank.topk(f, f, K, "cosine", allowed=window).indices
    found = [vecbank.attend(f, f, None, "cosine", beta=BETA, k=K, allowed=window)]
    # Windows as banks of a dozen rows; at the edge of an image fewer are there.
    where = window.int().argsort(dim=1, descending=True, stable=True)[:, :12]
    banks, inside = f[:, where].flatten(0, 1), window.gather(1, where).repeat(IMAGES, 1)[:, None]
    apart = vecbank.attend(f.reshape(-1, 1, f.shape[2]), banks, None, "cosine", beta=BETA, k=K, allowed=inside)
    cosine, of = unit(f), torch.arange(IMAGES)[:, None, None]
    best, which = (cosine @ cosine.mT).masked_fill(~window, -torch.inf).topk(K)
    found += [apart.view_as(f), ((BETA * best).softmax(-1)[..., None] * f[of, which]).sum(2)]
    right, slopes = torch.equal(kept, which), [torch.autograd.grad(t.square().sum(), f)[0] for t in found]
    sheet.check("what is kept is that of the masked dense matrix", right, "yes", right)
    errors = [float((t - dense[2]).detach().abs().max()) for dense in (found, slopes) for t in dense[:2]]
    sheet.check("windows as masks, as banks, less dense ones; gradients", errors, "below 1e-10", max(errors) < 1e-10)
    own, draw = texture[:, :, None] == texture[:, None], torch.rand(window.shape, generator=generator(sheet.seed))
    away = (own | (steps > 1)).all(2)  # the next patches on four sides are of the same texture
    both = away & ~(own | ~window).all(2)  # and some in the window are not
    drawn = draw.masked_fill(~window, -1).topk(K).indices.expand_as(kept)
    alone, by_chance = (own.gather(2, rows).all(2).double() for rows in (kept, drawn))
    pure, hard, chance = (float(x.mean()) for x in (alone[away], alone[both], by_chance[both]))
    sheet.check("patches away from the border that keep their own texture alone", pure, "above 0.95", pure > 0.95)
    sheet.check("those whose window has both; by chance", [hard, chance], "above 0.85; lower", hard > 0.85 > chance)
    one_hot = torch.stack([texture, ~texture], 2).double()
    ratios = [apartness(x.detach(), one_hot) for x in (f, found[0])]
    sheet.check("how far the textures are apart: f, targets", ratios, "doubles", ratios[1] > 2 * ratios[0])
    maps = own.gather(2, kept).double().mean(2).view(IMAGES, 1, SIDE, SIDE)
    shown = torch.stack([image, second, torch.nn.functional.interpolate(maps, image.shape[1:])[:, 0]])[:, :6]
    sheet.images("Dark: what is kept has the other texture.", shown, down=["image", "textures", "kept"])
