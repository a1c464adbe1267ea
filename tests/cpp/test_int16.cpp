// The int16 screen: its bounds enclose the refined score, its sums fit, and the float32 screen decides where int16
// cannot.
#include <cmath>

#include "check.h"
#include "core/bounds.h"
#include "cpu/queries.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

struct Seen {
  std::vector<float> upper;  // [row][column]
  int64_t columns = 0;
};

double dot(const float* a, const float* b, int64_t d) {
  double sum = 0.0;
  for (int64_t k = 0; k < d; ++k) sum += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  return sum;
}

// The share of the margin that the worst pair used; more than 1 is a fault.
double check_bounds(const std::vector<float>& x, const std::vector<float>& b, int64_t d, Metric metric) {
  const Kernels& table = kernels();
  const int64_t n = static_cast<int64_t>(x.size()) / d, m = static_cast<int64_t>(b.size()) / d;
  const int group = table.heights[0];
  const int64_t pairs = int16::pairs_of(d), panels = ceil_div(m, kPanel);
  Buffer<char> memory;
  CHECK(memory.reserve(pack_bytes(m, d, metric)));
  CHECK(pack_bank(rows(b, d), metric, memory.get(), threads(1)) == Status::ok);
  const PackHeader& h = *reinterpret_cast<const PackHeader*>(memory.get());
  const double scale = std::ldexp(1.0, h.exponent);
  const double* centre = pack_centre(&h);

  QueryBlock<float> queries;
  const int64_t padded = round_up_to(n, group);
  CHECK(queries.reserve(rows(x, d), padded, group));
  queries.pack(rows(x, d), h, 0, n);
  std::vector<float> units(static_cast<size_t>(padded + 16), 1.0f);
  std::vector<int32_t> codes(static_cast<size_t>(padded * pairs + 16)),
      bank(static_cast<size_t>(panels * int16::panel_stride(d)));
  std::vector<double> norms;
  for (int64_t r = 0; r < n; ++r) {
    const double own = record(metric).shares_frame ? 1.0 : std::ldexp(1.0, queries.frame(r).exponent);
    norms.push_back(static_cast<double>(above(std::sqrt(queries.frame(r).squares) * own * (1.0 + 0x1p-20))));
    units[static_cast<size_t>(r)] = static_cast<float>(std::min(int16::kQueryTarget / norms.back(), 0x1p40));
  }
  for (int64_t g = 0; g < padded; g += group)
    table.int16.quantize_queries(queries.data() + g / group * queries.stride(), group, d,
                                 &units[static_cast<size_t>(g)], &codes[static_cast<size_t>(g * pairs)]);
  const int16::Bound bound = int16::bound_of(d);
  table.int16.quantize_panels(pack_panels(&h).panel(0), panels, d, bound, bank.data());

  Seen seen{std::vector<float>(static_cast<size_t>(n * panels * kPanel)), panels * kPanel};
  const std::vector<float> open(static_cast<size_t>(padded), -HUGE_VALF);
  ScanArgs<int16::Tiles> scan;
  scan.tile.queries = codes.data();
  scan.tile.query_stride = group * pairs;
  scan.tile.group = group;
  scan.tile.rows = n;
  scan.tile.panels = bank.data();
  scan.tile.panel_stride = int16::panel_stride(d);
  scan.tile.width = d;
  scan.tile.columns = m;
  scan.tile.units = units.data();
  scan.thresholds = open.data();
  scan.context = &seen;
  scan.push = [](void* context, int64_t row, int64_t panel, const float* upper, uint32_t) {
    Seen& s = *static_cast<Seen*>(context);
    std::copy_n(upper, kPanel, &s.upper[static_cast<size_t>(row * s.columns + panel * kPanel)]);
  };
  table.int16.scan(scan);

  double used = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const float* xi = &x[static_cast<size_t>(i * d)];
    const double unit = static_cast<double>(units[static_cast<size_t>(i)]), norm = norms[static_cast<size_t>(i)];
    const double own = std::ldexp(1.0, queries.frame(i).exponent);
    const double slack = query_slack(metric, d, queries.frame(i).exponent, h.exponent).at(norm);
    for (int64_t j = 0; j < m; ++j) {
      if (pack_kinds(&h)[j] == RowKind::negligible && j != h.first_negligible) continue;  // the first stands for it
      const float* bj = &b[static_cast<size_t>(j * d)];
      int64_t sum = 0, most = 0;
      for (int64_t k = 0; k < d; ++k) {
        const auto code = [&](const int32_t* at, int64_t lanes, int64_t lane) {
          return static_cast<int64_t>(reinterpret_cast<const int16_t*>(at + k / 2 * lanes + lane)[k % 2]);
        };
        sum += code(&codes[static_cast<size_t>(i / group * group * pairs)], group, i % group) *
               code(&bank[static_cast<size_t>(j / kPanel * int16::panel_stride(d))], kPanel, j % kPanel);
        most = std::max(most, std::abs(sum));
      }
      CHECK(most < (int64_t{1} << 31));
      double target = 0.0;  // the score in packed units
      const double length = metric == Metric::cosine ? std::max(std::sqrt(dot(bj, bj, d)), kNormFloor) : 1.0;
      for (int64_t k = 0; k < d; ++k) {
        const double q = static_cast<double>(xi[k]), v = static_cast<double>(bj[k]);
        if (record(metric).shares_frame)
          target += (q - centre[k]) * scale * (v - centre[k]) * scale - 0.5 * std::pow((v - centre[k]) * scale, 2);
        else
          target += q * own * (v / length - centre[k]) * scale;
      }
      const float r = pack_panels(&h).line(j / kPanel, d + 1)[j % kPanel];
      const double upper = static_cast<double>(seen.upper[static_cast<size_t>(i * seen.columns + j)]);
      const double margin = static_cast<double>(bound.margin(r)) * (1.0 + 0x1p-20);
      const double start = start_bound_per_r2(metric, d) * static_cast<double>(r) * static_cast<double>(r);
      CHECK(upper + unit * slack >= unit * target);
      CHECK(upper - 2.0 * margin - unit * (2.0 * start + slack) <= unit * target);
      used = std::max(used, std::fabs(upper - margin - unit * target) / margin);
    }
    for (int64_t c = m; c < seen.columns; ++c)
      CHECK(seen.upper[static_cast<size_t>(i * seen.columns + c)] == -HUGE_VALF);
  }
  return used;
}

// Coordinates that lie halfway between two codes, all rounded the same way. The codes have the norm `norm`.
std::vector<float> halfway(int64_t count, int64_t d, double norm, uint32_t seed) {
  std::vector<float> v;
  std::mt19937 random(seed);
  const double most = 1.4 * norm / std::sqrt(static_cast<double>(d));
  while (static_cast<int64_t>(v.size()) < count * d) {
    std::vector<double> codes;
    double squares = 0.0;
    for (int64_t k = 0; k + 1 < d; ++k) {
      codes.push_back(2.0 * std::floor(std::uniform_real_distribution<double>(0.1, 0.5)(random) * most) + 0.5);
      squares += codes.back() * codes.back();
    }
    codes.push_back(std::sqrt(norm * norm - squares));
    if (!(codes.back() < 0.45 * norm)) continue;  // too long already, or the last one would decide the scale
    for (const double code : codes) v.push_back(static_cast<float>(code / norm));
  }
  return v;
}

template <class F>
void for_each_int16_isa(F&& f) {
  for_each_isa([&] {
    if (kernels().int16.scan != nullptr) f();
  });
}

}  // namespace

TEST(int16_bounds_hold) {
  for_each_int16_isa([] {
    const int64_t n = 2 * kernels().heights[0] - 1, m = 20;
    for (const Metric metric : {Metric::dot, Metric::cosine, Metric::sqeuclidean})
      for (const int64_t d : {1, 2, 16, 17, 301, 4096})
        for (int kind = 0; kind < (d > 1000 ? 1 : 7); ++kind) {
          auto x = gaussian<float>(n * d, 21), b = gaussian<float>(m * d, 22);
          for (size_t i = 0; i < x.size(); ++i) {
            float& v = x[i];
            if (kind == 1) v += 30.0f;                                    // centred
            if (kind == 2) v = std::round(v);                             // ties
            if (kind == 3 && i % static_cast<size_t>(d) == 0) v *= 1e4f;  // one coordinate has nearly all
            if (kind == 4) v = 1.0f;                                      // the largest sum there is
            if (kind == 5) v *= std::ldexp(1.0f, static_cast<int>(i) % 100 - 60);
            if (kind == 6) v *= 1e-12f;
          }
          for (size_t i = 0; i < b.size(); ++i) {
            float& v = b[i];
            if (kind == 1) v += 30.0f;
            if (kind == 2) v = std::round(v);
            if (kind == 3 && i % static_cast<size_t>(d) == static_cast<size_t>(d) / 2) v *= 1e4f;
            if (kind == 4) v = 1.0f;
            if (kind == 5) v *= std::ldexp(1.0f, static_cast<int>(i) % 30 - 20);
          }
          check_bounds(x, b, d, metric);
        }
  });
}

TEST(int16_bounds_at_their_worst) {
  for_each_int16_isa([] {
    for (const int64_t d : {32, 64, 256}) {
      const auto x = halfway(6, d, int16::kQueryTarget / (1.0 + 0x1.ep-21), 1);
      auto b = halfway(32, d, int16::kBankTarget / (1.0 + 0x1.3p-18), 2);
      for (size_t i = 0; i < b.size(); ++i)  // no common centre to take away
        if (i / static_cast<size_t>(d) % 2 == 1) b[i] = -b[i];
      const double used = check_bounds(x, b, d, Metric::dot);
      CHECK(used <= 1.0);
      CHECK(used > 0.6);  // or the bound is looser than it has to be
    }
  });
}

// Two clusters far apart, tight inside: 16 bits cannot distinguish their members, float32 can.
TEST(int16_gives_way_to_float32) {
  for_each_int16_isa([] {
    const int64_t d = 32, m = 2000, n = 300;
    auto b = gaussian<float>(m * d, 5, 0.3), x = gaussian<float>(n * d, 6, 0.3);
    for (size_t i = 0; i < b.size(); ++i) b[i] += i / static_cast<size_t>(d) % 2 == 0 ? 8.0f : -8.0f;
    for (size_t i = 0; i < x.size(); ++i) x[i] += i / static_cast<size_t>(d) % 2 == 0 ? 8.0f : -8.0f;
    for (const int64_t k : {1, 10}) {
      std::vector<int64_t> indices(static_cast<size_t>(n * k));
      SearchProblem p = problem_of(rows(x, d), rows(b, d), Metric::sqeuclidean);
      p.k = k;
      p.indices = indices.data();
      reset_counters();
      force_ways(SearchWay::screened, ProjectWay::automatic);
      CHECK(search(p, threads(1)) == Status::ok);
      force_ways(SearchWay::automatic, ProjectWay::automatic);
      CHECK(read_counters().repeated <= n / 64);
      for (int64_t i = 0; i < n; ++i) {
        std::vector<std::pair<double, int64_t>> all;
        for (int64_t j = 0; j < m; ++j) {
          double squares = 0.0;
          for (int64_t c = 0; c < d; ++c)
            squares += std::pow(static_cast<double>(x[static_cast<size_t>(i * d + c)]) -
                                    static_cast<double>(b[static_cast<size_t>(j * d + c)]),
                                2);
          all.emplace_back(squares, j);
        }
        std::partial_sort(all.begin(), all.begin() + k, all.end());
        for (int64_t t = 0; t < k; ++t)
          CHECK(indices[static_cast<size_t>(i * k + t)] == all[static_cast<size_t>(t)].second);
      }
    }
  });
}
