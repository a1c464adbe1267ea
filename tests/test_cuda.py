"""What only CUDA has: the same answers as the CPU, graph capture, streams, torch.compile, the sticky flag.

The foundation's own tests walk their table on every device there is, CUDA included (conftest.py); this file
holds the rest. Without a GPU, or with a build without kernels, everything here skips and says why.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import PROJECT, TABLE, build
from helpers import FLOATS, NO_CUDA, assert_same, gauss, op, run
from test_project import assert_within_contract

import vecbank
from vecbank import _cuda, info, reference
from vecbank._ops import ESTIMATORS

gpu = pytest.mark.skipif(NO_CUDA is not None, reason=f"CUDA kernels cannot run here: {NO_CUDA}")
two_gpus = pytest.mark.skipif(
    NO_CUDA is not None or torch.cuda.device_count() < 2,
    reason=f"two GPUs are needed, there are {torch.cuda.device_count()}; CUDA: {NO_CUDA or 'runs'}",
)


def test_without_kernels_cpu_tensors_still_work() -> None:
    """Also on a machine without a GPU: the reason is known, and nothing of CUDA is in the way."""
    assert (_cuda.module is None) == (_cuda.reason is not None)
    vecbank.nearest(gauss(3, 4), gauss(5, 4))
    _cuda.check()
    assert set(_cuda.counters()) == {"queries", "refined", "repeated"}


def to(value: Any, device: str) -> Any:
    return None if value is None else value.to(device)


def extra_bytes(call: Callable[[], Any]) -> int:
    """Peak of torch's allocator beyond what was there and what is returned."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    answer = call()
    answer = answer if isinstance(answer, tuple) else (answer,)
    return torch.cuda.max_memory_allocated() - before - sum(t.numel() * t.element_size() for t in answer)


@gpu
@pytest.mark.parametrize("op", ["topk", "nearest", "quantize"])
def test_exact_ops_equal_the_cpu(op: str) -> None:
    for case in (case for case in TABLE if case.op == op):
        inputs = build(case)
        want = run(case, inputs.x, inputs.bank, inputs.allowed)
        on = build(case, "cuda")
        got = run(case, on.x, on.bank, on.allowed)
        assert_same(got, want, str(case))
    _cuda.check()


@gpu
def test_tensor_cores_are_sound_and_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the 16-bit screens assume holds on this device, so they are the default; each path gives the same answer."""
    assert _cuda.module is not None
    monkeypatch.delenv("VECBANK_CUDA_PATH", raising=False)
    torch.cuda.init()
    found, fast = _cuda.module.tensor_cores(0), torch.cuda.get_device_capability() >= (8, 0)
    best = "sm90" if torch.cuda.get_device_capability() == (9, 0) else "mma16"
    assert (found.outcome, found.path) == (("sound", best) if fast else ("absent", "simt")), str(found)
    assert str(found) in info.render(info.collect())
    x, bank = gauss(300, 40), gauss(3000, 40)
    want = tuple(vecbank.topk(x, bank, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(tuple(vecbank.topk(x.cuda(), bank.cuda(), 7)), want)
        for path in dict.fromkeys(("simt", "mma16", best)) if fast else ("simt",):
            monkeypatch.setenv("VECBANK_CUDA_PATH", path)
            assert _cuda.module.tensor_cores(0).path == path
            assert_same(tuple(vecbank.topk(x.cuda(), bank.cuda(), 7)), want)
    monkeypatch.setenv("VECBANK_CUDA_PATH", "cublas")
    assert _cuda.module.tensor_cores(0).path is None
    with pytest.raises(ValueError, match="VECBANK_CUDA_PATH must be simt, .* got cublas"):
        vecbank.topk(x.cuda(), bank.cuda(), 7)


# The first search of the process is captured, so it cannot wait for a check; the second one checks.
CAPTURED = """
import torch, vecbank
x, bank = torch.randn(300, 40), torch.randn(3000, 40)
a, b = x.cuda(), bank.cuda()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    captured = vecbank.topk(a, b, 7)
graph.replay()
for got in (captured, vecbank.topk(a, b, 7)):
    for ours, theirs in zip(got, vecbank.topk(x, bank, 7)):
        assert torch.equal(ours.cpu(), theirs)
print(vecbank._cuda.module.tensor_cores(0).outcome)
"""


@gpu
def test_a_first_search_can_be_captured() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CAPTURED],
        env={**os.environ, "CUDA_MODULE_LOADING": "EAGER"},  # kernels cannot be loaded while a graph is captured
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["sound" if torch.cuda.get_device_capability() >= (8, 0) else "absent"]


@gpu
def test_project_by_default_is_within_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VECBANK_CUDA_PROJECT", raising=False)
    for case in PROJECT:
        inputs = build(case)
        x, bank = inputs.x, inputs.bank
        got = vecbank.project(x.cuda(), bank.cuda(), case.metric)
        assert_within_contract(got.cpu(), x, bank, case.metric, "cuda")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)  # 11 bits of each factor, as in ATen's own
    x, bank = gauss(700, 64), gauss(600, 64)
    want = reference.project(x, bank, "cosine")
    assert (vecbank.project(x.cuda(), bank.cuda(), "cosine").cpu() - want).abs().max() <= 2.0**-9
    got = vecbank.project(x.cuda(), bank.cuda(), "l2")  # a distance would show what TF32 loses
    assert_within_contract(got.cpu(), x, bank, "l2")


@gpu
@pytest.mark.parametrize("path", ["kernel", "library"])
def test_project_on_each_path_is_within_the_contract(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ATen's own error on the device, whose products are not the CPU's; what a library cannot do the kernel does."""
    monkeypatch.setenv("VECBANK_CUDA_PROJECT", path)
    for case in PROJECT:
        inputs = build(case)
        x, bank = inputs.x, inputs.bank
        got = vecbank.project(x.cuda(), bank.cuda(), case.metric)
        assert_within_contract(got.cpu(), x, bank, case.metric, "cuda")
    with pytest.raises(ValueError, match="kernel or library"):
        monkeypatch.setenv("VECBANK_CUDA_PROJECT", "cublas")
        vecbank.project(x.cuda(), bank.cuda())


@gpu
def test_project_by_library_needs_no_second_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECBANK_CUDA_PROJECT", "library")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, bank = gauss(30000, 64).to("cuda", dtype), gauss(3000, 64).to("cuda", dtype)
        vecbank.project(x, bank, "cosine")  # cuBLAS takes its own workspace once
        assert extra_bytes(lambda x=x, bank=bank: vecbank.project(x, bank, "cosine")) <= (64 << 20) + 4096


@gpu
@pytest.mark.parametrize("metric", vecbank.METRICS)
@pytest.mark.parametrize("path", ["kernel", "library"])
def test_graph_capture(metric: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is not a backward, captured once and replayed on other queries."""
    monkeypatch.setenv("VECBANK_CUDA_PROJECT", path)
    x, bank = gauss(300, 40).cuda(), gauss(2000, 40).cuda()
    codes = torch.randint(-1, 2000, (300, 3), generator=torch.Generator().manual_seed(0)).cuda()

    def ops() -> tuple[torch.Tensor, ...]:
        best = (*vecbank.topk(x, bank, 7, metric), *vecbank.nearest(x, bank, metric))
        found = vecbank.quantize_train(x, bank, metric)
        sums = (vecbank.lookup(codes, bank, reduce="sum"), vecbank.segment_sum(x, found.codes, 2000))
        return (*best, vecbank.project(x, bank, metric), *vecbank.quantize(x, bank, metric), *found, *sums)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ops()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops()
    x.copy_(gauss(300, 40, seed=1))
    graph.replay()
    assert_same(captured, ops())


@gpu
def test_two_streams_do_not_meet() -> None:
    banks = [gauss(3000, 32, seed=s).cuda() for s in range(2)]
    xs = [gauss(500, 32, seed=s + 5).cuda() for s in range(2)]
    want = [tuple(vecbank.topk(x, b, 5)) for x, b in zip(xs, banks, strict=True)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    got: list[list[tuple[torch.Tensor, ...]]] = [[], []]
    for _ in range(5):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                got[i].append(tuple(vecbank.topk(xs[i], banks[i], 5)))
    torch.cuda.synchronize()
    for i in range(2):
        for answer in got[i]:
            assert_same(answer, want[i])


@gpu
def test_work_waits_for_its_own_stream() -> None:
    """Inputs written on a stream just before the call, on that stream, without any other waiting."""
    x, bank = torch.zeros(4000, 64, device="cuda"), gauss(5000, 64).cuda()
    want = vecbank.nearest(gauss(4000, 64).cuda(), bank)
    torch.cuda.synchronize()
    fresh = gauss(4000, 64).cuda()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(20):
            torch.mm(fresh, fresh.T)  # keeps the stream busy
        x.copy_(fresh)
        got = vecbank.nearest(x, bank)
    side.synchronize()
    assert_same(tuple(got), tuple(want))


@two_gpus
def test_another_device_than_the_current_one() -> None:
    x, bank = gauss(300, 40), gauss(2000, 40)
    want = tuple(vecbank.topk(x, bank, 7))
    assert torch.cuda.current_device() == 0
    got = tuple(vecbank.topk(x.to("cuda:1"), vecbank.Bank(bank, metric="dot").to("cuda:1"), 7))
    assert torch.cuda.current_device() == 0 and all(t.device.index == 1 for t in got)
    assert_same(got, want)
    vecbank.lookup(torch.tensor([99999], device="cuda:1"), bank.to("cuda:1"))
    _cuda.check("cuda:0")
    with pytest.raises(IndexError, match="cuda:1"):
        _cuda.check()
    with pytest.raises(ValueError, match="one device"):
        vecbank.topk(x.to("cuda:0"), bank.to("cuda:1"), 7)


@gpu
def test_strides_and_offsets() -> None:
    """Views that no kernel may read as if they were contiguous."""
    x, bank = gauss(64, 90), gauss(200, 90, seed=1)
    views = [
        (lambda t: t[::3, 5:62:2]),
        (lambda t: t[:, 1:58].t().contiguous().t()),
        (lambda t: t[:, 3:60].unsqueeze(0).expand(2, -1, -1)[1]),
    ]
    for view in views:
        for metric in vecbank.METRICS:
            a, b = view(x), view(bank)
            assert_same(
                tuple(vecbank.topk(view(x.cuda()), view(bank.cuda()), 5, metric)), tuple(vecbank.topk(a, b, 5, metric))
            )
            torch.testing.assert_close(
                vecbank.project(view(x.cuda()), view(bank.cuda()), metric).cpu(), vecbank.project(a, b, metric)
            )
    codes = torch.randint(0, 200, (40, 2), generator=torch.Generator().manual_seed(0))
    assert_same(vecbank.lookup(codes.cuda()[:, 0], bank.cuda()[:, ::2]), vecbank.lookup(codes[:, 0], bank[:, ::2]))


@gpu
def test_compiles() -> None:
    x, bank = gauss(64, 16).cuda(), gauss(100, 16).cuda()

    def f(x: torch.Tensor, bank: torch.Tensor) -> tuple[torch.Tensor, ...]:
        quantized, codes = vecbank.quantize(x, bank)
        return quantized, codes, vecbank.lookup(codes, bank), vecbank.segment_sum(x, codes, 100)

    assert_same(torch.compile(f, fullgraph=True)(x, bank), f(x, bank))


@gpu
def test_gradients_are_deterministic_and_close_to_the_cpu() -> None:
    x, bank = gauss(200, 24), gauss(50, 24)
    codes = torch.randint(-1, 50, (200, 6), generator=torch.Generator().manual_seed(0))
    for metric in vecbank.METRICS:
        answers = []
        for device in ("cpu", "cuda", "cuda"):
            a, b = x.to(device).requires_grad_(), bank.to(device).requires_grad_()
            loss = vecbank.topk(a, b, 9, metric).values.square().sum()
            loss = loss + vecbank.lookup(codes.to(device), b, reduce="mean").square().sum()
            answers.append(torch.autograd.grad(loss, (a, b)))
        assert_same(answers[1], answers[2])
        for ours, theirs in zip(answers[1], answers[0], strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)


@gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("metric", vecbank.METRICS)
@pytest.mark.parametrize("n,d", [(1, 128), (700, 33), (5000, 128), (300, 900)])
def test_residual_quantize_equals_the_cpu(n: int, d: int, metric: str, dtype: torch.dtype) -> None:
    """On the chip, and stage by stage where the rows are too wide or the books float64."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, books = (
        gauss(n, d, dtype=dtype),
        [gauss(m, d, dtype=wide, seed=m) / (i + 1) for i, m in enumerate((300, 1, 1024))],
    )
    books[2][500:] = books[2][:524].clone()  # ties
    x[n // 2, 0] = torch.nan
    want = vecbank.residual_quantize(x, books, metric)
    banks = [vecbank.Bank(b.cuda(), metric=metric) for b in books]
    for got in (
        vecbank.residual_quantize(x.cuda(), [b.cuda() for b in books], metric),
        vecbank.residual_quantize(x.cuda(), banks, metric),
    ):
        assert_same((got.quantized, got.codes), (want.quantized, want.codes))
        torch.testing.assert_close(got.losses.cpu(), want.losses, rtol=1e-6, atol=1e-9, equal_nan=True)
    _cuda.check()


@gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("parts,w", [(1, 40), (16, 8), (5, 3)])
def test_product_quantize_equals_the_cpu(parts: int, w: int, dtype: torch.dtype) -> None:
    books = gauss(parts, 256, w, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    books[:, 200] = books[:, 4]
    x = gauss(1100, 2 * parts * w, dtype=dtype)[:, : parts * w]  # a view with gaps
    x[7, 0] = torch.nan
    assert_same(vecbank.pq.encode(x.cuda(), books.cuda()), vecbank.pq_encode(x, books))
    _cuda.check()


@gpu
def test_cascades_can_be_captured_and_keep_to_the_workspace() -> None:
    x, books = gauss(40000, 64).cuda(), [gauss(1024, 64, seed=s).cuda() for s in range(4)]

    def op() -> tuple[torch.Tensor, ...]:
        return tuple(torch.ops.vecbank.residual_quantize(x, books, packs, vecbank.METRICS["l2"]))

    packs = [torch.ops.vecbank.pack(b, vecbank.METRICS["l2"]) for b in books]
    want = op()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    op()
    own = sum(t.numel() * t.element_size() for t in want)
    assert torch.cuda.max_memory_allocated() - before - own <= (64 << 20) + 4096
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op()
    graph.replay()
    assert_same(captured, want)


@gpu
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quantize_backward_equals_the_cpu(dtype: torch.dtype, estimator: str) -> None:
    data = [gauss(300, 67, dtype=dtype, seed=seed) for seed in range(3)]
    data[1][5] = 0
    want = torch.ops.vecbank.quantize_backward(*data, torch.tensor(0.3), ESTIMATORS[estimator])
    got = torch.ops.vecbank.quantize_backward(
        *(t.cuda() for t in data), torch.tensor(0.3, device="cuda"), ESTIMATORS[estimator]
    )
    assert_same(got, want, str(dtype))


@gpu
def test_bad_codes_set_the_flag() -> None:
    bank = gauss(5, 3).cuda()
    out = vecbank.lookup(torch.tensor([0, 7, -1], device="cuda"), bank)
    assert out[1].isnan().all() and not out[[0, 2]].isnan().any()
    with pytest.raises(IndexError, match="codes out of range"):
        _cuda.check()
    _cuda.check()  # once


@gpu
def test_counters() -> None:
    _cuda.reset_counters()
    # All rows equal, and more than any list holds (kFewCapacity in csrc/cuda/plan.h, twice): the last resort.
    vecbank.nearest(gauss(10, 4).cuda(), torch.ones(2 * 1024 + 5, 4, device="cuda"))
    assert _cuda.counters()["queries"] == 10 and _cuda.counters()["repeated"] == 10


@gpu
def test_other_devices_are_refused() -> None:
    x, bank = gauss(3, 4), gauss(5, 4)
    for on, off in ((x.cuda(), bank), (x, bank.cuda())):
        with pytest.raises(ValueError, match="one device"):
            vecbank.nearest(on, off)
        with pytest.raises(ValueError, match="one device"):
            vecbank.nearest(on, vecbank.Bank(off))
    # who calls the op itself hears it from C++
    with pytest.raises(RuntimeError, match="bank must be on cuda:0, like the other arguments"):
        op("nearest")(x.cuda(), bank, None, 2, True)


@gpu
def test_a_pack_of_another_bank_is_not_believed() -> None:
    x, bank, other = gauss(30, 8).cuda(), gauss(90, 8).cuda(), 5 * gauss(90, 8, seed=1).cuda()
    pack = op("pack")(other, 2, None)
    pack[:8] = 0  # not even a pack
    want = op("nearest")(x, bank, None, 2, True)
    assert_same(op("nearest")(x, bank, pack, 2, True), want)
    with pytest.raises(IndexError, match="a pack of another bank"):
        _cuda.check()


@gpu
def test_workspace_stays_within_64_mib() -> None:
    x, bank = torch.randn(20000, 64, device="cuda"), torch.randn(100000, 64, device="cuda")
    vecbank.topk(x, bank, 100)
    assert extra_bytes(lambda: vecbank.topk(x, bank, 100)) <= (64 << 20) + 4096
