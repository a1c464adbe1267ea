"""`accelerate` turns the peer's modules into ours where they stand: same results, weights, optimisers, references."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import vector_quantize_pytorch as peer
from torch import Tensor, nn

from vecbank.nn.accelerate import accelerate
from vecbank.nn.vector_quantize import VectorQuantize

LEARN = {"learnable_codebook": True, "ema_update": False}
MAKERS: dict[str, Any] = {
    "VectorQuantize": lambda: peer.VectorQuantize(16, 24, codebook_dim=8, layernorm_after_project_in=True),
    "VectorQuantize, cosine heads": lambda: peer.VectorQuantize(
        16, 24, heads=2, codebook_dim=8, separate_codebook_per_head=True, use_cosine_sim=True, decay=0.9
    ),
    "VectorQuantize, affine": lambda: peer.VectorQuantize(16, 24, affine_param=True, commitment_weight=0.3),
    "VectorQuantize, learnable": lambda: peer.VectorQuantize(16, 24, rotation_trick=False, sync_update_v=0.2, **LEARN),
    "VectorQuantize, own optimiser": lambda: peer.VectorQuantize(
        16, 24, in_place_codebook_optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **LEARN
    ),
    "VectorQuantize, bridge": lambda: peer.VectorQuantize(16, 24, vq_bridge=nn.Linear(16, 16), **LEARN),
    "ResidualVQ": lambda: peer.ResidualVQ(dim=16, num_quantizers=3, codebook_size=16, codebook_dim=8),
    "ResidualVQ, shared": lambda: peer.ResidualVQ(dim=16, num_quantizers=3, codebook_size=16, shared_codebook=True),
    "ResidualVQ, sizes": lambda: peer.ResidualVQ(dim=16, codebook_size=(5, 9, 16), use_cosine_sim=True),
    "ResidualVQ, implicit": lambda: peer.ResidualVQ(
        dim=16,
        num_quantizers=2,
        codebook_size=8,
        implicit_neural_codebook=True,
        mlp_kwargs={"depth": 2, "dim_hidden": 12},
    ),
    "GroupedResidualVQ": lambda: peer.GroupedResidualVQ(dim=16, groups=2, num_quantizers=2, codebook_size=16),
    "SimVQ": lambda: peer.SimVQ(16, 24, rotation_trick=False, commitment_weight=0.5),
    "ResidualSimVQ": lambda: peer.ResidualSimVQ(dim=16, num_quantizers=2, codebook_size=16),
    "FSQ": lambda: peer.FSQ([8, 5, 5], dim=16),
    "FSQ, symmetric": lambda: peer.FSQ([4, 4], dim=16, preserve_symmetry=True, projection_has_bias=False),
    "ResidualFSQ": lambda: peer.ResidualFSQ(dim=16, levels=[8, 5, 5], num_quantizers=2),
    "GroupedResidualFSQ": lambda: peer.GroupedResidualFSQ(dim=16, groups=2, levels=[5, 5], num_quantizers=2),
    "LFQ": lambda: peer.LFQ(dim=16, codebook_size=64, commitment_loss_weight=0.2, spherical=True),
    "LFQ, cosine": lambda: peer.LFQ(dim=16, codebook_size=64, cosine_sim_project_in=True, codebook_scale=0.5),
    "ResidualLFQ": lambda: peer.ResidualLFQ(dim=16, num_quantizers=2, codebook_size=64),
    "GroupedResidualLFQ": lambda: peer.GroupedResidualLFQ(dim=16, groups=2, num_quantizers=2, codebook_size=16),
    "LatentQuantize": lambda: peer.LatentQuantize(levels=[5, 5, 8], dim=20, commitment_loss_weight=0.2),
}


class Model(nn.Module):
    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.before, self.quantizer, self.after = nn.Linear(16, 16), quantizer, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, codes, *loss = self.quantizer(self.before(x))
        return self.after(quantized), codes, loss[0].sum() if loss else quantized.new_zeros(())


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> list[Tensor]:
    out, codes, loss = model(torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(seed)))
    optimizer.zero_grad()
    (out.square().mean() + loss).backward()
    optimizer.step()
    return [out, codes, loss]


def compare(name: str, got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, name
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_training_goes_on_as_before(name: str) -> None:
    """A copy that is left alone and a model that is swapped in the middle of training stay together."""
    torch.manual_seed(0)
    model = Model(MAKERS[name]())
    copied = copy.deepcopy(model)
    trainers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, copied)]
    for seed in range(2):
        for module, optimizer in zip((model, copied), trainers, strict=True):
            step(module, optimizer, seed)
    tensors = {k: v.data_ptr() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    who = model.quantizer

    report = accelerate(model)

    assert torch.equal(random, torch.get_rng_state())
    assert f"quantizer ({name.partition(',')[0]})" in report.swapped and not report.left, report
    assert model.quantizer is who and type(who).__module__.startswith("vecbank.")
    assert not [m for m in model.modules() if type(m).__module__.startswith("vector_quantize_pytorch")]
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == tensors
    assert list(copied.state_dict()) == list(tensors)
    for seed in range(2, 5):
        results = [step(m, o, seed) for m, o in zip((model, copied), trainers, strict=True)]
        compare(name, *results)
    compare(name, model.state_dict().values(), copied.state_dict().values())
    model.eval(), copied.eval()
    for module in copied.modules():  # theirs goes on with the moments of the rows in evaluation; ours moves nothing
        if hasattr(module, "affine_param_batch_decay"):
            module.affine_param_batch_decay = 1.0
    x = torch.randn(2, 20, 16)
    compare(name, model(x), copied(x))


def test_shared_modules_hooks_and_the_model_itself() -> None:
    model = peer.VectorQuantize(16, 24)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.note = "mine"
    assert accelerate(model).swapped == ["(model) (VectorQuantize)"]
    assert isinstance(model, VectorQuantize) and model.note == "mine"
    model(torch.randn(1, 5, 16))
    assert calls == [1]
    assert accelerate(model).swapped == []  # ours already

    shared = peer.VectorQuantize(16, 24)
    both = nn.ModuleList([shared, nn.Sequential(shared)])
    assert accelerate(both).swapped == ["0 (VectorQuantize)"]
    assert both[0] is both[1][0]


def test_accumulated_and_unstarted_state_is_kept() -> None:
    torch.manual_seed(0)
    model = peer.VectorQuantize(16, 24)
    copied = copy.deepcopy(model)
    x = torch.randn(2, 30, 16)
    for module in (model, copied):
        module(x, accum_ema_update=True)
    accelerate(model)
    for module in (model, copied):
        module(2 * x)
    compare("accumulated", model.state_dict().values(), copied.state_dict().values())

    waiting = peer.VectorQuantize(16, 24, kmeans_init=True, kmeans_iters=3)
    accelerate(waiting)
    waiting(x)
    assert bool(waiting._codebook.initted) and float(waiting.codebook.abs().sum()) > 0
    assert waiting._codebook.kmeans_iters == 3


def test_settings_are_kept() -> None:
    model = peer.VectorQuantize(
        16, 24, stochastic_sample_codes=True, sample_codebook_temp=0.5, threshold_ema_dead_code=3, decay=0.7, eps=1e-3
    )
    accelerate(model)
    assert model.stochastic_sample_codes and model.sample_codebook_temp == 0.5
    assert model._codebook.threshold_ema_dead_code == 3 and model._codebook.reset_cluster_size == 3
    assert (model._codebook.decay, model._codebook.eps) == (0.7, 1e-3)


def test_what_cannot_be_swapped_still_works() -> None:
    model = nn.Sequential(peer.VectorQuantize(16, 24), peer.VectorQuantize(16, 24))
    model[0].register_buffer("own", torch.zeros(3))
    report = accelerate(model)
    assert report.left == {"0 (VectorQuantize)": "it holds own, unknown here"}
    assert report.swapped == ["1 (VectorQuantize)"]
    assert type(model[0]) is peer.VectorQuantize and model[0](torch.randn(2, 5, 16))[0].shape == (2, 5, 16)


def test_what_is_left_is_said() -> None:
    class Own(peer.VectorQuantize):
        pass

    model = nn.ModuleDict(
        {
            "plain": peer.VectorQuantize(16, 24),
            "own": Own(16, 24),
            "other": peer.HierarchicalVQ(dim=8, codebook_size=16, accept_image_fmap=True, scales=(1, 2)),
        }
    )
    report = accelerate(model)
    assert "own (Own)" in report.left and "other (HierarchicalVQ)" in report.left
    assert set(report.swapped) == {"plain (VectorQuantize)", "other.vq (VectorQuantize)"}
    assert type(model["own"]) is Own
    text = str(report)
    assert text.startswith("swapped 2\n  plain (VectorQuantize)") and "left 2" in text
    assert accelerate(nn.Linear(2, 2)).swapped == []
