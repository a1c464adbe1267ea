# CUTLASS and CuTe headers, from the PyPI package nvidia-cutlass (headers only, 6.4 MB): only the Hopper screen wants them.
# Without them it is left out, and VECBANK_CUDA_PATH=sm90 says so.
#   pip install nvidia-cutlass==4.2.0.0, or VECBANK_CUTLASS_INCLUDE=<folder that holds cute/ and cutlass/>
set(VECBANK_CUTLASS_INCLUDE "$ENV{VECBANK_CUTLASS_INCLUDE}")
if(NOT VECBANK_CUTLASS_INCLUDE AND Python_EXECUTABLE)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
      "import importlib.util as u; print(u.find_spec('cutlass_library').submodule_search_locations[0])"
    OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    set(VECBANK_CUTLASS_INCLUDE "${found}/source/include")
  endif()
endif()
if(EXISTS "${VECBANK_CUTLASS_INCLUDE}/cute/tensor.hpp")
  message(STATUS "vecbank: CUTLASS headers in ${VECBANK_CUTLASS_INCLUDE}")
else()
  set(VECBANK_CUTLASS_INCLUDE "")
  message(STATUS "vecbank: no CUTLASS headers (pip install nvidia-cutlass==4.2.0.0): the Hopper screen is left out")
endif()
