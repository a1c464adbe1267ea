// A pass over documents in float32: for some sets of query tokens, the best score of every token in every document, and
// how far the sum of a document's can be from its exact score.
//
// The bound, with u = 2^-24, d the width, q and t rows of both sides. A float32 score is a sum of d products, fused or
// not, of coordinates that are exact (dot), so |S - T| <= screen_unit(d) |q| |t| + (d + 16) 2^-148 for what underflows
// (core/bounds.h; the refinement's rounding is added four times over). By cosine q is a row over its norm, rounded once
// more, and a score is multiplied by one over |t|, whose square is a sum in float32 or better: (d / 2 + 32) u more, in
// units of 1, and what underflows counts 1 / kNormFloor times. A maximum is no further from the exact maximum than a
// score is from the exact score, so the scores of a document, whose tokens are each at most N long, sum to within
//     E = (sum over the query's tokens of |q|) N r + tokens * slack + the rounding of the sum in float64.
// N is bounded by the root of the sum, over the coordinates, of the largest square of any token, which takes little
// time (it is some times N, where bounds are thousands of times smaller than scores); 1 + 2^-8 times as long for the
// rounding of squares, and 2^-60 longer for squares that underflow.
#pragma once

#include <cmath>

#include "../core/bounds.h"
#include "../core/maxsim.h"
#include "isa.h"
#include "kernels.h"
#include "reader.h"

namespace vecbank::cpu {

// Whether float32 serves at all: else everything is scored exactly.
inline bool has_sweep(const MaxSimProblem& p) {
  return record(p.metric).term == Term::product && p.queries.rows.dtype != DType::f64 &&
         p.documents.rows.dtype != DType::f64 && p.documents.rows.width > 0 &&
         p.documents.rows.width <= kMaxScreenWidth;
}
constexpr int64_t kMostTokens = int64_t{1} << 24;  // of a document, so that a float holds the number of a token
constexpr double kMostTokenNorm = 1e15;            // products of such norms stay far from the end of float32

// The tokens of queries [first, last) as panels, shared by the workers.
class TokenPanels {
 public:
  [[nodiscard]] Status build(const MaxSimProblem& p, int64_t first, int64_t last, const Parallel& parallel) {
    const RowSets& queries = p.queries;
    const int64_t d = queries.rows.width, begin = queries.offsets[first];
    problem_ = &p;
    first_ = first;
    tokens_ = queries.offsets[last] - begin;
    if (!panels_.reserve(panels() * kPanel * d) || !norms_.reserve(panels() * kPanel)) return Status::out_of_memory;
    PerWorker<Room> rooms(parallel.workers);
    const auto prepare = [&](Room& r) { return r.reader.reserve(queries.rows, kPanel) && r.lines.reserve(kPanel * d); };
    if (!rooms.each(prepare)) return Status::out_of_memory;
    const bool unit = record(p.metric).unit_rows;
    const Status built = for_each_task(parallel, panels(), [&](int worker, int64_t panel) {
      Room& room = rooms[worker];
      const int64_t at = panel * kPanel;
      const int n = static_cast<int>(std::min<int64_t>(kPanel, tokens_ - at));
      const void* rows[kPanel];
      Affine maps[kPanel];
      for (int i = 0; i < n; ++i) {
        rows[i] = room.reader.row(begin + at + i, i);
        const double norm = std::sqrt(self_squares(rows[i], queries.rows.dtype, d));
        const bool odd = !(norm <= kMostTokenNorm);
        norms_[at + i] = odd ? HUGE_VAL : unit ? 1.0 : norm;
        maps[i] = {nullptr, 1.0, odd ? 0.0 : unit ? 1.0 / floored(norm) : 1.0};
      }
      kernels().interleave_f32(rows, n, kPanel, queries.rows.dtype, d, maps, room.lines.get());
      for (int64_t i = 0; i < d * kPanel; ++i)  // 0 times infinity is NaN
        panels_[at * d + i] = std::isfinite(room.lines[i]) ? room.lines[i] : 0.0f;
    });
    if (!sums_.reserve(last - first)) return Status::out_of_memory;
    for (int64_t q = first; q < last && built == Status::ok; ++q) {
      sums_[q - first] = 0.0;
      for (int64_t t = this->begin(q); t < this->begin(q + 1); ++t) sums_[q - first] += norms_[t];
    }
    return built;
  }
  int64_t panels() const { return ceil_div(tokens_, kPanel); }
  const float* data() const { return panels_.get(); }
  // A query's tokens by number within the panels, and the sum of their norms; infinite: float32 does not serve it.
  int64_t begin(int64_t query) const { return problem_->queries.offsets[query] - problem_->queries.offsets[first_]; }
  bool odd(int64_t query) const { return !std::isfinite(norm(query)); }
  double norm(int64_t query) const { return sums_[query - first_]; }

 private:
  struct Room {
    RowReader reader;
    Buffer<float> lines;
  };
  const MaxSimProblem* problem_ = nullptr;
  int64_t first_ = 0, tokens_ = 0;
  Buffer<float> panels_;
  Buffer<double> norms_, sums_;
};

// One worker's pass over some documents.
class DocumentSweep {
 public:
  // About so many documents at a time, so that what is found of them stays in the caches.
  static int64_t most_documents(int64_t panels) {
    return std::clamp<int64_t>((1 << 16) / (std::max<int64_t>(panels, 1) * kPanel), 1, 1024);
  }

  bool reserve(const MaxSimProblem& p, int64_t panels, bool places) {
    problem_ = &p;
    lanes_ = panels * kPanel;
    const Rows& rows = p.documents.rows;
    const int64_t most = most_documents(panels), d = rows.width;
    // Rows whose stride is a large power of two would push each other out of the cache.
    in_place_ = rows.dtype == DType::f32 && rows.col_stride == 1 && (rows.row_stride < 1024 || rows.row_stride % 64);
    chunk_ = std::max<int64_t>(1, (192 << 10) / (4 * d * kAnyTileRows)) * kAnyTileRows;
    stride_ = round_up_to(d, 16) + 16;
    const int64_t at_once = chunk_ + kAnyTileRows + 16;
    return reader_.reserve(rows, 1) && (in_place_ || copies_.reserve(at_once * stride_)) &&
           best_.reserve(most * lanes_) && (!places || places_.reserve(most * lanes_)) &&
           running_.reserve(2 * lanes_) && odd_.reserve(most) && norms_.reserve(most) && ends_.reserve(most) &&
           here_.reserve(most) && place_.reserve(most) && scales_.reserve(at_once) && lengths_.reserve(at_once) &&
           squares_.reserve(at_once) && most_.reserve(d);
  }

  // Documents [first, last), at most most_documents() of them. `norms`: bounds are asked for.
  void run(const TokenPanels& panels, int64_t first, int64_t last, bool places, bool norms, Stop stop) {
    run_panels(panels, 0, panels.panels(), first, last, places, norms, stop);
  }
  // The same of one document, for the panels that hold tokens [begin, end) alone.
  void run_one(const TokenPanels& panels, int64_t begin, int64_t end, int64_t document, Stop stop) {
    run_panels(panels, begin / kPanel, ceil_div(end, kPanel), document, document + 1, false, true, stop);
  }
  // Of document first + i, which is not empty. Odd: float32 may have lost a score.
  bool odd(int64_t i) const { return odd_[place_[i]]; }
  // By number of the token within the panels.
  const float* best(int64_t i) const { return best_.get() + place_[i] * lanes_ - first_panel_ * kPanel; }
  const float* places(int64_t i) const { return places_.get() + place_[i] * lanes_ - first_panel_ * kPanel; }
  // At least the norms of its tokens; 1 by cosine. It may be infinite, or NaN.
  double norm(int64_t i) const { return norms_[place_[i]]; }

 private:
  void run_panels(const TokenPanels& panels, int64_t panel, int64_t last_panel, int64_t first, int64_t last,
                  bool places, bool norms, Stop stop) {
    first_panel_ = panel;
    lanes_ = (last_panel - panel) * kPanel;
    const RowSets& documents = problem_->documents;
    count_ = 0;  // of those that are not empty
    for (int64_t d = first; d < last; ++d) {
      place_[d - first] = count_;
      if (documents.size(d) == 0) continue;
      odd_[count_] = documents.size(d) > kMostTokens;
      norms_[count_] = 0.0;
      ends_[count_++] = documents.offsets[d + 1];
    }
    std::fill_n(running_.get(), lanes_, -HUGE_VALF);
    std::fill_n(running_.get() + lanes_, lanes_, 0.0f);
    int64_t document = 0, begin = documents.offsets[first];
    for (int64_t at = begin, end = documents.offsets[last]; at < end && !stop.requested();) {
      const int64_t rows = end - at <= chunk_ + kAnyTileRows ? end - at : chunk_;
      sweep(panels, at, rows, document, begin, places, norms, end);
      for (; document < count_ && ends_[document] <= at + rows; ++document) begin = ends_[document];
      at += rows;
    }
  }

  // Rows [at, at + rows), of which the first belongs to document number `document`, which begins with row `begin`. The
  // pass ends with row `end`.
  void sweep(const TokenPanels& panels, int64_t at, int64_t rows, int64_t document, int64_t begin, bool places,
             bool norms, int64_t end) {
    const Rows& all = problem_->documents.rows;
    BestArgs<float> a;
    a.count = rows;
    a.width = all.width;
    if (in_place_) {
      a.rows = static_cast<const float*>(all.row(at));
      a.row_stride = all.row_stride;
      if (at + rows < end) a.next = all.row(at + rows);
    } else {
      a.rows = copies_.get();
      a.row_stride = stride_;
      for (int64_t r = 0; r < rows; ++r)
        kernels().floats(reader_.row(at + r), all.dtype, all.width, copies_.get() + r * stride_);
    }
    int64_t documents = 0;
    for (int64_t d = document; d < count_ && (d == document || ends_[d - 1] < at + rows); ++d)
      here_[documents++] = ends_[d] - at;
    const bool unit = record(problem_->metric).unit_rows;
    if (unit) {
      take_squares(a, at);
      kernels().norm_scales(squares_.get(), rows, scales_.get());
      a.scales = scales_.get();
      for (int64_t d = document; d < document + documents; ++d) norms_[d] = 1.0;
    }
    a.panels = panels.data() + first_panel_ * kPanel * all.width;
    a.panel_count = lanes_ / kPanel;
    a.ends = here_.get();
    a.documents = documents;
    a.before = at - begin;
    a.running = running_.get();
    a.stride = lanes_;
    a.best = best_.get() + document * lanes_;
    if (places) a.places = places_.get() + document * lanes_;
    a.odd = odd_.get() + document;
    kernels().maxsim.best(a);
    // The rows are in the caches now.
    for (int64_t d = 0, r = 0; d < documents && norms && !unit; r = here_[d++])
      raise_norm(a.rows + r * a.row_stride, a.row_stride, std::min(rows, here_[d]) - r, document + d,
                 d > 0 || at == begin);
  }

  // In float32, and in float64 where they are too large or too small for it.
  void take_squares(const BestArgs<float>& a, int64_t at) {
    kernels().maxsim.squares(a.rows, a.row_stride, a.count, a.width, lengths_.get());
    for (int64_t r = 0; r < a.count; ++r) {
      squares_[r] = static_cast<double>(lengths_[r]);
      if (!(squares_[r] > 1e-26 && squares_[r] < 1e34))
        squares_[r] = self_squares(reader_.row(at + r), problem_->documents.rows.dtype, a.width);
    }
    for (int64_t r = a.count; r < round_up_to(a.count, 16); ++r) squares_[r] = 1.0;
  }
  // Of a document's rows, the first or further ones.
  void raise_norm(const float* rows, int64_t row_stride, int64_t count, int64_t document, bool first) {
    const int64_t d = problem_->documents.rows.width;
    if (first) std::fill_n(most_.get(), d, 0.0f);
    kernels().maxsim.raise_squares(rows, row_stride, count, d, most_.get());
    double squares = 0.0;
    for (int64_t k = 0; k < d; ++k) squares += static_cast<double>(most_[k]);
    norms_[document] = std::sqrt(squares) * (1.0 + 0x1p-8) + 0x1p-60;
  }

  const MaxSimProblem* problem_ = nullptr;
  RowReader reader_;
  int64_t first_panel_ = 0, lanes_ = 0, chunk_ = 0, stride_ = 0, count_ = 0;
  bool in_place_ = false;
  Buffer<float> best_, places_, running_, copies_, scales_, lengths_, most_;
  Buffer<double> squares_, norms_;
  Buffer<bool> odd_;
  Buffer<int64_t> ends_, here_, place_;
};

// How far the sum of a document's best scores can be from its exact score; `query_norm`: the sum of the tokens' norms,
// `tokens`: how many there are, `size`: the sum of the scores' magnitudes.
inline double sweep_error(const MaxSimProblem& p, double query_norm, int64_t tokens, double norm, double size) {
  const int64_t d = p.documents.rows.width;
  const bool unit = record(p.metric).unit_rows;
  const double relative =
      screen_unit(d) + 4.0 * refine_unit(d) + (unit ? (0.5 * static_cast<double>(d) + 32.0) * 0x1p-24 : 0.0);
  const double slack = static_cast<double>(d + 16) * 0x1p-148 * (unit ? 1.0 / kNormFloor : 1.0);
  const double count = static_cast<double>(tokens + 16);
  return (query_norm * norm * relative + count * slack + count * 0x1p-52 * size) * (1.0 + 0x1p-20);
}

}  // namespace vecbank::cpu
