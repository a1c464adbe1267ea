// The float32 screen, which uses queries and panels as they were packed. Its proof is in core/bounds.h.
#include "float_panels.h"

namespace vecbank::cpu {
namespace {

class Float32Screen final : public Screen {
 public:
  bool reserve(const SearchProblem& p, const SearchPlan& plan) override {
    return panels_.reserve(p, plan, cpu::panels_per_visit(kVisitBytes, p.bank.width));
  }

  void begin(ScreenQueries& queries, const SearchJob& job) override {
    queries_ = &queries;
    header_ = &job.header;
    panels_.begin(job);
    // The norm multiplies the bank's bound line as one more coordinate.
    for (int64_t r = 0; r < queries.rows; ++r)
      if (queries.packed.frame(r).usable) queries.packed.set_bound(r, queries.norms[r], job.header.width);
  }

  int64_t panels_per_visit() const override {
    return cpu::panels_per_visit(queries_->rows <= 4 && panels_.stored() ? kLongVisitBytes : kVisitBytes,
                                 header_->width);
  }

  int64_t panel_bytes() const override { return panels_.bytes(); }

  void scan(const Visit& visit, int64_t row, int64_t rows, const ScanTarget& target) override {
    kernels().float32.scan({target, tile(visit, row, rows)});
  }

  void argmax(const Visit& visit, float* running) override {
    kernels().float32.argmax({tile(visit, 0, queries_->rows), running, visit.from});
  }

  int64_t argmax_panels() const override { return 64; }

  double unit(int64_t) const override { return 1.0; }

  Bounds bounds(int64_t row, int64_t panel, int lane, float upper, float, bool) override {
    const FloatPanels::ColumnError e = panels_.error(panel, lane);
    const double margin = e.start + queries_->slacks[row] + static_cast<double>(queries_->norms[row]) * e.r;
    return {upper, below(static_cast<double>(upper) - 2.0 * margin)};
  }

  bool keeps_columns() const override { return panels_.stored(); }

 private:
  TileArgs<float> tile(const Visit& visit, int64_t row, int64_t rows) {
    const QueryBlock<float>& packed = queries_->packed;
    TileArgs<float> t;
    t.group = packed.group();
    t.rows = rows;
    t.width = header_->width;
    t.columns = std::min(header_->rows, visit.to * kPanel) - visit.from * kPanel;
    t.queries = packed.data() + row / t.group * packed.stride();
    t.query_stride = packed.stride();
    t.panels = panels_.of(visit);
    t.panel_stride = t.start_stride = panels_.stride();
    t.starts = t.panels + (header_->width + 2) * kPanel;
    t.next = panels_.after(visit);
    return t;
  }

  const ScreenQueries* queries_ = nullptr;
  const PackHeader* header_ = nullptr;
  FloatPanels panels_;
};

}  // namespace

constinit const ScreenEntry float32_screen = {4, [](const PackHeader&, int) { return true; },
                                              make_screen<Float32Screen>};

}  // namespace vecbank::cpu
