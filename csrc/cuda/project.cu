// project: the whole similarity matrix, written once. Tiles are float64 for a float64 bank, and float32 otherwise.
#include "arena.h"
#include "heuristics.h"
#include "mainloop_simt.cuh"
#include "plan.h"
#include "project.cuh"

namespace vecbank::cuda {
namespace {

constexpr int64_t kMostRows = 1 << 16;                  // query rows of a chunk
constexpr int64_t kProjectPiece = int64_t{24} << 20;    // packed part of the bank
constexpr int64_t kProjectQueries = int64_t{24} << 20;  // packed part of the queries
constexpr int kRunLines = 128;                          // products that are added in one sequence

template <class T>
struct Store {
  const T* queries;  // panels
  const T* panels;   // of this piece of the bank, in natural order
  int64_t first_column, columns;
  const T *scale, *term;  // value = score * scale + term, then finish
  const unsigned char* fallback;
  const PackHeader* header;
  Finish finish;
  Metric metric;
  Rows query_rows, bank_rows;  // the originals: query row 0 is this chunk's first, bank row 0 the whole bank's
  void* out;                   // row 0 is this chunk's first
  DType out_dtype;
  int64_t out_stride;
};

template <class T>
__device__ __forceinline__ void emit(const Store<T>& a, int64_t row, int64_t column, double v) {
  store(v, a.out, a.out_dtype, row * a.out_stride + a.first_column + column);
}

// The second level of a tile's sums: every kRunLines lines a thread adds its sums to numbers of its own in shared
// memory and begins again at zero. One long sum of d products errs by several times what a library's product does,
// which cuts them too.
template <class T>
struct SecondLevel {
  using S = Simt<T>;
  using Vector = typename S::Vector;
  static constexpr int kGroups = S::kSide / S::kVector;  // of neighbouring columns
  static constexpr int64_t kBytes = int64_t{S::kSize} * S::kSize * static_cast<int64_t>(sizeof(T));

  // Neighbouring threads' vectors are neighbours, as the banks like it.
  static __device__ __forceinline__ Vector* mine() {
    return reinterpret_cast<Vector*>(shared_memory() + S::kSharedBytes) + threadIdx.x;
  }
  static __device__ __forceinline__ void put(T (&acc)[S::kSide][S::kSide], bool first) {
#pragma unroll
    for (int at = 0; at < S::kSide * kGroups; ++at) {
      Vector v{};
      if (!first) v = mine()[at * kThreads];
#pragma unroll
      for (int e = 0; e < S::kVector; ++e) {
        T& sum = acc[at / kGroups][at % kGroups * S::kVector + e];
        v.v[e] += sum;
        sum = T(0);
      }
      mine()[at * kThreads] = v;
    }
  }
  static __device__ __forceinline__ void take(T (&acc)[S::kSide][S::kSide]) {
#pragma unroll
    for (int at = 0; at < S::kSide * kGroups; ++at) {
      const Vector v = mine()[at * kThreads];
#pragma unroll
      for (int e = 0; e < S::kVector; ++e) acc[at / kGroups][at % kGroups * S::kVector + e] += v.v[e];
    }
  }
};

// blockIdx.x: column tile; blockIdx.y: query tile. `kTwice`: sums have a second level.
template <class T, bool kTwice>
__global__ void __launch_bounds__(kThreads, 2) store_kernel(const __grid_constant__ Store<T> a) {
  using S = Simt<T>;
  T* shared = reinterpret_cast<T*>(shared_memory());
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t d = a.query_rows.width, rows = a.query_rows.count;
  const int64_t first_panel = static_cast<int64_t>(blockIdx.x) * S::kPanels;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * S::kSize;
  const Side<T> b = make_side<T>([&](int p) -> const T* {
    return (first_panel + p) * kPanel < a.columns ? a.panels + (first_panel + p) * (d + 3) * kPanel + kPanel : nullptr;
  });
  const Side<T> x = make_side<T>([&](int p) -> const T* {
    const int64_t panel = first_row / kPanel + p;
    return panel * kPanel < rows ? a.queries + panel * (d + 1) * kPanel : nullptr;
  });
  // A distance starts from half a squared norm, negative. Added first it cancels best where x and b are close. But then
  // every product is rounded at its size, so that a long sum in one sequence gets it last, as a library's would.
  T acc[S::kSide][S::kSide] = {};
  const auto add_starts = [&] {
#pragma unroll
    for (int j = 0; j < S::kSide; ++j) {
      const int64_t column = first_panel * kPanel + S::spread(j, tx);
      const T start = column < a.columns ? a.panels[column / kPanel * (d + 3) * kPanel + column % kPanel] : T(0);
#pragma unroll
      for (int i = 0; i < S::kSide; ++i) acc[i][j] += start;
    }
  };
  if constexpr (kTwice) {
    multiply<T>(x, b, static_cast<int>(d), a.panels, shared, acc, [&](int left) {
      const int done = static_cast<int>(a.query_rows.width) - left;
      if (done % kRunLines == 0) SecondLevel<T>::put(acc, done == kRunLines);
    });
    add_starts();  // to the last run alone, before all others
    SecondLevel<T>::take(acc);
  } else {
    if (d <= kRunLines) add_starts();
    multiply<T>(x, b, static_cast<int>(d), a.panels, shared, acc);
    if (d > kRunLines) add_starts();
  }

#pragma unroll
  for (int i = 0; i < S::kSide; ++i) {
    const int64_t row = first_row + S::spread(i, ty);
    if (row >= rows) continue;
    const T scale = a.scale[row], term = a.term[row];
#pragma unroll
    for (int j = 0; j < S::kSide; ++j) {
      const int64_t column = first_panel * kPanel + S::spread(j, tx);
      if (column < a.columns) emit<T>(a, row, column, last_step<T>(fused(acc[i][j], scale, term), a.finish));
    }
  }
}

// Fallback rows and columns, which tiles cannot carry (not finite, or of extreme scale), are scored in float64 by eight
// lanes each. blockIdx.x walks the rows.
template <class T>
__global__ void __launch_bounds__(kThreads) rescore_kernel(const __grid_constant__ Store<T> a) {
  const bool fallback_columns = a.header->fallbacks != 0;
  const int64_t d = a.query_rows.width;
  for (int64_t row = blockIdx.x; row < a.query_rows.count; row += gridDim.x) {
    const bool fallback = a.fallback[row] != 0;
    if (!fallback && !fallback_columns) continue;
    rescore_row(
        a.query_rows, row, a.bank_rows, a.first_column, a.columns, a.metric,
        [&](int64_t column) {  // the upper start of a fallback column is +inf
          const T* panel = a.panels + column / kPanel * (d + 3) * kPanel;
          return fallback || panel[(d + 2) * kPanel + column % kPanel] == static_cast<T>(HUGE_VAL);
        },
        [&](int64_t column, double v) { emit<T>(a, row, column, v); });
  }
}

struct ProjectPlan {
  int64_t rows, piece_panels;
};
template <class T>
ProjectPlan plan_of(const ProjectProblem& p) {
  const int64_t size = sizeof(T), d = p.bank.width, panels = ceil_div(p.bank.count, kPanel);
  ProjectPlan plan;
  plan.rows = std::clamp<int64_t>(kProjectQueries / ((d + 1) * size), kPanel, kMostRows);
  plan.rows = std::min(plan.rows / kPanel * kPanel, round_up_to(p.queries.count, kPanel));
  plan.piece_panels = std::clamp<int64_t>(kProjectPiece / ((d + 3) * kPanel * size), 1, panels);
  return plan;
}

// Whether the caller's pack holds the float32 panels that this kernel reads.
bool has_panels(const ProjectProblem& p) { return p.pack != nullptr && packs_panels(p.bank); }

template <class T>
struct ProjectWork {
  PackHeader* header;
  double *centre, *sample_scale;
  T *piece, *queries, *scale, *term;
  unsigned char* fallback;
  int64_t bytes;
};
template <class T>
ProjectWork<T> cut_project(const ProjectProblem& p, const ProjectPlan& plan, bool packed, void* base) {
  Arena arena(base);
  ProjectWork<T> w{};
  const int64_t d = p.bank.width;
  if (!packed) {
    w.header = arena.take<PackHeader>(1);
    w.centre = arena.take<double>(d);
    w.sample_scale = arena.take<double>(kThreads);
    w.piece = arena.take<T>(plan.piece_panels * (d + 3) * kPanel);
  }
  w.queries = arena.take<T>(plan.rows * (d + 1));
  w.scale = arena.take<T>(plan.rows);
  w.term = arena.take<T>(plan.rows);
  w.fallback = arena.take<unsigned char>(plan.rows);
  w.bytes = arena.used();
  return w;
}

// One block may have the memory for a second level, and so may two on a multiprocessor, without which float32 would be
// slower. In float64 the arithmetic takes the time.
template <class T>
bool sums_twice(int64_t width, const Device& device) {
  const int64_t blocks = sizeof(T) == 8 ? 1 : 2;
  return width > kRunLines &&
         blocks * (Simt<T>::kSharedBytes + SecondLevel<T>::kBytes) <= shared_limit(device.capability);
}

template <class T>
Error project_as(const ProjectProblem& p, const Device& device) {
  const bool packed = sizeof(T) == 4 && has_panels(p);
  const ProjectPlan plan = plan_of<T>(p);
  const ProjectWork<T> w = cut_project<T>(p, plan, packed, device.workspace);
  if (w.bytes > device.workspace_bytes) return kTooSmall;
  const PackHeader host = device_pack_layout(p.bank.count, p.bank.width, p.metric, p.bank.dtype, false);
  char* pack = const_cast<char*>(reinterpret_cast<const char*>(p.pack));
  PackHeader* header = packed ? reinterpret_cast<PackHeader*>(pack) : w.header;
  // A similarity in float64 gains nothing from a centre: x . centre, added back, is rounded as x . b is.
  const bool centres = sizeof(T) == 4 || record(p.metric).shares_frame;
  const double* centre = !centres ? nullptr
                         : packed ? reinterpret_cast<const double*>(pack + host.centre_at)
                                  : w.centre;
  const bool twice = sums_twice<T>(p.bank.width, device);
  const int64_t shared = Simt<T>::kSharedBytes + (twice ? SecondLevel<T>::kBytes : 0);
  if (!packed) VB_TRY(choose_frame(p.bank, host, w.header, w.centre, w.sample_scale, device));

  const int64_t panels = ceil_div(p.bank.count, kPanel), piece = packed ? panels : plan.piece_panels;
  for (int64_t first = 0; first < p.queries.count; first += plan.rows) {
    QueryPanels q{};
    q.queries = p.queries;
    q.queries.data = row_of(p.queries, first);
    q.queries.count = std::min(plan.rows, p.queries.count - first);
    q.metric = p.metric;
    q.header = header;
    q.centre = centre;
    q.expected = host;
    q.state = device.state;
    q.panels = w.queries;
    q.scale = w.scale;
    q.term = w.term;
    q.fallback = w.fallback;
    for (int64_t at = 0; at < panels; at += piece) {
      const int64_t count = std::min(piece, panels - at);
      BankPanels b;
      b.bank = p.bank;
      b.metric = p.metric;
      b.header = header;
      b.centre = centre;
      b.panels = w.piece;
      b.schedule.panels = panels;
      b.first_slot = at;
      b.count = count;
      const bool packs_bank = !packed && (first == 0 || piece < panels);
      if (at == 0 || packs_bank) VB_TRY(pack_panels<T>(at == 0 ? &q : nullptr, packs_bank ? &b : nullptr, device));
      Store<T> s;
      s.queries = w.queries;
      s.panels = packed ? reinterpret_cast<const T*>(pack + host.panels_at) : w.piece;
      s.first_column = at * kPanel;
      s.columns = std::min(count * kPanel, p.bank.count - at * kPanel);
      s.scale = w.scale;
      s.term = w.term;
      s.fallback = w.fallback;
      s.header = header;
      s.metric = p.metric;
      s.finish = finish_of(p.metric);
      s.query_rows = q.queries;
      s.bank_rows = p.bank;
      s.out_stride = p.bank.count;
      s.out = static_cast<char*>(p.out) + first * s.out_stride * static_cast<int64_t>(size_of(p.out_dtype));
      s.out_dtype = p.out_dtype;
      const dim3 grid(static_cast<unsigned>(ceil_div(count, Simt<T>::kPanels)),
                      static_cast<unsigned>(ceil_div(q.queries.count, Simt<T>::kSize)));  // at most 1024
      VB_TRY(launch(twice ? store_kernel<T, true> : store_kernel<T, false>, grid, kThreads, shared, device, s));
      const int64_t most = int64_t{8} * device.processors;
      VB_TRY(launch(rescore_kernel<T>, grid_for(std::min(q.queries.count, most)), kThreads, 0, device, s));
    }
  }
  return nullptr;
}

// Eight lanes score a pair, whatever the metric.
struct ExactArgs {
  ProjectProblem p;
  int64_t columns;
  State* state;
};
__global__ void __launch_bounds__(kThreads) exact_kernel(const __grid_constant__ ExactArgs a) {
  const ProjectProblem& p = a.p;
  const int lane = threadIdx.x % kLanes;
  const MetricRecord m = record(p.metric);
  const int64_t pairs = p.queries.count * a.columns, groups = int64_t{gridDim.x} * (kThreads / kLanes);
  for (int64_t base = int64_t{blockIdx.x} * (kThreads / kLanes); base < pairs; base += groups) {
    const int64_t i = base + threadIdx.x / kLanes, row = i / a.columns;
    const int64_t j = i >= pairs ? -1 : p.indices == nullptr ? i % a.columns : p.indices[i];
    const bool bad = j < -1 || j >= p.bank.count, there = !bad && j >= 0;
    const double raw = sum_of_8(there ? pair_lane(p.queries, row, p.bank, j, lane, m.term) : 0.0);
    double query_norm = 1.0, bank_norm = 1.0;
    if (m.scaled_rows()) {
      query_norm = row_factor(m, sum_of_8(there ? self_lane(p.queries, row, lane) : 0.0));
      bank_norm = row_factor(m, sum_of_8(there ? self_lane(p.bank, j, lane) : 0.0));
    }
    if (i >= pairs || lane != 0) continue;
    if (bad) atomicAdd(&a.state->bad_codes, 1u);
    const double value = value_of(p.metric, key_of(p.metric, raw, query_norm, bank_norm));
    store(there ? value : bad ? nan("") : 0.0, p.out, p.out_dtype, i);
  }
}

Error project_exact(const ProjectProblem& p, const Device& device) {
  const int64_t columns = p.indices == nullptr ? p.bank.count : p.k;
  if (columns == 0) return nullptr;
  return launch(exact_kernel, grid_for(ceil_div(p.queries.count * columns, kThreads / kLanes)), kThreads, 0, device,
                ExactArgs{p, columns, device.state});
}

}  // namespace

int64_t project_workspace(const ProjectProblem& p, const Device&) {
  if (p.queries.count == 0 || p.bank.count == 0 || refined_only(p.metric)) return 0;
  if (p.bank.dtype == DType::f64) return cut_project<double>(p, plan_of<double>(p), false, nullptr).bytes;
  return cut_project<float>(p, plan_of<float>(p), has_panels(p), nullptr).bytes;
}

Error project(const ProjectProblem& p, const Device& device) {
  if (p.queries.count == 0 || (p.bank.count == 0 && p.indices == nullptr)) return nullptr;
  if (p.exact || refined_only(p.metric)) return project_exact(p, device);
  // Where float32 has no second level, as many long sums as are soon done are float64 ones.
  if (few_long_scores(p) && p.bank.dtype != DType::f64 && !sums_twice<float>(p.bank.width, device))
    return project_exact(p, device);
  if (p.bank.width > kWidestProduct) return "vectors this wide are not supported on CUDA";
  return p.bank.dtype == DType::f64 ? project_as<double>(p, device) : project_as<float>(p, device);
}

}  // namespace vecbank::cuda
