// The hot loops, one table per instruction set. Everything else on the CPU is compiled for the baseline and calls
// through this table, so one binary runs everywhere.
#pragma once

#include <numeric>

#include "../core/frame.h"
#include "attend.h"
#include "bits.h"
#include "maxsim.h"
#include "search/screens/int16.h"
#include "search/screens/int8.h"
#include "slopes.h"
#include "sums.h"
#include "tiles.h"

namespace vecbank::cpu {

struct RowStats {
  double squares = 0.0;  // sum of squares of the mapped row
  double centre = 0.0;   // row . centre (0 without one)
};

struct ScoreArgs {
  const double* queries = nullptr;  // padded with zeros to a multiple of 8
  int64_t query_stride = 0;
  int query_count = 1;
  bool narrow = false;  // the queries are float32 values, or narrower ones
  Rows bank;            // col_stride must be 1
  Term term = Term::product;
  const int64_t* index = nullptr;  // null: rows first .. first + count
  int64_t first = 0, count = 0;
  double* out = nullptr;  // [query][count], each query's out_stride after the one before
  int64_t out_stride = 0;
  // Of a stretch of wide rows: [query][count][lane], the sums that wait for the next stretch. Only the last stretch may
  // be no multiple of 8 wide.
  double* lanes = nullptr;
  bool begins = true, ends = true;
};

// Raw scores become keys, or keys values, where they are: score / (query_norm * norms[i]) + bias[i], its sign, its
// root.
struct FinishArgs {
  double* scores = nullptr;
  int64_t count = 0;  // up to a multiple of 8 may be written
  double query_norm = 1.0;
  const double* norms = nullptr;  // null: no division
  const double* bias = nullptr;   // null: 0
  bool negate = false, root = false;
};

// Up to four queries against the rows [first, first + count) of a bank of float32 or 16-bit values, in float32:
// out[q][i] = root(score * row_scale[q] * column_scale[i]).
struct DirectArgs {
  const void* queries[4] = {};  // float32, or bfloat16 for direct_bf16
  int query_count = 4;
  int64_t ahead = 0;          // bytes from a query to the one that will be needed after these
  Rows bank;                  // col_stride must be 1
  Term term = Term::product;  // or square
  int64_t first = 0, count = 0;
  float row_scale[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  const float* column_scale = nullptr;  // null: 1
  bool root = false;
  float* out[4] = {};
  float least = 0.0f;  // scores must be at least so large
};
// Whether float32 may have lost this score.
constexpr float kMostScore = 3.4028234e38f;
VB_INLINE bool is_odd(float score, float least) {
  const float size = score < 0.0f ? -score : score;
  return !((size >= least) & (size <= kMostScore));
}
constexpr int64_t kDirectStretch = 4096;  // wider rows: too many terms in a lane for float32

// Dense products of panels of the rows' own numbers.
struct RawKernels {
  void (*product)(const StoreArgs<float>&) = nullptr;
  void (*square)(const StoreArgs<float>&) = nullptr;  // of differences
  // Of bfloat16 values, two of which are one element. The caller asks whether the processor has the unit.
  void (*pairs)(const StoreArgs<float>&) = nullptr;
};

struct Kernels {
  const char* name;
  int heights[3];  // register-tile heights for float32: full, mid, one row
  int height_f64;
  RowStats (*stats)(const void* row, DType dtype, int64_t width, const Affine& map);
  // Interleaves `count` rows (missing ones up to `group` as zeros) into [width][group]; may write up to 8
  // elements past the end, which the caller overwrites or owns. Float32 rows are not mapped where `maps` is null.
  void (*interleave_f32)(const void* const* rows, int count, int group, DType dtype, int64_t width, const Affine* maps,
                         float* out);
  void (*interleave_f64)(const void* const* rows, int count, int group, DType dtype, int64_t width, const Affine* maps,
                         double* out);
  void (*widen)(const void* row, DType dtype, int64_t width, double* out);  // pads to a multiple of 8 with zeros
  void (*floats)(const void* row, DType dtype, int64_t width, float* out);  // writes up to 7 numbers more
  void (*reduce_argmax)(const float* running, int64_t rows, RowArgmax* out);
  void (*store_f32)(const StoreArgs<float>&);
  void (*store_f64)(const StoreArgs<double>&);
  RawKernels raw;
  void (*score)(const ScoreArgs&);
  void (*finish)(const FinishArgs&);
  // The first of the largest keys, if that is above `least`; else -1. A key may be NaN, which is never above. There
  // must be memory up to a multiple of 8.
  int64_t (*first_best)(const double* keys, int64_t count, double least);
  // A bit for each of 16 count bools, the first the lowest.
  void (*pack_bools)(const unsigned char* bools, int64_t count, uint16_t* out);
  // Returns whether a score is odd. Null where the instruction set has no fused products.
  bool (*direct)(const DirectArgs&);
  // Products of bfloat16 queries with a bank of that type, which round as the unit of the processor does; null where
  // there is none. The caller asks whether the processor has the unit.
  bool (*direct_bf16)(const DirectArgs&);
  void (*narrow_floats)(const float* values, int64_t count, DType dtype, void* out);
  // The raw score with itself of each row of [first, first + count), or of the listed ones; col_stride must be 1.
  void (*squares)(const Rows& bank, const int64_t* index, int64_t first, int64_t count, double* out);
  // The same of rows that are interleaved, [width][group]; up to a multiple of 8 is written, and read past the end.
  void (*line_squares)(const float* lines, int64_t width, int group, double* out);
  // One over the floored roots of squares: 0 for 0, and NaN where float32 may not hold products with the row. Up to a
  // multiple of 8 is read and written.
  void (*norm_scales)(const double* squares, int64_t count, float* scales);
  ScreenKernels<TileArgs<float>> float32;
  int16::Kernels int16;  // of full tiles; all null where float32 is as fast
  int8::Kernels int8;
  bool (*gather)(const GatherArgs&);  // copies chosen rows, zeros for -1; false: a code is no row
  void (*narrow)(const double* row, DType dtype, int64_t width, void* out);
  bool (*add_bag)(const BagArgs&);  // false: a code is no row
  void (*add_block)(const BlockSumArgs&);
  void (*slopes)(const SlopeArgs&);
  void (*end_slopes)(const SlopeEndArgs&);
  BitKernels bits;
  AttendKernels attend;
  MaxSimKernels maxsim;
  // out[i] = grads[i * step] / root(squares[i]). Returns whether a square is odd: above float32, or below kLeastSquare.
  bool (*divide_by_roots)(const float* squares, const float* grads, int64_t step, int64_t count, float* out);

  // The height of the float32 tile for so many query rows.
  int height_for(int64_t rows) const { return rows <= 1 ? heights[2] : rows <= heights[1] ? heights[1] : heights[0]; }
};

// Heights of full register tiles divide this, so blocks of so many rows have no half-empty tile on any instruction set.
// Where the order of a sum depends on the block, the block must not depend on the instruction set.
constexpr int64_t kAnyTileRows = std::lcm(std::lcm(2, 6), 14);  // scalar, avx2, avx512: table.inl.h checks it

extern const Kernels kernels_scalar;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx2vnni, kernels_avx512vnni;  // differ in integer screens, bfloat16 and bits alone
#endif

}  // namespace vecbank::cpu
