"""Neural Snowflakes: a trainable increasing function of the distance, and a k-nearest-neighbour graph drawn from it.

Sáez de Ocáriz Borde and Kratsios, "Neural Snowflakes: Universal Latent Graph Inference via Trainable Latent
Geometries", ICLR 2024.

    d(x, y) = f(|x - y|), f(t) = (C psi(A t))^(1 + |p|), psi(u) = (1 - exp(-u), u^a, log(1 + u)^b), A, C >= 0
    edges of i: the k largest of -d(x_i, x_j) + g_j, with g_j Gumbel noise: k draws from exp(-d), none twice

f increases: without noise the graph is that of |x - y|. The gradient of f goes through the distances that topk returns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vecbank

from ._data import generator, normal
from ._sheet import Sheet

TITLE = "Neural Snowflakes"
FAMILY = "top-k search"


class Snowflake(nn.Module):
    """f of one layer, in float64. Squares stand for the weights that must not be negative."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.a, self.c, self.powers = (nn.Parameter(normal(n, seed=seed + n).double() / 3) for n in (4, 12, 3))

    def forward(self, t: Tensor) -> Tensor:
        u, (a, b, p) = t.unsqueeze(-1) * self.a.square() + 1e-9, self.powers.abs()
        return (torch.cat([1 - torch.exp(-u), u**a, torch.log1p(u) ** b], -1) @ self.c.square()) ** (1 + p)


def sampled(d: Tensor, k: int, draws: int, seed: int) -> Tensor:
    """How often each of the candidates at distance d (N, c) is among the k that the noise chooses: (N, c)."""
    drawn = torch.empty(draws, *d.shape, dtype=d.dtype).exponential_(generator=generator(seed))
    chosen = (-d - drawn.log()).topk(k).indices  # -log of an exponential variable is Gumbel noise
    return nn.functional.one_hot(chosen, d.shape[-1]).sum(-2).to(d).mean(0)


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    x, f = normal(200, 8, seed=sheet.seed).double().requires_grad_(), Snowflake(sheet.seed)
    near = vecbank.topk(x, x, 8, "l2", allowed=vecbank.Allowed.not_self())
    dense = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") + torch.eye(len(x)) * 1e3
    same = [torch.equal(Snowflake(i)(dense).topk(8, largest=False).indices, near.indices) for i in range(5)]
    sheet.check("the graphs of 5 snowflakes are that of |x - y|", all(same), "yes", all(same))
    losses = [f(d).square().mean() for d in (near.values, dense.gather(1, near.indices))]
    pairs = zip(*(torch.autograd.grad(loss, [x, *f.parameters()]) for loss in losses), strict=True)
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    sheet.check("gradients of x and f, by dense torch: relative error", error, "below 1e-9", error < 1e-9)
    toy = f(vecbank.topk(x[:5], x[:5], 4, "l2", allowed=vecbank.Allowed.not_self()).values).detach()
    odds = (p := torch.softmax(-toy, -1)) / (1 - p)  # p: of the first draw; then the second, after each other first
    often, exact = sampled(toy, 2, 40_000, sheet.seed), p + p * (odds.sum(-1, keepdim=True) - odds)
    error = float((often - exact).abs().max())
    sheet.check("5 points, 2 edges each: largest error of a frequency", error, "below 0.012", error < 0.012)

    t = near.values.detach().flatten().sort().values
    wanted, first, optimiser = t**1.7 / 3, f(t).detach(), torch.optim.Adam(f.parameters(), lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        (f(t) - wanted).square().mean().backward()
        optimiser.step()
    curves = torch.stack([first, f(t).detach()])
    errors = ((curves - wanted).square().mean(1) / wanted.var()).tolist()
    sheet.check("error of f before and after 200 steps", errors, "falls to below 0.05", errors[1] < 0.05 < errors[0])

    left, right = (plot := Figure(figsize=(7, 2.8))).subplots(1, 2)
    left.plot(t.numpy(), curves.T.numpy(), label=["f at first", "f that was learned"])
    left.plot(t.numpy(), wanted.numpy(), "--", label="wanted")
    left.set(xlabel="Euclidean distance", ylabel="distance")
    left.legend()
    right.plot(exact.flatten().numpy(), often.flatten().numpy(), "o")
    right.set(xlabel="probability of an edge", ylabel="share of draws")
    sheet.picture("A distance that f learns, and how often the edges of five points are drawn.", plot)
