// Exact float64 scores of chosen bank rows, turned into keys that sort best first. The last word on every answer.
#pragma once

#include <cmath>

#include "../core/pack.h"
#include "../core/topk_list.h"
#include "isa.h"
#include "kernels.h"
#include "reader.h"

namespace vecbank {

class Refiner {
 public:
  static constexpr int kQueries = 4;  // rows refined together share the bank's conversion
  static constexpr int64_t kBlock = 512;

  bool reserve(const Rows& bank, int64_t query_width) {
    bank_ = bank;
    stride_ = round_up_to(query_width, 8);
    return bank_reader_.reserve(bank, 1) && wide_.reserve(kQueries * stride_) && scores_.reserve(kQueries * kBlock) &&
           indices_.reserve(kBlock);
  }

  // The pack holds what a score needs beside the product: floored norms for cosine, biases for biased dot products.
  void set_metric(Metric metric, const double* norms) {
    metric_ = metric;
    norms_ = norms;
    bias_ = nullptr;
  }
  void set_frame(const PackHeader& h) {
    metric_ = static_cast<Metric>(h.metric);
    norms_ = metric_ == Metric::cosine ? pack_norms(&h) : nullptr;
    bias_ = h.biased ? pack_norms(&h) : nullptr;
  }

  void load(int slot, const void* row, DType dtype) {
    double* q = wide_.get() + slot * stride_;
    kernels().widen(row, dtype, bank_.width, q);
    if (metric_ == Metric::cosine) query_norm_[slot] = self_norm(q);
  }

  // f(slot, key, index) for every row of [first, first + count) or of index[0..count), ascending.
  template <class F>
  void for_each_key(int slots, const int64_t* index, int64_t first, int64_t count, F&& f) {
    for (int64_t at = 0; at < count; at += kBlock) {
      const int64_t n = std::min(kBlock, count - at);
      score(slots, index != nullptr ? index + at : nullptr, first + at, n);
      for (int s = 0; s < slots; ++s)
        for (int64_t i = 0; i < n; ++i) {
          const int64_t j = index != nullptr ? index[at + i] : first + at + i;
          f(s, key(s, scores_[s * n + i], j), j);
        }
    }
  }

  // Floored norms of all bank rows, for a caller without a pack.
  void bank_norms(double* norms) {
    for (int64_t j = 0; j < bank_.count; ++j) {
      kernels().widen(bank_reader_.row(j), bank_.dtype, bank_.width, wide_.get());
      norms[j] = self_norm(wide_.get());
    }
  }

  // Room for one block of indices, for callers that gather them.
  int64_t* indices() const { return indices_.get(); }

  static double self_norm_of(const double* wide, int64_t width) {
    Rows self{wide, DType::f64, 1, width, 0, 1};
    double squares = 0.0;
    ScoreArgs a;
    a.queries = wide;
    a.bank = self;
    a.count = 1;
    a.out = &squares;
    kernels().score(a);
    const double norm = std::sqrt(squares);
    return norm < kNormFloor ? kNormFloor : norm;
  }

 private:
  double self_norm(const double* wide) const { return self_norm_of(wide, bank_.width); }

  double key(int slot, double raw, int64_t j) {
    if (is_distance(metric_)) return -raw;
    if (metric_ == Metric::cosine) return raw / (query_norm_[slot] * norms_[j]);
    return bias_ != nullptr ? raw + bias_[j] : raw;
  }

  void score(int slots, const int64_t* index, int64_t first, int64_t count) {
    ScoreArgs a;
    a.queries = wide_.get();
    a.query_stride = stride_;
    a.query_count = slots;
    a.bank = bank_;
    a.distance = is_distance(metric_);
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
  Metric metric_ = Metric::dot;
  const double *norms_ = nullptr, *bias_ = nullptr;
  int64_t stride_ = 0;
  double query_norm_[kQueries] = {};
  Buffer<double> wide_, scores_;
  Buffer<int64_t> indices_;
};

// What a key is worth to the caller: distances come back positive, l2 as a root.
inline double value_of(Metric metric, double key) {
  if (!is_distance(metric)) return key;
  return metric == Metric::l2 ? std::sqrt(-key) : -key;
}

}  // namespace vecbank
