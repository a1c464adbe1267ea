#include "isa.h"

#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace vecbank::cpu {

const char* const kIsaNames[kIsaCount] = {"scalar", "avx2", "avx2vnni", "avx512", "avx512vnni"};

static const Kernels* table(int isa) {
#if defined(__x86_64__)
  if (isa == 4) return &kernels_avx512vnni;
  if (isa == 3) return &kernels_avx512;
  if (isa == 2) return &kernels_avx2vnni;
  if (isa == 1) return &kernels_avx2;
#endif
  return isa == 0 ? &kernels_scalar : nullptr;
}

bool isa_available(int isa) {
  if (isa == 0) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == 1) return avx2;
  if (isa == 2) return avx2 && __builtin_cpu_supports("avxvnni");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == 3) return avx512;
  if (isa == 4) return avx512 && __builtin_cpu_supports("avx512vnni");
#endif
  return false;
}

static int find(const char* name) {
  for (int isa = 0; isa < kIsaCount; ++isa)
    if (std::strcmp(name, kIsaNames[isa]) == 0) return isa;
  return -1;
}

static std::atomic<const char*> override_problem{nullptr};

static int initial() {
  int best = 0;
  for (int isa = 0; isa < kIsaCount; ++isa)
    if (isa_available(isa)) best = isa;
  const char* wanted = std::getenv("VECBANK_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  const int isa = find(wanted);
  if (isa >= 0 && isa_available(isa)) return isa;
  override_problem = isa < 0 ? "unknown name, expected scalar, avx2, avx2vnni, avx512 or avx512vnni"
                             : "this processor does not have it";
  return best;
}

static std::atomic<int>& current() {
  static std::atomic<int> isa{initial()};
  return isa;
}

int isa_in_use() { return current().load(std::memory_order_relaxed); }

const char* isa_override_problem() {
  current();
  return override_problem;
}

bool set_isa(const char* name) {
  const int isa = find(name);
  if (isa < 0 || !isa_available(isa)) return false;
  current().store(isa, std::memory_order_relaxed);
  kernels_in_use.store(table(isa), std::memory_order_relaxed);
  return true;
}

bool has_bf16_products() {
#if defined(__x86_64__)
  static const bool has = (__builtin_cpu_init(), __builtin_cpu_supports("avx512bf16") != 0);
  return has;
#else
  return false;
#endif
}

bool has_bit_counts() {
#if defined(__x86_64__)
  static const bool has = (__builtin_cpu_init(), __builtin_cpu_supports("avx512vpopcntdq") != 0);
  return has;
#else
  return false;
#endif
}

std::atomic<const Kernels*> kernels_in_use{nullptr};

const Kernels& first_kernels() {
  const Kernels* found = table(isa_in_use());
  kernels_in_use.store(found, std::memory_order_relaxed);
  return *found;
}

}  // namespace vecbank::cpu
