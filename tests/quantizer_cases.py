"""Every module of the VectorQuantize family with every option that changes what it keeps or how it decodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import vecbank.nn as ours

DIM, CODES = 8, 12
LEARN = {"learnable_codebook": True, "ema_update": False}


class Bridge(nn.Module):
    """A stand-in for the network of a bridged codebook."""

    def __init__(self, width: int = DIM) -> None:
        super().__init__()
        self.net = nn.Linear(width, width)

    def forward(self, codes: Tensor) -> Tensor:
        return codes + 0.3 * torch.tanh(self.net(codes))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.3)


VQ: dict[str, dict[str, Any]] = {
    "default": {},
    "straight": {"rotation_trick": False},
    "expiry": {"threshold_ema_dead_code": 1},
    "kmeans": {"kmeans_init": True},
    "cosine": {"use_cosine_sim": True},
    "cosine, kmeans, expiry": {"use_cosine_sim": True, "kmeans_init": True, "threshold_ema_dead_code": 1},
    "projected": {"codebook_dim": 5},
    "projected, normalised": {"codebook_dim": 5, "layernorm_after_project_in": True},
    "heads": {"heads": 2, "codebook_dim": 4},
    "head codebooks": {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True},
    "head codebooks, affine": {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True, "affine_param": True},
    "image": {"accept_image_fmap": True},
    "image, projected heads": {"accept_image_fmap": True, "heads": 2, "codebook_dim": 3},
    "channel first": {"channel_last": False},
    "channel first, projected": {"channel_last": False, "codebook_dim": 5},
    "affine": {"affine_param": True},
    "affine, kmeans, expiry": {"affine_param": True, "kmeans_init": True, "threshold_ema_dead_code": 1},
    "affine, learnable": {"affine_param": True, **LEARN},
    "affine, projected": {"affine_param": True, "codebook_dim": 5},
    "bridge": {"vq_bridge": Bridge, "threshold_ema_dead_code": 1},
    "bridge, affine": {"vq_bridge": Bridge, "affine_param": True},
    "learnable": LEARN,
    "synchronous": {**LEARN, "sync_update_v": 0.3},
    "in place": {**LEARN, "in_place_codebook_optimizer": sgd},
    "directional": {"directional_reparam": True, "threshold_ema_dead_code": 1},
    "manual ema": {"manual_ema_update": True},
    "orthogonal": {"orthogonal_reg_weight": 1.0, "orthogonal_reg_active_codes_only": True},
    "diverse": {"codebook_diversity_loss_weight": 0.5, "codebook_diversity_temperature": 3.0},
    "diverse, heads": {"codebook_diversity_loss_weight": 0.5, "heads": 2, "codebook_dim": 4},
    "diverse, head codebooks": {
        "codebook_diversity_loss_weight": 0.5,
        "heads": 2,
        "codebook_dim": 4,
        "separate_codebook_per_head": True,
    },
    "cross-entropy": {"commitment_use_cross_entropy_loss": True},
    "sampled": {"stochastic_sample_codes": True},
    "soft": {"straight_through": True, "rotation_trick": False, "route_gradients_to_input": False},
}
RESIDUAL: dict[str, dict[str, Any]] = {
    "default": {},
    "expiry, kmeans": {"threshold_ema_dead_code": 1, "kmeans_init": True},
    "projected": {"codebook_dim": 5},
    "cosine": {"use_cosine_sim": True},
    "shared": {"shared_codebook": True, "threshold_ema_dead_code": 1},
    "affine": {"affine_param": True},
    "bridge": {"vq_bridge": Bridge},
    "implicit": {"implicit_neural_codebook": True},
    "implicit, cosine": {"implicit_neural_codebook": True, "use_cosine_sim": False, "affine_param": True},
    "beam": {"beam_size": 3, "beam_score_quantizer_weights": (1.0, 0.5, 2.0)},
    "dropout": {"quantize_dropout": True},
    "diveq": {"diveq": True, "threshold_ema_dead_code": 1},
    "image": {"accept_image_fmap": True},
    "gradient between stages": {"quant_grad_frac": 0.3},
    "unequal": {"num_quantizers": None, "codebook_size": (4, 8, 12)},
}


def made(cls: Callable[..., nn.Module], **options: Any) -> Callable[[], nn.Module]:
    return lambda: cls(**{name: value() if value is Bridge else value for name, value in options.items()})


def residual(options: dict[str, Any]) -> dict[str, Any]:
    return {"dim": DIM, "num_quantizers": 3, "codebook_size": CODES, **options}


MODULES: dict[str, Callable[[], nn.Module]] = {
    **{f"vq, {name}": made(ours.VectorQuantize, dim=DIM, codebook_size=CODES, **o) for name, o in VQ.items()},
    **{f"rvq, {name}": made(ours.ResidualVQ, **residual(o)) for name, o in RESIDUAL.items()},
    **{
        f"grouped, {name}": made(ours.GroupedResidualVQ, groups=2, **residual(o))
        for name, o in {"default": {}, "affine": {"affine_param": True}, "image": {"accept_image_fmap": True}}.items()
    },
    "sim": made(ours.SimVQ, dim=DIM, codebook_size=CODES),
    "sim, channel first": made(ours.SimVQ, dim=DIM, codebook_size=CODES, channel_first=True, rotation_trick=False),
    "residual sim": made(ours.ResidualSimVQ, **residual({})),
    "product": made(ours.ProductQuantizer, dim=DIM, parts=2, codes=CODES, decay=0.8),
    "product, rare": made(ours.ProductQuantizer, dim=DIM, parts=2, codes=CODES, decay=0.8, rare=0.5),
    "product, learned": made(ours.ProductQuantizer, dim=DIM, parts=2, codes=CODES, decay=None),
}
# A row that is taken out leaves other random numbers to the rest.
DRAWS = ("expiry", "kmeans", "sampled", "directional", "dropout", "diveq", "rare", "bridge", "shared")


def first(name: str) -> bool:
    """Whether the features are on axis 1."""
    return "image" in name or "channel first" in name


def batch(name: str, seed: int, rows: int = 24) -> Tensor:
    """One batch of one sequence of `rows` rows."""
    x = 2 * torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)) + 0.5
    return x.unsqueeze(0) if not first(name) else x.T.reshape(1, DIM, rows, *[1] * ("image" in name))


def train(
    name: str, module: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer | None = None
) -> tuple[Any, Tensor]:
    """One step: what forward returned and the gradient of x."""
    x = x.clone().requires_grad_()
    out = module.train()(x)
    probe = torch.linspace(-1, 1, DIM).view(DIM, *[1] * (x.dim() - 2)) if first(name) else torch.linspace(-1, 1, DIM)
    loss = (out[0].nan_to_num() * probe).sum() + out[2].sum()
    if optimizer is not None:
        optimizer.zero_grad()
    if loss.requires_grad:
        loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    return out, torch.zeros_like(x) if x.grad is None else x.grad


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([*module.parameters(), nn.Parameter(torch.zeros(1))], lr=0.01)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Everything that a module keeps, in or out of its state_dict, and the gradients of its parameters."""
    grads = {f"{name}.grad": p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {**dict(module.named_parameters()), **dict(module.named_buffers()), **grads}
