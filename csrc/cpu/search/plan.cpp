// The plan of a search: the register tile, the screen, the blocks of queries and the parts of the bank.
#include "screens/screen.h"

namespace vecbank::cpu {

constexpr int64_t kListBytes = 4 << 20;  // candidate lists of a block
constexpr int64_t kMostBlockRows = 1024;
constexpr int64_t kLeastHeadRows = 512;  // of a block: fewer read the bank too often
constexpr int64_t kLeastTiles = 6;
constexpr int64_t kManyBlocks = 8;                   // for a worker: one that has one more makes little difference
constexpr int64_t kMostPartRows = int64_t{1} << 30;  // a candidate's column is an int32

namespace {

// More blocks, where every worker then has as many as the others: with three blocks on two workers, one would wait for
// a third of the time.
void share_out(Grid& grid, int64_t workers, int64_t group, bool heads) {
  const int64_t blocks = grid.blocks;
  if (blocks < workers) {
    if (!heads) return;  // there will be many parts
    while (grid.blocks < std::min(2 * blocks, workers) && workers % grid.blocks != 0) ++grid.blocks;
    if (workers % grid.blocks != 0) grid.blocks = blocks;
  } else if (blocks < kManyBlocks * workers) {
    grid.blocks = round_up_to(blocks, workers);
  }
  grid.even_blocks(group);
}

}  // namespace

bool SearchPlan::begins_with_head() const { return !refined_only && kScreens[first_screen] == &head_screen; }

SearchPlan plan_search(const SearchProblem& p, const PackHeader& h, int workers) {
  SearchPlan plan;
  const int64_t n = p.queries.count, panels = ceil_div(h.rows, kPanel);
  plan.panels = h.panels;
  plan.head = h.head;
  plan.group = kernels().height_for(n);
  plan.refined_only = !h.screenable || p.k * 8 >= h.rows;
  if (!plan.refined_only) plan.first_screen = next_screen(0, h, plan.group);
  // The queries of a block stay in L2 together with a few panels, and the memory of candidate lists is bounded.
  const int64_t bytes = plan.refined_only ? 4 : kScreens[plan.first_screen]->query_bytes;
  const int64_t by_lists = kListBytes / CandidateLists::bytes_per_row(plan.refined_only ? 1 : p.k);
  const int64_t width = h.head > 0 ? h.head : h.width;
  // Panels are coded at every visit for the int16 screen, which must serve several tiles.
  const int64_t least = h.panels != PanelKind::int8 ? kLeastTiles * plan.group : 0;
  int64_t most = std::min({std::max(kQueryBytes / ((width + 1) * bytes), least), by_lists, kMostBlockRows});
  // With a head every part pays for its first threshold, so a batch is cut into blocks instead.
  const bool heads = plan.begins_with_head();
  if (heads) most = std::min(most, std::max(kLeastHeadRows, n / (2 * workers)));
  plan.grid.set_blocks(n, most, plan.group);
  share_out(plan.grid, workers, plan.group, heads);

  int64_t parts = 1;
  if (workers > 1 && plan.grid.blocks < (heads ? 1 : 3) * workers) {
    const int64_t least = std::max<int64_t>(64, ceil_div(4 * p.k, kPanel));  // the fewest panels that are worth a task
    const int64_t affordable = kPartialBytes / (n * p.k * static_cast<int64_t>(sizeof(Scored)));
    parts = std::min({ceil_div((heads ? 1 : 4) * workers, plan.grid.blocks), panels / least, affordable});
  }
  plan.grid.set_parts(panels, std::max(parts, ceil_div(panels, kMostPartRows / kPanel)));
  return plan;
}

}  // namespace vecbank::cpu
