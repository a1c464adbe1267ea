"""What is installed and what this machine runs: `python -m vecbank info`, and a dict for reports."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vecbank import _C, _cuda
from vecbank._version import __version__


def collect() -> dict[str, Any]:
    """Versions, build, processor and CUDA as plain values that go into JSON."""
    build = dict(_C.build_info())
    return {
        "vecbank": __version__,
        "module": str(_C.__file__),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "system": f"{platform.system()} {platform.machine()}",
        "build": build,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": _C.isa(),
        "available_isas": list(_C.available_isas()),
        "isa_override": os.environ.get("VECBANK_ISA"),
        "cuda": {
            "in_this_build": _cuda.module is not None or bool(build.get("cuda", False)),
            "kernels": None if _cuda.module is None else _cuda.module.architectures(),
            "reason": _cuda.reason,  # why no kernels were loaded
            "path_override": os.environ.get("VECBANK_CUDA_PATH") or None,
            "project_override": os.environ.get("VECBANK_CUDA_PROJECT") or None,
            "torch_cuda": torch.version.cuda,
            "devices": _cuda_devices(),
        },
    }


def render(facts: dict[str, Any]) -> str:
    """The same for people."""
    build = facts["build"]
    isas = ", ".join(f"{name} (in use)" if name == facts["isa"] else name for name in facts["available_isas"])
    override = facts["isa_override"]
    chosen = f"VECBANK_ISA={override}" if override else "VECBANK_ISA not set"
    if override and override not in facts["available_isas"]:
        chosen += " ignored, not available here"
    rows = [
        ("python", f"{facts['python']}, {facts['system']}"),
        ("torch", f"{facts['torch']}, numpy {facts['numpy'] or 'not installed'}"),
        ("module", facts["module"]),
        ("compiler", build.get("compiler", "unknown")),
        ("flags", build.get("flags", "unknown")),
        ("processor", f"{facts['cpu']}, {facts['cores']} cores, torch uses {facts['threads']} threads"),
        ("ISA", f"{isas}; {chosen}"),
        ("CUDA", _cuda_line(facts["cuda"])),
    ]
    for index, device in enumerate(facts["cuda"]["devices"]):
        text = f"{device['name']}, compute capability {device['capability']}"
        if device["path"] is not None:
            text += f", searches on {device['path']}"
        rows.append((f"cuda:{index}", "; ".join(filter(None, (text, device["tensor_cores"])))))
    # Whatever else the build says about itself.
    known = {"compiler", "flags", "cuda", "version"}
    rows += [(name, str(value)) for name, value in sorted(build.items()) if name not in known]
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"vecbank {facts['vecbank']}", *(f"  {name:<{width}}  {text}" for name, text in rows)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vecbank info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="machine-readable")
    facts = collect()
    print(json.dumps(facts, indent=2) if parser.parse_args(argv).json else render(facts))
    return 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _cuda_devices() -> list[dict[str, Any]]:
    """Each device, and what a search would find there: this runs the self-check of its tensor cores."""
    if not torch.cuda.is_available():
        return []
    return [_cuda_device(index) for index in range(torch.cuda.device_count())]


def _cuda_device(index: int) -> dict[str, Any]:
    name, (major, minor) = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    path: str | None = None
    said: str | None = None
    if _cuda.module is not None:
        torch.cuda.init()
        with torch.cuda.device(index):
            found = _cuda.module.tensor_cores(index)
        path, said = found.path, str(found)
        if path is None and (wanted := os.environ.get("VECBANK_CUDA_PATH")):
            said += f"; VECBANK_CUDA_PATH={wanted} names no path"
    return {"name": name, "capability": f"{major}.{minor}", "path": path, "tensor_cores": said}


def _cuda_line(cuda: dict[str, Any]) -> str:
    ours = f"no kernels: {cuda['reason']}" if cuda["kernels"] is None else f"kernels for {cuda['kernels']}"
    theirs = f"torch has CUDA {cuda['torch_cuda']}" if cuda["torch_cuda"] else "torch is a CPU build"
    chosen = (("VECBANK_CUDA_PATH", cuda["path_override"]), ("VECBANK_CUDA_PROJECT", cuda["project_override"]))
    settings = [f"{name}={value}" for name, value in chosen if value]
    return "; ".join([ours, theirs, f"devices: {len(cuda['devices']) or 'none'}", *settings])


if __name__ == "__main__":
    sys.exit(main())
