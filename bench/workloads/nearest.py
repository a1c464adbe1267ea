"""nearest by the Euclidean distance: the code of every row of x, on Gaussian data and on the hardest there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vecbank
from bench.cases import DATA, OURS, PLAIN, Case, Data, Target, by_isa
from bench.cuda_cases import BF16, F32, WIDE, WRITTEN, CudaCase, faster, row
from bench.timing import Call
from bench.workload import SEARCH_TABLES, Candidate, OnCuda, Tiny, Workload

TILE_BYTES = 256 << 20  # of the scores that a peer in chunks of queries holds
CDIST, ADDMM, SKLEARN, VQP = "torch cdist+argmin", "torch addmm+argmin", "scikit-learn", "vector-quantize-pytorch"
FLASH, NARROW = "flash-kmeans", "bfloat16 by vecbank"
BARE = "nearest by vecbank"  # a candidate of the rows on a GPU that do more than this search


def _case(n: int, m: int, d: int, limit: float, data: str = "gaussian") -> Case:
    peers = ("faiss", CDIST, ADDMM, SKLEARN, VQP) if data == "gaussian" else ("faiss", CDIST)
    return Case(f"nearest {n} x {m}, d {d}{DATA[data]}", "nearest", n, m, d, "l2", Target(limit), peers, data=data)


def _row(rank: int, n: int, m: int, d: int, dtype: str, target: Target, *peers: str, **more: Any) -> CudaCase:
    return row("nearest", rank, n, m, d, dtype, target, peers, **more)


def _narrow_row(rank: int, d: int) -> CudaCase:
    return _row(rank, *WIDE, d, F32, Target(None, ((NARROW, 1.5),)), NARROW, *WRITTEN)


# ---- Candidates -----------------------------------------------------------------------------------------------------


def _ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    bank = vecbank.Bank(data.bank, metric=case.metric).prepare("search")
    return lambda: tuple(bank.nearest(data.x))


def _plain(case: Case, data: Data, threads: int) -> Call:
    del threads
    return lambda: tuple(vecbank.nearest(data.x, data.bank, case.metric))


def _narrow(case: Case, data: Data, threads: int) -> Call:
    return _ours(case, Data(data.x.bfloat16(), data.bank.bfloat16()), threads)


def _in_chunks(case: Case, data: Data, codes_of: Callable[[Tensor], Tensor]) -> Call:
    """Codes of as many queries at once as TILE_BYTES hold distances for."""
    queries = max(1, TILE_BYTES // (4 * case.m))
    return lambda: (None, torch.cat([codes_of(x) for x in data.x.split(queries)]))


def _cdist(case: Case, data: Data, threads: int) -> Call:
    del threads
    return _in_chunks(case, data, lambda x: torch.cdist(x, data.bank).argmin(1))


def _addmm(case: Case, data: Data, threads: int) -> Call:
    del threads
    norms = data.bank.square().sum(1)
    return _in_chunks(case, data, lambda x: torch.addmm(norms, x, data.bank.T, alpha=-2).argmin(1))


def _vqp(case: Case, data: Data, threads: int) -> Call:
    del threads
    from vector_quantize_pytorch import VectorQuantize

    layer = VectorQuantize(dim=case.d, codebook_size=case.m).eval()
    layer.codebook = data.bank.clone()
    search = _in_chunks(case, data, lambda x: layer(x[None])[1][0])

    def inferred() -> Any:
        with torch.inference_mode():
            return search()

    return inferred


def _faiss(case: Case, data: Data, threads: int) -> Call:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatL2(case.d)
    index.add(data.bank.numpy())
    queries = data.x.numpy()
    return lambda: tuple(found[:, 0] for found in index.search(queries, 1))


def _sklearn(case: Case, data: Data, threads: int) -> Call:
    del case, threads
    from sklearn.metrics import pairwise_distances_argmin

    x, bank = data.x.numpy(), data.bank.numpy()
    return lambda: (None, pairwise_distances_argmin(x, bank))


def _flash(case: Case, data: Data, threads: int) -> Call:
    del case, threads
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    x, bank = data.x[None], data.bank[None]
    x_squares, bank_squares = x.float().square().sum(-1), bank.float().square().sum(-1)
    return lambda: (None, euclid_assign_triton(x, bank, x_squares, c_sq=bank_squares)[0])


def codes_by_product(data: Data) -> Callable[[Tensor], Tensor]:
    """What a user writes for the codes of a block of rows: one product, half the bank's norms beforehand, argmax."""
    bank = data.bank
    half = bank.float().square().sum(1).mul(-0.5).to(bank.dtype)
    return lambda x: torch.addmm(half, x, bank.T).argmax(1)


def _expression(case: Case, data: Data) -> Callable[[Tensor], tuple[Any, ...]]:
    del case
    codes_of = codes_by_product(data)
    return lambda x: (None, codes_of(x))


BARE_SEARCH = Candidate(_ours, "the bare search of the same row", other_question="answers another question")


def _tiny(data: Data, grad: bool) -> Call:
    bank, x = vecbank.Bank(data.bank, metric="l2"), data.x.clone().requires_grad_(grad)
    return lambda: bank.nearest(x)


def _tiny_torch(data: Data) -> Call:
    x, bank = data.x, data.bank
    return lambda: torch.cdist(x, bank).min(1)


_CHUNKS = f"chunks of {TILE_BYTES >> 20} MiB"

WORKLOAD = Workload(
    op="nearest",
    place=30,
    tables=SEARCH_TABLES,
    cases=(
        _case(65536, 8192, 64, by_isa(0.40, 0.25)),
        _case(262144, 512, 32, by_isa(1.00, 0.70)),
        _case(131072, 1024, 256, by_isa(0.48, 0.32)),
        _case(65536, 8192, 64, 6.0, "equal"),
        _case(65536, 8192, 64, 6.0, "offset"),
        _case(65536, 8192, 64, 6.0, "ties"),
        _case(65536, 8192, 64, 1.5 * by_isa(0.40, 0.25), "unused"),
        _case(65536, 8192, 64, 1.5 * by_isa(0.40, 0.25), "nan"),
    ),
    candidates={
        OURS: Candidate(_ours),
        PLAIN: Candidate(_plain),
        CDIST: Candidate(_cdist, f"query {_CHUNKS} of distances"),
        ADDMM: Candidate(_addmm, f"|b|^2 - 2 x b' then argmin, |b|^2 beforehand, {_CHUNKS}"),
        "faiss": Candidate(_faiss, "IndexFlatL2", "faiss-cpu"),
        SKLEARN: Candidate(_sklearn, "pairwise_distances_argmin", "scikit-learn"),
        VQP: Candidate(_vqp, f"VectorQuantize.eval(), query {_CHUNKS} of distances", VQP),
    },
    tiny=Tiny(_tiny, _tiny_torch),
    cuda=OnCuda(
        cases=(
            _row(10, *WIDE, 64, BF16, Target(None, ((FLASH, 1 / 1.3),)), *WRITTEN, FLASH, most_ms=2.9),
            _row(60, 65536, 8192, 64, F32, faster(1.5), *WRITTEN, FLASH),
            _row(100, *WIDE, 128, BF16, faster(1.5, (FLASH, 1 / 1.3)), *WRITTEN, FLASH, most_ms=3.7),
            _narrow_row(55, 64),
            _narrow_row(200, 128),
            _row(210, 65536, 8192, 64, F32, Target(6.0), *WRITTEN, data="equal", suffix=", all rows equal"),
            _row(220, 65536, 8192, 64, F32, Target(6.0), *WRITTEN, data="offset", suffix=", data at 1000 ± 0.01"),
        ),
        expression=_expression,
        candidates={
            FLASH: Candidate(
                _flash,
                "its Triton assignment kernel; squared norms of both sides beforehand, as its own k-means does",
                FLASH,
            ),
            NARROW: Candidate(
                _narrow,
                "our search of the same data rounded to bfloat16",
                other_question="answers another question",
            ),
        },
    ),
)  # fmt: skip
