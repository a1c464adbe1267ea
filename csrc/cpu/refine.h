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
  static constexpr int64_t kBlock = 512;

  bool reserve(const Rows& bank, int64_t query_width) {
    bank_ = bank;
    stride_ = round_up_to(query_width, 8);
    block_ = std::min(kBlock, stretch_of(query_width));
    return bank_reader_.reserve(bank, 1) && wide_.reserve((kQueries + 1) * stride_) &&
           scores_.reserve(kQueries * kBlock) && indices_.reserve(kBlock) && row_norms_.reserve(kBlock);
  }

  // From here on no further key is computed once the flag is raised.
  void set_stop(Stop stop) { stop_ = stop; }

  // What a score needs besides the product: floored norms for cosine, which are computed where there are none, and
  // biases.
  void set_metric(Metric metric, const double* norms) {
    record_ = record(metric);
    norms_ = norms;
    bias_ = nullptr;
  }
  void set_frame(const PackHeader& h, const double* bias) {
    record_ = record(static_cast<Metric>(h.metric));
    norms_ = record_.unit_rows && h.panels != PanelKind::int8 ? pack_norms(&h) : nullptr;
    bias_ = bias;
  }

  void load(int slot, const void* row, DType dtype) {
    double* q = wide_.get() + slot * stride_;
    kernels().widen(row, dtype, bank_.width, q);
    if (record_.unit_rows) query_norm_[slot] = self_norm(q);
  }

  // f(slot, key, index) for every row of [first, first + count) or of index[0..count), ascending.
  template <class F>
  void for_each_key(int slots, const int64_t* index, int64_t first, int64_t count, F&& f) {
    in_stretches(stop_, 0, count, block_, [&](int64_t at, int64_t to) {
      const int64_t n = to - at;
      score(slots, index != nullptr ? index + at : nullptr, first + at, n);
      if (computes_norms())
        for (int64_t i = 0; i < n; ++i) row_norms_[i] = bank_norm(index != nullptr ? index[at + i] : first + at + i);
      for (int s = 0; s < slots; ++s) {
        double* keys = scores_.get() + s * n;
        const auto row = [&](int64_t i) { return index != nullptr ? index[at + i] : first + at + i; };
        become_keys(keys, n, query_norm_[s], row);
        for (int64_t i = 0; i < n; ++i) f(s, keys[i], row(i));
      }
    });
  }

  // Does every bank row whose coordinates are at most `size` have the same distance from the row in slot 0, to the last
  // bit? Rounding is monotone, so their sums lie between those of the coordinates nearest to it and farthest from it.
  bool cannot_tell(double size) {
    if (!record_.shares_frame || size == 0.0) return true;  // zero rows
    double *x = wide_.get(), *apart = wide_.get() + stride_;
    for (int64_t k = 0; k < bank_.width; ++k) apart[k] = std::fmax(std::fabs(x[k]) - size, 0.0);
    for (int64_t k = bank_.width; k < stride_; ++k) apart[k] = 0.0;
    const double least = self_squares(apart, bank_.width);
    for (int64_t k = 0; k < bank_.width; ++k) apart[k] = std::fabs(x[k]) + size;
    return self_squares(apart, bank_.width) == least;
  }

  // Floored norms of all bank rows, for a caller without a pack.
  void bank_norms(double* norms) {
    in_stretches(stop_, 0, bank_.count, block_, [&](int64_t from, int64_t to) {
      for (int64_t j = from; j < to; ++j) norms[j] = bank_norm(j);
    });
  }

  // Room for one block of indices, for callers that gather them.
  int64_t* indices() const { return indices_.get(); }

 private:
  bool computes_norms() const { return record_.unit_rows && norms_ == nullptr; }
  double bank_norm(int64_t row) {
    double* wide = wide_.get() + kQueries * stride_;
    kernels().widen(bank_reader_.row(row), bank_.dtype, bank_.width, wide);
    return self_norm(wide);
  }
  double self_norm(const double* wide) const { return floored(std::sqrt(self_squares(wide, bank_.width))); }

  // Raw scores become keys. A loop of its own: what it asks of the metric is asked once.
  template <class RowOf>
  void become_keys(double* scores, int64_t count, double query_norm, RowOf&& row) const {
    const MetricRecord metric = record_;
    const double *norms = norms_, *bias = bias_, *own = computes_norms() ? row_norms_.get() : nullptr;
    for (int64_t i = 0; i < count; ++i)
      scores[i] = key_of(metric, scores[i], query_norm,
                         norms != nullptr ? norms[row(i)]
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
    a.term = record_.term;
    if (bank_.col_stride == 1) {
      a.index = index;
      a.first = first;
      a.count = count;
      a.out = scores_.get();
      kernels().score(a);
      return;
    }
    a.bank.col_stride = 1;
    a.count = 1;
    double one[kQueries];
    a.out = one;
    for (int64_t i = 0; i < count; ++i) {
      a.bank.data = bank_reader_.row(index != nullptr ? index[i] : first + i);
      kernels().score(a);
      for (int s = 0; s < slots; ++s) scores_[s * count + i] = one[s];
    }
  }

  Rows bank_;
  RowReader bank_reader_;
  MetricRecord record_ = record(Metric::dot);
  const double *norms_ = nullptr, *bias_ = nullptr;
  int64_t stride_ = 0, block_ = kBlock;
  Stop stop_;
  double query_norm_[kQueries] = {};
  Buffer<double> wide_, scores_, row_norms_;
  Buffer<int64_t> indices_;
};

}  // namespace vecbank::cpu
