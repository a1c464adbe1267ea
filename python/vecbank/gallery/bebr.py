"""BEBR: embeddings as a few planes of signs, of which each codes what those before it leave.

Gan et al., "Binary Embedding-based Retrieval at Tencent", KDD 2023.

    b_0 = sign(W_0 x), b_1 = sign(W_1 (x - R b_0)), ...; code = b_0 + b_1 / 2 + b_2 / 4 + ...

Plain codes are those of x itself, or of 64 random projections of it. A contrastive loss teaches W and R: in a batch,
codes are to be as near each other as their vectors are, and as near the plain codes of the others, so that new queries
search the old bank too. The vectors' spectrum was chosen to come near the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank
from vecbank import bits, codes

from ._data import generator, normal, rotation, unit
from ._sheet import Sheet

TITLE = "BEBR"
FAMILY = "top-k search"
M, D, QUERIES, WIDTH = 20_000, 128, 100, 64
SYMMETRIC, ASYMMETRIC = [0.240, 0.546, 0.704, 0.778], [0.401, 0.668, 0.775, 0.830]


def signs(x: Tensor, w: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """The signs of two planes; `codes.sign_quantize` passes their gradient on to what they are signs of."""
    first = codes.sign_quantize(x @ w[0]).quantized
    return first, codes.sign_quantize((x - first @ r) @ w[1]).quantized


def learn(x: Tensor, old: Tensor, start: Tensor, seed: int) -> list[Tensor]:
    """W and R of two planes, whose codes go with each other and with the `old` ones."""
    maps = [start.repeat(2, 1, 1).requires_grad_(), start.mT.clone().requires_grad_()]
    optimiser, draw = torch.optim.Adam(maps, lr=3e-3), generator(seed)
    for _ in range(25):
        batch = torch.randint(len(x), (256,), generator=draw)
        first, second = signs(x[batch], *maps)
        new, true = unit(first + second / 2), unit(x[batch])
        near = torch.cat([new @ new.mT, new @ old[batch].mT]) / 0.2
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(near, (true @ true.mT / 0.2).softmax(1).repeat(2, 1)).backward()
        optimiser.step()
    return [m.detach() for m in maps]


def run(sheet: Sheet) -> None:
    which = torch.randint(80, (M + QUERIES,), generator=generator(sheet.seed))
    x = normal(80, D, seed=sheet.seed + 1)[which] * 0.6 + normal(len(which), D, seed=sheet.seed)
    x = unit(x * torch.exp(-torch.arange(D) / 72) @ rotation(D, sheet.seed + 2))
    x, q = (x * D**0.5).split([M, QUERIES])  # of mean square 1, which suits the scale 1 of the planes
    true, counts, symmetric, same = vecbank.topk(q, x, 10, "dot").indices, range(1, 5), torch.zeros(4, 4), []

    def recall(found: vecbank.TopK) -> float:
        return float((found.indices.unsqueeze(2) == true.unsqueeze(1)).any(1).double().mean())

    of_q, rows = ([codes.pack_signs(v, 4)[:, : p * D // 8] for p in counts] for v in (q, x))
    for (i, a), (j, b) in ((i, j) for i in enumerate(of_q, 1) for j in enumerate(rows, 1)):
        symmetric[i - 1, j - 1] = recall(bits.topk(a, b, 10, x_planes=i, bank_planes=j))
        dots = bits.plane_dot(bits.scores(a, b[:100], x_planes=i, bank_planes=j), D, i, j, torch.float64)
        left, right = (codes.unpack_signs(w, D, p, torch.float64) for w, p in ((a, i), (b[:100], j)))
        same.append(torch.equal(dots, left @ right.mT))
    floats = [recall(bits.float_topk(q, b, 10, bank_planes=j)) for j, b in enumerate(rows, 1)]
    for what, got, level in ("coded", symmetric.diagonal().tolist(), SYMMETRIC), ("float", floats, ASYMMETRIC):
        near = all(abs(a - b) < 0.06 for a, b in zip(got, level, strict=True))
        sheet.check(f"recall@10, {D} bits in 1 to 4 planes, {what} queries", got, level, near)
    sheet.check(f"dot products by bits, by decoded codes, {len(same)} pairs", all(same), "equal", all(same))
    first = all(torch.equal(codes.pack_signs(q, p), of_q[p - 1]) for p in counts)
    sheet.check("rows of fewer planes are the first bytes of those of 4", first, "yes", first)
    sheet.heat_map("Recall@10 by planes", symmetric, "planes of a row", "planes of a query", ticks="1234")
    start = rotation(D, sheet.seed + 3)[:, :WIDTH]
    plain = [codes.pack_signs(v @ start, 2) for v in (q, x)]
    maps = learn(x, unit(codes.unpack_signs(plain[1], WIDTH, 2)), start, sheet.seed)
    learned = [torch.cat([codes.pack_signs(s) for s in signs(v, *maps)], 1) for v in (q, x)]
    got = [recall(bits.topk(a, b, 10, x_planes=2, bank_planes=2)) for a, b in (plain, (learned[0], plain[1]), learned)]
    rise = got[0] < got[1] < got[2]
    sheet.check(f"2 planes of {WIDTH} bits: plain, learned queries in the plain bank, learned", got, "rises", rise)
