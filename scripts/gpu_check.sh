#!/usr/bin/env bash
# What needs a GPU, in phases that each fit into a few minutes: for a machine with a GPU, torch >= 2.11 with CUDA, and
# no network. Every phase writes as it goes, so what ends it early costs only the rest. Has run on an NVIDIA H200.
#
#   scripts/gpu_check.sh PHASE [OUT] [--bundle DIR] [--dry-run]
#     first    240 s  accumulation and one wgmma, every test of the kernels in a process of its own, ms of every kernel
#     tests    240 s  pytest on the default path, then on each path; memcheck and racecheck meanwhile
#     bench    300 s  the rows of the bench, the most wanted first; torch.compile only in what time is left
#     profile  150 s  Nsight Compute on four kernels
#     all      930 s  one after the other, whatever fails
#   Where a machine is lent for 15 minutes, or a command may take 10 at most, `all` does not fit: run `first`, `tests`
#   and `bench` as separate commands, and `profile` (at most 150 s) if there is time left.
#   OUT (build/gpu_check): summary.txt, log.txt, timer.jsonl, profile.txt, bench.json, bench.md, bench_compiled.json,
#             bench_compiled.md, or at most two plots in place of these two
#   --bundle  the folder that `make gpu-bundle` filled: nothing of CUDA is compiled. Without it, a phase builds first,
#             and the build counts within the phase's seconds. OUT and DIR are found from the folder that you call it in.
#   --dry-run stand-ins for GPU, Python and tools; programs of a bundle are the real ones, and say that nothing can run
# Settings: PYTHON, VECBANK_GPU_BUILD (build/gpu), VECBANK_GPU_SECONDS (for every phase), VECBANK_GPU_SHARDS (6),
# VECBANK_GPU_TEST_SECONDS (20, for one test).
# Exit status: 0 all that ran passed, 1 something failed, 2 nothing could run (or an argument or setting is wrong).
# Ctrl-C or TERM ends the phase, and `all` with it, within about 3 s: what runs is killed, the summary is written, and
# the exit status is 130.
set -uo pipefail
from=$PWD
cd "$(dirname "$0")/.." || exit 1

phase="" out="" bundle="" dry=0
while (($#)); do
  case $1 in
    --bundle)
      if [[ -z ${2:-} || $2 == -* ]]; then
        echo "gpu_check: --bundle: expected a folder after it, got: ${2:-nothing}" >&2 && exit 2
      fi
      bundle=$2
      shift
      ;;
    --dry-run) dry=1 ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' scripts/gpu_check.sh && exit 0 ;;
    -*) echo "gpu_check: $1: expected --bundle DIR or --dry-run" >&2 && exit 2 ;;
    *)
      if [[ -z $phase ]]; then
        phase=$1
      elif [[ -z $out ]]; then
        out=$1
      else
        echo "gpu_check: $1: expected one PHASE and one OUT" >&2 && exit 2
      fi
      ;;
  esac
  shift
done
((dry)) && phase=${phase:-all}
if [[ ! $phase =~ ^(first|tests|bench|profile|all)$ ]]; then
  echo "gpu_check: PHASE must be first, tests, bench, profile or all, got: ${phase:-nothing}" >&2
  exit 2
fi
[[ -z $bundle || $bundle == /* ]] || bundle=$from/$bundle
[[ -z $out || $out == /* ]] || out=$from/$out
if [[ -n $bundle ]]; then
  for needed in vecbank_cuda_tests vecbank_cuda_timer modules/_C_cuda.so SOURCES; do
    [[ -e $bundle/$needed ]] && continue
    echo "gpu_check: --bundle: $bundle holds no $needed (make gpu-bundle fills such a folder)" >&2
    exit 2
  done
  bundle=$(cd "$bundle" && pwd)
  chmod +x "$bundle"/vecbank_cuda_t* # a copy may have lost it
fi
for setting in VECBANK_GPU_SECONDS VECBANK_GPU_SHARDS VECBANK_GPU_TEST_SECONDS; do
  [[ -z ${!setting:-} || ${!setting} =~ ^[1-9][0-9]{0,5}$ ]] && continue
  echo "gpu_check: $setting: expected a whole number from 1 to 999999, got: ${!setting}" >&2
  exit 2
done
given=${out:-build/gpu_check}
if ! out=$(mkdir -p "$given" 2>/dev/null && cd "$given" && pwd); then
  echo "gpu_check: OUT: expected a folder, or a path where a folder can be made, got: $given" >&2
  exit 2
fi
if ! { echo >"$out/.written" && rm "$out/.written"; } 2>/dev/null; then # a full disk fails here too
  echo "gpu_check: OUT: nothing can be written into $out" >&2
  exit 2
fi
if [[ $phase == all ]]; then
  failed=0 passed=0 stopped=0
  # A phase runs in the background, because `wait` ends at a signal; there it does not hear Ctrl-C, but it hears TERM.
  trap 'stopped=1; kill $(jobs -pr) 2>/dev/null' TERM INT HUP
  for phase in first tests bench profile; do
    again=("$phase" "$out")
    [[ -n $bundle ]] && again+=(--bundle "$bundle")
    ((dry)) && again+=(--dry-run)
    ((stopped)) && break
    bash scripts/gpu_check.sh "${again[@]}" &
    wait $!
    status=$?
    while kill -0 $! 2>/dev/null; do # a signal ended the wait: the phase is still to write its summary
      wait $!
      status=$?
    done
    case $status in
      0) passed=1 ;;
      2) ;;
      130) stopped=1 ;;
      *) failed=1 ;;
    esac
    ((stopped)) && break
  done
  if ((stopped)); then
    echo "all: stopped from outside in phase $phase" | tee -a "$out/summary.txt"
    exit 130
  fi
  exit $((failed ? 1 : passed ? 0 : 2))
fi

declare -A seconds=([first]=240 [tests]=240 [bench]=300 [profile]=150)
readonly PHASE_S=${VECBANK_GPU_SECONDS:-${seconds[$phase]}} SHARDS=${VECBANK_GPU_SHARDS:-6}
readonly TEST_S=${VECBANK_GPU_TEST_SECONDS:-20}
build=${VECBANK_GPU_BUILD:-build/gpu}
summary=$out/summary.txt log=$out/log.txt
unset VECBANK_CUDA_PATH VECBANK_CUDA_PROJECT # the tests are for what a user gets
scratch=$(mktemp -d)
: >"$scratch/said"
# shellcheck source=scripts/gpu_phase.sh
. scripts/gpu_phase.sh # say, fail, pass; run, why, step; and what happens at the end and at a signal

# ---- What is there -------------------------------------------------------------------------------------------------
if ((dry)); then
  bash scripts/gpu_stand_ins.sh "$scratch/bin" && export PATH=$scratch/bin:$PATH PYTHON=$scratch/bin/python
  build=$scratch/build
fi
python=${PYTHON:-}
if [[ -z $python ]]; then # the first that has torch
  for python in python3 python3.13 python3.12 python3.11 python3.10; do
    "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null && break
  done
fi
ask_gpu name,driver_version
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
title="==== $phase  $(date -u '+%Y-%m-%d %H:%M:%S UTC')  ${answer:-no answer from nvidia-smi}  commit $commit"
say "$title$( ((dry)) && echo '  dry run: stand-ins')"
echo "$title" >>"$log"

# What has not been built is built: everything without a bundle; with one, the module for the CPU where none was carried
# for this Python. `extension` ends it in the background while kernels run.
# shellcheck disable=SC2329  # called by the bash of a step
build_all() { # target...: with torch's ops where _C is among them
  local torch=OFF cuda=ON
  [[ " $* " == *" _C "* ]] && torch=ON
  [[ " $* " == *cuda* ]] || cuda=OFF
  CUDACXX=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)} cmake -S . -B "$build" -G Ninja \
    -DVECBANK_TORCH="$torch" -DVECBANK_CUDA="$cuda" -DPython_EXECUTABLE="$(command -v "$python")" &&
    ninja -C "$build" "$@" && echo "built $*"
}
export -f build_all
export python build
architecture() { # of the first GPU, as VECBANK_CUDA_ARCHS has it; all where it cannot be said
  local capability
  ask_gpu compute_cap
  capability=$answer
  [[ $capability == 9.0 ]] && capability=9.0a
  [[ $capability =~ ^[0-9]+\.[0-9]a?$ ]] && export VECBANK_CUDA_ARCHS=${VECBANK_CUDA_ARCHS:-$capability}
}
programs() { # the kernels' tests and the timer
  if [[ -n $bundle ]]; then
    [[ $(cat "$bundle/SOURCES" 2>/dev/null) == "$(bash scripts/cuda_sources.sh)" ]] ||
      fail "bundle: built from other sources than this tree's; make gpu-bundle builds it again"
    tests=$bundle/vecbank_cuda_tests timer=$bundle/vecbank_cuda_timer
    return
  fi
  architecture
  # shellcheck disable=SC2016  # that bash knows $build
  step build "$PHASE_S" bash -c 'build_all vecbank_cuda_tests vecbank_cuda_timer' || return
  tests=$build/vecbank_cuda_tests timer=$build/vecbank_cuda_timer
}
wheels() { # of the bundle, into a folder: all at once, and one by one where that fails
  local wheel install=("$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile
    --upgrade --target "$1")
  [[ -n $(compgen -G "$bundle/wheels/*.whl") ]] || return
  run "wheels" 60 "${install[@]}" "$bundle"/wheels/*.whl && return
  for wheel in "$bundle"/wheels/*.whl; do
    run "wheel $(basename "$wheel")" 20 "${install[@]}" "$wheel" ||
      say "note: $(basename "$wheel") could not be installed"
  done
}
packages() { # a folder with vecbank, its built modules and (bench) the carried wheels, first on PYTHONPATH
  local site=$scratch/site modules=()
  mkdir -p "$site" && cp -r python/vecbank "$site/" && rm -f "$site"/vecbank/_C*.so
  if [[ -n $bundle ]]; then
    [[ $phase != bench ]] || wheels "$site"
    modules=("$bundle"/modules/_C*.so)
  fi
  local fits='import sys, sysconfig, pathlib
sys.exit(not pathlib.Path(sys.argv[1], "modules", "_C" + sysconfig.get_config_var("EXT_SUFFIX")).exists())'
  if [[ ! -e ${modules[0]:-} ]] || ! "$python" -c "$fits" "$bundle" >/dev/null 2>&1; then
    architecture
    if [[ -n $bundle ]]; then
      # shellcheck disable=SC2016  # that bash knows $build
      step _C "$PHASE_S" bash -c 'build=${build}_cpu; build_all _C' || return
      modules+=("${build}_cpu"/module/_C*.so)
    else
      # shellcheck disable=SC2016  # that bash knows $build
      step _C "$PHASE_S" bash -c 'build_all _C _C_cuda' || return
      modules=("$build"/module/_C*.so)
    fi
  fi
  cp "${modules[@]}" "$site/vecbank/" && export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} TQDM_DISABLE=1
  local usable
  step vecbank 120 "$python" -c '
import torch, vecbank
from vecbank import _cuda
assert torch.cuda.is_available(), "torch sees no GPU"
assert _cuda.module is not None, _cuda.reason
vecbank.nearest(torch.ones(4, 8, device="cuda"), torch.ones(4, 8, device="cuda"))
print("torch", torch.__version__, "on", torch.cuda.get_device_name() + ";", _cuda.module.tensor_cores(0))'
  usable=$?
  if [[ $phase == tests ]]; then # once, for the log; also where the step failed, as it may say why
    run "python -m vecbank info" 30 "$python" -m vecbank info || say "note: python -m vecbank info: $(why $?)"
  fi
  return "$usable"
}

# ---- first ---------------------------------------------------------------------------------------------------------
in_order() { # the names of tests: what decides most comes first
  awk '{
    rank = 9
    if (/project|exact/) rank = 8
    if (/code|pass_back|gradients|loss/) rank = 7
    if (/residual|product/) rank = 6
    if (/search|few|refine/) rank = 5
    if (/tensor_cores/) rank = 4
    if (/operands/) rank = 3
    if (/sm90/) rank = 2
    if (/accumulation|keep_host|self_check/) rank = 1
    print rank, NR, $0
  }' | sort -n -k1,1 -k2,2 | cut -d' ' -f3-
}
kernel_tests() {
  local name rc good=0 absent=0 late=0
  run list 20 "$tests" --list || { fail "kernels: $(why $?)"; return; }
  in_order <"$scratch/run" >"$scratch/names"
  while read -r name; do
    if (($(left) < PHASE_S / 3)); then # the rest is the timer's
      late=$((late + 1))
      continue
    fi
    run "$name" "$TEST_S" "$tests" "$name"
    rc=$?
    case $rc in
      0) good=$((good + 1)) ;;
      77) absent=$((absent + 1)) ;;
      *)
        fail "$name: $(why $rc)"
        grep ': failed: ' "$scratch/run" | head -n 2 | while read -r line; do say "      $line"; done
        if [[ $name == *sm90* || $name == *wgmma* ]] && [[ -z ${VECBANK_TESTS_WITHOUT_SM90:-} ]]; then
          export VECBANK_TESTS_WITHOUT_SM90=1 # one path at fault must not cost the tests of every path
          say "note: from here on, tests of every path leave sm90 out"
        fi
        ;;
    esac
    grep -E 'worst error|self-check took' "$scratch/run" | while read -r line; do say "      $line"; done
  done <"$scratch/names"
  if ((absent)); then say "not run: $absent tests of the kernels (no CUDA device)"; fi
  if ((late)); then fail "kernels: $late tests were not reached in time"; fi
  if ((good)); then
    pass "kernels: $good of $(wc -l <"$scratch/names") tests passed"
  else
    say "none  kernels: 0 of $(wc -l <"$scratch/names") tests passed"
  fi
}
timings() {
  local name rc cases reached=0 measured=0 absent=0
  run cases 20 "$timer" --list || { fail "timer: $(why $?)"; return; }
  cp "$scratch/run" "$scratch/names"
  cases=$(wc -l <"$scratch/names")
  if ((dry)); then step "timer's plans" 60 "$timer" --dry-run --predictions bench/cuda_predictions.csv; fi
  while read -r name; do
    if (($(left) < 2)); then break; fi
    run "timer $name" "$TEST_S" "$timer" --case "$name" --predictions bench/cuda_predictions.csv \
      --json "$out/timer.jsonl"
    rc=$?
    reached=$((reached + 1))
    case $rc in
      0)
        say "      $(head -n 1 "$scratch/run" | tr -s ' ')"
        measured=$((measured + 1))
        ;;
      77) absent=$((absent + 1)) ;;
      *) fail "timer $name: $(why $rc)" ;;
    esac
  done <"$scratch/names"
  if ((absent)); then say "not run: $absent cases of the timer (no CUDA device)"; fi
  if ((reached < cases)); then fail "timer: $((cases - reached)) cases were not reached in time"; fi
  if ((measured)); then
    pass "timer: $measured of $cases cases measured; every kernel's ms: log.txt, timer.jsonl"
  else
    say "none  timer: 0 of $cases cases measured"
  fi
}
phase_first() {
  rm -f "$out/timer.jsonl"
  "$python" -c 'import torch; print("torch", torch.__version__, end=" ")
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "sees no GPU")' >"$scratch/torch" 2>&1 &
  torch=$!
  run nvidia-smi 10 nvidia-smi || say "note: nvidia-smi does not answer"
  programs || return
  kernel_tests
  if ((passed == 0 && !dry)); then
    say "NOT RUN: no test of the kernels passed, so nothing is measured"
    return
  fi
  timings
  if kill -0 "$torch" 2>/dev/null; then kill "$torch"; fi
  say "note: $(tail -n 1 "$scratch/torch" | cut -c1-110)"
}

# ---- tests ---------------------------------------------------------------------------------------------------------
pytests() { # name, most seconds, pytest arguments...: in SHARDS processes; one line with what passed, failed, skipped
  local name=$1 limit shard worst=0 late=0 rc counts jobs=()
  limit=$(least "$2" "$(left)")
  shift 2
  ((limit > 3)) || { fail "$name: no time was left"; return; }
  for ((shard = 0; shard < SHARDS; ++shard)); do
    OMP_NUM_THREADS=2 VECBANK_TEST_SHARD=$shard/$SHARDS timeout --kill-after=3 "$limit" \
      "$python" -m pytest -q -p no:cacheprovider -o faulthandler_timeout=30 "$@" >"$scratch/$name.$shard" 2>&1 </dev/null &
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
  counts=$(cat "$scratch/$name".* | grep -oE '[0-9]+ (passed|failed|errors?|skipped)' |
    awk '{n[$2] += $1} END {for (k in n) printf "%d %s, ", n[k], k}')
  counts=${counts%, }
  if ((worst != 0)); then
    fail "$name: ${counts:-nothing ran} (status $worst)"
    cat "$scratch/$name".* | grep -E '^(FAILED|ERROR)' | cut -c1-150 | head -n 5 |
      while read -r line; do say "      $line"; done
  elif ((late)); then
    fail "$name: not finished in $limit s; of the shards that were: ${counts:-none}"
    grep -hE 'File ".*tests/test_.* in test_' "$scratch/$name".* | sed 's/^.*tests\///' | head -n 3 |
      while read -r line; do say "      longer than 30 s: $line"; done
  elif [[ $counts != *passed* ]]; then
    say "not run: $name (no test passed or failed: ${counts:-none collected})"
  else
    pass "$name: $counts"
  fi
}
probe='
import sys, torch, vecbank
x = torch.randn(65536, 64, device="cuda").bfloat16()
try:
    vecbank.nearest(x, x[:8192])
    vecbank.topk(x[:1024], x, 10)
    torch.cuda.synchronize()
except RuntimeError as error:
    print(error)
    absent = "VECBANK_CUDA_PATH must be", "left out of this build", "compute capability"
    sys.exit(3 if any(text in str(error) for text in absent) else 1)'
phase_tests() {
  local path sanitizing="" table=(tests/test_cuda.py tests/test_exact.py tests/test_project.py tests/test_gather.py
    tests/test_autograd.py tests/test_invariance.py tests/test_residual.py tests/test_train.py tests/test_bank.py
    tests/test_errors.py)
  programs || return
  bash scripts/cuda_sanitize.sh "$tests" "$(least 150 "$(left)")" "$scratch/sanitizers" >"$scratch/sanitized" 2>&1 &
  sanitizing=$!
  if packages; then
    pytests table 110 "${table[@]}" -k cuda
    for path in simt mma16 sm90; do
      if [[ $path == sm90 ]] && (($(left) < 60)); then # last: on 9.0 it is the default, which the table has tested
        say "not run: path sm90 (too little time left; the default path of an H100 or H200 is this one)"
        continue
      fi
      VECBANK_CUDA_PATH=$path run "path $path" 60 "$python" -c "$probe"
      case $? in
        0) VECBANK_CUDA_PATH=$path pytests "path_$path" 60 tests/test_cuda.py tests/test_exact.py -k cuda ;;
        3) say "not run: path $path ($(tail -n 1 "$scratch/run" | cut -c1-90))" ;;
        *) fail "path $path: $(why $?)" ;;
      esac
    done
  fi
  wait "$sanitizing"
  { echo "==== sanitizers"; cat "$scratch/sanitizers"; } >>"$log" 2>/dev/null
  while read -r line; do
    case $line in
      FAIL*) fail "${line#FAIL  }" ;;
      ok*) pass "${line#ok    }" ;;
      *) say "$line" ;;
    esac
  done <"$scratch/sanitized"
}

# ---- bench ---------------------------------------------------------------------------------------------------------
bench_rows() { # JSON, seconds, more arguments...
  local json=$1 limit=$2 rc rows
  shift 2
  run bench "$limit" "$python" bench/run.py --device cuda --out "$json" \
    --seconds $((limit > 80 ? limit - 40 : limit / 2)) "$@"
  rc=$?
  while ((rc != 0 && $(left) > 45)) && grep -q '"running":' "$json" 2>/dev/null; do # it ended within a row
    say "note: bench: $(grep -m1 '"running":' "$json" | cut -c1-100) ended its process; another goes on after it"
    run bench "$(left)" "$python" bench/run.py --device cuda --out "$json" --resume --seconds $(($(left) - 40)) "$@"
    rc=$?
  done
  if ((rc != 0)); then # a report of the rows until then
    limited "$scratch/report" 20 "$python" bench/report.py "$json"
    cat "$scratch/report" >>"$log"
  fi
  rows="$(grep -m1 'rows met' "${json%.json}.md" 2>/dev/null | tr -d '*')"
  rows="${rows:-no table} $(grep -m1 'want of time' "${json%.json}.md" 2>/dev/null | tr -d '*')"
  if ((rc != 0)); then
    fail "bench: $rows ($(why $rc))"
  elif [[ $rows == *' of 0 rows'* ]]; then
    say "none  bench: $rows"
  else
    pass "bench: $rows"
  fi
  grep -E '^\|.*(met|missed)' "${json%.json}.md" 2>/dev/null | cut -c1-160 | head -n 24 |
    while read -r line; do say "$line"; done
}
phase_bench() {
  local path rc skipped=()
  rm -f "$out"/bench*
  packages || return
  for path in mma16 sm90; do # one that hangs or breaks the process must not cost the rows: it is left out
    VECBANK_CUDA_PATH=$path run "path $path" 30 "$python" -c "$probe"
    rc=$?
    case $rc in
      0 | 3) ;; # 3: this build has none of it; each row says so
      *) fail "path $path: $(why $rc); the rows leave it out" && skipped+=("vecbank $path") ;;
    esac
  done
  bench_rows "$out/bench.json" "$(left)" --skip torch.compile "${skipped[@]}"
  (($(left) > 90)) && bench_rows "$out/bench_compiled.json" "$(left)" ${skipped[0]:+--skip "${skipped[@]}"}
  find "$out" -name 'bench*.png' | sort | tail -n +3 | xargs -r rm -f # eight files at most
  [[ -e $out/bench_compiled.json ]] && rm -f "$out"/bench*.png
}

# ---- profile -------------------------------------------------------------------------------------------------------
phase_profile() {
  local kernel name shown="Duration|Compute \\(SM\\) Throughput|Memory Throughput|L2 Cache Throughput"
  shown+="|Registers Per Thread|Achieved Occupancy|Executed Ipc Active"
  programs || return
  : >"$out/profile.txt"
  PATH=$PATH:/usr/local/cuda/bin
  command -v ncu >/dev/null || { say "not run: profile (no ncu)"; return; }
  while read -r kernel name; do
    run "ncu $kernel" 45 ncu --clock-control none --set full --kernel-name "regex:^$kernel" --launch-skip 1 \
      --launch-count 1 "$timer" --case "$name" --seconds 0.1
    local rc=$?
    { echo "==== $kernel in $name (status $rc)"; cat "$scratch/run"; } >>"$out/profile.txt"
    if ((rc != 0)); then
      fail "ncu $kernel: $(why $rc)"
    elif grep -q 'No kernels were profiled' "$scratch/run"; then
      fail "ncu $kernel: $name starts no kernel of that name"
    else
      pass "ncu $kernel in $name"
      grep -E "^ +($shown) " "$scratch/run" | tr -s ' ' | sed 's/^ *//' | paste -sd';' | cut -c1-200 | grep . |
        while read -r line; do say "      $line"; done
    fi
  done <<'KERNELS'
sm90_kernel nearest-1048576x8192-d64-bf16/sm90/packed
mma16_kernel nearest-1048576x8192-d64-bf16/mma16/packed
screen_kernel nearest-65536x8192-d64-f32/simt/packed
refine nearest-1048576x8192-d64-bf16/mma16/packed
KERNELS
}

case $phase in
  first) phase_first ;;
  tests) phase_tests ;;
  bench) phase_bench ;;
  profile) phase_profile ;;
esac
exit # finish, in gpu_phase.sh, gives the status
