#!/usr/bin/env python3
"""Writes docs/cuda_resources.md: registers, shared memory and spills of every kernel for every architecture.

Compiles each .cu file under csrc/cuda once per architecture with `ptxas -v`; needs nvcc, no GPU. Shared memory is given
at launch, so a second table says what each launcher asks for.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"
ARCHITECTURES = ("80", "86", "89", "90a", "100")
HOT = {
    *("screen_kernel", "mma16_kernel<bf16>", "mma16_kernel<fp16>", "sm90_kernel", "few_kernel"),
    *("store_kernel<float>", "store_kernel<double>", "store_kernel<float, twice>", "store_kernel<double, twice>"),
    "sum_kernel",
    *("refine_nearest_kernel", "refine_short_kernel", "refine_row_kernel"),
    *("stages_kernel<cascade>", "stages_kernel<parts>", "pass_back_kernel<float>"),
}
FUNCTION = re.compile(r"(?:Function properties for|Compiling entry function) '?(\S+?)'?(?: for .*)?$")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
SHARED = """
| kernel | threads | dynamic shared memory (no static) |
|---|---|---|
| screen_kernel | 256, at least 2 blocks an SM | 39,560 bytes: two steps, also dumps; 512 k more up to k 32 |
| mma16_kernel | 256, at least 2 blocks an SM | 70,792 bytes: two steps of 64 coordinates, likewise; 512 k more |
| sm90_kernel (9.0a only) | 384, one block an SM | 200 to 226 KiB by width: queries, a ring of tiles, queues |
| store_kernel | 256, at least 2 blocks an SM | 36,864 bytes; twice: 102,400 (float, 9.0 and 10.0), 69,632 |
| compact_kernel (k above 32) | 128 | 16 bytes a candidate + 16: up to 64 KiB for k 512 and up |
| stages_kernel | 256, at least 2 blocks an SM where they fit | 40 KiB + 264 bytes a coordinate: 73 KiB for d 128 |
| refine_nearest_kernel, refine_short_kernel | 256, at least 3 blocks an SM (10.0: 2) | 4 bytes |
| refine_row_kernel | 128, at least 8 blocks an SM (10.0: 6) | 16 bytes a candidate + 8: 1 to 64 KiB |
| write_operands_kernel | 64 | none |
| refine_all_kernel | 256 | 16 bytes an entry + 8: 8 to 64 KiB |
| write_panels_kernel | 256 | about 1.5 KiB (float), 2.6 KiB (double) |
| frame_* | 256 | up to 6.2 KiB |
| the rest | 128 or 256 | at most 4 KiB |
"""
FLAGS = ["-std=c++20", "-fmad=false", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-cubin"]


def short_name(mangled: str) -> str | None:
    """The kernel's own name; None for functions that are not ours."""
    if "3cub" in mangled or "cub17" in mangled:
        return None
    names = r"\d+((?:mma16|sm90|[a-z_]+)_kernel|frame_[a-z]+)(I[df]E|I[df]Lb[01]E|I(?:Li\dE)?Lb[01]E)?"
    match = re.search(names, mangled)
    if match is None:
        return None
    yes, no = ("cascade", "parts") if match[1] == "stages_kernel" else ("bf16", "fp16")
    suffix = {"IfE": "<float>", "IdE": "<double>", "ILb1E": f"<{yes}>", "ILb0E": f"<{no}>"}.get(match[2] or "", "")
    if re.match("I[df]Lb", match[2] or ""):  # store_kernel: type, second level
        suffix = f"<{'float' if match[2][1] == 'f' else 'double'}{', twice' if match[2][4] == '1' else ''}>"
    if (match[2] or "").startswith("ILi"):  # sm90_kernel: blocks of 64 coordinates, type
        suffix = f"<{match[2][3]}, {'bf16' if match[2][7] == '1' else 'fp16'}>"
    return match[1] + suffix


def cutlass_flags() -> list[str]:
    """As third_party/cutlass.cmake finds them; without these headers the Hopper kernel is left out."""
    include = os.environ.get("VECBANK_CUTLASS_INCLUDE", "")
    spec = importlib.util.find_spec("cutlass_library") if not include else None
    if spec is not None and spec.submodule_search_locations:
        include = f"{spec.submodule_search_locations[0]}/source/include"
    return ["-I", include] if include else []


def hot(name: str) -> bool:
    return name in HOT or name.split("<")[0] in HOT


def compile_one(nvcc: str, source: Path, arch: str) -> list[tuple[str, str, str, int, int, int]]:
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, *cutlass_flags(), f"-arch=sm_{arch}", "-o", f"{folder}/out.cubin", str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{source.name} for sm_{arch} does not compile:\n{done.stderr}")
    rows: list[tuple[str, str, str, int, int, int]] = []
    name: str | None = None
    stack = spill = 0
    for line in done.stderr.splitlines():
        if match := FUNCTION.search(line):
            name = short_name(match[1])
        elif match := SPILLS.search(line):
            stack, spill = int(match[1]), int(match[2]) + int(match[3])
        elif (match := re.search(r"Used (\d+) registers", line)) and name is not None:
            rows.append((source.relative_to(CUDA).as_posix(), name, arch, int(match[1]), stack, spill))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvcc", default=os.environ.get("CUDACXX", "nvcc"))
    parser.add_argument("--check", action="store_true", help="fail if a hot kernel spills; write nothing")
    arguments = parser.parse_args()
    sources = sorted(CUDA.rglob("*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(compile_one, arguments.nvcc, s, a) for s in sources for a in ARCHITECTURES]
        rows = [row for job in jobs for row in job.result()]
    spilling = sorted({f"{name} (sm_{arch})" for _, name, arch, _, _, spill in rows if hot(name) and spill})
    version = subprocess.run([arguments.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release [\d.]+, V([\d.]+)", version)
    lines = [
        "# Registers and spills",
        "",
        f"Written by `scripts/cuda_resources.py` with nvcc {release[1] if release else 'unknown'}.",
        "Each cell: registers, and in parentheses bytes of stack frame and of spill stores plus loads.",
        "Kernels in bold are hot: they must not spill. CUB's sort is not listed.",
        "",
        "| file | kernel | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " |",
        "|---|---|" + "---|" * len(ARCHITECTURES),
    ]
    table: dict[tuple[str, str], dict[str, str]] = {}
    for file, name, arch, registers, stack, spill in rows:
        cell = f"{registers}" + (f" (stack {stack}, spills {spill})" if stack or spill else "")
        table.setdefault((file, name), {})[arch] = cell
    for (file, name), cells in sorted(table.items()):
        shown = f"**{name}**" if hot(name) else name
        lines.append(f"| {file} | {shown} | " + " | ".join(cells.get(a, "-") for a in ARCHITECTURES) + " |")
    lines += SHARED.splitlines()
    lines += ["", f"Hot kernels that spill: {', '.join(spilling) or 'none'}.", ""]
    if not arguments.check:
        (ROOT / "docs").mkdir(exist_ok=True)
        (ROOT / "docs" / "cuda_resources.md").write_text("\n".join(lines))
    print(lines[-2])
    if arguments.check and spilling:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
