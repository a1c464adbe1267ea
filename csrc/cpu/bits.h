// The arguments of the hot loops over packed bits.
//
// A sum over four bits of a row, a nibble, takes one of 16 values once the query is known: a table of 16 bytes, and a
// byte shuffle looks up a whole vector of rows. So a panel holds the nibbles of `width` rows, one byte each: [position]
// [row]. The planes of a query cost nothing, because the table holds their weighted sum. Bits that stand for nothing
// are left out of the tables.
#pragma once

#include <cstdint>

namespace vecbank::cpu {

struct BitHit {
  int32_t query, row, sum;  // the row as counted from the first panel
};

// Queries against the panels, the tiles of queries one after another.
struct BitTiles {
  const uint8_t* tables = nullptr;        // [tile][position][query of the tile][16]
  const uint64_t* query_words = nullptr;  // or, where bits are counted, [query][word]
  int64_t words = 0;                      // of a row
  int64_t queries = 0;                    // whole tiles
  const uint8_t* panels = nullptr;        // [panel][position][row], or words for bytes
  int64_t panel_count = 0;                // at most BitKernels::panels
  int64_t plane_positions = 0;            // of a plane of the bank
  int64_t planes = 1;                     // of the bank, the one that weighs most first
  // Byte sums hold the whole distance, and 255 for more: the tables then hold the weights of the bank's planes too.
  bool narrow = false;
  int64_t chunk = 1;  // a byte holds the sum of so many positions of a plane, or of the first so many if narrow

  int64_t positions() const { return plane_positions * planes; }
};

// A row is a hit where its sum is at most the query's limit.
struct BitScanArgs : BitTiles {
  int32_t* limits = nullptr;  // of each query; -1: nothing is a hit. They fall where `best_only`
  bool best_only = false;     // of each query the first of its best rows is among the hits, and not all others
  BitHit* hits = nullptr;     // room for every pair
  int64_t hit_count = 0;      // set
};

struct BitStoreArgs : BitTiles {
  int64_t wanted = 0, rows = 0;  // queries and rows that are written
  int32_t* out = nullptr;        // of the first query and row
  int64_t out_stride = 0;
};

// Panels of the rows index[first], ... (null: first, ...); the last row fills up the last panel.
struct BitPanelArgs {
  const uint8_t* data = nullptr;
  int64_t stride = 0;
  const int64_t* index = nullptr;
  int64_t first = 0, count = 0;
  int64_t bytes = 0, planes = 1, plane_positions = 0;
  uint64_t last_mask = ~uint64_t{0};  // the bits of the last word that count, for panels of words
  uint8_t* out = nullptr;
};

// One query against rows, without panels.
struct BitRowsArgs {
  const uint64_t* query = nullptr;  // [plane][words], zeros where bits stand for nothing
  int64_t words = 0;                // of a plane: ceil(bytes / 8)
  int query_planes = 1, planes = 1;
  uint64_t last_mask = ~uint64_t{0};  // the bits of a plane's last word that count
  const uint8_t* data = nullptr;
  int64_t stride = 0, bytes = 0;
  const int64_t* index = nullptr;
  int64_t first = 0, count = 0;
  int32_t limit = 0;
  int32_t* out = nullptr;     // the distances of the rows that are at most `limit` away, in order; room for all
  int32_t* places = nullptr;  // which of the `count` rows these are; room for all
};

struct BitTileKernels {
  int height = 0, width = 0, panels = 0;  // of a tile: queries, rows of a panel, panels; 0: there are no tiles
  int halves = 1;  // 2: a word stands for the lower nibbles of eight bytes, the next for the upper ones; counts alone
  void (*panel)(const BitPanelArgs&) = nullptr;
  void (*scan)(BitScanArgs&) = nullptr;
  void (*store)(const BitStoreArgs&) = nullptr;
  void (*scan_columns)(const BitPanelArgs&, BitScanArgs&) = nullptr;  // of rows where they lie; counts alone
};

struct BitKernels {
  BitTileKernels tables;    // sums of what is looked up
  BitTileKernels counts;    // counts of the bits of words, single planes alone: panels take less time, pairs take more
  BitTileKernels unit;      // counts by VPOPCNTDQ. The caller asks whether the processor has it
  int64_t most_counts = 0;  // queries that `counts` serves in less time than tables
  bool scalar_row = false;  // one query takes less time by rows() than by counts, if a row is 16 or 32 bytes
  int64_t (*rows)(const BitRowsArgs&) = nullptr;  // without panels; how many are within the limit
};

constexpr int kFewQueries = 4;                         // so many do not pay for panels of words
constexpr int kMostBitHeight = 4, kMostBitRows = 256;  // of a tile of any instruction set
// More bits than a byte counts, by so little that the best rows are far below.
constexpr int64_t kMostNarrowBits = 320;

}  // namespace vecbank::cpu
