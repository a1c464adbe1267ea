"""LeanVec: a search in few dimensions and few bits, then the full vectors of 50 candidates.

Tepper et al., "LeanVec: Searching Vectors Faster by Making Them Fit", TMLR 2024.

    candidates = topk_j dot(A q, quant(B x_j)), then the 10 of them with the largest dot(q, x_j)
    quant(y) = low + step round((y - low) / step), with low and step of each vector

LeanVec-ID takes PCA for A and B. LeanVec-OOD, for queries unlike the vectors: of the mixes w E[q q'] + (1 - w) E[x x'],
the eigenvectors of that with the least error E[(dot(A q, B x) - dot(q, x))^2]. Beside it: the two maps of least error.
The 50 clusters have a spectrum that was chosen to come near the reference; OOD queries are turned at random.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import generator, normal, rotation, unit
from ._sheet import Sheet

TITLE = "LeanVec"
FAMILY = "top-k search"
M, D, QUERIES = 20_000, 128, 150
REFERENCE: dict[tuple[int, int], tuple[float, ...]] = {(64, 8): (0.735, 0.951), (64, 4): (0.694, 0.941)}
REFERENCE |= {(32, 8): (0.454, 0.722), (D, 8): (0.992,), (D, 4): (0.890,), (D, 2): (0.557,)}  # and re-ranked


def recalls(q: Tensor, bank: vecbank.Bank, a: Tensor, b: Tensor, bits: int) -> list[float]:
    """Recall@10 of the search in short codes, and after re-ranking."""
    y = (bank.vectors - bank.vectors.mean(0)) @ b  # the mean adds the same to all scores of a query
    low, high = y.aminmax(dim=-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    found = vecbank.topk(q @ a, low + step * ((y - low) / step).round(), 50, "dot").indices
    again = bank.topk(q, 10, allowed=vecbank.Allowed.rows(found)).indices
    return [float(vecbank.verify(q, bank, ten).recall.mean()) for ten in (found[:, :10], again)]


def best_two(of_q: Tensor, of_x: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """A and B (D, d) of the least error: the largest singular values of root(of_q) root(of_x)."""
    (p, u), (r, v) = torch.linalg.eigh(of_q), torch.linalg.eigh(of_x)
    left, s, right = torch.linalg.svd((u * p.sqrt()).mT @ (v * r.sqrt()))
    return (u / p.sqrt() @ left[:, :d] * s[:d]).float(), (v / r.sqrt() @ right[:d].mT).float()


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    which = torch.randint(50, (M + 1000 + 2 * QUERIES,), generator=generator(sheet.seed))
    near = normal(50, D, seed=sheet.seed + 1)[which] / 1.7 + normal(len(which), D, seed=sheet.seed)
    near *= torch.exp(-torch.arange(D) / 72)
    x, q = unit(near[: M + QUERIES] @ rotation(D, sheet.seed + 2)).split([M, QUERIES])
    learn, ood = unit(near[M + QUERIES :] @ rotation(D, sheet.seed + 3)).split([1000, QUERIES])
    of_x, of_q = ((v.mT @ v).double() / len(v) for v in (x, learn))
    weights = torch.linspace(0, 1, 11).double().view(11, 1, 1)  # 0 is PCA
    mixes = torch.linalg.eigh(of_x.lerp(of_q, weights)).eigenvectors.float()
    bank, shown = vecbank.Bank(x, "dot"), {}
    for (d, bits), reference in REFERENCE.items():
        a = mixes[0, :, -d:] if d < D else torch.eye(D)
        shown[f"{d} d\n{bits} bits"] = reached = recalls(q, bank, a, a, bits)
        for what, got, level in zip(("", ", re-ranked"), reached, reference, strict=False):
            sheet.check(f"recall@10, {d} dimensions, {bits} bits{what}", got, level, got > level - 0.05)

    two, a = best_two(of_q, of_x, 64), mixes[..., -64:]
    rest = (torch.eye(D) - torch.cat([a @ a.mT, (two[0] @ two[1].mT)[None]])).double()
    errors = ((rest.mT @ of_q @ rest) * of_x).sum((1, 2)) / (of_q * of_x).sum()
    three = errors[[0, best := int(errors[:-1].argmin()), -1]].tolist()
    sheet.check("OOD queries: error of PCA, mix, 2 maps", three, "falls", three == sorted(three)[::-1])
    for name, for_q, for_x in (("PCA", a[0], a[0]), ("mix", a[best], a[best]), ("2 maps", *two)):
        shown[f"OOD\n{name}"] = recalls(ood, bank, for_q, for_x, 8)
    found = [short for short, _ in shown.values()]
    sheet.check("OOD queries: recall@10 of these, 64 d", found[-3:], "rises", found[-3:] == sorted(found[-3:]))
    axes = (plot := Figure(figsize=(7, 2.8))).subplots()
    ticks = torch.arange(len(shown)).numpy()
    axes.bar(ticks - 0.2, found, 0.4, label="short codes")
    axes.bar(ticks + 0.2, [full for _, full in shown.values()], 0.4, label="50 re-ranked")
    axes.set(xticks=ticks, xticklabels=[*shown], ylabel="recall@10", ylim=(0, 1.25), yticks=(0, 0.5, 1))
    axes.legend(loc="upper right", ncols=2)
    sheet.picture("Recall of the search in short codes, and after re-ranking by the full vectors.", plot)
