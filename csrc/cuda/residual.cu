// residual_quantize, product_quantize: all stages run in one kernel (stages.cu) where plan_stages() allows it.
// Otherwise each stage is a search: for float64 codebooks, rows too wide for the chip, and few rows against long
// codebooks. Codebooks without a pack are packed by the call: on the chip all at once, otherwise by their searches. The
// driver only launches and never waits for the device.
#include <map>
#include <tuple>

#include "arena.h"
#include "plan.h"
#include "rows.cuh"
#include "stages.h"

namespace vecbank::cuda {
namespace {

struct StageWork {  // the parts of one workspace; with a null base only their bytes count
  Stage* codebooks;
  std::vector<PackedCodebook> packed;  // the codebooks, each with its pack
  std::vector<CodebookPack> packs;     // those that the call makes
  double* sample_scale;
  double* squares;  // [stages][blocks]
  int64_t* valid;
  void *residual, *row;  // of a chunk, where each stage is a search
  int64_t* found;
  int64_t bytes;
};

StageWork cut(const StagesPlan& plan, int64_t rows, const std::vector<PackedCodebook>& codebooks, Metric metric,
              int64_t row_bytes, bool cascade, void* base) {
  Arena arena(base);
  StageWork w{};
  const int64_t stages = static_cast<int64_t>(codebooks.size());
  if (plan.on_chip) {
    w.codebooks = arena.take<Stage>(stages);
    w.packed = codebooks;
    std::map<std::tuple<const void*, int64_t, int64_t, int64_t>, void*> made;  // several may be the same rows
    for (PackedCodebook& codebook : w.packed) {
      const Rows& bank = codebook.bank;
      if (codebook.pack != nullptr || bank.count == 0) continue;
      const auto [place, is_new] = made.try_emplace({bank.data, bank.count, bank.row_stride, bank.col_stride}, nullptr);
      if (is_new) {
        place->second = arena.take<char>(codebook_pack_bytes(bank.count, bank.width, metric));
        w.packs.push_back({bank, place->second});
      }
      codebook.pack = static_cast<const PackHeader*>(place->second);
    }
    if (!w.packs.empty()) w.sample_scale = arena.take<double>(int64_t{kCodebooksAtOnce} * kThreads);
  }
  if (cascade) {
    w.squares = arena.take<double>(stages * plan.blocks);
    w.valid = arena.take<int64_t>(stages * plan.blocks);
  }
  if (!plan.on_chip) {
    const int64_t chunk = std::min(plan.rows, rows);
    w.found = arena.take<int64_t>(chunk);
    if (cascade) {
      w.residual = arena.take<char>(chunk * row_bytes);
      w.row = arena.take<char>(chunk * row_bytes);
    }
  }
  w.bytes = arena.used();
  return w;
}

// Packs the codebooks that come without, and describes all of them to the kernel.
Error prepare(const StageWork& w, Metric metric, const Device& device) {
  VB_TRY(pack_codebooks(w.packs, metric, w.sample_scale, device));
  return describe(w.packed.data(), static_cast<int64_t>(w.packed.size()), metric, w.codebooks, device);
}

// The device with the part of the workspace after `used` bytes, for the searches.
Device remaining_workspace(const Device& device, int64_t used) {
  Device d = device;
  d.workspace = static_cast<char*>(device.workspace) + used;
  d.workspace_bytes = device.workspace_bytes - used;
  return d;
}

// ---- A stage at a time ---------------------------------------------------------------------------------------------

struct Step {
  Rows x;  // the chunk's inputs, which are the residuals of the first stage
  void* residual;
  const void* row;       // the bank rows that the search found; in the codebooks' dtype, like residual and total
  const int64_t* found;  // [rows]
  int64_t rows, width, stage, stages;
  int64_t* codes;  // [rows][stages]
  void* total;
  double* squares;  // [blocks] of this stage
  int64_t* valid;
  bool fresh;  // in the first chunk, whose sums replace what the memory holds
};

template <class T>
__global__ void __launch_bounds__(kThreads) widen_rows_kernel(const Step a) {
  for (int64_t r = blockIdx.x; r < a.rows; r += gridDim.x)
    for (int64_t k = threadIdx.x; k < a.width; k += kThreads)
      static_cast<T*>(a.residual)[r * a.width + k] = static_cast<T>(at(a.x, r, k));
}

// Subtracts a stage's rows from the residuals: eight lanes a row, 64 rows at a time.
template <class T>
__global__ void __launch_bounds__(kThreads) step_kernel(const Step a) {
  double* squares = reinterpret_cast<double*>(shared_memory());
  int64_t* valid = reinterpret_cast<int64_t*>(squares + kThreads);
  const int lane = threadIdx.x % kLanes;
  bool fresh = a.fresh;
  for (int64_t first = int64_t{blockIdx.x} * kStageRows; first < a.rows; first += int64_t{gridDim.x} * kStageRows) {
    double sum = 0.0;
    int64_t rows = 0;
    for (int i = threadIdx.x / kLanes; i < kStageRows; i += kThreads / kLanes) {
      const int64_t r = first + i;
      if (r >= a.rows) continue;
      const int64_t code = a.found[r];
      if (lane == 0) a.codes[r * a.stages + a.stage] = code;
      const T* row = static_cast<const T*>(a.row) + r * a.width;
      T *residual = static_cast<T*>(a.residual) + r * a.width, *total = static_cast<T*>(a.total) + r * a.width;
      for (int64_t k = lane; k < a.width; k += kLanes) {
        const T value = residual[k] - row[k];
        residual[k] = value;
        total[k] = a.stage == 0 ? row[k] : total[k] + row[k];
        if (code >= 0) sum = add_rn(sum, mul_rn(value, value));
      }
      rows += lane == 0 && code >= 0;
    }
    squares[threadIdx.x] = sum;
    valid[threadIdx.x] = rows;
    block_sums(squares, valid);
    if (threadIdx.x == 0) {
      a.squares[blockIdx.x] = fresh ? squares[0] : add_rn(a.squares[blockIdx.x], squares[0]);
      a.valid[blockIdx.x] = fresh ? valid[0] : a.valid[blockIdx.x] + valid[0];
    }
    fresh = false;
    __syncthreads();
  }
}

struct Spread {
  const int64_t* found;
  int64_t rows, part, parts;
  int64_t* codes;  // [rows][parts]
};
__global__ void __launch_bounds__(kThreads) spread_codes_kernel(const Spread a) {
  for (int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x; r < a.rows; r += int64_t{gridDim.x} * kThreads)
    a.codes[r * a.parts + a.part] = a.found[r];
}

SearchProblem search_of(const Rows& queries, const PackedCodebook& codebook, Metric metric, int64_t* found) {
  SearchProblem p;
  p.queries = queries;
  p.bank = codebook.bank;
  p.pack = codebook.pack;
  p.metric = metric;
  p.indices = found;
  return p;
}

// The largest workspace that a stage's search of a chunk needs.
int64_t searches_workspace(const Rows& x, const std::vector<PackedCodebook>& codebooks, Metric metric, int64_t rows,
                           const Device& device) {
  int64_t most = 0;
  for (const PackedCodebook& codebook : codebooks) {
    const Rows queries = part_of(x, 0, std::min(rows, x.count), 0, codebook.bank.width);
    most = std::max(most, search_workspace(search_of(queries, codebook, metric, nullptr), device));
  }
  return most;
}

template <class T>
Error by_stages(const ResidualProblem& p, const StagesPlan& plan, const StageWork& w, const Device& device) {
  const int64_t d = p.queries.width, stages = static_cast<int64_t>(p.stages.size());
  const Device searching = remaining_workspace(device, w.bytes);
  for (int64_t first = 0; first < p.queries.count; first += plan.rows) {
    Step a{};
    a.rows = std::min(plan.rows, p.queries.count - first);
    a.x = part_of(p.queries, first, a.rows, 0, d);
    a.residual = w.residual;
    a.row = w.row;
    a.found = w.found;
    a.width = d;
    a.stages = stages;
    a.codes = p.codes + first * stages;
    a.total = static_cast<T*>(p.quantized) + first * d;
    a.fresh = first == 0;
    VB_TRY(launch(widen_rows_kernel<T>, grid_for(a.rows), kThreads, 0, device, a));
    for (a.stage = 0; a.stage < stages; ++a.stage) {
      const PackedCodebook& codebook = p.stages[static_cast<size_t>(a.stage)];
      SearchProblem s = search_of({w.residual, codebook.bank.dtype, a.rows, d, d, 1}, codebook, p.metric, w.found);
      s.gathered = w.row;
      VB_TRY(search(s, searching));
      a.squares = w.squares + a.stage * plan.blocks;
      a.valid = w.valid + a.stage * plan.blocks;
      const int64_t shared = kThreads * static_cast<int64_t>(sizeof(double) + sizeof(int64_t));
      const int64_t blocks = std::min(plan.blocks, ceil_div(a.rows, kStageRows));
      VB_TRY(launch(step_kernel<T>, grid_for(blocks), kThreads, shared, device, a));
    }
  }
  return nullptr;
}

StageWork cut(const ResidualProblem& p, const StagesPlan& plan, void* base) {
  const int64_t element = p.stages[0].bank.dtype == DType::f64 ? 8 : 4;
  return cut(plan, p.queries.count, p.stages, p.metric, p.queries.width * element, true, base);
}

StageWork cut(const ProductProblem& p, const StagesPlan& plan, void* base) {
  return cut(plan, p.queries.count, p.codebooks, Metric::sqeuclidean, 0, false, base);
}

}  // namespace

bool packs_codebooks(const ResidualProblem& p, const Device& device) {
  return plan_stages(p.queries, p.stages, p.metric, true, device).on_chip;
}
bool packs_codebooks(const ProductProblem& p, const Device& device) {
  return plan_stages(p.queries, p.codebooks, Metric::sqeuclidean, false, device).on_chip;
}

int64_t residual_workspace(const ResidualProblem& p, const Device& device) {
  const StagesPlan plan = plan_stages(p.queries, p.stages, p.metric, true, device);
  const int64_t own = cut(p, plan, nullptr).bytes;
  return plan.on_chip ? own : own + searches_workspace(p.queries, p.stages, p.metric, plan.rows, device);
}

Error residual_quantize(const ResidualProblem& p, void* losses, const Device& device) {
  const int64_t stages = static_cast<int64_t>(p.stages.size());
  const StagesPlan plan = plan_stages(p.queries, p.stages, p.metric, true, device);
  const StageWork w = cut(p, plan, device.workspace);
  const bool wide = p.stages[0].bank.dtype == DType::f64;
  if (residual_workspace(p, device) > device.workspace_bytes) return kTooSmall;
  if (p.queries.count > 0 && plan.on_chip) {
    VB_TRY(prepare(w, p.metric, device));
    Stages a{p.queries, w.codebooks, stages,      p.queries.width, p.metric, p.codes, static_cast<float*>(p.quantized),
             w.squares, w.valid,     plan.blocks, device.state};
    VB_TRY(all_stages(a, device));
  } else if (p.queries.count > 0) {
    VB_TRY(wide ? by_stages<double>(p, plan, w, device) : by_stages<float>(p, plan, w, device));
  }
  const int64_t parts = p.queries.count > 0 ? plan.blocks : 0;
  return means({w.squares, w.valid, stages, parts, p.queries.width, losses, wide ? DType::f64 : DType::f32}, device);
}

int64_t product_workspace(const ProductProblem& p, const Device& device) {
  const StagesPlan plan = plan_stages(p.queries, p.codebooks, Metric::sqeuclidean, false, device);
  const int64_t own = cut(p, plan, nullptr).bytes;
  if (plan.on_chip) return own;
  return own + searches_workspace(p.queries, p.codebooks, Metric::sqeuclidean, plan.rows, device);
}

Error product_quantize(const ProductProblem& p, const Device& device) {
  const int64_t parts = static_cast<int64_t>(p.codebooks.size());
  if (p.queries.count == 0 || parts == 0) return nullptr;
  const StagesPlan plan = plan_stages(p.queries, p.codebooks, Metric::sqeuclidean, false, device);
  const StageWork w = cut(p, plan, device.workspace);
  const int64_t d = p.codebooks[0].bank.width;
  if (product_workspace(p, device) > device.workspace_bytes) return kTooSmall;
  if (plan.on_chip) {
    VB_TRY(prepare(w, Metric::sqeuclidean, device));
    Stages a{};
    a.x = p.queries;
    a.codebooks = w.codebooks;
    a.count = parts;
    a.width = d;
    a.metric = Metric::sqeuclidean;
    a.codes = p.codes;
    a.state = device.state;
    return all_stages(a, device);
  }
  const Device searching = remaining_workspace(device, w.bytes);
  for (int64_t first = 0; first < p.queries.count; first += plan.rows) {
    const int64_t rows = std::min(plan.rows, p.queries.count - first);
    for (int64_t part = 0; part < parts; ++part) {
      const Rows queries = part_of(p.queries, first, rows, part * d, d);
      VB_TRY(
          search(search_of(queries, p.codebooks[static_cast<size_t>(part)], Metric::sqeuclidean, w.found), searching));
      const Spread a{w.found, rows, part, parts, p.codes + first * parts};
      VB_TRY(launch(spread_codes_kernel, grid_for(ceil_div(rows, kThreads)), kThreads, 0, device, a));
    }
  }
  return nullptr;
}

}  // namespace vecbank::cuda
