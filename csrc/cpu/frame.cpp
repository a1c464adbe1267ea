// Chooses the centre and the scale of a pack: from a sample first, from all rows where their scales lie far apart.
#include "frame.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace vecbank::cpu {
namespace {

double median(double* values, int64_t count) {  // the lower median: an element, so that integers stay integers
  if (count == 0) return 0.0;
  std::nth_element(values, values + (count - 1) / 2, values + count);
  return values[(count - 1) / 2];
}

constexpr int kReach = 74;  // distances: the powers of two that a frame can span and screen all rows in it

double norm_of(const double* row, const double* shift, int64_t width) {
  double squares = 0.0;
  for (int64_t k = 0; k < width; ++k) {
    const double v = row[k] - (shift != nullptr ? shift[k] : 0.0);
    squares += v * v;
  }
  return std::sqrt(squares);
}

// The medians of the coordinates take long, and shorten rows only where these have an offset in common: their mean is
// then about as long as they are.
constexpr double kNoOffset = 0.25;
constexpr int64_t kCoordinates = 512;

double norm_of_mean(const double* sample, int64_t count, int64_t width, int64_t stride) {
  double squares = 0.0, sum[kCoordinates];
  for (int64_t at = 0; at < width; at += kCoordinates) {
    const int64_t some = std::min(kCoordinates, width - at);
    std::fill_n(sum, some, 0.0);
    for (int64_t s = 0; s < count; ++s)
      for (int64_t k = 0; k < some; ++k) sum[k] += sample[s * stride + at + k];
    for (int64_t k = 0; k < some; ++k) squares += sum[k] * sum[k];
  }
  return std::sqrt(squares) / static_cast<double>(std::max<int64_t>(count, 1));
}

// Drops the sample's rows that are negligible next to its larger rows, since the frame must not depend on them. Returns
// how many rows stay, at the front. The larger rows are the largest sixteenth, so that a few ruined rows do not decide.
int64_t drop_negligible(double* sample, int64_t count, int64_t width, int64_t stride, double* norms) {
  int64_t finite = 0, kept = 0;
  for (int64_t s = 0; s < count; ++s) {
    const double norm = norm_of(sample + s * stride, nullptr, width);
    if (std::isfinite(norm)) norms[finite++] = norm;
  }
  if (finite == 0) return count;
  const int64_t at = finite / 16;
  std::nth_element(norms, norms + at, norms + finite, std::greater<>());
  const double least = std::ldexp(norms[at], -kNegligible);
  for (int64_t s = 0; s < count; ++s) {
    const double norm = norm_of(sample + s * stride, nullptr, width);
    if (norm < least || (norm == 0.0 && least > 0.0)) continue;
    std::copy_n(sample + s * stride, width, sample + kept++ * stride);
  }
  return kept;
}

}  // namespace

Status choose_frame(const Rows& bank, Metric metric, double* centre, int32_t* exponent, int32_t* centred, Stop stop) {
  const int64_t d = bank.width;
  std::fill_n(centre, d, 0.0);
  *exponent = 0;
  *centred = 0;
  const int64_t most = std::clamp<int64_t>((1 << 16) / std::max<int64_t>(d, 1), 15, 63);
  int64_t count = std::min(bank.count, most);
  if (count == 0 || d == 0) return Status::ok;
  Buffer<double> sample, column;
  NormScratch norms;
  const int64_t stride = round_up_to(d, 8);
  if (!sample.reserve(count * stride) || !column.reserve(count) || !norms.reserve(bank)) return Status::out_of_memory;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t i = count == 1 ? 0 : s * (bank.count - 1) / (count - 1);
    double* row = sample.get() + s * stride;
    const double scale = record(metric).unit_rows ? 1.0 / floored(norms.norm(bank, i)) : 1.0;
    kernels().widen(norms.reader.row(i), bank.dtype, d, row);
    for (int64_t k = 0; k < d; ++k) row[k] *= scale;
  }
  count = drop_negligible(sample.get(), count, d, stride, column.get());
  const auto median_norm = [&](const double* shift) {
    int64_t finite = 0;
    for (int64_t s = 0; s < count; ++s) {
      const double length = norm_of(sample.get() + s * stride, shift, d);
      if (std::isfinite(length)) column[finite++] = length;
    }
    const double middle = median(column.get(), finite);
    return middle > 0.0 || finite == 0 ? middle : *std::max_element(column.get(), column.get() + finite);
  };
  const double plain = median_norm(nullptr);
  double shifted = plain;
  if (!(norm_of_mean(sample.get(), count, d, stride) < kNoOffset * plain)) {
    for (int64_t k = 0; k < d; ++k) {
      if (k % 65536 == 0 && stop.requested()) return Status::stopped;
      int64_t finite = 0;
      for (int64_t s = 0; s < count; ++s)
        if (std::isfinite(sample[s * stride + k])) column[finite++] = sample[s * stride + k];
      centre[k] = median(column.get(), finite);
      // A centre of float32 values keeps the products of x . centre exact; the unit rows of cosine are rounded anyway.
      if (bank.dtype != DType::f64) centre[k] = static_cast<double>(static_cast<float>(centre[k]));
    }
    shifted = median_norm(centre);
  }
  *centred = shifted < 0.5 * plain;
  if (!*centred) std::fill_n(centre, d, 0.0);
  const double norm = *centred ? shifted : plain;
  if (norm == 0.0) return Status::ok;
  // The exponent leaves room for the largest row of the sample too, unless that row is ruined; revise_exponent() deals
  // with rows outside the sample.
  const double* shift = *centred ? centre : nullptr;
  int middle = std::ilogb(norm), top = middle;
  for (int64_t s = 0; s < count; ++s) {
    const double length = norm_of(sample.get() + s * stride, shift, d);
    if (length > norm && length <= std::ldexp(norm, kReach)) top = std::max(top, std::ilogb(length));
  }
  *exponent = std::clamp(std::min(-middle, kMaxPackedExponent - top), -960, 960);
  return Status::ok;
}

Status revise_exponent(const Rows& bank, Metric metric, const double* centre, const Parallel& parallel,
                       int32_t* exponent, double* negligible_below) {
  constexpr int kLowest = -1075, kBins = 2100;  // exponents of finite doubles
  struct Worker {
    RowReader reader;
    int64_t counts[kBins] = {};
  };
  PerWorker<Worker> workers(parallel.workers);
  if (!workers.each([&](Worker& worker) { return worker.reader.reserve(bank, 1); })) return Status::out_of_memory;
  constexpr int64_t kBatch = 1024;
  const Status counted = for_each_task(parallel, ceil_div(bank.count, kBatch), [&](int worker, int64_t task) {
    Worker& mine = workers[worker];
    for (int64_t i = task * kBatch; i < std::min(bank.count, (task + 1) * kBatch); ++i) {
      const double norm =
          std::sqrt(kernels().stats(mine.reader.row(i), bank.dtype, bank.width, {centre, 1.0, 1.0}).squares);
      if (norm > 0.0 && std::isfinite(norm)) ++mine.counts[std::ilogb(norm) - kLowest];
    }
  });
  if (counted != Status::ok) return counted;
  int64_t* counts = workers[0].counts;
  for (int w = 1; w < parallel.workers; ++w)
    for (int e = 0; e < kBins; ++e) counts[e] += workers[w].counts[e];
  const auto between = [&](int from, int to) {  // [from, to)
    int64_t sum = 0;
    for (int e = std::max(from, 0); e < to; ++e) sum += counts[e];
    return sum;
  };
  const auto largest_below = [&](int end) {
    int e = end - 1;
    while (e >= 0 && counts[e] == 0) --e;
    return e;
  };
  const bool shared = record(metric).shares_frame;
  // A few rows far beyond the others, such as ruined rows, must not decide the exponent: they become far rows or
  // fallback rows.
  int top = largest_below(kBins), bottom = 0;
  if (top < 0) return Status::ok;
  for (const int reach = shared ? kReach : 100;;) {
    bottom = std::max(0, top - kNegligible + 1);
    const int next = largest_below(shared ? bottom : top - reach);
    if (next < 0 || top - next <= reach || between(bottom, top + 1) * 64 >= between(0, top + 1)) break;
    top = next;
  }
  int middle = top;
  for (const int64_t half = between(bottom, top + 1) / 2; between(middle, top + 1) <= half;) --middle;
  *exponent = std::clamp(std::min(-(middle + kLowest), kMaxPackedExponent - (top + kLowest)), -960, 960);
  *negligible_below = shared ? std::ldexp(1.0, top + kLowest + *exponent - kNegligible) : 0.0;
  return Status::ok;
}

}  // namespace vecbank::cpu
