// Everything the host decides before it launches: tile shapes, the order in which a bank is visited, chunk sizes,
// workspace. Plain functions of the problem, tested on the host.
#pragma once

#include <algorithm>

#include "../core/bounds.h"
#include "api.h"
#include "operands.h"
#include "order.h"

namespace vecbank::cuda {

constexpr int kTile = 128;  // query rows and bank columns of a float32 tile
constexpr int kTilePanels = kTile / kPanel;
constexpr int kThreads = 256;                       // of a tile's block
constexpr int64_t kMostListed = 32;                 // up to this k a block keeps each row's best bounds itself
constexpr int64_t kMostScreened = 1024;             // larger k is refined outright: 64 KiB sort no more candidates
constexpr int64_t kMostSorted = 4096;               // entries that a block sorts in shared memory: 64 KiB
constexpr int64_t kWidestSm90 = 256;                // query rows of Hopper's screen stay in shared memory
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

// How far the float64 score can lie below an upper bound; shared by screens and tests. `r`: the column's bound; `rest`:
// what its start was raised by, and the row's slack.
VB_INLINE float lower_bound(float upper, float norm, double r, double rest) {
  if (!(upper < HUGE_VALF)) return -HUGE_VALF;  // a special column promises nothing
  return round_down(static_cast<double>(upper) - 2.0 * (static_cast<double>(norm) * r + rest));
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
// ASSUMED, not documented, and measured by no run of ours yet (tests/cuda/accumulation*.cu will): one tensor-core
// instruction adds its products to the accumulator with an error of at most kTensorUnit (16-bit inputs) or kTf32Unit
// times the sum of the magnitudes of all that is added, on every architecture until each is measured. Bit-exact models
// that others fitted to hardware (MMA-Sim, for one) cut every term at a unit 2^-24 (8.x) or 2^-25 (9.0, 10.0) below the
// largest, and round the sum towards zero. On 8.x an instruction is two steps, of 8 and of 4 products: they lose
// 2 (8 + 2) 2^-24 = 5 * 2^-22 and 2 (4 + 2) 2^-24 = 3 * 2^-22. Everything else loses less.
constexpr double kTensorUnit = 5.5 * 0x1p-22, kTf32Unit = 3.3 * 0x1p-22;
// A float32 is split as hi + lo of 11 bits each; hi hi + hi lo + lo hi leaves out at most 3.01 * 2^-22 |x||b|.
constexpr double kSplitUnit = 3.01 * 0x1p-22;

// How many times the float32 screen's own error bound covers the split screen's: unit(d) there is u (d + 16), here the
// split's loss, and three instructions for every eight coordinates, the bound line's and the start's included.
VB_INLINE double tensor_factor(int64_t width) {
  const double instructions = 3.0 * static_cast<double>((width + 1 + 7) / 8 + 2);
  const double unit = (kSplitUnit + instructions * kTf32Unit) * 1.02 + screen_unit(width);
  return unit / screen_unit(width);
}
// Inputs under 2^-126 may count as zero there. `norm`: of the packed query.
VB_INLINE double tensor_slack(int64_t width, double norm) {
  return static_cast<double>(width + 16) * 0x1p-124 * (1.0 + norm + 2.0 * kMaxBankNorm);
}

// ---- 16-bit operands
// x^, b^ are the packed rows x~, b~ rounded to bf16 or fp16. |x~.b~ - x^.b^| <= |x~ - x^| |b~| + |x^| |b~ - b^|, and
// packing measures both losses in float64: none for 16-bit inputs in their own type that are neither centred nor
// divided by a norm; a centred frame or float32 inputs cost what they lose, so no other screen has to take over.
// Products of two 16-bit numbers are exact in float32; kTensorUnit covers their sum, one instruction for every 16
// coordinates.
//   bound(b) = share |b~| + |b~ - b^| + operand_unit (|b~| + |b~ - b^|) + the refinement's rounding (operand_bound)
//   norm(x)  = max(|x~| + |x~ - x^|, |x~ - x^| / share)                                            (operand_norm)
// so norm * bound covers both losses whatever `share` is: the part of its norm that a query is expected to lose.
// fp16 subnormals are taken to be honoured (accumulation.cu asks for that too); tensor_slack covers bf16's.
constexpr int kOperandStep = 16;                // coordinates of an instruction
VB_INLINE double operand_unit(int64_t pitch) {  // and the start's two roundings
  return (static_cast<double>(pitch / kOperandStep + 2) * kTensorUnit + 4.0 * 0x1p-24) * 1.02;
}
// Half a unit in the last place is 2^-8 of bf16, 2^-11 of fp16; over a whole row about 0.38 of that remains.
VB_INLINE double operand_share(DType type, DType queries, Metric metric, bool centred) {
  if (queries == type && !(record(metric).shares_frame && centred)) return 0x1p-24;  // nothing is lost
  return type == DType::bf16 ? 0x1p-9 : 0x1p-12;
}
VB_INLINE float operand_norm(double packed, double lost, double share) {
  const double with = packed + lost, alone = lost / share;
  return round_up((with > alone ? with : alone) * (1.0 + 0x1p-20));
}
// `packed`, `original`: as in bank_bound.
VB_INLINE float operand_bound(Metric metric, int64_t width, int64_t pitch, double packed, double lost, double share,
                              double original) {
  double r = share * packed + lost + operand_unit(pitch) * (packed + lost);
  if (record(metric).term == Term::product) r += 4.0 * refine_unit(width) * original;
  return round_up(r * (1.0 + 0x1p-18));
}
// The start of a column, raised to cover its own rounding and its share of the sum's.
VB_INLINE float operand_start(double half, int64_t pitch) {
  return round_up(half + operand_unit(pitch) * fabs(half) * (1.0 + 0x1p-16));
}

// Panels are visited in a scattered order: a bank sorted by score would otherwise beat its own threshold with every
// row. Slot s holds panel s * step mod panels; step is prime to panels, near the golden ratio of it.
struct Schedule {
  int64_t panels = 0, step = 1;
  VB_HOST_DEVICE int64_t panel(int64_t slot) const {
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
  bool operands = false;  // the screen takes 16-bit operands rather than float32 panels
  bool hopper = false;    // and is screen_sm90
  bool lists = false;     // thresholds rise inside the screen, from lists of each row's k best
  DType operand_type = DType::bf16;
  bool direct = false;       // no screen: k is large, or float32 panels make no sense
  int64_t capacity = 0;      // candidates per row
  int64_t growth = 0;        // without lists: a range of columns is at most this many times what was seen before it
  int64_t rows = 0;          // query rows per chunk
  int64_t piece_panels = 0;  // bank panels packed at a time
  int64_t splits = 1;        // parts of the bank, for rows refined against everything
  int64_t list = 0;          // entries a block sorts when it refines against everything: twice what it keeps
  Schedule schedule;
};

// Fused lists keep about k, and k ln 2 more with every doubling; without them everything in the first range is kept.
inline int64_t candidate_capacity(int64_t k, bool lists) {
  if (lists) return std::max<int64_t>(64, power_of_two_from(16 * k));
  return std::min(kMostSorted, std::max<int64_t>(2 * kTile, power_of_two_from(8 * k)));
}
constexpr int64_t kFewCapacity = 1024;  // what lists may grow to where rows are few and blocks many

inline SearchPlan plan_search(const SearchProblem& p, int processors, Path path = Path::simt) {
  SearchPlan plan;
  const int64_t n = p.queries.count, m = p.bank.count, d = p.bank.width;
  const bool both_16 = p.queries.dtype == p.bank.dtype && size_of(p.bank.dtype) == 2;
  plan.operands = path == Path::mma16 || path == Path::sm90 || (path == Path::mma && both_16);
  plan.hopper = path == Path::sm90 && d <= kWidestSm90;
  plan.lists = p.k <= kMostListed && !(plan.hopper && p.k > 1);  // Hopper's kernel lists a single best
  plan.operand_type = both_16 ? p.bank.dtype : DType::bf16;      // bf16 has float32's range
  const int64_t query_bytes = plan.operands ? operand_pitch(d) * 2 : (d + 1) * 4;
  plan.direct = refined_only(p.metric) || p.k > kMostScreened || (p.k > 1 && p.k * 8 >= m) || d > kWidestScreen ||
                m >= kMostColumns;
  plan.schedule = make_schedule(m);
  plan.capacity = plan.direct ? 0 : candidate_capacity(p.k, plan.lists);
  plan.growth = std::clamp<int64_t>((plan.capacity - 2 * p.k) / (2 * p.k), 1, 8);
  int64_t most = kMostRows;
  if (!plan.direct) {
    most = std::min(
        {most, kCandidateShare / (plan.capacity * static_cast<int64_t>(sizeof(Candidate))), kQueryShare / query_bytes});
    most = most >= kTile ? most / kTile * kTile : std::max<int64_t>(kPanel, most / kPanel * kPanel);
  }
  const int64_t unit = most >= kTile ? kTile : kPanel;
  plan.rows = std::min(most, round_up_to(ceil_div(n, ceil_div(n, most)), unit));
  if (!plan.direct && plan.lists)
    while (plan.capacity < kFewCapacity &&
           plan.rows * plan.capacity * 2 * static_cast<int64_t>(sizeof(Candidate)) <= kCandidateShare)
      plan.capacity *= 2;
  if (plan.operands)  // whole tiles
    plan.piece_panels = std::min(std::max<int64_t>(kPieceShare / operand_bytes(d) / kOperandTile, 1) * kOperandTile,
                                 operand_rows(std::max<int64_t>(m, 1))) /
                        kPanel;
  else
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

// How many blocks share a range, so that few query tiles still fill the machine.
inline int64_t column_blocks(int64_t row_tiles, int64_t column_tiles, int processors) {
  return std::clamp<int64_t>(ceil_div(4 * processors, std::max<int64_t>(row_tiles, 1)), 1,
                             std::max<int64_t>(column_tiles, 1));
}

// Slots up to `end` come next, with at most `blocks` blocks to a row tile. The schedule scatters panels, so what was
// seen before is a sample of what comes, and its k-th best lower bound a threshold that few of them reach.
struct Range {
  int64_t end, blocks;
};

// Candidates that a row may expect to keep of `columns`, over blocks that all start from the k-th best of `seen` and
// learn nothing from each other (they do, by way of the shared threshold: this is the worst case of timing).
inline double expected_survivors(int64_t k, int64_t seen, int64_t columns, int64_t blocks) {
  const double each = static_cast<double>(columns) / static_cast<double>(blocks);
  const double from = static_cast<double>(seen == 0 ? kTile : seen);  // a first tile keeps its own k best
  const double kept = each > from ? 1.0 + std::log(each / from) : seen == 0 ? 1.0 : each / from;
  return static_cast<double>(blocks * k) * kept;
}

inline Range next_range(const SearchPlan& plan, int64_t k, int64_t row_tiles, int processors, int64_t begin,
                        int64_t piece_end) {
  const auto blocks_for = [&](int64_t panels) {
    return std::min<int64_t>(column_blocks(row_tiles, ceil_div(panels, kTilePanels), processors), 65535);
  };
  const auto up_to = [&](int64_t panels) -> Range {
    const int64_t end = std::min(piece_end, begin + panels);
    return {end, blocks_for(end - begin)};
  };
  const int64_t left = piece_end - begin, budget = plan.capacity / 2;
  if (!plan.lists)  // everything is kept while there is no threshold
    return up_to(begin == 0 ? budget / kPanel : std::max<int64_t>(kTilePanels, begin * plan.growth));
  const int64_t all = blocks_for(left);
  if (expected_survivors(k, begin * kPanel, left * kPanel, all) <= static_cast<double>(budget)) return {piece_end, all};
  if (begin > 0) return up_to(std::max<int64_t>(kTilePanels, begin * (budget / k) / kTilePanels * kTilePanels));
  const int64_t blocks = std::max<int64_t>(1, budget / (2 * k));  // two tiles each: k (1 + ln 2)
  const int64_t end = std::min(piece_end, blocks * 2 * kTilePanels);
  return {end, std::min(blocks, blocks_for(end))};
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
inline StagesPlan plan_stages(const Rows& x, const std::vector<PackedBook>& books, Metric metric, bool cascade,
                              const Device& device) {
  StagesPlan plan;
  const int64_t stages = static_cast<int64_t>(books.size());
  const int64_t width = books.empty() ? 0 : books[0].bank.width, tiles = ceil_div(x.count, kStageRows);
  int64_t longest = 0;
  plan.on_chip = !refined_only(metric);
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

constexpr Error kTooSmall = "the workspace is smaller than what was asked for";

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
