#!/usr/bin/env bash
# Stand-ins for what scripts/gpu_check.sh calls, for its --dry-run: they take the arguments, look whether the files that
# these name exist, and say that nothing can run. Usage: gpu_stand_ins.sh FOLDER
set -euo pipefail
folder=$1
mkdir -p "$folder"
stand_in() { # name; its body comes from the standard input
  { echo '#!/usr/bin/env bash' && cat; } >"$folder/$1"
  chmod +x "$folder/$1"
}
stand_in nvidia-smi <<'BODY'
[[ $* == *compute_cap* ]] && echo 9.0 || echo 'stand-in for a GPU, 0.0'
BODY
stand_in python <<'BODY'
for argument; do
  if [[ $argument =~ ^(tests|bench)/.*\.py$ && ! -e $argument ]]; then echo "there is no $argument"; exit 4; fi
  [[ ${previous:-} == --out ]] && out=$argument
  previous=$argument
done
case "$*" in
  *"-m pytest"*) echo '1 skipped in 0.00s (a stand-in)' ;;
  *bench/run.py*) echo '{}' >"$out" && echo '**0 of 0 rows met.** (a stand-in)' >"${out%.json}.md" ;;
  *) echo 'a stand-in for Python' ;;
esac
BODY
stand_in cmake <<'BODY'
exec mkdir -p "$4/module"
BODY
stand_in ninja <<'BODY'
folder=$(dirname "$0")
cp --no-clobber "$folder/vecbank_cuda_tests" "$folder/vecbank_cuda_timer" "$2"
touch "$2/module/_C.so" && echo 'a stand-in for a build'
BODY
stand_in compute-sanitizer <<'BODY'
echo 'Unable to attach: a stand-in'
exit 1
BODY
stand_in ncu <<'BODY'
echo 'a stand-in for ncu'
BODY
stand_in vecbank_cuda_tests <<'BODY'
[[ $1 == --list ]] && printf '%s\n' cuda_search_equals_cpu tensor_core_accumulation && exit 0
echo 'NOT RUN: a stand-in'
exit 77
BODY
stand_in vecbank_cuda_timer <<'BODY'
[[ $1 == --list ]] && echo nearest-1048576x8192-d64-bf16/sm90/packed && exit 0
[[ $1 == --dry-run ]] && echo 'dry run of a stand-in' && exit 0
echo 'NOT RUN: a stand-in'
exit 77
BODY
