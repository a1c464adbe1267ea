#!/usr/bin/env bash
# Every way to install, each in a fresh environment: make install-check. It builds three times and takes some minutes.
#   scripts/install_check.sh PYTHON TORCH_REQUIREMENT [TORCH_INDEX]
set -euo pipefail
python=$1 torch=$2 index=${3:-}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export VECBANK_CMAKE_ARGS=-DVECBANK_CUDA=OFF # `python -m build` may be given a CUDA torch; nvcc would take many minutes

say() { echo "install-check: $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }
environment() { cp -al base "$1"; }  # a copy is called as `python -m pip`: its scripts name the first one
install() { local env=$1; shift; "$env/bin/python" -m pip --disable-pip-version-check install --quiet "$@"; }
works() {  # the installed package, seen from a folder without sources
  (cd / && "$work/$1/bin/python" -c '
import torch, vecbank
assert vecbank.nearest(torch.eye(3), torch.eye(3)).indices.tolist() == [0, 1, 2]
assert "site-packages" in vecbank.__file__, vecbank.__file__')
}

say "an environment that has torch and nothing else of what a build needs"
"$python" -m venv base
install base ${index:+--index-url "$index"} "$torch"
mkdir source
# What git holds or would add; outside a clone (an unpacked sdist), everything but what a build leaves.
if git -C "$root" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
  (cd "$root" && git ls-files -z --cached --others --exclude-standard | xargs -0 tar c) | tar x -C source
else
  tar c -C "$root" --exclude ./build --exclude ./dist --exclude ./.venv . | tar x -C source
fi

say "pip install . (with build isolation)"
environment isolated
install isolated ./source
works isolated

say "pip install --no-build-isolation . without the build's tools: it names the command that adds them, and then works"
environment plain
if PATH=/usr/bin:/bin install plain --no-build-isolation ./source 2>plain.log; then
  say "(the system has cmake, ninja and pybind11: nothing was missing)"
else
  remedy=$(sed -n 's/^[│ ]*\(\/.*-m pip install .*pybind11.*\)$/\1/p' plain.log)
  [[ -n $remedy ]] || { cat plain.log >&2; fail "no command is named"; }
  bash -c "$remedy --quiet"
  install plain --no-build-isolation ./source
fi
works plain

say "python -m build: an sdist, and a wheel built from it"
environment builder
install builder build
rm -rf source/build
builder/bin/python -m build --outdir dist source >build.log 2>&1 || { tail -30 build.log >&2; fail "python -m build"; }
environment wheel
install wheel dist/vecbank-*.whl
works wheel

say "the tests of the unpacked sdist are collected beside the installed wheel"
mkdir unpacked
tar x -C unpacked --strip-components=1 -f dist/vecbank-*.tar.gz
install wheel -r unpacked/requirements/test.txt -r unpacked/requirements/demo.txt
(cd unpacked && ../wheel/bin/python -m pytest -q --collect-only tests >../collect.log 2>&1) ||
  { tail -30 collect.log >&2; fail "collecting the tests"; }
tail -1 collect.log
say "all of them work"
