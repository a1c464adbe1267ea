#!/usr/bin/env bash
# Is everything there that `make` cannot install itself? One line per problem, with the apt line that solves it.
# Usage: check_prereqs.sh PYTHON [CXX]
set -u
python=$1
cxx=${2:-g++}
problems=0

missing() { # what, apt packages
  echo "vecbank: $1  ->  sudo apt-get install $2" >&2
  problems=$((problems + 1))
}

if ! command -v "$cxx" >/dev/null; then
  case $cxx in
    c++ | g++) missing "no C++ compiler ($cxx)" g++ ;;
    *) missing "no C++ compiler ($cxx)" "$cxx" ;;
  esac
elif ! "$cxx" --version 2>/dev/null | grep -q clang; then
  # Compilers that cannot say their version are left for CMake to judge.
  version=$("$cxx" -dumpversion 2>/dev/null | cut -d. -f1)
  if [[ $version =~ ^[0-9]+$ ]] && ((version < 11)); then
    missing "$cxx is version $version, 11 or newer is needed (then: make CXX=g++-12)" g++-12
  fi
fi

command -v git >/dev/null || missing "no git" git

if ! command -v "$python" >/dev/null || ! "$python" -c '' 2>/dev/null; then
  if [[ $python == python3 ]]; then
    missing "no Python ($python)" "python3 python3-venv python3-dev"
  else
    missing "no Python ($python; or choose another: make PYTHON=...)" "${python##*/} ${python##*/}-venv ${python##*/}-dev"
  fi
else
  # Works in any Python, so that an old one gets its line and not a syntax error.
  read -r version supported venv headers < <("$python" -c '
import os, sys, sysconfig
try:
    import ensurepip, venv
    has_venv = 1
except ImportError:
    has_venv = 0
v = sys.version_info
supported = "old" if v < (3, 10) else "new" if v >= (3, 15) else "yes"
headers = int(os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))
sys.stdout.write("%d.%d %s %d %d\n" % (v[0], v[1], supported, has_venv, headers))' 2>/dev/null)
  # Debian names packages after python3 for its own Python, after python3.N for others.
  name=python3
  [[ ${python##*/} =~ ^python3\.[0-9]+$ ]] && name=${python##*/}
  if [[ -z ${version:-} || $supported == old ]]; then
    missing "$python is Python ${version:-of unknown version}, 3.10 to 3.14 is needed (then: make PYTHON=python3.11)" \
      "python3.11 python3.11-venv python3.11-dev"
  else
    [[ $supported == new ]] && echo "vecbank: note: Python $version is newer than what the pins were tried with (3.10 to 3.14)" >&2
    [[ $venv == 1 ]] || missing "$python cannot make virtual environments (no ensurepip)" "$name-venv"
    [[ $headers == 1 ]] || missing "$python has no headers (Python.h)" "$name-dev"
  fi
fi
exit $((problems > 0))
