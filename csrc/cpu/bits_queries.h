// Queries of packed bits as the loops read them: words for single rows, and tables for tiles.
#pragma once

#include "../core/bits.h"
#include "bits.h"
#include "isa.h"
#include "kernels.h"
#include "parallel.h"

namespace vecbank::cpu {

constexpr int64_t kLeastForTables = 6;  // fewer queries do not pay for panels of nibbles
constexpr int64_t kStretch = 1024;

constexpr int64_t kLeastCountedRows = 32, kMostCountedWords = 1024;  // panels of 256 or 512 KiB are the largest

// How rows of bits are divided into nibbles, and what their sums fit in.
struct BitLayout {
  int64_t bits, bytes, words, plane_positions, positions;  // positions: of all planes of the bank
  int query_planes, bank_planes;
  int64_t largest;  // distance
  bool tables;      // whether a position's sum fits in the byte of a table, and tables of some queries in a cache
  int64_t each;     // the most that a position adds, not counting the weight of the bank's plane

  explicit BitLayout(const BitsProblem& p)
      : bits(p.bits),
        bytes(p.bytes()),
        words(ceil_div(p.bytes(), 8)),
        plane_positions(ceil_div(p.bits, 4)),
        positions(plane_positions * p.bank.planes),
        query_planes(p.queries.planes),
        bank_planes(p.bank.planes),
        largest(largest_bit_distance(p.bits, p.queries.planes, p.bank.planes)) {
    each = 4 * ((int64_t{1} << query_planes) - 1);
    tables = each <= 255 && most_queries() >= kLeastForTables;
  }
  // How many queries have their tables in a cache.
  int64_t most_queries() const { return std::min<int64_t>(512, (int64_t{2} << 20) / (positions * 16)); }
  // Whether bits may be counted in vectors of words.
  bool counts() const { return query_planes == 1 && bank_planes == 1 && words <= kMostCountedWords; }
  // Rows of panels of words: as many as a quarter of the first cache holds.
  int64_t counted_rows() const {
    int64_t rows = kMostBitRows;
    while (rows > kLeastCountedRows && rows * words * 8 > (int64_t{8} << 10)) rows /= 2;
    return rows;
  }
  // Rows that are scored without panels at a time.
  int64_t stretch() const { return std::clamp<int64_t>((int64_t{1} << 20) / (words * bank_planes), 1, kStretch); }
  // How many positions a byte holds the sum of: if narrow, from the first one on, with the weights of the planes.
  int64_t chunk(bool narrow) const {
    if (!narrow) return std::max<int64_t>(1, 255 / each);
    int64_t most = 0;
    for (int64_t p = 0; p < positions; ++p)
      if ((most += each << (bank_planes - 1 - p / plane_positions)) > 255 && largest > 255) return p;
    return positions;
  }
  // Whether a byte holds every distance, or nearly every one that matters to a search.
  bool narrow(bool search) const { return largest <= (search ? kMostNarrowBits : 255); }
  uint64_t last_mask() const {
    const int64_t left = bits - 64 * (words - 1);
    return left == 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
  }
};

class BitQueries {
 public:
  // For up to `most` queries at a time.
  bool reserve(const BitLayout& layout, int64_t most, int height) {
    return words_.reserve(most * layout.query_planes * layout.words) &&
           (!layout.counts() || counted_.reserve(most * layout.words * 2)) &&
           (height == 0 || tables_.reserve(round_up_to(most, height) * layout.positions * 16));
  }
  void set_words(const BitLayout& layout, int64_t i, const uint8_t* row);
  // Tables of the first `count` queries whose words are set, or of the chosen ones; `narrow`: with the weights of the
  // bank's planes.
  void set_tables(const BitLayout& layout, const int32_t* chosen, int64_t count, int height, bool narrow);
  // The words of the chosen queries, or of the first `count`, for counts.
  void set_counted(const BitLayout& layout, const int32_t* chosen, int64_t count, int halves);
  const uint64_t* words(const BitLayout& layout, int64_t i) const {
    return words_.get() + i * layout.query_planes * layout.words;
  }
  const uint8_t* tables() const { return tables_.get(); }
  const uint64_t* counted() const { return counted_.get(); }

 private:
  Buffer<uint64_t> words_, counted_;
  Buffer<uint8_t> tables_;
};

// The tiles that so many queries take the least time in; null: rows one by one.
const BitTileKernels* bit_tiles(const BitLayout& layout, int64_t count);

// The distances of one query to those of some rows that are at most `limit` away, and which these are; how many.
inline int64_t bit_distances(const BitsProblem& p, const BitLayout& layout, const uint64_t* query, const int64_t* index,
                             int64_t first, int64_t count, int32_t limit, int32_t* out, int32_t* places) {
  BitRowsArgs a;
  a.query = query;
  a.words = layout.words;
  a.query_planes = layout.query_planes;
  a.planes = layout.bank_planes;
  a.last_mask = layout.last_mask();
  a.data = p.bank.data;
  a.stride = p.bank.stride;
  a.bytes = layout.bytes;
  a.index = index;
  a.first = first;
  a.count = count;
  a.limit = limit;
  a.out = out;
  a.places = places;
  return kernels().bits.rows(a);
}

}  // namespace vecbank::cpu
