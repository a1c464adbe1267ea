"""The bench's workloads: each has what the registry asks for, and a tiny size of each runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = next(p for p in Path(__file__).parents if (p / "bench").is_dir())
sys.path.insert(0, str(ROOT))

from bench import cpu_run, memory, registry, report, run  # noqa: E402
from bench.baselines import baseline  # noqa: E402
from bench.cases import OURS, PLAIN, Case, Data, Target  # noqa: E402
from bench.cuda_cases import PREDICTED_MS, CudaCase, quick  # noqa: E402
from bench.workload import Candidate, Workload  # noqa: E402

BY_OP = pytest.mark.parametrize("workload", registry.WORKLOADS, ids=lambda workload: workload.op)


def cases_of(workload: Workload) -> list[Case]:
    """Its cases at sizes of a few rows: the sizes that a process of the memory rows calls first."""
    on_cuda = [quick(case) for case in workload.cuda.cases] if workload.cuda else []
    return [replace(workload.small(case), k=min(case.k, 4), data=case.data) for case in workload.cases] or on_cuda


def test_help_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run.parse(["--help"])
    assert "--wait-quiet" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        run.parse(["--device", "cuda", "--sections", "speed"])
    assert "--sections: the rows on a GPU are one table" in capsys.readouterr().err


def test_every_file_is_a_workload_and_names_are_told_apart() -> None:
    assert report.OURS == OURS  # report.py imports nothing, so that a table can be drawn without a built package
    files = {path.stem for path in (ROOT / "bench" / "workloads").glob("*.py")} - {"__init__"}
    assert len(registry.WORKLOADS) == len(files) > 0
    for key in (lambda w: w.op, lambda w: w.place):
        assert len({key(workload) for workload in registry.WORKLOADS}) == len(registry.WORKLOADS)
    names = [case.name for workload in registry.WORKLOADS for case in workload.cases]
    assert len(set(names)) == len(names)
    ranks = [case.rank for case in registry.CUDA_CASES]
    assert ranks == sorted(set(ranks))
    assert set(ranks) == set(PREDICTED_MS) and min(PREDICTED_MS.values()) > 0


@BY_OP
def test_a_workload_has_what_the_registry_asks_for(workload: Workload) -> None:
    assert workload.cases or workload.cuda or workload.tiny, "it would never run"
    assert bool(workload.cases) == bool(workload.tables), "cases stand in a table"
    assert set(workload.tables) <= set(run.SECTIONS) <= {name for name, *_ in report.TABLES}
    assert all(hasattr(cpu_run.CpuBench, table) for table in workload.tables)
    assert all(case.op == workload.op and registry.workload_of(case) is workload for case in workload.cases)
    assert OURS in workload.candidates or not (workload.cases or workload.cuda)
    assert PLAIN in workload.candidates or "overhead" not in workload.tables
    for case in workload.cases:
        assert set(case.candidates) <= set(workload.candidates)
        compared = [name for name, _ in case.target.peers] + ([case.memory_share[0]] if case.memory_share else [])
        assert set(compared) <= set(case.candidates), "a target names a candidate of its row"
        assert registry.case_named(case.name) is case
    assert {c.package for c in workload.candidates.values() if c.package} <= registry.packages()


@BY_OP
def test_a_tiny_size_runs_as_it_is_timed(workload: Workload) -> None:
    for case in cases_of(workload):
        data = workload.make_data(case)
        assert data.x.shape == (case.n, case.d)
        if not isinstance(case, CudaCase):
            base = baseline(case, data, workload.product(case, data))
            assert all(timed() > 0 for timed in base.calls.values())
        expected = workload.expect(case, data)
        result = workload.ours.prepare(case, data, 1)()
        found = workload.judge(case, OURS, workload.ours, result, expected)
        assert found["ok"] is not False, (case.name, found)
        assert memory.result_bytes(result) > 0
        for name in case.candidates:
            candidate = workload.candidates.get(name)
            if candidate is None or candidate.package is None:  # a GPU's, or torch alone
                continue
            try:
                result = candidate.prepare(case, data, 1)()
            except ImportError:
                continue
            found = workload.judge(case, name, candidate, result, expected)
            assert found["ok"] is not False or case.data in ("offset", "unused"), (case.name, name, found)
            break  # one peer is enough
    if workload.tiny:
        data = cpu_run.draw(cpu_run.TINY_CASE, torch.Generator().manual_seed(0))
        for grad in (False, True):
            workload.tiny.ours(data, grad)()
        workload.tiny.torch(data)()


@BY_OP
def test_quick_sizes_are_smaller(workload: Workload) -> None:
    for case in workload.cases:
        fewer = workload.quick(case)
        assert fewer.flops < case.flops and (fewer.name, fewer.op, fewer.d) == (case.name, case.op, case.d)


def test_a_run_of_a_workload_that_is_in_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The runner finds it through the registry alone; a wrong answer and a missing package are reported."""

    def prepare(case: Case, data: Data, threads: int) -> Any:
        return lambda: tuple((data.x @ data.bank.T).topk(case.k, dim=1))

    def worst(case: Case, data: Data, threads: int) -> Any:
        return lambda: (None, torch.zeros(case.n, case.k, dtype=torch.int64))

    def missing(case: Case, data: Data, threads: int) -> Any:
        raise ImportError("No module named 'a_peer'")

    target = Target(None, (("wrong", 1e9),))
    case = Case("made up 64 x 64, d 8", "made_up", 64, 64, 8, "dot", target, ("wrong", "absent"), k=2)
    candidates = {OURS: Candidate(prepare), "wrong": Candidate(worst), "absent": Candidate(missing, "a note", "a-peer")}
    made_up = Workload(op="made_up", place=1, tables=("speed", "growth"), cases=(case,), candidates=candidates)
    monkeypatch.setattr(registry, "WORKLOADS", (made_up,))
    monkeypatch.setattr(registry, "_BY_OP", {"made_up": made_up})
    out = tmp_path / "result.json"
    sections = ("growth", "tiny", "speed")
    options = ("--repeats", "1", "--budget", "0.01", "--only", "made", "--out", str(out))
    bench = cpu_run.CpuBench(run.parse(["--sections", *sections, *options]))
    bench.run()
    rows = bench.report["rows"]
    assert [row["section"] for row in rows] == ["speed", "growth"]  # the order of the tables
    assert bench.report["software"]["peers"] == {"a-peer": None}
    entries = rows[0]["candidates"]
    assert [entry["status"] for entry in entries.values()] == ["ok", "ok", "missing"]
    assert entries[OURS]["check"]["wrong_rows"] == 0 and entries["wrong"]["check"]["ok"] is False
    assert entries["absent"] == {"note": "a note", "status": "missing", "reason": "No module named 'a_peer'"}
    assert "made up 64 x 64, d 8" in report.markdown(bench.report, [])
