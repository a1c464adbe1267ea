"""What ran the bench: processor, memory, software and commit. No host names and no paths."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch

import vecbank

ROOT = Path(__file__).resolve().parents[1]
_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "sve")


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _caches() -> dict[str, str]:
    found: dict[str, str] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        found[f"L{level} {kind.lower()}"] = size
    return found


def machine() -> dict[str, object]:
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "architecture": platform.machine(),
        "cpu": info.get("model name", "unknown"),
        "cpu_family_model": [info.get("cpu family"), info.get("model")],
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "caches_of_cpu0": _caches(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Installed version of every peer package, None where it is missing."""
    found: dict[str, str | None] = {}
    for package in sorted(packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def software(threads: int, packages: Iterable[str]) -> dict[str, object]:
    return {
        "vecbank": vecbank.__version__,
        "isa": vecbank._C.isa(),
        "isas_available": list(vecbank._C.available_isas()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "threads": threads,
        "peers": versions(packages),
    }


def _git(*args: str) -> str | None:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> dict[str, object]:
    """The commit measured; `dirty` counts changes outside bench/results, which this run itself writes."""
    changed = _git("status", "--porcelain", "--", ".", ":!bench/results")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
