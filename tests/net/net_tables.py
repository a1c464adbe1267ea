"""The second half of the table: quantisers without a searched book, sparse codes, embeddings, banks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from net_core import DEEP, TOKENS, VECTORS, Entry, Layout, Make, Options, Result
from net_modules import CHANNEL_FIRST, DIM, DROPOUT, GENERATOR, IMAGE, SIMS, VECTOR, Arguments, _on
from torch import Tensor, nn

import vecbank
import vecbank.nn as vn


def _pair(module: nn.Module, x: Tensor, **options: Any) -> Result:
    quantized, codes = module(x, **options)[:2]
    return Result(quantized, codes)


def _triple(module: nn.Module, x: Tensor, **options: Any) -> Result:
    quantized, codes, loss = module(x, **options)[:3]
    return Result(quantized, codes, [loss])


def _residual_fsq(module: Any, x: Tensor, **options: Any) -> Result:
    quantized, codes = module(x, **options)[:2]
    return Result(quantized, codes.movedim(1, -1) if module.is_channel_first else codes, raw=codes)


def _grouped_fsq(module: Any, x: Tensor, **options: Any) -> Result:
    quantized, codes = module(x, **options)[:2]
    last = codes.movedim(2, -1) if module.rvqs[0].is_channel_first else codes
    return Result(quantized, last.movedim(0, -1), raw=codes)


def _grouped(module: nn.Module, x: Tensor, **options: Any) -> Result:
    quantized, codes, loss = module(x, **options)[:3]
    return Result(quantized, codes.movedim(0, -1), [loss], raw=codes)


def _decode_fsq(module: Any, codes: Tensor) -> Tensor:
    out: Tensor = module.indices_to_codes(codes)
    first = module.channel_first or codes.dim() >= 3 + int(module.keep_num_codebooks_dim)
    return out.movedim(1, -1) if first else out


def _decode_lfq(module: Any, codes: Tensor) -> Tensor:
    out: Tensor = module.indices_to_codes(codes)
    image = codes.dim() >= 3 + int(module.keep_num_codebooks_dim)
    return out.movedim(1, -1) if (image if module.channel_first is None else module.channel_first) else out


def _decode_latent(module: Any, codes: Tensor) -> Tensor:
    out: Tensor = module.indices_to_codes(codes)
    return out.movedim(1, -1)


def _decode_output(module: Any, codes: Tensor) -> Tensor:
    """Features last. A channel-first cascade may also give the layout of `forward`; told apart by the width."""
    out: Tensor = module.get_output_from_indices(codes)
    return out


FSQ: Arguments = {
    "levels": [{"levels": [4, 4]}, {"levels": [7]}],
    "dim": [{"dim": DIM}],
    "num_codebooks": [{"num_codebooks": 2}, {"num_codebooks": 2, "dim": DIM}],
    "keep_num_codebooks_dim": [_on("keep_num_codebooks_dim")],
    "scale": [{"scale": 2.0}],
    "allowed_dtypes": [{"allowed_dtypes": (torch.float32, torch.float64, torch.bfloat16)}],
    "projection_has_bias": [{"projection_has_bias": False, "dim": DIM}],
    "return_indices": [{"return_indices": False}],
    "force_quantization_f32": [{"force_quantization_f32": False}],
    "preserve_symmetry": [_on("preserve_symmetry")],
    "noise_dropout": [_on("preserve_symmetry", noise_dropout=0.5)],
    "bound_hard_clamp": [_on("bound_hard_clamp")],
    "orthogonal_rotation": [_on("orthogonal_rotation", levels=[5, 5, 5])],
}
CASCADE_FSQ: Arguments = {
    **{k: v for k, v in FSQ.items() if k not in ("num_codebooks", "return_indices", "preserve_symmetry")},
    **DROPOUT,
    "soft_clamp_input_value": [{"soft_clamp_input_value": 1.5, "bound_hard_clamp": False}],
    "bound_hard_clamp": [{"bound_hard_clamp": False}],
    "noise_dropout": [{"noise_dropout": 0.5}],
    "projection_has_bias": [{"projection_has_bias": False}],
}
FSQ_REFUSED = {
    "num_codebooks": "a stage has one code",
    "channel_first": "is_channel_first",
    "return_indices": "stages are told apart by their codes",
    "preserve_symmetry": "always",
}


def _fsq_width(args: Options) -> int:
    return int(args.get("dim", len(args["levels"]) * args.get("num_codebooks", 1)))


FSQS = [
    Entry(
        "FSQ",
        vn.FSQ,
        {"levels": [5, 4, 3]},
        FSQ,
        _pair,
        _decode_fsq,
        (TOKENS, VECTORS, CHANNEL_FIRST, Layout("image", 2, True), Layout("volume", 3, True)),
        width=_fsq_width,
        sizes=(3, 8, 2),
    ),
    Entry(
        "ResidualFSQ",
        vn.ResidualFSQ,
        {"levels": [5, 4, 3], "num_quantizers": 3},
        CASCADE_FSQ,
        _residual_fsq,
        _decode_output,
        (
            TOKENS,
            DEEP,
            VECTORS,
            Layout("channel first", 1, True, {"is_channel_first": True}),
            Layout("image", 2, True, {"is_channel_first": True}),
        ),
        width=_fsq_width,
        inner=(vn.FSQ.__init__,),
        refused=FSQ_REFUSED,
        sizes=(3, 8),
    ),
    Entry(
        "GroupedResidualFSQ",
        vn.GroupedResidualFSQ,
        {"dim": DIM, "levels": [5, 4, 3], "num_quantizers": 3, "groups": 2},
        {k: v for k, v in CASCADE_FSQ.items() if k not in ("dim", "levels")}
        | {"levels": [{"levels": [4, 4]}, {"levels": [5, 5, 5, 5]}]},
        _grouped_fsq,
        _decode_output,
        (TOKENS, DEEP, IMAGE),
        inner=(vn.ResidualFSQ.__init__, vn.FSQ.__init__),
        refused=FSQ_REFUSED | {"is_channel_first": "follows from accept_image_fmap"},
        sizes=(3, 4, 8, 2),
    ),
]

LFQ: Arguments = {
    "codebook_size": [{"codebook_size": 16, "dim": DIM}],
    "entropy_loss_weight": [{"entropy_loss_weight": 0.0}],
    "commitment_loss_weight": [{"commitment_loss_weight": 0.25}],
    "diversity_gamma": [{"diversity_gamma": 2.0}],
    "straight_through_activation": [{"straight_through_activation": Make("Tanh", nn.Tanh)}],
    "num_codebooks": [{"num_codebooks": 2, "codebook_size": 8}, {"num_codebooks": 2, "codebook_size": 16}],
    "keep_num_codebooks_dim": [_on("keep_num_codebooks_dim")],
    "codebook_scale": [{"codebook_scale": 0.5}],
    "frac_per_sample_entropy": [{"frac_per_sample_entropy": 0.5}],
    "has_projections": [_on("has_projections")],
    "projection_has_bias": [{"projection_has_bias": False, "codebook_size": 16}],
    "soft_clamp_input_value": [{"soft_clamp_input_value": 1.5}],
    "cosine_sim_project_in": [_on("cosine_sim_project_in", codebook_size=16)],
    "cosine_sim_project_in_scale": [
        _on("cosine_sim_project_in", codebook_size=16, cosine_sim_project_in_scale=2.0),
    ],
    "experimental_softplus_entropy_loss": [_on("experimental_softplus_entropy_loss")],
    "entropy_loss_offset": [_on("experimental_softplus_entropy_loss", entropy_loss_offset=1.0)],
    "spherical": [_on("spherical")],
    "force_quantization_f32": [{"force_quantization_f32": False}],
    "orthogonal_rotation": [_on("orthogonal_rotation")],
}
CASCADE_LFQ: Arguments = {
    **{
        k: v
        for k, v in LFQ.items()
        if not k.startswith("cosine") and k not in ("num_codebooks", "has_projections", "codebook_scale")
    },
    **DROPOUT,
    "codebook_size": [{"codebook_size": 64}],
    "projection_has_bias": [{"projection_has_bias": False}],
}
LFQ_REFUSED = {
    "num_codebooks": "a stage has one code",
    "has_projections": "a stage has its code's width",
    "codebook_scale": "2^-s",
    "cosine_sim_project_in": "a stage has no projection",
    "cosine_sim_project_in_scale": "a stage has no projection",
}
LFQS = [
    Entry(
        "LFQ",
        vn.LFQ,
        {"dim": 6},
        LFQ,
        _triple,
        _decode_lfq,
        (TOKENS, VECTORS, CHANNEL_FIRST, Layout("image", 2, True), Layout("deep", 2, False, {"channel_first": False})),
        masked=True,
        sizes=(6, 2),
        curved="input",
        curved_options={"force_quantization_f32": False},
    ),
    Entry(
        "ResidualLFQ",
        vn.ResidualLFQ,
        {"dim": 6, "num_quantizers": 3, "codebook_size": 16},
        CASCADE_LFQ,
        _triple,
        _decode_output,
        (TOKENS, VECTORS, CHANNEL_FIRST, Layout("image", 2, True), Layout("deep", 2, False, {"channel_first": False})),
        inner=(vn.LFQ.__init__,),
        refused=LFQ_REFUSED,
        masked=True,
        sizes=(6, 3),
        curved="input",
        curved_options={"force_quantization_f32": False},
    ),
    Entry(
        "GroupedResidualLFQ",
        vn.GroupedResidualLFQ,
        {"dim": DIM, "num_quantizers": 3, "codebook_size": 16, "groups": 2},
        CASCADE_LFQ,
        _grouped,
        _decode_output,
        (TOKENS, IMAGE),
        inner=(vn.ResidualLFQ.__init__, vn.LFQ.__init__),
        refused=LFQ_REFUSED | {"channel_first": "accept_image_fmap"},
        masked=True,
        sizes=(4, 3, 8, 2),
        curved="input",
        curved_options={"force_quantization_f32": False},
    ),
]


def _binary(module: Any, x: Tensor, **options: Any) -> Result:
    one_hot, codes, loss = module(x, return_indices=True, deterministic=not module.training, **options)
    return Result(one_hot, codes, [loss])


def _sparse(module: nn.Module, x: Tensor) -> Result:
    found = module(x)
    return Result(found.reconstruction, found.indices, [found.loss, found.error], raw=(found.values, found.indices))


def _first(module: nn.Module, x: Tensor) -> Result:
    return Result(module(x))


def _bank(module: Any, x: Tensor) -> Result:
    if module.bias is not None:
        return Result(module.project(x), module.topk(x, 3).indices)
    return Result(module.project(x), module.quantize(x).codes)


def _vectors() -> Tensor:
    return torch.randn(9, DIM)


MADE = {"vectors": Make("randn(9, 8)", _vectors)}
OTHERS = [
    Entry(
        "LatentQuantize",
        vn.LatentQuantize,
        {"levels": [5, 4, 3], "dim": 3},
        {
            "levels": [{"levels": [4, 4, 7]}, {"levels": 4, "codebook_dim": 3}],
            "dim": [{"dim": DIM}],
            "commitment_loss_weight": [{"commitment_loss_weight": 0.0}],
            "quantization_loss_weight": [{"quantization_loss_weight": None}],
            "num_codebooks": [{"num_codebooks": 2, "dim": 6}, {"num_codebooks": 2, "dim": DIM}],
            "keep_num_codebooks_dim": [_on("keep_num_codebooks_dim")],
            "codebook_dim": [{"levels": 4, "codebook_dim": 2}],
            "optimize_values": [{"optimize_values": False}],
            "value_gradient": [_on("value_gradient")],
        },
        _triple,
        _decode_latent,
        (Layout("channel first", 1, True), Layout("vectors", 0, True), Layout("image", 2, True)),
        refused={"in_place_codebook_optimizer": "the peer fails with it"},
        sizes=(3, 8, 2),
    ),
    Entry(
        "BinaryMapper",
        vn.BinaryMapper,
        {"bits": 4},
        {
            "kl_loss_threshold": [{"kl_loss_threshold": 0.1}],
            "deterministic_on_eval": [_on("deterministic_on_eval")],
        },
        _binary,
        lambda module, codes: nn.functional.one_hot(codes.long(), 16).float(),
        (TOKENS, DEEP, VECTORS),
        width=lambda args: int(args["bits"]),
        sizes=(4,),
    ),
    Entry(
        "ProductQuantizer",
        vn.ProductQuantizer,
        {"dim": DIM, "parts": 2, "codes": 8},
        {
            "decay": [{"decay": 0.5}, {"decay": None}],
            "commitment_weight": [{"commitment_weight": 0.3}],
            "rare": [{"rare": 0.6}],
            "rotation": [_on("rotation")],
            "sync": [{"sync": False}],
            **GENERATOR,
        },
        _triple,
        lambda module, codes: module.decode(codes),
        (TOKENS, DEEP, VECTORS),
        sizes=(8, 2),
        curved="input",
    ),
    Entry(
        "CodebookFeatures",
        vn.CodebookFeatures,
        {"dim": DIM, "num_codes": 12},
        {
            "k": [{"k": 3}],
            "heads": [{"heads": 2}, {"heads": 2, "k": 2}],
            "metric": [{"metric": "dot"}, {"metric": "l2"}],
            "reduce": [{"reduce": "sum", "k": 3}],
            "task_gradient": [{"task_gradient": False}],
            "codebook_weight": [{"codebook_weight": 0.5}],
            "commitment_weight": [{"commitment_weight": 0.5}],
            "sync": [{"sync": False}],
            **GENERATOR,
        },
        _triple,
        lambda module, codes: module.decode(codes),
        (TOKENS, DEEP, VECTORS),
        sizes=(8, 2),
        curved="input",
    ),
    Entry(
        "SparseAutoencoder",
        vn.SparseAutoencoder,
        {"dim": DIM, "latents": 16, "k": 3},
        {
            "activation": [{"activation": "batch_topk"}, {"activation": "jumprelu", "threshold": 0.1}],
            "aux_k": [{"aux_k": 0}, {"aux_k": 2, "dead_after": 4}],
            "aux_weight": [{"aux_weight": 0.5, "dead_after": 4}],
            "dead_after": [{"dead_after": 4}],
            "penalty_weight": [{"activation": "jumprelu", "threshold": 0.1, "penalty_weight": 0.3}],
            "threshold": [{"activation": "jumprelu", "threshold": 0.5}],
            "bandwidth": [{"activation": "jumprelu", "threshold": 0.1, "bandwidth": 0.1}],
            "max_k": [
                {"activation": "batch_topk", "max_k": 5},
                {"activation": "jumprelu", "threshold": 0.1, "max_k": 5},
            ],
            "sync": [{"sync": False}],
            **GENERATOR,
        },
        _sparse,
        lambda module, code: module.decode(*code),
        (TOKENS, DEEP, VECTORS),
        curved="parameters",
        bent=frozenset({"jumprelu"}),
    ),
    Entry(
        "RelativeProjection",
        vn.RelativeProjection,
        {"anchors": Make("randn(9, 8)", _vectors)},
        {
            "metric": [{"metric": "dot"}, {"metric": "l2"}, {"metric": "sqeuclidean"}],
            "learnable": [_on("learnable")],
        },
        _first,
        layouts=(TOKENS, DEEP, VECTORS),
        width=lambda args: DIM,
        curved="input",
        plain=True,
    ),
    Entry(
        "Bank",
        vecbank.Bank,
        MADE,
        {
            "metric": [{"metric": "dot"}, {"metric": "l2"}, {"metric": "sqeuclidean"}],
            "learnable": [_on("learnable"), _on("learnable", metric="l2")],
            "screen": [{"screen": "float32"}, {"screen": "int8"}],
            "head": [{"head": 1}, {"screen": "int8", "head": 2}],
            "bias": [{"metric": "dot", "bias": Make("randn(9)", partial(torch.randn, 9))}],
        },
        _bank,
        layouts=(TOKENS, DEEP, VECTORS),
        width=lambda args: DIM,
        curved="input",
        plain=True,
    ),
    Entry(
        "CompressedEmbedding",
        vn.CompressedEmbedding,
        {"num_embeddings": 20, "dim": DIM},
        {
            "method": [
                {"method": "hashed", "rows": 12},
                {"method": "two_table"},
                {"method": "two_table", "combine": "concat"},
                {"method": "low_rank", "rank": 3},
                {"method": "integer", "bits": 4},
                {"method": "product", "bits": 3},
            ],
            "std": [{"std": 0.5}],
            **GENERATOR,
        },
        _first,
        layouts=(Layout("ids"),),
        width=lambda args: 4,
        ids=20,
        curved="parameters",
        bent=frozenset({"integer", "product"}),
    ),
    Entry(
        "HashedEmbedding",
        vn.HashedEmbedding,
        {"rows": 12, "width": 4, "probes": (2, 1, 3)},
        {"seed": [{"seed": 3}], "std": [{"std": 0.5}], **GENERATOR},
        _first,
        layouts=(Layout("ids"),),
        width=lambda args: 3,
        ids=1000,
        curved="parameters",
    ),
]

TABLE: list[Entry] = [*VECTOR, *SIMS, *FSQS, *LFQS, *OTHERS]


def find(text: str) -> Any:
    """The case that prints so."""
    from net_core import Case, pairs, singles

    for entry in TABLE:
        if not text.startswith(f"{entry.name}("):
            continue
        for layout in entry.layouts:
            for dtype in ("float32", "bfloat16", "float16", "autocast"):
                if not text.endswith(f" | {layout.name} | {dtype}"):
                    continue
                for options in (*singles(entry), *pairs(entry, PAIRS, 0)):
                    if str(case := Case(entry, options, layout, dtype)) == text:
                        return case
    raise KeyError(f"no case of the net prints as {text!r}")


PAIRS = 40  # random pairs of options of a module
