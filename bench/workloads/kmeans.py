"""kmeans: ten iterations from the same first centroids. Runs part ways, so no answer is checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vecbank
from bench.cases import OURS, Case, Data, Target, by_isa
from bench.check import Expected
from bench.timing import Call
from bench.workload import Candidate, Workload

ITERATIONS = 10
SKLEARN = "scikit-learn"


def _data(case: Case, gen: torch.Generator) -> Data:
    """The bank holds the first centroids: rows of x."""
    x = torch.randn(case.n, case.d, generator=gen)
    return Data(x, x[torch.randperm(case.n, generator=gen)[: case.m]].clone())


def _ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    return lambda: tuple(vecbank.kmeans(data.x, case.m, init=data.bank, iterations=ITERATIONS, tolerance=0.0)[:2])


def _faiss(case: Case, data: Data, threads: int) -> Call:
    import faiss

    faiss.omp_set_num_threads(threads)
    x, start = data.x.numpy(), data.bank.numpy()

    def run() -> tuple[Any, ...]:
        means = faiss.Kmeans(case.d, case.m, niter=ITERATIONS, nredo=1, max_points_per_centroid=case.n)
        means.train(x, init_centroids=start)
        return means.centroids, None

    return run


def _sklearn(case: Case, data: Data, threads: int) -> Call:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    x, start = data.x.numpy(), data.bank.numpy()

    def run() -> tuple[Any, ...]:
        with threadpool_limits(threads):
            found = KMeans(case.m, init=start, n_init=1, max_iter=ITERATIONS, tol=0.0, algorithm="lloyd").fit(x)
        return found.cluster_centers_, found.labels_

    return run


def _expected(case: Case, data: Data, rows: Tensor) -> Expected:
    del case, data
    return Expected(rows.numpy())


def _answer(case: Case, name: str, result: tuple[Any, ...], rows: np.ndarray) -> tuple[Any, ...]:
    del case, name, result, rows
    return None, None


def _quick(case: Case) -> Case:
    return replace(case, n=max(case.m, case.n // 32))


def _small(case: Case) -> Case:
    return replace(case, n=64, m=64)


WORKLOAD = Workload(
    op="kmeans",
    place=100,
    tables=("codebooks",),
    cases=(
        Case(
            "kmeans 200,000 x 1024, d 64, 10 iterations", "kmeans", 200_000, 1024, 64, "l2",
            Target(None, (("faiss", by_isa(0.38, 0.40)),)), ("faiss",), products=ITERATIONS,
        ),
        Case(
            "kmeans 1,000,000 x 1024, d 64, 10 iterations", "kmeans", 1_000_000, 1024, 64, "l2",
            Target(None, (("faiss", 1 / 1.5), (SKLEARN, 1 / 1.5))), ("faiss", SKLEARN), products=ITERATIONS,
        ),
    ),
    data=_data,
    expected=_expected,
    answer=_answer,
    quick=_quick,
    small=_small,
    candidates={
        OURS: Candidate(_ours),
        "faiss": Candidate(_faiss, "Kmeans of all points", "faiss-cpu"),
        SKLEARN: Candidate(_sklearn, "KMeans(lloyd)", "scikit-learn"),
    },
)  # fmt: skip
