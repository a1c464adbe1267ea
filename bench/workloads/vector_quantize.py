"""VectorQuantize: a training step, forward, backward and the codebook's update. The first call's codes are checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.cases import OURS, Case, Data, Target, by_isa
from bench.check import codes_alone
from bench.cuda_cases import BF16, WIDE, row
from bench.timing import Call
from bench.workload import Candidate, OnCuda, Workload, quick_codebook
from bench.workloads.nearest import BARE, BARE_SEARCH
from vecbank.nn import VectorQuantize

VQP = "vector-quantize-pytorch"


def _case(n: int, m: int, d: int, limit: float) -> Case:
    return Case(f"VectorQuantize train {n} x {m}, d {d}", "vq_train", n, m, d, "l2", Target(limit), (VQP,))


def _data(case: Case, gen: torch.Generator) -> Data:
    x, bank, upstream = (torch.randn(rows, case.d, generator=gen) for rows in (case.n, case.m, case.n))
    return Data(x, bank, upstream)


def _step(layer: nn.Module, case: Case, data: Data) -> Call:
    layer.to(data.x.device).codebook = data.bank.clone()
    layer.train()
    x, upstream = data.x.clone().requires_grad_()[None], data.upstream
    assert upstream is not None

    def step() -> tuple[Any, ...]:
        quantized, codes, loss = layer(x)
        grad = torch.autograd.grad((quantized, loss), x, (upstream[None], torch.ones_like(loss)))[0]
        return None, codes.view(case.n, -1), quantized.detach(), grad

    return step


def _ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    return _step(VectorQuantize(dim=case.d, codebook_size=case.m), case, data)


def _vqp(case: Case, data: Data, threads: int) -> Call:
    del threads
    from vector_quantize_pytorch import VectorQuantize as Peer

    return _step(Peer(dim=case.d, codebook_size=case.m), case, data)


WORKLOAD = Workload(
    op="vq_train",
    place=60,
    tables=("codebooks",),
    cases=(_case(65536, 8192, 64, by_isa(0.55, 0.40)), _case(131072, 1024, 256, 1.45), _case(262144, 512, 32, 2.10)),
    data=_data,
    answer=codes_alone,
    quick=quick_codebook,
    candidates={OURS: Candidate(_ours), VQP: Candidate(_vqp, "VectorQuantize.train()", VQP)},
    cuda=OnCuda(
        cases=(
            row(
                "vq_train", 50, *WIDE, 64, BF16, Target(None, ((VQP, 0.1), (BARE, 2.5))), (BARE, VQP),
                name="VectorQuantize train step 1,048,576 x 8,192, d 64",
                share=(VQP, 16),  # the peer holds N x M scores twice
            ),
        ),
        candidates={BARE: BARE_SEARCH},
        parameters=True,
    ),
)  # fmt: skip
