"""What a user would write today. Each peer is prepared outside the clock, like our Bank, then called.

A peer whose package is missing raises ImportError from its preparation and is reported as missing. Calls
return what ours return: `(values or None, indices)` for searches, `(scores, *gradients)` for project.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F

from bench.cases import Case, Data
from bench.ours import Prepare
from bench.timing import CHUNK_ROWS, Call

TILE_BYTES = 256 << 20  # score tile of the chunked torch candidates
PACKAGES = {
    "faiss": "faiss-cpu",
    "scikit-learn": "scikit-learn",
    "usearch": "usearch",
    "scann": "scann",
    "vector-quantize-pytorch": "vector-quantize-pytorch",
}
NOTES = {
    "torch normalize+mm": "bank normalised beforehand, except with gradients",
    "torch chunks": f"mm + topk over chunks of {CHUNK_ROWS} bank rows, then topk of the winners",
    "torch cdist+argmin": f"query chunks of {TILE_BYTES >> 20} MiB of distances",
    "torch addmm+argmin": f"|b|^2 - 2 x b' then argmin, |b|^2 beforehand, chunks of {TILE_BYTES >> 20} MiB",
    "scikit-learn": "NearestNeighbors(brute, Euclidean), pairwise_distances_argmin or cosine_similarity",
    "faiss": "IndexFlatIP / IndexFlatL2",
    "usearch": "exact search",
    "scann": "score_brute_force; one query: search, else search_batched_parallel",
    "vector-quantize-pytorch": f"VectorQuantize.eval(), query chunks of {TILE_BYTES >> 20} MiB of distances",
}


def versions(packages: dict[str, str] = PACKAGES) -> dict[str, str | None]:
    """Installed version of every peer package, None where it is missing."""
    found: dict[str, str | None] = {}
    for package in sorted(set(packages.values())):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _chunk(m: int) -> int:
    return max(1, TILE_BYTES // (4 * m))


def _normalize_mm(case: Case, data: Data, threads: int) -> Call:
    del threads
    if case.grad:
        x, bank = data.x.clone().requires_grad_(), data.bank.clone().requires_grad_()

        def step() -> tuple[torch.Tensor, ...]:
            out = F.normalize(x, dim=1) @ F.normalize(bank, dim=1).T
            return (out.detach(), *torch.autograd.grad(out, (x, bank), data.upstream))

        return step
    unit = F.normalize(data.bank, dim=1)
    return lambda: (F.normalize(data.x, dim=1) @ unit.T,)


def _torch_topk(case: Case, data: Data, threads: int) -> Call:
    del threads

    def search() -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = [], []
        for start in range(0, case.m, CHUNK_ROWS):
            rows = data.bank[start : start + CHUNK_ROWS]
            best = torch.mm(data.x, rows.T).topk(min(case.k, len(rows)), dim=1)
            values.append(best.values)
            indices.append(best.indices + start)
        top = torch.cat(values, 1).topk(case.k, dim=1)
        return top.values, torch.cat(indices, 1).gather(1, top.indices)

    return search


def _cdist_argmin(case: Case, data: Data, threads: int) -> Call:
    del threads

    def search() -> tuple[None, torch.Tensor]:
        return None, torch.cat([torch.cdist(q, data.bank).argmin(1) for q in data.x.split(_chunk(case.m))])

    return search


def _addmm_argmin(case: Case, data: Data, threads: int) -> Call:
    del threads
    norms = data.bank.square().sum(1)

    def search() -> tuple[None, torch.Tensor]:
        parts = [torch.addmm(norms, q, data.bank.T, alpha=-2).argmin(1) for q in data.x.split(_chunk(case.m))]
        return None, torch.cat(parts)

    return search


def _faiss(case: Case, data: Data, threads: int) -> Call:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(case.d) if case.metric == "dot" else faiss.IndexFlatL2(case.d)
    index.add(data.bank.numpy())
    queries = data.x.numpy()

    def search() -> tuple[Any, Any]:
        values, indices = index.search(queries, case.k)
        return (values, indices) if case.op == "topk" else (values[:, 0], indices[:, 0])

    return search


def _sklearn(case: Case, data: Data, threads: int) -> Call:
    from sklearn.metrics import pairwise_distances_argmin
    from sklearn.metrics.pairwise import cosine_similarity
    from sklearn.neighbors import NearestNeighbors

    x, bank = data.x.numpy(), data.bank.numpy()
    if case.op == "project":
        return lambda: (cosine_similarity(x, bank),)
    if case.op == "nearest":
        return lambda: (None, pairwise_distances_argmin(x, bank))
    searcher = NearestNeighbors(n_neighbors=case.k, algorithm="brute", n_jobs=threads).fit(bank)
    return lambda: tuple(searcher.kneighbors(x))


def _usearch(case: Case, data: Data, threads: int) -> Call:
    from usearch.compiled import MetricKind
    from usearch.index import search

    x, bank = data.x.numpy(), data.bank.numpy()
    metric = MetricKind.IP if case.metric == "dot" else MetricKind.L2sq

    def exact() -> tuple[Any, Any]:
        found = search(bank, x if len(x) > 1 else x[0], case.k, metric, exact=True, threads=threads)
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


def _vector_quantize(case: Case, data: Data, threads: int) -> Call:
    del threads
    from vector_quantize_pytorch import VectorQuantize

    layer = VectorQuantize(dim=case.d, codebook_size=case.m).eval()
    layer.codebook = data.bank.clone()

    def search() -> tuple[None, torch.Tensor]:
        with torch.inference_mode():
            return None, torch.cat([layer(q[None])[1][0] for q in data.x.split(_chunk(case.m))])

    return search


PEERS: dict[str, Prepare] = {
    "torch normalize+mm": _normalize_mm,
    "torch chunks": _torch_topk,
    "torch cdist+argmin": _cdist_argmin,
    "torch addmm+argmin": _addmm_argmin,
    "faiss": _faiss,
    "scikit-learn": _sklearn,
    "usearch": _usearch,
    "scann": _scann,
    "vector-quantize-pytorch": _vector_quantize,
}

# A peer that answers another question (same cost, other ranking) is timed but not checked.
UNCHECKED = {("scikit-learn", "topk")}


def tiny(op: str, data: Data) -> Call:
    """What a user writes for one tiny query: the floor of a Python call into torch."""
    x, bank, codes = data.x, data.bank, torch.zeros(1, dtype=torch.int64)
    unit = F.normalize(bank, dim=1)
    calls: dict[str, Call] = {
        "project": lambda: F.normalize(x, dim=1) @ unit.T,
        "topk": lambda: (x @ bank.T).topk(4, dim=1),
        "nearest": lambda: torch.cdist(x, bank).min(1),
        "quantize": lambda: bank[torch.cdist(x, bank).argmin(1)],
        "lookup": lambda: F.embedding(codes, bank),
    }
    return calls[op]
