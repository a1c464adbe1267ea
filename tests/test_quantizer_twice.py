"""Second backward passes through the quantisers, as gradient penalties take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import vector_quantize_pytorch as peer
from torch import Tensor, nn
from torch.autograd import gradcheck

import vecbank.nn as ours
from vecbank import sparse_encode, sparse_encode_threshold

DIM, CODES = 8, 12
LEARN = {"learnable_codebook": True, "ema_update": False}
MASK = torch.arange(20).expand(2, 20) < 15
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "rotation": ("VectorQuantize", {}, {}),
    "straight": ("VectorQuantize", {"rotation_trick": False}, {}),
    "mask": ("VectorQuantize", {"rotation_trick": False}, {"mask": MASK}),
    "cosine": ("VectorQuantize", {"use_cosine_sim": True}, {}),
    "projected": ("VectorQuantize", {"codebook_dim": 5}, {}),
    "learnable": ("VectorQuantize", LEARN, {}),
    "affine": ("VectorQuantize", {"affine_param": True}, {}),
    "topk": ("VectorQuantize", LEARN, {"topk": 2}),
    "residual": ("ResidualVQ", {"num_quantizers": 3}, {}),
    "sim": ("SimVQ", {}, {}),
    "sim, straight": ("SimVQ", {"rotation_trick": False}, {}),
    "residual sim": ("ResidualSimVQ", {"num_quantizers": 3}, {}),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    kind, options, call = CASES[name]
    torch.manual_seed(0)
    theirs = getattr(peer, kind)(dim=DIM, codebook_size=CODES, **options)
    for module in theirs.modules():
        if hasattr(module, "_codebook"):
            codebook = torch.randn_like(module._codebook.embed)
            codebook = nn.functional.normalize(codebook, dim=-1) if module.use_cosine_sim else codebook
            module._codebook.embed.data.copy_(codebook)
            module._codebook.embed_avg.copy_(codebook)
    mine = getattr(ours, kind)(dim=DIM, codebook_size=CODES, **options)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs, call


def penalty(module: nn.Module, call: dict[str, Any]) -> list[Tensor]:
    """The gradient of x, and that of its squared norm to x and to what came after the quantiser."""
    x = torch.randn(2, 20, DIM, generator=torch.Generator().manual_seed(1)).requires_grad_()
    after = torch.linspace(0.5, 2, DIM).requires_grad_()
    out = module(x, **call)
    (grad,) = torch.autograd.grad((out[0] * after).sin().sum() + 3 * out[2].sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad is not None and after.grad is not None
    return [grad.detach(), x.grad, after.grad]


@pytest.mark.parametrize("name", CASES)
def test_gradient_penalty_like_peer(name: str) -> None:
    mine, theirs, call = pair(name)
    for got, want in zip(penalty(mine, call), penalty(theirs, call), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["learnable", "sim"])
def test_the_gradient_of_a_book_has_no_derivative(name: str) -> None:
    module, _, call = pair(name)
    x = torch.randn(2, 20, DIM)
    grads = torch.autograd.grad(module(x, **call)[2], list(module.parameters()), create_graph=True)
    with pytest.raises(NotImplementedError, match="the gradient of a codebook has no derivative"):
        sum(g.square().sum() for g in grads).backward()  # type: ignore[union-attr]


def binary(x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return ours.BinaryMapper(4)(x)[0]


def pairs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return sparse_encode(x, weight, bias, 3).values


def jump(x: Tensor, weight: Tensor, bias: Tensor, theta: Tensor) -> Tensor:
    fired = sparse_encode_threshold(x, weight, bias, theta, bandwidth=0.4)
    return torch.cat([fired.values, fired.active.unsqueeze(1)], 1)


@pytest.mark.parametrize("function", [binary, pairs, jump])
def test_second_derivatives_are_those_of_the_first(function: Callable[..., Tensor]) -> None:
    """Also where the gradient that comes in requires none, as that of a loss does."""
    generator = torch.Generator().manual_seed(4)
    shapes = ((5, 4), (7, 4), (7,), (7,))[: function.__code__.co_argcount]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).abs_().requires_grad_() for s in shapes]

    def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
        out = function(*inputs)
        return torch.autograd.grad(
            (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum(), inputs, create_graph=True
        )

    assert gradcheck(gradients, inputs)


def test_the_gradient_of_each_rows_entropy_has_no_derivative() -> None:
    module = ours.LFQ(dim=3, force_quantization_f32=False).double()
    x = torch.randn(2, 20, 3, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(module(x, inv_temperature=1.0)[2], x, create_graph=True)
    with pytest.raises(NotImplementedError, match="the entropy of each row's codes has no derivative"):
        grad.square().sum().backward()
