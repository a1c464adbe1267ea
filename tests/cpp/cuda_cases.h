// What the CUDA kernels must answer: the CPU's answers, bit for bit where the contract says so. This file is included
// twice: on the host's block emulator (test_cuda_host.cpp), and on a GPU (tests/cuda/kernels.cu). The including file
// defines first twin::Side, the device's memory, and has_sm90(), whether Hopper's kernels can run here. What a kernel
// reads or writes is a Vec<T>, and every driver is called through ran(driver, arguments...) (twin.h).
#pragma once

#include "check.h"
#include "cuda/api.h"
#include "cuda/plan.h"
#include "twin.h"

namespace {

using namespace vecbank;
using namespace vecbank::cpu;

template <class T>
Vec<T> normal(int64_t count, uint32_t seed, double scale = 1.0, double offset = 0.0) {
  const auto v = gaussian<T>(count, seed, scale, offset);
  return Vec<T>(v.begin(), v.end());
}
Rows view(const Vec<float>& v, int64_t width) {
  return {v.data(), DType::f32, static_cast<int64_t>(v.size()) / width, width, width, 1};
}

const DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16};
const Metric kMetrics[] = {Metric::dot, Metric::cosine, Metric::l2, Metric::sqeuclidean, Metric::l1};
// Those of points in the unit ball, where Gaussian rows of some 20 coordinates lie when they are scaled by this.
const Metric kBallMetrics[] = {Metric::poincare, Metric::poincare_ratio};
constexpr double kIntoBall = 0.1;

cuda::Path& path() {
  static cuda::Path p = cuda::Path::simt;
  return p;
}
struct OnPath {  // until the end of a scope
  explicit OnPath(cuda::Path p) { path() = p; }
  ~OnPath() { path() = cuda::Path::simt; }
};
// Called inside a test, because before main() the kernels' library may not be registered with the runtime yet.
const std::vector<cuda::Path>& every_path() {
  static const std::vector<cuda::Path> paths = [] {
    std::vector<cuda::Path> found = {cuda::Path::simt, cuda::Path::mma16};
    if (has_sm90()) found.push_back(cuda::Path::sm90);
    return found;
  }();
  return paths;
}

// A workspace of exactly the size asked for, full of NaN, or of numbers that would do as a count or an index.
struct Bench {
  cuda::Device device;
  Vec<cuda::State> states = Vec<cuda::State>(1);
  cuda::State& state = states[0];
  Vec<char> workspace;
  explicit Bench(int processors = 3) {
    device.path = path();
    if (path() == cuda::Path::sm90) device.capability = 90;
    device.processors = processors;
    device.few = false;
    device.state = states.data();
  }
  void provide(int64_t bytes) {
    CHECK(bytes <= cuda::kMostWorkspace);
    static unsigned calls = 0;
    constexpr int fills[] = {0x55, 0xff, 0x01};
    workspace.assign(static_cast<size_t>(bytes), static_cast<char>(fills[calls++ % 3]));
    device.workspace = workspace.data();
    device.workspace_bytes = bytes;
  }
};

// Rows of any element type, with any strides.
struct Matrix {
  Vec<char> bytes;
  Rows rows;
  Matrix(Matrix&&) = default;  // a copy's rows would be the original's
  Matrix(const Vec<double>& v, int64_t width, DType dtype, bool odd_strides = false) {
    rows = {nullptr, dtype, width == 0 ? 0 : static_cast<int64_t>(v.size()) / width, width, width, 1};
    const int64_t size = static_cast<int64_t>(size_of(dtype));
    if (odd_strides) rows.col_stride = rows.count, rows.row_stride = 1;
    bytes.resize(v.size() * static_cast<size_t>(size));
    for (int64_t i = 0; i < rows.count; ++i)
      for (int64_t k = 0; k < width; ++k)
        with_dtype(dtype, [&](auto type) {
          narrow(v[static_cast<size_t>(i * width + k)],
                 reinterpret_cast<Element<decltype(type)>*>(bytes.data()) + i * rows.row_stride + k * rows.col_stride);
        });
    rows.data = bytes.data();
  }
};

struct Answer {
  Vec<double> values;
  Vec<int64_t> indices;
  Vec<char> gathered;
  bool operator==(const Answer& o) const {
    return indices == o.indices && gathered == o.gathered && values.size() == o.values.size() &&
           (values.empty() || std::memcmp(values.data(), o.values.data(), values.size() * 8) == 0);
  }
};

struct Case {
  Metric metric = Metric::dot;
  int64_t k = 1;
  bool want_values = true, want_gathered = false, packed = false;
  bool whole = false;                        // with a workspace for the whole bank's operands
  const Vec<unsigned char>* mask = nullptr;  // [queries][bank]
  const Mask* strided = nullptr;             // or any other
  const Vec<double>* bias = nullptr;
};

template <class Run>
Answer answer(const Matrix& x, const Matrix& b, const Case& c, Run&& run) {
  SearchProblem p = problem_of(x.rows, b.rows, c.metric);
  p.k = c.k;
  p.values_dtype = DType::f64;
  if (c.bias != nullptr) p.bias = c.bias->data();
  if (c.mask != nullptr) {
    p.mask = {reinterpret_cast<const bool*>(c.mask->data()), 1};
    p.mask.add_dim(p.queries.count, b.rows.count);
  }
  if (c.strided != nullptr) p.mask = *c.strided;
  Answer a;
  a.indices.assign(static_cast<size_t>(x.rows.count * c.k), -7);
  p.indices = a.indices.data();
  if (c.want_values) {
    a.values.assign(a.indices.size(), -7.0);
    p.values = a.values.data();
  }
  if (c.want_gathered) {
    a.gathered.assign(static_cast<size_t>(x.rows.count * b.rows.width) * size_of(b.rows.dtype), 1);
    p.gathered = a.gathered.data();
  }
  run(p);
  for (double& v : a.values)
    if (v == 0.0) v = 0.0;
  return a;
}

Answer on_cpu(const Matrix& x, const Matrix& b, const Case& c) {
  return answer(x, b, c, [](SearchProblem& p) { CHECK(search(p, Parallel{}) == Status::ok); });
}
Answer emulated(const Matrix& x, const Matrix& b, const Case& c, Bench& bench) {
  return answer(x, b, c, [&](SearchProblem& p) {
    Vec<uint64_t> pack;
    if (c.packed) {
      pack.resize(static_cast<size_t>(cuda::device_pack_bytes(p.bank.count, p.bank.width, p.metric) + 7) / 8);
      bench.provide(cuda::pack_workspace());
      CHECK(ran(cuda::pack_bank, p.bank, p.metric, pack.data(), bench.device, p.bias));
      p.pack = reinterpret_cast<const PackHeader*>(pack.data());
    }
    const int64_t room = c.whole ? cuda::whole_search_workspace(p, bench.device) : 0;
    CHECK((room > 0) == c.whole);
    bench.provide(room > 0 ? room : cuda::search_workspace(p, bench.device));
    CHECK(ran(cuda::search, p, bench.device));
  });
}

// Few queries take the path's screen, and then the one that few queries have.
cuda::State compare(const Matrix& x, const Matrix& b, const Case& c, const char* what, int processors = 3,
                    int64_t piece_elements = cuda::kMostOperandElements) {
  Bench bench(processors), other(processors);
  bench.device.piece_elements = piece_elements;
  const Answer expected = on_cpu(x, b, c);
  bool same = emulated(x, b, c, bench) == expected;
  if (x.rows.count <= cuda::kFewQueries && path() == cuda::Path::simt) {
    other.device.few = true;
    same = emulated(x, b, c, other) == expected && same;
    CHECK(other.state.bad_codes == 0);
    CHECK(other.state.queries == static_cast<unsigned long long>(x.rows.count));
  }
  CHECK(same);
  CHECK(bench.state.bad_codes == 0);
  CHECK(bench.state.queries == static_cast<unsigned long long>(x.rows.count));
  if (!same)
    std::printf("  %s: metric %d k %lld d %lld n %lld m %lld dtype %d\n", what, static_cast<int>(c.metric),
                static_cast<long long>(c.k), static_cast<long long>(b.rows.width), static_cast<long long>(x.rows.count),
                static_cast<long long>(b.rows.count), static_cast<int>(b.rows.dtype));
  return bench.state;
}

// Masks that keep 0, 1 and 50 percent of the pairs, with a bias and without.
void compare_masked(const Matrix& x, const Matrix& b, const Vec<double>& bias, std::mt19937& random) {
  for (const int keep : {0, 1, 50}) {  // percent
    Vec<unsigned char> mask(static_cast<size_t>(x.rows.count * b.rows.count));
    for (auto& v : mask) v = static_cast<int>(random() % 100) < keep;
    for (const int64_t k : {1, 6, 40}) {
      Case c{Metric::dot, k};
      c.mask = &mask;
      compare(x, b, c, "mask");
      c.bias = &bias;
      c.packed = k == 6;
      compare(x, b, c, "mask and bias");
    }
  }
}

// Queries and bank rows with a NaN, infinities and a row of zeros.
std::pair<Vec<double>, Vec<double>> not_finite(Vec<double> xs, Vec<double> bs, int64_t d) {
  const size_t width = static_cast<size_t>(d);
  bs[5] = NAN, bs[7 * width] = INFINITY, bs[9 * width + 1] = -INFINITY;
  xs[width] = NAN, xs[2 * width] = INFINITY;
  std::fill_n(xs.begin() + 3 * d, d, 0.0);
  return {std::move(xs), std::move(bs)};
}

Vec<double> of_all_sizes(Vec<double> bs, int64_t d) {
  for (size_t i = 0; i < bs.size(); ++i) bs[i] *= i / d % 3 == 0 ? 1e-300 : i / d % 3 == 1 ? 1e150 : 1.0;
  return bs;
}

// Whether the numbers are the same; the bits of a NaN do not matter.
bool same_numbers(const Vec<char>& a, const Vec<char>& b, DType dtype) {
  return a.size() == b.size() && with_dtype(dtype, [&](auto type) {
           const auto *x = reinterpret_cast<decltype(type)>(a.data()), *y = reinterpret_cast<decltype(type)>(b.data());
           for (size_t i = 0; i < a.size() / sizeof *x; ++i)
             if (std::memcmp(x + i, y + i, sizeof *x) != 0 && !(std::isnan(widened(x[i])) && std::isnan(widened(y[i]))))
               return false;
           return true;
         });
}

// What the harness itself promises: a kernel sees the device's side of a Vec, the host's is hidden from it where that
// can be shown, and memory that is no Vec is refused.
TEST(cuda_cases_keep_host_and_device_apart) {
  Vec<float> v = {1.0f, 2.0f, 3.0f};
  const float* host = v.data();
  CHECK(ran(
      [&](float* there) -> cuda::Error {
        CHECK(there != nullptr && there != host + 1 && reinterpret_cast<uintptr_t>(there) % twin::kAlignment == 4);
        CHECK(twin::Side::hidden(host, 3 * sizeof(float)));
        return nullptr;
      },
      v.data() + 1));
  CHECK(v[0] == 1.0f && v[1] == 2.0f && v[2] == 3.0f);
  float elsewhere = 5.0f;
  bool called = false;
  const auto never = [&](float*) -> cuda::Error { return called = true, nullptr; };
  std::printf("     (the next line is meant:)\n");
  CHECK(!ran(never, &elsewhere) && !called);
}

TEST(cuda_search_equals_cpu) {
  uint32_t seed = 1;
  for (const Metric metric : kMetrics)
    for (const DType dtype : kDTypes)
      for (const int64_t k : {1, 3, 20}) {
        const int64_t d = k == 3 ? 17 : 8, n = k == 1 ? 37 : 5, m = k == 1 ? 300 : 700;
        const Matrix x(normal<double>(n * d, ++seed), d, dtype, k == 20);
        const Matrix b(normal<double>(m * d, ++seed), d, dtype, k == 3);
        compare(x, b, {metric, k, true, k == 1}, "gaussian");
        if (k != 20) compare(x, b, {metric, k, true, false, true}, "packed");
      }
  for (const Metric metric : kBallMetrics)
    for (const DType dtype : kDTypes)
      for (const int64_t k : {1, 3, 40}) {
        const int64_t d = 17, n = 21, m = 300;
        const Matrix x(normal<double>(n * d, ++seed, kIntoBall), d, dtype, k == 3);
        const Matrix b(normal<double>(m * d, ++seed, kIntoBall), d, dtype);
        compare(x, b, {metric, k, true, k == 1}, "in the ball");
      }
  // A 16-bit query with a float32 bank; and a query tile and a half, over several blocks of columns.
  for (const DType half : {DType::bf16, DType::f16}) {
    const Matrix x(normal<double>(9 * 12, ++seed), 12, half), b(normal<double>(90 * 12, ++seed), 12, DType::f32);
    compare(x, b, {Metric::l2, 1}, "mixed");
    compare(x, b, {Metric::cosine, 4}, "mixed");
  }
  const Matrix x(normal<double>(190 * 6, ++seed), 6, DType::f32), b(normal<double>(1500 * 6, ++seed), 6, DType::f32);
  compare(x, b, {Metric::l2, 1, false, true}, "quantize", 1);
  compare(x, b, {Metric::dot, 10}, "tiles", 40);
}

Vec<double> subnormal(Vec<double> v) {
  for (double& x : v) x *= 1e-42;
  return v;
}

// Of which every column beats those before it.
Vec<double> ascending(int64_t m, int64_t d) {
  Vec<double> rows(static_cast<size_t>(m * d));
  for (int64_t j = 0; j < m; ++j)
    for (int64_t i = 0; i < d; ++i) rows[static_cast<size_t>(j * d + i)] = static_cast<double>(j) * 0.01 + 0.001 * i;
  return rows;
}

TEST(cuda_search_adversarial_inputs) {  // of Hopper's path: cuda_sm90_cases.h
  const int64_t d = 9, n = 6, m = 400;
  const auto all = [&](const Vec<double>& xs, const Vec<double>& bs, DType dtype, const char* what) {
    const Matrix x(xs, d, dtype), b(bs, d, dtype);
    for (const cuda::Path p : {cuda::Path::simt, cuda::Path::mma16}) {
      const OnPath on(p);
      for (const Metric metric : kMetrics)
        for (const int64_t k : {int64_t{1}, int64_t{7}})
          if (p == cuda::Path::simt || (k == 1) == (metric == Metric::l2)) compare(x, b, {metric, k}, what);
    }
  };
  Vec<double> xs = normal<double>(n * d, 5), bs = normal<double>(m * d, 6);
  Vec<double> equal(static_cast<size_t>(m * d), 0.5);
  all(xs, equal, DType::f32, "all rows equal");
  all(normal<double>(n * d, 7, 0.01, 1000.0), normal<double>(m * d, 8, 0.01, 1000.0), DType::f32, "1000 +- 0.01");
  Vec<double> rounded = bs;
  for (double& v : rounded) v = std::round(v);
  all(rounded, rounded, DType::f16, "many ties");
  all(xs, of_all_sizes(bs, d), DType::f64, "all sizes");
  const auto [broken_x, broken] = not_finite(xs, bs, d);
  all(broken_x, broken, DType::f32, "NaN and infinities");
  all(xs, subnormal(bs), DType::f32, "subnormal");
  all(xs, ascending(m, d), DType::f32, "sorted");
}

TEST(cuda_search_masks_and_large_k) {
  const int64_t d = 5, n = 4, m = 900;
  const Matrix x(normal<double>(n * d, 11), d, DType::f32), b(normal<double>(m * d, 12), d, DType::f32);
  std::mt19937 random(3);
  for (const int keep : {0, 1, 50, 99}) {  // percent
    Vec<unsigned char> mask(static_cast<size_t>(n * m));
    for (auto& v : mask) v = static_cast<int>(random() % 100) < keep;
    for (const int64_t k : {int64_t{1}, int64_t{9}, int64_t{200}}) {
      Case c{Metric::l2, k};
      c.mask = &mask;
      c.want_gathered = k == 1;
      compare(x, b, c, "mask");
    }
  }
  // Queries (2, 3, 4), a mask (2, 1, 4, M) that lies with its columns outermost.
  const Matrix many_x(normal<double>(24 * d, 16), d, DType::f32);
  Vec<unsigned char> spread(static_cast<size_t>(8 * m));
  for (auto& v : spread) v = random() % 2;
  Mask mask{reinterpret_cast<const bool*>(spread.data()), 8};
  CHECK(mask.add_dim(4, 1) && mask.add_dim(3, 0) && mask.add_dim(2, 4));
  for (const int64_t k : {int64_t{1}, int64_t{9}, int64_t{200}}) {
    Case c{Metric::dot, k};
    c.strided = &mask;
    compare(many_x, b, c, "mask of several strides");
  }
  for (const int64_t k : {int64_t{100}, int64_t{113}, int64_t{450}, m}) compare(x, b, {Metric::cosine, k}, "large k");
  const int64_t many = 3000;  // more ranks than a block sorts: several passes
  const Matrix wide(normal<double>(many * 2, 13), 2, DType::f32), one(normal<double>(2, 14), 2, DType::f32);
  compare(one, wide, {Metric::dot, many}, "k = M");
  compare(one, wide, {Metric::dot, 300}, "few queries", 20);
  compare(one, wide, {Metric::dot, 1000}, "split", 20);
  const Matrix nothing(Vec<double>{}, 4, DType::f32), some(normal<double>(8, 15), 4, DType::f32);
  compare(some, nothing, {Metric::l2, 1, true, true}, "empty bank");
}

TEST(cuda_search_biased) {
  const Matrix x(normal<double>(7 * 10, 31), 10, DType::f32), b(normal<double>(500 * 10, 32), 10, DType::f32);
  for (const double scale : {1.0, 1e12, 1e-30, 0.0}) {
    const auto bias = normal<double>(500, 33, scale);
    for (const int64_t k : {1, 5, 100})
      for (const bool packed : {false, true}) {
        Case c{Metric::dot, k};
        c.bias = &bias;
        c.packed = packed;
        compare(x, b, c, "bias");
      }
  }
}

TEST(cuda_search_bad_pack_is_not_read) {
  const Matrix x(normal<double>(40, 21), 8, DType::f32), b(normal<double>(800, 22), 8, DType::f32);
  const Matrix longer(normal<double>(808, 23), 8, DType::f32);
  for (const cuda::Path on : every_path())
    for (const bool other : {false, true}) {  // a pack of another bank, or no pack at all
      const OnPath path(on);
      Bench bench;
      Vec<uint64_t> garbage(static_cast<size_t>(cuda::device_pack_bytes(101, 8, Metric::l2)) / 8 + 1, ~0ull);
      bench.provide(cuda::pack_workspace());
      if (other) CHECK(ran(cuda::pack_bank, longer.rows, Metric::l2, garbage.data(), bench.device, nullptr));
      const Answer a = answer(x, b, {Metric::l2, 1}, [&](SearchProblem& p) {
        p.pack = reinterpret_cast<const PackHeader*>(garbage.data());
        bench.provide(cuda::search_workspace(p, bench.device));
        CHECK(ran(cuda::search, p, bench.device));
      });
      CHECK(a == on_cpu(x, b, {Metric::l2, 1}));
      CHECK(bench.state.bad_codes != 0 && bench.state.repeated == 5);
    }
}

}  // namespace

#include "cuda_codebook_cases.h"
#include "cuda_few_cases.h"
#include "cuda_pack_cases.h"
#include "cuda_project_cases.h"
#include "cuda_refine_cases.h"
#include "cuda_screen_cases.h"
#include "cuda_sm90_cases.h"
#include "cuda_sum_cases.h"
