"""Bank: the pack follows the vectors through everything torch does to a module, and goes nowhere itself."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from cases import METRICS
from helpers import FLOATS, assert_same, gauss
from torch import Tensor, nn

import vecbank
from vecbank import Bank, reference

M, D = 70, 9


def assert_fresh(bank: Bank, metric: str, note: str = "") -> None:
    """Every verb answers as the reference does for the vectors the bank holds now."""
    rows = bank.vectors.detach().cpu()
    x = gauss(13, rows.shape[-1], dtype=rows.dtype, seed=5)
    on = x.to(bank.vectors.device)
    assert_same(tuple(bank.topk(on, 6)), tuple(reference.topk(x, rows, 6, metric)), note)
    assert_same(tuple(bank.nearest(on)), tuple(reference.nearest(x, rows, metric)), note)
    assert_same(tuple(bank.quantize(on)), tuple(reference.quantize(x, rows, metric)), note)
    assert_same(bank.lookup(torch.arange(4, device=on.device)), rows[:4], note)
    fresh = Bank(bank.vectors.detach().clone(), metric, bank.learnable)
    torch.testing.assert_close(bank.project(on), fresh.project(on), msg=note or None)  # with a pack, or without


def other() -> Tensor:
    return gauss(M, D, seed=77) * 3 + 1


CHANGES: dict[str, Callable[[Bank], Bank | None]] = {
    "nothing": lambda bank: None,
    "update_": lambda bank: bank.update_(torch.arange(M), other()) and None,
    "update_ of few": lambda bank: bank.update_(torch.tensor([0, 17, M - 1]), other()[:3]) and None,
    "load_state_dict": lambda bank: bank.load_state_dict({"vectors": other()}) and None,
    "load_state_dict assign": lambda bank: bank.load_state_dict({"vectors": other()}, assign=True) and None,
    "load into the parent": lambda bank: nn.Sequential(bank).load_state_dict({"0.vectors": other()}) and None,
    "double": lambda bank: bank.double(),
    "half": lambda bank: bank.half(),
    "bfloat16": lambda bank: bank.bfloat16(),
    "to float64": lambda bank: bank.to(torch.float64),
    "half and back": lambda bank: bank.half().float(),
    "parent to float64": lambda bank: nn.Sequential(nn.Linear(2, 2), bank).to(torch.float64)[1],
    "_apply": lambda bank: bank._apply(lambda t: t * 2),
    "cpu": lambda bank: bank.cpu(),
    "deepcopy": lambda bank: copy.deepcopy(bank),
    "pickle": lambda bank: pickle.loads(pickle.dumps(bank)),
    "train and eval": lambda bank: bank.train().eval(),
    "requires_grad_": lambda bank: bank.requires_grad_(),
}


@pytest.mark.parametrize("learnable", [False, True], ids=["buffer", "parameter"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("change", CHANGES)
def test_the_pack_is_never_stale(change: str, metric: str, learnable: bool, device: str) -> None:
    bank = Bank(gauss(M, D).to(device), metric=metric, learnable=learnable)
    if device != "cpu" and change == "cpu":
        pytest.skip("leaves the device")
    assert_fresh(bank, metric, "before")
    with torch.no_grad():
        if learnable and change.startswith("update_"):
            bank.requires_grad_(False)
        changed = CHANGES[change](bank)
    assert_fresh(changed if isinstance(changed, Bank) else bank, metric, change)
    assert_fresh(bank, metric, "the original")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "rows",
    [
        torch.full((2, D), 1e30),
        torch.full((2, D), float("nan")),
        torch.full((2, D), 1e-40),
        torch.zeros(2, D),
        torch.full((2, D), float("inf")),
    ],
    ids=["huge", "nan", "denormal", "zero", "inf"],
)
def test_update_with_rows_unlike_the_others(rows: Tensor, metric: str, device: str) -> None:
    """What all rows shared when the bank was packed (scale, mean) may no longer fit; the answer must."""
    bank = Bank(gauss(M, D).to(device), metric=metric)
    bank.update_(torch.tensor([3, 40], device=device), rows.to(device))
    x = gauss(13, D)
    want = reference.topk(x, bank.vectors.cpu(), 10, metric)
    assert_same(tuple(bank.topk(x.to(device), 10)), tuple(want))
    bank.update_(torch.tensor([3, 40], device=device), gauss(2, D).to(device))
    assert_fresh(bank, metric)


def test_update_moves_everything_away(device: str) -> None:
    bank = Bank(gauss(M, D).to(device), metric="l2")
    for i in range(0, M, 10):
        bank.update_(torch.arange(i, i + 10, device=device), (1000 + 0.01 * gauss(10, D, seed=i)).to(device))
        assert_fresh(bank, "l2")


def test_update_takes_arguments_from_any_device(device: str) -> None:
    """Also a row that is named twice, whose last vector is looked up before anything is moved."""
    rows, vectors = torch.tensor([3, 40, 3]), gauss(3, D, seed=5)
    want = gauss(M, D)
    want[40], want[3] = vectors[1], vectors[2]
    for there in ((rows, vectors), (rows.to(device), vectors), (rows, vectors.to(device))):
        bank = Bank(gauss(M, D).to(device), "l2")
        assert bank.update_(*there).vectors.device.type == device
        assert_same(bank.vectors.cpu(), want)
        assert_fresh(bank, "l2")
        if device != "cpu":  # and the other way round
            assert_same(Bank(gauss(M, D), "l2").update_(there[0].to(device), there[1].to(device)).vectors, want)


def test_update_of_nothing(device: str) -> None:
    bank = Bank(gauss(M, D).to(device), metric="l2")
    bank.update_(torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(0, D, device=device))
    assert_fresh(bank, "l2")


def test_update_counts_as_a_change() -> None:
    """Autograd must see it: a graph that saved the old vectors may not go backward over the new ones."""
    bank = Bank(gauss(M, D), metric="cosine")
    before = bank.vectors._version
    x = gauss(3, D).requires_grad_()
    out = bank.project(x).sum()
    bank.update_(torch.tensor([1]), gauss(1, D))
    assert bank.vectors._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_update_refuses_a_leaf_that_requires_grad() -> None:
    bank = Bank(gauss(M, D), learnable=True)
    before = bank.vectors.detach().clone()
    with pytest.raises((RuntimeError, ValueError), match="grad"):
        bank.update_(torch.tensor([1]), gauss(1, D))
    assert torch.equal(bank.vectors, before)


@pytest.mark.parametrize("metric", METRICS)
def test_a_parameter_is_packed_at_every_call(metric: str, device: str) -> None:
    bank = Bank(gauss(M, D).to(device), metric=metric, learnable=True)
    optimizer = torch.optim.SGD(bank.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        bank.project(gauss(5, D).to(device)).sum().backward()
        optimizer.step()
        assert_fresh(bank, metric)
    with torch.no_grad():
        bank.vectors.mul_(-1)
        assert_fresh(bank, metric)
    bank.vectors.data.add_(1)
    bank.requires_grad_(False)
    assert_fresh(bank, metric)
    bank.vectors.data.copy_(other())
    assert_fresh(bank, metric)


@pytest.mark.parametrize("learnable", [False, True])
def test_what_torch_sees(learnable: bool) -> None:
    """state_dict, buffers (what DDP broadcasts), parameters: the vectors, and nothing derived from them."""
    bank = Bank(gauss(M, D), "dot", learnable=learnable)
    bank.topk(gauss(2, D), 3)
    assert list(bank.state_dict()) == ["vectors"]
    assert [n for n, _ in bank.named_buffers()] == ([] if learnable else ["vectors"])
    assert [n for n, _ in bank.named_parameters()] == (["vectors"] if learnable else [])
    assert isinstance(bank.vectors, nn.Parameter) is learnable
    assert bank.vectors.requires_grad is learnable and bank.vectors.is_leaf
    fresh = Bank(torch.zeros(M, D), metric="l2", learnable=learnable)
    assert not any(fresh.load_state_dict(bank.state_dict(), strict=True))


def test_checkpoints_are_not_doubled() -> None:
    bank = Bank(gauss(2000, 64), metric="l2")
    raw = bank.vectors.numel() * 4
    bank.topk(gauss(2, 64), 3)
    buffer = io.BytesIO()
    torch.save(bank.state_dict(), buffer)
    assert buffer.tell() < 1.1 * raw
    assert len(pickle.dumps(bank)) < 1.1 * raw
    buffer = io.BytesIO()
    torch.save(bank, buffer)
    assert buffer.tell() < 1.1 * raw
    buffer.seek(0)
    assert_fresh(torch.load(buffer, weights_only=False), "l2")


def test_copies_are_independent() -> None:
    bank = Bank(gauss(M, D), metric="l2")
    twin = copy.deepcopy(bank)
    twin.update_(torch.arange(M), other())
    assert_fresh(bank, "l2")
    assert_fresh(twin, "l2")
    assert not torch.equal(bank.vectors, twin.vectors)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_pack_is_not_cast(dtype: torch.dtype) -> None:
    """A cast bank answers as one made from the cast vectors, on values that a cast pack would change."""
    rows = gauss(M, D) * 1e-3 + 1
    bank = Bank(rows, metric="l2").to(dtype)
    assert bank.vectors.dtype == dtype
    made = Bank(rows.to(dtype), metric="l2")
    x = gauss(20, D, dtype=dtype)
    assert_same(tuple(bank.topk(x, M)), tuple(made.topk(x, M)))
    assert_same(bank.project(x), made.project(x))


def test_pack_is_about_one_more_copy() -> None:
    bank = gauss(4096, 128)
    for code in range(len(METRICS)):
        pack = torch.ops.vecbank.pack(bank, code)
        assert pack.numel() * pack.element_size() < 1.1 * bank.numel() * 4


@pytest.mark.parametrize("metric", METRICS)
def test_repr(metric: str) -> None:
    text = repr(Bank(gauss(2048, 128), metric=metric))
    assert metric in text and "2048" in text and "128" in text and "float32" in text
    assert re.search(r"\d+(\.\d+)?\s*(B|[kKMG]i?B)\b", text), text
    assert "learnable" in repr(Bank(gauss(3, 2), learnable=True))


@pytest.mark.parametrize("metric", METRICS)
def test_another_metric_than_the_banks(metric: str, device: str) -> None:
    x, rows = gauss(6, D), gauss(M, D)
    for own in METRICS:
        bank = Bank(rows.to(device), metric=own)
        got = vecbank.topk(x.to(device), bank, 5, metric)
        assert_same(tuple(got), tuple(reference.topk(x, rows, 5, metric)))
        assert_same(vecbank.nearest(x.to(device), bank, metric).indices, got.indices[:, 0])
        codes = vecbank.quantize(x.to(device), bank, metric).codes
        assert torch.equal(codes, got.indices[:, 0])
        want = reference.project(x, rows, metric)
        torch.testing.assert_close(vecbank.project(x.to(device), bank, metric).cpu(), want)


def test_gradients_reach_a_learnable_bank_only() -> None:
    x = gauss(4, D).requires_grad_()
    for learnable in (False, True):
        bank = Bank(gauss(M, D), metric="l2", learnable=learnable)
        (bank.project(x).sum() + bank.topk(x, 2).values.sum() + bank.lookup(torch.tensor([3])).sum()).backward()
        assert (bank.vectors.grad is not None) is learnable
    given = gauss(M, D).requires_grad_()
    assert not Bank(given).vectors.requires_grad


@pytest.mark.parametrize("metric", METRICS)
def test_batched(metric: str, device: str) -> None:
    """Banks ``(B, M, d)``: one list of rows per batch entry."""
    rows, x = gauss(3, 20, 5), gauss(3, 7, 5)
    bank = Bank(rows.clone().to(device), metric=metric)
    assert_same(tuple(bank.topk(x.to(device), 4)), tuple(reference.topk(x, rows, 4, metric)))
    assert_same(tuple(bank.quantize(x.to(device))), tuple(reference.quantize(x, rows, metric)))
    bank.load_state_dict({"vectors": rows + 1})
    assert_same(tuple(bank.nearest(x.to(device))), tuple(reference.nearest(x, rows + 1, metric)))


def test_empty_bank(device: str) -> None:
    bank = Bank(torch.zeros(0, 4, device=device), metric="cosine")
    x = gauss(3, 4).to(device)
    assert bank.project(x).shape == (3, 0)
    assert bank.nearest(x).indices.tolist() == [-1] * 3
    assert bank.nearest(x).values.tolist() == [float("-inf")] * 3
    assert bank.quantize(x).codes.tolist() == [-1] * 3 and bool(bank.quantize(x).quantized.isnan().all())
    assert "0" in repr(bank)


def test_a_view_is_no_trap(device: str) -> None:
    """Vectors that are a view (transposed, sliced, expanded) of something larger."""
    wide = gauss(D, 2 * M).to(device)
    for view in (wide.t()[::2], wide[:, :M].t(), wide[:1, :D].expand(M, D)):
        for metric in METRICS:
            bank = Bank(view, metric=metric)
            assert_fresh(bank, metric)
            bank.update_(torch.tensor([2], device=device), gauss(1, D).to(device))
            assert_fresh(bank, metric)


def test_moving_to_meta_and_back() -> None:
    bank = Bank(gauss(M, D), metric="l2").to("meta")
    assert bank.vectors.device.type == "meta"
    bank.load_state_dict({"vectors": other()}, assign=True)
    assert_fresh(bank, "l2")
    empty = Bank(gauss(M, D), metric="l2").to("meta").to_empty(device="cpu")
    empty.load_state_dict({"vectors": other()})
    assert_fresh(empty, "l2")


def test_update_from_the_banks_own_memory_by_way_of_numpy() -> None:
    """numpy and dlpack make another storage of the same memory, which need not begin where the bank's does."""
    for alias in (lambda t: torch.from_numpy(t.numpy()[1:4]), lambda t: torch.from_dlpack(t[1:4])):
        bank = Bank(torch.arange(5.0)[:, None].clone(), "l2")
        bank.update_(torch.tensor([2, 3, 4]), alias(bank.vectors))
        assert bank.vectors.flatten().tolist() == [0.0, 1.0, 1.0, 2.0, 3.0]
