"""Configurations of VectorQuantize that are compared with vector-quantize-pytorch, and how."""

from __future__ import annotations

from typing import Any

import torch
import vector_quantize_pytorch as peer
from torch import Tensor, nn

from vecbank.nn.vector_quantize import VectorQuantize

DIM, CODES = 16, 24
SGD = {"in_place_codebook_optimizer": lambda params: torch.optim.SGD(params, lr=0.5)}
LEARN = {"learnable_codebook": True, "ema_update": False}
MASK = torch.rand(3, 20, generator=torch.Generator().manual_seed(5)) < 0.6
LENS = torch.tensor([20, 7, 1])


class Bridge(nn.Module):
    """A stand-in for the network of a bridged codebook."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(DIM, DIM)

    def forward(self, codes: Tensor) -> Tensor:
        return codes + 0.1 * torch.tanh(self.net(codes))


def shift_codes(codes: Tensor) -> Tensor:
    """A codebook for every row of (3, 20) rows, as implicit neural codebooks make."""
    shift = torch.linspace(-0.2, 0.2, 60).view(1, 3, 20, 1, 1)
    return codes.unsqueeze(1).unsqueeze(1) * (1 + shift) + shift


# name: constructor arguments, forward arguments. Training of five steps on each is compared with the peer's.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "straight": ({"rotation_trick": False}, {}),
    "decay": ({"decay": 0.5, "eps": 1e-2, "commitment_weight": 0.25}, {}),
    "no commitment": ({"commitment_weight": 0.0}, {}),
    "cosine": ({"use_cosine_sim": True}, {}),
    "cosine straight": ({"use_cosine_sim": True, "rotation_trick": False}, {}),
    "projected": ({"codebook_dim": 4}, {}),
    "projected, normalised": ({"codebook_dim": 4, "layernorm_after_project_in": True}, {}),
    "heads": ({"heads": 4, "codebook_dim": 4}, {}),
    "heads, wider": ({"heads": 2, "codebook_dim": 6}, {}),
    "head codebooks": ({"heads": 4, "codebook_dim": 4, "separate_codebook_per_head": True}, {}),
    "head codebooks, cosine": (
        {"heads": 2, "codebook_dim": 6, "separate_codebook_per_head": True, "use_cosine_sim": True},
        {},
    ),
    "image": ({"accept_image_fmap": True}, {}),
    "image, heads": ({"accept_image_fmap": True, "heads": 2, "codebook_dim": 8}, {}),
    "volume": ({"accept_3d_fmap": True}, {}),
    "channel first": ({"channel_last": False}, {}),
    "mask": ({}, {"mask": MASK}),
    "mask, cosine": ({"use_cosine_sim": True}, {"mask": MASK}),
    "mask, input kept": ({"return_zeros_for_masked_padding": False}, {"mask": MASK}),
    "lens": ({}, {"lens": LENS}),
    "frozen": ({}, {"freeze_codebook": True}),
    "frozen by default": ({"freeze_codebook": True}, {}),
    "learnable": (LEARN, {}),
    "learnable, mask": (LEARN, {"mask": MASK}),
    "learnable, frozen": (LEARN, {"freeze_codebook": True}),
    "learnable, heads": ({**LEARN, "heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True}, {}),
    "learnable, not routed": ({**LEARN, "route_gradients_to_input": False}, {}),
    "not routed": ({"route_gradients_to_input": False}, {}),
    "synchronous": ({**LEARN, "sync_update_v": 0.3}, {}),
    "in place": ({**LEARN, **SGD}, {}),
    "in place, mask": ({**LEARN, **SGD}, {"mask": MASK}),
    "bridge": ({**LEARN, "vq_bridge": Bridge}, {}),
    "bridge, in place": ({**LEARN, **SGD, "vq_bridge": Bridge}, {}),
    "affine": ({"affine_param": True}, {}),
    "affine, mask": ({"affine_param": True, "affine_param_batch_decay": 0.5}, {"mask": MASK}),
    "affine, learnable": ({"affine_param": True, **LEARN}, {}),
    "no ema": ({"ema_update": False}, {}),
    "no ema this time": ({}, {"ema_update": False}),
    "manual ema": ({"manual_ema_update": True}, {}),
    "weighted": ({}, {"ema_update_weight": torch.linspace(0, 1, CODES)}),
    "weighted by function": ({}, {"ema_update_weight": lambda sums, sizes: (sizes > 1).float()}),
    "orthogonal": ({"orthogonal_reg_weight": 1.0}, {}),
    "orthogonal, active": ({"orthogonal_reg_weight": 1.0, "orthogonal_reg_active_codes_only": True}, {}),
    "orthogonal, wide codebook": ({"orthogonal_reg_weight": 1.0, "heads": 8, "codebook_dim": 2}, {}),
    # Here the peer's gradient mixes the codebook before and after the update: compared where it does not move.
    "diverse": (
        {
            "codebook_diversity_loss_weight": 0.5,
            "codebook_diversity_temperature": 3.0,
            "freeze_codebook": True,
        },
        {},
    ),
    "diverse, heads": (
        {"codebook_diversity_loss_weight": 0.5, "heads": 2, "codebook_dim": 8, "freeze_codebook": True},
        {},
    ),
    "diverse, head codebooks": (
        {
            "codebook_diversity_loss_weight": 0.5,
            "heads": 2,
            "codebook_dim": 8,
            "separate_codebook_per_head": True,
            "freeze_codebook": True,
        },
        {},
    ),
    "diverse, learnable": (
        {**LEARN, "codebook_diversity_loss_weight": 0.5, "codebook_diversity_temperature": 3.0},
        {},
    ),
    "cross-entropy": ({"commitment_use_cross_entropy_loss": True, "freeze_codebook": True}, {}),
    "cross-entropy, mask": (
        {"commitment_use_cross_entropy_loss": True, "freeze_codebook": True},
        {"mask": MASK},
    ),
    "cross-entropy, heads": (
        {"commitment_use_cross_entropy_loss": True, "heads": 2, "codebook_dim": 8, "freeze_codebook": True},
        {},
    ),
    "topk": ({}, {"topk": 3}),
    "topk, mask": ({}, {"topk": 3, "mask": MASK}),
    "topk, cosine": ({"use_cosine_sim": True, "rotation_trick": False}, {"topk": 2}),
    "topk, learnable": (LEARN, {"topk": 2}),
    "topk, image": ({"accept_image_fmap": True}, {"topk": 2}),
    "implicit": ({**LEARN}, {"codebook_transform_fn": shift_codes}),
    "implicit, mask": ({"rotation_trick": False}, {"codebook_transform_fn": shift_codes, "mask": MASK}),
    "implicit, cosine": ({"use_cosine_sim": True}, {"codebook_transform_fn": shift_codes}),
    "soft": (
        {
            "straight_through": True,
            "rotation_trick": False,
            "route_gradients_to_input": False,
            "freeze_codebook": True,
        },
        {},
    ),
    "width 1": ({"codebook_dim": 1, "heads": 16, "rotation_trick": False}, {}),
}


def pair(options: dict[str, Any]) -> tuple[VectorQuantize, peer.VectorQuantize]:
    """Ours and the peer's with the same state."""
    made = []
    for cls in (VectorQuantize, peer.VectorQuantize):
        torch.manual_seed(3)
        own = {name: value() if value is Bridge else value for name, value in options.items()}
        made.append(cls(DIM, CODES, **own))
    ours, theirs = made
    with torch.no_grad():  # codes as far apart as the inputs, so that every step uses many of them
        codebook = torch.randn(theirs._codebook.embed.shape, generator=torch.Generator().manual_seed(40))
        codebook = nn.functional.normalize(codebook, dim=-1) if theirs.use_cosine_sim else codebook
        theirs._codebook.embed.copy_(codebook)
        theirs._codebook.embed_avg.copy_(codebook)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def make_input(options: dict[str, Any], seed: int) -> Tensor:
    shape = (3, 20, DIM)
    if options.get("accept_image_fmap"):
        shape = (3, DIM, 4, 5)
    elif options.get("accept_3d_fmap"):
        shape = (3, DIM, 2, 2, 5)
    elif options.get("channel_last") is False:
        shape = (3, DIM, 20)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, what: str, tolerance: float = 2e-5) -> None:
    assert a.shape == b.shape, f"{what}: {tuple(a.shape)} against {tuple(b.shape)}"
    assert a.dtype == b.dtype, f"{what}: {a.dtype} against {b.dtype}"
    if a.is_floating_point():
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        assert float((a - b).detach().abs().max() if a.numel() else 0) <= tolerance * scale, what
    else:
        assert torch.equal(a, b), f"{what}: {int((a != b).sum())} of {a.numel()} differ"


def compare_states(ours: nn.Module, theirs: nn.Module) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        close(a, b, name)
