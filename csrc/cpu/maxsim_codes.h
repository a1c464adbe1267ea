// Codes of 8 bits of documents' tokens, which bound the scores of documents from above at a quarter of the bytes of
// float32 and up to four times its products a second. Made once (maxsim_pack()), for many searches.
//
// A token of a document is t = step (beta + e_t), with one step for all tokens of a document, and a query's token
// q = s (xi + e_q), with one s for each; beta and xi are whole numbers of at most 127, and of a cosine t and q are rows
// over their norms. Then
//     <q, t> = s step <xi, beta> + s <xi, step e_t> + s <e_q, t>,
// and by Cauchy and Schwarz the last two are at most s |xi| A + s |e_q| N, where A is the largest step |e_t| and N the
// largest |t| of the document. A maximum moves no further than what it is taken of, so the sum over a query's tokens of
// the maxima of s step <xi, beta> is within
//     E = X A + Y N,    X = sum of s |xi|,  Y = sum of s |e_q|,
// of the exact score. X, Y and N are measured in float64 and rounded up. A is measured in float32, where a coordinate
// over the step is off by 2^-22 of itself, and a sum of squares by (d + 4) 2^-24: 1 + 2^-8 times as much and 2^-21 N
// cover both. What is rounded besides (the sums of codes, which float32 holds within 2^-24 of themselves, their sum
// over the tokens, and the exact score itself) is in proportion to |q| |t|: kRounding (X + Y) (A + N) covers it.
#pragma once

#include <cmath>

#include "../core/maxsim.h"
#include "maxsim_sweep.h"

namespace vecbank::cpu {

constexpr double kCodeRounding = 0x1p-20;
constexpr int64_t kMostCodedWidth = 1 << 15;  // 255 * 127 * 2^15 < 2^31
constexpr double kShortestCoded = 1e-15, kLongestCoded = kMostTokenNorm;

inline int64_t code_width(int64_t width) { return round_up_to(width, 4); }  // bytes of a token's codes

// Whether there are codes for such tokens, and loops for them here.
inline bool has_codes(const MaxSimProblem& p) {
  return p.codes.codes != nullptr && kernels().maxsim.coded != nullptr && p.documents.rows.width <= kMostCodedWidth;
}

// The tokens of some queries as codes, in panels as TokenPanels has them.
class CodedQueries {
 public:
  // Of queries [first, first + queries).
  bool build(const TokenPanels& panels, int64_t first, int64_t queries, int64_t width) {
    const int64_t tokens = panels.begin(first + queries);
    const int64_t count = panels.panels(), groups = code_width(width) / 4;
    if (!codes_.reserve(count * groups * kPanel) || !starts_.reserve(count * kPanel) ||
        !units_.reserve(count * kPanel) || !lengths_.reserve(count * kPanel) || !errors_.reserve(count * kPanel) ||
        !reach_.reserve(2 * queries))
      return false;
    groups_ = groups;
    std::fill_n(codes_.get(), count * groups * kPanel, 0);
    for (int64_t t = 0; t < count * kPanel; ++t) {
      const float* line = panels.data() + t / kPanel * kPanel * width + t % kPanel;
      int32_t* out = codes_.get() + t / kPanel * kPanel * groups + t % kPanel;
      double most = 0.0, codes = 0.0, errors = 0.0;
      for (int64_t k = 0; k < width; ++k) most = std::max(most, std::fabs(static_cast<double>(line[k * kPanel])));
      const bool coded = t < tokens && most > kShortestCoded;
      const double unit = coded ? most / 127.0 : 1.0;
      int32_t sum = 0;
      for (int64_t k = 0; k < width; ++k) {
        const double exact = static_cast<double>(line[k * kPanel]) / unit;
        const auto code = static_cast<int32_t>(std::lrint(exact));
        const double error = exact - static_cast<double>(code);
        codes += static_cast<double>(code) * static_cast<double>(code);
        errors += error * error;
        sum += code;
        const int64_t place = code_place(k, width);
        out[place / 4 * kPanel] |= static_cast<int32_t>(static_cast<uint32_t>(code & 0xFF) << (place % 4 * 8));
      }
      starts_[t] = -kCodeZero * sum;
      units_[t] = unit;
      lengths_[t] = unit * std::sqrt(codes) * (1.0 + 0x1p-20);
      // The panels are rows rounded to float32: by cosine a unit row is off by 2^-24 of itself.
      errors_[t] = unit * (std::sqrt(errors) + 0x1p-22 * std::sqrt(codes)) * (1.0 + 0x1p-20) + kShortestCoded;
    }
    for (int64_t q = 0; q < queries; ++q) {
      const int64_t begin = panels.begin(first + q), end = panels.begin(first + q + 1);
      reach_[2 * q] = total(lengths_, begin, end);
      reach_[2 * q + 1] = total(errors_, begin, end);
    }
    return true;
  }
  const int32_t* codes() const { return codes_.get(); }
  const int32_t* starts() const { return starts_.get(); }
  int64_t groups() const { return groups_; }
  // At least the exact score of query number `query`, whose tokens are [begin, end), with a document, from its facts
  // and the best sums of codes; infinite where the document has no codes.
  float upper(const float* facts, const float* best, int64_t begin, int64_t end, int64_t query) const {
    double sum = 0.0;
    for (int64_t t = begin; t < end; ++t) sum += units_[t] * static_cast<double>(best[t]);
    const auto step = static_cast<double>(facts[0]), error = static_cast<double>(facts[1]);
    const double norm = static_cast<double>(facts[2]), x = reach_[2 * query], y = reach_[2 * query + 1];
    const double bound = sum * step + x * error + y * norm + kCodeRounding * (x + y) * (error + norm);
    return std::fabs(bound) < 0x1p120 ? above(bound) : HUGE_VALF;  // a NaN as well
  }

 private:
  static double total(const Buffer<double>& of, int64_t begin, int64_t end) {
    double sum = 0.0;
    for (int64_t t = begin; t < end; ++t) sum += of[t];
    return sum * (1.0 + 0x1p-20);
  }
  int64_t groups_ = 0;
  Buffer<int32_t> codes_, starts_;
  Buffer<double> units_, lengths_, errors_, reach_;
};

// One worker's pass over the codes of some documents.
class CodeSweep {
 public:
  bool reserve(int64_t panels) {
    lanes_ = panels * kPanel;
    const int64_t most = DocumentSweep::most_documents(panels);
    return best_.reserve(most * lanes_) && running_.reserve(2 * lanes_) && ends_.reserve(most) && place_.reserve(most);
  }
  // Documents [first, last), at most most_documents() of them.
  void run(const MaxSimProblem& p, const CodedQueries& queries, int64_t first, int64_t last, Stop stop) {
    const RowSets& documents = p.documents;
    const int64_t begin = documents.offsets[first], end = documents.offsets[last];
    int64_t count = 0;
    for (int64_t d = first; d < last; ++d) {
      place_[d - first] = count;
      if (documents.size(d) > 0) ends_[count++] = documents.offsets[d + 1] - begin;
    }
    std::fill_n(running_.get(), lanes_, -HUGE_VALF);
    if (count == 0 || stop.requested()) return;
    const int64_t bytes = code_width(documents.rows.width);
    BestArgs<int32_t> a;
    a.rows = reinterpret_cast<const int32_t*>(p.codes.codes + begin * bytes);
    a.row_stride = bytes / 4;
    a.count = end - begin;
    a.width = queries.groups();
    a.panels = queries.codes();
    a.starts = queries.starts();
    a.panel_count = lanes_ / kPanel;
    a.ends = ends_.get();
    a.documents = count;
    a.running = running_.get();
    a.best = best_.get();
    a.stride = lanes_;
    kernels().maxsim.coded(a);
  }
  const float* best(int64_t i) const { return best_.get() + place_[i] * lanes_; }

 private:
  int64_t lanes_ = 0;
  Buffer<float> best_, running_;
  Buffer<int64_t> ends_, place_;
};

}  // namespace vecbank::cpu
