"""MUVERA: one dot product of fixed-dimensional encodings finds candidates for the exact maxsim of two sets of tokens.

Dhulipala, Hadian, Jayaram, Lee and Mirrokni, "MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings", 2024.

    maxsim(Q, P) = sum_{q in Q} max_{p in P} q.p,  about  sum over repetitions r and buckets b of  Q_rb . P_rb / R

The signs of k random projections put tokens into 2^k buckets. Q_rb is the sum of the query's tokens in bucket b, P_rb
the mean of the document's; an empty one takes the document's token at the smallest Hamming distance.

Here tokens of a document share a direction, and those of a query are a document's tokens in noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank
from vecbank import TokenSets
from vecbank.multivector import FixedEncoding, encoded_topk

from ._data import generator, normal, unit
from ._sheet import Sheet

TITLE = "MUVERA"
FAMILY = "top-k search"
DOCUMENTS, QUERIES, TOKENS, D, K, NOISE = 1000, 100, 8, 32, 10, 0.2


def place_of_best(scores: Tensor, best: Tensor) -> Tensor:
    """How many documents each query must look at, in order of these scores, until it meets its best."""
    return (scores >= scores.gather(1, best[:, None])).sum(1)


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    draw = generator(sheet.seed)
    sizes = torch.randint(8, 25, (DOCUMENTS,), generator=draw)
    of = torch.arange(DOCUMENTS).repeat_interleave(sizes)
    rows = unit(0.4 * normal(DOCUMENTS, D, seed=sheet.seed + 1)[of] + normal(len(of), D, seed=sheet.seed + 2))
    documents = TokenSets(rows, torch.nn.functional.pad(sizes.cumsum(0), (1, 0)))
    picked = documents.offsets[:QUERIES, None] + (torch.rand(QUERIES, TOKENS, generator=draw) * sizes[:QUERIES, None])
    queries = unit(rows[picked.long()] + NOISE * normal(QUERIES, TOKENS, D, seed=sheet.seed + 3))

    true, found = vecbank.maxsim(queries, documents), vecbank.maxsim_topk(queries, documents, K)
    each = [(queries.double() @ some.double().T).amax(2).sum(1) for some in rows.split(sizes.tolist())]
    same = torch.equal(torch.stack(each, 1).topk(K).indices, found.indices)
    sheet.check(f"{K} best documents by maxsim, by brute force", same, "equal", same)

    best, places, correlations = found.indices[:, 0], dict[str, Tensor](), []
    for k, repetitions, reference in ((3, 5, 0.99), (4, 10, 1.0), (4, 20, 1.0)):
        encoding = FixedEncoding(D, k, repetitions, generator=sheet.seed)
        encoded = encoding.documents(documents)
        scores = encoding.queries(queries) @ encoded.T
        places[name := f"k = {k}, R = {repetitions}"] = place_of_best(scores, best)
        correlations.append(float(torch.corrcoef(torch.stack([scores.flatten(), true.flatten()]))[0, 1]))
        reached = float((places[name] <= K).double().mean())
        sheet.check(f"best by maxsim among {K} candidates, {name}", reached, reference, reached >= reference - 0.03)
    sheet.check("correlation with maxsim as R grows", correlations, "rises", correlations == sorted(correlations))

    means = vecbank.segment_sum(rows, of, DOCUMENTS) / sizes[:, None]
    places["mean tokens"] = place_of_best(unit(queries.mean(1)) @ unit(means).T, best)
    needed = [int(p.kthvalue(int(0.99 * QUERIES)).values) for p in (places[name], places["mean tokens"])]
    fewer = 2 * needed[0] <= needed[1]
    sheet.check("candidates for 99% recall: encodings, mean tokens", needed, "half as many at most", fewer)

    ranked = encoded_topk(queries, documents, encoded, encoding, K, candidates=DOCUMENTS)
    same = all(map(torch.equal, ranked, found))
    sheet.check("with all documents as candidates, by `maxsim_topk`", same, "the same bits", same)
    ranked = encoded_topk(queries, documents, encoded, encoding, 1, candidates=K)
    first = float((ranked.indices[:, 0] == best).double().mean())
    sheet.check(f"first after re-ranking {K} candidates is the best", first, "at least 0.97", first >= 0.97)

    axes = (plot := Figure(figsize=(5, 2.8), layout="constrained")).subplots()
    for name, at in places.items():
        axes.plot(range(1, 41), [(at <= c).double().mean() for c in range(1, 41)], label=name)
    axes.set(xlabel="candidates", ylabel="recall of the best")
    axes.legend()
    sheet.picture("How often the best by maxsim is among the candidates.", plot)
