"""Quantisers other than VectorQuantize in several gloo processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run
from torch import Tensor

from vecbank.nn.codebook_features import CodebookFeatures
from vecbank.nn.fsq import ResidualFSQ
from vecbank.nn.lfq import LFQ
from vecbank.nn.product_quantizer import ProductQuantizer
from vecbank.nn.residual_vq import ResidualVQ
from vecbank.nn.sim_vq import ResidualSimVQ
from vecbank.nn.sparse_autoencoder import SparseAutoencoder


def batch(rank: int) -> Tensor:
    return 0.3 * torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(rank))


def work(rank: int, world: int) -> dict[str, Tensor]:
    """Ranks draw different random numbers, and see different rows."""
    torch.manual_seed(rank)
    x = batch(rank).requires_grad_()
    (_, _, loss), parts = LFQ(dim=4)(x, inv_temperature=1.0, return_loss_breakdown=True)
    loss.backward()
    options = {"num_quantizers": 8, "quantize_dropout": True}
    cascades = (
        ResidualFSQ(levels=[5, 4, 3, 3], **options),
        ResidualSimVQ(dim=4, codebook_size=8, **options),
        ResidualVQ(dim=4, codebook_size=8, threshold_ema_dead_code=1, **options),
    )
    active = [(module(x)[1][0, 0] >= 0).sum() for module in cascades for _ in range(3)]
    books = torch.cat([layer._codebook.embed.flatten() for layer in cascades[-1].layers])
    assert x.grad is not None
    found = {"batch entropy": parts.batch_entropy, "grad": x.grad, "active": torch.stack(active), "books": books}
    return {name: t.detach() for name, t in (found | uneven(rank)).items()}


def uneven(rank: int) -> dict[str, Tensor]:
    """Books and counts after three steps of which the first rank sits out one, without a row."""
    one = {"dim": 4, "num_quantizers": 2, "codebook_size": 6, "threshold_ema_dead_code": 1}
    modules: dict[str, torch.nn.Module] = {
        "started": ResidualVQ(**one, kmeans_init=True),
        "shared": ResidualVQ(**one, shared_codebook=True),
        "searched": ResidualVQ(**one, beam_size=2),
        "product": ProductQuantizer(4, 2, 6, rare=0.5),
        "features": CodebookFeatures(4, 6, 2).fit_(torch.randn(20, 4)),
        "sparse": SparseAutoencoder(4, 8, 2, activation="batch_topk", max_k=4, dead_after=1),
    }
    for step in range(3):
        x = torch.randn(2, 9 + rank, 4, generator=torch.Generator().manual_seed(10 * step + rank))
        for module in modules.values():
            module(x[:0] if (rank, step) == (0, 1) else x)
    return {
        f"{kind} {name}": value.float()
        for kind, module in modules.items()
        for name, value in (*module.named_buffers(), *(module.named_parameters() if kind == "features" else ()))
    }


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_agree(world: int, tmp_path: Path) -> None:
    results = run(work, world, tmp_path)
    for result in results[1:]:
        assert torch.equal(result["active"], results[0]["active"])  # all drop the same stages
        for name in results[0].keys() - {"grad", "batch entropy"}:
            assert torch.equal(result[name], results[0][name]), name
        torch.testing.assert_close(result["batch entropy"], results[0]["batch entropy"])
    assert len(results[0]["active"].unique()) > 1
    whole = torch.cat([batch(rank) for rank in range(world)], 1).requires_grad_()
    module = LFQ(dim=4)
    (_, _, loss), parts = module(whole, inv_temperature=1.0, return_loss_breakdown=True)
    torch.testing.assert_close(results[0]["batch entropy"], parts.batch_entropy.detach())
    # Averaged over ranks, as data-parallel training does, the gradient is that of the whole batch.
    loss.backward()
    assert whole.grad is not None
    for rank, part in enumerate(whole.grad.split(20, 1)):
        torch.testing.assert_close(results[rank]["grad"] / world, part, rtol=1e-4, atol=1e-6)
