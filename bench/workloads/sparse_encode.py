"""sparse_encode: the k largest activations of a sparse autoencoder's encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vecbank
from bench.cases import OURS, PLAIN, Case, Data, Target, by_isa
from bench.check import codes_alone
from bench.cuda_cases import BF16, F32, WRITTEN, CudaCase, faster, row
from bench.timing import Call
from bench.workload import Candidate, OnCuda, Workload, quick_codebook

DENSE = "torch mm+topk"


def dictionary(case: Case, gen: torch.Generator) -> Data:
    """A dictionary whose rows are about as long as 1, as an encoder's are."""
    x, bank = (torch.randn(rows, case.d, generator=gen) for rows in (case.n, case.m))
    return Data(x, bank / case.d**0.5)


def _row(rank: int, dtype: str) -> CudaCase:
    name = "sparse_encode 4,096 x 32,768, d 768, k 32"
    target = faster(1.5)
    return row("sparse_encode", rank, 4096, 32768, 768, dtype, target, WRITTEN, name=name, metric="dot", k=32)


def _ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    bank = vecbank.Bank(data.bank, "dot", bias=data.x.new_zeros(case.m))
    return lambda: tuple(vecbank.sparse.encode(data.x, bank, k=case.k))


def _plain(case: Case, data: Data, threads: int) -> Call:
    del threads
    bias = data.x.new_zeros(case.m)
    return lambda: tuple(vecbank.sparse.encode(data.x, data.bank, bias, case.k))


def _expression(case: Case, data: Data) -> Callable[[Tensor], tuple[Any, ...]]:
    bank = data.bank
    bias = bank.new_zeros(case.m)
    return lambda x: tuple(torch.addmm(bias, x, bank.T).relu_().topk(case.k, dim=1))


def _dense(case: Case, data: Data, threads: int) -> Call:
    del threads
    encode = _expression(case, data)
    return lambda: encode(data.x)


WORKLOAD = Workload(
    op="sparse_encode",
    place=80,
    tables=("codebooks", "memory"),
    cases=(
        Case(
            "sparse_encode 2048 x 24576, d 768, k 32", "sparse_encode", 2048, 24576, 768, "dot",
            Target(by_isa(0.50, 0.32)), (PLAIN, DENSE), k=32, memory_limit_mib=0.05 * 2048 * 24576 * 4 / 2**20,
        ),
    ),
    data=dictionary,
    answer=codes_alone,
    quick=quick_codebook,
    candidates={OURS: Candidate(_ours), PLAIN: Candidate(_plain), DENSE: Candidate(_dense, "addmm, relu, topk")},
    cuda=OnCuda(cases=(_row(180, F32), _row(190, BF16)), expression=_expression),
)  # fmt: skip
