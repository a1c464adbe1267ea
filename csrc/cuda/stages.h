// Codes of several books for one vector, a stage a book: what the host decides, and what drivers (residual.cu) and the
// kernel that does all stages on the chip (stages.cu) tell each other.
#pragma once

#include "kernels.h"

namespace vecbank::cuda {

constexpr int kStageRows = 64;                 // of a block
constexpr int kRestLine = kStageRows + 1;      // a coordinate of all of them; odd, for the banks of shared memory
constexpr int kListed = 16;                    // candidates of a row
constexpr int64_t kStageFixed = 40 << 10;      // shared memory whatever the width
constexpr int64_t kStageSums = 16 << 20;       // bytes of per-block, per-stage sums
constexpr int64_t kMostStageBlocks = 1 << 16;  // likewise
constexpr int64_t kStepRows = 1 << 16;         // rows of a chunk that goes stage by stage
constexpr int64_t kFewColumns = 4096;          // that one block walks without regret when there are few

// A book in device memory, its pack checked.
struct Stage {
  Rows bank;
  const float* panels;
  const double* centre;  // null: at the origin
  Schedule schedule;
  int exponent;
  bool good;  // false: the pack is not one, and every row is refined against everything
};

struct Stages {
  Rows x;
  const Stage* books;  // device memory
  int64_t count, width;
  Metric metric;
  int64_t* codes;          // [rows][count]
  float* quantized;        // [rows][width]; null: no cascade, book s codes columns [s width, (s + 1) width) of x
  double* squares;         // [count][blocks], with `quantized`
  int64_t *valid, blocks;  // likewise
  State* state;
};
Error all_stages(const Stages& args, const Device& device);

// Copies `books` to the device, checking their packs there. Books that have rows must have one.
Error describe(const PackedBook* books, int64_t count, Metric metric, Stage* out, const Device& device);

// ---- Plan ----------------------------------------------------------------------------------------------------------

// What a block may have; a device not known gets what every listed one has.
inline int64_t shared_limit(int capability) {
  switch (capability) {
    case 80:
    case 87: return 163 << 10;
    case 90:
    case 100:
    case 103: return 227 << 10;
    default: return 99 << 10;
  }
}
inline int64_t stage_shared(int64_t width) { return kStageFixed + width * (kRestLine + 1) * 4; }

struct StagesPlan {
  bool on_chip = true;  // all stages in one kernel; else a search a stage
  int64_t blocks = 1;   // whose sums are kept apart
  int64_t rows = 0;     // of a chunk, stage by stage
};

// Books of one width. `cascade`: each on what the one before left over; else side by side.
inline StagesPlan plan_stages(const Rows& x, const std::vector<PackedBook>& books, bool cascade, const Device& device) {
  StagesPlan plan;
  const int64_t stages = static_cast<int64_t>(books.size());
  const int64_t width = books.empty() ? 0 : books[0].bank.width, tiles = ceil_div(x.count, kStageRows);
  int64_t longest = 0;
  for (const PackedBook& book : books) {
    longest = std::max(longest, book.bank.count);
    plan.on_chip = plan.on_chip && book.bank.dtype == DType::f32;
  }
  // Few blocks over a long book leave the machine idle; a search splits the book.
  const int64_t at_once = cascade ? tiles : tiles * stages;
  const bool few = 4 * at_once < device.processors && longest > kFewColumns;
  plan.on_chip = plan.on_chip && width > 0 && stage_shared(width) <= shared_limit(device.capability) && !few &&
                 longest < (int64_t{1} << 31) && stages < 65536;
  const int64_t element = !books.empty() && books[0].bank.dtype == DType::f64 ? 8 : 4;
  // What is left over, and the rows found, live in the share that a search leaves alone when its bank comes packed.
  const int64_t most = cascade ? kPieceShare / 2 / std::max<int64_t>(width * element, 1) : kStepRows;
  plan.rows = std::clamp<int64_t>(std::min(most, kStepRows) / kStageRows * kStageRows, kStageRows, kStepRows);
  const int64_t affordable = std::max<int64_t>(1, kStageSums / (16 * std::max<int64_t>(stages, 1)));
  const int64_t rows = plan.on_chip ? x.count : std::min(plan.rows, x.count);
  plan.blocks = std::min({std::max<int64_t>(1, ceil_div(rows, kStageRows)), affordable, kMostStageBlocks});
  return plan;
}

}  // namespace vecbank::cuda
