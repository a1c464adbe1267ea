#include "bits_queries.h"

#include <bit>
#include <cstring>

namespace vecbank::cpu {
namespace {

// How many of the lowest `bits` bits of two nibbles differ: [bits - 1][a][b].
struct NibbleTables {
  uint8_t of[4][16][16];
};
constexpr NibbleTables nibble_tables() {
  NibbleTables t{};
  for (unsigned bits = 1; bits <= 4; ++bits)
    for (unsigned a = 0; a < 16; ++a)
      for (unsigned b = 0; b < 16; ++b)
        t.of[bits - 1][a][b] = static_cast<uint8_t>(std::popcount((a ^ b) & ((1u << bits) - 1)));
  return t;
}
constexpr NibbleTables kNibbles = nibble_tables();

}  // namespace

void BitQueries::set_words(const BitLayout& layout, int64_t i, const uint8_t* row) {
  uint64_t* out = words_.get() + i * layout.query_planes * layout.words;
  std::memset(out, 0, static_cast<size_t>(layout.query_planes * layout.words) * 8);
  for (int u = 0; u < layout.query_planes; ++u) {
    uint64_t* plane = out + u * layout.words;
    for (int64_t b = 0; b < layout.bytes; ++b)
      plane[b / 8] |= static_cast<uint64_t>(row[u * layout.bytes + b]) << (8 * (b % 8));
    plane[layout.words - 1] &= layout.last_mask();
  }
}

void BitQueries::set_tables(const BitLayout& layout, const int32_t* chosen, int64_t count, int height, bool narrow) {
  for (int64_t i = 0; i < round_up_to(count, height); ++i) {
    uint8_t* out = tables_.get() + (i / height * layout.positions * height + i % height) * 16;
    const uint64_t* query = i < count ? words(layout, chosen != nullptr ? chosen[i] : i) : nullptr;
    for (int v = 0; v < layout.bank_planes; ++v) {
      const int shift = narrow ? layout.bank_planes - 1 - v : 0;
      for (int64_t p = 0; p < layout.plane_positions; ++p, out += height * 16) {
        if (query == nullptr) {  // fills up the last tile
          std::memset(out, 0, 16);
          continue;
        }
        const auto& nibbles = kNibbles.of[std::min<int64_t>(4, layout.bits - 4 * p) - 1];
        const auto nibble = [&](int u) { return query[u * layout.words + p / 16] >> (4 * (p % 16)) & 15; };
        if (layout.query_planes == 1 && shift == 0) {
          std::memcpy(out, nibbles[nibble(0)], 16);
          continue;
        }
        int64_t sums[16] = {};
        for (int u = 0; u < layout.query_planes; ++u)
          for (int b = 0; b < 16; ++b) sums[b] = 2 * sums[b] + nibbles[nibble(u)][b];
        for (int b = 0; b < 16; ++b) out[b] = static_cast<uint8_t>(std::min<int64_t>(255, sums[b] << shift));
      }
    }
  }
}

void BitQueries::set_counted(const BitLayout& layout, const int32_t* chosen, int64_t count, int halves) {
  constexpr uint64_t kNibble = 0x0f0f0f0f0f0f0f0f;
  uint64_t* out = counted_.get();
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t* query = words(layout, chosen != nullptr ? chosen[i] : i);
    for (int64_t w = 0; w < layout.words; ++w) {
      if (halves == 1) {
        *out++ = query[w];
      } else {
        *out++ = query[w] & kNibble;
        *out++ = query[w] >> 4 & kNibble;
      }
    }
  }
}

const BitTileKernels* bit_tiles(const BitLayout& layout, int64_t count) {
  const BitKernels& k = kernels().bits;
  const bool tables = k.tables.height > 0 && layout.tables && count >= kLeastForTables;
  if (layout.counts()) {
    if (k.unit.height > 0 && has_bit_counts()) return &k.unit;
    const bool one = count == 1 && k.scalar_row && (layout.bytes == 16 || layout.bytes == 32);
    const int64_t most = layout.words == 1 ? k.most_counts / 2 : k.most_counts;  // nibbles of one word are soon written
    if (k.counts.height > 0 && !one && (count <= most || !tables)) return &k.counts;
  }
  return tables ? &k.tables : nullptr;
}

}  // namespace vecbank::cpu
