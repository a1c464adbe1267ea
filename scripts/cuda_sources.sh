#!/usr/bin/env bash
# A checksum of every source that the binaries of `make gpu-bundle` are built from: says whether a bundle fits a tree.
set -euo pipefail
cd "$(dirname "$0")/.."
find csrc tests/cpp tests/cuda CMakeLists.txt third_party -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16
