"""The CUDA bench without a GPU: its rows, judging, table and plots, on the CPU with a clock that counts calls.

Events, the rotated L2, the profiler, torch.compile's and flash-kmeans's kernels run on a GPU only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = next(p for p in Path(__file__).parents if (p / "bench").is_dir())
sys.path.insert(0, str(ROOT))

from bench import cuda_candidates, cuda_cases, registry, report, run, runner, timing  # noqa: E402
from bench.cases import OURS, Target  # noqa: E402
from bench.cuda_cases import COMPILED, EXPRESSION, PATHS, WRITTEN  # noqa: E402
from bench.registry import CUDA_CASES as CASES  # noqa: E402
from bench.workloads.nearest import BARE, FLASH, NARROW, VQP  # noqa: E402

NAMES = [case.name for case in CASES]


def entry(ms: float, ok: bool | None = True, **more: Any) -> dict[str, Any]:
    return {"status": "ok", "check": {"ok": ok}, "median_s": ms * 1e-3, "ratio": ms, **more}  # baseline: 1 ms


def case_of(text: str) -> cuda_cases.CudaCase:
    return next(case for case in CASES if text in case.name)


def test_rows_are_those_the_targets_are_stated_for() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(cuda_candidates.candidate(name, case) for case in CASES for name in case.candidates)
    assert all(cuda_candidates.on_cuda(c).expression for c in CASES if set(WRITTEN) & set(c.candidates))
    assert all(name in case.candidates for case in CASES for name, _ in case.target.peers)
    wide = case_of("nearest 1,048,576 x 8,192, d 64, bfloat16")
    assert wide.most_ms == 2.9 and dict(wide.target.peers)[FLASH] == 1 / 1.3
    assert dict(case_of("topk 4,096 x 1,000,000, d 128, k 100").target.peers)[EXPRESSION] == 1 / 4
    assert case_of("project 65,536 x 1,024, d 768, float32 as tf32").target.limit == 1.15
    assert dict(case_of("VectorQuantize train step").target.peers) == {VQP: 0.1, BARE: 2.5}
    assert dict(case_of("nearest 1,048,576 x 8,192, d 64, float32").target.peers)[NARROW] == 1.5
    assert all(case.memory_limit_mib == 64.0 for case in CASES)


def test_judging() -> None:
    case = case_of("nearest 1,048,576 x 8,192, d 64, bfloat16")
    peers = {EXPRESSION: entry(9.0), COMPILED: entry(6.0), FLASH: entry(4.0)}
    judge = cuda_cases.judge
    assert judge(case, {OURS: entry(2.8), **peers}, OURS, "NVIDIA H200") == {"met": True, "absent": [], "line": 2.9}
    assert judge(case, {OURS: entry(3.0), **peers}, OURS, "NVIDIA H200")["met"] is False  # 2.9 ms
    assert judge(case, {OURS: entry(2.1, ok=False), **peers}, OURS, "NVIDIA H200")["met"] is False  # wrong answers
    other = judge(case, {OURS: entry(2.1), **peers}, OURS, "NVIDIA A100")  # no time is stated for it
    assert other["met"] is None and other["line"] == pytest.approx(4.0 / 1.3)
    peers[FLASH] = {"status": "not installed"}
    found = judge(case, {OURS: entry(2.1), **peers}, OURS, "NVIDIA H200")
    assert found["met"] is None and found["absent"] == [FLASH]
    assert judge(case, {OURS: entry(5.0), **peers}, OURS, "NVIDIA H200")["met"] is False  # whichever peer is absent
    assert judge(case, {OURS: entry(5.0), "vecbank mma16": entry(2.0), **peers}, "vecbank mma16", "H200")["met"] is None


def test_judging_by_kernels_and_baseline() -> None:
    residual = case_of("ResidualVQ")
    assert cuda_cases.judge(residual, {OURS: entry(1.0, kernels=1)}, OURS, "H200")["met"] is True
    assert cuda_cases.judge(residual, {OURS: entry(1.0, kernels=9)}, OURS, "H200")["met"] is False
    assert cuda_cases.judge(residual, {OURS: entry(1.0, kernels=None)}, OURS, "H200")["met"] is None
    read = case_of("topk 64 x")
    assert cuda_cases.judge(read, {OURS: entry(1.42)}, OURS, "H200")["met"] is True
    assert cuda_cases.judge(read, {OURS: entry(1.44)}, OURS, "H200")["met"] is False
    assert read.target_text() == "≤ 1.43 x one read at copy bandwidth"


def test_the_order_of_a_path_or_a_peer_does_not_matter() -> None:
    case = case_of("project 65,536 x 1,024, d 768, bfloat16")
    entries = {OURS: entry(1.05), "vecbank library": entry(1.8), EXPRESSION: entry(1.6)}
    assert cuda_cases.against(entries, case)[EXPRESSION] == {"ours_over_peer": round(1.05 / 1.6, 4), "limit": 1.0}
    assert cuda_cases.judge(case, entries, "vecbank library", "H200")["met"] is False


def test_path_settings_last_for_the_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("VECBANK_CUDA_PATH", "simt")
    with cuda_candidates.environment({"VECBANK_CUDA_PATH": "mma16", "VECBANK_CUDA_PROJECT": "library"}):
        assert os.environ["VECBANK_CUDA_PATH"] == "mma16" and os.environ["VECBANK_CUDA_PROJECT"] == "library"
    assert os.environ["VECBANK_CUDA_PATH"] == "simt" and "VECBANK_CUDA_PROJECT" not in os.environ


@pytest.mark.parametrize("name", NAMES)
def test_every_candidate_answers_the_row(name: str) -> None:
    """In float32, where a peer's arithmetic is fine enough to have the right answers, and in the row's own dtype."""
    case = cuda_cases.quick(case_of(name))
    for dtype in dict.fromkeys(("float32", case.dtype)):
        one = cuda_cases.replace(case, dtype=dtype)
        data = cuda_candidates.make_data(one, "cpu")
        workload = registry.workload_of(one)
        expected = workload.expect(one, data)
        for name in one.candidates:
            if name in (COMPILED, FLASH):  # need a GPU
                continue
            candidate = cuda_candidates.candidate(name, one)
            result = cuda_candidates.prepare(name, one, data)()
            found = workload.judge(one, name, candidate, result, expected)
            assert (found["ok"] is None) == (candidate.other_question is not None)
            exact = name in PATHS or (dtype == "float32" and one.data == "gaussian")
            assert found["ok"] in ((True, None) if exact else (True, False, None)), (name, dtype, found)


def test_the_clock_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """L2 is written over before the first event; only the call lies between the two."""
    seen: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            seen.append("record")

        def synchronize(self) -> None:
            seen.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(timing, "rotate_l2", lambda: seen.append("rotate"))
    assert timing.clock(lambda: seen.append("call"), "cuda")() == 2.5e-3
    assert seen == ["rotate", "record", "call", "record", "wait"]
    with pytest.raises(NotImplementedError):
        timing.clock(lambda: None, "tpu")


def test_scores_that_do_not_fit_are_done_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cuda_cases.quick(case_of("topk 4,096 x 262,144, d 128, k 10"))
    data = cuda_candidates.make_data(case, "cpu")
    whole = cuda_candidates.prepare(EXPRESSION, case, data)()
    monkeypatch.setattr(cuda_candidates, "SCORES_BYTES", 5 * case.m * 4)
    assert cuda_candidates.rows_at_once(case, data) == 5
    parts = cuda_candidates.prepare(EXPRESSION, case, data)()
    assert torch.equal(parts[1], whole[1]) and torch.allclose(parts[0], whole[0])


def small_bench(out: Path, *more: str) -> Any:
    """The real run on the CPU: small sizes, and a clock that advances a millisecond a call."""
    from bench.cuda_run import CudaBench

    class Here(CudaBench):
        place = "cpu"

        def clock(self, call: timing.Call) -> timing.Timed:
            def timed() -> float:
                call()
                return 1e-3

            return timed

        def gpu(self) -> dict[str, Any]:
            facts = {"name": "none, a test", "capability": "0.0", "memory_gib": 0, "torch_cuda": None}
            return {**facts, "kernels_for": None, **self.rates(16, 1024)}

        def extra_mib(self, call: timing.Call) -> float:
            call()
            return 3.0

    skipped = ("--skip", COMPILED)
    bench = Here(run.parse(["--device", "cuda", "--quick", "--out", str(out), *skipped, *more]))
    bench.bar = runner.Plain()
    return bench


def test_run_report_and_plots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    cases = tuple({(case.op, case.baseline): case for case in reversed(CASES)}.values())  # one of each kind
    monkeypatch.setattr(registry, "CUDA_CASES", cases)
    names = [case.name for case in cases]
    small_bench(out).run()
    found = json.loads(out.read_text())
    rows = [row for row in found["rows"] if row["section"] == "cuda"]
    assert [row["name"] for row in rows] == names and len(found["rows"]) == 2 * len(names)
    for row in rows:
        assert row["met"] is None  # quick: other sizes than the target's
        assert row["candidates"][OURS]["status"] == "ok" and row["candidates"][OURS]["median_s"] == 1e-3
        assert row["candidates"].get(FLASH, {"status": "not installed"})["status"] == "not installed"
        assert COMPILED not in row["candidates"]
    shared = next(row for row in rows if "VectorQuantize" in row["name"])["candidates"][VQP]
    assert shared["status"] == "ok" and shared["median_s"] == 2e-3  # half the rows, twice the time
    text = report.markdown(found, [])
    assert "# Bench on the CUDA" in text and "## On the GPU" in text and "mma16 1 ms (not judged)" in text
    assert "not installed" in text and all(name in text for name in names)
    pytest.importorskip("matplotlib")
    from bench.plots import draw

    assert [path.name for path in draw(found, out)] == ["result-cuda.png", "result-memory.png"]
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("result-cuda.png", "result-memory.png"))


def test_rows_that_time_ran_out_for_are_listed(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    bench = small_bench(out, "--only", "topk 1 x", "--seconds", "1e-9")
    bench.run()
    found = json.loads(out.read_text())
    assert found["rows"] == [] and found["left_out"] == [case_of("topk 1 x").name]
    assert "Not run, for want of time:** topk 1 x" in report.markdown(found, [])


def test_a_failing_path_is_not_run_and_a_failing_default_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = cuda_candidates.prepare
    broken = {"vecbank sm90"}

    def prepare(name: str, case: Any, data: Any) -> Any:
        if name in broken:
            raise RuntimeError("no such path")
        if name == "vecbank mma16":  # the worst row instead of the best
            return lambda: (None, torch.zeros(case.n, dtype=torch.int64))
        return real(name, case, data)

    monkeypatch.setattr(cuda_candidates, "prepare", prepare)
    out = tmp_path / "result.json"
    small_bench(out, "--only", "nearest 65,536 x 8,192, d 64").run()
    found = json.loads(out.read_text())
    entry = found["rows"][0]["candidates"]["vecbank sm90"]
    assert entry["status"] == "not run" and "no such path" in entry["reason"]
    assert "wrong answers of vecbank mma16" in found["failures"][0]
    broken.add(OURS)
    small_bench(out, "--only", "topk 1 x").run()  # goes on to whatever comes next
    found = json.loads(out.read_text())
    assert found["failures"] == [f"{case_of('topk 1 x').name}: RuntimeError: no such path"] and not found["rows"]
    assert "**Failed:** topk 1 x" in report.markdown(found, [])


def test_a_process_that_ends_within_a_row_costs_that_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A device that is lost stays lost for the process; the next one keeps the rows, and goes on after that one."""
    from bench.cuda_run import CudaBench

    first, second, third = (cuda_cases.quick(case_of(name)) for name in ("topk 1 x", "topk 64 x", "sparse"))
    monkeypatch.setattr(registry, "CUDA_CASES", (first, second, third))
    real = cuda_candidates.prepare

    def prepare(name: str, case: Any, data: Any) -> Any:
        if case.name == second.name:
            raise RuntimeError("illegal memory access")
        return real(name, case, data)

    def lost(self: Any) -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(cuda_candidates, "prepare", prepare)
    monkeypatch.setattr(CudaBench, "wait", lost)
    out = tmp_path / "result.json"
    with pytest.raises(RuntimeError, match="the device is lost"):
        small_bench(out).run()
    assert json.loads(out.read_text())["running"] == second.name
    small_bench(out, "--resume").run()
    found = json.loads(out.read_text())
    assert list(dict.fromkeys(row["name"] for row in found["rows"])) == [first.name, third.name]
    assert len(found["rows"]) == 4 and "running" not in found
    assert len(found["failures"]) == 1 and found["failures"][0].startswith(f"{second.name}: the process ended")


def test_without_a_gpu_the_command_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is there: gpu_check.sh runs the command itself")
    monkeypatch.setattr(sys, "argv", ["run.py", "--device", "cuda"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run.main() == 2
    assert "bench: not run:" in capsys.readouterr().err


def test_targets_of_the_text_are_those_that_are_judged() -> None:
    case = cuda_cases.replace(case_of("topk 1 x"), target=Target(None, ((EXPRESSION, 1 / 3),)), most_ms=2.6)
    assert case.target_text() == "≤ 2.6 ms, 3 x faster than torch"
