"""TopKNearestPR: the examples in a prompt are the nearest ones of the support set; InvariantSelectPR learns the space.

Zhou et al., "Adapting Large Multimodal Models to Distribution Shifts: The Role of In-Context Learning", 2024.

    examples of q: the k support items with the largest cos(f(q), f(x)), k = 7;  f: an encoder of images
    InvariantSelectPR learns f first, by InfoNCE: f(x) and f(x') of one class and any two domains are to be near

The label of most of the examples stands for what the large model answers. Queries are digits of domains that were never
seen: their grey levels are scaled, and a sum of four patterns is added. Standardising each domain undoes that too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vecbank
from vecbank import Allowed
from vecbank.losses import info_nce

from ._data import accuracy, digits, generator, mlp, normal, unit
from ._sheet import Sheet

TITLE = "TopKNearestPR / InvariantSelectPR"
FAMILY = "top-k search"
K, SIZES, NEW, DOMAINS, STEPS, BATCH, T = 7, [0.0, 1.0, 2.0, 3.0], 16, 20, 120, 256, 0.1


def run(sheet: Sheet) -> None:
    data, draw = digits(597, sheet.seed), generator(sheet.seed)
    patterns = normal(4, 64, seed=sheet.seed + 1) / 2

    def domains(count: int, size: float) -> tuple[Tensor, Tensor]:
        scales = 1 + (torch.rand(count, 1, generator=draw) - 0.5) * min(1, size)
        return scales, size * torch.randn(count, 4, generator=draw) @ patterns

    def labelled(q: Tensor, support: Tensor) -> float:
        examples = vecbank.topk(q, support, K, "cosine").indices
        return accuracy(data.y[examples].mode(1).values, data.y_test)

    def pairs() -> tuple[Tensor, Tensor]:
        """A batch, others of the same classes, all in domains drawn at random: (2, BATCH, 64), and the classes."""
        chosen = torch.randint(len(data.x), (BATCH,), generator=draw)
        same = data.y[chosen][:, None] == data.y
        others = torch.rand(same.shape, generator=draw).masked_fill(~same, -1).argmax(1)
        of = torch.randint(DOMAINS, (2, BATCH), generator=draw)
        return data.x[torch.stack([chosen, others])] * scales[of] + offsets[of], data.y[chosen]

    encoder, (scales, offsets) = mlp(64, 32, seed=sheet.seed), domains(DOMAINS, SIZES[-1])
    optimiser = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    for _ in range(STEPS):
        rows, y = pairs()
        z, keys = encoder(rows)
        allowed = ~(Allowed.same(y, y) & Allowed.not_self())
        optimiser.zero_grad()
        info_nce(z, keys, temperature=T, allowed=allowed).backward()
        optimiser.step()

    z, keys = encoder(rows).detach().double().requires_grad_()
    s = (unit(z) @ unit(keys).mT / T).masked_fill((y[:, None] == y).fill_diagonal_(0), -torch.inf)
    losses = info_nce(z, keys, temperature=T, allowed=allowed), (s.logsumexp(1) - s.diagonal()).mean()
    ours, dense = (torch.stack(torch.autograd.grad(loss, (z, keys))) for loss in losses)
    error = float((ours - dense).abs().max() / dense.abs().max())
    sheet.check("gradients of the loss less those of a dense one, in float64", error, "below 1e-10", error < 1e-10)

    names, encoder = ["as they are", "standardised", "learned"], encoder.requires_grad_(False)
    spaces = dict(zip(names, [nn.Identity(), nn.BatchNorm1d(64, affine=False), encoder], strict=True))
    reached: dict[str, list[float]] = {name: [] for name in spaces}
    for size in SIZES:
        new = [data.x_test * scale + offset for scale, offset in zip(*domains(NEW, size), strict=True)]
        for name, space in spaces.items():
            reached[name].append(sum(labelled(space(q), space(data.x)) for q in new) / NEW)
    raw, standard, learned = reached.values()
    sheet.check("accuracy without a shift", raw[0], 0.974, abs(raw[0] - 0.974) < 0.02)
    sheet.check(f"accuracy in {NEW} shifted domains, as they are", raw[-1], 0.244, abs(raw[-1] - 0.244) < 0.12)
    sheet.check("after standardising each domain", standard[-1], 0.937, standard[-1] > 0.917)
    sheet.check("in the learned space", learned[-1], "above 0.8", learned[-1] > 0.8)
    sheet.lines("Accuracy by the size of the shift.", "size of the shift", "accuracy", SIZES, reached)
