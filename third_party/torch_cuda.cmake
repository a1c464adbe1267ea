# Target vecbank_torch_cuda: what _C_cuda links for torch's current stream. A CUDA torch brings libtorch_cuda; beside a CPU
# torch an empty library of that name stands in, so that the module can be built there and loaded beside a CUDA torch.
if(EXISTS "${torch_dir}/lib/libtorch_cuda.so")
  set(VECBANK_TORCH_HAS_CUDA 1)
  add_library(vecbank_torch_cuda INTERFACE)
  target_link_libraries(vecbank_torch_cuda INTERFACE -Wl,--as-needed "${torch_dir}/lib/libtorch_cuda.so")
else()
  set(VECBANK_TORCH_HAS_CUDA 0)
  file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/torch_cuda_stub.cpp.in"
    "extern \"C\" __attribute__((visibility(\"default\"))) int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n")
  configure_file("${CMAKE_CURRENT_BINARY_DIR}/torch_cuda_stub.cpp.in"
    "${CMAKE_CURRENT_BINARY_DIR}/torch_cuda_stub.cpp" COPYONLY)
  add_library(vecbank_torch_cuda SHARED EXCLUDE_FROM_ALL "${CMAKE_CURRENT_BINARY_DIR}/torch_cuda_stub.cpp")
  set_target_properties(vecbank_torch_cuda PROPERTIES OUTPUT_NAME torch_cuda
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/stub")
endif()
