#!/usr/bin/env bash
# compute-sanitizer on a reduced table of the kernels' own tests (no torch, no Python), its tools side by side: memcheck
# on every kind of kernel, and racecheck on those without bulk copies, whose barriers it does not understand.
# One line a tool: ok, FAIL or not run (no sanitizer, it cannot attach, or not in time); fails only on FAIL.
# Usage: scripts/cuda_sanitize.sh TESTS_EXECUTABLE [SECONDS [LOG]]. Has run on an NVIDIA H200.
set -uo pipefail
tests=$1
limit=${2:-60}
log=${3:-/dev/null}
# One test of each kind of kernel, chosen for few launches: a tool makes each many times slower.
declare -A reduced=(
  [racecheck]="cuda_search_masks_and_large_k cuda_search_overflow cuda_search_masks_and_bias cuda_residual_counts
    cuda_product cuda_codebook cuda_sums cuda_gradients cuda_pass_back cuda_project_by_library_in_blocks
    cuda_few_every_metric"
  [memcheck]="cuda_search_sm90_adversarial cuda_search_masks_and_large_k cuda_search_operands cuda_search_bad_pack
    cuda_residual_adversarial cuda_product cuda_project_close cuda_codebook cuda_sums cuda_gradients cuda_pass_back
    cuda_few_every_metric cuda_bad")
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [[ -z $sanitizer ]]; then
  echo "not run: memcheck racecheck (no compute-sanitizer)"
  exit 0
fi

absent='unable to (attach|launch)|not supported|permission|insufficient|no cuda device'
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'kill $(jobs -pr) 2>/dev/null; wait; exit 143' TERM INT HUP
check() { # tool: every test of its list, each a process of its own, until the time is over
  [[ $1 == racecheck ]] && export VECBANK_TESTS_WITHOUT_SM90=1 # tests of every path leave that one out
  local tool=$1 end=$((SECONDS + limit)) name rc done_=0 late=0 failed=""
  trap 'kill $(jobs -pr) 2>/dev/null; exit 143' TERM
  for name in ${reduced[$tool]}; do
    local left=$((end - SECONDS))
    ((left > 0)) || break
    timeout --kill-after=5 "$((left < 60 ? left : 60))" \
      "$sanitizer" --tool "$tool" --error-exitcode 9 "$tests" "$name" >"$scratch/one.$tool" 2>&1 &
    wait $! # in the background, so that a signal is heard at once
    rc=$?
    { echo "== $tool $name (status $rc)"; cat "$scratch/one.$tool"; } >>"$scratch/log.$tool"
    if grep -qiE "$absent" "$scratch/one.$tool"; then
      echo "not run: $tool ($(grep -iE -m1 "$absent" "$scratch/one.$tool" | cut -c1-100))"
      return
    fi
    grep -q '^0 tests' "$scratch/one.$tool" && continue # this build has none of that name
    if ((rc == 124 || rc == 137)); then
      late=$((late + 1))
    elif ((rc != 0)); then
      failed+=" $name (status $rc)"
    else
      done_=$((done_ + 1))
    fi
  done
  local total and_late=""
  total=$(wc -w <<<"${reduced[$tool]}")
  ((late)) && and_late=", $late not finished"
  if [[ -n $failed ]]; then
    echo "FAIL  $tool:$failed; $done_ of $total groups of tests were fine$and_late"
  elif ((done_ == 0)); then
    echo "not run: $tool (not in time)"
  else
    echo "ok    $tool: $done_ of $total groups of tests$and_late"
  fi
}
for tool in memcheck racecheck; do
  check "$tool" >"$scratch/said.$tool" &
done
wait
cat "$scratch"/log.* >>"$log" 2>/dev/null
cat "$scratch"/said.*
! grep -q '^FAIL' "$scratch"/said.*
