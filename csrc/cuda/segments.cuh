// Sums of rows by code, in the order of core/lookup.h, in two levels.
//
// The codes are sorted with their positions, so that the members of a code (a segment) lie side by side, ascending. A
// block of threads takes units from a queue: a few whole segments, or one row block of a long segment, whose sum goes
// to the workspace as a partial vector; the block that finishes the last of them adds these up. Who adds what changes
// with the data and the memory there is, the order of additions does not.
//
// A unit walks its members in tiles: all threads of the block copy the rows of the next tiles into shared memory, while
// one thread for each column adds up those that have arrived.
#pragma once

#include "async_copy.h"
#include "rows.cuh"
#include "segments.h"

namespace vecbank::cuda {

constexpr int kSumThreads = 128;
constexpr int kTileMembers = 32;
constexpr int kTilesAhead = 2;  // on their way while a tile is added up
constexpr int kTileBytes = kTileMembers * kSliceBytes;
constexpr int kJoined = 16;  // partial vectors that are on their way

struct Member {
  uint32_t row, segment;
  double first, second;  // what its term needs, see Term
};

struct SumShared {
  char tiles[kTilesAhead + 1][kTileBytes];
  Member members[kTilesAhead + 2][kTileMembers];  // they arrive one step before their tile
  int64_t unit, range[2];
  unsigned first_cut;
  int last;
};

// Term is what differs between sums:
//   kAtOnce                                                             members that are read before they are added
//   kBlocks                                                             blocks that a multiprocessor has registers for
//   void load(Member*, uint32_t position)                               what the member at a position needs
//   double own(int64_t segment, int64_t column)                         a number of the segment that its terms need
//   double of(double x, double first, double second, double own)        what a member adds; x: the column of its row
//   void store(double sum, int64_t segment, int64_t column)
template <class Term>
struct SumArgs {
  Term term;
  SortedSegments s;
  Rows source;
  bool whole_words;  // rows can be copied 16 bytes at a time
  int64_t group;     // segments of a unit
};

// Adds up the members [from, to), which belong to segments [open, end), in a slice of the columns. store(segment, sum)
// is called for every segment, by the thread of the column.
template <class S, class Term, class Store>
__device__ __forceinline__ void walk(const SumArgs<Term>& a, SumShared& shared, int64_t from, int64_t to, int64_t open,
                                     int64_t end, int64_t slice, Store&& store) {
  constexpr int columns = kSliceBytes / static_cast<int>(sizeof(S));
  const int64_t first = slice * columns, left = a.source.width - first, tiles = ceil_div(to - from, kTileMembers);
  const int width = static_cast<int>(left < columns ? left : columns);
  const int thread = static_cast<int>(threadIdx.x);
  const uint32_t k = static_cast<uint32_t>(a.s.k);

  const auto rows_of_tile = [&](int64_t tile) {
    const int64_t rows = to - from - tile * kTileMembers;
    return static_cast<int>(rows < kTileMembers ? rows : kTileMembers);
  };
  Member next{};  // of the first kTileMembers threads
  const auto fetch = [&](int64_t tile) {
    const int64_t o = from + tile * kTileMembers + thread;
    if (thread >= kTileMembers || o >= to) return;
    const uint32_t position = a.s.pairs.values[o];
    next.segment = a.s.pairs.keys[o];
    next.row = k == 1 ? position : position / k;
    a.term.load(&next, position);
  };
  const auto copy = [&](char* to_tile, const Member* members, int rows) {
    if (a.whole_words) {
      constexpr int words = kSliceBytes / 16;
      for (int e = thread; e < kTileMembers * words; e += kSumThreads) {
        const int r = e / words, byte = e % words * 16;
        if (r < rows && byte < width * static_cast<int>(sizeof(S)))
          copy_async(to_tile + r * kSliceBytes + byte,
                     static_cast<const char*>(a.source.row(members[r].row)) + slice * kSliceBytes + byte, true);
      }
    } else {
#pragma unroll 4
      for (int e = thread; e < kTileMembers * columns; e += kSumThreads) {
        const int r = e / columns, c = e % columns;
        if (r < rows && c < width)
          reinterpret_cast<S*>(to_tile + r * kSliceBytes)[c] =
              static_cast<const S*>(a.source.row(members[r].row))[(first + c) * a.source.col_stride];
      }
    }
  };

  double sum = 0.0, part = 0.0, own = 0.0;
  uint32_t segment = ~0u, block = 0;  // of the member before
  const auto close_until = [&](int64_t segment_to) {
    for (; open < segment_to; ++open) {
      store(open, add_rn(sum, part));
      sum = part = 0.0;
    }
  };
  const auto add_one = [&](S x, uint32_t row, double first_fact, double second_fact) {
    const uint32_t here = row / static_cast<uint32_t>(kSumBlock);
    if (here != block) {
      sum = add_rn(sum, part);
      part = 0.0;
    }
    block = here;
    part = add_rn(part, a.term.of(widened(x), first_fact, second_fact, own));
  };
  const auto add = [&](const S* x, const Member* members, int rows) {
    for (int r = 0; r < rows; r += Term::kAtOnce) {
      const int more = rows - r < Term::kAtOnce ? rows - r : Term::kAtOnce;
      if (more == Term::kAtOnce &&
          members[r + Term::kAtOnce - 1].segment == segment) {  // then all of them are of this segment
        S value[Term::kAtOnce];
        uint32_t row[Term::kAtOnce];
        double facts[2][Term::kAtOnce];
#pragma unroll
        for (int i = 0; i < Term::kAtOnce; ++i) {
          const Member& m = members[r + i];
          value[i] = x[(r + i) * columns], row[i] = m.row, facts[0][i] = m.first, facts[1][i] = m.second;
        }
#pragma unroll
        for (int i = 0; i < Term::kAtOnce; ++i) add_one(value[i], row[i], facts[0][i], facts[1][i]);
        continue;
      }
#pragma unroll 1
      for (int i = r; i < r + more; ++i) {
        const Member m = members[i];
        if (m.segment != segment) {
          segment = m.segment;
          close_until(segment);
          own = a.term.own(segment, first + thread);
        }
        add_one(x[i * columns], m.row, m.first, m.second);
      }
    }
  };

  fetch(0);
  int buffer = 0, facts = 0;  // of this step
  for (int64_t step = 0; step < tiles + kTilesAhead; ++step) {
    Member* members = shared.members[facts];
    if (step < tiles && thread < kTileMembers) members[thread] = next;
    __syncthreads();  // the members are there, and the buffer's last tile has been added up
    if (step < tiles) {
      copy(shared.tiles[buffer], members, rows_of_tile(step));
      fetch(step + 1);
    }
    commit_copies();
    buffer = buffer == kTilesAhead ? 0 : buffer + 1;  // the tile that is to be added now, when there is one
    facts = facts == kTilesAhead + 1 ? 0 : facts + 1;
    if (step < kTilesAhead) continue;
    wait_copies<kTilesAhead>();
    __syncthreads();
    const int arrived = facts == kTilesAhead + 1 ? 0 : facts + 1;
    if (thread < width)
      add(reinterpret_cast<const S*>(shared.tiles[buffer]) + thread, shared.members[arrived],
          rows_of_tile(step - kTilesAhead));
  }
  if (thread < width) close_until(end);
  __syncthreads();  // the next walk writes to the buffers
}

// A column of the sum of a segment that was cut, of its partial vectors. Other blocks have just written them, so the
// reads are volatile: they may not come from this multiprocessor's own cache.
__device__ __forceinline__ double joined(const volatile double* part, int64_t blocks, int64_t width) {
  double sum = 0.0;
  int64_t b = 0;
  for (; b + kJoined <= blocks; b += kJoined) {
    double some[kJoined];
#pragma unroll
    for (int i = 0; i < kJoined; ++i) some[i] = part[(b + i) * width];
#pragma unroll
    for (int i = 0; i < kJoined; ++i) sum = add_rn(sum, some[i]);
  }
  for (; b < blocks; ++b) sum = add_rn(sum, part[b * width]);
  return sum;
}

template <class S, class Term>
__global__ void __launch_bounds__(kSumThreads, Term::kBlocks) sum_kernel(const SumArgs<Term> a) {
  SumShared& shared = *reinterpret_cast<SumShared*>(shared_memory());
  constexpr int64_t columns = kSliceBytes / static_cast<int64_t>(sizeof(S));
  const SortedSegments& s = a.s;
  const int64_t slices = s.slices, cut = s.counters->cut, parts = cut * s.row_blocks;
  const int64_t units = (parts + ceil_div(s.segments, a.group)) * slices;
  const int thread = static_cast<int>(threadIdx.x);
  for (;;) {
    if (thread == 0) shared.unit = static_cast<int64_t>(atomicAdd(&s.counters->next, 1ull));
    __syncthreads();
    const int64_t taken = shared.unit, unit = taken / slices, slice = taken % slices;
    __syncthreads();
    if (taken >= units) return;
    const int64_t column = slice * columns + thread;
    double* partial = nullptr;
    int64_t begin, end, whole = -1;  // segments; one that was cut
    if (unit < parts) {              // these come first, because they are long
      const int64_t block = unit % s.row_blocks;
      whole = begin = s.cut[unit / s.row_blocks], end = begin + 1;
      partial = s.partials + (s.slot[begin] + block) * a.source.width + column;
      if (thread < 2)
        shared.range[thread] =
            lower_position(s.pairs.values, s.start[begin], s.start[end], (block + thread) * kSumBlock * s.k);
    } else {
      begin = (unit - parts) * a.group;
      end = s.segments - begin < a.group ? s.segments : begin + a.group;
    }
    while (begin < end) {
      int64_t stop = end;  // before the next segment that is cut
      if (cut > 0 && partial == nullptr) {
        if (thread == 0) shared.first_cut = kSumThreads;
        __syncthreads();
        if (begin + thread < end && s.slot[begin + thread] != kNotCut)
          atomicMin(&shared.first_cut, static_cast<unsigned>(thread));
        __syncthreads();
        if (begin + shared.first_cut < end) stop = begin + shared.first_cut;
      }
      if (partial == nullptr && thread < 2) shared.range[thread] = s.start[thread == 0 ? begin : stop];
      __syncthreads();
      walk<S>(a, shared, shared.range[0], shared.range[1], begin, stop, slice, [&](int64_t segment, double sum) {
        if (partial != nullptr)
          *partial = sum;
        else
          a.term.store(sum, segment, column);
      });
      begin = stop + 1;
    }
    if (partial == nullptr) continue;
    if (!last_to_arrive(s.finished + unit / s.row_blocks * slices + slice, s.row_blocks, &shared.last)) continue;
    if (thread < columns && column < a.source.width)
      a.term.store(joined(s.partials + s.slot[whole] * a.source.width + column, s.row_blocks, a.source.width), whole,
                   column);
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
  const int64_t units = s.slices * (ceil_div(s.segments, a.group) + s.capacity), most = int64_t{8} * device.processors;
  return with_dtype(source.dtype, [&](auto type) {
    return launch(sum_kernel<Element<decltype(type)>, Term>, grid_for(units < most ? units : most), kSumThreads,
                  static_cast<int64_t>(sizeof(SumShared)), device, a);
  });
}

}  // namespace vecbank::cuda
