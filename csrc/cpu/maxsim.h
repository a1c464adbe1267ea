// The arguments of the loops in maxsim.inl.h. Query tokens are the lanes of panels, and document tokens the rows of
// register tiles, so that the best of a document's tokens is a maximum of registers, and nothing goes across lanes.
#pragma once

#include "../core/pack.h"
#include "../core/types.h"

namespace vecbank::cpu {

// Rows [0, count) of documents that follow one another, against all panels of query tokens. T: float, or int32_t for
// codes, four to an element.
template <class T>
struct BestArgs {
  const T* rows = nullptr;  // of unit column stride
  int64_t row_stride = 0, count = 0, width = 0;
  const float* scales = nullptr;  // a factor of each row's scores; null: 1. Not of codes
  const T* panels = nullptr;      // [panel][width][16]
  const T* starts = nullptr;      // [panel][16], what a score starts from; null: zero
  int64_t panel_count = 0;
  const void* next = nullptr;  // rows that will be needed after these; null: unknown
  // Documents that have a row here, none of which is empty: where each ends, counted from the first row, in ascending
  // order. The last one may go on after these rows, and the first may have begun `before` rows before them.
  const int64_t* ends = nullptr;
  int64_t documents = 0, before = 0;
  float* running = nullptr;  // [best | place][panel][16]: of the document that goes on
  float* best = nullptr;     // [document][panel][16], written where a document ends
  float* places = nullptr;   // the same of the tokens' numbers within the document; null: not wanted
  int64_t stride = 0;        // from a document's to the next one's
  bool* odd = nullptr;       // [document]: becomes true where float32 may have lost a score
};

struct MaxSimKernels {
  void (*best)(const BestArgs<float>&) = nullptr;
  void (*coded)(const BestArgs<int32_t>&) = nullptr;  // null where products of codes are no faster
  // Sums of squares, in float32 and in any order.
  void (*squares)(const float* rows, int64_t row_stride, int64_t count, int64_t width, float* out) = nullptr;
  // A row of any type as float32; up to 15 numbers more are written.
  void (*floats)(const void* row, DType dtype, int64_t width, float* out) = nullptr;
};

}  // namespace vecbank::cpu
