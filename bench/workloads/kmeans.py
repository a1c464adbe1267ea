"""kmeans: ten iterations from the same first centroids. Runs part ways, so no answer is checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vecbank
from bench import embeddings
from bench.cases import OURS, Case, Data, Target, by_isa
from bench.check import Expected
from bench.timing import Call
from bench.workload import Candidate, Workload

ITERATIONS = 10
SKLEARN, SUPER, FAISS_SUPER = "scikit-learn", "superkmeans", "faiss SuperKmeans"
DOCSTRINGS = embeddings.count()


def _data(case: Case, gen: torch.Generator) -> Data:
    """The bank holds the first centroids: rows of x."""
    sha256 = None
    if case.data == "embeddings":
        x, sha256 = embeddings.sample(case.n)
    else:
        x = torch.randn(case.n, case.d, generator=gen)
    return Data(x, x[torch.randperm(case.n, generator=gen)[: case.m]].clone(), sha256=sha256)


def _docstrings(k: int, target: Target) -> Case:
    n, width = DOCSTRINGS or 0, embeddings.WIDTH
    name = f"kmeans {n:,} docstrings x {k}, d {width}, {ITERATIONS} iterations"
    peers = ("faiss", SUPER, FAISS_SUPER)
    return Case(name, "kmeans", n, k, width, "l2", target, peers, products=ITERATIONS, data="embeddings")


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


def _superkmeans(case: Case, data: Data, threads: int) -> Call:
    """All points, as many iterations and no end before them; it takes no first centroids and draws its own."""
    from superkmeans import SuperKMeans

    x = data.x.numpy()

    def run() -> tuple[Any, ...]:
        means = SuperKMeans(
            case.m, case.d, hierarchical=False, iters=ITERATIONS, sampling_fraction=1.0,
            max_points_per_cluster=case.n, early_termination=False, tol=0.0, n_threads=threads, seed=0,
        )  # fmt: skip
        return means.train(x), None

    return run


def _faiss_super(case: Case, data: Data, threads: int) -> Call:
    """It takes no first centroids either."""
    import faiss

    faiss.omp_set_num_threads(threads)
    x = data.x.numpy()

    def run() -> tuple[Any, ...]:
        means = faiss.SuperKmeans(case.d, case.m, niter=ITERATIONS, max_points_per_centroid=case.n, seed=0)
        means.train(x)
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
        *(
            (
                _docstrings(512, Target(None, (("faiss", 0.8),))),
                _docstrings(4096, Target(None, ((SUPER, 1.2),))),
            )
            if DOCSTRINGS
            else ()
        ),
    ),
    left_out=None if DOCSTRINGS else f"kmeans of docstrings: {embeddings.ABSENT}",
    data=_data,
    expected=_expected,
    answer=_answer,
    quick=_quick,
    small=_small,
    candidates={
        OURS: Candidate(_ours),
        "faiss": Candidate(_faiss, "Kmeans of all points", "faiss-cpu"),
        SKLEARN: Candidate(_sklearn, "KMeans(lloyd)", "scikit-learn"),
        SUPER: Candidate(_superkmeans, "SuperKMeans of all points, not hierarchical, its own first centroids", SUPER),
        FAISS_SUPER: Candidate(_faiss_super, "SuperKmeans of all points, its own first centroids", "faiss-cpu"),
    },
)  # fmt: skip
