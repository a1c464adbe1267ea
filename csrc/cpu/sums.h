// Copies and sums of chosen rows: the arguments of the loops in sums.inl.h.
#pragma once

#include "../core/lookup.h"

namespace vecbank::cpu {

struct GatherArgs {
  const char* bank = nullptr;                  // whole rows
  int64_t rows = 0, row_bytes = 0, bytes = 0;  // of the bank; from one row to the next; of one row
  const int64_t* codes = nullptr;
  int64_t count = 0;
  char* out = nullptr;  // [count][bytes]
  // Too large for the nearer caches: rows, or the room for them, are fetched early.
  bool far_bank = false, far_out = false;
};

struct BagArgs {
  Rows bank;                       // col_stride must be 1
  const int64_t* codes = nullptr;  // -1 is skipped
  int64_t count = 0;
  int64_t ahead = 0;              // codes that follow them, of any value: their rows are fetched early
  const void* weights = nullptr;  // [count] in the bank's dtype; null: ones
  double* sum = nullptr;  // [width], and room up to a multiple of 8: the rows are added to it, one after another
};

// A block of rows of a segment sum, of which some columns are added up. Sums lie `stride` apart, a multiple of 8.
struct BlockSumArgs {
  const int64_t* codes = nullptr;  // [rows]
  int64_t rows = 0, ahead = 0;     // at most kSumBlock; how many rows follow the block
  const void* source = nullptr;    // the first column of the block's first row
  DType dtype = DType::f32;
  int64_t row_stride = 0, width = 0;
  const double* weights = nullptr;          // [rows]; null: ones
  double *sums = nullptr, *part = nullptr;  // [segments][stride], [stride]
  int64_t stride = 0;
  int16_t* last = nullptr;                    // [segments] of -1, which they are again at the end
  int16_t *first = nullptr, *next = nullptr;  // [kSumBlock], [-1 .. kSumBlock): room for the lists
};

}  // namespace vecbank::cpu
