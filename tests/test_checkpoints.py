"""Activation checkpointing, above all of modules of this package alone: a repeated forward updates no codebook."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import gauss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vecbank.nn import CodebookFeatures, ProductQuantizer, ResidualVQ, SparseAutoencoder, VectorQuantize

pytestmark = pytest.mark.usefixtures("one_thread")

MODULES: dict[str, Callable[[], nn.Module]] = {
    "product": lambda: ProductQuantizer(8, 4, 16, decay=0.5),
    "product, re-seeded and turned": lambda: ProductQuantizer(8, 4, 16, decay=0.5, rare=1.0, rotation=True),
    "product, own generator": lambda: ProductQuantizer(
        8, 4, 16, decay=0.5, rare=1.0, generator=torch.Generator().manual_seed(2)
    ),
    "product, learned": lambda: ProductQuantizer(8, 4, 16, decay=None),
    "features": lambda: CodebookFeatures(8, 16, 2, heads=2, commitment_weight=0.25),
    "sparse, topk": lambda: SparseAutoencoder(8, 32, 3, dead_after=1),
    "sparse, batch_topk": lambda: SparseAutoencoder(8, 32, 3, activation="batch_topk", dead_after=1),
    "sparse, jumprelu": lambda: SparseAutoencoder(8, 32, 3, activation="jumprelu", dead_after=1),
}


def trained(name: str, reentrant: bool | None) -> list[Tensor]:
    """Gradients of two steps, the state after them, and what the random numbers come to."""
    torch.manual_seed(0)
    module, kept = MODULES[name]().train(), []
    for step in range(2):
        x = gauss(3, 20, 8, seed=step).requires_grad_()

        def block(x: Tensor) -> tuple[Tensor, Tensor]:
            out = module(x)
            return out[0], out.loss

        decoded, loss = block(x) if reentrant is None else checkpoint(block, x, use_reentrant=reentrant)
        (decoded.square().sum() + loss).backward()
        assert x.grad is not None
        kept.append(x.grad)
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return [*kept, *grads, *module.state_dict().values(), torch.rand(3)]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_a_checkpointed_step_is_the_step(name: str, reentrant: bool) -> None:
    for got, want in zip(trained(name, reentrant), trained(name, None), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


BEFORE: dict[str, Callable[[], nn.Module]] = {
    "averages": lambda: VectorQuantize(8, 16, decay=0.5),
    "re-seeded": lambda: VectorQuantize(8, 16, decay=0.5, threshold_ema_dead_code=1),
    "residual, shared": lambda: ResidualVQ(dim=8, num_quantizers=2, codebook_size=16, shared_codebook=True),
    "residual, searched": lambda: ResidualVQ(dim=8, num_quantizers=2, codebook_size=16, beam_size=2),
    "product": MODULES["product, re-seeded and turned"],
}


@pytest.mark.parametrize("name", BEFORE)
def test_an_input_without_a_gradient_is_coded_by_the_same_codebook_again(name: str) -> None:
    """A layer after the module has the gradient of what it was given, and the codebook moves once."""
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        module, head = BEFORE[name]().train(), nn.Linear(8, 3)

        def block(x: Tensor, module: nn.Module = module, head: nn.Module = head) -> Tensor:
            found: Tensor = head(module(x)[0]).square().sum()
            return found

        for step in range(2):
            x = gauss(3, 20, 8, seed=step)
            (checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)).backward()
        assert head.weight.grad is not None
        results.append([head.weight.grad, *module.state_dict().values(), torch.rand(3)])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)
