// The hot loops, one table per instruction set. Everything else on the CPU is compiled for the baseline and calls
// through this table, so one binary runs everywhere.
#pragma once

#include "../core/frame.h"
#include "../core/pack.h"

namespace vecbank::cpu {

struct RowStats {
  double squares = 0.0;  // sum of squares of the mapped row
  double centre = 0.0;   // row . centre (0 without one)
};

template <class T>
struct TileArgs {
  const T* queries = nullptr;  // groups of `group` rows, interleaved: [group][line][row in group]
  int64_t query_stride = 0;    // elements between groups
  int group = 0;               // rows per group: one of Kernels::heights
  int64_t rows = 0;            // valid rows
  const T* panels = nullptr;   // first panel
  int64_t panel_stride = 0;
  int64_t width = 0;
  int64_t columns = 0;           // valid columns, counted from the first panel
  const T* next = nullptr;       // the panel wanted after the last of these; null: nobody knows
  const void* stream = nullptr;  // or: what to fetch while all of these are multiplied, so many bytes
  int64_t stream_bytes = 0;
};

// 16 bit fixed point, two coordinates to an element: half the bytes, and on AVX2 1.6 times the products a second.
//   panel: [ceil(width / 2)][16] pairs of codes, then float32 lines of steps, margins and starts (bounds.h, pack.h)
constexpr int64_t fixed_pairs(int64_t width) { return (width + 1) / 2; }
constexpr int64_t fixed_stride(int64_t width) { return (fixed_pairs(width) + 3) * kPanel; }
struct FixedTiles : TileArgs<int32_t> {
  const float* units = nullptr;  // per row, padded to whole groups: score = float(sum) * step + margin + start * unit
};

// Called with the 16 upper bounds of one row and panel, and the lanes that reach the row's threshold.
using Offer = void (*)(void* context, int64_t row, int64_t panel, const float* upper, uint32_t lanes);

template <class Tiles>
struct ScanArgs {
  Tiles tile;
  const float* thresholds = nullptr;  // per row, padded to whole groups with +inf; may rise under the scan
  Offer offer = nullptr;
  void* context = nullptr;
};

// Per row and lane of a panel (16 columns that meet the same vector lane): the largest upper bound so far, the second
// largest, and the panel of the largest, as a float: [rows, padded to whole groups][leader | runner-up | panel][16].
constexpr int kLeaderFloats = 48;

template <class Tiles>
struct LeadArgs {
  Tiles tile;
  float* leaders = nullptr;
  int64_t first_panel = 0;  // the number of the tile's first panel; below 2^24
};

// What decides between a row's leaders: the largest, its lane, and the largest of everything else.
struct Peak {
  float most, next;
  int32_t lane;
};

template <class T>
struct StoreArgs {
  TileArgs<T> tile;
  const T* scale = nullptr;  // per row: value = score * scale + term, then finish
  const T* term = nullptr;
  Finish finish = Finish::linear;
  void* out = nullptr;
  DType out_dtype = DType::f32;
  int64_t out_stride = 0;  // elements between rows
};

struct ScoreArgs {
  const double* queries = nullptr;  // padded with zeros to a multiple of 8
  int64_t query_stride = 0;
  int query_count = 1;
  Rows bank;  // col_stride must be 1
  Term term = Term::product;
  const int64_t* index = nullptr;  // null: rows first .. first + count
  int64_t first = 0, count = 0;
  double* out = nullptr;  // [query][count]
};

struct Kernels {
  const char* name;
  int heights[3];  // register-tile heights for float32: full, mid, one row
  int height_f64;
  RowStats (*stats)(const void* row, DType dtype, int64_t width, const Affine& map);
  // Interleaves `count` rows (missing ones up to `group` as zeros) into [width][group]; may write up to 8
  // elements past the end, which the caller overwrites or owns.
  void (*interleave_f32)(const void* const* rows, int count, int group, DType dtype, int64_t width, const Affine* maps,
                         float* out);
  void (*interleave_f64)(const void* const* rows, int count, int group, DType dtype, int64_t width, const Affine* maps,
                         double* out);
  void (*widen)(const void* row, DType dtype, int64_t width, double* out);  // pads to a multiple of 8 with zeros
  void (*scan)(const ScanArgs<TileArgs<float>>&);
  void (*lead)(const LeadArgs<TileArgs<float>>&);
  void (*peaks)(const float* leaders, int64_t rows, Peak* out);
  void (*store_f32)(const StoreArgs<float>&);
  void (*store_f64)(const StoreArgs<double>&);
  void (*score)(const ScoreArgs&);
  // The fixed-point screen; all null where float32 is as fast.
  void (*scan_fixed)(const ScanArgs<FixedTiles>&) = nullptr;
  void (*lead_fixed)(const LeadArgs<FixedTiles>&) = nullptr;
  // One group of interleaved rows. `units`: on entry the largest allowed, per row of the group. Both may read and write
  // a few elements past the end.
  void (*fix_rows)(const float* lines, int group, int64_t width, float* units, int32_t* out) = nullptr;
  void (*fix_panels)(const float* panels, int64_t count, int64_t width, const FixedBound& fixed,
                     int32_t* out) = nullptr;
};

extern const Kernels kernels_scalar;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace vecbank::cpu
