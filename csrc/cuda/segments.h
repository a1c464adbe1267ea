// Codes sorted into segments (segments.cu), and what the sums over them (segments.cuh) find in the workspace.
#pragma once

#include "arena.h"
#include "launch.h"
#include "sort.h"

namespace vecbank::cuda {

constexpr uint32_t kNotCut = ~0u;
constexpr int64_t kCutMembers = 1024, kCutRows = 2;  // a segment is cut where it has this many, and 2 a row block
constexpr int64_t kPieceMembers = 256;               // about as many has a piece of a segment that is cut
constexpr int64_t kPartialBytes = int64_t{32} << 20;
constexpr int64_t kMostGroup = 32;  // segments of a unit
constexpr int kSumThreads = 32;

// The columns of a sum are cut into slices: two columns a thread, one where numbers have 8 bytes.
VB_INLINE constexpr int columns_of_thread(size_t size) { return size == 8 ? 1 : 2; }

struct SumCounters {
  unsigned long long next;  // unit in the queue
  unsigned long long cut;   // high half: segments that are cut; low half: their pieces
  unsigned int used;        // partial vectors that were asked for
};
struct Cut {
  uint32_t segment, first_piece;
};

struct SortedSegments {
  int64_t codes, k, segments;  // k codes a row
  int64_t row_blocks;          // of kSumBlock rows
  int64_t capacity;            // partial vectors that the workspace has room for
  Sorted pairs;                // of (code, position)
  void* scratch;
  int64_t scratch_bytes;
  uint32_t* start;     // [segments + 1]: where each begins
  uint32_t* slot;      // [segments]: its first partial vector; kNotCut: it has none
  Cut* cut;            // the segments that are cut, ascending by first_piece
  uint32_t* finished;  // [cut][slices]: pieces that are done
  int64_t slices;      // of the columns: a unit has those of one
  SumCounters* counters;
  double* partials;  // [capacity][width]
};

// 16 bytes a code, 8 a segment, and the partial vectors.
SortedSegments cut_workspace(Arena& arena, int64_t codes, int64_t k, int64_t segments, const Rows& source);

// A smaller workspace costs speed: fewer segments are cut. False: it is too small even without partial vectors.
inline bool fit(SortedSegments* s, int64_t width, int64_t used, const Device& device) {
  if (used > device.workspace_bytes)
    s->capacity -= ceil_div(used - device.workspace_bytes, 8 * (width > 0 ? width : 1));
  return s->capacity >= 0;
}

// Sorts, finds where segments begin and decides which are cut; counts (null: not wanted) gets the members of each. A
// code out of range raises the sticky flag and enters no segment.
Error sort_codes(const int64_t* codes, float* counts, SortedSegments* s, const Device& device);

// The segments of a unit: about 256 members, and enough units for all multiprocessors.
inline int64_t group_of(const SortedSegments& s, int64_t processors) {
  const int64_t by_members = 256 * s.segments / (s.codes > 0 ? s.codes : 1), by_units = s.segments / (32 * processors);
  const int64_t group = by_members < by_units ? by_members : by_units;
  return group < 1 ? 1 : group > kMostGroup ? kMostGroup : group;
}

VB_INLINE int64_t pieces_of(int64_t members, int64_t row_blocks) {
  const int64_t pieces = members / kPieceMembers;
  return pieces < row_blocks ? pieces : row_blocks;
}

// The first of positions [low, high) whose key is at least `key`.
VB_INLINE int64_t lower_position(const uint32_t* keys, int64_t low, int64_t high, int64_t key) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (static_cast<int64_t>(keys[middle]) < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

}  // namespace vecbank::cuda
