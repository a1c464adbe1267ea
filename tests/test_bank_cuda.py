"""Banks on a CUDA device are packed once, and never stale. Most of it needs a GPU; what decides does not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import FLOATS, NO_CUDA, assert_same, gauss, op
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import vecbank
from vecbank import _C, Bank, _cuda, _packs, _prepared
from vecbank._ops import METRICS

gpu = pytest.mark.skipif(NO_CUDA is not None, reason=f"CUDA kernels cannot run here: {NO_CUDA}")


class OnCuda(Tensor):
    """A tensor that says it lies on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)


def on_cuda(t: Tensor) -> Tensor:
    return t.as_subclass(OnCuda)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """As if kernels were there; the answer says whether a graph is being captured."""
    monkeypatch.setattr(_cuda, "module", object())

    def capturing(now: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: now)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    capturing(False)
    return capturing


def test_what_is_packed_on_cuda(kernels: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gauss(5, 3)
    assert _prepared._packable(rows) and _prepared._packable(on_cuda(rows))
    assert not _prepared._packable(on_cuda(rows).requires_grad_())
    with torch.inference_mode():
        assert not _prepared._packable(on_cuda(gauss(5, 3)))
    assert not _prepared._packable(torch.empty(5, 3, device="meta"))
    kernels(True)  # what a capture packs is not there before the replay
    assert _prepared._packable(rows) and not _prepared._packable(on_cuda(rows))
    kernels(False)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert _prepared._packable(rows) and not _prepared._packable(on_cuda(rows))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    now = [1]  # the current device, whose stream alone torch asks; that of device 0 is being captured
    monkeypatch.setattr(torch.cuda, "current_device", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "device", lambda d: contextmanager(lambda: (yield now.__setitem__(0, d.index)))())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: now[0] == 0)
    assert not _prepared._packable(on_cuda(rows))
    monkeypatch.undo()
    if _cuda.module is None:  # no kernels, no packs
        assert not _prepared._packable(on_cuda(rows))


def test_a_captured_call_gets_no_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(gauss(20, 4), "dot").prepare("search")
    held = dict(bank._packs)
    assert held and bank._packed("topk", bank.vectors, METRICS["dot"]) is not None
    monkeypatch.setattr(_prepared, "_capturing", lambda t: True)
    assert bank._packed("topk", bank.vectors, METRICS["dot"]) is None
    assert bank._packs == held  # and nothing is prepared or forgotten
    monkeypatch.undo()
    assert bank._packed("topk", bank.vectors, METRICS["dot"]) is next(iter(held.values())).pack


def test_another_stream_waits_for_the_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Stream:
        def wait_event(self, event: object) -> None:
            seen.append((self, event))

    class Pack:
        device = torch.device("cuda", 0)

        def record_stream(self, stream: object) -> None:
            seen.append((self, stream))

    made, elsewhere, event, pack = Stream(), Stream(), object(), Pack()
    held: Any = _packs.Pack(pack, None, None, _packs.Made(made, event))  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made)
    assert held.for_current_stream() is pack and seen == []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: elsewhere)
    assert held.for_current_stream() is pack and seen == [(elsewhere, event), (pack, elsewhere)]


def test_the_size_of_a_pack_is_a_formula_on_cuda_too() -> None:
    """The same number from symbols as from numbers, and no comparison that would tie a program to one size."""
    for metric, code in METRICS.items():
        for rows, width in ((2, 3), (256, 64), (65536, 16), (65537, 16), (70000, 16385)):
            env = ShapeEnv()
            mode = FakeTensorMode(shape_env=env)
            bank = mode.from_tensor(torch.empty(rows, width, device="meta"))
            size = _C.pack_bytes(*bank.shape, code, False, True)
            assert not env.guards
            assert int(size) == _C.pack_bytes(rows, width, code, False, True), (metric, rows, width)
            assert isinstance(size, torch.SymInt) or metric == "l1"
    operands = -(-1_000_000 // 256) * 256 * (128 * 2 + 16)
    assert 0 < _C.pack_bytes(1_000_000, 128, METRICS["dot"], False, True) - operands < 4096
    assert _C.pack_bytes(0, 4, METRICS["l2"], False, True) < 1024


# ---- On a GPU --------------------------------------------------------------------------------------------------------


def current(bank: Bank) -> Tensor:
    (held,) = bank.prepare("search")._packs.values()
    return held.pack


@gpu
@pytest.mark.parametrize("path", ["simt", "mma16"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_bank_searches_as_its_vectors_do(metric: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECBANK_CUDA_PATH", path)
    for dtype in FLOATS:
        x, rows = gauss(130, 40, dtype=dtype), gauss(900, 40, seed=1, dtype=dtype)
        bank = Bank(rows.cuda(), metric)
        fake_size = _C.pack_bytes(900, 40, METRICS[metric], False, True)
        assert current(bank).shape == (fake_size,)
        for k in (1, 7):
            assert_same(tuple(bank.topk(x.cuda(), k)), tuple(vecbank.topk(x, rows, k, metric)))
        torch.testing.assert_close(bank.project(x.cuda()).cpu(), vecbank.project(x, rows, metric))
    assert_same(tuple(Bank(gauss(900, 40).cuda(), metric).nearest(gauss(9, 40).bfloat16().cuda())),
                tuple(vecbank.nearest(gauss(9, 40).bfloat16(), gauss(900, 40), metric)))  # fmt: skip
    _cuda.check()


@gpu
@pytest.mark.parametrize("path", ["simt", "mma16"])
def test_a_bank_without_panels(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than a codebook: its pack holds operands alone, and project and the portable screen pack pieces."""
    monkeypatch.setenv("VECBANK_CUDA_PATH", path)
    x, rows = gauss(40, 24), gauss(70000, 24, seed=1)
    bank = Bank(rows.cuda(), "l2")
    assert_same(tuple(bank.topk(x.cuda(), 5)), tuple(vecbank.topk(x, rows, 5, "l2")))
    torch.testing.assert_close(bank.project(x.cuda()).cpu(), vecbank.project(x, rows, "l2"))
    assert_same(vecbank.residual_quantize(x.cuda(), [bank]).codes, vecbank.residual_quantize(x, [rows], "l2").codes)
    _cuda.check()


@gpu
def test_every_change_is_seen() -> None:
    x, rows = gauss(50, 16).cuda(), gauss(800, 16, seed=1).cuda()
    bank = Bank(rows, "l2")
    first = current(bank)

    def is_right() -> None:
        assert_same(tuple(bank.topk(x, 3)), tuple(vecbank.topk(x, bank.vectors.clone(), 3, "l2")))

    is_right()
    assert current(bank) is first  # not packed again
    bank.vectors.neg_()
    is_right()
    bank.update_(torch.tensor([3, 700], device="cuda"), x[:2])
    is_right()
    bank.load_state_dict({"vectors": gauss(800, 16, seed=9)})
    is_right()
    bank.half()
    assert_same(tuple(bank.topk(x.half(), 3)), tuple(vecbank.topk(x.half(), bank.vectors.clone(), 3, "l2")))
    _cuda.check()


@gpu
def test_a_compiled_program_notices_on_cuda() -> None:
    bank = Bank(gauss(800, 16).cuda(), "l2")
    x = gauss(50, 16, seed=2).cuda()
    compiled = torch.compile(lambda x: bank.topk(x, 3), fullgraph=True, backend="aot_eager")
    for change in (lambda: None, bank.vectors.neg_, lambda: bank.vectors.mul_(3), bank.repack):
        change()
        assert_same(tuple(compiled(x)), tuple(vecbank.topk(x, bank.vectors.clone(), 3, "l2")))


@gpu
@pytest.mark.parametrize("handed", [False, True])
def test_a_replay_is_never_stale(handed: bool) -> None:
    """Neither of a Bank, nor of a stamped pack that a compiled program hands to the op."""
    rows, x = gauss(800, 16).cuda(), gauss(50, 16, seed=2).cuda()
    bank = Bank(rows, "l2")

    def search() -> tuple[Tensor, ...]:
        if handed:
            return tuple(op("nearest")(x, bank.vectors, current(bank), METRICS["l2"], True))
        return tuple(bank.nearest(x))

    search()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = search()
    for seed in (3, 4):
        bank.vectors.copy_(gauss(800, 16, seed=seed))
        graph.replay()
        assert_same(found, tuple(vecbank.nearest(x, bank.vectors.clone(), "l2")))


@gpu
def test_a_pack_that_is_made_late_serves_every_stream() -> None:
    bank, x = Bank(gauss(60000, 64).cuda()), gauss(300, 64, seed=2).cuda()
    want = tuple(vecbank.topk(x, bank.vectors.clone(), 5, "dot"))
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    answers = []
    for _ in range(3):
        bank.repack()
        for stream in streams:
            with torch.cuda.stream(stream):
                answers.append(tuple(bank.topk(x, 5, metric="dot")))
    torch.cuda.synchronize()
    for answer in answers:
        assert_same(answer, want)


@gpu
def test_a_search_of_many_queries_packs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks against a bank of several pieces: the operands of the whole bank, and no more, are kept."""
    monkeypatch.setenv("VECBANK_CUDA_PATH", "mma16")
    x, rows = torch.randn(70000, 64, device="cuda").bfloat16(), torch.randn(200000, 64, device="cuda").bfloat16()
    want = tuple(Bank(rows, "l2").nearest(x))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    got = tuple(vecbank.nearest(x, rows, "l2"))
    assert torch.cuda.max_memory_allocated() - before <= (64 << 20) + 200704 * (64 * 2 + 12)
    assert_same(got, want)
