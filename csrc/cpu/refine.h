// Exact float64 scores of chosen bank rows, turned into keys that sort best first. The last word on every answer.
#pragma once

#include <cmath>

#include "../core/exact_score.h"
#include "../core/pack.h"
#include "isa.h"
#include "kernels.h"
#include "reader.h"
#include "topk_list.h"

namespace vecbank::cpu {

class Refiner {
 public:
  static constexpr int kQueries = 4;  // rows refined together share the bank's conversion
  static constexpr int kMostQueries = 64;
  static constexpr int64_t kWide = 4096;  // coordinates of a row that is read a stretch at a time
  static constexpr int64_t kBlock = 512;

  // `in_place`: the rows to load have unit stride, so that many can be loaded without a copy.
  bool reserve(const Rows& bank, int64_t query_width, bool in_place = false) {
    bank_ = bank;
    wide_rows_ = query_width > kWide;
    slots_ = wide_rows_ && in_place ? kMostQueries : wide_rows_ || query_width <= kNarrow ? kSome : kQueries;
    stride_ = wide_rows_ ? kStretch + 40 : round_up_to(query_width, 8);
    block_ = std::min(kBlock, std::max(kTogether, stretch_of(query_width)));
    return bank_reader_.reserve(bank, 1) && wide_.reserve(slots_ * stride_) && scores_.reserve(slots_ * kBlock) &&
           indices_.reserve(kBlock) && row_norms_.reserve(kBlock) &&
           (!wide_rows_ || (lanes_.reserve(slots_ * kTogether * kLanes) && some_.reserve(slots_ * kTogether)));
  }

  int slots() const { return slots_; }  // at most kMostQueries

  // From here on no further key is computed once the flag is raised.
  void set_stop(Stop stop) { stop_ = stop; }
  bool stopped() const { return stop_.requested(); }

  // What a score needs besides the raw score: the factors of scaled rows (the norms of cosine), which are computed
  // where there are none, and biases. The norms are those of the rows from `first_norm` on.
  void set_metric(Metric metric, const double* norms, int64_t first_norm = 0, const double* bias = nullptr) {
    record_ = record(metric);
    norms_ = norms;
    first_norm_ = first_norm;
    bias_ = bias;
  }
  void set_frame(const PackHeader& h, const double* bias) {
    record_ = record(static_cast<Metric>(h.metric));
    norms_ = record_.unit_rows ? pack_norms(&h) : nullptr;  // the factors of other metrics are in no pack
    first_norm_ = 0;
    bias_ = bias;
  }

  // The row, which has unit stride, must stay where it is while the slot is in use.
  void load(int slot, const void* row, DType dtype) {
    place(slot, row, dtype);
    if (record_.scaled_rows()) query_norm_[slot] = row_factor(record_, self_squares(row, dtype, bank_.width));
  }

  // Rows [first, first + count) into as many slots.
  void load_rows(const RowReader& rows, const Rows& queries, int64_t first, int count) {
    if (record_.scaled_rows()) {  // before the slots are filled, of which this may use one
      self_squares(queries, rows, nullptr, first, count, query_norm_);
      for (int s = 0; s < count; ++s) query_norm_[s] = row_factor(record_, query_norm_[s]);
    }
    for (int s = 0; s < count; ++s) place(s, rows.row(first + s, s), queries.dtype);
  }

  // f(slot, key, index) for every row of [first, first + count) or of index[0..count), ascending.
  template <class F>
  void for_each_key(int slots, const int64_t* index, int64_t first, int64_t count, F&& f) {
    for_each_run(slots, index, first, count, [&](int s, const double* keys, int64_t n, auto&& row) {
      for (int64_t i = 0; i < n; ++i) f(s, keys[i], row(i));
    });
  }

  // The same in runs: f(slot, keys, count, row), where row(i) is the index of key i.
  template <class F>
  void for_each_run(int slots, const int64_t* index, int64_t first, int64_t count, F&& f) {
    in_stretches(stop_, 0, count, block_, [&](int64_t at, int64_t to) {
      const int64_t n = to - at;
      score(slots, index != nullptr ? index + at : nullptr, first + at, n);
      if (computes_norms()) compute_norms(index != nullptr ? index + at : nullptr, first + at, n, row_norms_.get());
      const int64_t stride = round_up_to(n, 8);
      const bool scaled = record_.scaled_rows(), plain = !scaled && (record_.smaller_is_better || bias_ == nullptr);
      if (record_.smaller_is_better && !scaled)  // nothing is asked of a row
        kernels().finish({.scores = scores_.get(), .count = slots * stride, .negate = true});
      for (int s = 0; s < slots; ++s) {
        double* keys = scores_.get() + s * stride;
        const auto row = [&](int64_t i) { return index != nullptr ? index[at + i] : first + at + i; };
        if (!plain) become_keys(keys, n, query_norm_[s], index != nullptr, row);
        f(s, keys, n, row);
      }
    });
  }

  // Does every bank row whose coordinates are at most `size` have the same distance from the row in slot 0, to the last
  // bit? Rounding is monotone, so their sums lie between those of the coordinates nearest to it and farthest from it.
  bool cannot_tell(double size) {
    if (!record_.shares_frame || size == 0.0) return true;  // zero rows
    const int64_t stride = round_up_to(bank_.width, 8);
    if (!apart_.reserve(2 * stride)) return false;  // each must be scored
    double *x = apart_.get(), *apart = x + stride;
    kernels().widen(loaded_[0].data, loaded_[0].dtype, bank_.width, x);
    for (int64_t k = 0; k < bank_.width; ++k) apart[k] = std::fmax(std::fabs(x[k]) - size, 0.0);
    for (int64_t k = bank_.width; k < stride; ++k) apart[k] = 0.0;
    const double least = self_squares(apart, DType::f64, bank_.width);
    for (int64_t k = 0; k < bank_.width; ++k) apart[k] = std::fabs(x[k]) + size;
    return self_squares(apart, DType::f64, bank_.width) == least;
  }

  // The factors of bank rows [first, first + count), for a caller without a pack.
  void bank_norms(int64_t first, int64_t count, double* norms) {
    in_stretches(stop_, 0, count, block_,
                 [&](int64_t from, int64_t to) { compute_norms(nullptr, first + from, to - from, norms + from); });
  }

  // Room for one block of indices, for callers that gather them.
  int64_t* indices() const { return indices_.get(); }

 private:
  void place(int slot, const void* row, DType dtype) {
    loaded_[slot] = {row, dtype, 1, bank_.width, bank_.width, 1};
    if (!wide_rows_) kernels().widen(row, dtype, bank_.width, wide_.get() + slot * stride_);
  }

  static constexpr int64_t kStretch = 512, kTogether = 256;
  static constexpr int kSome = 16;
  static constexpr int64_t kNarrow = 256;  // so many queries of this width stay in L1

  bool computes_norms() const { return record_.scaled_rows() && norms_ == nullptr; }
  void compute_norms(const int64_t* index, int64_t first, int64_t count, double* out) {
    self_squares(bank_, bank_reader_, index, first, count, out);
    for (int64_t i = 0; i < count; ++i) out[i] = row_factor(record_, out[i]);
  }

  // Raw products become keys that depend on the row. `chosen`: the rows are not one after the other.
  template <class RowOf>
  void become_keys(double* scores, int64_t count, double query_norm, bool chosen, RowOf&& row) const {
    const MetricRecord metric = record_;
    const double *norms = norms_, *bias = bias_, *own = computes_norms() ? row_norms_.get() : nullptr;
    if (!chosen) {
      FinishArgs a{.scores = scores, .count = count, .query_norm = query_norm, .negate = metric.smaller_is_better};
      if (metric.scaled_rows())
        a.norms = norms != nullptr ? norms + (row(0) - first_norm_) : own;
      else
        a.bias = bias + row(0);
      return kernels().finish(a);
    }
    for (int64_t i = 0; i < count; ++i)
      scores[i] = key_of(metric, scores[i], query_norm,
                         norms != nullptr ? norms[row(i) - first_norm_]
                         : own != nullptr ? own[i]
                                          : 1.0,
                         bias != nullptr ? bias + row(i) : nullptr);
  }

  void score(int slots, const int64_t* index, int64_t first, int64_t count) {
    ScoreArgs a;
    a.queries = wide_.get();
    a.query_stride = stride_;
    a.query_count = slots;
    a.bank = bank_;
    a.narrow = loaded_[0].dtype != DType::f64;
    a.term = record_.term;
    a.index = index;
    a.first = first;
    a.count = count;
    a.out = scores_.get();
    a.out_stride = round_up_to(count, 8);
    if (bank_.col_stride == 1) return score_rows(a);
    a.bank.col_stride = 1;
    a.index = nullptr;
    a.first = 0;
    a.count = 1;
    double one[kMostQueries];
    a.out = one;
    a.out_stride = 1;
    for (int64_t i = 0; i < count; ++i) {
      a.bank.data = bank_reader_.row(index != nullptr ? index[i] : first + i);
      score_rows(a);
      for (int s = 0; s < slots; ++s) scores_[s * round_up_to(count, 8) + i] = one[s];
    }
  }

  // Of wide rows, kTogether bank rows at a time, and a stretch of their coordinates after the other: what is read of
  // the queries then stays in the caches.
  void score_rows(const ScoreArgs& whole) {
    if (!wide_rows_) return kernels().score(whole);
    for (int64_t i = 0; i < whole.count; i += kTogether) {
      ScoreArgs a = whole;
      a.count = std::min(kTogether, whole.count - i);
      a.first += i;
      if (a.index != nullptr) a.index += i;
      a.lanes = lanes_.get();
      a.out = some_.get();
      a.out_stride = a.count;
      for (int64_t from = 0; from < bank_.width; from += kStretch) {
        a.bank.width = std::min(kStretch, bank_.width - from);
        a.begins = from == 0;
        a.ends = from + kStretch >= bank_.width;
        a.bank.data =
            static_cast<const char*>(whole.bank.data) + from * static_cast<int64_t>(size_of(whole.bank.dtype));
        for (int s = 0; s < a.query_count; ++s) {
          const int64_t size = static_cast<int64_t>(size_of(loaded_[s].dtype));
          const char* at = static_cast<const char*>(loaded_[s].data) + from * size;
          kernels().widen(at, loaded_[s].dtype, a.bank.width, wide_.get() + s * stride_);
          // The next stretch arrives meanwhile: a page is too short for the processor to foresee it.
          const int64_t ahead = std::min(kStretch, bank_.width - from - a.bank.width) * size;
          for (int64_t byte = 0; byte < ahead; byte += 64) __builtin_prefetch(at + a.bank.width * size + byte, 0, 2);
        }
        kernels().score(a);
      }
      for (int s = 0; s < a.query_count; ++s)
        std::copy_n(some_.get() + s * a.count, a.count, whole.out + s * whole.out_stride + i);
    }
  }

  Rows bank_;
  RowReader bank_reader_;
  MetricRecord record_ = record(Metric::dot);
  const double *norms_ = nullptr, *bias_ = nullptr;
  int64_t first_norm_ = 0;
  int64_t stride_ = 0, block_ = kBlock;
  Stop stop_;
  double query_norm_[kMostQueries] = {};
  Rows loaded_[kMostQueries];
  bool wide_rows_ = false;  // too wide to keep whole queries in float64
  int slots_ = kQueries;
  Buffer<double> wide_, scores_, row_norms_, lanes_, some_, apart_;
  Buffer<int64_t> indices_;
};

}  // namespace vecbank::cpu
