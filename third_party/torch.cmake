# Target vecbank_torch: torch's headers and libraries, in the folder that setup.py names or that Python says. Not
# find_package(Torch): it drags in CUDA, overrides CMAKE_CUDA_ARCHITECTURES and its flags (_GLIBCXX_USE_CXX11_ABI and more)
# are not needed for the stable interface. torch is located, never imported: importing takes seconds.
set(VECBANK_TORCH_DIR "" CACHE PATH "The folder of the Python package torch; asked from Python if empty")
set(torch_dir "${VECBANK_TORCH_DIR}")
if(NOT torch_dir)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT EXISTS "${torch_dir}/include/torch/csrc/stable/library.h")
  message(FATAL_ERROR "vecbank: ${Python_EXECUTABLE} has no torch >= 2.11 (pip install torch)")
endif()
message(STATUS "vecbank: torch in ${torch_dir}")
add_library(vecbank_torch INTERFACE)
target_include_directories(vecbank_torch SYSTEM INTERFACE "${torch_dir}/include")
# Named so that the loader finds the copy which `import torch` has already loaded; there is no RPATH on purpose.
target_link_libraries(vecbank_torch INTERFACE -Wl,--as-needed "${torch_dir}/lib/libtorch_cpu.so")
