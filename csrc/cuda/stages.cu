// Codes of several codebooks in one kernel. A block keeps the residuals of 64 rows on the chip through all stages. In
// each stage it screens them against a codebook's panels in float32, lists for each row the columns that may be the
// nearest, refines these in float64, and subtracts the winner. Only codes, sums and the total leave the chip.
//
// The screen is that of screen.cu: accumulators start at the column's upper start and take the bound line, so they are
// upper bounds (core/bounds.h). A row's sixteen threads hold all columns of a tile, so the row's threshold stays in
// their registers.
#include "stages.h"

#include "mainloop_simt.cuh"
#include "panels.cuh"
#include "plan.h"
#include "rows.cuh"

namespace vecbank::cuda {
namespace {

using S = Simt<float>;
constexpr int kGroups = kThreads / kLanes;  // groups of eight lanes
constexpr int kRowSide = kStageRows / 16;   // rows of a thread
constexpr int kListed = 16;                 // candidates of a row
constexpr int kStepLines = S::kDepth * kStageRows;
static_assert(S::kSize == kTile && kGroups * 2 == kStageRows);

struct Block {  // shared memory; after kStageFixed bytes come residual[width][kResidualLine] and centre[width]
  float bank[2 * S::kBuffer];
  float x[2 * kStepLines];                  // the packed rows of a step, converted from `residual` just before
  float low[kStageRows], high[kStageRows];  // the row's power of two as two float32 factors; 0: not screened
  float norms[kStageRows];                  // multiply the bound line
  float slacks[kStageRows];                 // twice the slack, rounded up
  float thresholds[kStageRows];
  float uppers[kStageRows][kListed];
  int columns[kStageRows][kListed];
  int counts[kStageRows];  // of the list; above kListed: a fallback row; -1: no such row, or it lost its code before
  int64_t codes[kStageRows];
  double squares[kStageRows];
  Scored best[kGroups];
  const float* panels[2][kTilePanels];  // of this tile and of the tile before
  int firsts[2][kTilePanels];
  unsigned long long asked, refined, repeated;
};
static_assert(sizeof(Block) <= kStageFixed);

// The residuals as rows: coordinate k of row r lies at residual[k * kResidualLine + r].
VB_INLINE Rows view_of(const float* residual, int64_t width) {
  return {residual, DType::f32, kStageRows, width, 1, kResidualLine};
}

__device__ __forceinline__ void load_rows(const Stages& a, int64_t first, int64_t column, float* residual) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  with_dtype(a.x.dtype, [&](auto type) {
    for (int r = warp; r < kStageRows; r += kThreads / 32) {
      const bool there = first + r < a.x.count;
      const auto* row =
          reinterpret_cast<decltype(type)>(row_of(a.x, there ? first + r : first)) + column * a.x.col_stride;
      for (int64_t k = lane; k < a.width; k += 32)
        residual[k * kResidualLine + r] = there ? static_cast<float>(widened(row[k * a.x.col_stride])) : 0.0f;
    }
  });
}

// Finds how the rows meet the codebook's frame, as pack.cu does for queries, and empties their lists.
__device__ __forceinline__ void begin_screen(const Stages& a, const Stage& codebook, const float* residual,
                                             float* centre, Block& b) {
  const bool shared = record(a.metric).shares_frame, shifted = shared && codebook.centre != nullptr;
  for (int64_t k = threadIdx.x; k < a.width; k += kThreads)
    centre[k] = shifted ? static_cast<float>(codebook.centre[k]) : 0.0f;  // a float32 bank's centre is float32
  Affine map;
  if (shared) map = {codebook.centre, 1.0, ldexp(1.0, codebook.exponent)};
  for (int from = 0; from < kStageRows; from += kThreads / 16) {
    const int r = from + threadIdx.x / 16;
    const bool there = b.codes[r] >= 0;
    const double squares = squares_of(view_of(residual, a.width), r, there && codebook.good, map);
    if (threadIdx.x % 16 != 0) continue;
    const QueryFrame frame = query_frame(a.metric, a.width, squares, codebook.exponent, false,
                                         query_limit(a.metric, codebook.exponent, false));
    // Float32 must also carry the difference to the centre before it is scaled.
    const bool usable =
        there && codebook.good && frame.usable && (!shared || frame.packed <= ldexp(0x1p126, codebook.exponent));
    const int half = frame.exponent / 2;
    b.low[r] = usable ? ldexpf(1.0f, half) : 0.0f;
    b.high[r] = usable ? ldexpf(1.0f, frame.exponent - half) : 0.0f;
    b.norms[r] = usable ? round_up(frame.packed) : 0.0f;
    const double slack = query_slack(a.metric, a.width, frame.exponent, codebook.exponent).at(frame.packed);
    b.slacks[r] = usable ? twice_above(slack) : 0.0f;
    b.thresholds[r] = usable ? -HUGE_VALF : HUGE_VALF;
    b.counts[r] = usable ? 0 : there ? kFellBack : -1;
  }
  __syncthreads();
}

// ---- The screen ----------------------------------------------------------------------------------------------------

// Writes a step's lines of the packed rows. The line after the last coordinate multiplies the bank's bound line.
__device__ __forceinline__ void convert(const float* residual, const float* centre, int64_t width, int from,
                                        const Block& b, float* to) {
  const int r = threadIdx.x % kStageRows;
  const float low = b.low[r], high = b.high[r];
#pragma unroll
  for (int i = 0; i < S::kDepth * kStageRows / kThreads; ++i) {
    const int line = threadIdx.x / kStageRows + i * (kThreads / kStageRows), k = from + line;
    float v = k == width ? b.norms[r] : 0.0f;
    if (k < width && low != 0.0f) v = (residual[int64_t{k} * kResidualLine + r] - centre[k]) * low * high;
    to[line * kStageRows + r] = v;
  }
}

// acc[i][j] += row i . column j over all lines. Ends with a barrier, after which the step buffers may be overwritten.
__device__ __forceinline__ void multiply_residual(const float* residual, const float* centre, Side<float> bank,
                                                  const Stage& codebook, int64_t width, Block& b,
                                                  float (&acc)[kRowSide][S::kSide]) {
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float *bank_now = b.bank, *bank_then = b.bank + S::kBuffer, *x_now = b.x, *x_then = b.x + kStepLines;
  const int lines = static_cast<int>(width) + 1;
  fetch<float>(bank, lines, codebook.panels, bank_now);
  commit_copies();
  convert(residual, centre, width, 0, b, x_now);
  wait_copies<0>();
  __syncthreads();
  for (int from = 0; from < lines; from += S::kDepth) {
    const int remaining = lines - from;
    if (remaining > S::kDepth) {  // into the other buffers: their last readers passed the barrier of the step before
      fetch<float>(bank, remaining - S::kDepth, codebook.panels, bank_then);
      commit_copies();
      convert(residual, centre, width, from + S::kDepth, b, x_then);
    }
    const int here = remaining < S::kDepth ? remaining : S::kDepth;
#pragma unroll 2
    for (int l = 0; l < here; ++l) {
      const auto xs = *reinterpret_cast<const S::Vector*>(x_now + l * kStageRows + ty * kRowSide);
      float bs[S::kSide];
#pragma unroll
      for (int g = 0; g < S::kSide; g += S::kVector) {
        const auto bv = *reinterpret_cast<const S::Vector*>(bank_now + l * S::kLine + S::spread(g, tx));
#pragma unroll
        for (int e = 0; e < S::kVector; ++e) bs[g + e] = bv.v[e];
      }
#pragma unroll
      for (int i = 0; i < kRowSide; ++i)
#pragma unroll
        for (int j = 0; j < S::kSide; ++j) acc[i][j] = fused(xs.v[i], bs[j], acc[i][j]);
    }
    wait_copies<0>();
    __syncthreads();
    float *bank_swap = bank_now, *x_swap = x_now;
    bank_now = bank_then, x_now = x_then;
    bank_then = bank_swap, x_then = x_swap;
  }
}

// Lists, for each row, the columns whose upper bound reaches the best lower bound seen so far.
__device__ __forceinline__ void screen_codebook(const Stages& a, const Stage& codebook, const float* residual,
                                                const float* centre, Block& b) {
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const float twice_start = 2.0f * above(start_bound_per_r2(a.metric, a.width));
  float thresholds[kRowSide];
#pragma unroll
  for (int i = 0; i < kRowSide; ++i) thresholds[i] = b.thresholds[ty * kRowSide + i];
  int turn = 0;
  const int panels = static_cast<int>(codebook.schedule.panels);  // fits: a codebook has fewer than 2^31 rows
  for (int slot = 0; slot < panels; slot += kTilePanels, turn ^= 1) {
    if (threadIdx.x < kTilePanels) {
      const int at = slot + static_cast<int>(threadIdx.x);
      const int64_t panel = codebook.schedule.panel(at);
      b.panels[turn][threadIdx.x] = at < panels ? codebook.panels + panel * (a.width + 3) * kPanel : nullptr;
      b.firsts[turn][threadIdx.x] = static_cast<int>(panel * kPanel);
    }
    __syncthreads();
    const Side<float> bank = make_side<float>([&](int p) -> const float* {
      return b.panels[turn][p] == nullptr ? nullptr : b.panels[turn][p] + kPanel;  // line 0 is a start
    });
    float acc[kRowSide][S::kSide];
#pragma unroll
    for (int j = 0; j < S::kSide; ++j) {
      const int column = S::spread(j, tx);
      const float* panel = b.panels[turn][column / kPanel];
      const float start = panel != nullptr ? panel[(a.width + 2) * kPanel + column % kPanel] : -HUGE_VALF;
#pragma unroll
      for (int i = 0; i < kRowSide; ++i) acc[i][j] = start;
    }
    multiply_residual(residual, centre, bank, codebook, a.width, b, acc);

    float bounds[S::kSide];
#pragma unroll
    for (int j = 0; j < S::kSide; ++j) {
      const int column = S::spread(j, tx);
      const float* panel = b.panels[turn][column / kPanel];
      bounds[j] = panel != nullptr ? panel[(a.width + 1) * kPanel + column % kPanel] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kRowSide; ++i) {
      const int r = ty * kRowSide + i;
      const float twice_norm = 2.0f * b.norms[r];
      float best = -HUGE_VALF, most = -HUGE_VALF;
#pragma unroll
      for (int j = 0; j < S::kSide; ++j) {
        const float gap = column_gap(twice_norm, bounds[j], twice_start);
        const float lower =
            acc[i][j] < HUGE_VALF ? acc[i][j] - gap : -HUGE_VALF;  // a fallback column has no lower bound
        best = lower > best ? lower : best;
        most = acc[i][j] > most ? acc[i][j] : most;
      }
#pragma unroll
      for (int step = 8; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(kAllLanes, best, step);
        best = other > best ? other : best;
      }
      best = row_threshold(best, b.slacks[r]);
      thresholds[i] = best > thresholds[i] ? best : thresholds[i];
      if (most < thresholds[i] || !(thresholds[i] < HUGE_VALF)) continue;
#pragma unroll
      for (int j = 0; j < S::kSide; ++j) {
        const int position = S::spread(j, tx), column = b.firsts[turn][position / kPanel] + position % kPanel;
        if (acc[i][j] < thresholds[i] || b.panels[turn][position / kPanel] == nullptr || column >= codebook.bank.count)
          continue;
        const int at = atomicAdd(&b.counts[r], 1);
        if (at < kListed) b.uppers[r][at] = acc[i][j], b.columns[r][at] = column;
      }
    }
  }
  if (tx == 0)
#pragma unroll
    for (int i = 0; i < kRowSide; ++i) b.thresholds[ty * kRowSide + i] = thresholds[i];
  __syncthreads();
}

// ---- Refinement ----------------------------------------------------------------------------------------------------

// The contract's key of a row and a bank row. Eight lanes compute it, and the whole warp calls this function.
__device__ __forceinline__ double key_by_8(const Stages& a, const Stage& codebook, const float* residual, int r,
                                           int64_t j, bool valid, double query_norm) {
  const float* row = static_cast<const float*>(codebook.bank.data) + j * codebook.bank.row_stride;
  const double raw = sum_of_8(valid ? lane_sum(residual + r, kResidualLine, row, codebook.bank.col_stride, a.width,
                                               static_cast<int>(threadIdx.x % kLanes), record(a.metric).term)
                                    : 0.0);
  const double bank_norm = record(a.metric).unit_rows ? norm_of(codebook.bank, j, valid) : 1.0;
  return key_of(a.metric, raw, query_norm, bank_norm);
}

// Refines every row that has a list. A single candidate is the answer; several are scored.
__device__ __noinline__ void refine_lists(const Stages& a, const Stage& codebook, const float* residual, Block& b) {
  for (int r = threadIdx.x / kLanes; r < kStageRows; r += kGroups) {
    const bool listed = b.counts[r] >= 0 && b.counts[r] <= kListed;
    const int n = listed ? b.counts[r] : 0;
    const float threshold = b.thresholds[r];
    int kept = 0;
    bool fallback = false;
    Scored best = last_scored();
    for (int i = 0; i < n; ++i)
      if (!(b.uppers[r][i] < threshold)) {
        best.index = b.columns[r][i];
        fallback = fallback || !(b.uppers[r][i] < HUGE_VALF);
        ++kept;
      }
    const bool scored = kept > 1 || fallback;
    if (scored) best = last_scored();
    const double norm = record(a.metric).unit_rows ? norm_of(view_of(residual, a.width), r, scored) : 1.0;
    for (int i = 0; __any_sync(kAllLanes, scored && i < n); ++i) {
      const bool valid = scored && i < n && !(b.uppers[r][i] < threshold);
      const Scored e{key_by_8(a, codebook, residual, r, valid ? b.columns[r][i] : 0, valid, norm),
                     valid ? b.columns[r][i] : 0};
      if (valid && !isnan(e.key) && better(e, best)) best = e;
    }
    if (!listed || threadIdx.x % kLanes != 0) continue;
    b.codes[r] = best.index == INT64_MAX ? -1 : best.index;
    if (scored) atomicAdd(&b.refined, static_cast<unsigned long long>(kept));
  }
  __syncthreads();
}

// Refines fallback rows (float32 cannot carry them, or their list overflowed) one by one: the whole block scores the
// row against the whole codebook.
__device__ __noinline__ void refine_fallback_rows(const Stages& a, const Stage& codebook, const float* residual,
                                                  Block& b) {
  const int group = threadIdx.x / kLanes;
  for (int r = 0; r < kStageRows; ++r) {
    if (b.counts[r] <= kListed) continue;
    const double norm = record(a.metric).unit_rows ? norm_of(view_of(residual, a.width), r, true) : 1.0;
    Scored best = last_scored();
    for (int64_t base = 0; base < codebook.bank.count; base += kGroups) {
      const int64_t j = base + group;
      const bool valid = j < codebook.bank.count;
      const Scored e{key_by_8(a, codebook, residual, r, valid ? j : 0, valid, norm), j};
      if (valid && !isnan(e.key) && better(e, best)) best = e;
    }
    if (threadIdx.x % kLanes == 0) b.best[group] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int g = 1; g < kGroups; ++g)
        if (better(b.best[g], best)) best = b.best[g];
      b.codes[r] = best.index == INT64_MAX ? -1 : best.index;
      ++b.repeated;
      b.refined += static_cast<unsigned long long>(codebook.bank.count);
    }
    __syncthreads();
  }
}

// ---- After a stage -------------------------------------------------------------------------------------------------

__device__ __forceinline__ void write_codes(const Stages& a, int64_t s, int64_t first, const Block& b) {
  if (threadIdx.x < kStageRows && first + threadIdx.x < a.x.count)
    a.codes[(first + threadIdx.x) * a.count + s] = b.codes[threadIdx.x];
}

// Subtracts the winners from the residuals, and adds up the squares of the result.
__device__ __forceinline__ void subtract(const Stages& a, const Stage& codebook, int64_t s, bool fresh, float* residual,
                                         Block& b) {
  const int lane = threadIdx.x % kLanes;
  for (int r = threadIdx.x / kLanes; r < kStageRows; r += kGroups) {
    const int64_t code = b.codes[r];
    const float* row =
        code < 0 ? nullptr : static_cast<const float*>(codebook.bank.data) + code * codebook.bank.row_stride;
    double sum = 0.0;
    for (int64_t k = lane; k < a.width; k += kLanes) {
      const float value = code < 0 ? nanf("") : residual[k * kResidualLine + r] - row[k * codebook.bank.col_stride];
      residual[k * kResidualLine + r] = value;
      sum = add_rn(sum, mul_rn(value, value));
    }
    sum = sum_of_8(sum);
    if (lane == 0) b.squares[r] = code < 0 ? 0.0 : sum;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int r = threadIdx.x;
  double sum = add_rn(b.squares[r], b.squares[r + 32]);
  int valid = (b.codes[r] >= 0) + (b.codes[r + 32] >= 0);
  for (int step = 16; step > 0; step /= 2) {
    sum = add_rn(sum, __shfl_xor_sync(kAllLanes, sum, step));
    valid += __shfl_xor_sync(kAllLanes, valid, step);
  }
  if (r != 0) return;
  const int64_t at = s * a.blocks + blockIdx.x;
  a.squares[at] = fresh ? sum : add_rn(a.squares[at], sum);
  a.valid[at] = fresh ? valid : a.valid[at] + valid;
}

// Adds up the rows of the stages in the order of the stages.
__device__ __forceinline__ void write_total(const Stages& a, int64_t first) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int r = warp; r < kStageRows && first + r < a.x.count; r += kThreads / 32)
    for (int64_t k = lane; k < a.width; k += 32) {
      float total = 0.0f;
      for (int64_t s = 0; s < a.count; ++s) {
        const int64_t code = a.codes[(first + r) * a.count + s];
        const Rows& bank = a.codebooks[s].bank;
        const float part =
            code < 0 ? nanf("") : static_cast<const float*>(bank.data)[code * bank.row_stride + k * bank.col_stride];
        total = s == 0 ? part : total + part;
      }
      a.quantized[(first + r) * a.width + k] = total;
    }
}

// blockIdx.x walks tiles of rows. Without a cascade, blockIdx.y is the codebook.
template <bool Cascade>
__global__ void __launch_bounds__(kThreads, 2) stages_kernel(const __grid_constant__ Stages a) {
  Block& b = *reinterpret_cast<Block*>(shared_memory());
  float* residual = reinterpret_cast<float*>(shared_memory() + kStageFixed);
  float* centre = residual + a.width * kResidualLine;
  const int begin = Cascade ? 0 : static_cast<int>(blockIdx.y), end = Cascade ? static_cast<int>(a.count) : begin + 1;
  if (threadIdx.x == 0) b.asked = b.refined = b.repeated = 0;
  for (unsigned tile = blockIdx.x; int64_t{tile} * kStageRows < a.x.count; tile += gridDim.x) {
    const int64_t first = int64_t{tile} * kStageRows;
    load_rows(a, first, begin * a.width, residual);
    if (threadIdx.x < kStageRows) b.codes[threadIdx.x] = first + threadIdx.x < a.x.count ? 0 : -1;
    __syncthreads();
    for (int s = begin; s < end; ++s) {
      const Stage& codebook = a.codebooks[s];
      if (codebook.bank.count > 0) {
        begin_screen(a, codebook, residual, centre, b);
        if (codebook.good) screen_codebook(a, codebook, residual, centre, b);
        refine_lists(a, codebook, residual, b);
        refine_fallback_rows(a, codebook, residual, b);
      } else {
        if (threadIdx.x < kStageRows) b.codes[threadIdx.x] = -1;
        __syncthreads();
      }
      write_codes(a, s, first, b);
      if constexpr (Cascade) subtract(a, codebook, s, tile == blockIdx.x, residual, b);
      __syncthreads();
    }
    if constexpr (Cascade) write_total(a, first);
    if (threadIdx.x == 0)
      b.asked += static_cast<unsigned long long>(a.x.count - first < kStageRows ? a.x.count - first : kStageRows) *
                 (end - begin);
  }
  if (threadIdx.x == 0)
    count_work(a.state, static_cast<int64_t>(b.asked), static_cast<int64_t>(b.refined),
               static_cast<int64_t>(b.repeated));
}

// ---- Codebooks -----------------------------------------------------------------------------------------------------

struct DescribeArgs {
  struct Given {
    Rows bank;
    const PackHeader* pack;
    PackHeader expected;
    Schedule schedule;
  } given[kCodebooksAtOnce];
  int count;
  Stage* out;
  State* state;
};

__global__ void __launch_bounds__(32) describe_kernel(const __grid_constant__ DescribeArgs a) {
  const int s = threadIdx.x;
  if (s >= a.count) return;
  const DescribeArgs::Given& g = a.given[s];
  Stage out{g.bank, nullptr, nullptr, g.schedule, 0, false};
  if (g.bank.count > 0) {
    out.good = is_pack_of(*g.pack, g.expected);
    if (!out.good) atomicAdd(&a.state->bad_codes, 1u);
    const char* base = reinterpret_cast<const char*>(g.pack);
    out.panels = reinterpret_cast<const float*>(base + g.expected.panels_at);
    if (out.good && g.pack->centred) out.centre = reinterpret_cast<const double*>(base + g.expected.centre_at);
    if (out.good) out.exponent = g.pack->exponent;
  }
  a.out[s] = out;
}

}  // namespace

Error describe(const PackedCodebook* codebooks, int64_t count, Metric metric, Stage* out, const Device& device) {
  for (int64_t at = 0; at < count; at += kCodebooksAtOnce) {
    DescribeArgs a{};
    a.count = static_cast<int>(std::min<int64_t>(kCodebooksAtOnce, count - at));
    a.out = out + at;
    a.state = device.state;
    for (int i = 0; i < a.count; ++i) {
      const Rows& bank = codebooks[at + i].bank;
      if (bank.count > 0 && codebooks[at + i].pack == nullptr) return "a codebook has no pack";
      a.given[i] = {bank, codebooks[at + i].pack, device_pack_layout(bank.count, bank.width, metric, bank.dtype, false),
                    make_schedule(bank.count)};
    }
    VB_TRY(launch(describe_kernel, dim3(1), 32, 0, device, a));
  }
  return nullptr;
}

Error all_stages(const Stages& a, const Device& device) {
  const int64_t shared = stage_shared(a.width);
  if (a.quantized != nullptr)
    return launch(stages_kernel<true>, dim3(static_cast<unsigned>(a.blocks)), kThreads, shared, device, a);
  const dim3 grid(grid_for(ceil_div(a.x.count, kStageRows)).x, static_cast<unsigned>(a.count));
  return launch(stages_kernel<false>, grid, kThreads, shared, device, a);
}

}  // namespace vecbank::cuda
