#!/usr/bin/env python3
"""Builds what a machine with a GPU and no network needs, into one folder: `make gpu-bundle`.

The kernels' tests, their timer, vecbank's modules for one Python, and wheels (requirements/gpu.txt). Needs nvcc here,
and no GPU. `scripts/gpu_check.sh PHASE OUT --bundle FOLDER` then compiles nothing of CUDA there.
"""

from __future__ import annotations

import argparse
import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_MIB = 40.0
PROGRAMS = ("vecbank_cuda_tests", "vecbank_cuda_timer")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def run(*command: str | Path, quiet: bool = False, **settings: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **settings},
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE if quiet else None,
    )
    if done.returncode:
        raise SystemExit(f"gpu-bundle: {' '.join(str(part) for part in command[:4])} ... failed ({done.returncode})")
    return done.stdout or ""


def version_of(python: str) -> str:
    """3.12 of python3.12, whatever folder it lies in."""
    found = re.fullmatch(r"python(3\.[0-9]+)", Path(python).name)
    if found is None:
        raise SystemExit(
            f"gpu-bundle: --python must be a name like python3.12, with or without its folder, got {python}"
        )
    return found[1]


def interpreter(wanted: str, folder: Path) -> Path | None:
    """An environment of the Python that the machine with the GPU has, with pybind11; None where it is not here."""
    named = shutil.which(wanted)
    others = sorted(Path.home().glob(f".pyenv/versions/{version_of(wanted)}.*/bin/{Path(wanted).name}"))
    for python in ([named] if named else []) + [str(path) for path in others]:
        if subprocess.run([python, "-c", "import venv"], capture_output=True).returncode == 0:
            break
    else:
        return None
    made = folder / "bin" / "python"
    if not made.exists():
        run(python, "-m", "venv", folder)
    pins = (ROOT / "requirements" / "build.txt").read_text().splitlines()
    pybind11 = next(line for line in pins if line.startswith("pybind11"))
    run(made, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", pybind11)
    return made


def absent(wheels: list[Path], there: set[str]) -> list[str]:
    """What the wheels require, and neither they nor the machine have."""

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    have = {plain(name) for name in there} | {plain(wheel.name.split("-")[0]) for wheel in wheels}
    missing = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            needs = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
        for need in needs:
            match = re.match(r"[A-Za-z0-9._-]+", need)
            elsewhere = re.search(r"extra\s*==|sys_platform\s*==\s*['\"]win32|python_version\s*<", need)
            if match and not elsewhere and plain(match[0]) not in have:
                missing.append(f"{wheel.name} needs {need}")
    return missing


def download(python: str, folder: Path) -> None:
    listed = ROOT / "requirements" / "gpu.txt"
    there = next(line for line in listed.read_text().splitlines() if line.startswith("# there: "))
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
        "--only-binary=:all:", "--implementation", "cp", "--python-version", version_of(python), *platforms,
        "--dest", folder, "-r", listed)  # fmt: skip
    if missing := absent(sorted(folder.glob("*.whl")), set(there.removeprefix("# there: ").split())):
        raise SystemExit("gpu-bundle: requirements/gpu.txt leaves out what its wheels need:\n  " + "\n  ".join(missing))


def build(args: argparse.Namespace, tree: Path, python: Path | None) -> list[Path]:
    """The programs and modules; without the machine's Python, only modules that belong to none."""
    find = "import importlib.util as u; s = u.find_spec('{}'); print(s.submodule_search_locations[0] if s else '')"
    torch, cutlass = (
        run(sys.executable, "-c", find.format(name), quiet=True).strip() for name in ("torch", "cutlass_library")
    )
    settings = {"VECBANK_CUDA_ARCHS": args.archs, "CUDACXX": args.nvcc}
    if cutlass:
        settings["VECBANK_CUTLASS_INCLUDE"] = f"{cutlass}/source/include"
    run(args.cmake, "-S", ".", "-B", tree, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={args.ninja}", "-DVECBANK_TORCH=ON",
        "-DVECBANK_CUDA=ON", "-DVECBANK_INPLACE=OFF", f"-DPython_EXECUTABLE={python or sys.executable}",
        f"-DVECBANK_TORCH_DIR={torch}", **settings)  # fmt: skip
    for old in (tree / "module").glob("_C*.so"):  # also those that this version no longer builds
        old.unlink()
    run(args.ninja, "-C", tree, *PROGRAMS, "_C", "_C_cuda", **settings)
    modules = sorted((tree / "module").glob("_C*.so"))
    if python is None:
        modules = [module for module in modules if "cpython" not in module.name]
    return [*(tree / name for name in PROGRAMS), *modules]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_bundle")
    parser.add_argument("--python", default="python3.12", help="the Python of the machine with the GPU")
    parser.add_argument("--archs", default="9.0a", help="as VECBANK_CUDA_ARCHS")
    parser.add_argument("--cmake", default="cmake")
    parser.add_argument("--ninja", default="ninja")
    parser.add_argument("--wheels", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    found = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    args.nvcc = found if shutil.which(found) else None
    return args


def main() -> int:
    args = parse()
    if args.nvcc is None:
        raise SystemExit("gpu-bundle: no nvcc found (PATH, CUDACXX, /usr/local/cuda); it compiles the kernels")
    sources = run("scripts/cuda_sources.sh", quiet=True)  # before: an edit during the build must not count as built
    python = interpreter(args.python, ROOT / "build" / "gpu_python")
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    (out / "modules").mkdir(parents=True)
    for built in build(args, ROOT / "build" / "gpu_tree", python):
        to = out / built.name if built.name in PROGRAMS else out / "modules" / built.name
        run("strip", "--strip-unneeded", "-o", to, built)
    if args.wheels:
        download(args.python, out / "wheels")
    (out / "SOURCES").write_text(sources)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    total = sum(path.stat().st_size for path in files) / 2**20
    for path in files:
        print(f"{path.stat().st_size / 2**20:7.2f} MiB  {path.relative_to(out)}")
    if python is None:
        print(f"gpu-bundle: no {args.python} here: gpu_check.sh builds the module for the CPU there")
    if total > MOST_MIB:
        raise SystemExit(f"gpu-bundle: {total:.1f} MiB in {out}, and at most {MOST_MIB:g} may travel")
    print(f"gpu-bundle: {total:.1f} MiB in {out}, for {args.archs} and {Path(args.python).name}. Then, with a GPU:")
    print(f"  scripts/gpu_check.sh first OUT --bundle {os.path.relpath(out, ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
