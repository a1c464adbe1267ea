// The whole test framework: TEST registers, CHECK counts and reports, main() runs everything.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/half.h"
#include "cpu/api.h"
#include "cpu/isa.h"

struct TestCase {
  const char* name;
  void (*run)();
};
inline std::vector<TestCase>& all_tests() {
  static std::vector<TestCase> tests;
  return tests;
}
inline int64_t checks_done = 0, checks_failed = 0;
// Says why no test of this program can run here; null: they can. Unset: nothing stands in the way.
inline const char* (*&why_not_run())() {
  static const char* (*ask)() = nullptr;
  return ask;
}

#define TEST(name)                                                                    \
  static void name();                                                                 \
  static const bool name##_registered = (all_tests().push_back({#name, name}), true); \
  static void name()

#define CHECK(condition)                                                                                          \
  do {                                                                                                            \
    ++checks_done;                                                                                                \
    if (!(condition) && ++checks_failed < 50) std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
  } while (0)

// Plain std::thread workers: the torch-free layer must run under any caller's threads.
inline vecbank::cpu::Parallel threads(int workers) {
  vecbank::cpu::Parallel p;
  p.workers = workers;
  p.run = [](void*, int count, void (*body)(void*, int), void* arg) {
    std::vector<std::thread> pool;
    for (int w = 0; w < count; ++w) pool.emplace_back([=] { body(arg, w); });
    for (auto& t : pool) t.join();
  };
  return p;
}

inline void for_each_isa(const std::function<void()>& f) {
  const std::string before = vecbank::cpu::kIsaNames[vecbank::cpu::isa_in_use()];
  for (int isa = 0; isa < vecbank::cpu::kIsaCount; ++isa)
    if (vecbank::cpu::isa_available(isa)) {
      vecbank::cpu::set_isa(vecbank::cpu::kIsaNames[isa]);
      f();
    }
  vecbank::cpu::set_isa(before.c_str());
}

// Calls f with each way of a search forced, since small searches go by one of them of their own accord.
inline void for_each_way(const std::function<void()>& f) {
  using namespace vecbank::cpu;
  for (const SearchWay way : {SearchWay::screened, SearchWay::refined}) {
    force_ways(way, ProjectWay::automatic);
    f();
  }
  force_ways(SearchWay::automatic, ProjectWay::automatic);
}

template <class T>
std::vector<T> gaussian(int64_t count, uint32_t seed, double scale = 1.0, double offset = 0.0) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> v(static_cast<size_t>(count));
  for (auto& x : v) x = static_cast<T>(normal(random) * scale + offset);
  return v;
}

// Rows of any element type, `skip` elements after the start of their memory.
struct OwnRows {
  std::vector<char> bytes;
  vecbank::Rows rows;
  OwnRows(const std::vector<double>& v, int64_t width, vecbank::DType dtype, int64_t skip = 0) {
    const size_t size = vecbank::size_of(dtype);
    bytes.resize((v.size() + static_cast<size_t>(skip)) * size);
    char* first = bytes.data() + static_cast<size_t>(skip) * size;
    for (size_t i = 0; i < v.size(); ++i)
      vecbank::with_dtype(dtype, [&](auto type) {
        vecbank::narrow(v[i], reinterpret_cast<vecbank::Element<decltype(type)>*>(first + i * size));
      });
    rows = {first, dtype, static_cast<int64_t>(v.size()) / width, width, width, 1};
  }
};

inline vecbank::Rows rows(const std::vector<float>& v, int64_t width) {
  return {v.data(), vecbank::DType::f32, static_cast<int64_t>(v.size()) / width, width, width, 1};
}
inline vecbank::Rows rows(const std::vector<double>& v, int64_t width) {
  return {v.data(), vecbank::DType::f64, static_cast<int64_t>(v.size()) / width, width, width, 1};
}

// A search, whose k and outputs are still to be set.
inline vecbank::SearchProblem problem_of(const vecbank::Rows& queries, const vecbank::Rows& bank,
                                         vecbank::Metric metric) {
  vecbank::SearchProblem p;
  p.queries = queries;
  p.bank = bank;
  p.metric = metric;
  return p;
}
