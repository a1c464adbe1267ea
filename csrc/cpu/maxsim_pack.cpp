// The codes of documents' tokens (maxsim_codes.h).
#include "maxsim_codes.h"

namespace vecbank::cpu {
namespace {

// A sum of this size is rounded to a whole number.
constexpr double kRounds = 0x1.8p52;

struct Packer {
  RowReader reader;
  Buffer<double> row;
  bool reserve(const Rows& rows) { return reader.reserve(rows, 1) && row.reserve(round_up_to(rows.width, 8)); }

  // The row, over its norm where `unit`; returns the norm that it then has.
  double load(const Rows& rows, int64_t i, bool unit) {
    const void* from = reader.row(i);
    kernels().widen(from, rows.dtype, rows.width, row.get());
    const double norm = std::sqrt(self_squares(from, rows.dtype, rows.width));
    if (!unit || !std::isfinite(norm)) return norm;
    const double scale = 1.0 / floored(norm);
    for (int64_t k = 0; k < rows.width; ++k) row[k] *= scale;
    return norm * scale;
  }
};

}  // namespace

int64_t maxsim_code_bytes(int64_t width) { return code_width(width); }

Status maxsim_pack(const RowSets& documents, Metric metric, uint8_t* codes, float* facts, const Parallel& parallel) {
  const Rows& rows = documents.rows;
  const int64_t d = rows.width, bytes = code_width(d), together = 16;
  const bool unit = record(metric).unit_rows;
  PerWorker<Packer> packers(parallel.workers);
  if (!packers.each([&](Packer& p) { return p.reserve(rows); })) return Status::out_of_memory;
  return for_each_task(parallel, ceil_div(documents.count, together), [&](int worker, int64_t task) {
    Packer& p = packers[worker];
    const double* row = p.row.get();
    for (int64_t s = task * together; s < std::min(documents.count, (task + 1) * together); ++s) {
      const int64_t begin = documents.offsets[s], end = documents.offsets[s + 1];
      double most = 0.0, longest = 0.0, worst = 0.0;
      bool odd = d > kMostCodedWidth;
      for (int64_t i = begin; i < end && !parallel.stop.requested(); ++i) {
        const double norm = p.load(rows, i, unit);
        odd |= !(norm <= kLongestCoded);  // a NaN as well
        longest = std::max(longest, norm);
        for (int64_t k = 0; k < d; ++k) most = std::max(most, std::fabs(row[k]));
      }
      odd |= most > 0.0 && most < kShortestCoded;
      const double step = odd || most == 0.0 ? 1.0 : static_cast<double>(above(most / 127.0));
      for (int64_t i = begin; i < end && !parallel.stop.requested(); ++i) {
        uint8_t* out = codes + i * bytes;
        std::fill_n(out, bytes, static_cast<uint8_t>(kCodeZero));
        if (odd) continue;
        p.load(rows, i, unit);
        double errors = 0.0;
        for (int64_t k = 0; k < d; ++k) {
          const double exact = row[k] / step, code = (exact + kRounds) - kRounds, error = exact - code;
          errors += error * error;
          out[k] = static_cast<uint8_t>(static_cast<int32_t>(code) + kCodeZero);
        }
        worst = std::max(worst, std::sqrt(errors));
      }
      facts[3 * s] = static_cast<float>(step);
      facts[3 * s + 1] = odd ? HUGE_VALF : above(worst * step * (1.0 + 0x1p-20));
      facts[3 * s + 2] = odd ? HUGE_VALF : above(longest * (1.0 + 0x1p-20));
    }
  });
}

}  // namespace vecbank::cpu
