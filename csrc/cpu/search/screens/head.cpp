// The head's driver: it turns a block of queries, codes their heads as the int8 screen codes whole rows, and their
// tails in 16 bits. The proof is in head.h.
#include "head.h"

#include "../../rotation.h"
#include "coded.h"

namespace vecbank::cpu {
namespace {

class HeadScreen final : public CodedScreen {
 public:
  bool reserve(const SearchProblem& problem, const SearchPlan& plan) override {
    const int64_t rows = plan.grid.rows_per_block, d = problem.bank.width, head = plan.head;
    return reserve_codes(rows, head) && rotation_.reserve() && turned_.reserve(rows * Rotation::stride_of(d)) &&
           lines_.reserve((head + 1) * kPanel) && gate_tails_.reserve(rows + kPanel) &&
           no_tails_.reserve(rows + kPanel) && tails_of_queries_.reserve(rows) &&
           tail_codes_.reserve(rows * head::query_tail(d - head));
  }

  void begin(ScreenQueries& queries, const SearchJob& job) override {
    begin_codes(queries, job.header);
    tails_ = head::Tails(job.header);
    survivors_ = 0;
    const int64_t rows = queries.rows, group = queries.packed.group(), d = header_->width;
    rotation_.turn(pack_rotation(header_), d, queries.packed.data(), queries.packed.stride(), static_cast<int>(group),
                   rows, turned_.get());
    std::fill_n(gate_tails_.get(), round_up_to(rows, group), 0.0f);
    std::fill_n(no_tails_.get(), round_up_to(rows, group), 0.0f);
    for (int64_t r = 0; r < rows; ++r)
      if (usable(r))
        units_[r] = unit_for(
            std::max(norm_of(turned(r), layout_.width), head::kLeastPart * static_cast<double>(queries.norms[r])));
    for (int64_t r = 0; r < rows; r += group) code_heads(r, std::min(group, rows - r));
    for (int64_t r = 0; r < rows; ++r) code_tail(r);
  }

  void scan(const Visit& visit, int64_t row, int64_t rows, const ScanTarget& target) override {
    with_tile(visit, row, rows, gate_tails_.get(),
              [&](const auto& kernels, const auto& t) { kernels.scan({target, t}); });
  }

  // The tails are left out: what is largest by its head alone is most likely to be among the best.
  void argmax(const Visit& visit, float* running) override {
    with_tile(visit, 0, queries_->rows, no_tails_.get(),
              [&](const auto& kernels, const auto& t) { kernels.argmax({t, running, visit.from}); });
  }

  int64_t argmax_panels() const override { return 0; }

  Bounds bounds(int64_t row, int64_t panel, int lane, float upper, float threshold, bool by_argmax) override {
    const int64_t j = panel * kPanel + lane;
    const int32_t* lines = lines_of(panel, lane);
    const float tail_bound = reinterpret_cast<const float*>(lines)[4 * kPanel];
    const TailQuery& q = tails_of_queries_[row];
    const double gate = by_argmax ? 0.0 : static_cast<double>(gate_tails_[row]) * static_cast<double>(tail_bound);
    if (!(gate < 0x1p100)) return {HUGE_VALF, -HUGE_VALF};
    ++survivors_;
    const head::TailFacts f = tails_.facts(j);
    const double step = static_cast<double>(f.step) * q.ratio;
    const int32_t product = kernels().int8.tail_product(tail_codes_.get() + row * head::query_tail(tails_.width),
                                                        tails_.codes(j), head::query_tail(tails_.width));
    const double tail = step * product;
    const double of_tail = step * (q.codes * static_cast<double>(f.error) + q.error * static_cast<double>(f.norm)) +
                           q.norm * static_cast<double>(f.other);
    // Its own rounding, and that of the gate's product, which is taken away again.
    const double known = static_cast<double>(upper);
    const double room = 0x1p-22 * (gate + std::fabs(known)) + 0x1p-40 * (std::fabs(tail) + of_tail);
    const double whole = known - gate + tail + of_tail + room;
    if (whole < static_cast<double>(threshold)) return {below(whole), -HUGE_VALF};
    if (j == header_->first_negligible) return {above(whole), -HUGE_VALF};  // its bounds enclose other rows too
    return {above(whole), below(whole - 2.0 * (margin(row, lines) + of_tail + room))};
  }

  void fetch(int64_t panel, int lane) const override {
    const int8_t* row = tails_.codes(panel * kPanel + lane);
    for (int64_t at = 0; at < tails_.stride + 63; at += 64)
      __builtin_prefetch(row + std::min(at, tails_.stride - 1), 0, 3);
  }

  int64_t survivors() const override { return survivors_; }
  int64_t tail_width() const override { return tails_.width; }

 private:
  // A query's tail: codes / scale = the turned coordinates, `ratio` = unit / scale.
  struct TailQuery {
    double ratio, codes, error, norm;  // |xi|, |e_x|, and unit |x|
  };

  const float* turned(int64_t row) const { return turned_.get() + row * Rotation::stride_of(header_->width); }
  static double norm_of(const float* numbers, int64_t count) {
    return std::sqrt(kernels().stats(numbers, DType::f32, count, {}).squares) * (1.0 + 0x1p-40);
  }

  void code_heads(int64_t first, int64_t count) {
    const void* rows[kPanel];
    Affine maps[kPanel];
    const int group = queries_->packed.group();
    for (int64_t i = 0; i < count; ++i) rows[i] = turned(first + i);
    kernels().interleave_f32(rows, static_cast<int>(count), group, DType::f32, layout_.width, maps, lines_.get());
    code_group(lines_.get(), group, first, int8::kRounding);
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
      const float code = int8::rounded(numbers[k] * scale);
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
      f(kernels().int8.heads_with_starts, tile_with<int8::HeadTiles>(visit, row, rows, tails));
    else
      f(kernels().int8.heads, tile_with<int8::StartlessHeadTiles>(visit, row, rows, tails));
  }

  template <class Tiles>
  Tiles tile_with(const Visit& visit, int64_t row, int64_t rows, const float* tails) {
    Tiles t = tile<Tiles>(visit, row, rows);
    t.tails = tails + row;
    return t;
  }

  head::Tails tails_;
  int64_t survivors_ = 0;
  Rotation rotation_;
  Buffer<float> turned_, lines_, gate_tails_, no_tails_;
  Buffer<TailQuery> tails_of_queries_;
  Buffer<int16_t> tail_codes_;
};

}  // namespace

constinit const ScreenEntry head_screen = {
    1, [](const PackHeader& bank, int) { return bank.panels == PanelKind::int8 && bank.head > 0; },
    make_screen<HeadScreen>};

}  // namespace vecbank::cpu
