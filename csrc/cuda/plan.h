// What the host decides before it launches: which screen runs, chunk sizes, shares of the workspace. Plain functions of
// the problem, tested on the host.
#pragma once

#include <algorithm>

#include "api.h"
#include "candidates.h"
#include "few.h"
#include "order.h"
#include "pack_layout.h"
#include "schedule.h"

namespace vecbank::cuda {

constexpr int64_t kMostListed = 32;          // up to this k a block lists the best bounds of each row
constexpr int64_t kMostScreened = 1024;      // above this k there is no screen: 64 KiB hold no more candidates
constexpr int64_t kMostSorted = 4096;        // entries that a block sorts in shared memory: 64 KiB
constexpr int64_t kWidestProduct = 1 << 18;  // a float64 panel of 16 rows is then 32 MiB

// Shares of the workspace, together below 64 MiB (a test adds them up).
constexpr int64_t kRowShare = int64_t{42} << 20;       // packed queries and candidates of a chunk
constexpr int64_t kPieceShare = int64_t{16} << 20;     // packed part of the bank, unless the caller packed it
constexpr int64_t kBesideOperands = int64_t{8} << 20;  // what a cascade of searches keeps beside one on operands
constexpr int64_t kPartialShare = int64_t{4} << 20;    // best rows of the parts of a split bank
constexpr int64_t kMostSearched = 1 << 17;             // query rows of a chunk

struct SearchPlan {
  bool operands = false;     // the screen takes 16-bit operands rather than float32 panels
  bool hopper = false;       // the screen is screen_sm90
  bool few = false;          // the screen is screen_few, whatever the path
  bool ready = false;        // the caller's pack holds what the screen reads
  bool whole = false;        // the operands of the whole bank lie in the workspace, and are written once
  ListPlan lists;            // of each row's candidates; empty if direct
  bool direct = false;       // no screen, every row is refined: k is large, or panels are too wide
  int64_t rows = 0;          // query rows per chunk
  int64_t piece_panels = 0;  // bank panels packed at a time
  int64_t slots = 1;         // parts of the bank that are refined at once against everything
  int64_t list = 0;          // entries that a block sorts when it refines against everything: twice what it keeps
  Schedule schedule;
};

// Fused lists keep about k candidates, and k ln 2 more with every doubling of the columns seen. Without fused lists the
// whole first range is kept. A row that overflows costs about 300 times what the screen costs it, so overflow must be
// rare. For k = 1 a row keeps one candidate and, as a Poisson variable, ln(m / 128) more: three times the expected
// number is exceeded by 8 rows in a million at m = 8192, and by fewer elsewhere. `rounded`: operands lose precision,
// so near rows are kept as well; in Gaussian data, up to d = 768, these are as many again.
inline int64_t candidate_capacity(int64_t k, bool fused, int64_t m, bool rounded) {
  if (fused && k == 1) {
    const double expected = expected_survivors(1, 0, std::max<int64_t>(m, kTile), 1);
    return (rounded ? 2 : 1) * std::max<int64_t>(16, power_of_two_from(static_cast<int64_t>(3.0 * expected)));
  }
  if (fused) return std::max<int64_t>(64, power_of_two_from(16 * k));
  return std::min(kMostSorted, std::max<int64_t>(2 * kTile, power_of_two_from(8 * k)));
}
constexpr int64_t kFewCapacity = 1024;  // the capacity of lists may grow to this where rows are few and blocks many

inline bool plan_few(const SearchProblem& p) {
  const int group = few_group(p.queries.count, p.bank.width);
  return p.queries.count <= kFewQueries && p.k <= kMostFew && group > 0 && ceil_div(p.queries.count, group) <= 4;
}

// `few`: few queries may have a screen of their own. `whole`: the workspace may hold the operands of the whole bank.
// `piece_elements`: the most of a piece.
inline SearchPlan plan_search(const SearchProblem& p, int processors, Path path = Path::simt, bool few = false,
                              bool whole = false, int64_t piece_elements = kMostOperandElements) {
  SearchPlan plan;
  const int64_t n = p.queries.count, m = p.bank.count, d = p.bank.width;
  plan.operands = path != Path::simt;
  plan.hopper = path == Path::sm90 && d <= kWidestSm90;
  plan.lists.fused = p.k <= kMostListed && !(plan.hopper && p.k > 1);  // Hopper's kernel lists one entry
  const int64_t query_bytes = plan.operands ? operand_pitch(d) * 2 : (d + 1) * 4;
  plan.direct = refined_only(p.metric) || p.k > kMostScreened || (p.k > 1 && p.k * 8 >= m) || d > kWidestScreen ||
                m >= kMostColumns || m == 0 || d == 0;  // without rows or coordinates there is nothing to screen
  plan.schedule = make_schedule(m);
  const bool rounded = plan.operands && (p.queries.dtype != p.bank.dtype || size_of(p.bank.dtype) != 2);
  plan.lists.capacity = plan.direct ? 0 : candidate_capacity(p.k, plan.lists.fused, m, rounded);
  plan.few = few && !plan.direct && plan_few(p) && (n <= kFewPacked || p.pack == nullptr || !plan.operands);
  plan.ready = !plan.direct && !plan.few && p.pack != nullptr && (plan.operands || packs_panels(p.bank));
  if (plan.few) plan.lists.capacity = p.k <= kMostListed ? kFewCapacity : kMostSorted;
  plan.lists.growth = std::clamp<int64_t>((plan.lists.capacity - 2 * p.k) / (2 * p.k), 1, 8);
  const auto row_bytes = [&](int64_t capacity) {
    return query_bytes + capacity * static_cast<int64_t>(sizeof(Candidate));
  };
  int64_t most = kMostSearched;
  if (!plan.direct) {
    most = std::min(most, kRowShare / row_bytes(plan.lists.capacity));
    most = most >= kTile ? most / kTile * kTile : std::max<int64_t>(kPanel, most / kPanel * kPanel);
  }
  const int64_t unit = most >= kTile ? kTile : kPanel;
  plan.rows = std::min(most, round_up_to(ceil_div(n, ceil_div(n, most)), unit));
  const int64_t room = kRowShare - (plan.operands ? kBesideOperands : 0);
  if (!plan.direct && !plan.few && plan.lists.fused)
    while (plan.lists.capacity < kFewCapacity && plan.rows * row_bytes(2 * plan.lists.capacity) <= room)
      plan.lists.capacity *= 2;
  const int64_t all = std::max<int64_t>(plan.schedule.panels, 1);
  if (plan.operands) {  // whole tiles
    const auto rows_of = [](int64_t tiles) { return std::max<int64_t>(tiles, 1) * kOperandTile; };
    const int64_t padded = operand_rows(all * kPanel);
    const int64_t kept = rows_of(piece_elements / std::max<int64_t>(operand_pitch(d), 1) / kOperandTile);
    const int64_t piece = std::min(kept, rows_of(kPieceShare / operand_bytes(d) / kOperandTile));
    plan.whole = whole && !plan.direct && !plan.ready && piece < padded && plan.rows < n;
    plan.piece_panels = std::min(plan.ready || plan.whole ? kept : piece, padded) / kPanel;
  } else {
    plan.piece_panels = plan.ready ? all : std::clamp<int64_t>(kPieceShare / ((d + 3) * kPanel * 4), 1, all);
  }

  const int64_t kept = std::min(power_of_two_from(p.k), kMostSorted / 2);
  plan.list = std::max<int64_t>(512, 2 * kept);
  if (p.k <= kept)  // the bank is split only where one pass finds all ranks
    plan.slots = std::clamp<int64_t>(4 * int64_t{processors}, 1, kPartialShare / (p.k * 16 + 8));
  return plan;
}

// ---- All stages of a cascade ---------------------------------------------------------------------------------------

constexpr int kStageRows = 64;                 // rows of a block
constexpr int kResidualLine = kStageRows + 1;  // floats of a coordinate; odd, so that rows lie in different banks
constexpr int64_t kStageFixed = 40 << 10;      // bytes of shared memory that do not depend on the width
constexpr int64_t kStageSums = 4 << 20;        // bytes of the sums, one for each block and stage
constexpr int64_t kMostStageBlocks = 1 << 16;  // blocks whose sums are kept apart
constexpr int64_t kStepRows = 1 << 16;         // rows of a chunk where each stage is a search
constexpr int64_t kStepShare = 5 << 20;        // bytes of such a chunk's residuals, beside a whole search's workspace
constexpr int64_t kFewColumns = 4096;          // a codebook this long is not split, however few the blocks

// Bytes of shared memory that a block may have. A device not listed gets the smallest of the limits.
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
inline int64_t stage_shared(int64_t width) { return kStageFixed + width * (kResidualLine + 1) * 4; }

struct StagesPlan {
  bool on_chip = true;  // one kernel computes all stages; otherwise each stage is a search
  int64_t blocks = 1;   // blocks whose sums are kept apart
  int64_t rows = 0;     // rows of a chunk where each stage is a search
};

// The codebooks have one width. `cascade`: each codebook quantizes the residual of the one before; otherwise each
// quantizes columns of its own.
inline StagesPlan plan_stages(const Rows& x, const std::vector<PackedCodebook>& codebooks, Metric metric, bool cascade,
                              const Device& device) {
  StagesPlan plan;
  const int64_t stages = static_cast<int64_t>(codebooks.size());
  const int64_t width = codebooks.empty() ? 0 : codebooks[0].bank.width, tiles = ceil_div(x.count, kStageRows);
  int64_t longest = 0;
  plan.on_chip = !refined_only(metric);
  for (const PackedCodebook& codebook : codebooks) {
    longest = std::max(longest, codebook.bank.count);
    plan.on_chip = plan.on_chip && codebook.bank.dtype == DType::f32 && packs_panels(codebook.bank);
  }
  // Few blocks over a long codebook would leave multiprocessors idle; a search splits the codebook.
  const int64_t at_once = cascade ? tiles : tiles * stages;
  const bool few = 4 * at_once < device.processors && longest > kFewColumns;
  plan.on_chip =
      plan.on_chip && width > 0 && stage_shared(width) <= shared_limit(device.capability) && !few && stages < 65536;
  const int64_t element = !codebooks.empty() && codebooks[0].bank.dtype == DType::f64 ? 8 : 4;
  // The residuals and the rows found use what a search does not need when its bank comes packed. A pack without panels
  // does not serve every search.
  const int64_t share = longest <= kPanelRows ? kStepShare : kPieceShare / 8;
  const int64_t most = cascade ? share / std::max<int64_t>(width * element, 1) : kStepRows;
  plan.rows = std::clamp<int64_t>(most < kStageRows ? most : most / kStageRows * kStageRows, 1, kStepRows);
  const int64_t affordable = std::max<int64_t>(1, kStageSums / (16 * std::max<int64_t>(stages, 1)));
  const int64_t rows = plan.on_chip ? x.count : std::min(plan.rows, x.count);
  plan.blocks = std::min({std::max<int64_t>(1, ceil_div(rows, kStageRows)), affordable, kMostStageBlocks});
  return plan;
}

}  // namespace vecbank::cuda
