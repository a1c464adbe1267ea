"""Arguments of modules that make no sense: the error names the argument, what came and what was expected."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vecbank.nn as vn

MODULES: dict[str, dict[str, Any]] = {
    "VectorQuantize": {"dim": 8, "codebook_size": 12},
    "ResidualVQ": {"dim": 8, "num_quantizers": 2, "codebook_size": 12},
    "GroupedResidualVQ": {"dim": 8, "groups": 2, "num_quantizers": 2, "codebook_size": 12},
    "SimVQ": {"dim": 8, "codebook_size": 12},
    "ResidualSimVQ": {"dim": 8, "num_quantizers": 2, "codebook_size": 12},
    "FSQ": {"levels": [8, 5], "dim": 8},
    "ResidualFSQ": {"levels": [8, 5], "num_quantizers": 2, "dim": 8},
    "GroupedResidualFSQ": {"levels": [8, 5], "num_quantizers": 2, "dim": 8, "groups": 2},
    "LFQ": {"dim": 8, "codebook_size": 16},
    "ResidualLFQ": {"dim": 8, "codebook_size": 16, "num_quantizers": 2},
    "GroupedResidualLFQ": {"dim": 8, "groups": 2, "codebook_size": 16, "num_quantizers": 2},
    "LatentQuantize": {"levels": [5, 5], "dim": 8},
    "BinaryMapper": {"bits": 3},
    "ProductQuantizer": {"dim": 8, "parts": 2, "codes": 4},
    "RandomProjectionQuantizer": {"dim": 8, "codebook_size": 12, "codebook_dim": 4, "num_codebooks": 2},
    "CodebookFeatures": {"dim": 8, "num_codes": 12, "k": 2, "heads": 2},
    "SparseAutoencoder": {"dim": 8, "latents": 12, "k": 2},
    "HashedEmbedding": {"rows": 12, "width": 4, "probes": [2, 2]},
    "CompressedEmbedding": {"num_embeddings": 300, "dim": 8},
}
COUNTS = set(
    "dim codebook_size codebook_dim heads num_quantizers groups parts codes k latents num_codes bits num_codebooks "
    "frozen_codebook_dim rows width num_embeddings max_k dead_after quantize_dropout_multiple_of "
    "orthogonal_reg_max_codes beam_size eval_beam_size".split()
)
NOT_NEGATIVE = set(
    "eps threshold_ema_dead_code commitment_weight orthogonal_reg_weight codebook_diversity_loss_weight "
    "codebook_diversity_temperature sample_codebook_temp directional_reparam_variance commitment_loss_weight "
    "input_to_quantize_commit_loss_weight quantization_loss_weight codebook_weight aux_weight penalty_weight rare std "
    "threshold bandwidth kl_loss_threshold".split()
)
SHARES = set(
    "decay affine_param_batch_decay affine_param_codebook_decay sync_update_v quant_grad_frac noise_dropout "
    "frac_per_sample_entropy".split()
)
OTHER = {("LatentQuantize", "codebook_dim")}  # -1 by default, and read only beside a number of levels


def arguments(kinds: set[str]) -> Iterator[tuple[str, str]]:
    for name, kwargs in MODULES.items():
        named = inspect.signature(getattr(vn, name)).parameters
        passed = {"decay", "threshold_ema_dead_code"} if name == "GroupedResidualVQ" else set()
        for argument in sorted((named.keys() | kwargs.keys() | passed) & kinds):
            if (name, argument) not in OTHER:
                yield name, argument


def build(name: str, **changed: Any) -> nn.Module:
    module: nn.Module = getattr(vn, name)(**{**MODULES[name], **changed})
    return module


@pytest.mark.parametrize(("name", "argument"), list(arguments(COUNTS)))
def test_counts(name: str, argument: str) -> None:
    for wrong in (0, -8):
        with pytest.raises(ValueError, match=rf"{argument}\b.*{wrong}"):
            build(name, **{argument: wrong})
    for other in (2.0, "3", True, None if argument == "codebook_size" else [1]):
        if other is None or (argument == "heads" and other is True):  # LFQ's follows from dim; 1 is all there is
            continue
        with pytest.raises((TypeError, ValueError), match=argument):
            build(name, **{argument: other})


@pytest.mark.parametrize("name", MODULES)
def test_integers_of_numpy(name: str) -> None:
    numbers = {k: np.int64(v) if isinstance(v, int) else np.array(v) for k, v in MODULES[name].items()}
    torch.manual_seed(0)
    module = build(name, **numbers)
    torch.manual_seed(0)
    plain = build(name)
    assert repr(module) == repr(plain)
    for key, value in module.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key])


@pytest.mark.parametrize(("name", "argument"), list(arguments(NOT_NEGATIVE)))
def test_weights_and_thresholds(name: str, argument: str) -> None:
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"{argument} must .*{wrong}"):
            build(name, **{argument: wrong})
    with pytest.raises(TypeError, match=f"{argument} must be a number, got str"):
        build(name, **{argument: "1"})


@pytest.mark.parametrize(("name", "argument"), list(arguments(SHARES)))
def test_shares(name: str, argument: str) -> None:
    for wrong in (-1, 2, float("nan")):
        with pytest.raises(ValueError, match=rf"{argument} must .*{wrong}"):
            build(name, **{argument: wrong})


@pytest.mark.parametrize(("name", "argument"), arguments(NOT_NEGATIVE | SHARES))
def test_none_is_no_number(name: str, argument: str) -> None:
    if name == "LatentQuantize" or (name, argument) == ("ProductQuantizer", "decay"):
        build(name, **{argument: None})  # where it says that there is none
        return
    with pytest.raises(TypeError, match=f"^{argument} must be a number, got NoneType"):
        build(name, **{argument: None})


def test_parts_of_modules() -> None:
    for name in ("VectorQuantize", "ResidualVQ", "ProductQuantizer", "CodebookFeatures", "SparseAutoencoder"):
        with pytest.raises(TypeError, match="^generator must be a torch.Generator or None, got int"):
            build(name, generator=3)
    drawing = (build("LFQ", frac_per_sample_entropy=0.5), build("FSQ", preserve_symmetry=True, noise_dropout=0.5))
    for module, x in (*((module, X) for module in drawing), (build("BinaryMapper"), X[..., :3])):
        with pytest.raises(TypeError, match="^generator must be a torch.Generator or None, got int"):
            module(x, generator=3)
    for name, argument in (
        ("VectorQuantize", "vq_bridge"),
        ("SimVQ", "codebook_transform"),
        ("LFQ", "straight_through_activation"),
    ):
        with pytest.raises(TypeError, match=f"^{argument} must be a torch.nn.Module, got int"):
            build(name, **{argument: 3})
    for wrong in (2, "ab", [1.0, None]):
        with pytest.raises(TypeError, match="^beam_score_quantizer_weights"):
            build("ResidualVQ", beam_size=2, beam_score_quantizer_weights=wrong)
    with pytest.raises(TypeError, match="^model must be a torch.nn.Module, got int"):
        vn.accelerate(3)  # type: ignore[arg-type]


# ---- calls --------------------------------------------------------------------------------------------------------

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
NAMES = {"FSQ": "z", "LatentQuantize": "z", "CodebookFeatures": "h", "BinaryMapper": "logits"}
INPUTS = [name for name in MODULES if "Embedding" not in name]


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name: str) -> None:
    module, named = build(name), NAMES.get(name, "x")
    with pytest.raises(ValueError, match=rf"^{named} must .*\(2, 5, 7\)"):
        module(torch.randn(2, 5, 7))
    x = torch.randn(2, 8, 8)[:, :, : 3 if name == "BinaryMapper" else 8]
    for wrong in (x.tolist(), x.numpy(), x.long(), x.to_sparse(), x.to(torch.complex64), x.to(torch.float8_e4m3fn)):
        with pytest.raises(TypeError, match=f"^{named} must be"):
            module(wrong)


class Tagged(Tensor):
    """A tensor of another class, with nothing of its own."""


DECODERS: dict[str, tuple[tuple[int, ...], str]] = {  # shape of codes, and what they are called
    "VectorQuantize": ((2, 5), "indices"),
    "ResidualVQ": ((2, 5, 2), "indices"),
    "GroupedResidualVQ": ((2, 2, 5, 2), "indices"),
    "SimVQ": ((2, 5), "indices"),
    "ResidualSimVQ": ((2, 5, 2), "indices"),
    "FSQ": ((2, 5), "indices"),
    "ResidualFSQ": ((2, 5, 2), "indices"),
    "GroupedResidualFSQ": ((2, 2, 5, 2), "indices"),
    "LFQ": ((2, 5), "indices"),
    "ResidualLFQ": ((2, 5, 2), "indices"),
    "GroupedResidualLFQ": ((2, 2, 5, 2), "indices"),
    "LatentQuantize": ((2, 5), "indices"),
    "ProductQuantizer": ((5, 2), "codes"),
    "CodebookFeatures": ((5, 2, 2), "codes"),
    "CompressedEmbedding": ((5,), "ids"),
}


def decoder(module: nn.Module) -> Callable[[Any], Tensor]:
    found = (getattr(module, name, None) for name in ("get_output_from_indices", "indices_to_codes", "decode"))
    method: Callable[[Any], Tensor] = next((f for f in found if f is not None), module)
    return method


@pytest.mark.parametrize("name", DECODERS)
def test_codes(name: str) -> None:
    shape, named = DECODERS[name]
    decode = decoder(build(name))
    for wrong in (torch.full(shape, 999), torch.full(shape, -2), torch.full(shape, 999).as_subclass(Tagged)):
        with pytest.raises(IndexError, match=f"^{named} must lie between -1 and"):
            decode(wrong)
    with pytest.raises(TypeError, match=f"^{named} must be integers"):
        decode(torch.zeros(shape))
    if len(shape) > 2:
        with pytest.raises(ValueError, match=f"^{named} must"):
            decode(torch.tensor(1))


@pytest.mark.parametrize("name", MODULES)
def test_modules_take_no_arrays(name: str) -> None:
    """Unlike functions; and the error does not name arrays as what is wanted."""
    shape = {"BinaryMapper": (2, 5, 3), "HashedEmbedding": (5, 2)}.get(name, (2, 8, 8))
    module, said = build(name), r" must be a torch.Tensor \(torch.from_numpy makes one\), got a numpy array"
    with pytest.raises(TypeError, match=said):
        module(np.zeros(shape, np.float32))
    if name in DECODERS:
        with pytest.raises(TypeError, match=f"^{DECODERS[name][1]}" + said):
            decoder(module)(np.zeros(DECODERS[name][0], np.int64))
    for method in ("fit_", "start_", "encode", "codes_to_indices"):
        if hasattr(module, method):
            with pytest.raises(TypeError, match=said):
                getattr(module, method)(np.zeros((30, 8), np.float32))


def test_nothing_that_belongs_to_a_module_is_an_array() -> None:
    vq, pq = build("VectorQuantize"), build("ProductQuantizer")
    said = r"must be a torch.Tensor \(torch.from_numpy makes one\), got a numpy array"
    codes = np.zeros((2, 5), np.int64)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("codebook", lambda: setattr(vq, "codebook", np.zeros((12, 8), np.float32))),
        ("codebooks", lambda: setattr(pq, "codebooks", np.zeros((2, 4, 4), np.float32))),
        ("lens", lambda: vq(X, lens=np.array([1, 2]))),
        ("indices", lambda: vq(X, indices=codes)),
        ("indices", lambda: build("ResidualVQ")(X, indices=np.stack((codes, codes), -1))),
        ("mask", lambda: build("ResidualVQ")(X, mask=codes > 0)),
        ("mask", lambda: build("LFQ")(X, mask=codes > 0)),
        ("x", lambda: vn.RelativeProjection(X[0])(X.numpy())),
    ]
    for named, call in calls:
        with pytest.raises(TypeError, match=f"^{named} {said}"):
            call()
    with pytest.raises(ValueError, match=r"^mask must be bool \(True = counts\), got ndarray"):
        vq(X, mask=codes > 0)


SCORED = {
    "VectorQuantize": lambda codes: codes,
    "ResidualVQ": lambda codes: torch.stack((codes, codes), -1),
    "GroupedResidualVQ": lambda codes: [torch.stack((codes, codes), -1)] * 2,
    "RandomProjectionQuantizer": lambda codes: torch.stack((codes, codes), -1),
}


@pytest.mark.parametrize("name", SCORED)
def test_codes_to_be_scored(name: str) -> None:
    module, given = build(name), SCORED[name]
    module(X, indices=given(torch.full((2, 5), 11)))
    for wrong in (12, -2):
        with pytest.raises(IndexError, match="^indices must lie between -1 and 11, got"):
            module(X, indices=given(torch.full((2, 5), wrong)))
    for shape in ((2, 4), (10,), ()):
        with pytest.raises(ValueError, match=r"^indices must be \(b"):
            module(X, indices=given(torch.zeros(shape, dtype=torch.int64)))
    with pytest.raises(TypeError, match="^indices must be integers"):
        module(X, indices=given(torch.zeros(2, 5)))


@pytest.mark.parametrize("name", ["ResidualVQ", "GroupedResidualVQ"])
def test_codes_of_more_stages_than_there_are(name: str) -> None:
    module, given = build(name), torch.zeros(2, 5, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^indices must be \(b, ..., 2\) .* got \(2, 5, 3\)"):
        module(X, indices=given if name == "ResidualVQ" else [given, given])
    module(X, indices=given[..., :2] if name == "ResidualVQ" else [given[..., :2]] * 2, num_stages=1)


def test_options_of_calls() -> None:
    vq, rvq = build("VectorQuantize"), build("ResidualVQ")
    for k in (0, 13):
        with pytest.raises(ValueError, match=f"topk must lie between 1 and 12, got {k}"):
            vq(X, topk=k)
    assert vq(X, topk=np.int64(12))[1].shape == (2, 5, 12)
    assert rvq(X, beam_size=50)[1].shape == (2, 5, 2)  # no more sequences than there are
    refused: list[tuple[nn.Module, dict[str, Any], type[Exception], str]] = [
        (vq, {"sample_codebook_temp": -1.0}, ValueError, "sample_codebook_temp must be at least 0"),
        (vq, {"lens": torch.tensor([1.0, 2.0])}, TypeError, "lens must be integers"),
        (vq, {"lens": [1, 2]}, TypeError, "lens must be a torch.Tensor"),
        (vq, {"lens": torch.tensor([-5, 3])}, IndexError, "lens must lie between 0 and 5, got values from -5 to 3"),
        (vq, {"lens": torch.tensor([5, 200])}, IndexError, "lens must lie between 0 and 5"),
        (vq, {"sample_codebook_temp": "a"}, TypeError, "sample_codebook_temp must be a number, got str"),
        (vq, {"ema_update_weight": 0.5}, TypeError, "ema_update_weight must be a torch.Tensor, got float"),
        (vq, {"mask": [True]}, ValueError, "mask must be bool"),
        (vq, {"codebook_transform_fn": lambda book: book}, ValueError, "codebook_transform_fn must return"),
        (rvq, {"beam_size": 0}, ValueError, "beam_size must be at least 1, got 0"),
        (rvq, {"num_stages": 3}, ValueError, "num_stages must lie between 1 and num_quantizers = 2, got 3"),
    ]
    for module, options, kind, words in refused:
        with pytest.raises(kind, match=words):
            module(X, **options)
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        build("BinaryMapper")(torch.randn(2, 3), temperature=0.0)


def test_levels() -> None:
    for make in (lambda levels: vn.FSQ(levels), lambda levels: vn.ResidualFSQ(levels=levels, num_quantizers=2)):
        with pytest.raises(TypeError, match="levels must be a sequence of ints, got 8"):
            make(8)
        with pytest.raises(TypeError, match=r"levels\[0\] must be an int, got float"):
            make([5.5, 3])
        with pytest.raises(ValueError, match="levels must hold at least one number"):
            make([])
    with pytest.raises(ValueError, match="levels must be at least 2, got -1"):
        vn.LatentQuantize(-1, dim=8)
    with pytest.raises(TypeError, match=r"levels must be a sequence of ints, got 5.0"):
        vn.LatentQuantize(5.0, dim=8, codebook_dim=8)  # type: ignore[arg-type]
    assert vn.LatentQuantize(np.int64(5), dim=8, codebook_dim=8).codebook_dim == 8  # type: ignore[arg-type]


# ---- tables -------------------------------------------------------------------------------------------------------


def test_tables() -> None:
    table = torch.randn(100, 8)
    from_table = vn.CompressedEmbedding.from_table
    with pytest.raises(ValueError, match=r"table must have at least 2\^bits = 256 rows .* got 100: take fewer bits"):
        from_table(table, "product")
    for rank in (0, 9):
        with pytest.raises(ValueError, match=f"rank must lie between 1 and 8, got {rank}"):
            from_table(table, "low_rank", rank=rank)
        with pytest.raises(ValueError, match=f"rank must lie between 1 and 8, got {rank}"):
            vn.CompressedEmbedding(300, 8, "low_rank", rank=rank)
    with pytest.raises(ValueError, match=r"table must have shape \(V, dim\), got \(8,\)"):
        from_table(table[0], "integer")
    with pytest.raises(ValueError, match="keep must lie between 0 and 1"):
        from_table(table, "pruned", keep=2.0)
    table[3, 2] = torch.nan
    for method, options in (("integer", {}), ("product", {"bits": 4}), ("low_rank", {"rank": 4})):
        with pytest.raises(ValueError, match=f"table must be finite for method '{method}', .* in 1 rows, the first 3"):
            from_table(table, method, **options)
    module = vn.CompressedEmbedding(300, 8, "integer")
    with torch.no_grad():
        module.table[7] = torch.inf
    with pytest.raises(ValueError, match="table must be finite"):
        module.freeze_()


def test_samples_of_a_start() -> None:
    with pytest.raises(ValueError, match="samples must have at least codes = 4 finite rows, got 3"):
        vn.ProductQuantizer(8, 2, 4).fit_(torch.randn(3, 8))
    with pytest.raises(ValueError, match="samples must have at least num_codes = 12 rows, got 3"):
        vn.CodebookFeatures(8, 12).fit_(torch.randn(3, 8))
    for module in (vn.ProductQuantizer(8, 2, 4), vn.CodebookFeatures(8, 12), vn.SparseAutoencoder(8, 12, 2)):
        with pytest.raises(ValueError, match=r"samples must have shape \(..., 8\), got \(30, 7\)"):
            getattr(module, "start_" if isinstance(module, vn.SparseAutoencoder) else "fit_")(torch.randn(30, 7))
    assert vn.anchors.random(100, np.int64(5), generator=torch.Generator()).shape == (5,)  # type: ignore[arg-type]


# ---- memory -------------------------------------------------------------------------------------------------------

HUGE = 2**30
TOO_LARGE: dict[str, Callable[[], Any]] = {
    "VectorQuantize": lambda: vn.VectorQuantize(HUGE, HUGE),
    "overflow": lambda: vn.VectorQuantize(2**50, 2**50),
    "projection": lambda: vn.VectorQuantize(HUGE, 2, codebook_dim=2**20),
    "ResidualVQ": lambda: vn.ResidualVQ(dim=HUGE, num_quantizers=2, codebook_size=2, codebook_dim=2**20),
    "SimVQ": lambda: vn.SimVQ(HUGE, HUGE),
    "FSQ": lambda: vn.FSQ([8, 5], dim=2**50),
    "codes of FSQ": lambda: vn.FSQ([8] * 15).implicit_codebook,
    "codes of LFQ": lambda: vn.LFQ(codebook_size=2**50).codebook,
    "ProductQuantizer": lambda: vn.ProductQuantizer(HUGE, 1, HUGE),
    "RandomProjectionQuantizer": lambda: vn.RandomProjectionQuantizer(dim=HUGE, codebook_size=2, codebook_dim=HUGE),
    "CodebookFeatures": lambda: vn.CodebookFeatures(HUGE, HUGE),
    "SparseAutoencoder": lambda: vn.SparseAutoencoder(HUGE, HUGE, 2),
    "HashedEmbedding": lambda: vn.HashedEmbedding(HUGE, HUGE, [1]),
    "CompressedEmbedding": lambda: vn.CompressedEmbedding(HUGE, HUGE),
    "BinaryMapper": lambda: vn.BinaryMapper(30)(torch.zeros(2**20, 30)),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_missing_memory(name: str) -> None:
    with pytest.raises(MemoryError, match=re.compile("^not enough memory for .*[0-9]")):
        TOO_LARGE[name]()


# ---- warnings -----------------------------------------------------------------------------------------------------

WARNED: dict[str, Callable[[], Any]] = {
    "k-means starts 12 codes from 5 vectors": lambda: build("VectorQuantize", kmeans_init=True)(X[:1]),
    "k-means starts 3 codes from 2 vectors": lambda: nn.Sequential(
        vn.ResidualVQ(dim=8, num_quantizers=2, codebook_size=3, kmeans_init=True)
    )(X[:, :1]),
    "orthogonal_rotation mixes": lambda: build("ResidualFSQ", orthogonal_rotation=True),
}


@pytest.mark.parametrize("words", WARNED)
def test_warnings_name_the_caller_s_line(words: str) -> None:
    with pytest.warns(UserWarning, match=words) as caught:
        WARNED[words]()
    assert {warning.filename for warning in caught} == {__file__}
