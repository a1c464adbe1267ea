// What the screens of 8-bit codes share: the codes of a block of queries, a visit's tile, and the margin of a sum.
#pragma once

#include "int8.h"
#include "screen.h"

namespace vecbank::cpu {

class CodedScreen : public Screen {
 public:
  int64_t panels_per_visit() const override {
    return panels_of(queries_->rows <= 4 ? kLongVisitBytes : kVisitBytes, layout_.width);
  }
  int64_t panel_bytes() const override { return layout_.stride() * 4; }
  double unit(int64_t row) const override { return static_cast<double>(units_[row]); }
  bool keeps_columns() const override { return true; }

 protected:
  // `width`: of the panels.
  bool reserve_codes(int64_t rows, int64_t width) {
    return units_.reserve(rows + kPanel) && query_codes_.reserve(rows * int8::query_groups(width) + kPanel) &&
           starts_.reserve(panels_of(kLongVisitBytes, width) * kPanel);
  }

  void begin_codes(const ScreenQueries& queries, const PackHeader& header) {
    header_ = &header;
    queries_ = &queries;
    layout_ = int8::Layout(header);
    panels_ = reinterpret_cast<const int32_t*>(reinterpret_cast<const char*>(header_) + header_->panels_at);
    started_ = kNoVisit;
    norms_ = {};
    most_ = int8::query_code(header_->bank_code, kernels().int8.product_limit);
    start_unit_ = 2.0 * (screen_unit(header_->width) + int8::kRounding) * (1.0 + 0x1p-10);
    std::fill_n(units_.get(), round_up_to(queries.rows, queries.packed.group()), 1.0f);
  }

  bool usable(int64_t row) const { return queries_->packed.frame(row).usable; }

  // The largest unit allowed of a query whose coded coordinates have this norm.
  float unit_for(double norm) const {
    const double root = std::sqrt(static_cast<double>(layout_.width)) * most_ / 127.0;
    return static_cast<float>(std::min(int8::kNormPerRoot * root / norm, int8::kMostUnit));
  }

  // Codes the group of queries from `first` on, whose lines are `stride` wide.
  void code_group(const float* lines, int64_t stride, int64_t first, double rounding) {
    kernels().int8.quantize_queries(lines, stride, queries_->packed.group(), layout_.width, most_, rounding,
                                    units_.get() + first, &norms_,
                                    query_codes_.get() + first * int8::query_groups(layout_.width));
  }

  // The lines of a column that follow the codes.
  const int32_t* lines_of(int64_t panel, int lane) const {
    return panels_ + panel * layout_.stride() + layout_.groups * kPanel + lane;
  }

  // How far a sum, as a score, can lie from the score: half of what is between its bounds.
  double margin(int64_t row, const int32_t* lines) const {
    const float* numbers = reinterpret_cast<const float*>(lines);
    const int32_t norms = lines[2 * kPanel];
    const double error = static_cast<double>(norms & 0xFFFF) * (1.0 / static_cast<double>(int8::kErrorUnit));
    const double sum = static_cast<double>(norms_.codes) * error + static_cast<double>(norms_.errors) * (norms >> 16);
    double other = queries_->slacks[row];
    if (layout_.has_starts()) other += start_unit_ * std::fabs(static_cast<double>(numbers[3 * kPanel]));
    return (sum * (1.0 + 0x1p-18) + 2.0) * static_cast<double>(numbers[0]) + other * unit(row);
  }

  template <class Tiles>
  Tiles tile(const Visit& visit, int64_t row, int64_t rows) {
    const int64_t group = queries_->packed.group(), groups = int8::query_groups(layout_.width);
    Tiles t;
    t.group = static_cast<int>(group);
    t.rows = rows;
    t.width = layout_.width;
    t.columns = std::min(header_->rows, visit.to * kPanel) - visit.from * kPanel;
    t.units = units_.get() + row;
    t.queries = query_codes_.get() + row * groups;
    t.query_stride = group * groups;
    t.panels = panels_ + visit.from * layout_.stride();
    t.panel_stride = layout_.stride();
    if (!started_.covers(visit)) {
      kernels().int8.start_sums(t.panels, visit.to - visit.from, layout_, most_ + 1, norms_, starts_.get());
      started_ = visit;
    }
    t.starts = starts_.get();
    t.start_stride = kPanel;
    t.next = panels_ + visit.next * layout_.stride();
    return t;
  }

  const PackHeader* header_ = nullptr;
  const ScreenQueries* queries_ = nullptr;
  int8::Layout layout_{1, Metric::dot, false};
  Buffer<float> units_;

 private:
  // Whole tiles of panels.
  static int64_t panels_of(int64_t bytes, int64_t width) {
    return round_up_to(std::max<int64_t>(1, bytes / ((code_groups(width) + 4) * kPanel * 4)), 4);
  }

  const int32_t* panels_ = nullptr;
  int32_t most_ = 0;         // the largest code of a query
  double start_unit_ = 0.0;  // how far a start can be off, in proportion to it
  int8::QueryNorms norms_;
  Buffer<int32_t> query_codes_, starts_;
  Visit started_ = kNoVisit;  // whose sums' starts are in starts_
};

}  // namespace vecbank::cpu
