// Every screen's bounds, pair by pair, on the emulator: thresholds that let everything pass, so each candidate's
// [lower, upper] must hold the exact map of its score. OwnRows is random, or made so that roundings add up against the
// bound.
#define VECBANK_EMULATE 1
#include "cuda_emulator.h"

#include "check.h"
#include "cuda/kernels.h"
#include "cuda/plan.h"
#include "cuda/tensor_cores/bounds.h"

namespace {

using namespace vecbank;
using namespace vecbank::cpu;

struct Screened {
  std::vector<cuda::Candidate> candidates;  // [query][bank row], in any order
  std::vector<int32_t> counts;
  std::vector<double> slacks;
  PackHeader header;
  std::vector<double> centre;
};

Screened screen_everything(const Rows& x, const Rows& b, Metric metric, const double* bias, cuda::Path path) {
  const int64_t n = x.count, m = b.count, d = b.width, panels = ceil_div(m, kPanel);
  cuda::State state{};
  cuda::Device device;
  device.path = path;
  device.capability = path == cuda::Path::sm90 ? 90 : 80;
  device.processors = 3;
  device.state = &state;
  Screened out;
  out.centre.resize(static_cast<size_t>(d));
  std::vector<double> sample(cuda::kThreads);
  // The operands of the bank come from its pack, which holds bounds for either kind of queries.
  const PackHeader host = cuda::device_pack_layout(m, d, metric, b.dtype, bias != nullptr);
  std::vector<uint64_t> pack(static_cast<size_t>(cuda::device_pack_bytes(m, d, metric)) / 8 + 1);
  PackHeader* header = reinterpret_cast<PackHeader*>(pack.data());
  device.workspace = sample.data();
  CHECK(cuda::pack_bank(b, metric, pack.data(), device, bias) == nullptr);
  out.header = *header;
  std::copy_n(pack_centre(header), d, out.centre.data());

  SearchProblem p;
  p.queries = x, p.bank = b, p.metric = metric, p.bias = bias;
  const cuda::SearchPlan plan = cuda::plan_search(p, device.processors, path);
  std::vector<float> norms(static_cast<size_t>(n)), thresholds(norms);
  out.slacks.resize(norms.size());
  out.counts.resize(norms.size());
  cuda::QueryPanels q{};
  q.queries = x, q.metric = metric, q.tensor = plan.operands;
  q.header = header, q.centre = out.centre.data(), q.expected = host, q.state = &state;
  q.norms = norms.data(), q.slacks = out.slacks.data(), q.thresholds = thresholds.data(), q.counts = out.counts.data();
  cuda::BankPanels bank;
  bank.bank = b, bank.metric = metric, bank.header = header, bank.centre = out.centre.data(), bank.bias = bias;
  bank.schedule = cuda::make_schedule(m), bank.count = panels;

  const auto floats = [](int64_t count) { return std::make_unique<float[]>(static_cast<size_t>(count)); };
  const int64_t pitch = cuda::operand_pitch(d);
  const auto queries = floats(std::max(round_up_to(n, kPanel) * (d + 1), cuda::operand_rows(n) * pitch / 2));
  const auto held = floats(panels * (d + 3) * kPanel);
  cuda::Screen s{};
  s.rows = n, s.width = d, s.schedule = bank.schedule, s.end = panels, s.columns = m, s.metric = metric;
  s.biased = bias != nullptr;
  s.norms = norms.data(), s.slacks = out.slacks.data();
  s.start_per_r2 = start_bound_per_r2(metric, d);
  out.candidates.resize(static_cast<size_t>(n * m));
  s.thresholds = thresholds.data(), s.counts = out.counts.data(), s.candidates = out.candidates.data();
  s.capacity = static_cast<int32_t>(m);
  s.blocks = 2;
  if (plan.operands) {
    const cuda::PackedOperands held_operands = cuda::packed_operands(header, b, metric);
    s.bank_operand = held_operands.rows;
    s.terms = held_operands.terms.of_queries(x.dtype == s.bank_operand.type);
    s.query_operand = {s.bank_operand.type, reinterpret_cast<uint16_t*>(queries.get()), pitch};
    const cuda::QueryOperands operands{q, s.query_operand};
    CHECK(cuda::pack_operands(&operands, nullptr, device) == nullptr);
    CHECK((plan.hopper ? cuda::screen_sm90(s, device) : cuda::screen_mma16(s, device)) == nullptr);
  } else {
    q.panels = queries.get(), bank.panels = held.get();
    s.queries = queries.get(), s.panels = held.get();
    CHECK(cuda::pack_panels<float>(&q, &bank, device) == nullptr);
    CHECK(cuda::screen_simt(s, device) == nullptr);
  }
  CHECK(state.bad_codes == 0);
  return out;
}

// The exact map of a pair's score, in the screen's units.
long double exact_score(const Rows& x, int64_t q, const Rows& b, int64_t j, Metric metric, const double* bias,
                        const Screened& s) {
  const auto at = [](const Rows& rows, int64_t i, int64_t k) {
    return with_dtype(rows.dtype, [&](auto t) {
      return static_cast<long double>(widened(reinterpret_cast<decltype(t)>(cuda::row_of(rows, i))[k]));
    });
  };
  const long double post = std::ldexp(1.0L, s.header.exponent);
  long double norm = 1.0L, sum = 0.0L, squares = 0.0L;
  if (metric == Metric::cosine) {
    norm = 0.0L;
    for (int64_t k = 0; k < b.width; ++k) norm += at(b, j, k) * at(b, j, k);
    norm = std::sqrt(norm);
  }
  for (int64_t k = 0; k < b.width; ++k) {
    const long double c = s.header.centred ? static_cast<long double>(s.centre[static_cast<size_t>(k)]) : 0.0L;
    const long double v = (at(b, j, k) / norm - c) * post;
    sum += (record(metric).shares_frame ? (at(x, q, k) - c) * post : at(x, q, k)) * v;
    squares += v * v;
  }
  if (record(metric).shares_frame) return sum - squares / 2.0L;
  double of_query = 0.0;
  for (int64_t k = 0; k < b.width; ++k) of_query += static_cast<double>(at(x, q, k) * at(x, q, k));
  const double limit = query_limit(metric, s.header.exponent, bias != nullptr);
  sum *= std::ldexp(1.0L, query_frame(metric, b.width, of_query, s.header.exponent, bias != nullptr, limit).exponent);
  return bias != nullptr ? sum + static_cast<long double>(bias[j]) * post : sum;
}

// How far the worst score lies from the middle of its interval, in half widths: below 1, and near it where the data is
// meant to be the worst.
double tightness(const Rows& x, const Rows& b, Metric metric, cuda::Path path, const char* what,
                 const double* bias = nullptr) {
  const Screened s = screen_everything(x, b, metric, bias, path);
  double worst = 0.0;
  for (int64_t q = 0; q < x.count; ++q) {
    const int32_t count = s.counts[static_cast<size_t>(q)];
    CHECK(count == b.count);
    const long double slack = s.slacks[static_cast<size_t>(q)];
    for (int32_t i = 0; i < std::min<int64_t>(count, b.count); ++i) {
      const cuda::Candidate& c = s.candidates[static_cast<size_t>(q * b.count + i)];
      const long double exact = exact_score(x, q, b, c.column, metric, bias, s);
      const long double middle = (static_cast<long double>(c.upper) + c.lower) / 2.0L + slack / 2.0L;
      const long double half = (static_cast<long double>(c.upper) - c.lower) / 2.0L + slack / 2.0L;
      const bool holds = exact <= c.upper + slack && exact >= c.lower;
      CHECK(holds);
      if (!holds) {
        std::printf("  %s: metric %d path %d d %lld: row %lld column %u\n", what, static_cast<int>(metric),
                    static_cast<int>(path), static_cast<long long>(b.width), static_cast<long long>(q), c.column);
        return 2.0;
      }
      if (half > 0.0L) worst = std::max(worst, static_cast<double>(std::fabs(exact - middle) / half));
    }
  }
  return worst;
}

const Metric kMetrics[] = {Metric::dot, Metric::cosine, Metric::l2};
const cuda::Path kPaths[] = {cuda::Path::simt, cuda::Path::mma16, cuda::Path::sm90};

TEST(cuda_bounds_hold_on_random_data) {
  uint32_t seed = 1;
  for (const cuda::Path path : kPaths)
    for (const Metric metric : kMetrics)
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
        for (const double offset : {0.0, 30.0}) {
          const int64_t d = 1 + (++seed * 37) % 150;
          const OwnRows x(gaussian<double>(5 * d, ++seed, 1.0, offset), d, dtype);
          const OwnRows b(gaussian<double>(90 * d, ++seed, 1.0, offset), d, dtype);
          CHECK(tightness(x.rows, b.rows, metric, path, "random") > 0.0);
        }
  for (const cuda::Path path : {cuda::Path::simt, cuda::Path::mma16, cuda::Path::sm90})
    for (const double scale : {1e25, 1e-25}) {  // queries that are scaled by a power of two of their own
      const OwnRows x(gaussian<double>(5 * 30, ++seed, scale), 30, DType::f32),
          b(gaussian<double>(60 * 30, ++seed), 30, DType::f32);
      CHECK(tightness(x.rows, b.rows, Metric::dot, path, "scaled queries") > 0.0);
    }
  for (const cuda::Path path : {cuda::Path::mma16, cuda::Path::sm90})  // every dtype against every other
    for (const Metric metric : kMetrics)
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
        for (const DType other : {DType::f32, DType::bf16, DType::f16}) {
          if (dtype == other) continue;
          const int64_t d = 1 + (++seed * 37) % 90;
          const OwnRows x(gaussian<double>(5 * d, ++seed), d, dtype), b(gaussian<double>(60 * d, ++seed), d, other);
          CHECK(tightness(x.rows, b.rows, metric, path, "mixed") > 0.0);
        }
  const auto bias = gaussian<double>(90, 5, 10.0);
  for (const cuda::Path path : kPaths) {
    const OwnRows x(gaussian<double>(5 * 24, 6), 24, DType::bf16), b(gaussian<double>(90 * 24, 7), 24, DType::bf16);
    CHECK(tightness(x.rows, b.rows, Metric::dot, path, "bias", bias.data()) > 0.0);
  }
}

// Every coordinate of the bank just above, or just below, the middle between two bf16 numbers, and queries of ones: the
// losses add up. Half the bound would not hold.
TEST(cuda_bounds_hold_where_roundings_add_up) {
  for (const int64_t d : {1, 16, 64, 100}) {
    std::vector<double> bs;
    for (int64_t j = 0; j < 80; ++j)  // of either sign, so that no centre helps
      for (int64_t k = 0; k < d; ++k)
        bs.push_back((j % 4 < 2 ? 1.0 : -1.0) * (1.0 + 0x1p-8 + (j % 2 == 0 ? 0x1p-20 : -0x1p-20)));
    const OwnRows x(std::vector<double>(static_cast<size_t>(3 * d), 1.0), d, DType::f32), b(bs, d, DType::f32);
    const double t = tightness(x.rows, b.rows, Metric::dot, cuda::Path::mma16, "aligned");
    CHECK(t > 0.6 && t <= 1.0);
    // The queries lose as much, which raises their norm: twice what a usual row's is.
    std::vector<double> signs(static_cast<size_t>(80 * d), 1.0);
    for (size_t i = 0; i < signs.size(); ++i) signs[i] = i / static_cast<size_t>(d) % 2 == 0 ? 1.0 : -1.0;
    const double of_queries =
        tightness(b.rows, OwnRows(signs, d, DType::f32).rows, Metric::dot, cuda::Path::mma16, "aligned queries");
    CHECK(of_queries > 0.9 && of_queries <= 1.0);
  }
}

// A large start, and products that each fall just below what the accumulator keeps (tensor_cores/bounds.h assumes as
// much): every instruction loses all sixteen.
TEST(cuda_bounds_hold_where_sums_lose) {
  for (const auto& [path, d] : {std::pair<cuda::Path, int64_t>{cuda::Path::mma16, 512}, {cuda::Path::sm90, 256}})
    for (const DType dtype : {DType::bf16, DType::f16}) {
      const int64_t m = 40;
      const std::vector<double> bias(static_cast<size_t>(m), 1.0);
      const OwnRows x(std::vector<double>(static_cast<size_t>(2 * d), 0x1p-10 * (1.0 - 0x1p-8)), d, dtype);
      std::vector<double> bs(static_cast<size_t>(m * d), 0x1p-14);
      for (size_t i = 0; i < bs.size(); ++i) bs[i] *= i / static_cast<size_t>(d) % 2 == 0 ? 1.0 : -1.0;
      const OwnRows b(bs, d, dtype);
      const double t = tightness(x.rows, b.rows, Metric::dot, path, "sums", bias.data());
      CHECK(t > 0.6 && t <= 1.0);
    }
}

}  // namespace
