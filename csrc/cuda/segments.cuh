// Sums of rows by code, in the order of core/lookup.h, in two levels.
//
// The codes are sorted with their positions, so that the members of a code (a segment) lie side by side, ascending. A
// warp takes units from a queue: a few whole segments, or a piece of a long segment, whose sums of row blocks go to the
// workspace as partial vectors; the warp that finishes the last piece adds these up. Who adds what changes with the
// data and the memory there is, the order of additions does not.
//
// A block is one warp, because the additions of a segment are a chain: other warps could only wait for it. A unit walks
// its members in tiles: the rows of the next tiles are on their way into shared memory, while each thread adds up its
// columns of those that have arrived.
#pragma once

#include "async_copy.h"
#include "rows.cuh"
#include "segments.h"

namespace vecbank::cuda {

constexpr int kTileMembers = 16;
constexpr int kTilesAhead = 2;     // on their way while a tile is added up
constexpr int kMembersAtOnce = 8;  // that are read before they are added
constexpr int kJoined = 16;        // partial vectors that are on their way
constexpr int kSumBlocks = 16;     // that a multiprocessor has registers for: enough rows on their way
static_assert(kMostGroup <= kSumThreads && kTileMembers <= kSumThreads);

struct Member {
  uint32_t row, key;
  double first, second;  // what its term needs, see Term
};

template <class S>
struct SumShared {
  static constexpr int kEach = columns_of_thread(sizeof(S)), kColumns = kSumThreads * kEach;
  alignas(16) S tiles[kTilesAhead + 1][kTileMembers][kColumns];
  Member members[kTilesAhead + 2][kTileMembers];  // they arrive one step before their tile
  int64_t unit, range[2], keys[2];
  int last;
};

// Term is what differs between sums:
//   void load(Member*, uint32_t position)                               what the member at a position needs
//   double own(int64_t segment, int64_t column)                         a number of the segment that its terms need
//   void with(add)                                                      calls add(f); f(x, member, own) is what a
//                                                                       member adds, x: the column of its row
//   void store(double sum, int64_t segment, int64_t column)
template <class Term>
struct SumArgs {
  Term term;
  SortedSegments s;
  Rows source;
  bool whole_words;  // rows can be copied 16 bytes at a time
  int64_t group;     // segments of a unit
};

struct Walk {
  int64_t from, to;   // members
  int64_t open, end;  // keys: the segments of the members, or the row blocks of one segment
  int64_t whole;      // that segment; -1: keys are segments
  int64_t slice;      // of the columns
};

// Adds up the members of a walk. store(key, sums) is called for every key, by every thread that has columns.
template <class S, class Term, class Store>
__device__ __forceinline__ void walk(const SumArgs<Term>& a, SumShared<S>& shared, const Walk& w, Store&& store) {
  constexpr int each = SumShared<S>::kEach, columns = SumShared<S>::kColumns;
  using Columns = Neighbours<S, each>;
  const int64_t first = w.slice * columns, left = a.source.width - first, tiles = ceil_div(w.to - w.from, kTileMembers);
  const int width = static_cast<int>(left < columns ? left : columns);
  const int thread = static_cast<int>(threadIdx.x);
  const uint32_t k = static_cast<uint32_t>(a.s.k);

  const auto rows_of_tile = [&](int64_t tile) {
    const int64_t rows = w.to - w.from - tile * kTileMembers;
    return static_cast<int>(rows < kTileMembers ? rows : kTileMembers);
  };
  Member next{};  // of the first kTileMembers threads
  const auto fetch = [&](int64_t tile) {
    const int64_t o = w.from + tile * kTileMembers + thread;
    if (thread >= kTileMembers || o >= w.to) return;
    const uint32_t position = a.s.pairs.values[o];
    next.row = k == 1 ? position : position / k;
    next.key = w.whole < 0 ? a.s.pairs.keys[o] : next.row / static_cast<uint32_t>(kSumBlock);
    a.term.load(&next, position);
  };
  const auto copy = [&](S(*tile)[columns], const Member* members, int rows) {
    if (a.whole_words) {
      constexpr int in_word = 16 / static_cast<int>(sizeof(S)), words = columns / in_word;
#pragma unroll
      for (int e = thread; e < kTileMembers * words; e += kSumThreads) {
        const int r = e / words, c = e % words * in_word;
        if (r < rows && c < width)
          copy_async(&tile[r][c], static_cast<const S*>(a.source.row(members[r].row)) + first + c, true);
      }
    } else {
#pragma unroll 4
      for (int e = thread; e < kTileMembers * columns; e += kSumThreads) {
        const int r = e / columns, c = e % columns;
        if (r < rows && c < width)
          tile[r][c] = static_cast<const S*>(a.source.row(members[r].row))[(first + c) * a.source.col_stride];
      }
    }
  };

  double sum[each] = {}, part[each] = {}, own[each] = {};
  uint32_t key = ~0u, block = 0;  // of the member before
  int64_t open = w.open;
  const auto close_until = [&](int64_t key_to) {
    for (; open < key_to; ++open) {
#pragma unroll
      for (int v = 0; v < each; ++v) sum[v] = add_rn(sum[v], part[v]);
      store(open, sum);
#pragma unroll
      for (int v = 0; v < each; ++v) sum[v] = part[v] = 0.0;
    }
  };
  const auto begin_key = [&](uint32_t next_key) {
    key = next_key;
    close_until(key);
#pragma unroll
    for (int v = 0; v < each; ++v)
      if (thread * each + v < width) own[v] = a.term.own(w.whole < 0 ? key : w.whole, first + thread * each + v);
  };
  const auto add_one = [&](const auto& term_of, const Columns& x, const Member& m) {
    const uint32_t here = m.row / static_cast<uint32_t>(kSumBlock);
    if (here != block) {
#pragma unroll
      for (int v = 0; v < each; ++v) {
        sum[v] = add_rn(sum[v], part[v]);
        part[v] = 0.0;
      }
    }
    block = here;
#pragma unroll
    for (int v = 0; v < each; ++v) part[v] = add_rn(part[v], term_of(element(x.of[v]), m, own[v]));
  };
  const auto add = [&](const S(*tile)[columns], const Member* members, int rows) {
    const auto columns_of = [&](int r) { return *reinterpret_cast<const Columns*>(&tile[r][thread * each]); };
    const auto add_rows = [&](const auto& term_of) {
      for (int r = 0; r < rows; r += kMembersAtOnce) {
        const int more = rows - r < kMembersAtOnce ? rows - r : kMembersAtOnce;
        if (more == kMembersAtOnce && members[r].key == members[r + kMembersAtOnce - 1].key) {  // they ascend
          if (members[r].key != key) begin_key(members[r].key);
          Columns x[kMembersAtOnce];
          Member m[kMembersAtOnce];
#pragma unroll
          for (int i = 0; i < kMembersAtOnce; ++i) x[i] = columns_of(r + i), m[i] = members[r + i];
#pragma unroll
          for (int i = 0; i < kMembersAtOnce; ++i) add_one(term_of, x[i], m[i]);
          continue;
        }
#pragma unroll 1
        for (int i = r; i < r + more; ++i) {
          const Member m = members[i];
          if (m.key != key) begin_key(m.key);
          add_one(term_of, columns_of(i), m);
        }
      }
    };
    a.term.with(add_rows);
  };

  fetch(0);
  int buffer = 0, facts = 0;  // of this step
  for (int64_t step = 0; step < tiles + kTilesAhead; ++step) {
    Member* members = shared.members[facts];
    if (step < tiles && thread < kTileMembers) members[thread] = next;
    __syncwarp();  // the members are there, and the buffer's last tile has been added up
    if (step < tiles) {
      copy(shared.tiles[buffer], members, rows_of_tile(step));
      fetch(step + 1);
    }
    commit_copies();
    buffer = buffer == kTilesAhead ? 0 : buffer + 1;  // the tile that is to be added now, when there is one
    facts = facts == kTilesAhead + 1 ? 0 : facts + 1;
    if (step < kTilesAhead) continue;
    wait_copies<kTilesAhead>();
    __syncwarp();
    const int arrived = facts == kTilesAhead + 1 ? 0 : facts + 1;
    if (thread * each < width) add(shared.tiles[buffer], shared.members[arrived], rows_of_tile(step - kTilesAhead));
  }
  if (thread * each < width) close_until(w.end);
  __syncwarp();  // the next walk writes to the buffers
}

// A thread's `count` columns of the sum of a segment that was cut, of its partial vectors. Other blocks have just
// written them, so the reads are volatile: they may not come from this multiprocessor's own cache.
template <int N>
__device__ __forceinline__ void joined(const volatile double* part, int64_t blocks, int64_t width, int count,
                                       double (&sum)[N]) {
  for (int64_t b = 0; b < blocks; b += kJoined) {
    double some[kJoined][N];
#pragma unroll
    for (int i = 0; i < kJoined; ++i)
#pragma unroll
      for (int v = 0; v < N; ++v) some[i][v] = b + i < blocks && v < count ? part[(b + i) * width + v] : 0.0;
#pragma unroll
    for (int i = 0; i < kJoined; ++i)
#pragma unroll
      for (int v = 0; v < N; ++v) sum[v] = add_rn(sum[v], some[i][v]);
  }
}

// Where piece i of a segment [begin, end) begins that is cut into so many: at the first member of a row block.
__device__ __forceinline__ int64_t piece_begin(const SortedSegments& s, int64_t begin, int64_t end, int64_t pieces,
                                               int64_t i) {
  const int64_t near = begin + i * ceil_div(end - begin, pieces), block = kSumBlock * s.k;  // of positions
  if (i == 0) return begin;
  if (near >= end) return end;
  const int64_t next_block = s.pairs.values[near - 1] / block + 1;
  return lower_position(s.pairs.values, near, end - near < block ? end : near + block, next_block * block);
}

// The cut segment that a piece belongs to.
__device__ __forceinline__ int64_t cut_of_piece(const Cut* cut, int64_t count, int64_t piece) {
  int64_t low = 0, high = count;  // the first of a later piece lies in (low, high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (static_cast<int64_t>(cut[middle].first_piece) <= piece)
      low = middle;
    else
      high = middle;
  }
  return low;
}

template <class S, class Term>
__global__ void __launch_bounds__(kSumThreads, kSumBlocks) sum_kernel(const __grid_constant__ SumArgs<Term> a) {
  SumShared<S>& shared = *reinterpret_cast<SumShared<S>*>(shared_memory());
  constexpr int each = SumShared<S>::kEach;
  const SortedSegments& s = a.s;
  const int64_t slices = s.slices, cut = static_cast<int64_t>(s.counters->cut >> 32);
  const int64_t pieces = static_cast<int64_t>(s.counters->cut & 0xffffffffu), width = a.source.width;
  const int64_t units = (pieces + ceil_div(s.segments, a.group)) * slices;
  const int thread = static_cast<int>(threadIdx.x);
  for (;;) {
    if (thread == 0) shared.unit = static_cast<int64_t>(atomicAdd(&s.counters->next, 1ull));
    __syncwarp();
    const int64_t taken = shared.unit, unit = taken / slices, slice = taken % slices;
    __syncwarp();
    if (taken >= units) return;
    const int64_t column = slice * SumShared<S>::kColumns + thread * each;
    const int mine = width - column < each ? static_cast<int>(width - column) : each;  // less than 1: none
    if (unit < pieces) {  // these come first, because they belong to long segments
      const int64_t number = cut_of_piece(s.cut, cut, unit), whole = s.cut[number].segment;
      const int64_t begin = s.start[whole], end = s.start[whole + 1], of_whole = pieces_of(end - begin, s.row_blocks);
      if (thread < 2) {
        const int64_t i = unit - s.cut[number].first_piece + thread, at = piece_begin(s, begin, end, of_whole, i);
        shared.range[thread] = at;
        shared.keys[thread] = i == 0 ? 0 : at == end ? s.row_blocks : s.pairs.values[at] / (kSumBlock * s.k);
      }
      __syncwarp();
      double* partial = s.partials + s.slot[whole] * width + column;
      const Walk w{shared.range[0], shared.range[1], shared.keys[0], shared.keys[1], whole, slice};
      walk(a, shared, w, [&](int64_t block, const double (&sum)[each]) {
#pragma unroll
        for (int v = 0; v < each; ++v)
          if (v < mine) partial[block * width + v] = sum[v];
      });
      if (!last_to_arrive(s.finished + number * slices + slice, of_whole, &shared.last) || mine < 1) continue;
      double sum[each] = {};
      joined(partial, s.row_blocks, width, mine, sum);
#pragma unroll
      for (int v = 0; v < each; ++v)
        if (v < mine) a.term.store(sum[v], whole, column + v);
      continue;
    }
    int64_t begin = (unit - pieces) * a.group;
    const int64_t end = s.segments - begin < a.group ? s.segments : begin + a.group;
    while (begin < end) {
      const bool is_cut = cut > 0 && begin + thread < end && s.slot[begin + thread] != kNotCut;
      const unsigned found = __ballot_sync(kAllLanes, is_cut);
      const int64_t stop = found == 0 ? end : begin + __ffs(static_cast<int>(found)) - 1;
      walk(a, shared, {s.start[begin], s.start[stop], begin, stop, -1, slice},
           [&](int64_t segment, const double (&sum)[each]) {
#pragma unroll
             for (int v = 0; v < each; ++v)
               if (v < mine) a.term.store(sum[v], segment, column + v);
           });
      begin = stop + 1;
    }
  }
}

// sort_codes() has been called.
template <class Term>
Error sum_segments(const SortedSegments& s, const Rows& source, const Term& term, const Device& device) {
  const int64_t size = static_cast<int64_t>(size_of(source.dtype));
  SumArgs<Term> a{term, s, source, false, 1};
  a.whole_words = source.col_stride == 1 && source.width * size % 16 == 0 && source.row_stride * size % 16 == 0 &&
                  reinterpret_cast<uintptr_t>(source.data) % 16 == 0;
  a.group = group_of(s, device.processors);
  const int64_t most_pieces = s.capacity > 0 ? s.codes / kPieceMembers : 0;
  const int64_t units = s.slices * (ceil_div(s.segments, a.group) + most_pieces);
  const int64_t most = int64_t{32} * device.processors;
  return with_dtype(source.dtype, [&](auto type) {
    using S = Element<decltype(type)>;
    return launch(sum_kernel<S, Term>, grid_for(units < most ? units : most), kSumThreads,
                  static_cast<int64_t>(sizeof(SumShared<S>)), device, a);
  });
}

}  // namespace vecbank::cuda
