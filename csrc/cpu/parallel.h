// The caller's threads, tasks over them, and memory that fails with a status rather than an exception.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "../core/types.h"
#include "memory.h"

namespace vecbank::cpu {

// A flag that the caller raises, from any thread, to stop a long call. Kernels check the flag often enough to return
// within about a tenth of a second, and never write it. The outputs of a stopped call are not valid.
struct Stop {
  const std::atomic<bool>* flag = nullptr;  // null: the call cannot be stopped

  bool requested() const { return flag != nullptr && flag->load(std::memory_order_relaxed); }
};

// Threads belong to the caller: `run` calls body(arg, w) for every w in [0, workers), in any order, and returns
// when all are done. Nothing may throw inside.
struct Parallel {
  int workers = 1;
  void* context = nullptr;
  void (*run)(void* context, int workers, void (*body)(void* arg, int worker), void* arg) = nullptr;
  Stop stop;
};

// An exact answer may depend on a subnormal, so flush-to-zero is off while a kernel runs, and restored afterwards.
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

// Runs f(worker, task) for every task; a worker that is free takes the next task. Status::stopped: the caller's flag
// was raised, and some tasks may not have run, or not to completion.
template <class F>
[[nodiscard]] Status for_each_task(const Parallel& parallel, int64_t tasks, F&& f) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t tasks;
    std::remove_reference_t<F>* f;
    Stop stop;
  } shared;
  shared.tasks = tasks;
  shared.f = &f;
  shared.stop = parallel.stop;
  const auto body = [](void* arg, int worker) {
    Shared& s = *static_cast<Shared*>(arg);
    KeepSubnormals keep;
    for (int64_t t = s.next.fetch_add(1); t < s.tasks && !s.stop.requested(); t = s.next.fetch_add(1))
      (*s.f)(worker, t);
  };
  const int64_t workers = tasks < parallel.workers ? tasks : parallel.workers;
  if (workers <= 1 || parallel.run == nullptr)
    body(&shared, 0);
  else
    parallel.run(parallel.context, static_cast<int>(workers), body, &shared);
  return parallel.stop.requested() ? Status::stopped : Status::ok;
}

// Many problems share the workers, each solved by one of them; solve(worker, problem, parallel) returns a
// status. The first
// failure is returned.
template <class Problem, class Solve>
[[nodiscard]] Status solve_each(const Problem* problems, int64_t count, const Parallel& parallel, Solve&& solve) {
  Parallel alone;
  alone.stop = parallel.stop;
  std::atomic<Status> failed{Status::ok};
  // Some at a time: asking for the next one takes as long as a small problem.
  const int64_t some = std::clamp<int64_t>(count / (16 * parallel.workers), 1, 64);
  const Status all = for_each_task(parallel, (count + some - 1) / some, [&](int worker, int64_t task) {
    for (int64_t i = task * some; i < std::min(count, (task + 1) * some) && !parallel.stop.requested(); ++i) {
      const Status status = solve(worker, problems[i], alone);
      if (status != Status::ok) failed = status;
    }
  });
  return all != Status::ok ? all : failed.load();
}

// The number of items, of `width` elements each, between two checks of the flag: a few milliseconds of work.
inline int64_t stretch_of(int64_t width) { return std::max<int64_t>(1, (1 << 22) / std::max<int64_t>(width, 1)); }

// Calls f(from, to) for stretches of [begin, end). False: the flag was raised before the end.
template <class F>
bool in_stretches(Stop stop, int64_t begin, int64_t end, int64_t stretch, F&& f) {
  for (; begin < end; begin += stretch) {
    if (stop.requested()) return false;
    f(begin, std::min(end, begin + stretch));
  }
  return true;
}

// An uninitialised array, 64-byte aligned, with room for one vector store past its end. Growing it loses the contents.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept : block_(std::exchange(other.block_, {})) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~Buffer() { give_back(block_); }

  bool reserve(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T) + 64;
    if (bytes <= block_.bytes) return true;
    give_back(std::exchange(block_, {}));
    block_ = take_block(bytes);
    return block_.data != nullptr;
  }
  T* get() const { return static_cast<T*>(block_.data); }
  T& operator[](int64_t i) const { return get()[i]; }

 private:
  Block block_;
};

// One T for each worker of a call.
template <class T>
class PerWorker {
 public:
  explicit PerWorker(int64_t workers) : list_(new (std::nothrow) T[static_cast<size_t>(workers)]), count_(workers) {}

  // False: there is no memory for the workers, or `prepare(T&)` returned false.
  template <class F>
  [[nodiscard]] bool each(F&& prepare) {
    bool good = list_ != nullptr;
    for (int64_t w = 0; good && w < count_; ++w) good = prepare(list_[w]);
    return good;
  }
  T& operator[](int64_t worker) { return list_[worker]; }
  T* begin() { return list_.get(); }
  T* end() { return list_.get() + count_; }

 private:
  std::unique_ptr<T[]> list_;
  int64_t count_;
};

// As for_each_task(), for tasks of about equal work that read or write one stretch of memory after another. Each worker
// begins with tasks of its own, the same ones in every call of this size: its caches still have what it left there. A
// worker whose own are done helps the others.
template <class F>
[[nodiscard]] Status for_each_own_task(const Parallel& parallel, int64_t tasks, F&& f) {
  const int64_t workers = tasks < parallel.workers ? tasks : parallel.workers;
  if (workers <= 1) return for_each_task(parallel, tasks, std::forward<F>(f));
  struct alignas(64) Next {  // a cache line each
    std::atomic<int64_t> task{0};
  };
  PerWorker<Next> next(workers);
  int64_t owners = 0;
  if (!next.each([&](Next& n) {
        n.task = tasks * owners++ / workers;
        return true;
      }))
    return Status::out_of_memory;
  return for_each_task(parallel, workers, [&](int worker, int64_t) {
    for (int64_t w = 0; w < workers; ++w) {
      const int64_t owner = (worker + w) % workers, end = tasks * (owner + 1) / workers;
      std::atomic<int64_t>& task = next[owner].task;
      for (int64_t t = task.fetch_add(1); t < end && !parallel.stop.requested(); t = task.fetch_add(1)) f(worker, t);
    }
  });
}

}  // namespace vecbank::cpu
