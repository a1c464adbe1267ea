"""A batch without rows gives empty results, a loss of 0 with a gradient, and leaves what was learned as it was.

One rank of several may be handed such a batch: if it raised, the others would wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vecbank import nn as ours

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, CODES = 8, 16
Made = Callable[[], nn.Module]


def vq(**options: Any) -> Made:
    return lambda: ours.VectorQuantize(WIDTH, CODES, **options)


def rvq(**options: Any) -> Made:
    return lambda: ours.ResidualVQ(dim=WIDTH, num_quantizers=3, codebook_size=CODES, **options)


MODULES: dict[str, Made] = {
    "vq": vq(threshold_ema_dead_code=2),
    "vq, k-means start": vq(kmeans_init=True),
    "vq, books per head": vq(heads=2, codebook_dim=4, separate_codebook_per_head=True),
    "vq, all terms": vq(codebook_diversity_loss_weight=1.0, orthogonal_reg_weight=1.0),
    "vq, cross-entropy": vq(commitment_use_cross_entropy_loss=True),
    "vq, drawn codes": vq(stochastic_sample_codes=True, use_cosine_sim=True),
    "vq, learnable": vq(learnable_codebook=True, ema_update=False),
    "rvq": rvq(kmeans_init=True, threshold_ema_dead_code=2),
    "rvq, shared": rvq(shared_codebook=True),
    "rvq, beam": rvq(beam_size=2),
    "rvq, implicit": rvq(implicit_neural_codebook=True),
    "grouped rvq": lambda: ours.GroupedResidualVQ(dim=WIDTH, num_quantizers=2, groups=2, codebook_size=CODES),
    "sim": lambda: ours.SimVQ(WIDTH, CODES),
    "residual sim": lambda: ours.ResidualSimVQ(dim=WIDTH, num_quantizers=3, codebook_size=CODES),
    "fsq": lambda: ours.FSQ([8, 5, 5], dim=WIDTH),
    "residual fsq": lambda: ours.ResidualFSQ(levels=[8, 5, 5], num_quantizers=3, dim=WIDTH),
    "lfq": lambda: ours.LFQ(dim=WIDTH, codebook_size=256),
    "lfq, a share of the rows": lambda: ours.LFQ(dim=WIDTH, codebook_size=256, frac_per_sample_entropy=0.5),
    "residual lfq": lambda: ours.ResidualLFQ(dim=WIDTH, num_quantizers=3, codebook_size=CODES),
    "bits": lambda: ours.BinaryMapper(WIDTH),
    "random projections": lambda: ours.RandomProjectionQuantizer(
        dim=WIDTH, codebook_size=CODES, codebook_dim=4, num_codebooks=2
    ),
    "product": lambda: ours.ProductQuantizer(WIDTH, 4, CODES, rare=1.0),
    "product, learned": lambda: ours.ProductQuantizer(WIDTH, 4, CODES, decay=None),
    "codebook features": lambda: ours.CodebookFeatures(WIDTH, CODES, 2, heads=2, commitment_weight=0.25),
    **{
        f"sparse, {kind}": lambda kind=kind: ours.SparseAutoencoder(WIDTH, 64, 4, activation=kind, dead_after=1)
        for kind in ("topk", "batch_topk", "jumprelu")
    },
}


def tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [t for part in output for t in tensors(part)]


@pytest.mark.parametrize("shape", [(0, 5, WIDTH), (3, 0, WIDTH)], ids=["no batch", "no positions"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODULES)
def test_nothing_in_nothing_out(name: str, train: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().train(train)
    x = torch.zeros(shape, requires_grad=True)
    found = tensors(module(x))
    if name != "random projections":
        assert found[0].shape[: len(shape) - 1] == shape[:-1] and found[0].numel() == 0
    assert all(torch.isfinite(t).all() for t in found if t.is_floating_point())
    learned = [t.sum() for t in found if t.requires_grad]
    if learned:
        sum(learned).backward()  # type: ignore[union-attr]
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        assert all(torch.isfinite(g).all() for g in grads)
    assert all(torch.isfinite(t).all() for t in module.state_dict().values() if t.is_floating_point())


def test_latent_quantize() -> None:
    module = ours.LatentQuantize(levels=[5, 5, 8], dim=WIDTH)
    out, codes, loss = module(torch.zeros(0, WIDTH, 4, 4, requires_grad=True))
    assert out.shape == (0, WIDTH, 4, 4) and codes.shape == (0, 4, 4) and loss == 0
    loss.backward()


@pytest.mark.parametrize("cosine", [False, True])
def test_the_k_means_start_waits_for_rows(cosine: bool) -> None:
    module = ours.VectorQuantize(WIDTH, CODES, kmeans_init=True, use_cosine_sim=cosine)
    x = torch.randn(2, 40, WIDTH, generator=torch.Generator().manual_seed(0))
    module(x[:0])
    module(x, mask=torch.zeros(2, 40, dtype=torch.bool))
    assert not module._codebook.initted
    module(x)
    assert module._codebook.initted and module.codebook.isfinite().all()
    assert module(x)[1].unique().numel() > CODES // 2
