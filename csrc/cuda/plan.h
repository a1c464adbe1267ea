// Everything the host decides before it launches: tile shapes, the order in which a bank is visited, chunk sizes,
// workspace. Plain functions of the problem, tested on the host.
#pragma once

#include <algorithm>

#include "../core/bounds.h"
#include "../core/parallel.h"
#include "api.h"
#include "order.h"

namespace vecbank::cuda {

constexpr int kTile = 128;  // query rows and bank columns of a float32 tile
constexpr int kTilePanels = kTile / kPanel;
constexpr int kThreads = 256;                       // of a tile's block
constexpr int64_t kMostScreened = 1024;             // larger k is refined outright
constexpr int64_t kMostSorted = 4096;               // entries that a block sorts in shared memory: 64 KiB
constexpr int64_t kWidestScreen = 1 << 14;          // a panel of 16 rows is then 1 MiB
constexpr int64_t kWidestProduct = 1 << 18;         // a float64 panel of 16 rows is then 32 MiB
constexpr int64_t kMostColumns = int64_t{1} << 32;  // candidates name their column in 32 bits

// Shares of the workspace, together below 64 MiB (a test adds them up).
constexpr int64_t kCandidateShare = int64_t{24} << 20;
constexpr int64_t kPieceShare = int64_t{16} << 20;  // packed bank in flight, unless the bank came packed
constexpr int64_t kQueryShare = int64_t{8} << 20;
constexpr int64_t kPartialShare = int64_t{8} << 20;  // best rows of the parts of a split bank
constexpr int64_t kMostRows = 1 << 16;               // query rows of a chunk

struct Candidate {  // a screened row: its refined score lies in [lower, upper], in screen units
  float upper, lower;
  uint32_t column;
};

constexpr int32_t kGivenUp = 1 << 30;  // a count that says: refine this row against everything

// How far the float64 score can lie below an upper bound; shared by screens and tests. `r`: the panel's bound line.
VB_INLINE float lower_bound(float upper, float norm, double r, double start_per_r2, double slack) {
  if (!(upper < HUGE_VALF)) return -HUGE_VALF;  // a special column promises nothing
  const double gap = static_cast<double>(norm) * r + start_per_r2 * r * r + slack;
  return round_down(static_cast<double>(upper) - 2.0 * gap);
}

// The same for a row whose columns are in registers, without float64 for each. A column loses column_gap, whose few
// roundings the last factor covers; the largest that remains, less what all columns lose alike, is the row's floor:
// |best| pays for its own rounding and the two here, twice_above() for the other half of the last.
VB_INLINE float column_gap(float twice_norm, float r, float twice_start_per_r2) {
  return r * (twice_norm + twice_start_per_r2 * r) * (1.0f + 0x1p-20f);
}
VB_INLINE float twice_above(double slack) { return above(2.0 * slack * (1.0 + 0x1p-20)); }
VB_INLINE float row_floor(float best, float twice_slack) { return best - std::fabs(best) * 0x1p-22f - twice_slack; }

// ---- Tensor cores
// ------------------------------------------------------------------------------------------------------ ASSUMED, not
// documented, and measured by no run of ours yet (tests/cuda/accumulation.cu is the program that will): one tensor-core
// instruction adds its products to the accumulator with an error of at most kTensorUnit times the sum of the magnitudes
// of all that is added. The same constant stands for every architecture until one is measured.
constexpr double kTensorUnit = 0x1p-22;
// A float32 is split as hi + lo of 11 bits each; hi hi + hi lo + lo hi leaves out at most 3.01 * 2^-22 |x||b|.
constexpr double kSplitUnit = 3.01 * 0x1p-22;

// How many times the float32 screen's own error bound covers the split screen's: unit(d) there is u (d + 16), here the
// split's loss, and three instructions for every eight coordinates, the bound line's and the start's included.
VB_INLINE double tensor_factor(int64_t width) {
  const double instructions = 3.0 * static_cast<double>((width + 1 + 7) / 8 + 2);
  const double unit = (kSplitUnit + instructions * kTensorUnit) * 1.02 + screen_unit(width);
  return unit / screen_unit(width);
}
// Inputs under 2^-126 may count as zero there. `norm`: of the packed query.
VB_INLINE double tensor_slack(int64_t width, double norm) {
  return static_cast<double>(width + 16) * 0x1p-124 * (1.0 + norm + 2.0 * kMaxBankNorm);
}

// Panels are visited in a scattered order: a bank sorted by score would otherwise beat its own threshold with every
// row. Slot s holds panel s * step mod panels; step is prime to panels, near the golden ratio of it.
struct Schedule {
  int64_t panels = 0, step = 1;
  VB_SHARED int64_t panel(int64_t slot) const {
    return static_cast<int64_t>(static_cast<uint64_t>(slot) * step % panels);
  }
};
inline int64_t common_divisor(int64_t a, int64_t b) { return b == 0 ? a : common_divisor(b, a % b); }
inline Schedule make_schedule(int64_t rows) {
  Schedule s;
  s.panels = ceil_div(rows, kPanel);
  s.step = std::max<int64_t>(1, static_cast<int64_t>(0.618033988749895 * static_cast<double>(s.panels)));
  while (s.panels > 0 && common_divisor(s.step, s.panels) != 1) ++s.step;
  return s;
}

struct SearchPlan {
  bool direct = false;       // no screen: k is large, or float32 panels make no sense
  int64_t capacity = 0;      // candidates per row
  int64_t growth = 0;        // a range of columns is at most this many times what was seen before it
  int64_t rows = 0;          // query rows per chunk
  int64_t piece_panels = 0;  // bank panels packed at a time
  int64_t splits = 1;        // parts of the bank, for rows refined against everything
  int64_t list = 0;          // entries a block sorts when it refines against everything: twice what it keeps
  Schedule schedule;
};

// k = 1 raises its threshold with every tile and keeps few; larger k starts from everything it sees and compacts.
inline int64_t candidate_capacity(int64_t k) {
  return k == 1 ? 64 : std::min(kMostSorted, std::max<int64_t>(256, power_of_two_from(8 * k)));
}

inline SearchPlan plan_search(const SearchProblem& p, int processors) {
  SearchPlan plan;
  const int64_t n = p.queries.count, m = p.bank.count, d = p.bank.width;
  plan.direct = p.k > kMostScreened || (p.k > 1 && p.k * 8 >= m) || d > kWidestScreen || m >= kMostColumns;
  plan.schedule = make_schedule(m);
  plan.capacity = plan.direct ? 0 : candidate_capacity(p.k);
  plan.growth = p.k == 1 ? 0 : std::clamp<int64_t>((plan.capacity - 2 * p.k) / (2 * p.k), 1, 8);
  int64_t most = kMostRows;
  if (!plan.direct) {
    most = std::min({most, kCandidateShare / (plan.capacity * static_cast<int64_t>(sizeof(Candidate))),
                     kQueryShare / ((d + 1) * 4)});
    most = most >= kTile ? most / kTile * kTile : std::max<int64_t>(kPanel, most / kPanel * kPanel);
  }
  const int64_t unit = most >= kTile ? kTile : kPanel;
  plan.rows = std::min(most, round_up_to(ceil_div(n, ceil_div(n, most)), unit));
  plan.piece_panels =
      std::clamp<int64_t>(kPieceShare / ((d + 3) * kPanel * 4), 1, std::max<int64_t>(plan.schedule.panels, 1));

  const int64_t kept = std::min(power_of_two_from(p.k), kMostSorted / 2);
  plan.list = std::max<int64_t>(512, 2 * kept);
  if (p.k <= kept) {  // more than one pass over the ranks cannot be split
    const int64_t slots = std::min(plan.rows, n);
    const int64_t wanted = ceil_div(2 * processors, slots), affordable = kPartialShare / (slots * (p.k * 16 + 8));
    plan.splits = std::clamp<int64_t>(std::min({wanted, affordable, m / std::max<int64_t>(1024, 4 * p.k)}), 1, 1024);
  }
  return plan;
}

// Slots [begin, end) of the range that follows `seen` panels, inside a piece that ends at `piece_end`.
inline int64_t range_end(const SearchPlan& plan, int64_t begin, int64_t piece_end) {
  if (plan.growth == 0) return piece_end;
  const int64_t first = plan.capacity / 2 / kPanel;  // everything is kept while there is no threshold
  return std::min(piece_end, begin + std::max<int64_t>(begin == 0 ? first : kTilePanels, begin * plan.growth));
}

// How many blocks share a range, so that few query tiles still fill the machine.
inline int64_t column_blocks(int64_t row_tiles, int64_t column_tiles, int processors) {
  return std::clamp<int64_t>(ceil_div(4 * processors, std::max<int64_t>(row_tiles, 1)), 1,
                             std::max<int64_t>(column_tiles, 1));
}

// ---- All stages of a cascade
// ------------------------------------------------------------------------------------------------

constexpr int kStageRows = 64;                 // of a block
constexpr int kRestLine = kStageRows + 1;      // a coordinate of all of them; odd, for the banks of shared memory
constexpr int kListed = 16;                    // candidates of a row
constexpr int64_t kStageFixed = 40 << 10;      // shared memory whatever the width
constexpr int64_t kStageSums = 4 << 20;        // bytes of per-block, per-stage sums
constexpr int64_t kMostStageBlocks = 1 << 16;  // likewise
constexpr int64_t kStepRows = 1 << 16;         // rows of a chunk that goes stage by stage
constexpr int64_t kFewColumns = 4096;          // that one block walks without regret when there are few

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
  plan.rows = std::clamp<int64_t>(most < kStageRows ? most : most / kStageRows * kStageRows, 1, kStepRows);
  const int64_t affordable = std::max<int64_t>(1, kStageSums / (16 * std::max<int64_t>(stages, 1)));
  const int64_t rows = plan.on_chip ? x.count : std::min(plan.rows, x.count);
  plan.blocks = std::min({std::max<int64_t>(1, ceil_div(rows, kStageRows)), affordable, kMostStageBlocks});
  return plan;
}

// Hands out pieces of the workspace; on a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    T* p = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up_to(count * static_cast<int64_t>(sizeof(T)), 256);
    return p;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace vecbank::cuda
