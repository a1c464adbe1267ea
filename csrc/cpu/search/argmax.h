// The running argmax of a block, for k = 1 and few columns, where nearly every tile would push survivors. tiles.h
// describes its layout.
#pragma once

#include <algorithm>
#include <cmath>

#include "../isa.h"
#include "../kernels.h"
#include "screens/screen.h"

namespace vecbank::cpu {

class RunningArgmax {
 public:
  static constexpr int64_t kMostPanels = int64_t{1} << 24;  // a panel's number is a float

  bool reserve(int64_t rows) { return running_.reserve((rows + kPanel) * kArgmaxFloats) && rows_.reserve(rows); }

  // Serves k = 1 without mask and fallback rows, unless the last block had too many ties.
  bool serves(const SearchTask& task, const Screen& screen) const {
    const SearchProblem& p = task.job->problem;
    return p.k == 1 && screen.argmax_panels() > 0 && screen.keeps_columns() && !task.job->allowed.any_set() &&
           task.job->header.fallbacks == 0 && task.to < kMostPanels && !ties_;
  }
  void clear(int64_t rows, int64_t first_panel) {
    for (int64_t r = 0; r < rows + kPanel; ++r) {
      std::fill_n(lanes(r), 2 * kPanel, -HUGE_VALF);
      std::fill_n(lanes(r) + 2 * kPanel, kPanel, static_cast<float>(first_panel));
    }
  }
  float* running() { return running_.get(); }
  void reduce(int64_t rows) { kernels().reduce_argmax(running_.get(), rows, rows_.get()); }

  const RowArgmax& row(int64_t r) const { return rows_[r]; }
  float largest(int64_t r, int lane) const { return lanes(r)[lane]; }
  int64_t panel(int64_t r, int lane) const { return static_cast<int64_t>(lanes(r)[2 * kPanel + lane]); }
  // Whether a lane's second largest, whose column is not known, reaches the threshold.
  bool second_reaches(int64_t r, float threshold) const {
    const float* second = lanes(r) + kPanel;
    return *std::max_element(second, second + kPanel) >= threshold;
  }
  // The lanes whose largest reaches the threshold, a bit each.
  uint32_t reaching(int64_t r, float threshold) const {
    uint32_t bits = 0;
    for (uint32_t c = 0; c < kPanel; ++c) bits |= lanes(r)[c] >= threshold ? 1u << c : 0u;
    return bits;
  }
  // `unclear`: the rows of the block that had to be scanned again. Where these are many, because of duplicates for
  // example, the next block does without a running argmax.
  void note(int64_t unclear, int64_t rows) { ties_ = unclear > rows / 4; }

 private:
  float* lanes(int64_t r) const { return running_.get() + r * kArgmaxFloats; }

  Buffer<float> running_;
  Buffer<RowArgmax> rows_;
  bool ties_ = false;
};

}  // namespace vecbank::cpu
