"""What only CUDA has: the same answers as the CPU, graph capture, streams, torch.compile, the sticky flag.

The foundation's own tests walk their table on every device there is, CUDA included (conftest.py); this file
holds the rest. Without a GPU, or with a build without kernels, everything here skips and says why.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import TABLE, build
from helpers import FLOATS, assert_same, gauss, run

import vecbank
from vecbank import _cuda
from vecbank._codes import ESTIMATORS

REASON = "no GPU" if not torch.cuda.is_available() else _cuda.reason
gpu = pytest.mark.skipif(REASON is not None, reason=f"CUDA kernels cannot run here: {REASON}")


def test_without_kernels_cpu_tensors_still_work() -> None:
    """Also on a machine without a GPU: the reason is known, and nothing of CUDA is in the way."""
    assert (_cuda.module is None) == (_cuda.reason is not None)
    vecbank.nearest(gauss(3, 4), gauss(5, 4))
    _cuda.check()
    assert set(_cuda.counters()) == {"queries", "refined", "repeated"}


def to(value: Any, device: str) -> Any:
    return None if value is None else value.to(device)


@gpu
@pytest.mark.parametrize("op", ["topk", "nearest", "quantize"])
def test_exact_ops_equal_the_cpu(op: str) -> None:
    for case in (case for case in TABLE if case.op == op):
        inputs = build(case)
        want = run(case, inputs.x, inputs.bank, inputs.mask)
        got = run(case, to(inputs.x, "cuda"), to(inputs.bank, "cuda"), to(inputs.mask, "cuda"))
        assert_same(got, want, str(case))
    _cuda.check()


@gpu
@pytest.mark.parametrize("metric", vecbank.METRICS)
def test_graph_capture(metric: str) -> None:
    x, bank = gauss(300, 40).cuda(), gauss(2000, 40).cuda()

    def ops() -> tuple[torch.Tensor, ...]:
        best = (*vecbank.topk(x, bank, 7, metric), *vecbank.nearest(x, bank, metric))
        return (*best, vecbank.project(x, bank, metric))

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
    assert_same(vecbank.pq_encode(x.cuda(), books.cuda()), vecbank.pq_encode(x, books))
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
    vecbank.nearest(gauss(10, 4).cuda(), torch.ones(500, 4, device="cuda"))  # all rows equal: the last resort
    assert _cuda.counters()["queries"] == 10 and _cuda.counters()["repeated"] == 10


@gpu
def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="one device"):
        vecbank.nearest(gauss(3, 4).cuda(), gauss(5, 4))


@gpu
def test_workspace_stays_within_64_mib() -> None:
    x, bank = torch.randn(20000, 64, device="cuda"), torch.randn(100000, 64, device="cuda")
    vecbank.topk(x, bank, 100)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    answer = vecbank.topk(x, bank, 100)
    own = sum(t.numel() * t.element_size() for t in answer)
    assert torch.cuda.max_memory_allocated() - before - own <= (64 << 20) + 4096
