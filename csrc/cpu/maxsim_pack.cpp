// The codes of documents' tokens (maxsim_codes.h).
#include "maxsim_codes.h"

namespace vecbank::cpu {
namespace {

// One worker's room for the tokens of a document.
struct Packer {
  FloatRows rows;
  Buffer<double> norms;
};

}  // namespace

int64_t maxsim_code_bytes(int64_t width) { return code_width(width); }

Status maxsim_pack(const RowSets& documents, Metric metric, uint8_t* codes, float* facts, const Parallel& parallel) {
  const Rows& rows = documents.rows;
  const int64_t d = rows.width, bytes = code_width(d), together = 16;
  const bool unit = record(metric).unit_rows;
  int64_t most_rows = 0;
  for (int64_t s = 0; s < documents.count; ++s) most_rows = std::max(most_rows, documents.size(s));
  PerWorker<Packer> packers(parallel.workers);
  if (!packers.each([&](Packer& p) { return p.rows.reserve(rows) && p.norms.reserve(most_rows + 8); }))
    return Status::out_of_memory;
  return for_each_task(parallel, ceil_div(documents.count, together), [&](int worker, int64_t task) {
    Packer& p = packers[worker];
    for (int64_t s = task * together; s < std::min(documents.count, (task + 1) * together); ++s) {
      const int64_t begin = documents.offsets[s], count = documents.size(s);
      double most = 0.0, longest = 0.0, worst = 0.0;
      bool odd = d > kMostCodedWidth;
      if (parallel.stop.requested()) return;
      self_squares(rows, p.rows.reader(), nullptr, begin, count, p.norms.get());
      for (int64_t i = 0; i < count; ++i) {
        const double norm = std::sqrt(p.norms[i]), scale = unit ? 1.0 / floored(norm) : 1.0;
        odd |= !(norm <= kLongestCoded);  // a NaN as well
        p.norms[i] = scale;
        longest = std::max(longest, norm * scale);
        most = std::max(most, static_cast<double>(kernels().maxsim.largest(p.rows.row(begin + i), d)) * scale);
      }
      odd |= most > 0.0 && most < kShortestCoded;
      const double step = odd || most == 0.0 ? 1.0 : static_cast<double>(above(most / 127.0));
      std::fill_n(codes + begin * bytes, count * bytes, static_cast<uint8_t>(kCodeZero));
      for (int64_t i = 0; i < count && !odd && !parallel.stop.requested(); ++i) {
        const auto factor = static_cast<float>(p.norms[i] / step);
        const float* row = p.rows.row(begin + i);
        worst =
            std::max(worst, static_cast<double>(kernels().maxsim.code(row, d, factor, codes + (begin + i) * bytes)));
      }
      const double error = step * std::sqrt(worst) * (1.0 + 0x1p-8) + 0x1p-21 * longest;
      facts[3 * s] = static_cast<float>(step);
      facts[3 * s + 1] = odd ? HUGE_VALF : above(error);
      facts[3 * s + 2] = odd ? HUGE_VALF : above(longest * (1.0 + 0x1p-20));
    }
  });
}

}  // namespace vecbank::cpu
