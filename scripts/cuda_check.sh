#!/usr/bin/env bash
# Compiles every CUDA file for every architecture of the list in CMakeLists.txt, and the torch ops over them where PYTHON
# has torch (a CPU build will do) and pybind11; needs nvcc and no GPU.
# Says plainly when there was nothing to compile or nothing to compile it with. Usage: cuda_check.sh CMAKE NINJA [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
cmake=${1:-cmake}
ninja=${2:-ninja}
python=${3:-python3} # through which CUTLASS's headers are found

shopt -s nullglob globstar
sources=(csrc/cuda/**/*.cu)
if ((${#sources[@]} == 0)); then
  echo "cuda-check: nothing to compile: this version has no .cu file under csrc/cuda"
  exit 0
fi
nvcc=${CUDACXX:-$(command -v nvcc || true)}
[[ -z $nvcc && -x /usr/local/cuda/bin/nvcc ]] && nvcc=/usr/local/cuda/bin/nvcc
if [[ -z $nvcc ]]; then
  echo "cuda-check: NOT RUN: no nvcc found (PATH, CUDACXX, /usr/local/cuda); ${#sources[@]} CUDA files were not compiled"
  exit 0
fi
export CUDACXX=$nvcc
torch=OFF targets=(vecbank_cuda vecbank_cuda_tests vecbank_cuda_timer) also="without the torch ops: $python has no torch or no pybind11"
if "$python" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("torch") and u.find_spec("pybind11")))'; then
  torch=ON targets+=(_C_cuda) also="and the torch ops"
fi
"$cmake" -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM="$ninja" -DVECBANK_TORCH=$torch -DVECBANK_CUDA=ON \
  -DPython_EXECUTABLE="$python"
if ! grep -q '^vecbank_cuda:' <<<"$("$ninja" -C build/cuda -t targets all)"; then
  echo "cuda-check: NOT RUN: CMake left CUDA out (its reason is above)"
  exit 0
fi
"$ninja" -C build/cuda "${targets[@]}"
library=build/cuda/module/_C_cuda.so
if [[ $torch == ON ]] && nm -D --undefined-only "$library" | grep -E ' _?Py[A-Z_]'; then
  echo "cuda-check: FAILED: $library needs Python's symbols (above), so it would serve one Python only" >&2
  exit 1
fi
build/cuda/vecbank_cuda_timer --dry-run --predictions bench/cuda_predictions.csv | tail -n 1
echo "cuda-check: compiled ${#sources[@]} CUDA files with" \
  "$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/nvcc \1/p')" "$also"
