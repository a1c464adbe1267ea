"""PQ encode: packed product codes of sixteen parts, each with a codebook of its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import vecbank
from bench.cases import OURS, Case, Data, Target
from bench.check import Expected, codes_alone, to_numpy
from bench.timing import Call
from bench.workload import Candidate, Workload, quick_codebook

PARTS = 16


def _data(case: Case, gen: torch.Generator) -> Data:
    """The bank holds the codebooks of all parts, one below the other."""
    x = torch.randn(case.n, case.d, generator=gen)
    return Data(x, torch.randn(PARTS * case.m, case.d // PARTS, generator=gen))


def _codebooks(case: Case, data: Data) -> Tensor:
    return data.bank.view(PARTS, case.m, -1)


def _product(case: Case, data: Data) -> Tensor:
    """All parts as one codebook of d columns."""
    return _codebooks(case, data).transpose(0, 1).reshape(case.m, -1)


def _ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    codec = vecbank.pq.ProductCodec(_codebooks(case, data), case.d)
    return lambda: (None, codec.encode(data.x, packed=True))


def _faiss(case: Case, data: Data, threads: int) -> Call:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexPQ(case.d, PARTS, 8)
    faiss.copy_array_to_vector(data.bank.numpy().ravel(), index.pq.centroids)
    index.is_trained = True
    x = data.x.numpy()
    return lambda: (None, index.sa_encode(x))


def _expected(case: Case, data: Data, rows: Tensor) -> Expected:
    parts = zip(data.x[rows].chunk(PARTS, 1), _codebooks(case, data), strict=True)
    codes = [vecbank.reference.nearest(x, codebook, "l2").indices for x, codebook in parts]
    return Expected(rows.numpy(), to_numpy(torch.stack(codes, 1)))


def _small(case: Case) -> Case:
    return replace(case, n=8)  # faiss has codes of eight bits for 256 rows only


WORKLOAD = Workload(
    op="pq_encode",
    place=110,
    tables=("codebooks",),
    cases=(
        Case(
            "PQ encode 1,000,000, d 128, m 16, 8 bits", "pq_encode", 1_000_000, 256, 128, "l2",
            Target(None, (("faiss", 1 / 1.2),)), ("faiss",),
        ),
    ),
    data=_data,
    product=_product,
    expected=_expected,
    answer=codes_alone,
    quick=quick_codebook,
    small=_small,
    candidates={OURS: Candidate(_ours), "faiss": Candidate(_faiss, "IndexPQ.sa_encode", "faiss-cpu")},
)  # fmt: skip
