// The calls that the timer (timer.cu) measures: shapes, paths, and data made on the device.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/half.h"
#include "cuda/api.h"
#include "device_array.h"

namespace timer {

using namespace vecbank;
using cuda::Device;
using cuda::Error;
using cuda::Path;

// ---- Data on the device
// ----------------------------------------------------------------------------------------------

__device__ inline uint64_t mixed(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}
__device__ inline float normal_of(uint64_t bits) {
  const float u = (static_cast<float>(bits >> 40) + 0.5f) * 0x1p-24f,
              v = static_cast<float>(bits & 0xffffff) * 0x1p-24f;
  return sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
}
template <class T>
__global__ void normal_kernel(T* out, int64_t count, uint64_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
    narrow(static_cast<double>(normal_of(mixed(seed * 0x100000001ull + static_cast<uint64_t>(i)))), out + i);
}
__global__ void codes_kernel(int64_t* out, int64_t count, int64_t codes, uint64_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
    out[i] = static_cast<int64_t>(mixed(seed + static_cast<uint64_t>(i)) % static_cast<uint64_t>(codes));
}

// Owns what a case allocates. For a dry run there is no device: addresses are made up, and only bytes are added up.
class Store {
 public:
  explicit Store(bool dry) : dry_(dry) {}
  int64_t bytes() const { return bytes_; }
  bool dry() const { return dry_; }
  template <class T>
  T* empty(int64_t count) {
    bytes_ += count * static_cast<int64_t>(sizeof(T));
    if (dry_) return reinterpret_cast<T*>(uintptr_t{256});
    held_.push_back(std::make_unique<DeviceArray<char>>(count * static_cast<int64_t>(sizeof(T))));
    return reinterpret_cast<T*>(held_.back()->data());
  }
  Rows normal(int64_t count, int64_t width, DType dtype) {
    void* data = empty<char>(count * width * static_cast<int64_t>(size_of(dtype)));
    if (!dry_)
      with_dtype(dtype, [&](auto t) {
        normal_kernel<<<1024, 256>>>(static_cast<Element<decltype(t)>*>(data), count * width, ++seed_);
      });
    return {data, dtype, count, width, width, 1};
  }
  int64_t* codes(int64_t count, int64_t most) {
    int64_t* data = empty<int64_t>(count);
    if (!dry_) codes_kernel<<<1024, 256>>>(data, count, most, ++seed_);
    return data;
  }

 private:
  bool dry_;
  int64_t bytes_ = 0;
  uint64_t seed_ = 0;
  std::vector<std::unique_ptr<DeviceArray<char>>> held_;
};

// ---- The calls
// -------------------------------------------------------------------------------------------------------

struct Prepared {
  int64_t workspace = 0;
  std::function<Error(const Device&)> call;
};
struct Case {
  std::string name;
  Path path;
  std::function<Prepared(Store&, const Device&)> prepare;  // `device` has no workspace yet
  bool few = false;                                        // few queries may have their own screen
};

inline const char* name_of(Path path) { return path == Path::simt ? "simt" : path == Path::mma16 ? "mma16" : "sm90"; }
inline const char* name_of(DType dtype) {
  return dtype == DType::f32 ? "f32" : dtype == DType::f64 ? "f64" : dtype == DType::bf16 ? "bf16" : "f16";
}

// A call at once, with a workspace of its own: for packs and codes that a case needs.
inline bool done_now(Store& store, Device device, int64_t workspace, const std::function<Error(const Device&)>& call) {
  if (store.dry()) return true;
  DeviceArray<char> room(workspace);
  device.workspace = room.data();
  device.workspace_bytes = workspace;
  return call(device) == nullptr && cudaDeviceSynchronize() == cudaSuccess;
}

inline const PackHeader* packed(Store& store, const Rows& bank, Metric metric, const Device& device) {
  char* pack = store.empty<char>(cuda::device_pack_bytes(bank.count, bank.width, metric));
  const bool fine = done_now(store, device, cuda::pack_workspace(),
                             [&](const Device& d) { return cuda::pack_bank(bank, metric, pack, d); });
  return fine ? reinterpret_cast<const PackHeader*>(pack) : nullptr;
}

struct Shape {
  int64_t n, m, d;
  DType dtype = DType::bf16;
  std::string text() const {
    return std::to_string(n) + "x" + std::to_string(m) + "-d" + std::to_string(d) + "-" + name_of(dtype);
  }
};

inline SearchProblem search_of(Store& store, const Shape& s, int64_t k, Metric metric) {
  SearchProblem p;
  p.queries = store.normal(s.n, s.d, s.dtype);
  p.bank = store.normal(s.m, s.d, s.dtype);
  p.metric = metric;
  p.k = k;
  p.indices = store.empty<int64_t>(s.n * k);
  p.values = store.empty<float>(s.n * k);
  return p;
}

inline Case search_case(const Shape& s, int64_t k, Path path, bool pack) {
  const std::string op = k == 1 ? "nearest" : "topk" + std::to_string(k);
  return {op + "-" + s.text() + "/" + name_of(path) + (pack ? "/packed" : "/plain"), path,
          [=](Store& store, const Device& device) -> Prepared {
            SearchProblem p = search_of(store, s, k, k == 1 ? Metric::l2 : Metric::dot);
            if (pack) p.pack = packed(store, p.bank, p.metric, device);
            const int64_t room = std::max(cuda::search_workspace(p, device), cuda::whole_search_workspace(p, device));
            return {room, [p](const Device& d) { return cuda::search(p, d); }};
          }};
}

enum class Codes { uniform, nearest, constant };
inline Case segment_sum_case(const char* name, Codes kind) {
  return {std::string("segment_sum-1048576x8192-d64-bf16/") + name, Path::simt,
          [=](Store& store, const Device& device) -> Prepared {
            const int64_t n = 1 << 20, m = 8192, d = 64;
            SegmentSumProblem s;
            s.source = store.normal(n, d, DType::bf16);
            int64_t* codes = store.codes(n, kind == Codes::constant ? 1 : m);
            if (kind == Codes::nearest) {  // as in VQ with a Gaussian book: some codes have a hundred times more rows
              SearchProblem p;
              p.queries = s.source, p.bank = store.normal(m, d, DType::bf16), p.metric = Metric::l2, p.indices = codes;
              if (!done_now(store, device, cuda::search_workspace(p, device),
                            [&](const Device& w) { return cuda::search(p, w); }))
                return {};
            }
            s.codes = codes;
            s.count = n;
            s.segments = m;
            s.out = store.empty<float>(m * d);
            s.counts = store.empty<float>(m);
            return {cuda::segment_sum_workspace(s), [s](const Device& w) { return cuda::segment_sum(s, w); }};
          }};
}

inline std::vector<Case> all_cases() {
  std::vector<Case> cases;
  const Path paths[] = {Path::sm90, Path::mma16, Path::simt};
  const int64_t million = 1 << 20;
  // The figures that matter most come first.
  for (const Path path : paths)
    for (const bool pack : {true, false}) {
      cases.push_back(search_case({million, 8192, 64}, 1, path, pack));
      cases.push_back(search_case({4096, 1000000, 128}, 10, path, pack));
    }
  for (const int64_t n : {1, 4, 16}) {  // the screen of few queries, which reads the bank's own rows
    cases.push_back(search_case({n, 1000000, 128}, 10, Path::simt, false));
    cases.back().name = "topk10-" + Shape{n, 1000000, 128}.text() + "/few";
    cases.back().few = true;
  }
  for (const Path path : paths)  // and without it
    for (const int64_t n : {1, 16})
      if (n == 1 || path != Path::simt) cases.push_back(search_case({n, 1000000, 128}, 10, path, true));
  for (const Path path : paths) cases.push_back(search_case({65536, 8192, 64, DType::f32}, 1, path, true));
  cases.push_back(segment_sum_case("uniform", Codes::uniform));
  cases.push_back(segment_sum_case("nearest", Codes::nearest));
  cases.push_back(segment_sum_case("constant", Codes::constant));
  for (const DType dtype : {DType::bf16, DType::f32})
    cases.push_back({std::string("project-65536x1024-d768-") + name_of(dtype) + "/kernel", Path::simt,
                     [=](Store& store, const Device& device) -> Prepared {
                       ProjectProblem p;
                       p.queries = store.normal(65536, 768, dtype);
                       p.bank = store.normal(1024, 768, dtype);
                       p.metric = Metric::cosine;
                       p.out_dtype = dtype;
                       p.out = store.empty<float>(int64_t{65536} * 1024);
                       return {cuda::project_workspace(p, device),
                               [p](const Device& d) { return cuda::project(p, d); }};
                     }});
  cases.push_back(
      {"residual_quantize-65536x8x1024-d128-f32", Path::simt, [](Store& store, const Device& device) -> Prepared {
         ResidualProblem p;
         p.queries = store.normal(65536, 128, DType::f32);
         for (int s = 0; s < 8; ++s) {
           const Rows bank = store.normal(1024, 128, DType::f32);
           p.stages.push_back({bank, packed(store, bank, p.metric, device)});
         }
         p.codes = store.empty<int64_t>(65536 * 8);
         p.quantized = store.empty<float>(65536 * 128);
         float* losses = store.empty<float>(8);
         return {cuda::residual_workspace(p, device),
                 [p, losses](const Device& d) { return cuda::residual_quantize(p, losses, d); }};
       }});
  cases.push_back({"pair_gradients-65536x8192-d64-k32-f32", Path::simt, [](Store& store, const Device&) -> Prepared {
                     PairProblem p;
                     p.queries = store.normal(65536, 64, DType::f32);
                     p.bank = store.normal(8192, 64, DType::f32);
                     p.k = 32;
                     p.indices = store.codes(65536 * 32, 8192);
                     p.grad = store.normal(65536, 32, DType::f32).data;
                     p.grad_queries = store.empty<float>(65536 * 64);
                     p.grad_bank = store.empty<float>(8192 * 64);
                     return {cuda::pair_workspace(p), [p](const Device& d) { return cuda::pair_gradients(p, d); }};
                   }});
  // The rest of a training step of VectorQuantize.
  cases.push_back({"lookup-1048576x8192-d64-f32", Path::simt, [=](Store& store, const Device&) -> Prepared {
                     LookupProblem p;
                     p.codes = store.codes(million, 8192);
                     p.count = million;
                     p.bank = store.normal(8192, 64, DType::f32);
                     p.out = store.empty<float>(million * 64);
                     return {0, [p](const Device& d) { return cuda::lookup(p, d); }};
                   }});
  cases.push_back({"quantize_loss-1048576-d64-bf16", Path::simt, [=](Store& store, const Device&) -> Prepared {
                     QuantizeLossProblem p;
                     p.x = store.normal(million, 64, DType::bf16);
                     p.codes = store.codes(million, 8192);
                     p.quantized = store.normal(million, 64, DType::f32);
                     double* mean = store.empty<double>(1);
                     return {cuda::quantize_loss_workspace(million),
                             [p, mean](const Device& d) { return cuda::quantize_loss(p, mean, DType::f64, d); }};
                   }});
  cases.push_back({"pass_back-1048576-d64-f32-rotation", Path::simt, [=](Store& store, const Device&) -> Prepared {
                     PassBackProblem p;
                     p.grad = store.normal(million, 64, DType::f32).data;
                     p.x = store.normal(million, 64, DType::f32).data;
                     p.quantized = store.normal(million, 64, DType::f32).data;
                     p.rows = million, p.width = 64;
                     p.estimator = Estimator::rotation;
                     p.out = store.empty<float>(million * 64);
                     const void* scale = store.normal(1, 1, DType::f64).data;
                     return {0, [p, scale](const Device& d) { return cuda::pass_back(p, scale, DType::f64, d); }};
                   }});
  for (const Path path : paths) cases.push_back(search_case({million, 8192, 128}, 1, path, true));
  for (const Path path : paths) cases.push_back(search_case({4096, 1000000, 128}, 100, path, true));
  return cases;
}

}  // namespace timer
