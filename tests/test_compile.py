"""torch.compile, torch.export, autocast, vmap and torch.func around the ops."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import METRICS
from helpers import assert_same, gauss
from torch import Tensor, nn

import vecbank

CALLS: dict[str, Callable[[Tensor, Any], Any]] = {
    "project": lambda x, bank: vecbank.project(x, bank),
    "topk": lambda x, bank: vecbank.topk(x, bank, 3),
    "topk masked": lambda x, bank: vecbank.topk(x, bank, 3, allowed=torch.arange(11) > 2),
    "nearest": lambda x, bank: vecbank.nearest(x, bank),
    "quantize": lambda x, bank: vecbank.quantize(x, bank),
    "lookup": lambda x, bank: vecbank.lookup(vecbank.topk(x, bank, 3).indices, bank, reduce="mean"),
    "segment_sum": lambda x, bank: vecbank.segment_sum(x, vecbank.nearest(x, bank).indices, 11),
}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


class Search(nn.Module):
    """All the verbs in one module, the named tuples among its outputs."""

    def __init__(self, bank: vecbank.Bank) -> None:
        super().__init__()
        self.bank = bank

    def forward(self, x: Tensor) -> Any:
        top = self.bank.topk(x, 2)
        quantized = self.bank.quantize(x)
        rows = self.bank.lookup(top.indices, reduce="sum")
        return self.bank.project(x), top, self.bank.nearest(x), quantized, rows


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(name: str, dynamic: bool) -> None:
    call = CALLS[name]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for bank in (gauss(11, 4), vecbank.Bank(gauss(11, 4), metric="l2")):
        for n in (5, 9):
            x = gauss(n, 4)
            got, want = compiled(x, bank), call(x, bank)
            assert type(got) is type(want)
            assert_same(as_tuple(got), as_tuple(want))


@pytest.mark.parametrize("learnable", [False, True], ids=["buffer", "parameter"])
def test_compile_trains(learnable: bool) -> None:
    """Forward and backward in one graph each: the gradients of eager mode."""

    def loss(x: Tensor, bank: vecbank.Bank) -> Tensor:
        return bank.project(x).sin().sum() + bank.topk(x, 2).values.sum() + bank.quantize(x)[0].square().sum()

    x, rows = gauss(6, 4), gauss(11, 4)
    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        a, bank = x.clone().requires_grad_(), vecbank.Bank(rows, metric="l2", learnable=learnable)
        function(a, bank).backward()
        grads.append((a.grad, *([bank.vectors.grad] if learnable else [])))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)


def test_compile_with_inductor() -> None:
    """Through the real code generator once; it needs a C++ compiler, as building did."""
    x, bank = gauss(7, 4), gauss(11, 4)

    def call(a: Tensor) -> Any:
        return vecbank.nearest(a * 2, bank), vecbank.project(a, bank).relu()

    with torch._inductor.config.patch(force_disable_caches=True):  # not a program of another build
        near, dense = torch.compile(call, fullgraph=True)(x)
    want, want_dense = call(x)
    assert_same(tuple(near), tuple(want))
    torch.testing.assert_close(dense, want_dense)


def test_compiled_bank_follows_an_update() -> None:
    """The pack is an input of the graph, not a constant in it."""
    bank = vecbank.Bank(gauss(11, 4), metric="l2")
    compiled = torch.compile(lambda x: bank.nearest(x).values, fullgraph=True, backend="aot_eager")
    x = gauss(3, 4)
    compiled(x)
    bank.update_(torch.tensor([0, 1, 2]), x)
    assert compiled(x).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("batched", [False, True], ids=["bank", "batched bank"])
def test_export_saves_and_loads(batched: bool) -> None:
    x, rows = (gauss(2, 5, 4), gauss(2, 11, 4)) if batched else (gauss(5, 4), gauss(11, 4))

    class Plain(nn.Module):
        def forward(self, x: Tensor, bank: Tensor) -> Any:
            top = vecbank.topk(x, bank, 2)
            return vecbank.project(x, bank), top, vecbank.nearest(x, bank), vecbank.quantize(x, bank)

    modules: list[tuple[nn.Module, tuple[Tensor, ...]]] = [(Plain(), (x, rows))]
    if not batched:
        modules.append((Search(vecbank.Bank(rows, metric="cosine")), (x,)))
    for module, inputs in modules:
        want = module(*inputs)
        n = torch.export.Dim("n", min=2, max=64)
        shapes = ({1 if batched else 0: n}, *({},) * (len(inputs) - 1))
        program = torch.export.export(module, inputs, dynamic_shapes=shapes)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        got = torch.export.load(buffer).module()(*inputs)
        for g, w in zip(got, want, strict=True):
            assert type(g) is type(w)
            assert_same(as_tuple(g), as_tuple(w))
        longer = (torch.cat([x, x], dim=-2), *inputs[1:])
        for g, w in zip(program.module()(*longer), module(*longer), strict=True):
            assert_same(as_tuple(g), as_tuple(w))


@pytest.mark.parametrize("name", [n for n in CALLS if n != "topk masked"])
def test_autocast_casts_nothing(name: str) -> None:
    x, bank = gauss(9, 4), gauss(11, 4)
    want = CALLS[name](x, bank)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = CALLS[name](x, bank)
        inside = vecbank.Bank(bank, metric="l2")
        assert inside.vectors.dtype == torch.float32
        assert inside.nearest(x).values.dtype == torch.float32
    assert_same(as_tuple(got), as_tuple(want))


@pytest.mark.parametrize("metric", METRICS)
def test_autocast_leaves_the_backward_alone(metric: str) -> None:
    grads = []
    for enabled in (False, True):
        x, bank = gauss(9, 40).requires_grad_(), gauss(11, 40).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            vecbank.project(x, bank, metric).sum().backward()
        grads.append((x.grad, bank.grad))
    assert_same(grads[1], grads[0])


@pytest.mark.parametrize("name", ["project", "topk", "nearest", "quantize"])
def test_vmap_of_forwards(name: str) -> None:
    call = CALLS[name]
    x, bank, banks = gauss(3, 5, 4), gauss(11, 4), gauss(3, 11, 4)
    want = [torch.stack(p) for p in zip(*(as_tuple(call(row, bank)) for row in x), strict=True)]
    assert_same(as_tuple(torch.vmap(call, in_dims=(0, None))(x, bank)), tuple(want))
    want = [torch.stack(p) for p in zip(*(as_tuple(call(a, b)) for a, b in zip(x, banks, strict=True)), strict=True)]
    assert_same(as_tuple(torch.vmap(call)(x, banks)), tuple(want))


def test_vmap_of_gathers() -> None:
    codes, bank, x = torch.randint(-1, 11, (3, 5)), gauss(11, 4), gauss(3, 5, 4)
    got = torch.vmap(vecbank.lookup, in_dims=(0, None))(codes, bank)
    assert_same(got, torch.stack([vecbank.lookup(c, bank) for c in codes]))
    got = torch.vmap(lambda a, c: vecbank.segment_sum(a, c, 11))(x, codes)
    assert_same(got, torch.stack([vecbank.segment_sum(a, c, 11) for a, c in zip(x, codes, strict=True)]))


def test_func_grad_is_right_or_raises() -> None:
    """torch.func over ops with a registered gradient is torch's own limit: but never a wrong number."""
    x, bank = gauss(5, 4, dtype=torch.float64), gauss(11, 4, dtype=torch.float64)
    a = x.clone().requires_grad_()
    vecbank.project(a, bank).sin().sum().backward()
    try:
        got = torch.func.grad(lambda t: vecbank.project(t, bank).sin().sum())(x)
    except (RuntimeError, NotImplementedError):
        return
    torch.testing.assert_close(got, a.grad)


def test_inference_mode() -> None:
    x, bank = gauss(5, 4), gauss(11, 4)
    with torch.inference_mode():
        prepared = vecbank.Bank(bank, metric="l2")
        got = tuple(prepared.nearest(x))
    assert_same(got, tuple(vecbank.nearest(x, bank)))
    outside = vecbank.Bank(bank, metric="l2")
    with torch.inference_mode():
        assert_same(tuple(outside.nearest(x)), got)


def test_meta_tensors_give_shapes() -> None:
    x, bank = gauss(5, 4).to("meta"), gauss(11, 4).to("meta")
    assert vecbank.project(x, bank).shape == (5, 11)
    assert vecbank.topk(x, bank, 3).indices.shape == (5, 3)
    assert vecbank.nearest(x, bank).values.device.type == "meta"
    assert vecbank.quantize(x, bank)[0].shape == (5, 4)
