// topk, nearest, quantize: the driver walks chunks of queries, pieces of the bank and ranges of columns. It screens,
// compacts, refines the candidates, and refines fallback rows against everything. It only launches and never waits for
// the device, so that a CUDA graph can capture it.
#include <cstring>

#include "arena.h"
#include "kernels.h"
#include "plan.h"
#include "tensor_cores/bounds.h"

namespace vecbank::cuda {
namespace {

struct Work {  // the parts of one workspace; with a null base only their bytes count
  PackHeader* header;
  double *centre, *sample_scale;
  float *piece, *queries, *norms, *thresholds;  // piece, queries: panels; operands replace them:
  uint16_t* query_rows;
  PackedOperands bank;
  double* slacks;
  int32_t *counts, *fallback_rows, *fallback_count;
  Candidate* candidates;
  Scored* partial;
  int64_t* partial_counts;
  int64_t* mask_starts;
  float* tops;
  int64_t bytes;
};

Work cut(const SearchProblem& p, const SearchPlan& plan, void* base) {
  Arena arena(base);
  Work w{};
  const int64_t d = p.bank.width, n = std::min(plan.rows, round_up_to(p.queries.count, kPanel));
  if (plan.few) {
    w.tops = arena.take<float>(n * kFewTops);
  } else if (!plan.direct) {
    if (!plan.ready) {
      w.header = arena.take<PackHeader>(1);
      w.centre = arena.take<double>(d);
      w.sample_scale = arena.take<double>(kThreads);
    }
    if (plan.operands) {
      if (plan.ready) {
        w.bank = packed_operands(p.pack, p.bank, p.metric);
      } else {
        const int64_t rows = plan.whole ? operand_rows(p.bank.count) : plan.piece_panels * kPanel;
        const DType type = operand_type(p.bank.dtype);
        w.bank.rows = {type, arena.take<uint16_t>(rows * operand_pitch(d)), operand_pitch(d)};
        float** bound = &w.bank.terms.bounds[p.queries.dtype == type ? 0 : 1];
        for (float** term : {&w.bank.terms.start, bound, &w.bank.terms.lift}) *term = arena.take<float>(rows);
      }
      w.query_rows = arena.take<uint16_t>(operand_rows(n) * operand_pitch(d));
    } else {
      if (!plan.ready) w.piece = arena.take<float>(plan.piece_panels * (d + 3) * kPanel);
      w.queries = arena.take<float>(round_up_to(n, kPanel) * (d + 1));
    }
    w.norms = arena.take<float>(n);
    w.slacks = arena.take<double>(n);
  }
  if (!plan.direct) {
    w.thresholds = arena.take<float>(n);
    w.fallback_rows = arena.take<int32_t>(n);
    w.fallback_count = arena.take<int32_t>(1);
    w.candidates = arena.take<Candidate>(n * plan.lists.capacity);
  }
  w.counts = arena.take<int32_t>(n);
  if (plan.slots > 1) {
    w.partial = arena.take<Scored>(plan.slots * p.k);
    w.partial_counts = arena.take<int64_t>(plan.slots);
  }
  if (p.mask.dims > 1) w.mask_starts = arena.take<int64_t>(n);
  w.bytes = arena.used();
  return w;
}

Result result_of(const SearchProblem& p, int64_t first, int64_t count, State* state) {
  Result r;
  r.queries = p.queries;
  r.queries.data = row_of(p.queries, first);
  r.queries.count = count;
  r.bank = p.bank;
  r.metric = record(p.metric);
  r.k = p.k;
  r.bias = p.bias;
  r.mask = {p.mask.data, nullptr, p.mask.strides[0], p.mask.col_stride};
  if (p.mask.dims <= 1 && p.mask.data != nullptr) r.mask.data += p.mask.row_start(first);
  r.values = p.values == nullptr
                 ? nullptr
                 : static_cast<char*>(p.values) + first * p.k * static_cast<int64_t>(size_of(p.values_dtype));
  r.values_dtype = p.values_dtype;
  r.indices = p.indices == nullptr ? nullptr : p.indices + first * p.k;
  r.gathered = p.gathered == nullptr ? nullptr
                                     : static_cast<char*>(p.gathered) +
                                           first * p.bank.width * static_cast<int64_t>(size_of(p.bank.dtype));
  r.state = state;
  return r;
}

struct ClearArgs {
  int32_t* counts;
  int64_t count;
};
__global__ void __launch_bounds__(kThreads) clear_kernel(const ClearArgs a) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < a.count; i += int64_t{gridDim.x} * kThreads)
    a.counts[i] = 0;
}

struct MaskArgs {
  Mask mask;
  int64_t count;
  int64_t* starts;
};
__global__ void __launch_bounds__(kThreads) mask_kernel(const __grid_constant__ MaskArgs a) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < a.count; i += int64_t{gridDim.x} * kThreads)
    a.starts[i] = a.mask.row_start(i);
}

// Few queries: one pass over the bank's own rows.
Error screen_few_chunk(const SearchProblem& p, const SearchPlan& plan, const Work& w, const PackHeader& host,
                       const Result& result, const Device& device) {
  Few f{};
  f.s.rows = result.queries.count;
  f.s.width = p.bank.width;
  f.s.columns = p.bank.count;
  f.s.schedule = make_schedule(p.bank.count * kPanel);  // of single rows
  f.s.metric = p.metric;
  f.s.biased = p.bias != nullptr;
  f.s.mask = result.mask;
  f.s.thresholds = w.thresholds;
  f.s.counts = w.counts;
  f.s.candidates = w.candidates;
  f.s.capacity = static_cast<int32_t>(plan.lists.capacity);
  f.queries = result.queries;
  f.bank = p.bank;
  f.bias = p.bias;
  f.pack = p.pack;
  f.expected = host;
  f.state = device.state;
  f.k = p.k;
  f.sample = few_sample(p.k, p.bank.count, plan.lists.capacity);
  f.fallback_count = w.fallback_count;
  f.tops = w.tops;
  return screen_few(f, device);
}

// Refines the candidates, and the fallback rows against everything.
Error refine_chunk(RefineAll all, const SearchPlan& plan, const Work& w, const Device& device) {
  const Refine r{all.result,       w.thresholds,   w.counts, w.candidates, static_cast<int32_t>(plan.lists.capacity),
                 w.fallback_count, w.fallback_rows};
  VB_TRY(refine(r, device));
  all.fallback_count = w.fallback_count;
  all.fallback_rows = w.fallback_rows;
  return refine_all(all, device);
}

// One chunk of queries against the whole bank.
Error search_chunk(const SearchProblem& p, const SearchPlan& plan, const Work& w, int64_t first, int64_t count,
                   const Device& device) {
  RefineAll all;
  all.result = result_of(p, first, count, device.state);
  if (p.mask.dims > 1) {
    VB_TRY(launch(mask_kernel, grid_for(ceil_div(count, kThreads)), kThreads, 0, device,
                  MaskArgs{p.mask.from(first), count, w.mask_starts}));
    all.result.mask.starts = w.mask_starts;
  }
  all.list = plan.list;
  all.slots = plan.slots;
  all.partial = w.partial;
  all.partial_counts = w.partial_counts;
  all.arrivals = w.counts;
  if (plan.direct) {
    if (parts_of_bank(all, count) > 1)
      VB_TRY(
          launch(clear_kernel, grid_for(ceil_div(count, kThreads)), kThreads, 0, device, ClearArgs{w.counts, count}));
    return refine_all(all, device);
  }

  const PackHeader host = device_pack_layout(p.bank.count, p.bank.width, p.metric, p.bank.dtype, p.bias != nullptr);
  if (plan.few) {
    VB_TRY(screen_few_chunk(p, plan, w, host, all.result, device));
    return refine_chunk(all, plan, w, device);
  }
  char* packed = plan.ready ? const_cast<char*>(reinterpret_cast<const char*>(p.pack)) : nullptr;  // not written
  PackHeader* header = packed != nullptr ? reinterpret_cast<PackHeader*>(packed) : w.header;
  const double* centre = packed != nullptr ? reinterpret_cast<const double*>(packed + host.centre_at) : w.centre;

  QueryPanels q{};
  q.queries = all.result.queries;
  q.metric = p.metric;
  q.tensor = plan.operands;
  q.header = header;
  q.centre = centre;
  q.expected = host;
  q.state = device.state;
  q.panels = w.queries;
  q.norms = w.norms;
  q.slacks = w.slacks;
  q.thresholds = w.thresholds;
  q.counts = w.counts;
  q.fallback_count = w.fallback_count;
  const QueryOperands query_operands{q, {w.bank.rows.type, w.query_rows, operand_pitch(p.bank.width)}};

  Screen s{};
  if (plan.operands) s.query_operand = query_operands.to;
  const auto screen = plan.hopper ? screen_sm90 : plan.operands ? screen_mma16 : screen_simt;
  s.queries = w.queries;
  s.rows = count;
  s.width = p.bank.width;
  s.schedule = plan.schedule;
  s.columns = p.bank.count;
  s.metric = p.metric;
  s.biased = p.bias != nullptr;
  s.mask = all.result.mask;
  s.norms = w.norms;
  s.slacks = w.slacks;
  s.start_per_r2 = start_bound_per_r2(p.metric, p.bank.width);
  s.listed = plan.lists.fused ? static_cast<int32_t>(p.k) : 0;
  s.thresholds = w.thresholds;
  s.counts = w.counts;
  s.candidates = w.candidates;
  s.capacity = static_cast<int32_t>(plan.lists.capacity);
  // Without fused lists, the next range grows by what the capacity leaves above k.
  const int64_t enough = plan.lists.fused ? 2 * p.k : p.k + p.k / 2;
  const Compact c{count, p.k, w.thresholds, w.counts, w.candidates, s.capacity, static_cast<int32_t>(enough)};

  const int64_t panels = plan.schedule.panels, piece = plan.piece_panels;
  for (int64_t at = 0; at < panels; at += piece) {
    const int64_t stop = std::min(panels, at + piece);
    s.panels = plan.ready ? reinterpret_cast<const float*>(packed + host.panels_at) : w.piece;
    s.first_slot = plan.ready && !plan.operands ? -1 : at;
    PackedOperands operands;
    if (plan.operands) {
      operands = w.bank.from(plan.ready || plan.whole ? at * kPanel : 0);
      s.bank_operand = operands.rows;
      s.terms = operands.terms.of_queries(p.queries.dtype == operands.rows.type);
    }
    // What lies there whole is packed once for all chunks of queries. The queries go along with the first piece.
    const bool packs_bank = !plan.ready && (first == 0 || !(plan.whole || piece >= panels));
    if (at == 0 || packs_bank) {
      BankPanels b;
      b.bank = p.bank;
      b.metric = p.metric;
      b.header = header;
      b.bias = p.bias;
      b.centre = centre;
      b.panels = w.piece;
      b.schedule = plan.schedule;
      b.first_slot = at;
      b.count = stop - at;
      if (plan.operands) {
        const BankOperands bank_operands{b, operands};
        VB_TRY(pack_operands(at == 0 ? &query_operands : nullptr, packs_bank ? &bank_operands : nullptr, device));
      } else {
        VB_TRY(pack_panels<float>(at == 0 ? &q : nullptr, packs_bank ? &b : nullptr, device));
      }
    }
    for (s.begin = at; s.begin < stop; s.begin = s.end) {
      const Range range = next_range(plan.lists, p.k, ceil_div(count, kTile), device.processors, s.begin, stop);
      s.end = range.end;
      s.blocks = range.blocks;
      VB_TRY(screen(s, device));
      // The k-th best over all blocks is a better threshold than that of one block. For k = 1 the blocks publish their
      // best as they find it. After the last range, the refinement finds the threshold itself.
      if (s.end < panels && (p.k > 1 || s.end < stop)) VB_TRY(compact(c, device));
    }
  }

  return refine_chunk(all, plan, w, device);
}

SearchPlan plan_for(const SearchProblem& p, const Device& device, bool whole) {
  return plan_search(p, device.processors, device.path, device.few, whole, device.piece_elements);
}

}  // namespace

int64_t search_workspace(const SearchProblem& p, const Device& device) {
  return p.queries.count == 0 ? 0 : cut(p, plan_for(p, device, false), nullptr).bytes;
}
int64_t whole_search_workspace(const SearchProblem& p, const Device& device) {
  if (p.queries.count == 0) return 0;
  const SearchPlan plan = plan_for(p, device, true);
  return plan.whole ? cut(p, plan, nullptr).bytes : 0;
}

Error search_fault(const Device& device) { return device.path == Path::sm90 ? sm90_fault(device) : nullptr; }

Error search(const SearchProblem& p, const Device& device) {
  if (p.queries.count == 0) return nullptr;
  VB_TRY(search_fault(device));
  const int64_t room = whole_search_workspace(p, device);
  const SearchPlan plan = plan_for(p, device, room > 0 && room <= device.workspace_bytes);
  const Work w = cut(p, plan, device.workspace);
  if (w.bytes > device.workspace_bytes) return kTooSmall;
  if (!plan.direct && !plan.few && !plan.ready) {
    const PackHeader host = device_pack_layout(p.bank.count, p.bank.width, p.metric, p.bank.dtype, p.bias != nullptr);
    VB_TRY(choose_frame(p.bank, host, w.header, w.centre, w.sample_scale, device));
  }
  for (int64_t first = 0; first < p.queries.count; first += plan.rows)
    VB_TRY(search_chunk(p, plan, w, first, std::min(plan.rows, p.queries.count - first), device));
  return nullptr;
}

}  // namespace vecbank::cuda
