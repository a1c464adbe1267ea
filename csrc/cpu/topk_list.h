// Selection of the best rows. The order is always larger key first, then lower index; the key of a distance is its
// negative.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../core/exact_score.h"
#include "isa.h"
#include "kernels.h"
#include "parallel.h"

namespace vecbank::cpu {

// Sorts the best k of many entries: they are dealt into buckets of equal width by their keys, and only the buckets that
// hold the best k are sorted. Keys that crowd into one bucket cost what sorting costs.
class Selector {
 public:
  static constexpr int64_t kFew = 32;  // so many are sorted at once

  // Memory for lists of up to `count` entries; those of more than kMost are sorted where they are.
  bool reserve(int64_t count) {
    return count <= kFew || count > kMost || (dealt_.reserve(count) && starts_.reserve(kMostBuckets + 1));
  }

  // Sorts the best k of `count` entries to the front; returns how many these are.
  int64_t best(Scored* list, int64_t count, int64_t k) {
    const int64_t kept = std::min(count, k);
    if (count <= kFew || count > kMost || kept < count / 64) return sort_best(list, count, kept);
    double most = list[0].key, least = list[0].key;
    for (int64_t i = 1; i < count; ++i) {
      most = std::max(most, list[i].key);
      least = std::min(least, list[i].key);
    }
    const int64_t buckets = std::min(kMostBuckets, count / 4);
    const double scale = static_cast<double>(buckets - 1) / (most - least);
    if (!std::isfinite(scale) || !std::isfinite(most - least)) return sort_best(list, count, kept);
    // A difference and a product round monotonically, so a better key is never in a later bucket.
    const auto bucket = [&](const Scored& s) { return static_cast<int64_t>((most - s.key) * scale); };
    std::fill_n(starts_.get(), buckets + 1, 0);
    for (int64_t i = 0; i < count; ++i) ++starts_[bucket(list[i]) + 1];
    int64_t used = 0;
    for (; used < buckets && starts_[used] < kept; ++used) starts_[used + 1] += starts_[used];
    // starts_[b] is where bucket b begins, for the buckets before `used`, which hold the best `kept`.
    for (int64_t i = 0; i < count; ++i) {
      const int64_t b = bucket(list[i]);
      if (b < used) dealt_[starts_[b]++] = list[i];
    }
    for (int64_t b = 0, at = 0; b < used; at = starts_[b++])
      std::sort(dealt_.get() + at, dealt_.get() + starts_[b], better);
    std::copy_n(dealt_.get(), kept, list);
    return kept;
  }

 private:
  static constexpr int64_t kMost = 1 << 20, kMostBuckets = 1 << 14;

  static int64_t sort_best(Scored* list, int64_t count, int64_t kept) {
    if (count > kept) std::nth_element(list, list + kept, list + count, better);
    std::sort(list, list + kept, better);
    return kept;
  }

  Buffer<Scored> dealt_;
  Buffer<int64_t> starts_;
};

// A running top-k over refined rows that cannot overflow. Rows must come in ascending index order.
class TopKList {
 public:
  static constexpr int64_t kSorted = 24;  // up to this k the list is kept sorted

  // `rows`: at most so many will come.
  bool reserve(int64_t k, int64_t rows) {
    k_ = k;
    capacity_ = capacity_for(k, rows);
    return list_.reserve(capacity_);
  }
  static int64_t capacity_for(int64_t k, int64_t rows) {
    if (k <= kSorted) return k + 1;
    return std::max(k, std::min(rows, k + std::max<int64_t>(256, std::min<int64_t>(k, 65536)))) + 1;
  }
  void clear() {
    count_ = 0;
    threshold_ = -std::numeric_limits<double>::infinity();
  }
  void push(double key, int64_t index) {
    if (std::isnan(key) || (count_ >= k_ && !(key > threshold_))) return;  // an equal key with a later index never wins
    if (k_ <= kSorted) return insert(key, index);
    list_[count_++] = {key, index};
    if (count_ == capacity_) shrink();
  }
  // The rows row(0), row(1), ...
  template <class RowOf>
  void push_all(const double* keys, int64_t count, RowOf&& row) {
    if (k_ == 1) return push_best(keys, count, row);
    for (int64_t i = 0; i < count; ++i)
      if (count_ < k_ || keys[i] > threshold_) push(keys[i], row(i));
  }
  // Whether a later row with this key would be kept for now.
  bool takes(double key) const { return count_ < k_ || key > threshold_; }
  // The same of any of these keys.
  bool takes_any(const double* keys, int64_t count) const {
    return count_ < k_ || kernels().first_best(keys, count, threshold_) >= 0;
  }
  int64_t finish(Selector& selector) {
    return k_ <= kSorted ? count_ : count_ = selector.best(list_.get(), count_, k_);
  }
  const Scored* data() const { return list_.get(); }
  double threshold() const { return threshold_; }  // what a key must be above; -infinity: every key is taken

 private:
  template <class RowOf>
  void push_best(const double* keys, int64_t count, RowOf&& row) {
    int64_t at = kernels().first_best(keys, count, threshold_);
    if (at < 0) {  // an equal key with a later index never wins; but where there is none yet, -infinity does
      if (count_ > 0) return;
      at = std::find(keys, keys + count, threshold_) - keys;
      if (at == count) return;
    }
    threshold_ = keys[at];
    list_[0] = {keys[at], row(at)};
    count_ = 1;
  }
  void insert(double key, int64_t index) {
    int64_t i = count_;
    for (; i > 0 && list_[i - 1].key < key; --i) list_[i] = list_[i - 1];
    list_[i] = {key, index};
    count_ = std::min(count_ + 1, k_);
    if (count_ == k_) threshold_ = list_[k_ - 1].key;
  }
  void shrink() {
    std::nth_element(list_.get(), list_.get() + (k_ - 1), list_.get() + count_, better);
    count_ = k_;
    threshold_ = list_[k_ - 1].key;
  }
  Buffer<Scored> list_;
  int64_t k_ = 0, capacity_ = 0, count_ = 0;
  double threshold_ = 0.0;
};

struct Candidate {  // a screened row: the refined score lies in [lower, upper] (screen units)
  float upper, lower;
  int32_t column;  // its complement where the bounds are those of the refined score

  bool refined() const { return column < 0; }
  int32_t place() const { return column < 0 ? ~column : column; }
};

// For each query row, the candidates whose upper bound may still reach the k-th best lower bound. A threshold only
// rises.
class CandidateLists {
 public:
  static constexpr float kNone = std::numeric_limits<float>::lowest();  // a threshold that every bound but -inf reaches
  static constexpr int64_t kSorted = 64;  // up to this k the best lower bounds are kept sorted, and the threshold tight

  static int64_t capacity_for(int64_t k) { return k <= kSorted ? k + 120 : 2 * k + 64; }
  static int64_t bytes_per_row(int64_t k) {
    return capacity_for(k) * static_cast<int64_t>(sizeof(Candidate)) + std::min(k, kSorted) * 4 + 16;
  }
  bool reserve(int64_t rows, int64_t k) {
    k_ = k;
    capacity_ = capacity_for(k);
    return thresholds_.reserve(rows + 16) && counts_.reserve(rows) && candidates_.reserve(rows * capacity_) &&
           (k > kSorted || best_.reserve(rows * k));
  }
  void clear(int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) start(r, kNone);
    for (int64_t r = rows; r < rows + 16; ++r) thresholds_[r] = HUGE_VALF;  // padding rows of the last group
  }
  void start(int64_t row, float threshold) {
    thresholds_[row] = std::max(threshold, kNone);
    counts_[row] = 0;
    if (k_ <= kSorted) std::fill_n(best_.get() + row * k_, k_, -HUGE_VALF);
  }
  // From now on the row takes no candidates: it is refined against every bank row.
  void fall_back(int64_t row) {
    thresholds_[row] = HUGE_VALF;
    counts_[row] = kFellBack;
  }
  bool fell_back(int64_t row) const { return counts_[row] == kFellBack; }
  bool empty(int64_t row) const { return counts_[row] == 0; }
  void close(int64_t row) { counts_[row] = kClosed; }  // the row has its answer already
  bool closed(int64_t row) const { return counts_[row] == kClosed; }
  const float* thresholds() const { return thresholds_.get(); }
  float threshold(int64_t row) const { return thresholds_[row]; }

  // False: the list is full, even of candidates that may still win. Its bounds must be tightened, or the row must fall
  // back.
  [[nodiscard]] bool add(int64_t row, float upper, float lower, int32_t column) {
    if (upper < thresholds_[row] || counts_[row] < 0) return true;  // fallback rows, and closed ones
    if (k_ <= kSorted) insert(row, lower);
    candidates_[row * capacity_ + counts_[row]++] = {upper, lower, column};
    return counts_[row] < capacity_ || compact(row);
  }
  // Takes the candidates' lower bounds anew, after some of them have been refined. False: the list is still full.
  [[nodiscard]] bool tighten(int64_t row) {
    if (k_ <= kSorted) {
      std::fill_n(best_.get() + row * k_, k_, -HUGE_VALF);
      for (int64_t i = 0; i < counts_[row]; ++i) insert(row, candidates_[row * capacity_ + i].lower);
    }
    return compact(row);
  }
  Candidate* candidates(int64_t row, int64_t* count) {
    *count = counts_[row];
    return candidates_.get() + row * capacity_;
  }
  // Drops what the final threshold rules out; returns the survivors.
  Candidate* finish(int64_t row, int64_t* count) {
    if (counts_[row] > 0) (void)compact(row);
    return candidates(row, count);
  }

 private:
  static constexpr int32_t kFellBack = -1, kClosed = -2;

  void insert(int64_t row, float lower) {
    float* best = best_.get() + row * k_;
    if (!(lower > best[k_ - 1])) return;
    int64_t i = k_ - 1;
    for (; i > 0 && best[i - 1] < lower; --i) best[i] = best[i - 1];
    best[i] = lower;
    if (best[k_ - 1] > thresholds_[row]) thresholds_[row] = best[k_ - 1];
  }
  bool compact(int64_t row) {
    Candidate* c = candidates_.get() + row * capacity_;
    int64_t n = counts_[row];
    if (k_ > kSorted && n >= k_) {
      std::nth_element(c, c + (k_ - 1), c + n,
                       [](const Candidate& a, const Candidate& b) { return a.lower > b.lower; });
      if (c[k_ - 1].lower > thresholds_[row]) thresholds_[row] = c[k_ - 1].lower;
    }
    const float threshold = thresholds_[row];
    n = std::remove_if(c, c + n, [threshold](const Candidate& a) { return a.upper < threshold; }) - c;
    counts_[row] = static_cast<int32_t>(n);
    return n <= capacity_ - capacity_ / 8;  // else the list would be compacted at nearly every step
  }

  Buffer<float> thresholds_, best_;
  Buffer<int32_t> counts_;
  Buffer<Candidate> candidates_;
  int64_t k_ = 0, capacity_ = 0;
};

}  // namespace vecbank::cpu
