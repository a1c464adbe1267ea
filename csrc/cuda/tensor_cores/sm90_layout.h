// The arithmetic of the Hopper screen, without a GPU instruction: tiles, which block computes which, the map of shared
// memory, the fields of TMA and wgmma descriptors, and which thread holds which score. Plain functions for sm90.cu,
// tested on the host (tests/cpp/test_cuda_sm90.cpp).
#pragma once

#include <algorithm>

#include "../../core/types.h"
#include "../candidates.h"
#include "../schedule.h"
#include "operands.h"

namespace vecbank::cuda::sm90 {

// ---- Tiles ---------------------------------------------------------------------------------------------------------

constexpr int kGroups = 2;                    // consumer warpgroups
constexpr int kGroupRows = 128;               // query rows of a group: two halves of 64, wgmma's M
constexpr int kHalves = kGroupRows / 64;      // accumulator blocks of a thread
constexpr int kRows = kGroups * kGroupRows;   // query rows of a block, which share each bank tile
constexpr int kColumns = 128;                 // bank rows of a tile, wgmma's N
constexpr int kScores = 64 * kColumns / 128;  // scores of a thread in one accumulator block
constexpr int kStep = 16;                     // coordinates of a wgmma
constexpr int kLine = 128;                    // bytes of a row in shared memory: kOperandDepth 16-bit coordinates
constexpr int kMostBlocks = kWidestSm90 / kOperandDepth;
constexpr int kBankBox = kColumns * kLine;     // bytes of the bank that one TMA load copies
constexpr int kQueryBox = kGroupRows * kLine;  // bytes of the queries that one TMA load copies
constexpr int kThreads = 128 * (kGroups + 1);  // one more warpgroup, whose first thread is the producer
static_assert(kOperandTile % kColumns == 0 && kOperandTile % kRows == 0 && kOperandDepth * 2 == kLine);

// Registers: a block starts with an equal share for each thread, then the producer's warpgroup releases most of its
// own.
constexpr int kRegisters = 168, kProducerRegisters = 24, kConsumerRegisters = 240;
static_assert(kThreads * kRegisters <= 65536 && kRegisters % 8 == 0);
static_assert(128 * (kProducerRegisters + kGroups * kConsumerRegisters) <= kThreads * kRegisters);
static_assert(kHalves * kScores + 64 <= kConsumerRegisters, "the accumulators and 64 further registers must fit");

VB_INLINE constexpr int blocks_of(int64_t pitch) { return static_cast<int>(pitch / kOperandDepth); }

// ---- The schedule --------------------------------------------------------------------------------------------------
using Segment = TileSegment;
using Work = TileWork;
inline Work make_work(int64_t rows, int64_t columns, int processors, int64_t blocks_per_row_tile) {
  return make_tile_work(ceil_div(rows, kRows), ceil_div(columns, kColumns), processors, blocks_per_row_tile);
}
// The most columns that one launch may take, a multiple of the tile.
inline int64_t most_columns(int64_t rows) { return most_column_tiles(ceil_div(rows, kRows)) * kColumns; }

// ---- Shared memory -------------------------------------------------------------------------------------------------

constexpr int kConsumerWarps = kGroups * 4;
constexpr int kBunch = 8;                       // scores of a thread that are compared together
constexpr int kBunches = kScores / 2 / kBunch;  // of a thread's row
constexpr int kQueue = 80;                      // bunches that a warp's queue holds
constexpr int kFull = kQueue - 32;              // with more, there may be no room for a bunch of each lane
constexpr int kNewBunches = 24;                 // so many new ones since the last look are worth another
constexpr int kMostKept = kFull - 12;           // with more left, the queue would soon be full again
constexpr int kMostStages = 8;                  // of the ring
constexpr int kMostShared = 227 << 10;
constexpr int kAlignment = 1024;  // where the 128-byte swizzle repeats

// The bunches of a warp in which a score reached its row's threshold. `place`: the bunch's first column (a row of the
// operand), and above kColumnBits the row of the warp's 32.
struct BunchQueue {
  float v[kBunch][kQueue];
  uint32_t place[kQueue];
};
constexpr int kColumnBits = 27;
static_assert(kMostOperandElements / kOperandDepth <= int64_t{1} << kColumnBits);
VB_INLINE constexpr int bunch_column(int u) { return u / 2 * 8 + u % 2; }  // of v[u], from the bunch's first one on

struct WarpRows {  // of a warp's 32 rows; twice_slack: twice_above() the row's slack
  float norm[32], twice_slack[32], threshold[32];
};

struct TileTerms {  // the column terms of a tile
  float start[kColumns], bound[kColumns], lift[kColumns];
};

struct SharedMap {    // byte offsets from a multiple of kAlignment
  int stages, tiles;  // stages of the ring; tiles whose column terms are kept
  int queries, ring, columns, queues, rows, barriers, bytes;
};
VB_INLINE constexpr SharedMap shared_map(int blocks) {
  SharedMap m{};
  const int queries = kGroups * blocks * kQueryBox;
  const int queues = kConsumerWarps * static_cast<int>(sizeof(BunchQueue));
  const int rows = kConsumerWarps * static_cast<int>(sizeof(WarpRows));
  const int barriers = (2 * kMostStages + 2) * 8;
  for (m.stages = kMostStages;; --m.stages) {
    // The column terms of tile t may be overwritten after all its scores were compared. A block of tile t + tiles is
    // loaded only after both groups have released the block that this stage held before, `stages` blocks earlier. A
    // group releases a block of tile s only after it has compared the scores of tile s - 1.
    m.tiles = (m.stages + blocks - 1) / blocks + 1;
    m.queries = 0;
    m.ring = m.queries + queries;
    m.columns = m.ring + m.stages * kBankBox;
    m.queues = m.columns + m.tiles * static_cast<int>(sizeof(TileTerms));
    m.rows = m.queues + queues;
    m.barriers = m.rows + rows;
    m.bytes = m.barriers + barriers + kAlignment;  // the base may have any alignment
    if (m.bytes <= kMostShared || m.stages == 1) return m;
  }
}
VB_INLINE constexpr bool map_is_sound(int blocks) {
  const SharedMap m = shared_map(blocks);
  return m.bytes <= kMostShared && m.stages >= blocks && m.ring % kAlignment == 0 && kBankBox % kAlignment == 0 &&
         kQueryBox % kAlignment == 0 && m.columns % 128 == 0 && m.queues % 16 == 0 && m.rows % 16 == 0 &&
         m.barriers % 8 == 0;
}
static_assert(map_is_sound(1) && map_is_sound(2) && map_is_sound(3) && map_is_sound(4));
static_assert(shared_map(1).stages == kMostStages && shared_map(2).stages >= 6 && shared_map(4).stages >= 4);

// A stage of the ring, and the phase of its barriers: threads wait for a full barrier with this parity and for an empty
// barrier with the other one, which a fresh barrier passes.
struct Turn {
  int stage = 0;
  unsigned parity = 0;
  VB_HOST_DEVICE void advance(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// ---- Descriptors ---------------------------------------------------------------------------------------------------

// The descriptor of a tile of 128-byte rows in shared memory. Rows lie in groups of eight that are 1024 bytes apart
// (the stride field); wgmma does not read the leading field under this swizzle. All sizes are in units of 16 bytes.
VB_INLINE constexpr uint64_t tile_descriptor(unsigned address) {
  constexpr uint64_t leading = 1, stride = kAlignment >> 4, swizzle_128 = 1;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | leading << 16 | stride << 32 | swizzle_128 << 62;
}
constexpr uint64_t kStepOffset = kStep * 2 >> 4;   // the next sixteen coordinates
constexpr uint64_t kHalfOffset = 64 * kLine >> 4;  // the next 64 rows
constexpr uint64_t kQueryOffset = kQueryBox >> 4;  // the next block of a group's coordinates
constexpr uint64_t kStageOffset = kBankBox >> 4;   // the next stage

// The arguments of cuTensorMapEncodeTiled: a matrix of 16-bit rows, read in boxes of one 128-byte line a row. Rows
// beyond the last are read as zeros.
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
// Checks the limits that the driver's documentation states, so that an error can name the limit.
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

// ---- Rows of a warp ------------------------------------------------------------------------------------------------
// A warp of a group has 16 rows of each half. Row w of these 32 is the group's row warp_row(warp, w), and belongs to
// the quad w % 8, as the row numbered w / 8 of its threads.

VB_INLINE constexpr int warp_row(int warp, int w) { return w / 16 * 64 + warp * 16 + w % 16; }

// ---- Accumulators --------------------------------------------------------------------------------------------------
// Row and column of score e of thread t of a warpgroup, as wgmma m64nNk16 defines them.

VB_INLINE constexpr int score_row(int thread, int e) { return thread / 32 * 16 + thread % 32 / 4 + e / 2 % 2 * 8; }
VB_INLINE constexpr int score_column(int thread, int e) { return e / 4 * 8 + thread % 4 * 2 + e % 2; }

}  // namespace vecbank::cuda::sm90
