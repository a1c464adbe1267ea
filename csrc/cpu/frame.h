// The frame of a pack: the centre that is taken from every row, and the power of two that scales it.
#pragma once

#include <cmath>

#include "../core/pack.h"
#include "isa.h"
#include "kernels.h"
#include "reader.h"

namespace vecbank::cpu {

inline double floored(double norm) { return norm < kNormFloor ? kNormFloor : norm; }  // NaN stays

// The refinement's own norms, in its own order: cosine divides by exactly these.
struct NormScratch {
  RowReader reader;
  Buffer<double> wide;
  bool reserve(const Rows& bank) { return reader.reserve(bank, 1) && wide.reserve(round_up_to(bank.width, 8)); }
  double norm(const Rows& bank, int64_t i) {
    const void* row = reader.row(i);
    kernels().widen(row, bank.dtype, bank.width, wide.get());
    ScoreArgs self;
    self.queries = wide.get();
    self.bank = bank;
    self.bank.data = row;
    self.bank.row_stride = 0;
    self.count = 1;
    double squares = 0.0;
    self.out = &squares;
    kernels().score(self);
    return std::sqrt(squares);
  }
  // The largest coordinate of row i, by magnitude.
  double largest(const Rows& bank, int64_t i) {
    kernels().widen(reader.row(i), bank.dtype, bank.width, wide.get());
    double most = 0.0;
    for (int64_t k = 0; k < bank.width; ++k) most = std::fmax(most, std::fabs(wide[k]));
    return most;
  }
};

// Centre: the component-wise median of a sample where that makes rows much shorter, else zero. Any centre is right;
// this one makes bounds tight for data far from the origin, and no outlier can drag it.
// Exponent: brings the sample's median norm to about 1, or less where its largest needs the room.
Status choose_frame(const Rows& bank, Metric metric, double* centre, int32_t* exponent, int32_t* centred, Stop stop);

// Rows of very different scale: an exponent chosen from the norms of all of them, so that as many as possible can be
// screened. A row whose norm is below `negligible_below` (packed units) is as good as zero beside the others.
Status revise_exponent(const Rows& bank, Metric metric, const double* centre, const Parallel& parallel,
                       int32_t* exponent, double* negligible_below);

constexpr int kMaxPackedExponent = 38;  // norms below 2^39 leave room under kMaxBankNorm
constexpr int kNegligible = 64;         // a row 2^-64 of the largest cannot be told from zero beside it

}  // namespace vecbank::cpu
