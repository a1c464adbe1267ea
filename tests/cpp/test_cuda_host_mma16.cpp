// The screen on 16-bit operands and their packing, on the emulator: a file of its own, as test_cuda_host_mma.cpp.
#define VECBANK_EMULATE 1
#include "cuda_emulator.h"

#include "cuda/tensor_cores/mma16.cu"
#include "cuda/tensor_cores/operands.cu"
