"""topk by the dot product: the k best rows of a large bank, for many queries and for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vecbank
from bench.cases import OURS, PLAIN, Case, Data, Target, by_isa
from bench.cuda_cases import BF16, EXPRESSION, F32, WRITTEN, CudaCase, faster, row
from bench.timing import Call
from bench.workload import SEARCH_TABLES, Candidate, OnCuda, Tiny, Workload

CHUNK_ROWS = 65536
CHUNKS, SKLEARN = "torch chunks", "scikit-learn"
PEERS = ("faiss", CHUNKS, SKLEARN)
SLOWER = ("usearch", "scann")  # timed in two rows only: usearch takes about 20 x sgemm
_AHEAD, _LEVEL = 1.0, 1.05  # "level with" allows for the spread between two runs
_TINY_K = 4


def _case(n: int, m: int, d: int, k: int, target: Target, more: tuple[str, ...] = (), baseline: str = "chunks") -> Case:
    name = f"topk {n} x {m:,}, d {d}, k {k}"
    return Case(name, "topk", n, m, d, "dot", target, (*PEERS, *more), k=k, baseline=baseline)


FOUR_TIMES = Target(None, ((EXPRESSION, 1 / 4),))


def _row(rank: int, n: int, m: int, dtype: str, k: int, target: Target, **more: Any) -> CudaCase:
    name = f"topk {n:,} x {m:,}, d 128, k {k}"
    return row("topk", rank, n, m, 128, dtype, target, WRITTEN, name=name, metric="dot", k=k, **more)


# ---- Candidates -----------------------------------------------------------------------------------------------------


def _ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    bank = vecbank.Bank(data.bank, metric=case.metric).prepare("search")
    return lambda: tuple(bank.topk(data.x, case.k))


def _plain(case: Case, data: Data, threads: int) -> Call:
    del threads
    return lambda: tuple(vecbank.topk(data.x, data.bank, case.k, case.metric))


def _chunks(case: Case, data: Data, threads: int) -> Call:
    del threads

    def search() -> tuple[Tensor, Tensor]:
        values, indices = [], []
        for start in range(0, case.m, CHUNK_ROWS):
            rows = data.bank[start : start + CHUNK_ROWS]
            best = torch.mm(data.x, rows.T).topk(min(case.k, len(rows)), dim=1)
            values.append(best.values)
            indices.append(best.indices + start)
        top = torch.cat(values, 1).topk(case.k, dim=1)
        return top.values, torch.cat(indices, 1).gather(1, top.indices)

    return search


def _faiss(case: Case, data: Data, threads: int) -> Call:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(case.d)
    index.add(data.bank.numpy())
    queries = data.x.numpy()
    return lambda: index.search(queries, case.k)


def _sklearn(case: Case, data: Data, threads: int) -> Call:
    from sklearn.neighbors import NearestNeighbors

    queries = data.x.numpy()
    searcher = NearestNeighbors(n_neighbors=case.k, algorithm="brute", n_jobs=threads).fit(data.bank.numpy())
    return lambda: tuple(searcher.kneighbors(queries))


def _usearch(case: Case, data: Data, threads: int) -> Call:
    from usearch.compiled import MetricKind
    from usearch.index import search

    x, bank = data.x.numpy(), data.bank.numpy()

    def exact() -> tuple[Any, Any]:
        found = search(bank, x if len(x) > 1 else x[0], case.k, MetricKind.IP, exact=True, threads=threads)
        return found.distances, found.keys

    return exact


def _scann(case: Case, data: Data, threads: int) -> Call:
    import scann

    builder = scann.scann_ops_pybind.builder(data.bank.numpy(), case.k, "dot_product")
    searcher = builder.score_brute_force(quantize=False).build()
    searcher.set_num_threads(threads)
    queries = data.x.numpy()

    def search() -> tuple[Any, Any]:
        if case.n == 1:
            indices, values = searcher.search(queries[0])
        else:
            indices, values = searcher.search_batched_parallel(queries)
        return values, indices

    return search


def _expression(case: Case, data: Data) -> Callable[[Tensor], tuple[Any, ...]]:
    bank = data.bank
    return lambda x: tuple((x @ bank.T).topk(case.k, dim=1))


def _tiny(data: Data, grad: bool) -> Call:
    bank, x = vecbank.Bank(data.bank, metric="dot"), data.x.clone().requires_grad_(grad)
    return lambda: bank.topk(x, _TINY_K)


def _tiny_torch(data: Data) -> Call:
    x, bank = data.x, data.bank
    return lambda: (x @ bank.T).topk(_TINY_K, dim=1)


WORKLOAD = Workload(
    op="topk",
    place=20,
    tables=SEARCH_TABLES,
    cases=(
        _case(1024, 1_000_000, 128, 10, Target(by_isa(0.34, 0.20), (("faiss", _AHEAD),))),
        _case(1024, 1_000_000, 128, 100, Target(by_isa(0.38, 0.25), (("faiss", _AHEAD),))),
        _case(256, 200_000, 768, 10, Target(by_isa(0.36, 0.19), (("faiss", _LEVEL),)), SLOWER),
        _case(1, 1_000_000, 128, 10, Target(by_isa(0.32, 0.30)), SLOWER, baseline="read"),
    ),
    candidates={
        OURS: Candidate(_ours),
        PLAIN: Candidate(_plain),
        CHUNKS: Candidate(_chunks, f"mm + topk over chunks of {CHUNK_ROWS} bank rows, then topk of those"),
        "faiss": Candidate(_faiss, "IndexFlatIP", "faiss-cpu"),
        SKLEARN: Candidate(
            _sklearn,
            "NearestNeighbors(brute, Euclidean)",
            "scikit-learn",
            other_question="answers another question (Euclidean distance)",
        ),
        "usearch": Candidate(_usearch, "exact search", "usearch"),
        "scann": Candidate(
            _scann, "score_brute_force; one query: search, else search_batched_parallel", "scann"
        ),
    },
    tiny=Tiny(_tiny, _tiny_torch),
    cuda=OnCuda(
        cases=(
            _row(20, 4096, 1_000_000, BF16, 10, FOUR_TIMES, most_ms=3.0),
            _row(80, 4096, 262_144, F32, 10, faster(1.5)),
            _row(90, 4096, 262_144, F32, 100, faster(1.5)),
            _row(25, 4096, 1_000_000, BF16, 100, FOUR_TIMES, most_ms=3.0),
            _row(40, 1, 1_000_000, BF16, 10, Target(1 / 0.6), baseline="read"),
            _row(130, 64, 1_000_000, BF16, 10, Target(1 / 0.7), baseline="read"),
        ),
        expression=_expression,
    ),
)  # fmt: skip
