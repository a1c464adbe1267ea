// The int8 screen's driver. The pack holds the bank's codes, and the codes of a block of queries are made once.
#include "int8.h"

#include "screen.h"

namespace vecbank::cpu {
namespace {

class Int8Screen final : public Screen {
 public:
  bool reserve(const SearchProblem& problem, const SearchPlan& plan) override {
    const int64_t rows = plan.grid.rows_per_block, d = problem.bank.width;
    return units_.reserve(rows + kPanel) && query_codes_.reserve(rows * int8::query_groups(d) + kPanel) &&
           starts_.reserve(panels_of(kLongVisitBytes, d) * kPanel) && rotated_.reserve((d + 1) * kPanel);
  }

  void begin(ScreenQueries& queries, const SearchJob& job) override {
    header_ = &job.header;
    queries_ = &queries;
    layout_ = int8::Layout(job.header);
    panels_ = reinterpret_cast<const int32_t*>(reinterpret_cast<const char*>(header_) + header_->panels_at);
    started_ = kNoVisit;
    norms_ = {};
    most_ = int8::query_code(header_->bank_code, kernels().int8.product_limit);
    start_unit_ = 2.0 * (screen_unit(layout_.width) + int8::kRounding) * (1.0 + 0x1p-10);
    const int64_t rows = queries.rows, group = queries.packed.group();
    const double root = std::sqrt(static_cast<double>(layout_.width)) * most_ / 127.0;
    std::fill_n(units_.get(), round_up_to(rows, group), 1.0f);
    for (int64_t r = 0; r < rows; ++r)
      if (queries.packed.frame(r).usable)
        units_[r] = static_cast<float>(
            std::min(int8::kNormPerRoot * root / static_cast<double>(queries.norms[r]), int8::kMostUnit));
    for (int64_t r = 0; r < rows; r += group) {
      const float* lines = queries.packed.data() + r / group * queries.packed.stride();
      if (header_->rotated) kernels().int8.rotate(lines, group, layout_.width, rotated_.get());
      kernels().int8.quantize_queries(header_->rotated ? rotated_.get() : lines, header_->rotated ? kPanel : group,
                                      static_cast<int>(group), layout_.width, most_, int8::rounding_of(*header_),
                                      units_.get() + r, &norms_, query_codes_.get() + r * query_groups());
    }
  }

  int64_t panels_per_visit() const override {
    return panels_of(queries_->rows <= 4 ? kLongVisitBytes : kVisitBytes, layout_.width);
  }

  int64_t panel_bytes() const override { return layout_.stride() * 4; }

  void scan(const Visit& visit, int64_t row, int64_t rows, const ScanTarget& target) override {
    with_tile(visit, row, rows, [&](const auto& kernels, const auto& t) {
      kernels.scan({t, target.thresholds, target.push, target.context});
    });
  }

  void argmax(const Visit& visit, float* running) override {
    with_tile(visit, 0, queries_->rows,
              [&](const auto& kernels, const auto& t) { kernels.argmax({t, running, visit.from}); });
  }

  int64_t argmax_panels() const override { return 16; }

  double unit(int64_t row) const override { return static_cast<double>(units_[row]); }

  Bounds bounds(int64_t row, int64_t panel, int lane, float upper, float, bool) override {
    if (panel * kPanel + lane == header_->first_negligible)
      return {upper, -HUGE_VALF};  // its bounds enclose other rows too
    const int32_t* lines = panels_ + panel * layout_.stride() + layout_.groups * kPanel + lane;
    const float* numbers = reinterpret_cast<const float*>(lines);
    const int32_t norms = lines[2 * kPanel];
    const double error = static_cast<double>(norms & 0xFFFF) * (1.0 / static_cast<double>(int8::kErrorUnit));
    const double sum = static_cast<double>(norms_.codes) * error + static_cast<double>(norms_.errors) * (norms >> 16);
    double other = queries_->slacks[row];
    if (layout_.has_starts()) other += start_unit_ * std::fabs(static_cast<double>(numbers[3 * kPanel]));
    const double margin = (sum * (1.0 + 0x1p-18) + 2.0) * static_cast<double>(numbers[0]) + other * unit(row);
    return {upper, below(static_cast<double>(upper) - 2.0 * margin)};
  }

  bool keeps_columns() const override { return true; }

 private:
  int64_t query_groups() const { return int8::query_groups(layout_.width); }

  static int64_t panels_of(int64_t bytes, int64_t width) {
    return round_up_to(std::max<int64_t>(1, bytes / ((code_groups(width) + 4) * kPanel * 4)), 4);  // whole tiles
  }

  template <class F>
  void with_tile(const Visit& visit, int64_t row, int64_t rows, F&& f) {
    if (layout_.has_starts())
      f(kernels().int8.with_starts, tile<int8::Tiles>(visit, row, rows));
    else
      f(kernels().int8.without, tile<int8::StartlessTiles>(visit, row, rows));
  }

  template <class Tiles>
  Tiles tile(const Visit& visit, int64_t row, int64_t rows) {
    const int64_t group = queries_->packed.group();
    Tiles t;
    t.group = static_cast<int>(group);
    t.rows = rows;
    t.width = layout_.width;
    t.columns = std::min(header_->rows, visit.to * kPanel) - visit.from * kPanel;
    t.units = units_.get() + row;
    t.queries = query_codes_.get() + row * query_groups();
    t.query_stride = group * query_groups();
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
  const int32_t* panels_ = nullptr;
  int32_t most_ = 0;         // the largest code of a query
  double start_unit_ = 0.0;  // how far a start can be off, in proportion to it
  int8::QueryNorms norms_;
  Buffer<float> units_, rotated_;
  Buffer<int32_t> query_codes_, starts_;
  Visit started_ = kNoVisit;  // whose sums' starts are in starts_
};

}  // namespace

constinit const ScreenEntry int8_screen = {
    1, [](const PackHeader& bank, int) { return bank.panels == PanelKind::int8 && bank.head == 0; },
    make_screen<Int8Screen>};

}  // namespace vecbank::cpu
