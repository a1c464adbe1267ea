// The int8 screen's driver. The pack holds the bank's codes, and the codes of a block of queries are made once.
#include "coded.h"

namespace vecbank::cpu {
namespace {

class Int8Screen final : public CodedScreen {
 public:
  bool reserve(const SearchProblem& problem, const SearchPlan& plan) override {
    const int64_t d = problem.bank.width;
    return reserve_codes(plan.grid.rows_per_block, d) && rotated_.reserve((d + 1) * kPanel);
  }

  void begin(ScreenQueries& queries, const SearchJob& job) override {
    begin_codes(queries, job.header);
    const int64_t rows = queries.rows, group = queries.packed.group();
    for (int64_t r = 0; r < rows; ++r)
      if (usable(r)) units_[r] = unit_for(static_cast<double>(queries.norms[r]));
    for (int64_t r = 0; r < rows; r += group) {
      const float* lines = queries.packed.data() + r / group * queries.packed.stride();
      if (header_->rotated) kernels().int8.rotate(lines, group, layout_.width, rotated_.get());
      code_group(header_->rotated ? rotated_.get() : lines, header_->rotated ? kPanel : group, r,
                 int8::rounding_of(*header_));
    }
  }

  void scan(const Visit& visit, int64_t row, int64_t rows, const ScanTarget& target) override {
    with_tile(visit, row, rows, [&](const auto& kernels, const auto& t) { kernels.scan({target, t}); });
  }

  void argmax(const Visit& visit, float* running) override {
    with_tile(visit, 0, queries_->rows,
              [&](const auto& kernels, const auto& t) { kernels.argmax({t, running, visit.from}); });
  }

  int64_t argmax_panels() const override { return 16; }

  Bounds bounds(int64_t row, int64_t panel, int lane, float upper, float, bool) override {
    if (panel * kPanel + lane == header_->first_negligible)
      return {upper, -HUGE_VALF};  // its bounds enclose other rows too
    return {upper, below(static_cast<double>(upper) - 2.0 * margin(row, lines_of(panel, lane)))};
  }

 private:
  template <class F>
  void with_tile(const Visit& visit, int64_t row, int64_t rows, F&& f) {
    if (layout_.has_starts())
      f(kernels().int8.with_starts, tile<int8::Tiles>(visit, row, rows));
    else
      f(kernels().int8.without, tile<int8::StartlessTiles>(visit, row, rows));
  }

  Buffer<float> rotated_;
};

}  // namespace

constinit const ScreenEntry int8_screen = {
    1, [](const PackHeader& bank, int) { return bank.panels == PanelKind::int8 && bank.head == 0; },
    make_screen<Int8Screen>};

}  // namespace vecbank::cpu
