// Tasks over the caller's threads, and memory that fails with a status rather than an exception.
#pragma once

#include <atomic>
#include <cstdlib>
#include <memory>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "types.h"

namespace vecbank {

// Subnormals count (an exact answer may hang on one), so flush-to-zero is off while a kernel runs and as it was after.
class KeepSubnormals {
#if defined(__x86_64__)
 public:
  KeepSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~0x8040u); }
  ~KeepSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
 public:
  KeepSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ & ~(1ull << 24)));
  }
  ~KeepSubnormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// Runs f(worker, task) for every task; workers take the next task when they are free.
template <class F>
void for_each_task(const Parallel& parallel, int64_t tasks, F&& f) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t tasks;
    F* f;
  } shared;
  shared.tasks = tasks;
  shared.f = &f;
  const auto body = [](void* arg, int worker) {
    Shared& s = *static_cast<Shared*>(arg);
    KeepSubnormals keep;
    for (int64_t t = s.next.fetch_add(1); t < s.tasks; t = s.next.fetch_add(1)) (*s.f)(worker, t);
  };
  const int64_t workers = tasks < parallel.workers ? tasks : parallel.workers;
  if (workers <= 1 || parallel.run == nullptr)
    body(&shared, 0);
  else
    parallel.run(parallel.context, static_cast<int>(workers), body, &shared);
}

// Uninitialised, 64-byte aligned, with room for one stray vector store past the end. Growing loses the contents.
template <class T>
class Buffer {
 public:
  bool reserve(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 64 + 63) / 64 * 64;
    if (bytes <= bytes_) return true;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    bytes_ = data_ ? bytes : 0;
    return data_ != nullptr;
  }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  size_t bytes_ = 0;
};

VB_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
VB_INLINE int64_t round_up_to(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace vecbank
