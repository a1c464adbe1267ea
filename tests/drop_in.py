"""Our quantisers beside those of vector-quantize-pytorch: same state and input, same outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

peer = pytest.importorskip("vector_quantize_pytorch", reason="the drop-in classes are compared with this package")


def tensors(output: Any) -> list[Tensor]:
    """All tensors of a nested result, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (tuple, list)):
        return [t for part in output for t in tensors(part)]
    assert output is None
    return []


def shape_of(output: Any) -> Any:
    """The nesting of a result, with shapes and dtypes for tensors; named tuples by their fields."""
    if isinstance(output, Tensor):
        return tuple(output.shape), output.dtype
    if isinstance(output, (tuple, list)):
        return getattr(output, "_fields", None), tuple(shape_of(part) for part in output)
    return output


def run(module: nn.Module, x: Tensor, **options: Any) -> tuple[Any, list[Tensor | None]]:
    """The result, and gradients of a random combination of all its differentiable parts: to x and to each
    parameter.
    """
    module.zero_grad()
    x = x.clone().requires_grad_()
    output = module(x, **options)
    generator = torch.Generator().manual_seed(1)
    total = x.new_zeros((), dtype=torch.float32)
    for t in tensors(output):
        if t.requires_grad:
            total = total + (t * torch.randn(t.shape, generator=generator).to(t)).sum()
    if total.requires_grad:
        total.backward()
    return output, [x.grad, *(p.grad for p in module.parameters())]


def assert_close(got: Tensor, want: Tensor, tolerance: float, note: str) -> None:
    """Equal codes; floats within a tolerance of the largest one."""
    if not want.is_floating_point():
        assert torch.equal(got, want), f"{note}: {int((got != want).sum())} of {want.numel()} codes differ"
        return
    scale = max(1.0, float(want.detach().abs().max()) if want.numel() else 0.0)
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * scale, msg=lambda m: f"{note}: {m}")


def assert_same_state(ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-5) -> None:
    got, want = ours.state_dict(), theirs.state_dict()
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name].shape == value.shape and got[name].dtype == value.dtype, name
        assert_close(got[name], value, tolerance, name)


def assert_alike(
    ours: nn.Module, theirs: nn.Module, x: Tensor, train: bool = True, tolerance: float = 1e-5, **options: Any
) -> None:
    """Each loads the other's state; then outputs, gradients and the state afterwards are the same."""
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.train(train)
    theirs.train(train)
    got, got_grads = run(ours, x, **options)
    want, want_grads = run(theirs, x, **options)
    assert shape_of(got) == shape_of(want)
    for i, (g, w) in enumerate(zip(tensors(got), tensors(want), strict=True)):
        assert_close(g, w, tolerance, f"output {i}")
    for i, (one, other) in enumerate(zip(got_grads, want_grads, strict=True)):
        assert (one is None) == (other is None), f"gradient {i}: only one of the two has it"
        if one is not None and other is not None:
            assert_close(one, other, tolerance, f"gradient {i}")
    assert_same_state(ours, theirs, tolerance)


def gauss(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 + seed))
