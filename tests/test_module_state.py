"""State of modules: what waits in a checkpoint, assigned codebooks, averaged models, graphs that live on."""

from __future__ import annotations

import copy
import gc
import io
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from quantizer_cases import CODES, DIM, Bridge
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import vecbank.nn as vn

VQ: dict[str, dict[str, Any]] = {
    "default": {},
    "kmeans": {"kmeans_init": True},
    "cosine": {"use_cosine_sim": True},
    "expiry": {"threshold_ema_dead_code": 1},
    "head codebooks": {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True},
    "affine": {"affine_param": True},
    "affine, kmeans": {"affine_param": True, "kmeans_init": True},
    "projected": {"codebook_dim": 5},
}


def make(name: str, seed: int = 0, **more: Any) -> vn.VectorQuantize:
    torch.manual_seed(seed)
    return vn.VectorQuantize(DIM, CODES, **{**VQ[name], **more})


def saved(module: nn.Module) -> dict[str, Any]:
    """The state as a file gives it back."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def batch(seed: int) -> Tensor:
    return torch.randn(2, 20, DIM, generator=torch.Generator().manual_seed(seed))


def same(a: nn.Module, b: nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


# ---- what accum_ema_update holds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VQ)
def test_resuming_in_the_middle_of_an_accumulation_is_the_run(name: str) -> None:
    run = make(name)
    run(batch(0))
    run(batch(1), accum_ema_update=True)
    resumed = make(name, seed=1)
    resumed.load_state_dict(saved(run))
    for step, more in ((2, {"accum_ema_update": True}), (3, {}), (4, {})):
        state = torch.get_rng_state()
        expected = run(batch(step), **more)
        torch.set_rng_state(state)
        for got, want in zip(resumed(batch(step), **more), expected, strict=True):
            assert torch.equal(got, want)
        same(run, resumed)


def test_nothing_that_waits_leaves_the_layout_of_the_peer() -> None:
    peer = pytest.importorskip("vector_quantize_pytorch")
    theirs = peer.VectorQuantize(dim=DIM, codebook_size=CODES)
    ours = make("default")
    ours(batch(0), accum_ema_update=True)
    extra = ours.state_dict().keys() - theirs.state_dict().keys()
    assert extra == {"_codebook.pending_size", "_codebook.pending_sum"}
    ours(batch(1))
    theirs.load_state_dict(ours.state_dict())
    ours(batch(0), accum_ema_update=True)
    ours.load_state_dict(theirs.state_dict())  # a state in which nothing waits: nothing waits here
    assert ours._codebook.pending_size is None and ours._codebook.pending_sum is None


def test_what_waits_moves_with_the_module() -> None:
    module = make("default")
    module(batch(0), accum_ema_update=True)
    assert module._codebook.pending_sum is not None
    moved = copy.deepcopy(module).double()
    assert moved._codebook.pending_sum.dtype == torch.float64  # type: ignore[union-attr]
    assert module.to("meta")._codebook.pending_sum.is_meta  # type: ignore[union-attr]


# ---- affine moments are always there ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "exponential"])
@pytest.mark.parametrize("name", VQ)
def test_an_averaged_model_made_before_the_first_forward(name: str, kind: str) -> None:
    module = make(name)
    options = {} if kind == "mean" else {"multi_avg_fn": get_ema_multi_avg_fn(0.5)}
    averaged = AveragedModel(module, use_buffers=True, **options)  # type: ignore[arg-type]
    kept = []
    for step in range(3):
        module(batch(step), accum_ema_update=step == 1)
        averaged.update_parameters(module)
        kept.append({name: value.clone() for name, value in module.named_buffers()})
    for key, value in averaged.module.named_buffers():
        if key.endswith(("embed", "batch_mean")) and kind == "mean":
            torch.testing.assert_close(value, torch.stack([state[key] for state in kept]).mean(0), msg=key)
    averaged.eval()
    quantized, codes, _ = averaged(batch(9))
    assert torch.equal(averaged.module.get_output_from_indices(codes), quantized)


@pytest.mark.parametrize("kind", ["mean", "exponential"])
def test_an_averaged_model_of_codebook_features(kind: str) -> None:
    module = vn.CodebookFeatures(DIM, CODES, 2)
    options = {} if kind == "mean" else {"multi_avg_fn": get_ema_multi_avg_fn(0.5)}
    averaged = AveragedModel(module, use_buffers=True, **options)  # type: ignore[arg-type]
    module.disable_(torch.tensor([0, 3]))
    for step in range(3):
        module(batch(step))
        averaged.update_parameters(module)
    assert saved(module)["enabled"].dtype == torch.bool
    for code in (0, 3):
        assert not bool((averaged(batch(9)).codes == code).any())


def test_moments_of_no_rows_are_no_moments() -> None:
    module, plain = make("affine"), make("default")
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if k in plain.state_dict()})
    assert not any("batch_" in key for key in module.state_dict())
    for got, want in zip(module.eval()(batch(0)), plain.eval()(batch(0)), strict=True):
        assert torch.equal(got, want)
    module.train()(batch(0))
    trained = saved(module)
    assert {"_codebook.batch_mean", "_codebook.batch_variance"} < trained.keys()
    again = make("affine", seed=1)
    again.load_state_dict(trained)
    same(module, again)
    again.load_state_dict(make("affine").state_dict())  # a state from before the first rows
    assert not bool(again._codebook.batch_mean.any()) and not bool(again._codebook.codebook_mean.any())


# ---- codebooks that are assigned ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VQ)
def test_an_assigned_codebook_holds(name: str) -> None:
    module = make(name)
    codes = torch.randn(module.codebook.shape, generator=torch.Generator().manual_seed(3))
    codes = nn.functional.normalize(codes, dim=-1) if module.use_cosine_sim else codes
    module.codebook = codes
    assert torch.equal(module.codebook, codes)
    module.eval()(batch(0))
    assert torch.equal(module.codebook, codes)
    module.train()(batch(0)[:0])
    assert torch.equal(module.codebook, codes)
    codebook = module._codebook
    size = float(codebook.cluster_size.flatten()[0])
    assert size >= 1 and torch.equal(codebook.embed_avg, codebook.embed * size)
    _, found, _ = module(batch(0))
    used = torch.zeros(CODES, dtype=torch.bool).index_fill(0, found.flatten().unique(), True)
    if module.separate_codebook_per_head or "affine" in name:
        return
    torch.testing.assert_close(module.codebook[~used], codes[~used], rtol=1e-4, atol=1e-5)  # Laplace smoothing
    near = (module.codebook - codes).norm(dim=-1).mean() < 0.5 * codes.norm(dim=-1).mean()
    assert bool(near)


def test_assigned_cosine_codes_are_normalised() -> None:
    module = vn.VectorQuantize(2, 2, use_cosine_sim=True).eval()
    module.codebook = torch.tensor([[1.0, 0.0], [60.0, 80.0]])
    torch.testing.assert_close(module.codebook, torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    assert module(torch.tensor([[[1.0, 0.01]]]))[1].tolist() == [[0]]


@pytest.mark.parametrize("name", ["default", "cosine", "head codebooks", "kmeans"])
def test_codes_without_rows_stay_where_there_is_no_smoothing(name: str) -> None:
    module = make(name, decay=0.0, eps=0.0)
    x = batch(0)[:, :3]
    for _ in range(2):
        before = module.codebook.clone()
        _, codes, _ = module(x)
        assert bool(module.codebook.isfinite().all())
        if name != "head codebooks" and not (before == 0).all():
            used = torch.zeros(CODES, dtype=torch.bool).index_fill(0, codes.flatten(), True)
            assert torch.equal(module.codebook[~used], before[~used])


def test_the_next_step_starts_from_assigned_codes() -> None:
    module, fresh = make("kmeans"), make("default", seed=1)
    module.codebook = fresh.codebook
    module(batch(0))
    fresh(batch(0))
    same(module, fresh)


def test_assigned_codes_outlive_a_few_steps_without_rows() -> None:
    module = make("default", threshold_ema_dead_code=2)
    codes = torch.cat([batch(0)[0, :1], 100 + torch.randn(CODES - 1, DIM)])
    module.codebook = codes
    for step in range(4):
        module(batch(0)[:1, :1] + 0.0 * step)
    torch.testing.assert_close(module.codebook[1:], codes[1:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{}, {"learnable_codebook": True, "ema_update": False}, {"vq_bridge": Bridge()}, {"orthogonal_reg_weight": 1.0}],
    ids=str,
)
def test_codebooks_of_another_shape_or_kind_are_refused(options: dict[str, Any]) -> None:
    module = vn.VectorQuantize(DIM, CODES, **options)
    before = module.codebook.clone()
    for wrong in (torch.zeros(CODES, DIM + 1), torch.zeros(1, DIM), torch.zeros(DIM), torch.zeros(1, CODES, DIM)):
        with pytest.raises(ValueError, match=rf"codebook must be \({CODES}, {DIM}\), got \("):
            module.codebook = wrong
    with pytest.raises(TypeError, match="codebook must be float32"):
        module.codebook = torch.zeros(CODES, DIM, dtype=torch.int64)
    assert torch.equal(module.codebook, before)
    module.codebook = nn.Parameter(torch.ones(CODES, DIM))  # an embedding's weight
    assert bool((module.codebook == 1).all()) and "codebook" not in dict(module.named_parameters())


def test_assigned_codebooks_of_stages() -> None:
    module = vn.ResidualVQ(dim=DIM, num_quantizers=2, codebook_size=CODES, kmeans_init=True)
    codebooks = torch.randn(2, CODES, DIM)
    for layer, codebook in zip(module.layers, codebooks, strict=True):
        layer.codebook = codebook
    module.eval()(batch(0))
    assert torch.equal(module.codebooks, codebooks)
    module.train()(batch(0)[:0])
    assert torch.equal(module.codebooks, codebooks)


def test_assigned_codebooks_of_a_product_quantizer() -> None:
    module, fresh = vn.ProductQuantizer(DIM, 2, CODES), vn.ProductQuantizer(DIM, 2, CODES)
    module(batch(0))
    module.codebooks = fresh.codebooks
    assert module.codebooks is not fresh.codebooks
    module(batch(1))
    fresh(batch(1))
    same(module, fresh)
    with pytest.raises(ValueError, match=r"codebooks must be \(2, 12, 4\), got \(3, 4\)"):
        module.codebooks = torch.zeros(3, 4)


# ---- graphs that live on ------------------------------------------------------------------------------------------

LIVING: dict[str, dict[str, Any]] = {
    "averages": {},
    "re-seeding": {"threshold_ema_dead_code": 1},
    "straight": {"rotation_trick": False},
    "learnable": {"learnable_codebook": True, "ema_update": False},
    "diverse": {"codebook_diversity_loss_weight": 0.5, "codebook_diversity_temperature": 3.0},
    "crossed": {"commitment_use_cross_entropy_loss": True},
    "orthogonal": {"orthogonal_reg_weight": 1.0},
    "orthogonal, some": {"orthogonal_reg_weight": 1.0, "orthogonal_reg_max_codes": 5},
    "orthogonal, active": {"orthogonal_reg_weight": 1.0, "orthogonal_reg_active_codes_only": True},
}


@pytest.mark.parametrize("name", LIVING)
def test_gradients_of_graphs_that_live_on(name: str) -> None:
    """The backward pass of a step gives the same, before the next steps move the codebook and after them."""
    found: list[list[Tensor]] = []
    for late in (False, True):
        torch.manual_seed(0)
        module, grads, losses = vn.VectorQuantize(DIM, CODES, **LIVING[name]), [], []
        own = list(module.parameters())

        def back(loss: Tensor, x: Tensor, own: list[nn.Parameter] = own) -> list[Tensor]:
            return list(torch.autograd.grad(loss, [x, *own], allow_unused=False))

        for step in range(3):
            x = batch(step).requires_grad_()
            quantized, _, loss = module(x)
            losses.append((loss + quantized.square().sum(), x))
            grads += [] if late else back(*losses[-1])
        for loss, x in losses if late else ():
            grads += back(loss, x)
        found.append(grads)
    for early, late_one in zip(*found, strict=True):
        assert torch.equal(early, late_one)


def resident() -> int:
    """Bytes of memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


LARGE = (16384, 640)  # 40 MiB: more than glibc ever takes from its heap, so it goes back to the system at once
HELD: dict[str, tuple[Any, float]] = {  # modules, and how many codebooks a graph of theirs may keep
    "averages": (lambda: vn.VectorQuantize(LARGE[1], LARGE[0]), 0),
    "re-seeding": (lambda: vn.VectorQuantize(LARGE[1], LARGE[0], threshold_ema_dead_code=1), 0),
    "learnable": (lambda: vn.VectorQuantize(LARGE[1], LARGE[0], learnable_codebook=True, ema_update=False), 1),
    "orthogonal, some": (
        lambda: vn.VectorQuantize(LARGE[1], LARGE[0], orthogonal_reg_weight=1.0, orthogonal_reg_max_codes=8),
        0,
    ),
    "shared": (
        lambda: vn.ResidualVQ(dim=LARGE[1], num_quantizers=1, codebook_size=LARGE[0], shared_codebook=True),
        0,
    ),
    "product": (lambda: vn.ProductQuantizer(LARGE[1], 1, LARGE[0]), 0),
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the memory of the process")
@pytest.mark.parametrize("name", HELD)
def test_graphs_that_live_on_keep_no_codebook(name: str) -> None:
    make, codebooks = HELD[name]
    module, x = make(), torch.randn(1, 16, LARGE[1], requires_grad=True)
    module(x)
    before, living = resident(), [module(x) for _ in range(4)]
    assert resident() - before < (4 * codebooks + 2) * 4 * LARGE[0] * LARGE[1]
    del living
