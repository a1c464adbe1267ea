// The size of a tile, and the order in which tiles visit a bank: which panel each slot holds, and how many slots a
// launch screens. Plain functions, tested on the host.
#pragma once

#include <algorithm>
#include <cmath>

#include "../core/pack.h"

namespace vecbank::cuda {

constexpr int kTile = 128;  // query rows and bank columns of a float32 tile
constexpr int kTilePanels = kTile / kPanel;
constexpr int kThreads = 256;  // threads of a tile's block

// Panels are visited in a scattered order: in a bank sorted by score, every row would otherwise exceed the threshold of
// the rows before. Slot s holds panel s * step mod panels; step has no common divisor with panels and is about 0.618 of
// panels (the golden ratio).
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

// All pairs of a row tile and a column tile form one sequence, row tile after row tile. It is cut into equal runs, one
// for each block of threads, so that all blocks end together. A run consists of segments, each of one row tile.
struct TileSegment {
  int row_tile, begin, end;  // column tiles [begin, end)
};
struct TileWork {  // of less than 2^31 pairs
  int row_tiles = 0, column_tiles = 0, blocks = 1;
  VB_HOST_DEVICE int pairs() const { return row_tiles * column_tiles; }
  // The first pair of block `b`. The first pairs() % blocks blocks take one pair more than the others.
  VB_HOST_DEVICE int begin(int b) const {
    const int each = pairs() / blocks, more = pairs() % blocks;
    return b * each + (b < more ? b : more);
  }
  VB_HOST_DEVICE TileSegment segment(int at, int end) const {  // the segment that begins with pair `at`
    const int row_tile = at / column_tiles, first = at - row_tile * column_tiles, last = first + end - at;
    return {row_tile, first, last < column_tiles ? last : column_tiles};
  }
};
// `places`: blocks that run at the same time.
inline TileWork make_tile_work(int64_t row_tiles, int64_t column_tiles, int places, int64_t blocks_per_row_tile) {
  TileWork w;
  w.row_tiles = static_cast<int>(row_tiles);
  w.column_tiles = static_cast<int>(column_tiles);
  w.blocks = static_cast<int>(
      std::max<int64_t>(1, std::min({int64_t{places}, int64_t{w.pairs()}, w.row_tiles * blocks_per_row_tile})));
  return w;
}
// The most column tiles that one launch may take.
inline int64_t most_column_tiles(int64_t row_tiles) { return ((int64_t{1} << 31) - 1) / row_tiles; }

constexpr int kTileBlocks = 2;  // blocks of a screen on mma.sync or float32 that fit a multiprocessor

// How many candidates a row can hold, which limits the length of a range.
struct ListPlan {
  bool fused = false;    // thresholds rise while the screen runs, from lists of each row's k best
  int64_t capacity = 0;  // candidates of a row
  int64_t growth = 0;    // not fused: a range of columns is at most this many times what was seen before it
};

// How many blocks share a row tile's range, so that few query tiles still use every multiprocessor. Equal runs cut a
// row tile at most once more.
inline int64_t column_blocks(int64_t row_tiles, int64_t column_tiles, int processors) {
  return std::clamp<int64_t>(ceil_div(kTileBlocks * processors, std::max<int64_t>(row_tiles, 1)), 1,
                             std::max<int64_t>(column_tiles, 1));
}

// The next launch screens the slots up to `end`, with at most `blocks` blocks to a row tile. The schedule scatters
// panels, so the columns seen before are a sample of the columns to come, and the k-th best lower bound of the sample
// is a threshold that few of these reach.
struct Range {
  int64_t end, blocks;
};

// How many of `columns` a row is expected to keep, over blocks that all start from the k-th best of `seen` columns and
// never read each other's thresholds. (Blocks do share thresholds; this is the worst case of timing.)
inline double expected_survivors(int64_t k, int64_t seen, int64_t columns, int64_t blocks) {
  const double each = static_cast<double>(columns) / static_cast<double>(blocks);
  const double from = static_cast<double>(seen == 0 ? kTile : seen);  // a first tile keeps its own k best
  const double kept = each > from ? 1.0 + std::log(each / from) : seen == 0 ? 1.0 : each / from;
  return static_cast<double>(blocks * k) * kept;
}

inline Range next_range(const ListPlan& lists, int64_t k, int64_t row_tiles, int processors, int64_t begin,
                        int64_t piece_end) {
  const auto blocks_for = [&](int64_t panels) {
    return std::min<int64_t>(column_blocks(row_tiles, ceil_div(panels, kTilePanels), processors), 65535);
  };
  const auto up_to = [&](int64_t panels) -> Range {
    const int64_t end = std::min(piece_end, begin + panels);
    return {end, blocks_for(end - begin)};
  };
  const int64_t remaining = piece_end - begin, budget = lists.capacity / 2;
  if (!lists.fused)  // everything is kept while there is no threshold
    return up_to(begin == 0 ? budget / kPanel : std::max<int64_t>(kTilePanels, begin * lists.growth));
  const int64_t all = blocks_for(remaining);
  if (expected_survivors(k, begin * kPanel, remaining * kPanel, all) <= static_cast<double>(budget))
    return {piece_end, all};
  if (begin > 0) return up_to(std::max<int64_t>(kTilePanels, begin * (budget / k) / kTilePanels * kTilePanels));
  const int64_t blocks = std::max<int64_t>(1, budget / (2 * k));  // two tiles each: k (1 + ln 2)
  const int64_t end = std::min(piece_end, blocks * 2 * kTilePanels);
  return {end, std::min(blocks, blocks_for(end))};
}

}  // namespace vecbank::cuda
