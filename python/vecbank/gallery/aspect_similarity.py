"""Aspect-based document similarity: each aspect has an embedding of its own for every document, and is searched alone.

Ostendorff, Blume, Ruas, Gipp and Rehm, "Specialized Document Embeddings for Aspect-based Similarity of Research
Papers", JCDL 2022.

    similar to document i in aspect a: the k largest cos(e_a(i), e_a(j)), j != i

The embedding tables of all aspects are one batched bank (aspects, documents, d), so that one call answers for all of
them. Here a document is a sum of its task's, its method's and its data set's vector, and noise; a least-squares map to
the labels of one aspect, fitted to other documents, stands for the encoder that is tuned to it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vecbank

from ._data import generator
from ._sheet import Sheet

TITLE = "Aspect-based document similarity"
FAMILY = "top-k search"
ASPECTS, KINDS, WIDTH, K = ("task", "method", "data"), 6, 96, 10


def embeddings(fitted: Tensor, labels: Tensor, documents: Tensor) -> Tensor:
    """(aspects, documents, kinds): what a linear map to each aspect's labels makes of documents."""
    targets = nn.functional.one_hot(labels, KINDS).float() - 1 / KINDS  # (aspects, fitted, kinds)
    maps: Tensor = torch.linalg.lstsq(fitted.expand(len(labels), -1, -1), targets).solution
    return documents @ maps


def run(sheet: Sheet) -> None:
    draw = generator(sheet.seed)
    labels = torch.randint(KINDS, (len(ASPECTS), 1600), generator=draw)
    words = torch.randn(len(ASPECTS), KINDS, WIDTH, generator=draw)
    # One look-up in a batched bank of words gives every document's three vectors.
    documents = vecbank.lookup(labels, words).sum(0) + 1.5 * torch.randn(1600, WIDTH, generator=draw)
    labels, tables = labels[:, 800:], embeddings(documents[:800], labels[:, :800], documents[800:])

    not_self = vecbank.Allowed.not_self()
    similar = vecbank.topk(tables, tables, K, "cosine", allowed=not_self)  # (aspects, documents, K)

    three = [vecbank.topk(table, table, K, "cosine", allowed=not_self) for table in tables]
    equal = [torch.equal(one, torch.stack(many)) for one, many in zip(similar, zip(*three, strict=True), strict=True)]
    sheet.check("values and indices of one call are those of three", equal, [True, True], all(equal))

    # precision[a, b]: how many of those found in the space of aspect a have the query's label of aspect b.
    precision = torch.stack([(y[similar.indices] == y[:, None]).double().mean((1, 2)) for y in labels], 1)
    base = torch.stack([y.bincount(minlength=KINDS).double().div(len(y)).square().sum() for y in labels])
    for a, aspect in enumerate(ASPECTS):
        own, others = float(precision[a, a]), [b for b in range(len(ASPECTS)) if b != a]
        sheet.check(f"space of {aspect}: precision at {K} by {aspect}", own, "above 0.9", own > 0.9)
        near = bool(((precision[a] - base)[others].abs() < 0.02).all())
        sheet.check("the same by the two others", precision[a, others].tolist(), base[others].tolist(), near)

    caption = f"Precision at {K}: each space finds its own label, and no other"
    sheet.heat_map(caption, precision, "label", "space searched", ticks=ASPECTS)
