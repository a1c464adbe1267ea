"""SparseAutoencoder: the error of a batch and its gradients. The first call's indices are checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.cases import OURS, Case, Data, Target
from bench.check import codes_alone
from bench.timing import Call
from bench.workload import Candidate, Workload, quick_codebook
from bench.workloads.sparse_encode import dictionary
from vecbank.nn import SparseAutoencoder

DENSE = "dense torch"


def _ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    sae = SparseAutoencoder(case.d, case.m, case.k, aux_k=0)
    with torch.no_grad():
        sae.encoder.copy_(data.bank)
        sae.decoder.copy_(nn.functional.normalize(data.bank, dim=1))
    parameters = [p for p in sae.parameters() if p.requires_grad]

    def step() -> tuple[Any, ...]:
        out = sae(data.x)
        return out.values.detach(), out.indices, *torch.autograd.grad(out.error, parameters)

    return step


def _dense(case: Case, data: Data, threads: int) -> Call:
    """What a user writes: the dense latents, topk, scattered back, a dense decoder; the same loss."""
    del threads
    decoder = nn.functional.normalize(data.bank, dim=1).requires_grad_()
    encoder, bias, shift = data.bank.clone(), torch.zeros(case.m), torch.zeros(case.d)
    parameters = [decoder, *(t.requires_grad_() for t in (encoder, bias, shift))]
    x = data.x

    def step() -> tuple[Any, ...]:
        latents = torch.relu((x - shift) @ encoder.T + bias)
        values, indices = latents.topk(case.k, dim=1)
        sparse = torch.zeros_like(latents).scatter(1, indices, values)
        error = (x - (sparse @ decoder + shift)).square().mean() / (x - x.mean(0)).square().mean()
        return values.detach(), indices, *torch.autograd.grad(error, parameters)

    return step


WORKLOAD = Workload(
    op="sae_step",
    place=90,
    tables=("codebooks", "memory"),
    cases=(
        Case(
            "sparse autoencoder step 2048 x 24576, d 768, k 32", "sae_step", 2048, 24576, 768, "dot",
            Target(None, ((DENSE, 1 / 1.5),)), (DENSE,), k=32, memory_share=(DENSE, 0.2),
        ),
    ),
    data=dictionary,
    answer=codes_alone,
    quick=quick_codebook,
    candidates={OURS: Candidate(_ours), DENSE: Candidate(_dense, "dense latents, topk, scatter, a dense decoder")},
)  # fmt: skip
