"""Stand-ins for a machine with a GPU: nvidia-smi, Python, build tools, CUDA's tools and the kernels' programs."""

from __future__ import annotations

from pathlib import Path

# Each answers by what the environment says it should do; unknown commands fail, so that nothing is overlooked.
STAND_INS = {
    "python": """
        case "$*" in
          *"pip install"*) [[ $* != *broken* ]] ;;
          *find_spec*) [[ ${0##*/} != "${TORCHLESS:-}" ]] ;;
          *EXT_SUFFIX*) [[ -z ${OTHER_PYTHON:-} ]] ;;
          *"import torch, vecbank"*)
            [[ -n ${NO_VECBANK:-} ]] && echo "no module" && exit 1
            echo "torch 2.11 on Made-up GPU" ;;
          *"import torch; print"*) echo "torch 2.11 Made-up GPU" ;;
          *vecbank.nearest*)
            echo "error: left out of this build"
            [[ $VECBANK_CUDA_PATH != sm90 ]] || exit "${SM90:-3}" ;;
          *"-m pytest"*)
            [[ -n ${SLOW:-} && $* == *test_project* ]] && exec hang
            echo "vecbank: 1 tests skipped: one GPU only"
            [[ -n ${TESTS_STATUS:-} ]] && echo "FAILED tests/test_cuda.py::test_one - wrong"
            echo "${TESTS:-3 passed, 1 skipped in 0.1s}"; exit "${TESTS_STATUS:-0}" ;;
          *bench/run.py*)
            for last; do [[ ${previous:-} == --out ]] && out=$last; previous=$last; done
            if [[ -n ${ENDS_WITHIN:-} && $* != *--resume* ]]; then echo ' "running": "topk"' >"$out"; exit 1; fi
            echo '{}' >"$out"; touch "${out%.json}-cuda.png" "${out%.json}-memory.png" "${out%.json}-more.png"
            printf '%s\n' "**${ROWS:-7 of 9} rows met.**" '- **Not run, for want of time:** a row' \
              '| nearest | 2 ms | met |' >"${out%.json}.md"
            [[ -n ${SLOW:-} ]] && exec hang
            exit "${BENCH_STATUS:-0}" ;;
          *bench/report.py*) echo "reported" ;;
          *"-m vecbank info"*) echo "vecbank info: one GPU" ;;
          *) echo "python $*" >&2; exit 1 ;;
        esac""",
    "cmake": 'echo "cmake $*"; [[ -z ${NO_CMAKE:-} ]] && mkdir -p "$4/module"',
    "ninja": """
        for last; do [[ $last != "${NO_TARGET:-}" ]] || exit 1; done
        cp --no-clobber "$(dirname "$0")"/vecbank_cuda_t* "$2"; touch "$2/module/_C.so" """,
    "nvidia-smi": '[[ $* == *compute_cap* ]] && echo "${GPU:-9.0}" || echo "Made-up GPU, 1.0"',
    "nvcc": "true",
    "ncu": """
        [[ $* == *"--clock-control none"* ]] || exit 1
        [[ $* == *"${NO_KERNEL:-nothing}"* ]] && echo "==WARNING== No kernels were profiled." && exit 0
        echo "    Duration                usecond   12.3" """,
    "compute-sanitizer": """
        case "$2:${SANITIZER:-fine}" in
          *:unable) echo "Unable to attach"; exit 1 ;;
          racecheck:race) exit 9 ;;
          *:slow) hang ;;
          *) shift 4; "$@" ;;
        esac""",
    "vecbank_cuda_tests": """
        if [[ $1 == --list ]]; then
          printf '%s\n' cuda_project_close cuda_search_sm90_equals_cpu cuda_search_equals_cpu \
            tensor_core_accumulation cuda_residual_equals_cpu cuda_search_operands_equal_cpu \
            cuda_codebook_equals_cpu
          exit
        fi
        [[ -n ${NO_GPU:-} ]] && { echo "NOT RUN: no CUDA device"; exit 77; }
        [[ $1 == cuda_gradients ]] && { echo "0 tests, 0 checks, 0 failed"; exit 1; }
        [[ $1 == "${HANGS:-}" ]] && { hang & exec hang; }
        [[ $1 == "${CRASHES:-}" ]] && kill -SEGV $$
        [[ $1 == "${FAILS:-}" ]] && { echo "tests/cpp/cuda_cases.h:9: failed: same"; echo "1 tests, 1 failed"; exit 1; }
        [[ -n ${SLOW_TESTS:-} ]] && sleep 1
        [[ -n ${VECBANK_TESTS_WITHOUT_SM90:-} ]] && echo "sm90 is left out"
        [[ $1 == *accumulation* ]] && echo "     bf16 tensor cores: worst error 0.5 of 2^-22 (assumed: 1)"
        echo "1 tests, 12 checks, 0 failed" """,
    "vecbank_cuda_timer": """
        case "$*" in
          --list) printf '%s\n' nearest-a/sm90 topk-b/sm90 ;;
          "--dry-run --predictions bench/cuda_predictions.csv") echo "dry run: 2 cases" ;;
          "--case nearest-a/sm90"*)
            [[ -n ${TIMER_HANGS:-} ]] && exec hang
            [[ -n ${NO_TIMER:-} ]] && { echo "NOT RUN: no CUDA device"; exit 77; }
            echo "nearest-a/sm90  2.5 ms predicted 2.2: x 1.14" ;;
          "--case topk"*)
            [[ -n ${NO_TIMER:-} ]] && { echo "NOT RUN: no CUDA device"; exit 77; }
            echo "topk-b/sm90  3.0 ms"; echo '{}' >>"${!#}" ;;
          *) exit 1 ;;
        esac""",
    "hang": 'echo $$ >>"${HANGING:-/dev/null}"; exec sleep 60',
}  # fmt: skip


def fill(folder: Path) -> None:
    """Writes each stand-in as a program of its name."""
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
