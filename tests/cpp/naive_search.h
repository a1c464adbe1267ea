// Searches by the definition: every pair scored with core/exact_score.h, and sorted.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/exact_score.h"
#include "rotations.h"

constexpr vecbank::Metric kOpMetrics[] = {vecbank::Metric::dot, vecbank::Metric::cosine, vecbank::Metric::l2,
                                          vecbank::Metric::sqeuclidean, vecbank::Metric::l1};

// The keys of all pairs.
class NaiveScores {
 public:
  NaiveScores(const vecbank::Rows& x, const vecbank::Rows& b, vecbank::Metric metric, const double* bias = nullptr)
      : queries_(x.count), rows_(b.count), metric_(metric), keys_(static_cast<size_t>(x.count * b.count)) {
    using namespace vecbank;
    const MetricRecord m = record(metric);
    const std::vector<double> wide_x = widened_rows(x), wide_b = widened_rows(b);
    const int64_t d = x.width;
    const auto raw = [&](const double* p, const double* q, Term term) {
      double lanes[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane_sum(p, 1, q, 1, d, lane, term);
      return tree_sum(lanes);
    };
    std::vector<double> factors;  // of the bank
    for (int64_t j = 0; j < rows_; ++j)
      factors.push_back(row_factor(m, raw(wide_b.data() + j * d, wide_b.data() + j * d, Term::product)));
    for (int64_t i = 0; i < queries_; ++i) {
      const double* q = wide_x.data() + i * d;
      const double factor = row_factor(m, raw(q, q, Term::product));
      for (int64_t j = 0; j < rows_; ++j)
        keys_[at(i, rows_) + static_cast<size_t>(j)] =
            key_of(m, raw(q, wide_b.data() + j * d, m.term), factor, factors[static_cast<size_t>(j)],
                   bias != nullptr ? bias + j : nullptr);
    }
  }

  int64_t queries() const { return queries_; }
  int64_t rows() const { return rows_; }
  vecbank::Metric metric() const { return metric_; }
  double key(int64_t query, int64_t row) const { return keys_[at(query, rows_) + static_cast<size_t>(row)]; }
  double value(int64_t query, int64_t row) const { return vecbank::value_of(metric_, key(query, row)); }

  // All rows for which wanted(row), the best first. A score that is NaN is none.
  template <class Wanted>
  std::vector<vecbank::Scored> sorted(int64_t query, Wanted&& wanted) const {
    std::vector<vecbank::Scored> found;
    for (int64_t j = 0; j < rows_; ++j)
      if (!std::isnan(key(query, j)) && wanted(j)) found.push_back({key(query, j), j});
    std::sort(found.begin(), found.end(), vecbank::better);
    return found;
  }

 private:
  static size_t at(int64_t row, int64_t width) { return static_cast<size_t>(row * width); }
  static std::vector<double> widened_rows(const vecbank::Rows& rows) {
    std::vector<double> wide;
    for (int64_t i = 0; i < rows.count; ++i)
      vecbank::with_dtype(rows.dtype, [&](auto type) {
        const auto* row = static_cast<const vecbank::Element<decltype(type)>*>(rows.row(i));
        for (int64_t k = 0; k < rows.width; ++k)
          wide.push_back(static_cast<double>(vecbank::widened(row[k * rows.col_stride])));
      });
    return wide;
  }

  int64_t queries_, rows_;
  vecbank::Metric metric_;
  std::vector<double> keys_;
};

// Packs of a bank: none, and one for each screen that searches begin with; the last has a head. A metric without a
// screen has packs of one kind alone.
constexpr int kPackKinds = 5;
class OwnPack {
 public:
  OwnPack(int kind, const vecbank::Rows& bank, vecbank::Metric metric, const double* bias = nullptr) {
    using namespace vecbank;
    if (kind == 0) return;
    const ScreenChoice screens[] = {ScreenChoice::float32, ScreenChoice::int16, ScreenChoice::int8, ScreenChoice::int8};
    const ScreenChoice screen = screens[kind - 1];
    const PanelKind panels = cpu::panels_for_search(bank.count, bank.width, metric, screen);
    HeadChoice head;
    const std::vector<float> rotation = kind == 4 ? rotation_of(1, bank.width) : std::vector<float>();
    if (kind == 4 && panels == PanelKind::int8 && bank.width > 1) head = {(bank.width + 2) / 3, rotation.data()};
    const int64_t bytes = pack_bytes(bank.count, bank.width, metric, bias != nullptr, panels, head.width);
    CHECK(memory_.reserve(bytes));
    CHECK(cpu::pack_bank(bank, metric, memory_.get(), threads(2), bias, panels, screen, head) == Status::ok);
    header_ = cpu::check_pack(memory_.get(), bytes, bank, metric, bias != nullptr);
    CHECK(header_ != nullptr);
  }
  const vecbank::PackHeader* get() const { return header_; }

 private:
  vecbank::cpu::Buffer<char> memory_;
  const vecbank::PackHeader* header_ = nullptr;
};
