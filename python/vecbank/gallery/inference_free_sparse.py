"""Inference-free sparse retriever: no model runs at query time, a query is its tokens with weights from a table.

Geng et al., "Towards Competitive Search Relevance For Inference-Free Learned Sparse Retrievers", 2024.

    score(q, d) = sum_{t in q} w_t D[d, t]

The table w holds the IDF of each term. A document is a sparse row over the vocabulary, which training keeps sparse by a
FLOPS penalty weighted by term, sum_t v_t (mean_d D[d, t])^2, beside the loss of the search.

Here the corpus is drawn from Zipf's law, a document is log(1 + count) of its 75 tokens, and the 5 tokens of a query are
drawn from those of a source document. The training moves the rows themselves, and v_t = 1 / IDF_t.
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
DOCUMENTS, TERMS, LENGTH, QUERIES, LEARNED, STEPS = 2000, 3000, 75, 2000, 400, 10


def recall(tokens: Tensor, weights: Tensor | None, documents: sparse.SparseBank, source: Tensor) -> float:
    """How often the source is among the first ten."""
    found = sparse.topk(tokens, weights, documents, 10).indices == source[:, None]
    return float(found.any(1).double().mean())


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    draw, frequency = generator(sheet.seed), 1 / torch.arange(1, TERMS + 1).double()
    corpus = torch.multinomial(frequency.expand(DOCUMENTS, TERMS), LENGTH, replacement=True, generator=draw)
    counts = torch.zeros(DOCUMENTS, TERMS).scatter_add_(1, corpus, torch.ones(DOCUMENTS, LENGTH))
    dense, idf = counts.log1p(), (DOCUMENTS / (counts > 0).sum(0).clamp_min(1)).log()
    source = torch.randint(DOCUMENTS, (QUERIES,), generator=draw)
    tokens = corpus[source].gather(1, torch.rand(QUERIES, LENGTH, generator=draw).argsort(1)[:, :5])

    documents = sparse.SparseBank.from_dense(dense)
    for what, weights, reference in (("without weights", None, 0.830), ("with IDF", idf, 0.925)):
        reached = recall(tokens, weights, documents, source)
        sheet.check(f"recall@10 of the source, {what}", reached, reference, abs(reached - reference) < 0.03)

    tokens, source = tokens[:LEARNED], source[:LEARNED]
    product = np.zeros((LEARNED, DOCUMENTS))
    for t in tokens.T.numpy():  # in the order of the query, in float64
        product += (idf.double().numpy()[t] * dense.double().numpy()[:, t]).T
    same = np.array_equal(sparse.scores(tokens, idf, documents).numpy(), product.astype(np.float32))
    sheet.check("scores, by the dense product", same, "the same bits", same)

    held = documents.weights.clone().requires_grad_()
    learned = sparse.SparseBank(documents.offsets, documents.ids, held, TERMS)
    optimiser, penalties = torch.optim.Adam([held], lr=0.03), []
    for _ in range(STEPS):
        mean = torch.zeros(TERMS).index_add(0, learned.ids, held) / DOCUMENTS
        penalty = (mean.square() / idf.clamp_min(0.1)).sum()
        loss = torch.nn.functional.cross_entropy(sparse.scores(tokens, idf, learned), source) + penalty
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        penalties.append(penalty.item())
    ends = penalties[:: STEPS - 1]
    sheet.check("FLOPS penalty before and after training", ends, "falls", ends[1] < ends[0])
    before, after = (recall(tokens, idf, bank, source) for bank in (documents, learned))
    sheet.check("recall@10 then, of the queries trained on", after, f"at least {before:.3f}", after >= before)

    plot = Figure(figsize=(4, 2.6), layout="constrained")
    axes = plot.subplots()
    for bank in (documents, learned):
        axes.loglog(range(1, TERMS + 1), bank.to_dense().detach().mean(0), lw=0.8)
    axes.set(xlabel="term, by how common it is", ylabel="mean weight")
    axes.legend(["before", "after"])
    sheet.picture("Each term's mean weight, before and after training with the penalty", plot)
