#!/usr/bin/env bash
# Everything that needs a GPU, in one command, within 9 minutes: builds, runs the kernels' own tests, the GPU part of the
# test table, the compute sanitizers on a reduced table and a short bench; leaves at most eight files in one folder.
# For a bare machine with nvcc, torch >= 2.11 with CUDA, cmake, ninja, pybind11 and pytest; no network.
# Usage: scripts/gpu_check.sh [OUT_FOLDER] [FOLDER_OF_WHEELS]
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-build/gpu_check}" && cd "${1:-build/gpu_check}" && pwd)
wheels=${2:-}
python=${PYTHON:-python3}
started=$SECONDS
failed=0
summary="$out/summary.txt"
: >"$summary"

say() { echo "[$((SECONDS - started)) s] $*" | tee -a "$summary"; }
step() { # name, seconds it may take, command...: its output goes to NAME.log
  local name=$1 limit=$2 rc
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
  rc=$?
  if ((rc == 0)); then say "ok    $name: $(tail -n 1 "$out/$name.log")"; else
    say "FAIL  $name (status $rc): $(tail -n 1 "$out/$name.log")"
    failed=1
  fi
  return "$rc"
}

if [[ -n $wheels ]]; then
  "$python" -m pip install --quiet --no-index --find-links "$wheels" cmake ninja pybind11 pytest hypothesis numpy ||
    say "note: not every wheel could be installed"
  "$python" -m pip install --quiet --no-index --find-links "$wheels" nvidia-cutlass 2>/dev/null # the sm90 path's headers
fi
if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  say "NOT RUN: $python has no torch that sees a GPU"
  exit 2
fi
capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
[[ $capability == 9.0 ]] && capability=9.0a
export VECBANK_CUDA_ARCHS=${VECBANK_CUDA_ARCHS:-$capability} # only this GPU's: the rest is cuda-check's job
export CUDACXX=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
say "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1); kernels for $VECBANK_CUDA_ARCHS"

build() {
  set -e
  cmake -S . -B build/gpu -G Ninja -DVECBANK_TORCH=OFF -DVECBANK_BUILD_TESTS=ON -DPython_EXECUTABLE="$python"
  ninja -C build/gpu vecbank_cuda_tests
  "$python" setup.py --quiet build_ext --inplace
  echo "built"
}
export -f build
export python
step build 180 bash -c build || { say "nothing else can run"; exit 1; }
export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}"

step kernels 60 build/gpu/vecbank_cuda_tests
VECBANK_CUDA_PATH=simt step tests 120 "$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py
[[ $capability == 9.0a ]] &&
  VECBANK_CUDA_PATH=sm90 step tests_sm90 60 "$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py

# The sanitizers, on the torch-free tests: small, and nothing of torch's to wade through.
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
: >"$out/sanitizers.log"
for tool in memcheck racecheck initcheck synccheck; do
  if [[ -z $sanitizer ]]; then
    say "not run: $tool (no compute-sanitizer)"
    continue
  fi
  log=$(timeout --kill-after=5 60 "$sanitizer" --tool "$tool" --error-exitcode 9 build/gpu/vecbank_cuda_tests cuda_bad 2>&1)
  rc=$?
  printf '== %s\n%s\n' "$tool" "$log" >>"$out/sanitizers.log"
  if grep -qiE 'unable to attach|not supported|permission|insufficient' <<<"$log" || ((rc == 124)); then
    say "not run: $tool (it could not attach, or not in time)"
  elif ((rc != 0)); then
    say "FAIL  $tool"
    failed=1
  else
    say "ok    $tool"
  fi
done

if ((SECONDS - started < 420)); then
  step bench 100 "$python" bench/cuda_cases.py --out "$out/bench.json"
else
  say "not run: bench (too little time left)"
fi
say "$([[ $failed == 0 ]] && echo 'all that ran passed' || echo 'something failed')"
exit "$failed"
