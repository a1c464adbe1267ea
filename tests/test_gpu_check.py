"""scripts/gpu_check.sh and scripts/cuda_sanitize.sh with stand-ins for Python, CMake, ninja and the sanitizer.

What the scripts say, whichever part of a machine is missing or failing. **Neither has run on a GPU.**
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = next(p for p in Path(__file__).parents if (p / "scripts").is_dir())

# Each answers by what the environment says it should do; unknown commands fail, so that nothing is overlooked.
STAND_INS = {
    "python": """
        case "$*" in
          *"pip install"*) [[ $* != *broken* ]] ;;
          *is_available*) [[ -n ${GPU:-} ]] ;;
          *get_device_capability*) echo "$GPU" ;;
          *available_isas*) echo "scalar avx2 ${AVX512:-}" ;;
          *vecbank.nearest*)
            echo "error: VECBANK_CUDA_PATH must be ..."
            [[ $VECBANK_CUDA_PATH == mma16 ]] || exit "${SM90:-3}" ;;
          *"-m pytest"*)
            [[ -n ${SLOW:-} && $* == *test_project* ]] && exec sleep 60
            echo "vecbank: 1 tests skipped: one GPU only"
            echo "${TESTS:-3 passed, 1 skipped in 0.1s}"; exit "${TESTS_STATUS:-0}" ;;
          *bench/run.py*)
            for last; do [[ ${previous:-} == --out ]] && out=$last; previous=$last; done
            echo '{}' >"$out"
            printf '**7 of 9 rows met.**\\n- **Not run, for want of time:** a row\\n' >"${out%.json}.md"
            exit "${BENCH_STATUS:-0}" ;;
          *bench/report.py*) echo "reported" ;;
          *"import torch"*) [[ ${0##*/} != "${TORCHLESS:-}" ]] ;;
          *) echo "python $*" >&2; exit 1 ;;
        esac""",
    "cmake": '[[ $* != *TORCH=ON* || -z ${NO_TORCH:-} ]] && mkdir -p "$4"',
    "ninja": '[[ -z ${NO_NINJA:-} ]] && cp "$KERNELS" "$2/vecbank_cuda_tests"',
    "nvidia-smi": 'echo "Made-up GPU, 1.0"',
    "nvcc": "true",
    "compute-sanitizer": """
        case "$2:${SANITIZER:-fine}" in
          *:unable) echo "Unable to attach"; exit 1 ;;
          racecheck:race) exit 9 ;;
          *:slow) sleep 60 ;;
          *) shift 4; "$@" ;;
        esac""",
    "kernels": """
        [[ ${1:-} == cuda_gradients ]] && { echo "0 tests, 0 checks, 0 failed"; exit 1; }
        echo "     tensor cores, compute capability 9.0: worst error 0.5 of 2^-22 (assumed: 1)"
        echo "12 tests"; exit "${KERNELS_STATUS:-0}" """,
}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    return tmp_path


def environment(machine: Path, **settings: str) -> dict[str, str]:
    bin_ = machine / "bin"
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("VECBANK_") and k not in ("PYTHONPATH", "PYTHON")},
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PYTHON": str(bin_ / "python"),
        "KERNELS": str(bin_ / "kernels"),
        "VECBANK_GPU_BUILD": str(machine / "build"),
        "VECBANK_GPU_SHARDS": "2",
        **settings,
    }


def gpu_check(machine: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    """Exit status and summary; whatever happens, at most eight files."""
    out = machine / "out"
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), str(out), *arguments]
    done = subprocess.run(command, env=environment(machine, **settings), capture_output=True, text=True, timeout=120)
    assert len(list(out.iterdir())) <= 8
    return done.returncode, (out / "summary.txt").read_text() + done.stderr


def test_everything_there(machine: Path) -> None:
    status, said = gpu_check(machine, GPU="9.0", AVX512="avx512", SM90="0")
    assert status == 0 and "all that ran passed; 4 files" in said, said
    assert "kernels for 9.0a" in said and "Made-up GPU" in said
    assert "ok    build: built vecbank_cuda_tests _C _C_cuda" in said
    assert "tensor cores, compute capability 9.0: worst error 0.5" in said
    for name in ("table", "avx512", "path_mma16", "path_sm90"):
        assert f"ok    {name}: " in said, said
    assert "6 passed" in said and "2 skipped" in said  # of two shards
    assert "in 2 shards: vecbank: 1 tests skipped: one GPU only" in said
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert f"ok    {tool}: 10 of 11 groups of tests" in said  # this build has no cuda_gradients
    assert "ok    bench: 7 of 9 rows met. - Not run, for want of time: a row" in said
    assert not (machine / "out" / "log.txt").read_text().count("python -")


def test_no_gpu(machine: Path) -> None:
    status, said = gpu_check(machine)
    assert status == 2 and "NOT RUN" in said and len(list((machine / "out").iterdir())) == 2


def test_the_python_that_has_torch(machine: Path) -> None:
    for name in ("python3", "python3.13", "python3.12"):
        (machine / "bin" / name).write_text((machine / "bin" / "python").read_text())
        (machine / "bin" / name).chmod(0o755)
    status, said = gpu_check(machine, PYTHON="", TORCHLESS="python3")
    assert status == 2 and "NOT RUN: python3.13 has no torch that sees a GPU" in said


def test_other_gpu_without_avx512_or_sanitizer_rights(machine: Path) -> None:
    status, said = gpu_check(machine, GPU="8.6", SANITIZER="unable")
    assert status == 0 and "kernels for 8.6" in said
    assert "not run: avx512 (this processor has: scalar avx2 )" in said
    assert "not run: path sm90 (compute capability 8.6)" in said
    assert said.count("(Unable to attach)") == 4


def test_a_build_without_the_hopper_path(machine: Path) -> None:
    status, said = gpu_check(machine, GPU="9.0")
    assert status == 0 and "not run: path sm90 (this build has none)" in said
    status, said = gpu_check(machine, GPU="9.0", SM90="1")
    assert status == 1 and "FAIL  path sm90: error" in said


def test_failures_are_named_and_the_rest_goes_on(machine: Path) -> None:
    failing = {"TESTS": "1 failed, 2 passed in 1s", "TESTS_STATUS": "1", "KERNELS_STATUS": "1", "BENCH_STATUS": "1"}
    status, said = gpu_check(machine, GPU="9.0", SANITIZER="race", **failing)
    assert status == 1 and "something failed" in said
    assert "FAIL  kernels (status 1): 12 tests" in said and "FAIL  table: " in said and "2 failed" in said
    assert "FAIL  racecheck: cuda_search_masks_and_large_k (status 9)" in said
    assert "FAIL  bench (status 1): 7 of 9 rows met." in said
    assert "reported" in (machine / "out" / "log.txt").read_text()


def test_tests_that_only_skip_did_not_run(machine: Path) -> None:
    status, said = gpu_check(machine, GPU="9.0", TESTS="4 skipped in 0.1s", TESTS_STATUS="5")
    assert status == 0 and "not run: table (no test passed or failed: 8 skipped)" in said


def test_time_runs_out(machine: Path) -> None:
    """With a total of no more than the bench's own part every step gets a second, and says so."""
    status, said = gpu_check(machine, GPU="9.0", SLOW="1", SANITIZER="slow", VECBANK_GPU_SECONDS="40")
    assert status == 1 and "FAIL  table: not finished in 1 s" in said
    assert said.count("(not in time)") == 4 and "ok    bench" in said


def test_without_pybind11_the_kernels_own_tests_still_run(machine: Path) -> None:
    status, said = gpu_check(machine, GPU="9.0", NO_TORCH="1")
    assert status == 1 and "FAIL  build" in said and "ok    kernels_only: built vecbank_cuda_tests" in said
    assert "ok    kernels: 12 tests" in said and "ok    memcheck" in said
    assert "not run: bench (no ops)" in said and "table" not in said
    status, said = gpu_check(machine, GPU="9.0", NO_NINJA="1")
    assert status == 1 and "nothing else can run" in said and "kernels:" not in said


def test_wheels(machine: Path) -> None:
    folder = machine / "wheels"
    folder.mkdir()
    for name in ("torch-2.11-x.whl", "broken-1-x.whl", "pytest-1-x.whl"):
        (folder / name).touch()
    status, said = gpu_check(machine, str(folder), GPU="9.0")
    assert status == 0 and "note: broken-1-x.whl could not be installed" in said and "torch-2.11" not in said


@pytest.mark.parametrize("setting, status, said", [("fine", 0, "ok    memcheck"), ("race", 1, "FAIL  racecheck")])
def test_sanitize_alone(machine: Path, setting: str, status: int, said: str) -> None:
    script = str(ROOT / "scripts" / "cuda_sanitize.sh")
    command = ["bash", script, str(machine / "bin" / "kernels"), "20"]
    settings = environment(machine, SANITIZER=setting)
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == status and said in done.stdout
    (machine / "bin" / "compute-sanitizer").unlink()
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0 and "no compute-sanitizer" in done.stdout


def test_each_cuda_folder_says_once_what_has_run() -> None:
    """The README of a folder is the one place that says so; sources do not repeat it, and docs/cuda.md agrees."""
    cuda = ROOT / "csrc" / "cuda"
    readmes = sorted(cuda.rglob("README.md"))
    folders = {path.parent.name for path in cuda.rglob("*.cu")}
    assert [path.parent.name for path in readmes] == sorted(folders) == ["cuda", "library", "tensor_cores"]
    said = [line for path in readmes for line in path.read_text().splitlines() if line.startswith("**What has run:**")]
    assert len(said) == len(readmes) and all("no kernel of this folder has run on a GPU" in line for line in said)
    sources = [path for path in cuda.rglob("*") if path.suffix in (".cu", ".cuh", ".h")]
    assert sources and not [p.name for p in sources if re.search(r"(?i)never (been )?run|has run\b", p.read_text())]
    table = (ROOT / "docs" / "cuda.md").read_text().split("| on a GPU |\n|---|---|---|---|\n")[1].split("\n\n")[0]
    assert table.count("| never |") == len(table.splitlines()) > 0
