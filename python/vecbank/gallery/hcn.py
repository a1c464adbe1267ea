"""HCN: a user is several vectors, centres of what the user did, and an item is as good as the best of them says.

Yuan et al., "Hierarchical Multi-Interest Co-Network For Coarse-Grained Ranking", 2022.

    w[b, c] = softmax over centres c of beta x_b . u_c, u_c = sum_b w[b, c] x_b / sum_b w[b, c], a few rounds
    score of item v: max_c u_c . v, or sum_c softmax_c(beta u_c . v) u_c . v

A round is `logsumexp`, the logarithm of the softmax's denominator at each x_b, and `attend` with the weight exp, where
one coordinate more subtracts it. `group_max` scores items. First centres are far from each other; the hierarchy makes 8
centres, then 4 of these. Users here have 4 interests, whose shares and noise were chosen to come near the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import generator, normal, unit
from ._sheet import Sheet

TITLE = "HCN"
FAMILY = "top-k search"
USERS, D, BETA = 100, 32, 12.0


def one_round(x: Tensor, u: Tensor) -> Tensor:
    over = vecbank.logsumexp(x, u, beta=BETA).unsqueeze(-1) / -BETA
    one, longer = torch.ones_like(over), torch.cat([u, torch.ones_like(u[..., :1])], -1)
    sums = vecbank.attend(longer, torch.cat([x, over], -1), torch.cat([x, one], -1), beta=BETA, weight=torch.exp)
    return sums[..., :-1] / sums[..., -1:]


def far(x: Tensor, count: int) -> Tensor:
    return torch.stack([rows[vecbank.farthest_points(rows, count)] for rows in x])


def routed(x: Tensor, u: Tensor, rounds: int = 5) -> Tensor:
    for _ in range(rounds):
        u = unit(one_round(x, u))
    return u


def best(of: Tensor, u: Tensor) -> Tensor:
    return vecbank.group_max(of, u.flatten(0, 1), torch.arange(len(u) + 1) * u.shape[1])


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    draw, shares = generator(sheet.seed), torch.tensor([0.4, 0.3, 0.2, 0.1]).expand(USERS, 4)
    items, interests = (unit(normal(n, D, seed=sheet.seed + n)).double() for n in (4000, 4 * USERS))
    which = torch.multinomial(shares, 61, replacement=True, generator=draw)
    goal, *done = interests.view(USERS, 4, D)[torch.arange(USERS), which.mT]
    x = unit(torch.stack(done, 1) + 0.2 * torch.randn(USERS, 60, D, generator=draw))
    target = vecbank.topk(goal, items, 20).indices

    def recall(scores: Tensor) -> float:  # (items, users)
        return float((target.unsqueeze(2) == scores.mT.topk(100).indices.unsqueeze(1)).any(2).double().mean())

    start, axes = far(x, 4), (plot := Figure(figsize=(4.5, 3))).subplots()
    for name, u in ("far first centres", start), ("drawn first centres", x[:, :4]):
        axes.plot([recall(best(items, routed(x, u, rounds))) for rounds in range(6)], "o-", label=name)
    u, w = routed(x, start), (BETA * x @ start.mT).softmax(-1)
    ours = [recall(vecbank.project(items, x.mean(1), "dot")), recall(best(items, u))]
    near = max(abs(ours[0] - 0.342), abs(ours[1] - 0.742)) < 0.08
    sheet.check("recall@100 of 20 items: mean vector, 4 centres", ours, [0.342, 0.742], near)
    z, blend = items @ u.mT, (vecbank.attend(items.expand(USERS, -1, -1), u, beta=BETA) * items).sum(-1)
    true = w.mT @ x / w.sum(1).unsqueeze(-1), z.amax(-1), ((BETA * z).softmax(-1) * z).sum(-1)
    pairs = zip((one_round(x, start), best(items, u).mT, blend), true, strict=True)
    errors = [float((a - b).abs().max()) for a, b in pairs]
    sheet.check("a round less soft k-means; scores less dense ones", errors, "below 1e-12", max(errors) < 1e-12)
    eight = routed(x, far(x, 8))
    others = [recall(blend.mT), recall(best(items, routed(eight, far(eight, 4))))]
    sheet.check("recall@100 by attention; by 4 centres of 8 centres", others, ours[1], min(others) > ours[1] - 0.08)
    same = torch.autograd.gradcheck(one_round, [t[:2].clone().requires_grad_() for t in (x, start)], fast_mode=True)
    sheet.check("gradients of a round, by finite differences", same, "equal", same)
    axes.legend(title="recall@100 after 0 to 5 rounds")
    sheet.picture("What rounds add, from centres far from each other and from drawn behaviours.", plot)
