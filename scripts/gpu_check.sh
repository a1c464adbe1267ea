#!/usr/bin/env bash
# Everything that needs a GPU, in one command, within 9 minutes; leaves at most eight files in one folder: summary.txt,
# log.txt, bench.json, bench.md and the bench's plots. For a bare machine with nvcc >= 12.8, torch >= 2.11 with CUDA,
# cmake, ninja, pybind11 and pytest; no network. What is missing may lie as wheels in a folder given to it (among them the
# bench's peers and matplotlib, which are optional).
# Usage: [PYTHON=python3.12] scripts/gpu_check.sh [OUT_FOLDER] [FOLDER_OF_WHEELS]     Has never run on a GPU.
#
# Where the time goes, for 16 cores and one architecture (build: from compile times seen on 2 cores; the rest: guesses):
#   build 60 s (sort.cu alone 30) · kernels' own tests 20 · table on cuda, in shards 60 · sanitizers beside the CPU's
#   AVX-512 table 60 · the other paths' tests 60 · bench: what is left, about 270, and never less than BENCH_S.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=$(mkdir -p "${1:-build/gpu_check}" && cd "${1:-build/gpu_check}" && pwd)
wheels=${2:-}
build=${VECBANK_GPU_BUILD:-build/gpu}
readonly TOTAL_S=${VECBANK_GPU_SECONDS:-540} BENCH_S=150 SHARDS=${VECBANK_GPU_SHARDS:-6}
summary=$out/summary.txt log=$out/log.txt
unset VECBANK_CUDA_PATH VECBANK_CUDA_PROJECT # the table is for what a user gets
failed=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
rm -f "$out"/bench*
: >"$summary"
: >"$log"

say() { echo "[$SECONDS s] $*" | tee -a "$summary"; }
fail() {
  say "FAIL  $*"
  failed=1
}
bound() { # seconds wanted: fewer where the bench would be left with less than its own
  local left=$((TOTAL_S - SECONDS - BENCH_S))
  echo $((left < 1 ? 1 : left < $1 ? left : $1))
}
step() { # name, most seconds, command...: its output goes to the log, its last line to the summary
  local name=$1 limit rc
  limit=$(bound "$2")
  shift 2
  echo "==== $name: $*" >>"$log"
  timeout --kill-after=5 "$limit" "$@" >"$scratch/step" 2>&1
  rc=$?
  cat "$scratch/step" >>"$log"
  if ((rc == 0)); then
    say "ok    $name: $(tail -n 1 "$scratch/step")"
  elif ((rc == 124 || rc == 137)); then
    fail "$name: not finished in $limit s"
  else
    fail "$name (status $rc): $(tail -n 1 "$scratch/step")"
  fi
  return "$rc"
}
pytests() { # name, most seconds, pytest arguments...: in SHARDS processes; one line with what passed, failed, skipped
  local name=$1 limit shard worst=0 late=0 rc jobs=()
  limit=$(bound "$2")
  shift 2
  for ((shard = 0; shard < SHARDS; ++shard)); do
    OMP_NUM_THREADS=2 VECBANK_TEST_SHARD=$shard/$SHARDS timeout --kill-after=5 "$limit" \
      "$python" -m pytest -q -p no:cacheprovider "$@" >"$scratch/$name.$shard" 2>&1 &
    jobs+=($!)
  done
  for shard in "${!jobs[@]}"; do
    wait "${jobs[$shard]}"
    rc=$?
    { echo "==== $name, shard $shard (status $rc)"; cat "$scratch/$name.$shard"; } >>"$log"
    case $rc in
      0 | 5) ;; # 5: this shard held none
      124 | 137) late=1 ;;
      *) worst=$rc ;;
    esac
  done
  local counts
  counts=$(cat "$scratch/$name".* | grep -oE '[0-9]+ (passed|failed|errors?|skipped)' |
    awk '{n[$2] += $1} END {for (k in n) printf "%d %s, ", n[k], k}')
  counts=${counts%, }
  grep -h '^vecbank: .* skipped' "$scratch/$name".* | sort | uniq -c | sed 's/^ *\([0-9]*\) /        in \1 shards: /' >>"$summary"
  if ((worst != 0)); then
    fail "$name: ${counts:-nothing ran} (status $worst)"
  elif ((late)); then
    fail "$name: not finished in $limit s; of the shards that were: ${counts:-none}"
  elif [[ $counts != *passed* ]]; then
    say "not run: $name (no test passed or failed: ${counts:-none collected})"
  else
    say "ok    $name: $counts"
  fi
}

# ---- What is there --------------------------------------------------------------------------------------------------
python=${PYTHON:-}
if [[ -z $python ]]; then # the first that has torch
  for python in python3 python3.13 python3.12 python3.11 python3.10; do
    "$python" -c 'import torch' 2>/dev/null && break
  done
fi
if [[ -n $wheels ]]; then
  for wheel in "$wheels"/*.whl; do
    [[ $(basename "$wheel") == torch-* ]] && continue
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --upgrade \
      --target "$scratch/wheels" "$wheel" >>"$log" 2>&1 || say "note: $(basename "$wheel") could not be installed"
  done
  export PYTHONPATH=$scratch/wheels${PYTHONPATH:+:$PYTHONPATH} PATH=$scratch/wheels/bin:$PATH
fi
if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>>"$log"; then
  say "NOT RUN: $python has no torch that sees a GPU"
  exit 2
fi
capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
[[ $capability == 9.0 ]] && architecture=9.0a || architecture=$capability
export VECBANK_CUDA_ARCHS=${VECBANK_CUDA_ARCHS:-$architecture} # only this GPU's: the rest is cuda-check's job
export CUDACXX=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
say "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1 || echo 'no nvidia-smi'); kernels for $VECBANK_CUDA_ARCHS; commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"

# ---- Build: one tree for the ops and the kernels' own tests, so that every .cu is compiled once ---------------------
# shellcheck disable=SC2317  # called by the bash of a step
build_all() { # ON or OFF: with torch's ops
  cmake -S . -B "$build" -G Ninja -DVECBANK_TORCH="$1" -DVECBANK_INPLACE=ON -DVECBANK_CUDA=ON \
    -DPython_EXECUTABLE="$(command -v "$python")" || return
  local targets=(vecbank_cuda_tests)
  [[ $1 == ON ]] && targets+=(_C _C_cuda)
  ninja -C "$build" "${targets[@]}" || return
  echo "built ${targets[*]}"
}
export -f build_all
export python build
ops=1
if ! step build 200 bash -c 'build_all ON'; then
  ops=0
  # shellcheck disable=SC2016  # that bash knows $build
  step kernels_only 100 bash -c 'rm -rf "$build" && build_all OFF' || { say "nothing else can run"; exit 1; }
fi
export PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH}

# ---- Tests ----------------------------------------------------------------------------------------------------------
step kernels 60 "$build/vecbank_cuda_tests"
grep -q 'worst error' "$scratch/step" || say "      the accumulation test did not report"
grep 'worst error' "$scratch/step" | while read -r line; do say "      $line"; done

table=(tests/test_cuda.py tests/test_exact.py tests/test_project.py tests/test_gather.py tests/test_autograd.py
  tests/test_invariance.py tests/test_residual.py tests/test_train.py tests/test_bank.py tests/test_errors.py)
if ((ops)); then
  pytests table 120 "${table[@]}" -k cuda
fi

cpu_table() { # beside the sanitizers, which leave the processor alone
  local isas
  isas=$("$python" -c 'import vecbank; print(*vecbank._C.available_isas())' 2>>"$log")
  if [[ " $isas " == *" avx512 "* ]]; then
    pytests avx512 60 tests/test_exact.py tests/test_project.py -k avx512
  else
    say "not run: avx512 (this processor has: ${isas:-unknown})"
  fi
}
scripts/cuda_sanitize.sh "$build/vecbank_cuda_tests" "$(bound 60)" "$scratch/sanitizers" >"$scratch/sanitized" 2>&1 &
sanitizing=$!
((ops)) && cpu_table
wait "$sanitizing" || failed=1
{ echo "==== sanitizers"; cat "$scratch/sanitizers"; } >>"$log" 2>/dev/null
while read -r line; do say "$line"; done <"$scratch/sanitized"

# The paths that are not the default: the exact table again, where this GPU and this build have them.
probe='
import sys, torch, vecbank
x = torch.randn(256, 64, device="cuda").bfloat16()
try:
    vecbank.nearest(x, x)
    torch.cuda.synchronize()
except RuntimeError as error:
    print(error)
    absent = "VECBANK_CUDA_PATH must be", "left out of this build"
    sys.exit(3 if any(text in str(error) for text in absent) else 1)'
for path in mma16 sm90; do
  ((ops)) || break
  if [[ $path == sm90 && $capability != 9.0 ]]; then
    say "not run: path sm90 (compute capability $capability)"
    continue
  fi
  VECBANK_CUDA_PATH=$path timeout 60 "$python" -c "$probe" >"$scratch/probe" 2>&1
  case $? in
    0) VECBANK_CUDA_PATH=$path pytests "path_$path" 60 tests/test_cuda.py tests/test_exact.py -k cuda ;;
    3) say "not run: path $path (this build has none)" ;;
    *) fail "path $path: $(tail -n 1 "$scratch/probe")" ;;
  esac
done

# ---- Bench: every row of its table, the most wanted first, until the time is over -------------------------------------
left=$((TOTAL_S - SECONDS - 20))
if ((!ops)); then
  say "not run: bench (no ops)"
else
  echo "==== bench" >>"$log"
  TQDM_DISABLE=1 timeout --kill-after=5 "$left" "$python" bench/run.py --device cuda --out "$out/bench.json" \
    --seconds $((left > 60 ? left - 45 : 15)) >"$scratch/bench" 2>&1
  rc=$?
  cat "$scratch/bench" >>"$log"
  ((rc == 0)) || timeout 10 "$python" bench/report.py "$out/bench.json" >>"$log" 2>&1 # of the rows until then
  rows="$(grep -m1 'rows met' "$out/bench.md" 2>/dev/null | tr -d '*')"
  rows="${rows:-no table} $(grep -m1 'want of time' "$out/bench.md" 2>/dev/null | tr -d '*')"
  if ((rc == 0)); then say "ok    bench: $rows"; else fail "bench (status $rc): $rows $(tail -n 1 "$scratch/bench")"; fi
fi
say "$([[ $failed == 0 ]] && echo 'all that ran passed' || echo 'something failed'); $(find "$out" -type f | wc -l) files in the folder"
exit "$failed"
