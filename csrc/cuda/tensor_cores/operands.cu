// Writes 16-bit operands (operands.h). Frame, map and fallback rows are those of float32 panels; rounding and layout
// differ. Sixteen threads have a panel of sixteen rows: together they write one row after the other, in one pass over
// its coordinates, and then each of them finishes one row. There are no barriers.
#include "../async_copy.h"
#include "../panels.cuh"
#include "bounds.h"

namespace vecbank::cuda {
namespace {

constexpr int kOperandThreads = 64;
constexpr int kGroups = kOperandThreads / kPanel;  // panels of a block
constexpr int kChunk = 8;                          // elements of a 16-byte store
static_assert(kOperandTile / kPanel % kGroups == 0);

struct alignas(16) Chunk {
  uint16_t bits[kChunk];
};
template <class S>
struct alignas(16) Loaded {
  S v[kChunk];
};

template <bool Bf16>
__device__ __forceinline__ uint16_t rounded_bits(float v) {
  return Bf16 ? to_bfloat16(v).bits : to_float16(v).bits;
}
template <bool Bf16>
__device__ __forceinline__ float value_of_bits(uint16_t bits) {
  return Bf16 ? widened_f32(BFloat16{bits}) : widened_f32(Float16{bits});
}

// Eight coordinates from the k-th on; zeros beyond the width.
template <class S>
__device__ __forceinline__ Loaded<S> load_chunk(const S* from, const Rows& rows, int64_t k) {
  if (rows.col_stride == 1 && k + kChunk <= rows.width && reinterpret_cast<uintptr_t>(from + k) % 16 == 0)
    return *reinterpret_cast<const Loaded<S>*>(from + k);
  Loaded<S> some{};
#pragma unroll
  for (int e = 0; e < kChunk; ++e)
    if (k + e < rows.width) some.v[e] = from[(k + e) * rows.col_stride];
  return some;
}

struct RowSums {  // of squares: of the mapped row; the same without the centre; of what rounding lost
  double squares = 0.0, original = 0.0, lost = 0.0;
};

// A row whose map is a power of two alone, in float32 arithmetic, and in float64 only what is added up: a 16-bit row in
// its own type costs one conversion to float64 a coordinate. Products with the power of two and the rounding's gap are
// exact in float32 unless a coordinate leaves its range. Returns false then; the sums mean nothing.
template <bool Bf16, class S>
__device__ __forceinline__ bool write_scaled(const S* from, const Rows& rows, double power, uint16_t* to, int64_t pitch,
                                             RowSums& sums) {
  const float post = static_cast<float>(power), inverse = static_cast<float>(1.0 / power);
  bool exact = true;
  for (int64_t k = threadIdx.x % 16 * kChunk; k < pitch; k += 16 * kChunk) {
    const Loaded<S> x = load_chunk(from, rows, k);
    Chunk chunk;
#pragma unroll
    for (int e = 0; e < kChunk; ++e) {
      const float original = widened_f32(x.v[e]), v = original * post;
      exact = exact && v * inverse == original;
      chunk.bits[e] = rounded_bits<Bf16>(v);
      const double wide = v;
      sums.squares = add_rn(sums.squares, mul_rn(wide, wide));
      const float gap = v - value_of_bits<Bf16>(chunk.bits[e]);
      if (gap != 0.0f) sums.lost = add_rn(sums.lost, mul_rn(static_cast<double>(gap), static_cast<double>(gap)));
    }
    *reinterpret_cast<Chunk*>(to + k) = chunk;
  }
  return exact;
}

// Any row, in float64. `originals`: the squares without the centre are wanted too.
template <bool Bf16, class S>
__device__ __forceinline__ RowSums write_mapped(const S* from, const Rows& rows, const Affine& map, bool originals,
                                                uint16_t* to, int64_t pitch) {
  RowSums sums;
  for (int64_t k = threadIdx.x % 16 * kChunk; k < pitch; k += 16 * kChunk) {
    const Loaded<S> x = load_chunk(from, rows, k);
    Chunk chunk{};
#pragma unroll
    for (int e = 0; e < kChunk; ++e) {
      if (k + e >= rows.width) continue;
      const double original = widened(x.v[e]), v = mapped(original, k + e, map);
      chunk.bits[e] = rounded_bits<Bf16>(static_cast<float>(v));
      sums.squares = add_rn(sums.squares, mul_rn(v, v));
      if (originals)
        sums.original = add_rn(sums.original, mul_rn(mul_rn(original, map.post), mul_rn(original, map.post)));
      const double gap = add_rn(v, -static_cast<double>(value_of_bits<Bf16>(chunk.bits[e])));
      sums.lost = add_rn(sums.lost, mul_rn(gap, gap));
    }
    *reinterpret_cast<Chunk*>(to + k) = chunk;
  }
  return sums;
}

__device__ __forceinline__ void write_zeros(uint16_t* to, int64_t pitch) {
  for (int64_t k = threadIdx.x % 16 * kChunk; k < pitch; k += 16 * kChunk) *reinterpret_cast<Chunk*>(to + k) = Chunk{};
}

// Begins to fetch row i, so that a panel's rows come at the same time and not one after the other.
__device__ __forceinline__ void fetch_ahead(const Rows& rows, int64_t i) {
  constexpr int64_t kLine = 128, kMost = 8 * kLine;
  if (i >= rows.count || rows.col_stride != 1) return;
  const int64_t bytes = rows.width * static_cast<int64_t>(size_of(rows.dtype));
  for (int64_t at = 0; at < bytes && at < kMost; at += kLine) prefetch(row_of(rows, i) + at);
}

// The bits of `lanes` that belong to this thread's group of sixteen.
__device__ __forceinline__ unsigned of_group(unsigned lanes) { return lanes >> (threadIdx.x & 16u) & 0xffffu; }

// Writes an operand's row from row i, or zeros unless `written`. The whole warp calls it; its groups have rows of their
// own, and the same `originals`.
template <bool Bf16>
__device__ __forceinline__ RowSums write_row(const Rows& rows, int64_t i, bool written, const Affine& map,
                                             bool originals, uint16_t* to, int64_t pitch) {
  RowSums sums;
  bool done = !written;
  if (!written)
    write_zeros(to, pitch);
  else if (map.centre == nullptr && map.pre == 1.0)
    with_dtype(rows.dtype, [&](auto type) {
      if constexpr (sizeof(*type) < 8)
        done = write_scaled<Bf16>(reinterpret_cast<decltype(type)>(row_of(rows, i)), rows, map.post, to, pitch, sums);
    });
  if (of_group(__ballot_sync(kAllLanes, !done)) != 0)
    with_dtype(rows.dtype, [&](auto type) {
      sums = write_mapped<Bf16>(reinterpret_cast<decltype(type)>(row_of(rows, i)), rows, map, originals, to, pitch);
    });
  sums.squares = sum_of_16(sums.squares);
  sums.original = originals ? sum_of_16(sums.original) : sums.squares;
  if (__any_sync(kAllLanes, sums.lost != 0.0)) sums.lost = sum_of_16(sums.lost);
  return sums;
}

// At least the norm of what was lost.
__device__ __forceinline__ double norm_lost(const RowSums& sums) { return sqrt(sums.lost) * (1.0 + 0x1p-20); }

template <bool Bf16>
__device__ __forceinline__ void write_queries(const QueryOperands& args, BlockOf block) {
  const QueryPanels& a = args.common;
  const int64_t pitch = args.to.pitch, panels = operand_rows(a.queries.count) / kPanel;
  const int t = threadIdx.x % kPanel;
  const bool good = trusted(a, block.number == 0);
  const Affine map = map_of_queries(a, good);  // of a query with an exponent of its own: without that
  const double share = operand_share(args.to.type, a.queries.dtype, a.metric, good && a.header->centred);
  for (int64_t base = int64_t{block.number} * kGroups; base < panels; base += int64_t{block.count} * kGroups) {
    const int64_t first = (base + threadIdx.x / kPanel) * kPanel;
    uint16_t* to = args.to.rows + first * pitch;
    RowSums mine;
    fetch_ahead(a.queries, first + t);
    for (int r = 0; r < kPanel; ++r) {
      const bool valid = first + r < a.queries.count;
      const RowSums sums = write_row<Bf16>(a.queries, first + r, valid, map, false, to + r * pitch, pitch);
      if (t == r) mine = sums;
    }
    const bool valid = first + t < a.queries.count;
    const QueryFacts f = query_facts(a, valid, good, map, mine.squares);
    // Queries of extreme norms are scaled, and written again.
    const unsigned scaled = __ballot_sync(kAllLanes, f.frame.usable && f.map.post != map.post);
    for (int r = 0; r < kPanel; ++r) {
      if ((scaled >> r & 0x10001u) == 0) continue;
      const Affine own{map.centre, 1.0, __shfl_sync(kAllLanes, f.map.post, (threadIdx.x & 16) + r)};
      const bool there = first + r < a.queries.count;
      const RowSums sums = write_row<Bf16>(a.queries, first + r, there, own, false, to + r * pitch, pitch);
      if (t == r) mine = sums;
    }
    const double lost = norm_lost(mine);
    const bool usable = f.frame.usable && lost <= kMaxQueryNorm;  // false if a coordinate overflowed
    if (valid) begin_query(a, first + t, f, usable, usable ? operand_norm(f.frame.packed, lost, share) : 0.0f);
    for (unsigned left = of_group(__ballot_sync(kAllLanes, valid && !usable)); left != 0; left &= left - 1)
      write_zeros(to + (__ffs(static_cast<int>(left)) - 1) * pitch, pitch);
  }
}

// The padding has panels too.
template <bool Bf16>
__device__ __forceinline__ void write_bank(const BankOperands& args, BlockOf block) {
  const BankPanels& a = args.common;
  const BankTerms& terms = args.to.terms;
  const DType type = args.to.rows.type, queries[] = {type, DType::f32};  // float32: any that is rounded
  const int64_t d = a.bank.width, pitch = args.to.rows.pitch, panels = operand_rows(a.count * kPanel) / kPanel;
  const int t = threadIdx.x % kPanel;
  const double post = ldexp(1.0, a.header->exponent);
  const double* centre = a.header->centred ? a.centre : nullptr;
  const bool unit_rows = record(a.metric).unit_rows, originals = centre != nullptr && !unit_rows;
  for (int64_t base = int64_t{block.number} * kGroups; base < panels; base += int64_t{block.count} * kGroups) {
    const int64_t slot = base + threadIdx.x / kPanel;
    const int64_t first = slot < a.count ? a.schedule.panel(a.first_slot + slot) * kPanel : a.bank.count;
    uint16_t* to = args.to.rows.rows + slot * kPanel * pitch;
    RowSums mine;
    double norm = 1.0;
    fetch_ahead(a.bank, first + t);
    for (int r = 0; r < kPanel; ++r) {
      const bool valid = first + r < a.bank.count;
      const double floor = unit_rows ? norm_of(a.bank, first + r, valid) : 1.0;
      const Affine map{centre, 1.0 / floor, post};
      const RowSums sums = write_row<Bf16>(a.bank, first + r, valid, map, originals, to + r * pitch, pitch);
      if (t == r) mine = sums, norm = floor;
    }
    const bool valid = first + t < a.bank.count;
    ColumnFacts f{};
    if (valid) f = facts_of_column(a, first + t, mine.squares, mine.original, norm, post);
    const double lost = norm_lost(mine);
    const bool usual = valid && f.fits && lost <= kMaxBankNorm;
    const float start = usual ? operand_start(f.start, pitch) : 0.0f;
    const int64_t row = slot * kPanel + t;
    terms.start[row] = usual ? start : valid ? HUGE_VALF : -HUGE_VALF;
    terms.lift[row] = round_up(static_cast<double>(start) - (usual ? f.start : 0.0));
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
      if (terms.bounds[kind] == nullptr) continue;
      const double share = operand_share(type, queries[kind], a.metric, a.header->centred);
      terms.bounds[kind][row] = usual ? operand_bound(a.metric, d, pitch, f.packed, lost, share, f.whole) : 0.0f;
    }
    for (unsigned left = of_group(__ballot_sync(kAllLanes, valid && !usual)); left != 0; left &= left - 1)
      write_zeros(to + (__ffs(static_cast<int>(left)) - 1) * pitch, pitch);
  }
}

template <bool Bf16>
__global__ void __launch_bounds__(kOperandThreads, 12)
    write_operands_kernel(const __grid_constant__ PackBoth<QueryOperands, BankOperands> a) {
  if (blockIdx.x < a.bank_blocks)
    write_bank<Bf16>(a.bank, {blockIdx.x, a.bank_blocks});
  else
    write_queries<Bf16>(a.queries, {blockIdx.x - a.bank_blocks, gridDim.x - a.bank_blocks});
}

}  // namespace

Error pack_operands(const QueryOperands* queries, const BankOperands* bank, const Device& device) {
  const auto blocks = [](int64_t rows) { return operand_rows(rows) / kPanel / kGroups; };
  const DType type = queries != nullptr ? queries->to.type : bank->to.rows.type;
  return pack_both(type == DType::bf16 ? write_operands_kernel<true> : write_operands_kernel<false>, queries,
                   queries == nullptr ? 0 : blocks(queries->common.queries.count), bank,
                   bank == nullptr ? 0 : blocks(bank->common.count * kPanel), kOperandThreads, 0, device);
}

}  // namespace vecbank::cuda
