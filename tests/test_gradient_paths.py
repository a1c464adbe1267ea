"""Which way a gradient of `project` goes, and who sees its ops: blocks, batches, autocast, modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import METRICS
from helpers import gauss, without_kernel
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import vecbank
from vecbank import reference
from vecbank._ops import blocks, distance_gradient, project_gradient

F64 = torch.float64
BACKWARD = torch.ops.vecbank.project_backward


def truth(grad: Tensor, x: Tensor, bank: Tensor, metric: str) -> tuple[Tensor, ...]:
    a, b = (t.to(F64, copy=True).requires_grad_() for t in (x, bank))
    batched = bank.dim() == 3
    out = [reference.project(a[i], b[i], metric) for i in range(len(b))] if batched else reference.project(a, b, metric)
    return torch.autograd.grad(torch.stack(out) if isinstance(out, list) else out, (a, b), grad.double())


def near(got: tuple[Tensor, ...], want: tuple[Tensor, ...], units: float = 16) -> None:
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).abs().max() <= units * torch.finfo(a.dtype).eps * b.abs().max()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(1, 30, 40, 24), (7, 30, 40, 24), (7, 3, 4, 2), (3, 1, 1, 5)], ids=str)
@pytest.mark.parametrize("room", [0, 1, 3, 100], ids=lambda n: f"{n} at once")
def test_batches_in_groups(room: int, shape: tuple[int, ...], metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, in groups, or all at once: the gradients are those of the reference, of a part of the sides too."""
    b, n, m, d = shape
    without_kernel(monkeypatch)
    numbers = room * (n * m + (n + m) * d) * 4
    monkeypatch.setattr(project_gradient, "BLOCK_BYTES", numbers)
    monkeypatch.setattr(project_gradient, "_ABSOLUTE_TERMS", room * n * m * d)
    for module in (project_gradient, distance_gradient):
        monkeypatch.setattr(module, "SMALL_BLOCK_BYTES", numbers)
    x, bank, grad = gauss(b, n, d), gauss(b, m, d, seed=1), gauss(b, n, m, seed=2)
    want = truth(grad, x, bank, metric)
    for strided in (False, True):
        if strided:
            x, bank, grad = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, bank, grad))
        near(BACKWARD(grad, x, bank, METRICS.index(metric)), want)
        for i in range(2):
            got = BACKWARD(grad, x, bank, METRICS.index(metric), i == 0, i == 1)
            near(got[i : i + 1], want[i : i + 1])
            assert got[1 - i].numel() == 0


@pytest.mark.parametrize("metric", ["l2", "sqeuclidean"])
@pytest.mark.parametrize("lead", [(), (4,)], ids=str)
def test_a_few_close_pairs_stay_in_one_block(
    lead: tuple[int, ...], metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anchors that are rows of the data: equal pairs and near ones, beside the products of all others."""
    without_kernel(monkeypatch)
    monkeypatch.setattr(distance_gradient, "_Distance", None)
    monkeypatch.setattr(distance_gradient, "_differences", None)
    x, grad = gauss(*lead, 90, 40) + 3, gauss(*lead, 90, 60, seed=1)
    bank = gauss(*lead, 60, 40, seed=2) + 3
    bank[..., :20, :] = x[..., :20, :]
    bank[..., 20:30, :] = x[..., 20:30, :] + 1e-3 * bank[..., 20:30, :]
    want = truth(grad, x, bank, metric)
    for least in (None, torch.zeros(*lead, 90)):
        near(BACKWARD(grad, x, bank, METRICS.index(metric), True, True, least), want)


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dead", [False, True], ids=["", "dead rows"])
def test_similarities_in_blocks(dead: bool, dtype: torch.dtype, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks or one, with rows below the floor of norms or none, and where there are no products of bfloat16."""
    without_kernel(monkeypatch)
    x, bank, grad = gauss(300, 24).to(dtype), gauss(50, 24, seed=1).to(dtype), gauss(300, 50, seed=2).to(dtype)
    if dead:
        x[7], bank[9] = 0.0, 0.0
    want = truth(grad, x, bank, metric)
    for size in (blocks.BLOCK_BYTES, 1):
        monkeypatch.setattr(project_gradient, "BLOCK_BYTES", size)
        for quick in (True, False) if dtype == torch.bfloat16 else (None,):
            if quick is not None:
                monkeypatch.setattr(project_gradient, "_bfloat16_products", lambda quick=quick: quick)
            found = BACKWARD(grad, x, bank, METRICS.index(metric))
            for got, right, rows in zip(found, want, (x, bank), strict=True):
                assert got.dtype == dtype
                alive = rows.any(-1)  # cosine's gradients of the others are 1e8 times as large, too large for float16
                near((got[alive],), (right[alive],))
                if dead and dtype != torch.float16:
                    near((got[~alive],), (right[~alive],))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
def test_autocast_changes_no_gradient(lead: tuple[int, ...], metric: str) -> None:
    x, bank = gauss(*lead, 30, 40).requires_grad_(), gauss(*lead, 35, 40, seed=1).requires_grad_()
    grad = gauss(*lead, 30, 35, seed=2)
    want = torch.autograd.grad(vecbank.project(x, bank, metric), (x, bank), grad)
    out = vecbank.project(x, bank, metric)
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.autograd.grad(out, (x, bank), grad)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_modes_see_the_ops() -> None:
    """Calls that go past the dispatch of an op do so only where nobody is looking."""

    class Dispatched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Called(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            assert not torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradCPU)
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    x, bank = gauss(5, 6), gauss(7, 6, seed=1)
    for mode in (Dispatched, Called):
        seen.clear()
        with mode():
            vecbank.topk(x, bank, 2)
        assert "vecbank.topk.default" in seen
    seen.clear()
    out = vecbank.project(x.requires_grad_(), bank)
    with Dispatched():
        out.sum().backward()
    assert "vecbank.project_backward.default" in seen


def test_a_subclass_sees_the_ops() -> None:
    class Named(Tensor):
        seen: list[str] = []  # noqa: RUF012

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs)

    x, bank = gauss(5, 6).as_subclass(Named), gauss(7, 6, seed=1)
    assert type(vecbank.project(x, bank)) is Named
    assert "vecbank.project.default" in Named.seen


def test_recording_fills_in_defaults() -> None:
    """The dispatcher leaves out arguments that equal their defaults; the gradient is worked out all the same."""
    x, bank = gauss(5, 6, dtype=F64).requires_grad_(), gauss(7, 6, dtype=F64, seed=1).requires_grad_()
    want = torch.autograd.grad(torch.ops.vecbank.topk(x, bank, None, 2, 0, None, True, None)[0].sum(), (x, bank))
    got = torch.autograd.grad(torch.ops.vecbank.topk(x, bank, None, 2, 0)[0].sum(), (x, bank))
    named = torch.autograd.grad(torch.ops.vecbank.topk(x, bank=bank, pack=None, metric=0, k=2)[0].sum(), (x, bank))
    for a, b, c in zip(want, got, named, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
