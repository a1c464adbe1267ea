// Runs CUDA kernels on the host, two blocks at a time, so that the very files that nvcc compiles can be tested where
// there is no GPU: define VECBANK_EMULATE, include this file, then the .cu files.
//
// Every thread of a block is a fibre; a barrier or a warp operation hands over to the next fibre of either block, in a
// shuffled order, and so does an atomic operation now and then. The blocks of a launch come in a shuffled order too.
// Shared memory has exactly the size of the launch, and is filled with NaN before every block; device memory is plain
// heap memory: so AddressSanitizer (make sanitize) finds reads and writes out of bounds, and an unset value shows up in
// the answer. A barrier that some threads of a block never reach ends the program. Asynchronous copies arrive only when
// they are waited for. What this cannot show: memory ordering inside a warp without a barrier, and speed.
#pragma once

#include <math.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "core/half.h"
#include "cuda/api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr size_t kStack = 256 << 10, kFirstFrames = 24 << 10;  // of a fibre; the frames that it never leaves

// A flow of control that can be suspended and resumed. swapcontext is portable, but makes a system call every time, and
// AddressSanitizer then clears the shadow of a whole stack: these tests would take 15 times as long.
#if defined(__x86_64__)
using Flow = void*;  // its stack pointer; the registers that a callee keeps lie there
[[gnu::naked, gnu::noinline, gnu::no_sanitize("address", "undefined")]] inline void switch_flow(Flow*, Flow*) {
  asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15; mov %rsp, (%rdi); mov (%rsi), %rsp;"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}
inline void start_flow(Flow& flow, char* stack, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t{15});
  *--top = nullptr;  // where entry, which never returns, would return to
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  flow = top;
}
#else
using Flow = ucontext_t;
inline void switch_flow(Flow* from, Flow* to) { swapcontext(from, to); }
inline void start_flow(Flow& flow, char* stack, size_t size, void (*entry)()) {
  getcontext(&flow);
  flow.uc_stack.ss_sp = stack;
  flow.uc_stack.ss_size = size;
  flow.uc_link = nullptr;
  makecontext(&flow, entry, 0);
}
#endif

struct Fibre {
  enum State { ready, at_barrier, at_warp, done } state = ready;
  Flow flow;
  std::unique_ptr<char[]> stack;
  unsigned warp_ops = 0, barriers = 0;
  bool vote = false;
  struct Copy {
    void* to;
    const void* from;
    bool valid;
    int group;
  };
  std::vector<Copy> copies;
  int group = 0;
  void* fake_stack = nullptr;
};

struct Warp {
  int waiting = 0;           // lanes that have come to a warp operation
  uint64_t words[2][4][32];  // what each lane brings to it; two sets, as the next may begin early
};
struct Block {
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  std::vector<int> ready, next;  // the threads of this round and of the next
  dim3 where;
  int now = 0, count = 0;         // its thread that runs; its threads, 0 where no block runs
  int waiting = 0, finished = 0;  // threads at the barrier; threads that have ended
  int votes[2] = {0, 0};
  char* shared = nullptr;
};
constexpr int kAtOnce = 2;  // blocks
struct Machine {
  Block blocks[kAtOnce];
  int now = 0;  // the block that runs
  Flow scheduler;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  uint64_t random = 12345;
  long long launches = 0;
  void* fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
  // A number below n, by xorshift: it is drawn for every thread of every round.
  unsigned below(size_t n) {
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    return static_cast<unsigned>((random >> 32) * n >> 32);
  }
  template <class T>
  void shuffle(std::vector<T>& v) {
    for (size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[below(i)]);
  }
};
inline Machine the_machine;
inline Machine& machine() { return the_machine; }
inline Block& block() { return machine().blocks[machine().now]; }

[[noreturn]] inline void stop(const char* why) {
  std::fprintf(stderr, "cuda emulator: %s (block %u,%u thread %d)\n", why, blockIdx.x, blockIdx.y, block().now);
  std::abort();
}

inline Fibre& self() { return block().fibres[static_cast<size_t>(block().now)]; }

#if defined(__SANITIZE_ADDRESS__)  // AddressSanitizer must be told of every switch
inline void to_scheduler(bool last = false) {
  Machine& m = machine();
  Fibre& f = self();
  __sanitizer_start_switch_fiber(last ? nullptr : &f.fake_stack, m.scheduler_stack, m.scheduler_size);
  switch_flow(&f.flow, &m.scheduler);
  __sanitizer_finish_switch_fiber(f.fake_stack, &m.scheduler_stack, &m.scheduler_size);
}
inline void to_fibre(Machine& m, Fibre& f) {
  __sanitizer_start_switch_fiber(&m.fake_stack, f.stack.get(), kStack);
  switch_flow(&m.scheduler, &f.flow);
  __sanitizer_finish_switch_fiber(m.fake_stack, nullptr, nullptr);
}
#else
inline void to_scheduler(bool = false) { switch_flow(&self().flow, &machine().scheduler); }
inline void to_fibre(Machine& m, Fibre& f) { switch_flow(&m.scheduler, &f.flow); }
#endif

// Before an atomic operation, other threads may come first: also between it and what this thread read before.
inline void yield_now_and_then() {
  if (machine().below(4) == 0) to_scheduler();
}

inline void entry() {
  Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_size);
#endif
  m.body(m.argument);
  self().state = Fibre::done;
  to_scheduler(true);
}

inline void start_block(Block& b, dim3 where, int threads, size_t shared_bytes) {
  b.where = where;
  b.count = threads;
  b.votes[0] = b.votes[1] = 0;
  b.shared = static_cast<char*>(std::aligned_alloc(128, (shared_bytes + 127) / 128 * 128 + 128));
  std::memset(b.shared, 0xff, shared_bytes);  // NaN in every float format
  b.waiting = b.finished = 0;
  b.warps.resize(static_cast<size_t>(threads + 31) / 32);
  for (Warp& warp : b.warps) warp.waiting = 0;
  if (b.fibres.size() != static_cast<size_t>(threads)) b.fibres = std::vector<Fibre>(static_cast<size_t>(threads));
  b.ready.clear();
  for (Fibre& f : b.fibres) {
    const int number = static_cast<int>(b.ready.size());
    b.ready.push_back(number);
    if (!f.stack) f.stack.reset(new char[kStack]);
    f.state = Fibre::ready;
    f.warp_ops = f.barriers = 0;
    f.copies.clear();
    f.group = 0;
#if defined(__SANITIZE_ADDRESS__)  // the frame in which the last block ended was never left
    __asan_unpoison_memory_region(f.stack.get() + kStack - kFirstFrames, kFirstFrames);
#endif
    // Stacks that all began at the same offset of a page would fight for the same lines of the cache.
    start_flow(f.flow, f.stack.get(), kStack - static_cast<size_t>(number % 64) * 192, entry);
  }
}

// Runs every ready fibre of a block once, in a shuffled order. Where the last one comes to a barrier or a warp
// operation, all go on in the next round. Returns whether the block goes on.
inline bool run_round(Machine& m, Block& b) {
  const auto resume = [&b](int first, int stop) {
    for (int i = first; i < stop; ++i) {
      b.fibres[static_cast<size_t>(i)].state = Fibre::ready;
      b.next.push_back(i);
    }
  };
  if (b.ready.empty()) stop("some threads wait at a barrier or warp operation that others never reach");
  m.shuffle(b.ready);
  blockIdx = b.where;
  for (const int i : b.ready) {
    Fibre& f = b.fibres[static_cast<size_t>(i)];
    b.now = i;
    threadIdx = dim3(static_cast<unsigned>(i), 0, 0);
    to_fibre(m, f);
    Warp& warp = b.warps[static_cast<size_t>(i / 32)];
    const int first = i / 32 * 32, end = std::min(first + 32, b.count);
    if (f.state == Fibre::ready) {
      b.next.push_back(i);
    } else if (f.state == Fibre::done) {
      ++b.finished;
    } else if (f.state == Fibre::at_barrier && ++b.waiting == b.count) {
      b.waiting = 0;
      resume(0, b.count);
    } else if (f.state == Fibre::at_warp && ++warp.waiting == end - first) {
      warp.waiting = 0;
      resume(first, end);
    }
  }
  b.ready.swap(b.next);
  b.next.clear();
  if (b.finished < b.count) return true;
  std::free(b.shared);
  b.shared = nullptr;
  b.count = 0;
  return false;
}

inline void run_grid(dim3 grid, int threads, size_t shared_bytes, void (*body)(void*), void* argument) {
  Machine& m = machine();
  m.body = body;
  m.argument = argument;
  gridDim = grid;
  blockDim = dim3(static_cast<unsigned>(threads));
  std::vector<dim3> waiting;
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) waiting.emplace_back(x, y, 0);
  m.shuffle(waiting);
  for (int running = 0; running > 0 || !waiting.empty();) {
    m.now = static_cast<int>(m.below(kAtOnce));
    Block& b = block();
    if (b.count == 0) {
      if (waiting.empty()) continue;
      start_block(b, waiting.back(), threads, shared_bytes);
      waiting.pop_back();
      ++running;
    }
    if (!run_round(m, b)) --running;
  }
}

// Brings `words` to a warp operation. Returns what the lanes have brought: [word][lane].
using Brought = const uint64_t (*)[32];
inline Brought meet(const uint64_t* words, int count) {
  Block& b = block();
  Fibre& f = self();
  Warp& warp = b.warps[static_cast<size_t>(b.now / 32)];
  const unsigned set = f.warp_ops++ % 2;
  for (int i = 0; i < count; ++i) warp.words[set][i][b.now % 32] = words[i];
  f.state = Fibre::at_warp;
  to_scheduler();
  return warp.words[set];
}

}  // namespace emulator

// ---- What CUDA C++ has built in ------------------------------------------------------------------------------------

inline void __syncthreads() {
  ++emulator::self().barriers;
  emulator::self().state = emulator::Fibre::at_barrier;
  emulator::to_scheduler();
}
inline int __syncthreads_count(int vote) {
  auto& b = emulator::block();
  const unsigned set = emulator::self().barriers % 2;
  if (vote) ++b.votes[set];
  __syncthreads();
  const int count = b.votes[set];
  __syncthreads();  // every thread has read it
  if (emulator::block().now == 0) b.votes[set] = 0;
  __syncthreads();
  return count;
}
inline int __syncthreads_or(int vote) { return __syncthreads_count(vote != 0) != 0; }
inline void __syncwarp(unsigned = ~0u) {
  const uint64_t nothing = 0;
  emulator::meet(&nothing, 1);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  const emulator::Brought all = emulator::meet(&word, 1);
  T other;
  std::memcpy(&other, &all[0][lane], sizeof other);
  return other;
}
template <class T>
T __shfl_xor_sync(unsigned all, T value, int mask) {
  return __shfl_sync(all, value, (emulator::block().now % 32) ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned all, T value, int by) {
  const int lane = emulator::block().now % 32;
  return __shfl_sync(all, value, lane < by ? lane : lane - by);
}
inline unsigned __reduce_or_sync(unsigned, unsigned value) {
  const uint64_t word = value;
  const emulator::Brought brought = emulator::meet(&word, 1);
  unsigned all = 0;
  for (int lane = 0; lane < 32; ++lane) all |= static_cast<unsigned>(brought[0][lane]);
  return all;
}
inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  const uint64_t word = value;
  const emulator::Brought brought = emulator::meet(&word, 1);
  unsigned all = 0;
  for (int lane = 0; lane < 32; ++lane) all += static_cast<unsigned>(brought[0][lane]);
  return all;
}
inline unsigned __ballot_sync(unsigned all, int vote) {
  return __reduce_or_sync(all, vote ? 1u << emulator::block().now % 32 : 0u);
}
inline void __threadfence() { emulator::yield_now_and_then(); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __any_sync(unsigned all, int vote) { return __ballot_sync(all, vote) != 0; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
struct float2 {
  float x, y;
};
template <class T, class U>
T atomicAdd(T* at, U value) {
  emulator::yield_now_and_then();
  const T before = *at;
  *at = before + static_cast<T>(value);
  return before;
}
inline int atomicMax(int* at, int value) {
  emulator::yield_now_and_then();
  const int before = *at;
  if (value > before) *at = value;
  return before;
}
inline unsigned atomicMin(unsigned* at, unsigned value) {
  emulator::yield_now_and_then();
  const unsigned before = *at;
  if (value < before) *at = value;
  return before;
}
inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline unsigned __float_as_uint(float x) { return static_cast<unsigned>(__float_as_int(x)); }
inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float __uint_as_float(unsigned bits) { return __int_as_float(static_cast<int>(bits)); }

namespace vecbank::cuda {

// ---- launch.h, async_copy.h and tensor_cores/ptx.h -----------------------------------------------------------------

inline char* shared_memory() { return emulator::block().shared; }

template <class Args>
Error launch(void (*kernel)(Args), dim3 grid, int threads, int64_t shared_bytes, const Device& device,
             const Args& args) {
  if (grid.x == 0 || grid.y == 0) return nullptr;
  if (shared_bytes > (device.capability == 90 ? 227 << 10 : 99 << 10))
    emulator::stop("more shared memory than the device has, or, if it is not said to be Hopper, than all have");
  if (grid.y > 65535 || grid.x > 0x7fffffffu) emulator::stop("grid too large");
  if (sizeof(Args) > 4096) emulator::stop("arguments too large");
  ++emulator::machine().launches;
  struct Call {
    void (*kernel)(Args);
    const Args* args;
  } call{kernel, &args};
  emulator::run_grid(
      grid, threads, static_cast<size_t>(shared_bytes),
      [](void* c) {
        Call& call = *static_cast<Call*>(c);
        call.kernel(*call.args);
      },
      &call);
  return nullptr;
}

inline void prefetch(const void*) {}
inline void copy_async(void* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    emulator::stop("an asynchronous copy is not aligned");
  emulator::Fibre& f = emulator::self();
  std::memset(to, 0xff, 16);  // until it is waited for
  f.copies.push_back({to, from, valid, f.group});
}
inline void commit_copies() { ++emulator::self().group; }
template <int Pending>
void wait_copies() {
  emulator::Fibre& f = emulator::self();
  std::vector<emulator::Fibre::Copy> later;
  for (const auto& c : f.copies) {
    if (c.group >= f.group - Pending) {
      later.push_back(c);
    } else if (c.valid) {
      std::memcpy(c.to, c.from, 16);
    } else {
      std::memset(c.to, 0, 16);
    }
  }
  f.copies = later;
}

// One step of a tensor core by the worst of the models: every term is cut, towards zero, to a unit 2^-24 below the
// largest, and the sum is rounded towards zero.
template <size_t N>
float worst_case_step(float start, const double (&products)[N]) {
  double terms[N + 1] = {static_cast<double>(start)}, largest = 0.0, sum = 0.0;
  std::copy_n(products, N, terms + 1);
  for (const double term : terms) largest = std::max(largest, std::fabs(term));  // a NaN is found below
  if (!(largest > 0.0) || !std::isfinite(largest)) {
    for (const double term : terms) sum += term;
  } else {
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 24);
    for (const double term : terms) sum += std::trunc(term / unit) * unit;
  }
  float f = static_cast<float>(sum);
  if (std::isfinite(f) && std::fabs(f) > std::fabs(sum)) f = std::nextafterf(f, 0.0f);
  return f;
}
// An instruction of two steps.
template <size_t N>
float worst_case_sum(float start, const double (&products)[N]) {
  double low[N / 2], high[N / 2];
  std::copy_n(products, N / 2, low);
  std::copy_n(products + N / 2, N / 2, high);
  return worst_case_step(worst_case_step(start, low), high);
}
inline uint64_t word_pair(uint32_t low, uint32_t high) { return static_cast<uint64_t>(high) << 32 | low; }

inline void load_matrices(uint32_t (&m)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulator::stop("a row of a matrix is not aligned");
  uint64_t words[2];
  std::memcpy(words, row, sizeof words);
  const emulator::Brought all = emulator::meet(words, 2);
  const int lane = emulator::block().now % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) m[i] = static_cast<uint32_t>(all[t / 2][8 * i + g] >> (t % 2 * 32));
}

template <bool Bf16>
void mma_16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint64_t words[3] = {word_pair(a[0], a[1]), word_pair(a[2], a[3]), word_pair(b0, b1)};
  const emulator::Brought all = emulator::meet(words, 3);
  const auto at = [&](int lane, int word, int high) {
    const uint16_t bits = static_cast<uint16_t>(all[word / 2][lane] >> (word % 2 * 32 + high * 16));
    return static_cast<double>(Bf16 ? widened_f32(BFloat16{bits}) : widened_f32(Float16{bits}));
  };
  const int lane = emulator::block().now % 32, g = lane / 4, t = lane % 4;
  for (int e = 0; e < 4; ++e) {
    const int row = g + 8 * (e / 2), column = 2 * t + e % 2;
    double products[16];
    // (row, k) of a lies in lane row % 8 * 4 + k % 8 / 2, word row / 8 + 2 * (k / 8), half k % 2; b likewise.
    for (int k = 0; k < 16; ++k)
      products[k] =
          at(row % 8 * 4 + k % 8 / 2, row / 8 + 2 * (k / 8), k % 2) * at(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
    c[e] = worst_case_sum(c[e], products);
  }
}

}  // namespace vecbank::cuda
