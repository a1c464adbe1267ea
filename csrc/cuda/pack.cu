// Preparing a bank and its queries on the device: the layout and the map of core/pack.h and cpu/queries.h.
#include "panels.cuh"

namespace vecbank::cuda {

namespace {

constexpr int kSample = 255;

// ---- The frame -----------------------------------------------------------------------------------------------------

struct FrameArgs {
  Rows bank;
  PackHeader host_header;
  PackHeader* header;
  double *centre, *sample_scale;
  int64_t samples;
};

struct Frames {  // a row of blocks each
  FrameArgs of[kCodebooksAtOnce];
};

VB_INLINE int64_t sample_row(const FrameArgs& a, int64_t s) {
  return a.samples == 1 ? 0 : s * (a.bank.count - 1) / (a.samples - 1);
}

VB_INLINE bool has_unit_rows(const FrameArgs& a) { return record(static_cast<Metric>(a.host_header.metric)).unit_rows; }
VB_INLINE double scale_of(const FrameArgs& a, int64_t s) { return has_unit_rows(a) ? a.sample_scale[s] : 1.0; }

__global__ void __launch_bounds__(32) header_kernel(const FrameArgs a) {
  if (threadIdx.x == 0) *a.header = a.host_header;
}

// Where rows count by their direction alone, eight threads each find the norm of a sampled row.
__global__ void __launch_bounds__(kThreads) frame_norms(const __grid_constant__ Frames frames) {
  const FrameArgs& a = frames.of[blockIdx.y];
  for (int64_t base = 0; base < a.samples; base += kThreads / kLanes) {
    const int64_t s = base + threadIdx.x / kLanes;
    const double norm = norm_of(a.bank, s < a.samples ? sample_row(a, s) : 0, s < a.samples);
    if (threadIdx.x % kLanes == 0 && s < a.samples) a.sample_scale[s] = 1.0 / norm;
  }
}

// The lower median of the finite values among values[0..count), by counting ranks; 0 where none is finite. Every thread
// of the block calls it, thread s owning values[s]; the result is left in *middle.
__device__ int block_median(const double* values, int count, double* middle) {
  const int s = threadIdx.x;
  const bool finite = s < count && isfinite(values[s]);
  const int finites = __syncthreads_count(finite);
  if (s == 0) *middle = 0.0;
  __syncthreads();
  if (finite) {
    int rank = 0;
    for (int j = 0; j < count; ++j)
      rank += isfinite(values[j]) && (values[j] < values[s] || (values[j] == values[s] && j < s));
    if (rank == (finites - 1) / 2) *middle = values[s];
  }
  __syncthreads();
  return finites;
}

// A block per coordinate: the median of the sample's values there.
__global__ void __launch_bounds__(kThreads) frame_centre(const __grid_constant__ Frames frames) {
  const FrameArgs& a = frames.of[blockIdx.y];
  double* values = reinterpret_cast<double*>(shared_memory());  // kThreads, and the median
  for (int64_t k = blockIdx.x; k < a.bank.width; k += gridDim.x) {
    const int s = threadIdx.x;
    values[s] = 0.0;
    if (s < a.samples)
      with_dtype(a.bank.dtype, [&](auto type) {
        const auto* row = reinterpret_cast<decltype(type)>(row_of(a.bank, sample_row(a, s)));
        values[s] = mul_rn(widened(row[k * a.bank.col_stride]), scale_of(a, s));
      });
    __syncthreads();
    block_median(values, static_cast<int>(a.samples), values + kThreads);
    if (s == 0) {
      const double middle = values[kThreads];
      a.centre[k] = a.bank.dtype == DType::f64 ? middle : static_cast<double>(static_cast<float>(middle));
    }
    __syncthreads();
  }
}

// The typical norm of the sample; thread 0's answer counts. `norms` holds kThreads + 1.
__device__ double middle_norm(const double* squares, const FrameArgs& a, double* norms) {
  const int s = threadIdx.x, count = static_cast<int>(a.samples);
  norms[s] = s < count ? sqrt(squares[s]) : 0.0;
  __syncthreads();
  const int finites = block_median(norms, count, norms + kThreads);
  double middle = norms[kThreads];
  if (s == 0 && !(middle > 0.0) && finites > 0)
    for (int j = 0; j < count; ++j)
      if (isfinite(norms[j]) && norms[j] > middle) middle = norms[j];
  __syncthreads();
  return middle;
}

// One block writes the header: it decides whether to centre, and finds the power of two that brings the typical norm to
// about 1.
__global__ void __launch_bounds__(kThreads) frame_finish(const __grid_constant__ Frames frames) {
  const FrameArgs& a = frames.of[blockIdx.y];
  double* plain = reinterpret_cast<double*>(shared_memory());
  double *shifted = plain + kThreads, *norms = shifted + kThreads;  // kThreads + 1
  int* centred = reinterpret_cast<int*>(norms + kThreads + 1);
  plain[threadIdx.x] = shifted[threadIdx.x] = 0.0;
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int64_t s = warp; s < a.samples; s += kThreads / 32) {
    const double scale = scale_of(a, s);
    double p = 0.0, q = 0.0;
    with_dtype(a.bank.dtype, [&](auto type) {
      const auto* row = reinterpret_cast<decltype(type)>(row_of(a.bank, sample_row(a, s)));
      for (int64_t k = lane; k < a.bank.width; k += 32) {
        const double v = mul_rn(widened(row[k * a.bank.col_stride]), scale), w = add_rn(v, -a.centre[k]);
        p = add_rn(p, mul_rn(v, v));
        q = add_rn(q, mul_rn(w, w));
      }
    });
    for (int step = 16; step > 0; step /= 2) {
      p = add_rn(p, __shfl_xor_sync(kAllLanes, p, step));
      q = add_rn(q, __shfl_xor_sync(kAllLanes, q, step));
    }
    if (lane == 0) plain[s] = p, shifted[s] = q;
  }
  __syncthreads();
  const double far = middle_norm(plain, a, norms), near = middle_norm(shifted, a, norms);
  if (threadIdx.x == 0) {
    *centred = near < 0.5 * far;
    const double norm = *centred ? near : far;
    int exponent = norm > 0.0 ? -ilogb(norm) : 0;
    exponent = exponent < -960 ? -960 : exponent > 960 ? 960 : exponent;
    *a.header = a.host_header;
    a.header->exponent = exponent;
    a.header->centred = *centred;
  }
  __syncthreads();
  if (!*centred)
    for (int64_t k = threadIdx.x; k < a.bank.width; k += kThreads) a.centre[k] = 0.0;
}

// ---- Bank panels ---------------------------------------------------------------------------------------------------

template <class T>
struct PanelShared {
  T turn[16 * 17];
  double norms[16], squares[16], originals[16];
  bool fallback[16];
};

// A block per panel.
template <class T>
__device__ __forceinline__ void write_bank(const BankPanels& a, BlockOf block, PanelShared<T>& shared) {
  const int64_t d = a.bank.width;
  const double post = ldexp(1.0, a.header->exponent);
  const double* centre = a.header->centred ? a.centre : nullptr;
  const bool unit_rows = record(a.metric).unit_rows;
  const T inf = static_cast<T>(HUGE_VAL);
  for (int64_t slot = block.number; slot < a.count; slot += block.count) {
    const int64_t column = a.schedule.panel(a.first_slot + slot) * kPanel;
    T* lines = static_cast<T*>(a.panels) + slot * (d + 3) * kPanel;

    if (unit_rows) norms_of_panel(a, column, shared.norms);
    __syncthreads();

    const int row = threadIdx.x / 16;
    const bool valid = column + row < a.bank.count;
    Affine map{centre, 1.0, post};
    if (unit_rows) map.pre = 1.0 / shared.norms[row];
    const double squares = squares_of(a.bank, column + row, valid, map);
    double original = squares;
    if (centre != nullptr && !unit_rows) original = squares_of(a.bank, column + row, valid, {nullptr, 1.0, post});
    if (threadIdx.x % 16 == 0) shared.squares[row] = squares, shared.originals[row] = original;
    __syncthreads();

    if (threadIdx.x < kPanel) {  // one thread per column: what is not a coordinate
      const int c = threadIdx.x;
      T start = 0, bound = 0, upper = -inf;
      bool fallback = false;
      if (column + c < a.bank.count) {
        const ColumnFacts f =
            facts_of_column(a, column + c, shared.squares[c], shared.originals[c], shared.norms[c], post);
        fallback = !f.fits;
        if (fallback) {
          upper = inf;
        } else {
          bound = bank_bound(a.metric, d, f.packed, f.whole);
          start = static_cast<T>(f.start);
          upper = round_up(f.start + start_bound(d, 2.0 * fabs(f.start)));
        }
      }
      shared.fallback[c] = fallback;
      lines[c] = start;
      lines[(d + 1) * kPanel + c] = bound;
      lines[(d + 2) * kPanel + c] = upper;
      if (fallback) atomicAdd(reinterpret_cast<unsigned long long*>(&a.header->fallbacks), 1ull);
    }
    __syncthreads();
    write_lines<T>(a.bank, column + row, valid && !shared.fallback[row], map, lines + kPanel, shared.turn);
    __syncthreads();
  }
}

// ---- Query panels --------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void write_queries(const QueryPanels& a, BlockOf block, PanelShared<T>& shared) {
  const int64_t d = a.queries.width, panels = (a.queries.count + kPanel - 1) / kPanel;
  const bool good = trusted(a, block.number == 0);
  const int shift = good ? a.header->exponent : 0;
  const double* centre = good && a.header->centred ? a.centre : nullptr;
  const bool adds_centre = a.scale != nullptr && centre != nullptr && !record(a.metric).shares_frame;
  for (int64_t p = block.number; p < panels; p += block.count) {
    const int row = threadIdx.x / 16;
    const int64_t q = p * kPanel + row;
    const bool valid = q < a.queries.count;
    T* lines = static_cast<T*>(a.panels) + p * (d + 1) * kPanel;

    const Affine map = map_of_queries(a, good);
    const QueryFacts f = query_facts(a, valid, good, map, squares_of(a.queries, q, valid, map));
    double along_centre = 0.0;  // x . centre, which a dense similarity adds back
    if (valid && adds_centre)
      with_dtype(a.queries.dtype, [&](auto type) {
        const auto* x = reinterpret_cast<decltype(type)>(row_of(a.queries, q));
        for (int64_t k = threadIdx.x % 16; k < d; k += 16)
          along_centre = add_rn(along_centre, mul_rn(widened(x[k * a.queries.col_stride]), centre[k]));
      });
    along_centre = sum_of_16(along_centre);

    if (threadIdx.x % 16 == 0) {
      float rider = 0.0f;  // multiplies the bank's bound line
      if (valid && a.norms != nullptr) {
        if (f.frame.usable) rider = round_up(f.frame.packed);
        begin_query(a, q, f, f.frame.usable, rider);
      }
      if (valid && a.scale != nullptr) {
        const DenseFactors<T> back = dense_factors<T>(a.metric, f.frame, along_centre, shift);
        static_cast<T*>(a.scale)[q] = back.scale;
        static_cast<T*>(a.term)[q] = back.term;
        a.fallback[q] = !back.fits;
      }
      lines[d * kPanel + row] = static_cast<T>(rider);
    }
    write_lines<T>(a.queries, q, f.frame.usable, f.map, lines, shared.turn);
  }
}

template <class T>
__global__ void __launch_bounds__(kPanelThreads)
    write_panels_kernel(const __grid_constant__ PackBoth<QueryPanels, BankPanels> a) {
  PanelShared<T>& shared = *reinterpret_cast<PanelShared<T>*>(shared_memory());
  if (blockIdx.x < a.bank_blocks)
    write_bank<T>(a.bank, {blockIdx.x, a.bank_blocks}, shared);
  else
    write_queries<T>(a.queries, {blockIdx.x - a.bank_blocks, gridDim.x - a.bank_blocks}, shared);
}

// Of a whole bank, in natural order.
BankPanels panels_of_bank(const Rows& bank, Metric metric, PackHeader* header, const double* centre, void* panels) {
  BankPanels a;
  a.bank = bank;
  a.metric = metric;
  a.header = header;
  a.centre = centre;
  a.panels = panels;
  a.count = ceil_div(bank.count, kPanel);
  a.schedule.panels = std::max<int64_t>(1, a.count);
  return a;
}

// Codebooks side by side, each with a row of blocks.
struct Codebooks {
  BankPanels of[kCodebooksAtOnce];
};
__global__ void __launch_bounds__(kPanelThreads) write_codebooks_kernel(const __grid_constant__ Codebooks a) {
  write_bank<float>(a.of[blockIdx.y], {blockIdx.x, gridDim.x}, *reinterpret_cast<PanelShared<float>*>(shared_memory()));
}

FrameArgs frame_args(const Rows& bank, const PackHeader& host_header, PackHeader* header, double* centre,
                     double* sample_scale) {
  const int64_t most = std::clamp<int64_t>((1 << 18) / std::max<int64_t>(bank.width, 1), 15, kSample);
  return {bank, host_header, header, centre, sample_scale, bank.width == 0 ? 0 : std::min(bank.count, most)};
}

// Of banks that share width and metric.
Error choose_frames(const Frames& frames, int count, const Device& device) {
  const int64_t shared = (3 * kThreads + 2) * static_cast<int64_t>(sizeof(double));
  const FrameArgs& one = frames.of[0];
  const unsigned rows = static_cast<unsigned>(count);
  if (has_unit_rows(one)) VB_TRY(launch(frame_norms, dim3(1, rows), kThreads, 0, device, frames));
  VB_TRY(launch(frame_centre, dim3(grid_for(one.bank.width).x, rows), kThreads, shared, device, frames));
  return launch(frame_finish, dim3(1, rows), kThreads, shared, device, frames);
}

}  // namespace

Error choose_frame(const Rows& bank, const PackHeader& host_header, PackHeader* header, double* centre,
                   double* sample_scale, const Device& device) {
  return choose_frames({{frame_args(bank, host_header, header, centre, sample_scale)}}, 1, device);
}

Error pack_codebooks(const std::vector<CodebookPack>& codebooks, Metric metric, double* sample_scale,
                     const Device& device) {
  for (size_t at = 0; at < codebooks.size(); at += kCodebooksAtOnce) {
    const int count = static_cast<int>(std::min<size_t>(kCodebooksAtOnce, codebooks.size() - at));
    Frames frames{};
    Codebooks panels{};
    int64_t blocks = 0;
    for (int i = 0; i < count; ++i) {
      const auto& [bank, out] = codebooks[at + static_cast<size_t>(i)];
      const PackHeader host = device_pack_layout(bank.count, bank.width, metric, bank.dtype, false);
      char* base = static_cast<char*>(out);
      double* centre = reinterpret_cast<double*>(base + host.centre_at);
      PackHeader* header = reinterpret_cast<PackHeader*>(base);
      frames.of[i] = frame_args(bank, host, header, centre, sample_scale + i * kThreads);
      panels.of[i] = panels_of_bank(bank, metric, header, centre, base + host.panels_at);
      blocks = std::max(blocks, panels.of[i].count);
    }
    VB_TRY(choose_frames(frames, count, device));
    VB_TRY(launch(write_codebooks_kernel, dim3(grid_for(blocks).x, static_cast<unsigned>(count)), kPanelThreads,
                  sizeof(PanelShared<float>), device, panels));
  }
  return nullptr;
}

template <class T>
Error pack_panels(const QueryPanels* queries, const BankPanels* bank, const Device& device) {
  return pack_both(write_panels_kernel<T>, queries, queries == nullptr ? 0 : ceil_div(queries->queries.count, kPanel),
                   bank, bank == nullptr ? 0 : bank->count, kPanelThreads, sizeof(PanelShared<T>), device);
}
template Error pack_panels<float>(const QueryPanels*, const BankPanels*, const Device&);
template Error pack_panels<double>(const QueryPanels*, const BankPanels*, const Device&);

struct WidenArgs {
  Rows from;
  double* to;
};
static __global__ void __launch_bounds__(kThreads) widen_kernel(const WidenArgs a) {
  for (int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x; k < a.from.width; k += int64_t{gridDim.x} * kThreads)
    with_dtype(a.from.dtype,
               [&](auto type) { a.to[k] = widened(static_cast<decltype(type)>(a.from.data)[k * a.from.col_stride]); });
}
Error widen(const Rows& one, double* to, const Device& device) {
  return launch(widen_kernel, grid_for(ceil_div(one.width, kThreads)), kThreads, 0, device, WidenArgs{one, to});
}

// ---- The op --------------------------------------------------------------------------------------------------------

int64_t pack_workspace() { return round_up_to(kThreads * static_cast<int64_t>(sizeof(double)), 256); }

Error pack_bank(const Rows& bank, Metric metric, void* out, const Device& device, const double* bias) {
  const PackHeader h = device_pack_layout(bank.count, bank.width, metric, bank.dtype, bias != nullptr);
  char* base = static_cast<char*>(out);
  PackHeader* header = reinterpret_cast<PackHeader*>(base);
  if (refined_only(metric))
    return launch(header_kernel, dim3(1), 32, 0, device, FrameArgs{bank, h, header, nullptr, nullptr, 0});
  double* centre = reinterpret_cast<double*>(base + h.centre_at);
  BankPanels a = panels_of_bank(bank, metric, header, centre, base + h.panels_at);
  a.bias = bias;
  VB_TRY(choose_frame(bank, h, a.header, centre, static_cast<double*>(device.workspace), device));
  if (packs_panels(bank)) VB_TRY(pack_panels<float>(nullptr, &a, device));
  if (bank.width > kWidestScreen) return nullptr;
  a.schedule = make_schedule(bank.count);
  const BankOperands operands{a, packed_operands(header, bank, metric)};
  return pack_operands(nullptr, &operands, device);
}

}  // namespace vecbank::cuda
