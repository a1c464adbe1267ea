// Every screen, on every instruction set: its bounds enclose the refined score, whatever the data, and are no wider
// than their proof makes them.
#include "screen_bounds.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

// Calls f(screen, kind of panels) for every screen and every kind of pack that it can use.
template <class F>
void for_each_screen(F&& f) {
  for_each_isa([&] {
    for (const PanelKind kind : {PanelKind::float32, PanelKind::int8})
      for (const ScreenEntry* entry : kScreens) f(*entry, kind);
  });
}

}  // namespace

TEST(screen_bounds_enclose_the_score) {
  int64_t pairs = 0;
  for_each_screen([&](const ScreenEntry& screen, PanelKind kind) {
    for (const Metric metric : {Metric::dot, Metric::cosine, Metric::sqeuclidean})
      for (const int64_t d : {1, 2, 16, 17, 40, 301, 2048})
        for (int data = 0; data < (d > 1000 ? 5 : kDrawnKinds); ++data)
          for (const int64_t n : {int64_t{1}, int64_t{3}, int64_t{kernels().heights[0] + 1}}) {
            if (n != 3 && (d == 2048 || data % 3 != 0)) continue;
            pairs +=
                check_bounds(screen, drawn(n, d, data, 21, false), drawn(37, d, data, 22, true), d, metric, kind).rows;
          }
  });
  CHECK(pairs > 100000);
}

// Every coordinate of a row lies just short of halfway between two codes, and all are rounded the same way, so both
// products of the proof reach their bounds. One coordinate decides the scale.
TEST(int8_bounds_at_their_worst) {
  for_each_isa([] {
    const double most = kernels().int8.bank_code,
                 query = int8::query_code(kernels().int8.bank_code, kernels().int8.product_limit);
    for (const int64_t d : {64, 256}) {
      const int64_t n = 5, m = 32;
      std::vector<float> x, b;
      for (int64_t r = 0; r < n + m; ++r) {
        const double codes = r < n ? query : most, offset = r % 2 == 0 ? 0.499 : -0.499;
        for (int64_t k = 0; k < d; ++k) {
          const double sign = (k * 7 + k / 3) % 2 == 0 ? 1.0 : -1.0, level = std::floor(codes * 0.6) + offset;
          (r < n ? x : b)
              .push_back(
                  static_cast<float>(sign * (k == 0 ? codes : level) / codes * (r < n || r % 4 < 2 ? 1.0 : -1.0)));
        }
      }
      const double used = check_bounds(int8_screen, x, b, d, Metric::dot, PanelKind::int8).used;
      CHECK(used <= 1.0);
      CHECK(used > 0.93);  // a margin that is a tenth smaller would be wrong
    }
  });
}
