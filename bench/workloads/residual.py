"""ResidualVQ: codes of eight stages, each of which quantizes the residual of the one before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vecbank
from bench.cases import OURS, Case, Data, Target
from bench.check import Expected, codes_alone, to_numpy
from bench.cuda_cases import F32, row
from bench.timing import Call
from bench.workload import Candidate, OnCuda, Workload, quick_codebook
from vecbank.nn import ResidualVQ

STAGES = 8
VQP = "vector-quantize-pytorch"


def _data(case: Case, gen: torch.Generator) -> Data:
    """The bank holds the codebooks of all stages, one below the other; later ones are smaller, as residuals are."""
    x = torch.randn(case.n, case.d, generator=gen)
    scale = 0.8 ** torch.arange(STAGES).view(-1, 1, 1)
    return Data(x, (torch.randn(STAGES, case.m, case.d, generator=gen) * scale).flatten(0, 1))


def _codebooks(case: Case, data: Data) -> Tensor:
    return data.bank.view(STAGES, case.m, case.d)


def _product(case: Case, data: Data) -> Tensor:
    return _codebooks(case, data)[0]


# ---- Candidates -----------------------------------------------------------------------------------------------------


def _eval(layer: nn.Module, case: Case, data: Data) -> Call:
    layer.to(data.x.device)
    for stage, codebook in zip(layer.layers, _codebooks(case, data), strict=True):
        stage.codebook = codebook.clone()
    layer.eval()
    x = data.x[None]

    def encode() -> tuple[Any, ...]:
        with torch.inference_mode():
            quantized, codes, _ = layer(x)
        return None, codes[0], quantized

    return encode


def _ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    return _eval(ResidualVQ(dim=case.d, num_quantizers=STAGES, codebook_size=case.m), case, data)


def _vqp(case: Case, data: Data, threads: int) -> Call:
    del threads
    from vector_quantize_pytorch import ResidualVQ as Peer

    return _eval(Peer(dim=case.d, num_quantizers=STAGES, codebook_size=case.m), case, data)


def _bits(case: Case) -> int:
    return (case.m - 1).bit_length()


def _faiss(case: Case, data: Data, threads: int) -> Call:
    import faiss

    faiss.omp_set_num_threads(threads)
    quantizer = faiss.ResidualQuantizer(case.d, STAGES, _bits(case))
    faiss.copy_array_to_vector(data.bank.numpy().ravel(), quantizer.codebooks)
    quantizer.is_trained = True
    quantizer.max_beam_size = 1
    x = data.x.numpy()
    return lambda: (None, quantizer.compute_codes(x))


# ---- Are the answers right? -----------------------------------------------------------------------------------------


def _expected(case: Case, data: Data, rows: Tensor) -> Expected:
    found = vecbank.reference.residual_quantize(data.x[rows], list(_codebooks(case, data)))
    return Expected(rows.numpy(), to_numpy(found.codes))


def _answer(case: Case, name: str, result: tuple[Any, ...], rows: np.ndarray) -> tuple[Any, ...]:
    if name != "faiss":
        return codes_alone(case, name, result, rows)
    # A bit string of STAGES numbers, the first in the lowest bits.
    bits, width = np.unpackbits(result[1][rows], axis=1, bitorder="little"), _bits(case)
    return None, (bits[:, : STAGES * width].reshape(len(rows), STAGES, width) * (1 << np.arange(width))).sum(2)


WORKLOAD = Workload(
    op="residual",
    place=70,
    tables=("codebooks",),
    cases=(
        Case(
            "ResidualVQ 8 x 1024, d 128, N 65536", "residual", 65536, 1024, 128, "l2",
            Target(1.1), (VQP, "faiss"), products=STAGES,
        ),
    ),
    data=_data,
    product=_product,
    expected=_expected,
    answer=_answer,
    quick=quick_codebook,
    candidates={
        OURS: Candidate(_ours),
        VQP: Candidate(_vqp, "ResidualVQ.eval()", VQP),
        "faiss": Candidate(_faiss, "ResidualQuantizer, beam of 1", "faiss-cpu"),
    },
    cuda=OnCuda(
        cases=(
            row(
                "residual", 170, 65536, 1024, 128, F32, Target(None), (VQP,), products=STAGES, most_kernels=1,
                name="ResidualVQ 8 x 1024, d 128, N 65,536",
            ),
        ),
        parameters=True,
    ),
)  # fmt: skip
