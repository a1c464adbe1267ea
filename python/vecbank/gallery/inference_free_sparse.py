"""Inference-free sparse retriever: no model runs at query time, a query is its tokens with weights from a table.

Geng et al., "Towards Competitive Search Relevance For Inference-Free Learned Sparse Retrievers", 2024.

    score(q, d) = sum_{t in q} w_t D[d, t]

The table w holds the IDF of each term. A document is a sparse row over the vocabulary, which training keeps sparse by a
FLOPS penalty weighted by term, sum_t v_t (mean_d D[d, t])^2, beside the loss of the search.

Here the corpus is drawn from Zipf's law, a document is log(1 + count) of its 70 tokens, and the 5 tokens of a query are
drawn from those of a source document. In the training the rows of the corpus are themselves the parameters, the
source is to win among all documents, and v_t = 1 / IDF_t, so that common terms fall first.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vecbank import sparse

from ._data import generator
from ._sheet import Sheet

TITLE = "Inference-free sparse retriever"
FAMILY = "top-k search"
DOCUMENTS, TERMS, LENGTH, QUERIES, STEPS = 2000, 3000, 70, 400, 10


def recall(tokens: Tensor, weights: Tensor | None, documents: sparse.SparseBank, source: Tensor) -> float:
    """How often the source is among the first ten."""
    found = sparse.topk(tokens, weights, documents, 10).indices
    return float((found == source[:, None]).any(1).double().mean())


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    draw = generator(sheet.seed)
    frequency = 1 / torch.arange(1, TERMS + 1).double()
    corpus = torch.multinomial(frequency.expand(DOCUMENTS, TERMS), LENGTH, replacement=True, generator=draw)
    counts = torch.zeros(DOCUMENTS, TERMS).scatter_add_(1, corpus, torch.ones(DOCUMENTS, LENGTH))
    dense, idf = counts.log1p(), (DOCUMENTS / (counts > 0).sum(0).clamp_min(1)).log()
    source = torch.randint(DOCUMENTS, (QUERIES,), generator=draw)
    tokens = corpus[source].gather(1, torch.rand(QUERIES, LENGTH, generator=draw).argsort(1)[:, :5])

    documents = sparse.SparseBank.from_dense(dense)
    plain, weighted = (recall(tokens, weights, documents, source) for weights in (None, idf))
    sheet.check("recall@10 of the source, without weights", plain, 0.830, abs(plain - 0.830) < 0.05)
    sheet.check("recall@10 of the source, with IDF", weighted, 0.925, abs(weighted - 0.925) < 0.03)

    product = np.zeros((QUERIES, DOCUMENTS))
    for t in tokens.T.numpy():  # in the order of the query, in float64
        product += (idf.double().numpy()[t] * dense.double().numpy()[:, t]).T
    equal = np.array_equal(sparse.scores(tokens, idf, documents).numpy(), product.astype(np.float32))
    sheet.check("scores, by the dense product", equal, "the same bits", equal)
    best = np.argsort(-product, axis=1, kind="stable")[:, :10]
    same = np.array_equal(sparse.topk(tokens, idf, documents, 10).indices.numpy(), best)
    sheet.check("lists of ten, by sorting the dense product", same, "the same", same)

    weights = documents.weights.clone().requires_grad_()
    learned = sparse.SparseBank(documents.offsets, documents.ids, weights, TERMS)
    optimiser, penalties = torch.optim.Adam([weights], lr=0.03), []
    for _ in range(STEPS):
        mean = torch.zeros(TERMS).index_add(0, learned.ids, weights) / DOCUMENTS
        penalty = (mean.square() / idf.clamp_min(0.1)).sum()
        loss = torch.nn.functional.cross_entropy(sparse.scores(tokens, idf, learned), source) + penalty
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        penalties.append(float(penalty.detach()))
        weights.data.clamp_min_(0)
    sheet.check(
        "FLOPS penalty after training, of before", penalties[-1] / penalties[0], "below 1", penalties[-1] < penalties[0]
    )
    reached = recall(tokens, idf, learned, source)
    sheet.check("recall@10 then, of the queries trained on", reached, f"at least {weighted:.3f}", reached >= weighted)

    plot = Figure(figsize=(4, 2.6), layout="constrained")
    axes = plot.subplots()
    rows = {"before": documents.to_dense(), "after": learned.to_dense().detach()}
    for name, matrix in rows.items():
        axes.loglog(range(1, TERMS + 1), matrix.mean(0).clamp_min(1e-4), label=name, lw=0.8)
    axes.set(xlabel="term, by how common it is", ylabel="mean weight")
    axes.legend()
    sheet.picture("The penalty takes weight from the common terms", plot)
