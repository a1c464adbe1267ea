"""Every module of vecbank.nn as the tests of export build it: kind, options, and the input of its forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import vecbank.nn as vn

DIM = 8
VQ = {"dim": DIM, "codebook_size": 12}
RVQ = {**VQ, "num_quantizers": 3}
LEARN = {"learnable_codebook": True, "ema_update": False}
SAE = {"dim": DIM, "latents": 32, "k": 4}
TABLES = {"full": {}, "hashed": {"rows": 32}, "two_table": {}, "low_rank": {"rank": 4}, "integer": {}, "product": {}}


def tokens() -> Tensor:
    return torch.randn(2, 20, DIM)


def image() -> Tensor:
    return torch.randn(2, DIM, 4, 5)


def bits() -> Tensor:
    return torch.randn(2, 20, 4)


def ids() -> Tensor:
    return torch.randint(0, 64, (2, 7))


def features() -> Tensor:
    return torch.randint(0, 64, (7, 2))


CASES: dict[str, tuple[str, dict[str, Any], Callable[[], Tensor]]] = {
    "plain": ("VectorQuantize", VQ, tokens),
    "cosine": ("VectorQuantize", {**VQ, "use_cosine_sim": True}, tokens),
    "heads": ("VectorQuantize", {**VQ, "heads": 2, "separate_codebook_per_head": True}, tokens),
    "affine": ("VectorQuantize", {**VQ, "affine_param": True}, tokens),
    "learnable": ("VectorQuantize", {**VQ, **LEARN}, tokens),
    "image": ("VectorQuantize", {**VQ, "accept_image_fmap": True}, image),
    "random projection": ("RandomProjectionQuantizer", {**VQ, "codebook_dim": 4}, tokens),
    "residual": ("ResidualVQ", RVQ, tokens),
    "shared": ("ResidualVQ", {**RVQ, "shared_codebook": True}, tokens),
    "beam": ("ResidualVQ", {**RVQ, "beam_size": 2}, tokens),
    "implicit": ("ResidualVQ", {**RVQ, "implicit_neural_codebook": True}, tokens),
    "grouped": ("GroupedResidualVQ", {**RVQ, "groups": 2}, tokens),
    "product": ("ProductQuantizer", {"dim": DIM, "parts": 2, "codes": 12, "rotation": True}, tokens),
    "sim": ("SimVQ", VQ, tokens),
    "residual sim": ("ResidualSimVQ", RVQ, tokens),
    "latent": ("LatentQuantize", {"levels": [5, 4, 8], "dim": DIM}, image),
    "fsq": ("FSQ", {"levels": [8, 5, 5], "dim": DIM}, tokens),
    "residual fsq": ("ResidualFSQ", {"levels": [8, 5], "num_quantizers": 2, "dim": DIM}, tokens),
    "grouped fsq": ("GroupedResidualFSQ", {"levels": [8, 5], "num_quantizers": 2, "groups": 2, "dim": DIM}, tokens),
    "lfq": ("LFQ", {"dim": DIM, "codebook_size": 16}, tokens),
    "residual lfq": ("ResidualLFQ", {"dim": DIM, "codebook_size": 16, "num_quantizers": 2}, tokens),
    "grouped lfq": ("GroupedResidualLFQ", {"dim": DIM, "codebook_size": 16, "num_quantizers": 2, "groups": 2}, tokens),
    "binary": ("BinaryMapper", {"bits": 4}, bits),
    "features": ("CodebookFeatures", {"dim": DIM, "num_codes": 16, "k": 2}, tokens),
    "autoencoder": ("SparseAutoencoder", SAE, tokens),
    "relative": ("RelativeProjection", {"anchors": torch.linspace(-1, 1, 6 * DIM).sin().reshape(6, DIM)}, tokens),
    "hashed": ("HashedEmbedding", {"rows": 50, "width": 4, "probes": (2, 1)}, features),
    **{
        f"embedding {method}": (
            "CompressedEmbedding",
            {"num_embeddings": 64, "dim": DIM, "method": method, **more},
            ids,
        )
        for method, more in TABLES.items()
    },
}


def built(name: str, training: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The module of a case, after one step, and what draws its inputs."""
    kind, options, make = CASES[name]
    torch.manual_seed(0)
    module: nn.Module = getattr(vn, kind)(**options)
    module(make())
    return module.train(training), make
