"""topk by the dot product where rows are not Gaussian: docstrings as a sentence model embeds them, falling spectra."""

from __future__ import annotations

from dataclasses import replace

from bench import embeddings
from bench.cases import DATA, OURS, Case, Data, Target, by_isa
from bench.timing import Call
from bench.workload import Candidate, Workload
from bench.workloads import topk

OP, K = "topk_embeddings", 10
PANORAMA = "faiss Panorama"
PEERS = ("faiss", PANORAMA, "scann")
LEVELS, BATCH = 8, 512  # as in faiss's own bench of it
REPEATED = 400_000


def _case(n: int, m: int, d: int, data: str, limit: float, what: str = "", baseline: str = "chunks") -> Case:
    name = f"topk {n} x {m:,}{what}, d {d}, k {K}{DATA[data]}"
    return Case(name, OP, n, m, d, "dot", Target(limit), PEERS, k=K, data=data, baseline=baseline)


def _docstrings() -> tuple[Case, ...]:
    """How many there are depends on the packages of the machine; without them there are no such rows."""
    count = embeddings.count()
    if not count:
        return ()
    n, d, what = embeddings.QUERIES, embeddings.WIDTH, " docstrings"
    return (
        _case(n, count - n, d, "embeddings", by_isa(0.28, 0.17), what),
        _case(1, count - n, d, "embeddings", by_isa(0.30, 0.20), what, "read"),
        _case(n, REPEATED, d, "embeddings-repeated", by_isa(0.20, 0.11), f" rows of {count - n:,}{what}"),
    )


def _panorama(case: Case, data: Data, threads: int) -> Call:
    """Bounds after each eighth of the axes, which are first turned so that the largest variances come first."""
    import faiss

    faiss.omp_set_num_threads(threads)
    bank, queries = data.bank.numpy(), data.x.numpy()
    turn = faiss.PCAMatrix(case.d, case.d)
    turn.train(bank)
    # Less the centre, queries and bank rows would have other products, in another order: the turn alone is used.
    turn.have_bias = False
    index = faiss.IndexPreTransform(turn, faiss.IndexFlatIPPanorama(case.d, LEVELS, BATCH))
    index.add(bank)
    return lambda: index.search(queries, case.k)


def _quick(case: Case) -> Case:
    return replace(case, n=max(1, case.n // 8), m=case.m // 8)


def _small(case: Case) -> Case:
    return replace(case, n=8, m=2 * case.d, data="gaussian")  # as many axes as Panorama's PCAMatrix looks for


DOCSTRINGS = _docstrings()

WORKLOAD = Workload(
    op=OP,
    place=25,
    tables=("speed", "memory"),
    cases=(
        *DOCSTRINGS,
        _case(1024, 200_000, 768, "power-0.5", by_isa(0.36, 0.22)),
        _case(1024, 200_000, 768, "power-1.0", by_isa(0.22, 0.12)),
        _case(1024, 200_000, 768, "power-1.5", by_isa(0.10, 0.05)),
    ),
    quick=_quick,
    small=_small,
    left_out=None if DOCSTRINGS else f"topk over docstrings: {embeddings.ABSENT}",
    candidates={
        OURS: topk.WORKLOAD.ours,
        "faiss": topk.WORKLOAD.candidates["faiss"],
        PANORAMA: Candidate(
            _panorama, f"IndexFlatIPPanorama, {LEVELS} levels, after a PCAMatrix without its centre", "faiss-cpu"
        ),
        "scann": topk.WORKLOAD.candidates["scann"],
    },
)
