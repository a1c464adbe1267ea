// The frame of a pack: the centre that is subtracted from every row, and the power of two that scales the difference.
#pragma once

#include <cmath>

#include "../core/exact_score.h"
#include "../core/pack.h"
#include "isa.h"
#include "kernels.h"
#include "reader.h"

namespace vecbank::cpu {

// Norms to the last bit as the refinement sums them, since cosine divides by exactly these.
struct NormScratch {
  RowReader reader;
  Buffer<double> wide;
  bool reserve(const Rows& bank) { return reader.reserve(bank, 1) && wide.reserve(round_up_to(bank.width, 8)); }
  void norms(const Rows& bank, int64_t first, int64_t count, double* out) {  // of rows [first, first + count)
    self_squares(bank, reader, nullptr, first, count, out);
    for (int64_t i = 0; i < count; ++i) out[i] = std::sqrt(out[i]);
  }
  double norm(const Rows& bank, int64_t i) { return std::sqrt(self_squares(reader.row(i), bank.dtype, bank.width)); }
  // The largest coordinate of row i, by magnitude.
  double largest(const Rows& bank, int64_t i) {
    kernels().widen(reader.row(i), bank.dtype, bank.width, wide.get());
    double most = 0.0;
    for (int64_t k = 0; k < bank.width; ++k) most = std::fmax(most, std::fabs(wide[k]));
    return most;
  }
};

// Centre: the component-wise median of a sample where that makes rows much shorter, else zero. Any centre is correct;
// the median makes bounds tight for data far from the origin, and outliers do not move it.
// Exponent: the sample's median norm becomes about 1, or less where the sample's largest row needs the room.
Status choose_frame(const Rows& bank, Metric metric, double* centre, int32_t* exponent, int32_t* centred, Stop stop);

// For rows of very different scales: chooses the exponent from the norms of all rows, so that as many as possible can
// be screened. Rows whose norm is below `negligible_below` (packed units) are negligible.
Status revise_exponent(const Rows& bank, Metric metric, const double* centre, const Parallel& parallel,
                       int32_t* exponent, double* negligible_below);

constexpr int kMaxPackedExponent = 38;  // norms below 2^39 leave room under kMaxBankNorm
constexpr int kNegligible = 64;         // a row is negligible next to rows 2^64 times as large

}  // namespace vecbank::cpu
