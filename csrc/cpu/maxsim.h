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
  const void* next = nullptr;  // the rows that follow these, to be fetched meanwhile; null: the next tiles of these are
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

// Codes are unsigned bytes, this more than the whole number that they stand for, which is at most 127.
constexpr int32_t kCodeZero = 128;
// Where the code of coordinate k lies: of 64 whole ones, those that are 16 apart side by side, as vectors make them.
constexpr int64_t kCodeBlock = 64;
constexpr int64_t code_place(int64_t k, int64_t width) {
  const int64_t within = k % kCodeBlock;
  return k < width / kCodeBlock * kCodeBlock ? k - within + within % 16 * 4 + within / 16 : k;
}

struct MaxSimKernels {
  void (*best)(const BestArgs<float>&) = nullptr;
  void (*coded)(const BestArgs<int32_t>&) = nullptr;  // null where products of codes are no faster
  // Sums of squares, in float32 and in any order.
  void (*squares)(const float* rows, int64_t row_stride, int64_t count, int64_t width, float* out) = nullptr;
  // Raises most[k] to the largest square of coordinate k of these rows.
  void (*raise_squares)(const float* rows, int64_t row_stride, int64_t count, int64_t width, float* most) = nullptr;
  // The largest magnitude of a row.
  float (*largest)(const float* row, int64_t width) = nullptr;
  // The row times a factor as whole numbers, kCodeZero more, in the order that code_place() says; returns the sum of
  // the squares of what rounding took away.
  float (*code)(const float* row, int64_t width, float factor, uint8_t* codes) = nullptr;
};

}  // namespace vecbank::cpu
