"""The table of the net: every module, every argument of its constructor, its layouts, how to call and decode it.

An argument of a constructor that is not here fails `test_table_names_every_argument`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from net_core import DEEP, TOKENS, VECTORS, Entry, Layout, Make, Options, Result
from torch import Tensor, nn

import vecbank.nn as vn

Arguments = dict[str, list[dict[str, Any]]]
DIM = 8


class Bridge(nn.Module):
    """A network over a codebook, of any width."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))

    def forward(self, codes: Tensor) -> Tensor:
        return codes + 0.1 * torch.tanh(self.gain * codes)


def _generator() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(11)


def _doubled(table: Tensor) -> Tensor:
    return 2 * table


def _on(*names: str, **more: Any) -> dict[str, Any]:
    return {**dict.fromkeys(names, True), **more}


GENERATOR = {"generator": [{"generator": Make("seeded", _generator)}]}
DROPOUT: Arguments = {
    "quantize_dropout": [_on("quantize_dropout")],
    "quantize_dropout_cutoff_index": [_on("quantize_dropout", quantize_dropout_cutoff_index=1)],
    "quantize_dropout_multiple_of": [_on("quantize_dropout", quantize_dropout_multiple_of=2)],
}
LEARN = {"learnable_codebook": True, "ema_update": False}
SGD = {**LEARN, "in_place_codebook_optimizer": partial(torch.optim.SGD, lr=0.1)}
DIVEQ = {"directional_reparam": True, "threshold_ema_dead_code": 1}
MASKED = {"return_zeros_for_masked_padding": [{"return_zeros_for_masked_padding": False}]}

VQ: Arguments = {
    "codebook_dim": [{"codebook_dim": 4}],
    "heads": [{"heads": 2}, {"heads": 2, "codebook_dim": 4}],
    "separate_codebook_per_head": [_on("separate_codebook_per_head", heads=2, codebook_dim=4)],
    "decay": [{"decay": 0.5}],
    "eps": [{"eps": 1e-2}],
    "freeze_codebook": [_on("freeze_codebook")],
    "kmeans_init": [_on("kmeans_init")],
    "kmeans_iters": [_on("kmeans_init", kmeans_iters=2)],
    "sync_kmeans": [_on("kmeans_init", sync_kmeans=False)],
    "use_cosine_sim": [_on("use_cosine_sim")],
    "layernorm_after_project_in": [_on("layernorm_after_project_in", codebook_dim=4)],
    "threshold_ema_dead_code": [{"threshold_ema_dead_code": 1}],
    "commitment_weight": [{"commitment_weight": 0.25}, {"commitment_weight": 0.0}],
    "commitment_use_cross_entropy_loss": [_on("commitment_use_cross_entropy_loss")],
    "orthogonal_reg_weight": [{"orthogonal_reg_weight": 0.5}],
    "orthogonal_reg_active_codes_only": [_on("orthogonal_reg_active_codes_only", orthogonal_reg_weight=0.5)],
    "orthogonal_reg_max_codes": [{"orthogonal_reg_max_codes": 5, "orthogonal_reg_weight": 0.5}],
    "codebook_diversity_loss_weight": [{"codebook_diversity_loss_weight": 0.3}],
    "codebook_diversity_temperature": [{"codebook_diversity_loss_weight": 0.3, "codebook_diversity_temperature": 2.0}],
    "stochastic_sample_codes": [_on("stochastic_sample_codes")],
    "sample_codebook_temp": [_on("stochastic_sample_codes", sample_codebook_temp=0.3)],
    "straight_through": [_on("straight_through", rotation_trick=False, route_gradients_to_input=False)],
    "rotation_trick": [{"rotation_trick": False}],
    "directional_reparam": [DIVEQ],
    "directional_reparam_variance": [{**DIVEQ, "directional_reparam_variance": 0.1}],
    "sync_codebook": [{"sync_codebook": True}],
    "sync_affine_param": [_on("affine_param", "sync_affine_param")],
    "ema_update": [{"ema_update": False}],
    "vq_bridge": [{"vq_bridge": Make("Bridge", Bridge)}],
    "manual_ema_update": [_on("manual_ema_update")],
    "learnable_codebook": [LEARN],
    "in_place_codebook_optimizer": [SGD],
    "manual_in_place_optimizer_update": [{**SGD, "manual_in_place_optimizer_update": True}],
    "affine_param": [_on("affine_param"), {"affine_param": True, **LEARN}],
    "affine_param_batch_decay": [_on("affine_param", affine_param_batch_decay=0.5)],
    "affine_param_codebook_decay": [_on("affine_param", affine_param_codebook_decay=0.5)],
    "sync_update_v": [{**LEARN, "sync_update_v": 0.3}],
    **MASKED,
    "route_gradients_to_input": [{"route_gradients_to_input": False}],
    **GENERATOR,
}
VQ_CLASH = tuple(
    frozenset(names)
    for names in (
        {"orthogonal_reg_active_codes_only", "separate_codebook_per_head"},  # refused in forward, by name
        {"in_place_codebook_optimizer", "orthogonal_reg_weight"},
    )
)
RVQ_CLASH = (
    *VQ_CLASH,
    frozenset({"implicit_neural_codebook", "beam_size"}),
    frozenset({"commitment_use_cross_entropy_loss", "beam_size"}),  # refused in training's forward, by name
)
# Affine moments, and a book that takes its own step before it is read, depend on x without a gradient; and with a
# gradient between stages the next one's residual moves by x less a share, where its value moves by all of x.
VQ_BENT = frozenset({"affine_param", "implicit_neural_codebook", "in_place_codebook_optimizer", "quant_grad_frac"})
RVQ: Arguments = {
    **{name: values for name, values in VQ.items() if name not in ("heads", "separate_codebook_per_head")},
    **DROPOUT,
    "codebook_size": [{"codebook_size": (12, 7, 9), "num_quantizers": None}],
    "shared_codebook": [_on("shared_codebook"), {"shared_codebook": True, **SGD}],
    "diveq": [_on("diveq", threshold_ema_dead_code=1)],
    "implicit_neural_codebook": [_on("implicit_neural_codebook")],
    "mlp_kwargs": [_on("implicit_neural_codebook", mlp_kwargs={"depth": 1, "dim_hidden": 4})],
    "beam_size": [{"beam_size": 2}],
    "eval_beam_size": [{"beam_size": 2, "eval_beam_size": 3}],
    "beam_score_quantizer_weights": [{"beam_size": 2, "beam_score_quantizer_weights": [1.0, 0.5, 0.25]}],
    "quant_grad_frac": [{"quant_grad_frac": 0.5}],
}


# ---- calls --------------------------------------------------------------------------------------------------------


def _triple(module: nn.Module, x: Tensor, **options: Any) -> Result:
    quantized, codes, loss = module(x, **options)[:3]
    return Result(quantized, codes, [loss])


def _grouped(module: nn.Module, x: Tensor, **options: Any) -> Result:
    quantized, codes, loss = module(x, **options)[:3]
    return Result(quantized, codes.movedim(0, -1), [loss], raw=codes)


def _decode_vq(module: Any, codes: Tensor) -> Tensor:
    out: Tensor = module.get_output_from_indices(codes)
    first = module.accept_image_fmap or module.accept_3d_fmap or (not module.channel_last and out.dim() > 2)
    return out.movedim(1, -1) if first else out


def _decode_residual(module: Any, codes: Tensor) -> Tensor:
    out: Tensor = module.get_output_from_indices(codes)
    return out


def _decode_first(module: Any, codes: Tensor) -> Tensor:
    """For decoders that give the layout of `forward`."""
    out: Tensor = module.get_output_from_indices(codes)
    return out.movedim(1, -1) if module.channel_first else out


def _decode_sim(module: Any, codes: Tensor) -> Tensor:
    out: Tensor = module.indices_to_codes(codes)
    return out.movedim(1, -1) if module.channel_first else out


# ---- layouts ------------------------------------------------------------------------------------------------------

CHANNEL_FIRST = Layout("channel first", 1, True, {"channel_first": True})
VQ_FIRST = Layout("channel first", 1, True, {"channel_last": False})
IMAGE = Layout("image", 2, True, {"accept_image_fmap": True})
VOLUME = Layout("volume", 3, True, {"accept_3d_fmap": True})


def _vq_width(args: Options) -> int:
    return int(args["dim"])


VECTOR = [
    Entry(
        "VectorQuantize",
        vn.VectorQuantize,
        {"dim": DIM, "codebook_size": 12},
        VQ,
        _triple,
        _decode_vq,
        (TOKENS, DEEP, VECTORS, VQ_FIRST, IMAGE, VOLUME),
        masked=True,
        calls=({"ema_update": False}, {"topk": 2}, {"accum_ema_update": True}),
        sizes=(8, 2, 12),
        clash=VQ_CLASH,
        curved="input",
        bent=VQ_BENT,
    ),
    Entry(
        "ResidualVQ",
        vn.ResidualVQ,
        {"dim": DIM, "codebook_size": 12, "num_quantizers": 3},
        RVQ,
        _triple,
        _decode_residual,
        (TOKENS, DEEP, VQ_FIRST, IMAGE, VOLUME),
        inner=(vn.VectorQuantize.__init__,),
        refused={"heads": "a stage has one code", "separate_codebook_per_head": "a stage has one head"},
        masked=True,
        sizes=(8, 3),
        clash=RVQ_CLASH,
        curved="input",
        bent=VQ_BENT,
    ),
    Entry(
        "GroupedResidualVQ",
        vn.GroupedResidualVQ,
        {"dim": DIM, "codebook_size": 12, "num_quantizers": 3, "groups": 2},
        {name: values for name, values in RVQ.items() if name not in ("layernorm_after_project_in", "codebook_dim")}
        | {
            "codebook_dim": [{"codebook_dim": 3}],
            "layernorm_after_project_in": [_on("layernorm_after_project_in", codebook_dim=3)],
        },
        _grouped,
        _decode_residual,
        (TOKENS, DEEP, IMAGE),
        inner=(vn.ResidualVQ.__init__, vn.VectorQuantize.__init__),
        refused={
            "heads": "a stage has one code",
            "separate_codebook_per_head": "a stage has one head",
            "channel_last": "groups are cut from the last axis, or from axis 1 with accept_image_fmap",
            "accept_3d_fmap": "the same",
        },
        masked=True,
        sizes=(8, 4, 3, 2),
        clash=RVQ_CLASH,
        curved="input",
        bent=VQ_BENT,
    ),
]

NOT_COSINE = (
    "learnable_codebook",
    "affine_param",
    "affine_param_batch_decay",
    "affine_param_codebook_decay",
    "sync_affine_param",
    "vq_bridge",
    "in_place_codebook_optimizer",
    "manual_in_place_optimizer_update",
    "sync_update_v",
    "directional_reparam",
    "directional_reparam_variance",
)
SIM: Arguments = {
    "codebook_transform": [{"codebook_transform": Make("Linear(8, 8)", partial(nn.Linear, DIM, DIM))}],
    "init_fn": [{"init_fn": _doubled}],
    "rotation_trick": [{"rotation_trick": False}],
    "input_to_quantize_commit_loss_weight": [{"input_to_quantize_commit_loss_weight": 1.5}],
    "commitment_weight": [{"commitment_weight": 0.3}],
    "frozen_codebook_dim": [{"frozen_codebook_dim": 6}],
}
SIM_CLASH = (frozenset({"codebook_transform", "frozen_codebook_dim"}),)
SIMS = [
    Entry(
        "SimVQ",
        vn.SimVQ,
        {"dim": DIM, "codebook_size": 12},
        SIM,
        _triple,
        _decode_sim,
        (TOKENS, DEEP, VECTORS, CHANNEL_FIRST, Layout("image", 2, True, {"channel_first": True})),
        clash=SIM_CLASH,
        curved="input",
    ),
    Entry(
        "ResidualSimVQ",
        vn.ResidualSimVQ,
        {"dim": DIM, "codebook_size": 12, "num_quantizers": 3},
        SIM | DROPOUT,
        _triple,
        _decode_first,
        (TOKENS, DEEP, CHANNEL_FIRST, Layout("image", 2, True, {"channel_first": True})),
        inner=(vn.SimVQ.__init__,),
        refused={"heads": "a stage has one code"},
        sizes=(8, 3),
        clash=SIM_CLASH,
        curved="input",
    ),
    Entry(
        "RandomProjectionQuantizer",
        vn.RandomProjectionQuantizer,
        {"dim": DIM, "codebook_size": 12, "codebook_dim": 4},
        {
            "num_codebooks": [{"num_codebooks": 2}],
            "norm": [{"norm": False}],
            **{
                name: values
                for name, values in VQ.items()
                if name not in ("codebook_dim", "heads", "separate_codebook_per_head", "use_cosine_sim", *NOT_COSINE)
            },
        },
        lambda module, x, **options: Result(None, module(x, **options)),
        inner=(vn.VectorQuantize.__init__,),
        refused={
            "heads": "num_codebooks",
            "separate_codebook_per_head": "set",
            "use_cosine_sim": "set",
            **dict.fromkeys(NOT_COSINE, "does not go with cosine codes"),
            "channel_last": "codes of (b, n, dim)",
            "accept_image_fmap": "codes of (b, n, dim)",
            "accept_3d_fmap": "codes of (b, n, dim)",
        },
    ),
]
