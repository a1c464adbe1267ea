// The launchers that the drivers (search.cu, project.cu, residual.cu) call in turn. Each starts one or a few kernels.
#pragma once

#include "candidates.h"
#include "few.h"
#include "launch.h"
#include "order.h"
#include "pack_layout.h"
#include "schedule.h"

namespace vecbank::cuda {

// ---- pack.cu -------------------------------------------------------------------------------------------------------

// Chooses centre and scale from a sample of the whole bank; writes `header` (device memory, host_header's constants).
Error choose_frame(const Rows& bank, const PackHeader& host_header, PackHeader* header, double* centre,
                   double* sample_scale, const Device& device);

// Packs of several codebooks without operands, in a few launches for kCodebooksAtOnce of them. `out`: memory of
// codebook_pack_bytes(). `sample_scale`: kCodebooksAtOnce x kThreads numbers.
constexpr int kCodebooksAtOnce = 16;  // kernel arguments are at most 4 KiB
struct CodebookPack {
  Rows bank;  // with rows and coordinates, and panels (packs_panels)
  void* out;
};
Error pack_codebooks(const std::vector<CodebookPack>& codebooks, Metric metric, double* sample_scale,
                     const Device& device);

struct BankPanels {
  Rows bank;
  Metric metric;
  PackHeader* header;  // the frame is read, the count of fallback columns is written
  const double* centre;
  const double* bias = nullptr;  // [bank rows]; null: none
  void* panels;                  // of T, [count][width + 3][16]
  Schedule schedule;             // which panel each slot holds
  int64_t first_slot = 0, count = 0;
};
struct QueryPanels {
  Rows queries;
  Metric metric;
  bool tensor = false;  // inputs below 2^-126 may count as zero
  PackHeader* header;   // the bank's frame
  const double* centre;
  PackHeader expected;  // what a caller's pack must say about itself
  State* state;
  void* panels;  // of T, [ceil(rows / 16)][width + 1][16]; the last line multiplies the bank's bound line
  // Only a screen needs these:
  float* norms = nullptr;
  double* slacks = nullptr;
  float* thresholds = nullptr;
  int32_t* counts = nullptr;
  int32_t* fallback_count = nullptr;  // cleared, for the refinement to come
  // Only a dense product needs these: value = score * scale + term; fallback rows are scored in float64.
  void *scale = nullptr, *term = nullptr;  // of T
  unsigned char* fallback = nullptr;
};
// One launch writes both; either may be null.
template <class T>
Error pack_panels(const QueryPanels* queries, const BankPanels* bank, const Device& device);

// ---- tensor_cores/operands.cu --------------------------------------------------------------------------------------

struct QueryOperands {  // layout: operands.h
  QueryPanels common;   // without panels and dense outputs
  Operand to;           // operand_rows(queries.count) of them
};
struct BankOperands {
  BankPanels common;  // without panels; `count` panels of 16 rows, padded to whole tiles
  PackedOperands to;
};
// As pack_panels. Both have operands of one type.
Error pack_operands(const QueryOperands* queries, const BankOperands* bank, const Device& device);

// ---- screen.cu, tensor_cores/mma16.cu, sm90.cu ---------------------------------------------------------------------

// A chunk's part of a mask. A mask of several strides comes with the offset of each of its rows: a screen that computed
// the offsets itself would spill registers in their divisions.
struct MaskRows {
  const bool* data;       // null: all rows may be returned
  const int64_t* starts;  // one per query, in elements; null: row_stride apart
  int64_t row_stride, col_stride;
  VB_HOST_DEVICE bool allows(int64_t query, int64_t column) const {
    return data == nullptr || data[(starts == nullptr ? query * row_stride : starts[query]) + column * col_stride];
  }
};

struct Screen {
  const float* queries;  // panels
  int64_t rows, width;
  const float* panels;                  // of the bank
  Operand query_operand, bank_operand;  // replace panels for screen_mma16 and screen_sm90
  ColumnTerms terms;
  int64_t first_slot;  // slot of the first panel; -1: the panels lie in their natural order
  Schedule schedule;
  int64_t begin, end;  // slots to screen
  int64_t columns;     // of the bank
  Metric metric;
  bool biased;
  MaskRows mask;
  const float* norms;
  const double* slacks;
  double start_per_r2;
  int32_t listed;  // k where thresholds rise while the screen runs: a block lists its rows' k best; 0: no lists
  float* thresholds;
  int32_t* counts;
  Candidate* candidates;
  int32_t capacity;
  int64_t blocks;  // at most this many blocks share the columns of a row tile
  TileWork work;   // set by the launcher
};
Error screen_simt(const Screen& args, const Device& device);
Error screen_mma16(const Screen& args, const Device& device);
Error screen_sm90(const Screen& args, const Device& device);  // width up to kWidestSm90; `listed` 0 or 1
Error sm90_fault(const Device& device);                       // null where it can run, otherwise the reason

struct Few {  // few.cu
  Screen s;   // rows, width, columns, metric, biased, mask, thresholds, counts, candidates, capacity
  Rows queries, bank;
  const double* bias;      // null: none
  const PackHeader* pack;  // a caller's pack, which is not read but must be what `expected` says; null: none
  PackHeader expected;
  State* state;
  int64_t k;
  FewSample sample;
  int32_t* fallback_count;  // cleared
  float* tops;              // [queries][kFewTops]
  float unit;               // these two are set by the launcher
  bool sampling;            // the sample, or the whole bank
};
// Begins the queries' lists, thresholds and counts too. Up to kFewQueries queries; few_group() is not 0.
Error screen_few(const Few& args, const Device& device);

// ---- compact.cu ----------------------------------------------------------------------------------------------------

struct Compact {
  int64_t rows, k;
  float* thresholds;
  int32_t* counts;
  Candidate* candidates;
  int32_t capacity;
  int32_t enough;  // a row with at most as many candidates stays as it is
};
// Raises each row's threshold to the k-th best lower bound it holds, and drops what cannot reach it.
Error compact(const Compact& args, const Device& device);

// ---- refine.cu, refine_all.cu ---------------------------------------------------------------------------------------

struct Result {  // of a chunk: row 0 is its first query
  Rows queries, bank;
  MetricRecord metric;
  int64_t k;
  const double* bias;
  MaskRows mask;
  void* values;
  DType values_dtype;
  int64_t* indices;
  void* gathered;
  State* state;
};

struct Refine {
  Result result;
  const float* thresholds;
  int32_t* counts;  // zero afterwards for a fallback row
  const Candidate* candidates;
  int32_t capacity;
  int32_t *fallback_count, *fallback_rows;  // the fallback rows, which are refined against everything
};
Error refine(const Refine& args, const Device& device);

struct RefineAll {
  Result result;
  const int32_t* fallback_count = nullptr;  // null: every row
  const int32_t* fallback_rows = nullptr;
  int64_t list = 512;
  // Few rows share the bank over many blocks, by as many parts as there are slots: [slot][k], [slot].
  int64_t slots = 1;
  Scored* partial = nullptr;
  int64_t* partial_counts = nullptr;
  int32_t* arrivals = nullptr;  // [row], zero before
};
constexpr int64_t kLeastPart = 256;  // bank rows
VB_INLINE int64_t parts_of_bank(const RefineAll& a, int64_t rows) {
  const int64_t least = 4 * a.result.k > kLeastPart ? 4 * a.result.k : kLeastPart;
  const int64_t most = a.result.bank.count / least, parts = a.slots / (rows > 1 ? rows : 1);
  return parts < 1 || most < 1 ? 1 : parts < most ? parts : most;
}
Error refine_all(const RefineAll& args, const Device& device);

// ---- codebook.cu ---------------------------------------------------------------------------------------------------

struct Means {
  const double* squares;  // [count][parts]: sums of squares over rows of `width` numbers
  const int64_t* valid;   // [count][parts]: the number of these rows
  int64_t count, parts, width;
  void* out;  // [count]; 0 where no row counts
  DType dtype;
};
Error means(const Means& args, const Device& device);

}  // namespace vecbank::cuda
