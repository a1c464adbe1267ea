// The arithmetic of the Hopper screen, without a GPU instruction in it: tiles, who works on which, where things lie in
// shared memory, what a TMA descriptor and a wgmma descriptor say, which thread holds which score. Plain functions,
// tested on the host (tests/cpp/test_cuda_sm90.cpp). The kernel they serve, screen_sm90.cu, has NEVER RUN on a GPU.
#pragma once

#include <algorithm>

#include "../../core/parallel.h"
#include "../candidates.h"
#include "operands.h"

namespace vecbank::cuda::sm90 {

// ---- Tiles
// ------------------------------------------------------------------------------------------------------------

constexpr int kGroups = 2;                    // consumer warpgroups
constexpr int kGroupRows = 128;               // query rows each of them holds: two halves of 64, wgmma's M
constexpr int kHalves = kGroupRows / 64;      // accumulator blocks of a thread
constexpr int kRows = kGroups * kGroupRows;   // query rows of a block: as many share one streamed bank tile
constexpr int kColumns = 128;                 // bank rows of a tile, wgmma's N
constexpr int kScores = 64 * kColumns / 128;  // scores of a thread in one accumulator block
constexpr int kStep = 16;                     // coordinates of a wgmma
constexpr int kLine = 128;                    // bytes of a row in shared memory: kOperandDepth 16-bit coordinates
constexpr int kMostBlocks = kWidestSm90 / kOperandDepth;
constexpr int kBankBox = kColumns * kLine;     // bytes that one TMA load brings of the bank
constexpr int kQueryBox = kGroupRows * kLine;  // and of the queries
constexpr int kThreads = 128 * (kGroups + 1);  // and a warpgroup whose first thread is the producer
static_assert(kOperandTile % kColumns == 0 && kOperandTile % kRows == 0 && kOperandDepth * 2 == kLine);

// Registers: a block starts with an equal share for all, then the producer hands most of its own over.
constexpr int kRegisters = 168, kProducerRegisters = 24, kConsumerRegisters = 240;
static_assert(kThreads * kRegisters <= 65536 && kRegisters % 8 == 0);
static_assert(128 * (kProducerRegisters + kGroups * kConsumerRegisters) <= kThreads * kRegisters);
static_assert(kHalves * kScores + 64 <= kConsumerRegisters, "accumulators, and room to work");

VB_INLINE constexpr int blocks_of(int64_t pitch) { return static_cast<int>(pitch / kOperandDepth); }

// ---- The schedule: all pairs of a query tile and a bank tile in one line, cut into equal runs, one for each block of
// threads. A run is a few segments, each of one query tile.
// ------------------------------------------------------------------------------------------------------------

struct Segment {
  int row_tile, begin, end;  // bank tiles [begin, end)
};
struct Work {  // less than 2^31 pairs
  int row_tiles = 0, column_tiles = 0, blocks = 1;
  VB_SHARED int pairs() const { return row_tiles * column_tiles; }
  // Where block `b` begins: the first pairs() % blocks blocks take one pair more than the others.
  VB_SHARED int begin(int b) const {
    const int each = pairs() / blocks, more = pairs() % blocks;
    return b * each + (b < more ? b : more);
  }
  VB_SHARED Segment segment(int at, int end) const {  // the one that holds pair `at`
    const int row_tile = at / column_tiles, first = at - row_tile * column_tiles, left = first + end - at;
    return {row_tile, first, left < column_tiles ? left : column_tiles};
  }
};
inline Work make_work(int64_t rows, int64_t columns, int processors, int64_t blocks_per_row_tile) {
  Work w;
  w.row_tiles = static_cast<int>(ceil_div(rows, kRows));
  w.column_tiles = static_cast<int>(ceil_div(columns, kColumns));
  w.blocks = static_cast<int>(
      std::max<int64_t>(1, std::min({int64_t{processors}, int64_t{w.pairs()}, w.row_tiles * blocks_per_row_tile})));
  return w;
}
// Columns that one launch may take, a multiple of the tile.
inline int64_t most_columns(int64_t rows) { return ((int64_t{1} << 31) - 1) / ceil_div(rows, kRows) * kColumns; }

// ---- Shared memory
// ------------------------------------------------------------------------------------------------------------

constexpr int kConsumerWarps = kGroups * 4;
constexpr int kListed = 6;  // candidates of a row that wait in shared memory
constexpr int kBunch = 8;   // scores of a thread that are looked at together: with its quad's, 32 columns of a row
constexpr int kBunches = kScores / 2 / kBunch;  // of a thread's row
constexpr int kMostStages = 8;                  // of the ring
constexpr int kMostShared = 227 << 10;
constexpr int kAlignment = 1024;  // where the 128-byte swizzle repeats

struct TileTerms {  // what stands beside a tile's columns, as in ColumnTerms
  float start[kColumns], bound[kColumns], lift[kColumns];
};

struct SharedMap {    // byte offsets from a multiple of kAlignment
  int stages, tiles;  // stages of the ring; tiles whose columns are kept
  int queries, ring, columns, lists, slacks, barriers, bytes;
};
VB_INLINE constexpr SharedMap shared_map(int blocks) {
  SharedMap m{};
  const int queries = kGroups * blocks * kQueryBox;
  const int lists = kRows * kListed * static_cast<int>(sizeof(Candidate));
  const int slacks = kRows * 8;
  const int barriers = (2 * kMostStages + 2) * 8;
  for (m.stages = kMostStages;; --m.stages) {
    // The columns of tile t may be overwritten when all its scores were looked at. A block of tile t + tiles is loaded
    // only when both groups have given back that stage's block before, `stages` earlier; a group gives back a block of
    // tile s only after it has looked at tile s - 1.
    m.tiles = (m.stages + blocks - 1) / blocks + 1;
    m.queries = 0;
    m.ring = m.queries + queries;
    m.columns = m.ring + m.stages * kBankBox;
    m.lists = m.columns + m.tiles * static_cast<int>(sizeof(TileTerms));
    m.slacks = m.lists + lists;
    m.barriers = m.slacks + slacks;
    m.bytes = m.barriers + barriers + kAlignment;  // the start may lie anywhere
    if (m.bytes <= kMostShared || m.stages == 1) return m;
  }
}
VB_INLINE constexpr bool map_is_sound(int blocks) {
  const SharedMap m = shared_map(blocks);
  return m.bytes <= kMostShared && m.stages >= blocks && m.ring % kAlignment == 0 && kBankBox % kAlignment == 0 &&
         kQueryBox % kAlignment == 0 && m.columns % 128 == 0 && m.lists % 16 == 0 && m.slacks % 8 == 0 &&
         m.barriers % 8 == 0;
}
static_assert(map_is_sound(1) && map_is_sound(2) && map_is_sound(3) && map_is_sound(4));
static_assert(shared_map(1).stages == kMostStages && shared_map(2).stages >= 6 && shared_map(4).stages >= 4);

// Which stage of a ring, and which of a barrier's two phases: a full barrier is waited for with this parity, an empty
// one with the other, which a fresh barrier passes.
struct Turn {
  int stage = 0;
  unsigned parity = 0;
  VB_SHARED void advance(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// ---- Descriptors
// ------------------------------------------------------------------------------------------------------------

// A tile of 128-byte rows in shared memory as wgmma sees it: rows in groups of eight, 1024 bytes apart (the stride
// field); the leading field is not read under this swizzle. All sizes are in units of 16 bytes.
VB_INLINE constexpr uint64_t tile_descriptor(unsigned address) {
  constexpr uint64_t leading = 1, stride = kAlignment >> 4, swizzle_128 = 1;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | leading << 16 | stride << 32 | swizzle_128 << 62;
}
constexpr uint64_t kStepOffset = kStep * 2 >> 4;   // the next sixteen coordinates
constexpr uint64_t kHalfOffset = 64 * kLine >> 4;  // the next 64 rows
constexpr uint64_t kQueryOffset = kQueryBox >> 4;  // the next block of a group's coordinates
constexpr uint64_t kStageOffset = kBankBox >> 4;   // the next stage

// What cuTensorMapEncodeTiled is told: a matrix of 16-bit rows, read in boxes of one 128-byte line a row. Rows beyond
// the last come as zeros.
struct TensorSpec {
  const void* base;
  DType type;
  uint64_t size[2];    // elements, fastest first
  uint64_t stride[1];  // bytes from row to row
  uint32_t box[2], step[2];
};
inline TensorSpec tensor_spec(const Operand& operand, int64_t rows, int box_rows) {
  TensorSpec s{};
  s.base = operand.rows;
  s.type = operand.type;
  s.size[0] = static_cast<uint64_t>(operand.pitch);
  s.size[1] = static_cast<uint64_t>(rows);
  s.stride[0] = static_cast<uint64_t>(operand.pitch) * 2;
  s.box[0] = static_cast<uint32_t>(kOperandDepth);
  s.box[1] = static_cast<uint32_t>(box_rows);
  s.step[0] = s.step[1] = 1;
  return s;
}
// The limits that the driver's documentation states, so that a refusal can say which.
inline const char* tensor_spec_fault(const TensorSpec& s) {
  if (s.base == nullptr || reinterpret_cast<uintptr_t>(s.base) % 16 != 0) return "tensor map: base not 16-byte aligned";
  if (s.stride[0] % 16 != 0 || s.stride[0] >= uint64_t{1} << 40) return "tensor map: bad row stride";
  if (s.stride[0] < s.size[0] * 2) return "tensor map: rows overlap";
  for (int i = 0; i < 2; ++i) {
    if (s.size[i] == 0 || s.size[i] > uint64_t{1} << 32) return "tensor map: bad size";
    if (s.box[i] == 0 || s.box[i] > 256) return "tensor map: bad box";
  }
  if (s.box[0] * 2 != kLine) return "tensor map: a box's line must be the swizzle's 128 bytes";
  return nullptr;
}

// ---- Accumulators of wgmma m64nNk16: score e of thread t of a warpgroup.
// ------------------------------------------------------------------------------------------------------------

VB_INLINE constexpr int score_row(int thread, int e) { return thread / 32 * 16 + thread % 32 / 4 + e / 2 % 2 * 8; }
VB_INLINE constexpr int score_column(int thread, int e) { return e / 4 * 8 + thread % 4 * 2 + e % 2; }

}  // namespace vecbank::cuda::sm90
