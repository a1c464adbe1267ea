// The screen on 16-bit operands and their packing, on the emulator: a file of its own, since its tiles have the same
// names as the portable one's.
#define VECBANK_EMULATE 1
#include "cuda_emulator.h"

#include "cuda/tensor_cores/mma16.cu"
#include "cuda/tensor_cores/operands.cu"
