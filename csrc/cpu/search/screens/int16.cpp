// The int16 screen's driver. The codes of a block of queries are made once, and the codes of panels at every visit.
#include "int16.h"

#include "float_panels.h"

namespace vecbank::cpu {
namespace {

class Int16Screen final : public Screen {
 public:
  bool reserve(const SearchProblem& problem, const SearchPlan& plan) override {
    const int64_t rows = plan.grid.rows_per_block, d = problem.bank.width;
    return panels_.reserve(problem, plan, cpu::panels_per_visit(kVisitBytes, d)) && units_.reserve(rows + kPanel) &&
           query_codes_.reserve(rows * int16::pairs_of(d) + kPanel) &&
           panel_codes_.reserve(cpu::panels_per_visit(kVisitBytes, d) * int16::panel_stride(d));
  }

  void begin(ScreenQueries& queries, const SearchJob& job) override {
    header_ = &job.header;
    queries_ = &queries;
    panels_.begin(job);
    rows_ = queries.rows;
    group_ = queries.packed.group();
    bound_ = int16::bound_of(header_->width);
    coded_ = kNoVisit;
    // With this limit a unit times a start stays finite.
    const double most = record(job.problem.metric).shares_frame ? 0x1p40 : 0x1p80;
    std::fill_n(units_.get(), round_up_to(rows_, group_), 1.0f);
    for (int64_t r = 0; r < rows_; ++r)
      if (queries.packed.frame(r).usable)
        units_[r] = static_cast<float>(std::min(int16::kQueryTarget / static_cast<double>(queries.norms[r]), most));
    for (int64_t r = 0; r < rows_; r += group_)
      kernels().int16.quantize_queries(queries.packed.data() + r / group_ * queries.packed.stride(), group_,
                                       header_->width, units_.get() + r, query_codes_.get() + r * pairs());
  }

  int64_t panels_per_visit() const override { return cpu::panels_per_visit(kVisitBytes, header_->width); }

  int64_t panel_bytes() const override { return panels_.bytes(); }

  void scan(const Visit& visit, int64_t row, int64_t rows, const ScanTarget& target) override {
    kernels().int16.scan({target, tile(visit, row, rows)});
  }

  void argmax(const Visit& visit, float* running) override {
    kernels().int16.argmax({tile(visit, 0, rows_), running, visit.from});
  }

  int64_t argmax_panels() const override { return 64; }

  double unit(int64_t row) const override { return static_cast<double>(units_[row]); }

  Bounds bounds(int64_t row, int64_t panel, int lane, float upper, float, bool) override {
    const FloatPanels::ColumnError e = panels_.error(panel, lane);
    const double column = static_cast<double>(bound_.margin(static_cast<float>(e.r))) * (1.0 + 0x1p-20);
    const double margin = (e.start + queries_->slacks[row]) * unit(row) + column;
    return {upper, below(static_cast<double>(upper) - 2.0 * margin)};
  }

  bool keeps_columns() const override { return panels_.stored(); }

 private:
  int64_t pairs() const { return int16::pairs_of(header_->width); }

  int16::Tiles tile(const Visit& visit, int64_t row, int64_t rows) {
    const int64_t d = header_->width;
    if (!coded_.covers(visit)) {
      kernels().int16.quantize_panels(panels_.of(visit), visit.to - visit.from, d, bound_, panel_codes_.get());
      coded_ = visit;
    }
    int16::Tiles t;
    t.group = group_;
    t.rows = rows;
    t.width = d;
    t.columns = std::min(header_->rows, visit.to * kPanel) - visit.from * kPanel;
    t.units = units_.get() + row;
    t.queries = query_codes_.get() + row * pairs();
    t.query_stride = group_ * pairs();
    t.panels = panel_codes_.get();
    t.panel_stride = int16::panel_stride(d);
    t.prefetch_range = panels_.after(visit);
    t.prefetch_bytes = (visit.to - visit.from) * panels_.stride() * 4;
    return t;
  }

  const PackHeader* header_ = nullptr;
  const ScreenQueries* queries_ = nullptr;
  FloatPanels panels_;
  int64_t rows_ = 0;
  int group_ = 1;
  int16::Bound bound_{};
  Buffer<float> units_;
  Buffer<int32_t> query_codes_, panel_codes_;
  Visit coded_ = kNoVisit;  // whose panels are in panel_codes_
};

}  // namespace

constinit const ScreenEntry int16_screen = {2,
                                            [](const PackHeader& bank, int group) {
                                              return kernels().int16.scan != nullptr && group == kernels().heights[0] &&
                                                     bank.width >= int16::kLeastWidth &&
                                                     bank.width <= int16::kMostWidth &&
                                                     bank.screen != ScreenChoice::float32;
                                            },
                                            make_screen<Int16Screen>};

}  // namespace vecbank::cpu
