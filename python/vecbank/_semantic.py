"""The search of sentence-transformers, exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _checks, _select
from ._numpy import tensor_of
from ._ops import METRICS, SIMILARITIES
from ._prepared import PreparedBank
from .functional import topk
from .metrics import Metric, mapping

ScoreFunction = Callable[[Tensor, Tensor], Tensor]
Hit = dict[str, int | float]

_NAMED = {"cosine": "cosine", "dot": "dot", "euclidean": "l2", "manhattan": "l1"}
# Functions of the package, which a search here stands for.
_PACKAGE = "sentence_transformers"
_FUNCTIONS = {
    "cos_sim": "cosine",
    "pytorch_cos_sim": "cosine",
    "dot_score": "dot",
    "euclidean_sim": "euclidean",
    "manhattan_sim": "manhattan",
}


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500000,
    top_k: int = 10,
    score_function: str | ScoreFunction | None = None,
) -> list[list[Hit]]:
    """`sentence_transformers.util.semantic_search`, exactly: the best entries of a corpus for every query.

    The arguments are those of that function, in its order. What is returned has its form, and differs where that
    function leaves the choice to rounding: entries are ranked by float64 scores, ties go to the lower id, and a corpus
    entry whose score is NaN is no result (there it comes first).

    Args:
        query_embeddings: (Q, d), or (d,) for one query: a tensor, a numpy array or a list of such rows.
        corpus_embeddings: (M, d), in the same forms; or a `vecbank.Bank` (of whatever it names as its metric, "cosine"
            alone being the default here), which is prepared once for many calls. Queries go to its device.
        query_chunk_size, corpus_chunk_size: how many rows a function gets at a time. They change nothing else.
        top_k: how many entries each query gets; all, where the corpus has fewer.
        score_function: None (default: "cosine", or what a Bank names), "cosine", "dot", "euclidean" or "manhattan"
            (the negated distances); or a function of (q, d) and (m, d) that returns scores (q, m), larger is better.
            The functions of sentence-transformers with these names (`cos_sim`, `dot_score`, ...) are recognised, and
            searched by an exact screened search. Any other function is called on one chunk at a time, and
            its scores are what ranks.

    Returns:
        A list for each query, best first, of {"corpus_id": int, "score": float}. Scores are float64 scores rounded once
        to float32 (kept for float64 input). There is no gradient.

    Raises:
        ValueError: shapes, numbers below 1 (below 0 of top_k), a name that is none of these. TypeError: dtypes, a
        score_function that is no function.

    Source: Reimers and Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", EMNLP 2019.

    Example:
        >>> import torch, vecbank
        >>> corpus = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
        >>> vecbank.semantic_search(torch.tensor([1.0, 0.0]), corpus, top_k=2)
        [[{'corpus_id': 0, 'score': 1.0}, {'corpus_id': 2, 'score': 1.0}]]
        >>> vecbank.semantic_search(torch.tensor([1.0, 0.0]), corpus, top_k=2, score_function="dot")
        [[{'corpus_id': 2, 'score': 3.0}, {'corpus_id': 0, 'score': 1.0}]]
    """
    queries_at_once = _checks.at_least(1, "query_chunk_size", query_chunk_size)
    rows_at_once = _checks.at_least(1, "corpus_chunk_size", corpus_chunk_size)
    k = _checks.at_least(0, "top_k", top_k)
    metric, function = _score_of(score_function)
    with torch.no_grad():
        bank = corpus_embeddings if isinstance(corpus_embeddings, PreparedBank) else None
        corpus = _rows("corpus_embeddings", corpus_embeddings if bank is None else bank._held())
        queries = _rows("query_embeddings", query_embeddings).to(corpus.device)
        if queries.shape[1] != corpus.shape[1]:
            raise ValueError(
                f"query_embeddings and corpus_embeddings must have the same last dimension, got "
                f"{tuple(queries.shape)} and {tuple(corpus.shape)}"
            )
        k = min(k, len(corpus))
        if k == 0 or len(queries) == 0:
            return [[] for _ in queries]
        if function is not None:
            return _by_function(queries, corpus, k, function, queries_at_once, rows_at_once)
        _checks.pair(queries, corpus, "corpus_embeddings", "query_embeddings")  # topk would name x and bank
        by = metric or (None if bank is None else bank.metric) or "cosine"
        values, indices = topk(queries, corpus if bank is None else bank, k, by)
        return _hits(values if _is_similarity(by) else -values, indices)


def _is_similarity(metric: str | Metric) -> bool:
    mapped = mapping(metric, None)
    return METRICS[str(metric)] in SIMILARITIES if mapped is None else mapped.similarity


def _score_of(given: object) -> tuple[str | None, ScoreFunction | None]:
    """A metric, or a function."""
    if given is None:
        return None, None
    if callable(given):
        module, name = str(getattr(given, "__module__", "")), getattr(given, "__name__", "")
        if module.partition(".")[0] != _PACKAGE or name not in _FUNCTIONS:
            return None, given
        given = _FUNCTIONS[name]
    if not isinstance(given, str):
        raise TypeError(f"score_function must be a function, a name or None, got {type(given).__name__}")
    if given not in _NAMED:
        raise ValueError(f"score_function must be a function, None or one of {', '.join(_NAMED)}, got {given!r}")
    return _NAMED[given], None


def _rows(name: str, given: Any) -> Tensor:
    """(N, d)."""
    found = _tensor(name, given)
    if found.layout is not torch.strided:
        found = found.to_dense()
    if found.dim() == 1:
        found = found.unsqueeze(0)
    _checks.shaped(name, found, ("N", "d"))
    return found


def _tensor(name: str, given: Any) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach()
    if isinstance(given, (np.ndarray, np.generic)):
        return tensor_of(np.asarray(given), name)
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise TypeError(f"{name} must be a tensor, a numpy array or a list of rows, got {type(given).__name__}")
    if not given:
        raise ValueError(f"{name} must have a row at least, got an empty list: how wide its rows are is not known")
    if all(isinstance(row, (int, float)) for row in given):
        return torch.tensor(given, dtype=torch.float32)
    rows = [_tensor(f"{name}[{i}]", row) for i, row in enumerate(given)]
    first = rows[0]
    for i, row in enumerate(rows):
        if row.shape != first.shape or row.dtype != first.dtype or row.device != first.device:
            raise ValueError(
                f"the rows of {name} must be alike, got {tuple(first.shape)} {first.dtype} {first.device} and, in row "
                f"{i}, {tuple(row.shape)} {row.dtype} {row.device}"
            )
    return torch.stack(rows)


def _by_function(
    queries: Tensor, corpus: Tensor, k: int, function: ScoreFunction, queries_at_once: int, rows_at_once: int
) -> list[list[Hit]]:
    found: list[list[Hit]] = []
    for some in queries.split(queries_at_once):
        values = torch.empty(len(some), 0, dtype=torch.float64, device=corpus.device)
        indices = torch.empty(len(some), 0, dtype=torch.int64, device=corpus.device)
        for start in range(0, len(corpus), rows_at_once):
            rows = corpus[start : start + rows_at_once]
            scores = torch.as_tensor(function(some, rows)).to(corpus.device)
            if scores.shape != (len(some), len(rows)):
                raise ValueError(
                    f"score_function must return ({len(some)}, {len(rows)}) scores for {len(some)} queries and "
                    f"{len(rows)} entries, got {tuple(scores.shape)}"
                )
            numbers = torch.arange(start, start + len(rows), device=corpus.device).expand(len(some), -1)
            values, indices = torch.cat([values, scores.detach().double()], 1), torch.cat([indices, numbers], 1)
            values, indices = _select.merge(values, indices, min(k, values.shape[1]), METRICS["dot"], wide=True)
        found += _hits(values, indices)
    return found


def _hits(values: Tensor, indices: Tensor) -> list[list[Hit]]:
    """An index of -1 is none."""
    lists = zip(values.tolist(), indices.tolist(), strict=True)
    return [[{"corpus_id": i, "score": v} for v, i in zip(*row, strict=True) if i >= 0] for row in lists]
