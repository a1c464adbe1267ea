"""The modules in the sweep: a training step of ours beside one of vector-quantize-pytorch's module of that name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.sweep_verbs import Shape
from bench.timing import Call
from vecbank import nn as ours

ROWS = (16, 1024, 8192, 65_536)
PEER = "vector-quantize-pytorch"

# name: (module, its arguments, features of the input). The modules of both packages take the same ones.
MODULES: dict[str, tuple[str, dict[str, Any], int]] = {
    "VectorQuantize": ("VectorQuantize", {"dim": 64, "codebook_size": 512}, 64),
    "VectorQuantize, dead codes": (
        "VectorQuantize", {"dim": 64, "codebook_size": 512, "threshold_ema_dead_code": 2}, 64,
    ),
    "VectorQuantize, cosine": ("VectorQuantize", {"dim": 64, "codebook_size": 512, "use_cosine_sim": True}, 64),
    "VectorQuantize, learnable": (
        "VectorQuantize", {"dim": 64, "codebook_size": 512, "learnable_codebook": True, "ema_update": False}, 64,
    ),
    "VectorQuantize, sampled": (
        "VectorQuantize",
        {"dim": 64, "codebook_size": 512, "stochastic_sample_codes": True, "sample_codebook_temp": 1.0}, 64,
    ),
    "VectorQuantize, diversity": (
        "VectorQuantize", {"dim": 64, "codebook_size": 512, "codebook_diversity_loss_weight": 0.1}, 64,
    ),
    "VectorQuantize, cross-entropy": (
        "VectorQuantize", {"dim": 64, "codebook_size": 512, "commitment_use_cross_entropy_loss": True}, 64,
    ),
    "VectorQuantize, cosine, sampled": (
        "VectorQuantize",
        {"dim": 64, "codebook_size": 512, "use_cosine_sim": True, "stochastic_sample_codes": True}, 64,
    ),
    "VectorQuantize, cosine, diversity": (
        "VectorQuantize",
        {"dim": 64, "codebook_size": 512, "use_cosine_sim": True, "codebook_diversity_loss_weight": 0.1}, 64,
    ),
    "VectorQuantize, sampled, diversity, cross-entropy": (
        "VectorQuantize",
        {
            "dim": 64, "codebook_size": 512, "stochastic_sample_codes": True, "codebook_diversity_loss_weight": 0.1,
            "commitment_use_cross_entropy_loss": True,
        },
        64,
    ),
    "VectorQuantize, learnable, diversity": (
        "VectorQuantize",
        {
            "dim": 64, "codebook_size": 512, "learnable_codebook": True, "ema_update": False,
            "codebook_diversity_loss_weight": 0.1,
        },
        64,
    ),
    "VectorQuantize, 4 heads, diversity": (
        "VectorQuantize",
        {
            "dim": 64, "codebook_size": 256, "heads": 4, "codebook_dim": 16, "separate_codebook_per_head": True,
            "codebook_diversity_loss_weight": 0.1,
        },
        64,
    ),
    "VectorQuantize, 4 heads": (
        "VectorQuantize",
        {"dim": 64, "codebook_size": 256, "heads": 4, "codebook_dim": 16, "separate_codebook_per_head": True}, 64,
    ),
    "VectorQuantize, small codes": ("VectorQuantize", {"dim": 64, "codebook_size": 256, "codebook_dim": 8}, 64),
    "ResidualVQ": ("ResidualVQ", {"dim": 64, "codebook_size": 256, "num_quantizers": 4}, 64),
    "ResidualVQ, sampled": (
        "ResidualVQ",
        {"dim": 64, "codebook_size": 256, "num_quantizers": 4, "stochastic_sample_codes": True}, 64,
    ),
    "SimVQ": ("SimVQ", {"dim": 64, "codebook_size": 512}, 64),
    "ResidualSimVQ": ("ResidualSimVQ", {"dim": 64, "codebook_size": 256, "num_quantizers": 4}, 64),
    "FSQ": ("FSQ", {"levels": [8, 5, 5, 5]}, 4),
    "FSQ, projected": ("FSQ", {"levels": [8, 5, 5, 5], "dim": 64}, 64),
    "FSQ, preserve_symmetry": ("FSQ", {"levels": [8, 5, 5, 5], "preserve_symmetry": True}, 4),
    "ResidualFSQ": ("ResidualFSQ", {"levels": [8, 5, 5, 3], "num_quantizers": 4, "dim": 64}, 64),
    "LFQ": ("LFQ", {"codebook_size": 256, "dim": 8}, 8),
    "LFQ, 2 codebooks": ("LFQ", {"codebook_size": 16, "num_codebooks": 2, "dim": 8}, 8),
    "LFQ, diversity, commitment": (
        "LFQ", {"codebook_size": 256, "dim": 64, "diversity_gamma": 2.0, "commitment_loss_weight": 0.25}, 64,
    ),
    "LFQ, 12 bits": ("LFQ", {"codebook_size": 2**12, "dim": 64, "entropy_loss_weight": 0.0}, 64),
    "ResidualLFQ": ("ResidualLFQ", {"dim": 64, "codebook_size": 256, "num_quantizers": 4}, 64),
    "LatentQuantize": ("LatentQuantize", {"levels": [5, 5, 8], "dim": 16}, 16),
    "LatentQuantize, 2 codebooks": (
        "LatentQuantize", {"levels": [5, 5, 8], "dim": 16, "num_codebooks": 2, "codebook_dim": 3}, 16,
    ),
    "VectorQuantize, orthogonal": (
        "VectorQuantize",
        {"dim": 64, "codebook_size": 512, "orthogonal_reg_weight": 10.0, "orthogonal_reg_max_codes": 128}, 64,
    ),
    "VectorQuantize, affine": ("VectorQuantize", {"dim": 64, "codebook_size": 512, "affine_param": True}, 64),
    "VectorQuantize, optimiser in place": (
        "VectorQuantize",
        {
            "dim": 64, "codebook_size": 512, "ema_update": False, "learnable_codebook": True,
            "in_place_codebook_optimizer": partial(torch.optim.SGD, lr=0.01),
        },
        64,
    ),
    "VectorQuantize, directional": (
        "VectorQuantize",
        {"dim": 64, "codebook_size": 512, "directional_reparam": True, "threshold_ema_dead_code": 2}, 64,
    ),
    "GroupedResidualVQ": (
        "GroupedResidualVQ", {"dim": 64, "groups": 2, "codebook_size": 256, "num_quantizers": 4}, 64,
    ),
    "GroupedResidualFSQ": (
        "GroupedResidualFSQ", {"dim": 64, "groups": 2, "levels": [8, 5, 5, 3], "num_quantizers": 4}, 64,
    ),
    "GroupedResidualLFQ": (
        "GroupedResidualLFQ", {"dim": 64, "groups": 2, "codebook_size": 16, "num_quantizers": 2}, 64,
    ),
    "RandomProjectionQuantizer": (
        "RandomProjectionQuantizer", {"dim": 64, "codebook_size": 512, "codebook_dim": 16, "num_codebooks": 4}, 64,
    ),
    "BinaryMapper": ("BinaryMapper", {"bits": 8}, 8),
    "FSQ, 2 codebooks, noise": (
        "FSQ",
        {"levels": [8, 5, 5, 5], "dim": 64, "num_codebooks": 2, "preserve_symmetry": True, "noise_dropout": 0.5}, 64,
    ),
    "LFQ, spherical": ("LFQ", {"codebook_size": 256, "dim": 64, "spherical": True}, 64),
    "LFQ, a quarter of the rows": ("LFQ", {"codebook_size": 256, "dim": 8, "frac_per_sample_entropy": 0.25}, 8),
}  # fmt: skip
SHORT = ("VectorQuantize", "VectorQuantize, sampled", "FSQ", "LFQ", "LatentQuantize")


def step(layer: nn.Module, x: Tensor) -> Call:
    """Forward in training mode, and backward to the input and the parameters; codes alone have no way back."""
    layer.train()
    parameters = [p for p in layer.parameters() if p.requires_grad]

    def call() -> object:
        given = x.detach().requires_grad_()
        out = layer(given)
        if isinstance(out, Tensor):
            return out
        total = out[0].sum()
        for extra in out[1:]:
            if isinstance(extra, Tensor) and extra.is_floating_point() and extra.requires_grad:
                total = total + extra.sum()
        return torch.autograd.grad(total, [given, *parameters], allow_unused=True)

    return call


def _make(kind: str, arguments: dict[str, Any], features: int, rows: int, gen: torch.Generator) -> tuple[Call, Call]:
    import vector_quantize_pytorch as peers

    batch = 16 if rows >= 1024 else 1
    x = torch.randn(batch, rows // batch, features, generator=gen)
    if kind == "LatentQuantize":  # features on axis 1
        x = x.transpose(1, 2).contiguous()
    pair = []
    for package in (ours, peers):
        torch.manual_seed(0)
        pair.append(step(getattr(package, kind)(**arguments), x))
    return pair[0], pair[1]


def shapes() -> Iterator[Shape]:
    def maker(kind: str, arguments: dict[str, Any], features: int, rows: int) -> Callable[..., tuple[Call, Call]]:
        return lambda gen: _make(kind, arguments, features, rows, gen)

    for name, (kind, arguments, features) in MODULES.items():
        for rows in ROWS:
            if name == "LFQ, 12 bits" and rows > 8192:  # half a minute of the peer, and 3 GB
                continue
            short = name in SHORT and rows in (16, 8192)
            yield Shape("module", f"{name}, {rows:,} rows", maker(kind, arguments, features, rows), short, PEER)
