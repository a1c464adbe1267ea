// How a call over a whole bank is divided: a plain tensor into pieces, which are packed one after another, and the work
// on a piece into blocks of queries x parts of the piece, which the workers share. search() and project() use this
// file; scores that are refined outright need no packed pieces.
#pragma once

#include <algorithm>

#include "pack.h"
#include "reader.h"

namespace vecbank::cpu {

// Bank rows of a piece whose panels take about so many bytes: whole panels, at least one.
inline int64_t rows_of_piece(int64_t bytes, int64_t width, int64_t element) {
  return std::max<int64_t>(1, bytes / ((width + 3) * kPanel * element)) * kPanel;
}

// A packed piece of the bank, or the whole bank where the caller has packed it.
struct Piece {
  const PackHeader& header;
  Rows bank;           // the rows of the piece
  const double* bias;  // of these rows; null: none
  int64_t offset;      // of its first row in the whole bank
  bool first, last;
};

// Copies the listed rows, one after the other.
inline void copy_rows(const Rows& from, const int64_t* listed, int64_t count, void* to) {
  const int64_t bytes = from.width * static_cast<int64_t>(size_of(from.dtype));
  for (int64_t i = 0; i < count; ++i) {
    if (i + 8 < count)  // of a row that may lie anywhere
      for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(static_cast<const char*>(from.row(listed[i + 8])) + at);
    copy_row(from, listed[i], static_cast<char*>(to) + i * bytes);
  }
}

// Calls f(piece) for every piece of `rows` bank rows, in ascending order, packed as `kind`, whose numbers are of T
// while they are packed. One pack is in memory at a time. A bank that the caller has packed is one piece. `chosen`: of
// these bank rows alone, `bank.count` of them, which are copied piece by piece; a piece then numbers them as listed.
template <class T, class F>
[[nodiscard]] Status for_each_piece(const Rows& bank, const PackHeader* pack, Metric metric, const double* bias,
                                    int64_t rows, PanelKind kind, const Parallel& parallel, F&& f,
                                    const int64_t* chosen = nullptr) {
  if (pack != nullptr) return f(Piece{*pack, bank, bias, 0, true, true});
  Buffer<char> memory, copies;
  Buffer<double> biases;
  Status status = Status::ok;
  for (int64_t at = 0; at < bank.count && status == Status::ok; at += rows) {
    Rows part = bank;
    part.count = std::min(rows, bank.count - at);
    const double* own = bias != nullptr ? bias + at : nullptr;
    if (chosen == nullptr) {
      part.data = bank.row(at);
    } else {
      const int64_t bytes = bank.width * static_cast<int64_t>(size_of(bank.dtype)), together = 1024;
      if (!copies.reserve(part.count * bytes) || (bias != nullptr && !biases.reserve(part.count)))
        return Status::out_of_memory;
      status = for_each_task(parallel, ceil_div(part.count, together), [&](int, int64_t task) {
        const int64_t first = task * together, count = std::min(together, part.count - first);
        copy_rows(bank, chosen + at + first, count, copies.get() + first * bytes);
        for (int64_t i = first; i < first + count && bias != nullptr; ++i) biases[i] = bias[chosen[at + i]];
      });
      if (status != Status::ok) return status;
      part.data = copies.get();
      part.row_stride = part.width;
      part.col_stride = 1;
      if (bias != nullptr) own = biases.get();
    }
    const PackHeader layout = pack_layout(part.count, part.width, metric, part.dtype, kind, bias != nullptr);
    if (!memory.reserve(layout.bytes)) return Status::out_of_memory;
    status = pack_as<T>(part, metric, memory.get(), parallel, own, kind);
    const auto* header = reinterpret_cast<const PackHeader*>(memory.get());
    if (status == Status::ok) status = f(Piece{*header, part, own, at, at == 0, at + rows >= bank.count});
  }
  return status;
}

// Blocks of queries x parts of a piece. A block is a whole number of register tiles high.
struct Grid {
  int64_t queries = 0, panels = 0;  // all of them
  int64_t rows_per_block = 1, blocks = 1;
  int64_t panels_per_part = 1, parts = 1;

  // At most `most` queries to a block, or `group` where that is more.
  void set_blocks(int64_t count, int64_t most, int64_t group) {
    queries = count;
    blocks = ceil_div(count, std::max(most / group, int64_t{1}) * group);
    even_blocks(group);
  }
  void even_blocks(int64_t group) {
    rows_per_block = round_up_to(ceil_div(queries, blocks), group);
    blocks = ceil_div(queries, rows_per_block);
  }
  void set_parts(int64_t count, int64_t wanted) {
    panels = count;
    panels_per_part = ceil_div(panels, std::max<int64_t>(wanted, 1));
    parts = ceil_div(panels, panels_per_part);
  }
  int64_t tasks() const { return blocks * parts; }
};

// For a dense product: blocks of at most `most` queries, against parts of the panels.
inline Grid product_grid(int64_t queries, int64_t bank_rows, int64_t most, int group, int workers) {
  Grid grid;
  grid.set_blocks(queries, most, group);
  grid.blocks = std::min(ceil_div(queries, group), round_up_to(grid.blocks, std::min<int64_t>(workers, 64)));
  grid.even_blocks(group);
  // With few blocks the panels are split too; each part packs the queries again, so parts stay large.
  const int64_t panels = ceil_div(bank_rows, kPanel);
  grid.set_parts(panels, std::min<int64_t>(2 * workers / grid.blocks, ceil_div(panels, 64)));
  return grid;
}

// A task of a grid: queries [first, first + rows) against panels [from, to), which are part `part`.
struct GridTask {
  int64_t first, rows, from, to, part;
};

// Calls f(worker, task) for the whole grid. Neighbouring tasks share a part, so that its panels are read from memory
// once. Where there are many blocks, each worker has neighbouring ones: two that take turns would fetch each other's
// lines early.
template <class F>
[[nodiscard]] Status for_each_task(const Grid& grid, const Parallel& parallel, F&& f) {
  const auto run = [&](int worker, int64_t task) {
    const int64_t first = task % grid.blocks * grid.rows_per_block, part = task / grid.blocks;
    const int64_t from = part * grid.panels_per_part;
    f(worker, GridTask{first, std::min(grid.rows_per_block, grid.queries - first), from,
                       std::min(grid.panels, from + grid.panels_per_part), part});
  };
  const bool apart = grid.parts == 1 && grid.blocks >= 16 * parallel.workers;
  return apart ? for_each_own_task(parallel, grid.tasks(), run) : for_each_task(parallel, grid.tasks(), run);
}

// The caller's threads, or one worker where there is too little work to share.
inline Parallel workers_for(const Parallel& parallel, double queries, double rows, double width) {
  Parallel chosen = parallel;
  if (queries * rows * (width + 8) < 2e5) chosen.workers = 1;
  return chosen;
}

}  // namespace vecbank::cpu
