// Which instruction set runs: the best that this processor has, or the one that VECBANK_ISA or set_isa() names.
#pragma once

#include <atomic>

namespace vecbank::cpu {

struct Kernels;  // kernels.h

constexpr int kIsaCount = 5;
extern const char* const kIsaNames[kIsaCount];  // scalar, avx2, avx2vnni, avx512, avx512vnni

bool isa_available(int isa);
int isa_in_use();
bool set_isa(const char* name);                     // false: unknown, or not on this processor
const char* isa_override_problem();                 // null, or why VECBANK_ISA was ignored
extern std::atomic<const Kernels*> kernels_in_use;  // null until they are asked for
const Kernels& first_kernels();
inline const Kernels& kernels() {
  const Kernels* table = kernels_in_use.load(std::memory_order_relaxed);
  return table != nullptr ? *table : first_kernels();
}
bool has_bf16_products();  // whether this processor has AVX512-BF16
bool has_bit_counts();     // whether it has AVX512-VPOPCNTDQ

}  // namespace vecbank::cpu
