"""`semantic_search` is that of sentence-transformers, exactly: its arguments, its form, and float64 scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import gauss, seeded
from torch import Tensor

import vecbank
from vecbank import Bank, semantic_search

X, CORPUS = gauss(7, 12), gauss(40, 12, seed=1)
BY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda q, c: torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(c).T,
    "dot": lambda q, c: q @ c.T,
    "euclidean": lambda q, c: -torch.cdist(q, c, compute_mode="donot_use_mm_for_euclid_dist"),
    "manhattan": lambda q, c: -torch.cdist(q, c, p=1.0),
}


def restated(queries: Tensor, corpus: Tensor, top_k: int, by: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """What the function returns, said plainly: every score, those that are best, ties to the lower id."""
    lists = []
    for scores in by(queries, corpus).tolist():
        best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:top_k]
        lists.append([{"corpus_id": i, "score": scores[i]} for i in best])
    return lists


def ids(found: Any) -> list[list[int]]:
    return [[hit["corpus_id"] for hit in hits] for hits in found]


def assert_close(found: Any, want: Any, tolerance: float = 1e-6) -> None:
    """The same lists of dictionaries, of ints and floats, with about the same scores."""
    assert ids(found) == ids(want)
    for hits, others in zip(found, want, strict=True):
        for hit, other in zip(hits, others, strict=True):
            assert list(hit) == ["corpus_id", "score"] and type(hit["corpus_id"]) is int and type(hit["score"]) is float
            assert abs(hit["score"] - other["score"]) <= tolerance * max(1, abs(other["score"]))


@pytest.mark.parametrize("name", BY)
@pytest.mark.parametrize("k", [1, 10, 40, 100])
def test_by_name(name: str, k: int) -> None:
    want = restated(X.double(), CORPUS.double(), k, BY[name])
    assert_close(semantic_search(X, CORPUS, top_k=k, score_function=name), want)
    assert_close(semantic_search(X.double(), CORPUS.double(), 3, 7, k, name), want, 1e-14)


def test_scores_are_those_of_topk() -> None:
    for name, metric, sign in (("cosine", "cosine", 1), ("dot", "dot", 1), ("euclidean", "l2", -1)):
        values, indices = vecbank.topk(X, CORPUS, 5, metric)
        want = [
            [{"corpus_id": i, "score": sign * v} for i, v in zip(*row, strict=True)]
            for row in zip(indices.tolist(), values.tolist(), strict=True)
        ]
        assert semantic_search(X, CORPUS, top_k=5, score_function=name) == want
        bank = Bank(CORPUS, metric)
        assert semantic_search(X, bank, top_k=5) == want
    assert semantic_search(X, CORPUS) == semantic_search(X, CORPUS, 100, 500000, 10, "cosine")


@pytest.mark.parametrize("name", BY)
def test_any_function_in_chunks(name: str) -> None:
    shapes: set[tuple[int, int]] = set()

    def scores(q: Tensor, c: Tensor) -> Tensor:
        shapes.add((len(q), len(c)))
        return BY[name](q, c)

    want = restated(X.double(), CORPUS.double(), 6, BY[name])
    assert_close(semantic_search(X.double(), CORPUS.double(), 3, 17, 6, scores), want, 1e-13)
    assert shapes == {(n, m) for n in (3, 1) for m in (17, 6)}


def test_functions_of_the_package_are_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names and where they come from; a function of another module with such a name is called."""
    for name, by in (("cos_sim", "cosine"), ("pytorch_cos_sim", "cosine"), ("dot_score", "dot")):

        def function(q: Tensor, c: Tensor) -> Tensor:
            raise AssertionError("it was called")

        function.__name__ = name
        with pytest.raises(AssertionError, match="it was called"):
            semantic_search(X, CORPUS, score_function=function)
        function.__module__ = "sentence_transformers.util.similarity"
        assert semantic_search(X, CORPUS, score_function=function) == semantic_search(X, CORPUS, score_function=by)


def test_against_the_package() -> None:
    util = pytest.importorskip("sentence_transformers.util", reason="requirements/embeddings.txt brings it")
    for name in ("cos_sim", "dot_score", "euclidean_sim", "manhattan_sim"):
        function = getattr(util, name)
        want = util.semantic_search(X.double(), CORPUS.double(), 3, 17, 9, function)
        assert_close(semantic_search(X.double(), CORPUS.double(), 3, 17, 9, function), want, 1e-12)
    assert_close(semantic_search(X, CORPUS), util.semantic_search(X, CORPUS))


def test_ties_go_to_the_lower_id() -> None:
    corpus = torch.tensor([[1.0], [3.0], [1.0], [3.0], [2.0], [1.0]])
    for function in ("dot", lambda q, c: q @ c.T):
        for chunk in (1, 2, 4, 6):
            found = semantic_search(torch.ones(1), corpus, 1, chunk, 4, function)
            assert ids(found) == [[1, 3, 4, 0]]


def test_what_ranks_of_nan_and_infinity() -> None:
    """NaN is no result; the worst infinity is one."""
    corpus = torch.tensor([[torch.nan], [-torch.inf], [1.0], [torch.nan], [torch.inf]])
    for function in ("dot", lambda q, c: q @ c.T):
        for chunk in (2, 5):
            found = semantic_search(torch.ones(1, 1), corpus, 1, chunk, 5, function)
            want = [{"corpus_id": i, "score": s} for i, s in ((4, torch.inf), (2, 1.0), (1, -torch.inf))]
            assert found == [want]
            assert semantic_search(torch.ones(1, 1), corpus, 1, chunk, 3, function) == [want]


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "array": lambda t: t.numpy(),
    "a list of tensors": lambda t: list(t),
    "a list of arrays": lambda t: list(t.numpy()),
    "a list of lists": lambda t: t.tolist(),
    "backwards": lambda t: t.flip(0).numpy()[::-1],
    "another byte order": lambda t: t.numpy().astype(">f4"),
    "sparse": lambda t: t.to_sparse(),
    "with a gradient": lambda t: t.clone().requires_grad_(),
    "parameter": lambda t: torch.nn.Parameter(t),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    want = semantic_search(X, CORPUS, top_k=3)
    assert semantic_search(FORMS[form](X), CORPUS, top_k=3) == want
    assert semantic_search(X, FORMS[form](CORPUS), top_k=3) == want
    assert semantic_search(X[0], CORPUS, top_k=3) == want[:1]
    assert semantic_search(FORMS[form](X)[0], CORPUS, top_k=3) == want[:1]


def test_half_queries_and_empty_sides() -> None:
    half = semantic_search(X.half(), CORPUS.half(), top_k=3)
    assert half == semantic_search(X.half(), CORPUS.half().float(), top_k=3)
    for function in (None, "dot", lambda q, c: q @ c.T):
        assert semantic_search(X, CORPUS[:0], score_function=function) == [[] for _ in X]
        assert semantic_search(X, CORPUS, top_k=0, score_function=function) == [[] for _ in X]
        assert semantic_search(X[:0], CORPUS, score_function=function) == []


@pytest.mark.parametrize("seed", range(3))
def test_many_ties_by_a_function(seed: int) -> None:
    x, corpus = (torch.randint(-2, 3, (n, 3), generator=seeded(seed)).double() for n in (9, 200))
    for k in (1, 5, 60):
        want = restated(x, corpus, k, BY["dot"])
        assert semantic_search(x, corpus, 4, 37, k, BY["dot"]) == want == semantic_search(x, corpus, 4, 37, k, "dot")


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "widths": (
        lambda: semantic_search(X, CORPUS[:, :5]),
        ValueError,
        r"query_embeddings and corpus_embeddings must have the same last dimension, got \(7, 12\) and \(40, 5\)",
    ),
    "axes": (lambda: semantic_search(X, CORPUS[None]), ValueError, r"corpus_embeddings must have shape \(N, d\), got"),
    "integers": (lambda: semantic_search(X.int(), CORPUS), TypeError, "query_embeddings must be float32"),
    "words": (lambda: semantic_search("why?", CORPUS), TypeError, "query_embeddings must be a tensor, .* got str"),
    "an empty list": (lambda: semantic_search([], CORPUS), ValueError, "query_embeddings must have a row at least"),
    "a ragged list": (
        lambda: semantic_search([X[0], X[0, :5]], CORPUS),
        ValueError,
        r"the rows of query_embeddings must be alike, got \(12,\) .* in row 1, \(5,\)",
    ),
    "a list of words": (lambda: semantic_search(["a"], CORPUS), TypeError, r"query_embeddings\[0\] must be a tensor"),
    "top_k": (lambda: semantic_search(X, CORPUS, top_k=-1), ValueError, "top_k must be at least 0, got -1"),
    "chunks": (lambda: semantic_search(X, CORPUS, 0), ValueError, "query_chunk_size must be at least 1, got 0"),
    "a name": (
        lambda: semantic_search(X, CORPUS, score_function="l2"),
        ValueError,
        "score_function must be a function, None or one of cosine, dot, euclidean, manhattan, got 'l2'",
    ),
    "a number": (lambda: semantic_search(X, CORPUS, score_function=3), TypeError, "score_function must be a function"),
    "scores of another shape": (
        lambda: semantic_search(X, CORPUS, score_function=lambda q, c: (q @ c.T).T),
        ValueError,
        r"score_function must return \(7, 40\) scores .* got \(40, 7\)",
    ),
    "dtypes": (
        lambda: semantic_search(X.double(), CORPUS),
        TypeError,
        "query_embeddings and corpus_embeddings must share a dtype",
    ),
    "strings": (lambda: semantic_search(np.array(["a"]), CORPUS), TypeError, "query_embeddings must hold floats"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    call, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        call()
