// The arguments of the hot loops over tiles: register tiles of query rows x panels of the bank, and what is done with
// the scores. Drivers fill in the arguments, and each instruction set's loops read them.
#pragma once

#include "../core/half.h"
#include "../core/metric.h"
#include "../core/pack.h"

namespace vecbank::cpu {

template <class T>
struct TileArgs {
  const T* queries = nullptr;  // groups of `group` rows, interleaved: [group][line][row in group]
  int64_t query_stride = 0;    // elements between groups
  int group = 0;               // rows per group: one of Kernels::heights
  int64_t rows = 0;            // valid rows
  const T* panels = nullptr;   // first panel
  int64_t panel_stride = 0;
  const T* starts = nullptr;  // what the accumulators of the first panel start from; null: zero
  int64_t start_stride = 0;
  int64_t width = 0;
  int64_t columns = 0;                   // valid columns, counted from the first panel
  const T* next = nullptr;               // the panel that is needed next; null: unknown
  const void* prefetch_range = nullptr;  // or: memory to fetch while all of these are multiplied
  int64_t prefetch_bytes = 0;
};

// Called with the 16 upper bounds of one row and panel, and the lanes that reach the row's threshold.
using PushSurvivors = void (*)(void* context, int64_t row, int64_t panel, const float* upper, uint32_t lanes);

// Where a scan pushes survivors, the columns that reach their row's threshold.
struct ScanTarget {
  const float* thresholds = nullptr;  // per row, padded to whole groups with +inf; may rise under the scan
  PushSurvivors push = nullptr;
  void* context = nullptr;
  // Per row, padded as the thresholds are: a bit for each column from the first panel on, the lowest first. A column
  // is pushed where it is set. null: every column.
  const uint8_t* const* allowed = nullptr;
  // Per row, padded too: memory that will be needed after this scan, so many bytes of each; null: none. Tiles fetch it,
  // a row at a time, because a burst of so many lines would wait for memory.
  const uint8_t* const* ahead = nullptr;
  int64_t ahead_bytes = 0;
};

template <class Tiles>
struct ScanArgs : ScanTarget {
  Tiles tile;
};

// The running argmax. For each row and each of the 16 lanes of a panel: the largest upper bound so far, the second
// largest, and the panel of the largest, as a float: [rows, padded to whole groups][largest | second | panel][16].
constexpr int kArgmaxFloats = 3 * kPanel;

template <class Tiles>
struct ArgmaxArgs {
  Tiles tile;
  float* running = nullptr;
  int64_t first_panel = 0;  // the number of the tile's first panel; below 2^24
};

// A row's running argmax over all lanes: the largest bound, its lane, and the largest of all the other bounds.
struct RowArgmax {
  float largest, next;
  int32_t lane;
};

template <class T>
struct StoreArgs {
  TileArgs<T> tile;
  const T* scale = nullptr;  // per row: value = score * scale + term, then finish
  const T* term = nullptr;
  // Only for panels of the rows' own numbers, which begin with the first coordinate:
  const T* column_scale = nullptr;  // a factor of every column, with zeros for a tile past the last; null: 1
  bool* odd = nullptr;              // becomes true where a value is not finite, or not above `least`
  T least = 0;
  Finish finish = Finish::linear;
  void* out = nullptr;
  DType out_dtype = DType::f32;
  int64_t out_stride = 0;  // elements between rows
};

// The loops of a screen on one instruction set.
template <class Tiles>
struct ScreenKernels {
  void (*scan)(const ScanArgs<Tiles>&) = nullptr;
  void (*argmax)(const ArgmaxArgs<Tiles>&) = nullptr;
};

}  // namespace vecbank::cpu
