"""SQUASH: filtered search, in which attributes, signs and bounds from short codes leave few rows to score.

Oakley and Ferhatosmanoglu, "SQUASH: Serverless and Distributed Quantization-based Attributed Vector Similarity Search",
2025.

    |q - x|^2 >= sum_j (distance of q_j from the interval that x_j lies in)^2, by a table of each dimension j

Dimensions are principal axes, and those that vary more get more bits. Certified: any ten rows that the attributes allow
(here, of those with the nearest signs) tell how far the tenth can be at most, and what the bound puts beyond is passed
over. Signs may prune before; that is not certified, and the last figure says what recall it costs.
"""

from __future__ import annotations

import numpy as np
import torch

import vecbank
from vecbank import Allowed, Column, bits, codes

from ._data import generator, normal, rotation
from ._sheet import Sheet

TITLE = "SQUASH"
FAMILY = "top-k search"
M, D, QUERIES, K, SHARES = 10_000, 32, 50, 10, (0.5, 0.2, 0.1, 0.05)


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    which = torch.randint(50, (M + QUERIES,), generator=generator(sheet.seed))
    x = normal(50, D, seed=sheet.seed + 1)[which] + normal(len(which), D, seed=sheet.seed)
    x = x * torch.exp(-torch.arange(D) / 8) @ rotation(D, sheet.seed + 2)
    x -= x[:M].mean(0)
    x, q = (x @ torch.linalg.eigh(x[:M].mT @ x[:M]).eigenvectors).split([M, QUERIES])
    draw = np.random.default_rng(sheet.seed)
    kinds, years = draw.choice(["paper", "book", "thesis"], M), draw.integers(1990, 2020, M)
    where = Allowed.where(Column(kinds) == "book", Column(years).between(2000, 2009))
    true = vecbank.topk(q, x, K, "l2", allowed=where).indices
    rows = torch.from_numpy((kinds == "book") & (years >= 2000) & (years < 2010)).nonzero().squeeze(1)
    squares = (q.double().unsqueeze(1) - x[rows].double()).square().sum(2)
    same = [torch.equal(true, rows[squares.topk(K, largest=False).indices])]

    of_q, signs = (codes.pack_signs(v @ rotation(D, sheet.seed + 3)) for v in (q, x))
    near = bits.topk(of_q, signs, len(rows) // 2, allowed=where).indices
    most = vecbank.score_pairs(q, x, near[:, : 5 * K], "sqeuclidean").kthvalue(K, keepdim=True).values
    exact, below, left = [], [], dict[int, list[float]]()  # left: of codes of so many bytes, of even bits and of uneven
    for width in (w for size in (2, 3, 4) for w in ([size] * D, size)):
        codec = codes.interval_train(x[:1000], width)
        packed = codec.encode(x[rows], packed=True)
        unpacked = codec.unpack(packed)
        exact.append(torch.equal(unpacked, codec.encode(x[rows])))
        bounds = codec.lower_bounds(q, unpacked)
        below.append(bool((bounds <= squares).all()))
        kept = bounds <= most * (1 + 2**-20)  # which float32 may have rounded down
        left.setdefault(packed.shape[1], []).append(float(kept.double().mean()))
        bounded = Allowed.rows([rows[of_query] for of_query in kept])
        same.append(torch.equal(vecbank.topk(q, x, K, "l2", allowed=bounded).indices, true))
    sheet.check(f"codes of {min(codec.bits)} to {max(codec.bits)} bits, unpacked", all(exact), "equal", all(exact))
    sheet.check("codes, of 6, with a bound above a squared distance", below.count(False), 0, all(below))
    sheet.check("certified: ten nearest of all queries, by brute force", all(same), "equal", all(same))
    for size, (even, uneven) in left.items():
        what = f"share of {len(rows)} rows left, {size} of {4 * D} bytes: even bits, uneven"
        sheet.check(what, [even, uneven], "falls", uneven < even)
    recalls = []
    for share in SHARES:
        ten = vecbank.topk(q, x, K, "l2", allowed=bounded & Allowed.rows(near[:, : int(share * len(rows))])).indices
        recalls.append(float(vecbank.verify(q, x, ten, "l2", allowed=where).recall.mean()))
    holds = recalls == sorted(recalls, reverse=True) and recalls[1] > 0.9
    sheet.check("not certified: recall, signs keep 50, 20, 10, 5% first", recalls, "falls; above 0.9 at 20%", holds)
    first, second = (plot := Figure(figsize=(7, 2.6), layout="constrained")).subplots(1, 2)
    first.plot([*left], [*left.values()], "o-", label=["even bits", "uneven bits"])
    first.set(xlabel="bytes of a code", ylabel="share of rows left", xticks=[*left])
    first.legend()
    second.plot(SHARES, recalls, "o-")
    second.set(xlabel=f"share kept by signs, {D // 8} bytes", ylabel="recall@10")
    sheet.picture("What the bound leaves, losing nothing, and what signs lose.", plot)
