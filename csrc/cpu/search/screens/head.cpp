// The head's driver: it turns a block of queries, codes their heads as the int8 screen codes whole rows, and their
// tails in 16 bits. The proof is in head.h.
#include "head.h"

#include "../../rotation.h"
#include "screen.h"

namespace vecbank::cpu {
namespace {

class HeadScreen final : public Screen {
 public:
  bool reserve(const SearchProblem& problem, const SearchPlan& plan) override {
    const int64_t rows = plan.grid.rows_per_block, d = problem.bank.width, head = plan.head;
    return rotation_.reserve() && turned_.reserve(rows * Rotation::stride_of(d)) &&
           lines_.reserve((head + 1) * kPanel) && units_.reserve(rows + kPanel) && gate_tails_.reserve(rows + kPanel) &&
           no_tails_.reserve(rows + kPanel) && tails_of_queries_.reserve(rows) &&
           tail_codes_.reserve(rows * head::query_tail(d - head)) &&
           query_codes_.reserve(rows * int8::query_groups(head) + kPanel) &&
           starts_.reserve(panels_of(kLongVisitBytes, head) * kPanel);
  }

  void begin(ScreenQueries& queries, const SearchJob& job) override {
    header_ = &job.header;
    queries_ = &queries;
    layout_ = int8::Layout(job.header);
    tails_ = head::Tails(job.header);
    panels_ = reinterpret_cast<const int32_t*>(reinterpret_cast<const char*>(header_) + header_->panels_at);
    started_ = kNoVisit;
    norms_ = {};
    survivors_ = 0;
    most_ = int8::query_code(header_->bank_code, kernels().int8.product_limit);
    start_unit_ = 2.0 * (screen_unit(header_->width) + int8::kRounding) * (1.0 + 0x1p-10);
    const int64_t rows = queries.rows, group = queries.packed.group(), d = header_->width;
    rotation_.turn(pack_rotation(header_), d, queries.packed.data(), queries.packed.stride(), static_cast<int>(group),
                   rows, turned_.get());
    std::fill_n(units_.get(), round_up_to(rows, group), 1.0f);
    std::fill_n(gate_tails_.get(), round_up_to(rows, group), 0.0f);
    std::fill_n(no_tails_.get(), round_up_to(rows, group), 0.0f);
    for (int64_t r = 0; r < rows; ++r) units_[r] = static_cast<float>(unit_of(r));
    for (int64_t r = 0; r < rows; r += group) code_heads(r, std::min(group, rows - r));
    for (int64_t r = 0; r < rows; ++r) code_tail(r);
  }

  int64_t panels_per_visit() const override {
    return panels_of(queries_->rows <= 4 ? kLongVisitBytes : kVisitBytes, layout_.width);
  }
  int64_t panel_bytes() const override { return layout_.stride() * 4; }

  void scan(const Visit& visit, int64_t row, int64_t rows, const ScanTarget& target) override {
    with_tile(visit, row, rows, gate_tails_.get(), [&](const auto& kernels, const auto& t) {
      kernels.scan({t, target.thresholds, target.push, target.context});
    });
  }

  // The tails are left out: what is largest by its head alone is most likely to be among the best.
  void argmax(const Visit& visit, float* running) override {
    with_tile(visit, 0, queries_->rows, no_tails_.get(),
              [&](const auto& kernels, const auto& t) { kernels.argmax({t, running, visit.from}); });
  }

  int64_t argmax_panels() const override { return 0; }

  double unit(int64_t row) const override { return static_cast<double>(units_[row]); }

  Bounds bounds(int64_t row, int64_t panel, int lane, float upper, float threshold, bool by_argmax) override {
    const int64_t j = panel * kPanel + lane;
    const int32_t* lines = panels_ + panel * layout_.stride() + layout_.groups * kPanel + lane;
    const float* numbers = reinterpret_cast<const float*>(lines);
    const TailQuery& q = tails_of_queries_[row];
    const double gate =
        by_argmax ? 0.0 : static_cast<double>(gate_tails_[row]) * static_cast<double>(numbers[4 * kPanel]);
    if (!(gate < 0x1p100)) return {HUGE_VALF, -HUGE_VALF};
    ++survivors_;
    const head::TailFacts f = tails_.facts(j);
    const double step = static_cast<double>(f.step) * q.ratio;
    const int32_t product = kernels().int8.tail_product(tail_codes_.get() + row * head::query_tail(tails_.width),
                                                        tails_.codes(j), head::query_tail(tails_.width));
    const double tail = step * product;
    const double margin = step * (q.codes * static_cast<double>(f.error) + q.error * static_cast<double>(f.norm)) +
                          q.norm * static_cast<double>(f.other);
    // Its own rounding, and that of the gate's product, which is taken away again.
    const double known = static_cast<double>(upper);
    const double room = 0x1p-22 * (gate + std::fabs(known)) + 0x1p-40 * (std::fabs(tail) + margin);
    const double whole = known - gate + tail + margin + room;
    if (whole < static_cast<double>(threshold)) return {below(whole), -HUGE_VALF};
    if (j == header_->first_negligible) return {above(whole), -HUGE_VALF};  // its bounds enclose other rows too
    const int32_t norms = lines[2 * kPanel];
    const double error = static_cast<double>(norms & 0xFFFF) * (1.0 / static_cast<double>(int8::kErrorUnit));
    const double sum = static_cast<double>(norms_.codes) * error + static_cast<double>(norms_.errors) * (norms >> 16);
    const double other = queries_->slacks[row] + start_unit_ * std::fabs(static_cast<double>(numbers[3 * kPanel]));
    const double head = (sum * (1.0 + 0x1p-18) + 2.0) * static_cast<double>(numbers[0]) + other * unit(row);
    return {above(whole), below(whole - 2.0 * (head + margin + room))};
  }

  void fetch(int64_t panel, int lane) const override {
    const int8_t* row = tails_.codes(panel * kPanel + lane);
    for (int64_t at = 0; at < tails_.stride + 63; at += 64)
      __builtin_prefetch(row + std::min(at, tails_.stride - 1), 0, 3);
  }

  bool keeps_columns() const override { return true; }
  int64_t survivors() const override { return survivors_; }
  int64_t tail_width() const override { return tails_.width; }

 private:
  // A query's tail: codes / scale = the turned coordinates, `ratio` = unit / scale.
  struct TailQuery {
    double ratio, codes, error, norm;  // |xi|, |e_x|, and unit |x|
  };

  static int64_t panels_of(int64_t bytes, int64_t width) {
    return round_up_to(std::max<int64_t>(1, bytes / ((code_groups(width) + 5) * kPanel * 4)), 4);  // whole tiles
  }
  const float* turned(int64_t row) const { return turned_.get() + row * Rotation::stride_of(header_->width); }
  static double norm_of(const float* numbers, int64_t count) {
    double squares = 0.0;
    for (int64_t k = 0; k < count; ++k) squares += static_cast<double>(numbers[k]) * static_cast<double>(numbers[k]);
    return std::sqrt(squares) * (1.0 + 0x1p-40);
  }

  bool usable(int64_t row) const { return queries_->packed.frame(row).usable; }
  // The largest unit allowed.
  double unit_of(int64_t row) const {
    if (!usable(row)) return 1.0;
    const double root = std::sqrt(static_cast<double>(layout_.width)) * most_ / 127.0;
    const double norm =
        std::max(norm_of(turned(row), layout_.width), head::kLeastPart * static_cast<double>(queries_->norms[row]));
    return std::min(int8::kNormPerRoot * root / norm, int8::kMostUnit);
  }

  void code_heads(int64_t first, int64_t count) {
    const void* rows[kPanel];
    Affine maps[kPanel];
    const int group = queries_->packed.group();
    for (int64_t i = 0; i < count; ++i) rows[i] = turned(first + i);
    kernels().interleave_f32(rows, static_cast<int>(count), group, DType::f32, layout_.width, maps, lines_.get());
    kernels().int8.quantize_queries(lines_.get(), group, group, layout_.width, most_, int8::kRounding,
                                    units_.get() + first, &norms_,
                                    query_codes_.get() + first * int8::query_groups(layout_.width));
  }

  void code_tail(int64_t row) {
    const int64_t width = tails_.width, padded = head::query_tail(width);
    const float* numbers = turned(row) + layout_.width;
    int16_t* codes = tail_codes_.get() + row * padded;
    float largest = 0.0f;
    for (int64_t k = 0; k < width; ++k) largest = std::fmax(largest, std::fabs(numbers[k]));
    const double norm = norm_of(numbers, width), root = std::sqrt(static_cast<double>(width));
    // |beta| <= 127 sqrt(width), and rounding adds up to half of that root to |xi|.
    const double most = std::min(32766.0 / std::max(static_cast<double>(largest), 0x1p-140),
                                 (head::kSumLimit / (127.0 * root) - root) / std::max(norm, 0x1p-140));
    const float scale = static_cast<float>(std::min(most, 0x1p100));
    double squares = 0.0;
    for (int64_t k = 0; k < width; ++k) {
      const float code = (numbers[k] * scale + 0x1.8p23f) - 0x1.8p23f;
      codes[k] = static_cast<int16_t>(code);
      squares += static_cast<double>(code) * static_cast<double>(code);
    }
    std::fill(codes + width, codes + padded, int16_t{0});
    const double unit = static_cast<double>(units_[row]),
                 whole = usable(row) ? static_cast<double>(queries_->norms[row]) : 0.0;
    const double error = 0.5 * root + 0x1p-22 * norm * static_cast<double>(scale);
    tails_of_queries_[row] = {unit / static_cast<double>(scale), std::sqrt(squares) * (1.0 + 0x1p-40), error,
                              unit * whole * (1.0 + 0x1p-40)};
    gate_tails_[row] = above(unit * std::sqrt(norm * norm + head::kMixed * whole * whole) * head::kTailRoom);
  }

  template <class F>
  void with_tile(const Visit& visit, int64_t row, int64_t rows, const float* tails, F&& f) {
    if (record(static_cast<Metric>(header_->metric)).term == Term::square || header_->biased)
      f(kernels().int8.heads_with_starts, tile<int8::HeadTiles>(visit, row, rows, tails));
    else
      f(kernels().int8.heads, tile<int8::StartlessHeadTiles>(visit, row, rows, tails));
  }

  template <class Tiles>
  Tiles tile(const Visit& visit, int64_t row, int64_t rows, const float* tails) {
    const int64_t group = queries_->packed.group(), groups = int8::query_groups(layout_.width);
    Tiles t;
    t.group = static_cast<int>(group);
    t.rows = rows;
    t.width = layout_.width;
    t.columns = std::min(header_->rows, visit.to * kPanel) - visit.from * kPanel;
    t.units = units_.get() + row;
    t.tails = tails + row;
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
  head::Tails tails_;
  const int32_t* panels_ = nullptr;
  int32_t most_ = 0;         // the largest code of a query
  double start_unit_ = 0.0;  // how far a start can be off, in proportion to it
  int64_t survivors_ = 0;
  int8::QueryNorms norms_;
  Rotation rotation_;
  Buffer<float> turned_, lines_, units_, gate_tails_, no_tails_;
  Buffer<TailQuery> tails_of_queries_;
  Buffer<int16_t> tail_codes_;
  Buffer<int32_t> query_codes_, starts_;
  Visit started_ = kNoVisit;  // whose sums' starts are in starts_
};

}  // namespace

constinit const ScreenEntry head_screen = {
    1, [](const PackHeader& bank, int) { return bank.panels == PanelKind::int8 && bank.head > 0; },
    make_screen<HeadScreen>};

}  // namespace vecbank::cpu
