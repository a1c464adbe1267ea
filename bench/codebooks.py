"""The rows on codebooks and sparse dictionaries: who answers them, and what is checked.

Every candidate of a row starts from the same books and answers the same question; where a call changes its module
(training), the codes of the first call are checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vecbank
from bench.cases import OURS, PLAIN, Case, Data, Target
from bench.ours import to_numpy
from bench.timing import Call
from vecbank.nn import ResidualVQ, SparseAutoencoder, VectorQuantize

STAGES, PARTS = 8, 16
Prepare = Callable[[Case, Data, int], Call]
_VQP, _DENSE = "vector-quantize-pytorch", "torch mm+topk"


def _case(name: str, op: str, n: int, m: int, d: int, target: Target, peers: tuple[str, ...], **more: Any) -> Case:
    return Case(name, op, n, m, d, "dot" if op.startswith("s") else "l2", target, peers, **more)


def _vq(n: int, m: int, d: int, limit: float) -> Case:
    return _case(f"VectorQuantize train {n} x {m}, d {d}", "vq_train", n, m, d, Target(limit), (_VQP,))


CASES: tuple[Case, ...] = (
    _vq(65536, 8192, 64, 0.85),
    _vq(131072, 1024, 256, 1.45),
    _vq(262144, 512, 32, 2.10),
    _case(
        "ResidualVQ 8 x 1024, d 128, N 65536", "residual", 65536, 1024, 128,
        Target(1.1), (_VQP, "faiss"), products=8,
    ),
    _case(
        "sparse_encode 2048 x 24576, d 768, k 32", "sparse_encode", 2048, 24576, 768,
        Target(0.85), (PLAIN, _DENSE), k=32, memory_limit_mib=0.05 * 2048 * 24576 * 4 / 2**20,
    ),
    _case(
        "sparse autoencoder step 2048 x 24576, d 768, k 32", "sae_step", 2048, 24576, 768,
        Target(None, (("dense torch", 1 / 1.5),)), ("dense torch",), k=32, memory_share=("dense torch", 0.2),
    ),
    _case(
        "kmeans 1,000,000 x 1024, d 64, 10 iterations", "kmeans", 1_000_000, 1024, 64,
        Target(None, (("faiss", 1 / 1.5), ("scikit-learn", 1 / 1.5))), ("faiss", "scikit-learn"), products=10,
    ),
    _case(
        "PQ encode 1,000,000, d 128, m 16, 8 bits", "pq_encode", 1_000_000, 256, 128,
        Target(None, (("faiss", 1 / 1.2),)), ("faiss",),
    ),
)  # fmt: skip


def make_data(case: Case, gen: torch.Generator) -> Data:
    """x (n, d) Gaussian, and as bank the books: stages or parts of them where the operation has several."""
    x = torch.randn(case.n, case.d, generator=gen)
    if case.op == "residual":
        scale = 0.8 ** torch.arange(STAGES).view(-1, 1, 1)
        return Data(x, (torch.randn(STAGES, case.m, case.d, generator=gen) * scale).flatten(0, 1))
    if case.op == "pq_encode":
        return Data(x, torch.randn(PARTS * case.m, case.d // PARTS, generator=gen))
    if case.op == "kmeans":
        return Data(x, x[torch.randperm(case.n, generator=gen)[: case.m]].clone())
    bank = torch.randn(case.m, case.d, generator=gen)
    upstream = torch.randn(case.n, case.d, generator=gen) if case.op == "vq_train" else None
    return Data(x, bank / case.d**0.5 if case.op.startswith("s") else bank, upstream)


def product(case: Case, data: Data) -> Tensor:
    """The matrix whose plain product with x is the baseline: one book, or all parts as one of d columns."""
    if case.op == "pq_encode":
        return data.bank.view(PARTS, case.m, -1).transpose(0, 1).reshape(case.m, -1)
    return data.bank[: case.m]


# ---- VectorQuantize, ResidualVQ -----------------------------------------------------------------------------------


def _vq_step(layer: nn.Module, case: Case, data: Data) -> Call:
    layer.to(data.x.device).codebook = data.bank.clone()
    layer.train()
    x = data.x.clone().requires_grad_()[None]

    def step() -> tuple[Any, ...]:
        quantized, codes, loss = layer(x)
        grad = torch.autograd.grad((quantized, loss), x, (data.upstream[None], torch.ones_like(loss)))[0]
        return None, codes.view(case.n, -1), quantized.detach(), grad

    return step


def _vq_ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    return _vq_step(VectorQuantize(dim=case.d, codebook_size=case.m), case, data)


def _vq_peer(case: Case, data: Data, threads: int) -> Call:
    del threads
    from vector_quantize_pytorch import VectorQuantize as Peer

    return _vq_step(Peer(dim=case.d, codebook_size=case.m), case, data)


def _residual(layer: nn.Module, case: Case, data: Data) -> Call:
    layer.to(data.x.device)
    for stage, book in zip(layer.layers, data.bank.view(STAGES, case.m, case.d), strict=True):
        stage.codebook = book.clone()
    layer.eval()
    x = data.x[None]

    def encode() -> tuple[Any, ...]:
        with torch.inference_mode():
            quantized, codes, _ = layer(x)
        return None, codes[0], quantized

    return encode


def _residual_ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    return _residual(ResidualVQ(dim=case.d, num_quantizers=STAGES, codebook_size=case.m), case, data)


def _residual_peer(case: Case, data: Data, threads: int) -> Call:
    del threads
    from vector_quantize_pytorch import ResidualVQ as Peer

    return _residual(Peer(dim=case.d, num_quantizers=STAGES, codebook_size=case.m), case, data)


def _residual_faiss(case: Case, data: Data, threads: int) -> Call:
    import faiss

    faiss.omp_set_num_threads(threads)
    bits = (case.m - 1).bit_length()
    quantizer = faiss.ResidualQuantizer(case.d, STAGES, bits)
    faiss.copy_array_to_vector(data.bank.numpy().ravel(), quantizer.codebooks)
    quantizer.is_trained = True
    quantizer.max_beam_size = 1
    x = data.x.numpy()

    def encode() -> tuple[Any, ...]:
        return None, quantizer.compute_codes(x)

    return encode


# ---- Sparse dictionaries ------------------------------------------------------------------------------------------


def _encode_ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    bank = vecbank.Bank(data.bank, "dot", bias=data.x.new_zeros(case.m))
    return lambda: tuple(vecbank.sparse_encode(data.x, bank, None, case.k))


def _encode_plain(case: Case, data: Data, threads: int) -> Call:
    del threads
    bias = data.x.new_zeros(case.m)
    return lambda: tuple(vecbank.sparse_encode(data.x, data.bank, bias, case.k))


def _encode_dense(case: Case, data: Data, threads: int) -> Call:
    del threads
    bias = data.x.new_zeros(case.m)
    return lambda: tuple(torch.addmm(bias, data.x, data.bank.T).relu_().topk(case.k, dim=1))


def _sae_ours(case: Case, data: Data, threads: int) -> Call:
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


def _sae_dense(case: Case, data: Data, threads: int) -> Call:
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


# ---- k-means, product codes ---------------------------------------------------------------------------------------

_ITERATIONS = 10


def _kmeans_ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    return lambda: tuple(vecbank.kmeans(data.x, case.m, init=data.bank, iterations=_ITERATIONS, tolerance=0.0)[:2])


def _kmeans_faiss(case: Case, data: Data, threads: int) -> Call:
    import faiss

    faiss.omp_set_num_threads(threads)
    x, start = data.x.numpy(), data.bank.numpy()

    def run() -> tuple[Any, ...]:
        means = faiss.Kmeans(case.d, case.m, niter=_ITERATIONS, nredo=1, max_points_per_centroid=case.n)
        means.train(x, init_centroids=start)
        return means.centroids, None

    return run


def _kmeans_sklearn(case: Case, data: Data, threads: int) -> Call:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    x, start = data.x.numpy(), data.bank.numpy()

    def run() -> tuple[Any, ...]:
        with threadpool_limits(threads):
            found = KMeans(case.m, init=start, n_init=1, max_iter=_ITERATIONS, tol=0.0, algorithm="lloyd").fit(x)
        return found.cluster_centers_, found.labels_

    return run


def _pq_ours(case: Case, data: Data, threads: int) -> Call:
    del threads
    codec = vecbank.ProductCodec(data.bank.view(PARTS, case.m, -1), case.d)
    return lambda: (None, codec.encode(data.x, packed=True))


def _pq_faiss(case: Case, data: Data, threads: int) -> Call:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexPQ(case.d, PARTS, 8)
    faiss.copy_array_to_vector(data.bank.numpy().ravel(), index.pq.centroids)
    index.is_trained = True
    x = data.x.numpy()
    return lambda: (None, index.sa_encode(x))


CANDIDATES: dict[str, dict[str, Prepare]] = {
    "vq_train": {OURS: _vq_ours, _VQP: _vq_peer},
    "residual": {OURS: _residual_ours, _VQP: _residual_peer, "faiss": _residual_faiss},
    "sparse_encode": {OURS: _encode_ours, PLAIN: _encode_plain, _DENSE: _encode_dense},
    "sae_step": {OURS: _sae_ours, "dense torch": _sae_dense},
    "kmeans": {OURS: _kmeans_ours, "faiss": _kmeans_faiss, "scikit-learn": _kmeans_sklearn},
    "pq_encode": {OURS: _pq_ours, "faiss": _pq_faiss},
}

# ---- Are the answers right? ---------------------------------------------------------------------------------------


def expected_codes(case: Case, data: Data, rows: Tensor) -> np.ndarray | None:
    """The reference's codes for sampled rows, (sample, ...); None where there is no single right answer."""
    x = data.x[rows]
    if case.op == "vq_train":
        found = vecbank.reference.nearest(x, data.bank, "l2").indices[:, None]
    elif case.op == "residual":
        found = vecbank.reference.residual_quantize(x, list(data.bank.view(STAGES, case.m, case.d))).codes
    elif case.op in ("sparse_encode", "sae_step"):
        found = vecbank.reference.topk(x, data.bank, case.k, "dot").indices
    elif case.op == "pq_encode":
        parts = zip(x.chunk(PARTS, 1), data.bank.view(PARTS, case.m, -1), strict=True)
        found = torch.stack([vecbank.reference.nearest(p, book, "l2").indices for p, book in parts], 1)
    else:
        return None
    return to_numpy(found)


def codes_of(case: Case, name: str, codes: Any, rows: np.ndarray) -> np.ndarray:
    """The codes of a candidate's answer for sampled rows, unpacked where it packs them."""
    picked = to_numpy(codes)[rows]
    if case.op == "residual" and name == "faiss":  # a bit string of STAGES numbers, the first in the lowest bits
        bits = np.unpackbits(picked, axis=1, bitorder="little")
        width = (case.m - 1).bit_length()
        weights = 1 << np.arange(width)
        return (bits[:, : STAGES * width].reshape(len(picked), STAGES, width) * weights).sum(2)
    return picked.astype(np.int64)


def quick(case: Case) -> Case:
    """Small enough for a smoke run."""
    return replace(case, n=max(case.m, case.n // 32) if case.op == "kmeans" else max(256, case.n // 32))
