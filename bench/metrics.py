"""Metrics beside what is written today: `python -m bench.metrics [--out FILE.json]`, with VECBANK_ISA to choose.

Every row times ours beside its peers in one interleaved run, and counts the queries whose answer is not the exact one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import vecbank
from bench import bits
from bench.selections import OURS, Row, options_of, run

TITLE, K = "Metrics", 10


def _gauss(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def _differs(found: Tensor, exact: Tensor) -> int:
    return int((found != exact).any(1).sum())


def l1() -> Row:
    x, rows = _gauss(256, 128, 1), _gauss(100_000, 128, 2)
    trees = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="manhattan", n_jobs=-1).fit(rows.numpy())
    wide = rows.double()
    exact = torch.stack([(wide - q.double()).abs().sum(1).topk(K, largest=False).indices for q in x[:16]])
    return Row(
        "topk 256 x 100,000, d 128, k 10, l1",
        "torch, cdist + topk",
        1 / 3,
        {
            OURS: lambda: vecbank.topk(x, rows, K, "l1"),
            "torch, cdist + topk": lambda: torch.cdist(x, rows, 1.0).topk(K, largest=False),
            "scikit-learn": lambda: trees.kneighbors(x.numpy()),
        },
        lambda: _differs(vecbank.topk(x[:16], rows, K, "l1").indices, exact),
        {"torch, cdist + topk": 3, "scikit-learn": 2},
    )


def mapped(verb: str) -> Iterator[Row]:
    """Metrics that map rows, beside the metric by which they compare them."""
    x, rows = _gauss(1024, 128, 1), _gauss(200_000, 128, 2)
    covariance = torch.cov(rows.T)
    plain = {base: vecbank.Bank(rows, base) for base in ("cosine", "l2")}
    for metric, base in (("pearson", "cosine"), ("angular", "cosine"), (vecbank.Mahalanobis(covariance), "l2")):
        bank, name = vecbank.Bank(rows, metric), metric if isinstance(metric, str) else metric.name

        def found(bank: vecbank.Bank) -> Any:
            return bank.topk(x, K) if verb == "topk" else bank.nearest(x)

        yield Row(
            f"{verb} 1024 x 200,000, d 128, {name}",
            base,
            1.05,
            {OURS: lambda bank=bank: found(bank), base: lambda base=base: found(plain[base])},
            lambda bank=bank, metric=metric: _differs(bank.topk(x[:64], K).indices, _exactly(metric, x[:64], rows)),
        )


def _exactly(metric: str | vecbank.metrics.Metric, x: Tensor, rows: Tensor) -> Tensor:
    x, rows = x.double(), rows.double()
    if isinstance(metric, vecbank.Mahalanobis):
        factor = torch.linalg.cholesky(metric.covariance.double())
        x, rows = (torch.linalg.solve_triangular(factor, t.T, upper=False).T for t in (x, rows))
        return torch.cdist(x, rows, compute_mode="donot_use_mm_for_euclid_dist").topk(K, largest=False).indices
    if metric == "pearson":
        x, rows = x - x.mean(1, keepdim=True), rows - rows.mean(1, keepdim=True)
    cosines: Tensor = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(rows).T
    return cosines.topk(K).indices


def poincare() -> Row:
    x, rows = (torch.nn.functional.normalize(_gauss(n, 32, n)) * torch.rand(n, 1) for n in (1024, 100_000))
    x, rows = x * 0.95, rows * 0.95

    def written() -> Any:
        squares = torch.cdist(x, rows).square()
        factors = (1 - x.square().sum(1, keepdim=True)) * (1 - rows.square().sum(1))
        return torch.acosh(1 + 2 * squares / factors).topk(K, largest=False)

    return Row(
        "topk 1024 x 100,000, d 32, k 10, poincare",
        "torch expression + topk",
        1 / 3,
        {OURS: lambda: vecbank.topk(x, rows, K, "poincare"), "torch expression + topk": written},
        lambda: _differs(
            vecbank.topk(x[:64], rows, K, "poincare").indices, _ratios(x[:64], rows).topk(K, largest=False).indices
        ),
        note=_at_the_boundary(),
    )


def _ratios(x: Tensor, rows: Tensor) -> Tensor:
    """What grows with the distance, in float64 and by direct differences."""
    x, rows = x.double(), rows.double()
    squares = torch.cdist(x, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    return squares / ((1 - x.square().sum(1, keepdim=True)) * (1 - rows.square().sum(1)))


def _at_the_boundary() -> str:
    """How far values can be off, where |x| = 1 - 1e-7."""
    x, rows = (torch.nn.functional.normalize(_gauss(n, 32, n)) * (1 - 1e-7) for n in (64, 4096))
    x, rows = x[x.double().norm(dim=1) < 1], rows[rows.double().norm(dim=1) < 1]
    found = vecbank.topk(x, rows, K, "poincare").values.double()
    exact = 2 * torch.asinh(_ratios(x, rows).sqrt()).sort(1).values[:, :K]
    squares = torch.cdist(x, rows).square()
    factors = (1 - x.square().sum(1, keepdim=True)) * (1 - rows.square().sum(1))
    theirs = torch.acosh(1 + 2 * squares / factors).double().sort(1).values[:, :K]
    ours, torchs = (float(((t - exact) / exact).abs().max()) for t in (found, theirs))
    return (
        f"at norms of 1 - 1e-7 the values are off by {ours:.1e} of themselves, those of the expression by {torchs:.1e}"
    )


def sparse(terms: int) -> Row:
    m, v, n = 100_000, 30_000, 200
    draw = np.random.default_rng(0)
    chance = 1 / np.arange(1, v + 1)
    chance /= chance.sum()
    counts = [np.unique(draw.choice(v, 150, p=chance)) for _ in range(2000)]
    ids = [counts[i % 2000] if i < 2000 else np.unique((counts[i % 2000] * 7 + i) % v) for i in range(m)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    weights = draw.random(offsets[-1], dtype=np.float32)
    documents = scipy.sparse.csr_matrix((weights, np.concatenate(ids), offsets), shape=(m, v))
    bank = vecbank.sparse.SparseBank.from_csr(documents)
    asked = torch.from_numpy(np.stack([draw.choice(v, terms, replace=False, p=chance) for _ in range(n)]))
    given = torch.from_numpy(draw.random((n, terms), dtype=np.float32))
    queries = scipy.sparse.csr_matrix(
        (given.numpy().ravel(), asked.numpy().ravel(), np.arange(0, n * terms + 1, terms)), shape=(n, v)
    )
    turned = documents.T.tocsr()

    def product() -> np.ndarray[Any, Any]:
        scores = (queries @ turned).toarray()
        return np.argpartition(-scores, K, axis=1)[:, :K]

    def loop() -> None:
        for q in queries.toarray():
            np.argpartition(-(documents @ q), K)

    dense = torch.from_numpy((queries[:20] @ turned).toarray())
    return Row(
        f"sparse.topk {n} x {m:,} documents, {offsets[-1] / 1e6:.1f} M entries, {terms} terms, k 10",
        "scipy, Q @ D.T + argpartition",
        1.0,
        {
            OURS: lambda: vecbank.sparse.topk(asked, given, bank, K),
            "scipy, Q @ D.T + argpartition": product,
            "scipy, D @ q for each": loop,
        },
        lambda: int(
            ((vecbank.sparse.topk(asked[:20], given[:20], bank, K).values - dense.topk(K).values).abs() > 1e-5)
            .any(1)
            .sum()
        ),
        {"scipy, D @ q for each": 1},
    )


def rows_of() -> Iterator[Row]:
    yield bits.search(256, 1_000_000, 256, K, 0.7)
    yield bits.search(65_536, 8192, 64, 1, 0.7)
    yield l1()
    yield from mapped("topk")
    yield from mapped("nearest")
    yield poincare()
    yield sparse(5)
    yield sparse(20)


def main() -> None:
    run("metrics", TITLE, rows_of(), 12, options_of("metrics", __doc__ or "", budget=8.0).parse_args())


if __name__ == "__main__":
    main()
