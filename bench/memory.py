"""Peak resident memory of one call beyond inputs, outputs and the Bank, in a process of its own.

    python -m bench.memory CASE CANDIDATE THREADS QUICK    (run.py starts it)

Inputs and the prepared Bank are resident before the high-water mark is reset; outputs are subtracted.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench import registry

ROOT = Path(__file__).resolve().parents[1]
MIB = float(1 << 20)


def status_bytes(key: str) -> int:
    """A field of /proc/self/status that is given in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def trim_heap() -> None:
    """Hand freed heap back to the system, so that reusing it counts as growth."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # not glibc
        pass


def result_bytes(result: Any) -> int:
    if isinstance(result, tuple | list):
        return sum(result_bytes(part) for part in result)
    return int(result.nbytes) if hasattr(result, "nbytes") else 0


def measure(case_name: str, candidate: str, threads: int, quick: bool) -> dict[str, float]:
    torch.set_num_threads(threads)
    case = registry.case_named(case_name)
    workload = registry.workload_of(case)
    case = workload.quick(case) if quick else case
    prepare = workload.candidates[candidate].prepare
    # One call on a small problem first: libraries load and start their threads outside the measurement.
    small = workload.small(case)
    prepare(small, workload.make_data(small), threads)()
    data = workload.make_data(case)
    call = prepare(case, data, threads)
    trim_heap()
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    result = call()
    peak = status_bytes("VmHWM")
    outputs = result_bytes(result)
    return {
        "extra_mib": round((peak - before - outputs) / MIB, 2),
        "outputs_mib": round(outputs / MIB, 2),
        "resident_before_mib": round(before / MIB, 2),
    }


def measure_in_child(case_name: str, candidate: str, threads: int, quick: bool, timeout_s: float) -> dict[str, Any]:
    """`measure` in a fresh process; a failure comes back as its last line."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "bench.memory", case_name, candidate, str(threads), str(int(quick))]
    try:
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"error": f"no result within {timeout_s:.0f} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"exit status {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1")))
