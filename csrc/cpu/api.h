// The CPU backend as its callers see it: plain pointers and the caller's threads in, a status back. Twin of cuda/api.h.
#pragma once

#include "../core/estimator.h"
#include "../core/lookup.h"
#include "../core/problem.h"
#include "../core/residual.h"
#include "parallel.h"

namespace vecbank::cpu {

int64_t pack_bytes(int64_t rows, int64_t width, Metric metric, bool biased = false);

// Writes the whole pack to `out` (pack_bytes long, 64-byte aligned). `bias`: one per row, added to dot products.
Status pack_bank(const Rows& bank, Metric metric, void* out, const Parallel& parallel, const double* bias = nullptr);

// Writes the rows again that have changed in the bank since it was packed, in the frame that the pack has; biases stay.
// Not `fit`: the pack no longer suits such a bank, and is to be made anew.
Status repack_rows(const Rows& bank, PackHeader* pack, const int64_t* rows, int64_t count, const Parallel& parallel,
                   bool* fit);

// Null when `pack` is no pack of such a bank: the header is checked before anything is read through it.
const PackHeader* check_pack(const void* pack, int64_t bytes, const Rows& bank, Metric metric, bool biased = false);

Status search(const SearchProblem& problem, const Parallel& parallel);
Status project(const ProjectProblem& problem, const Parallel& parallel);
Status lookup(const LookupProblem& problem, const Parallel& parallel);
Status lookup_dot(const LookupDotProblem& problem, const Parallel& parallel);
Status segment_sum(const SegmentSumProblem& problem, const Parallel& parallel);
Status quantize_loss(QuantizeLossProblem& problem, const Parallel& parallel);
Status pair_gradients(const PairProblem& problem, const Parallel& parallel);
Status pass_back(const PassBackProblem& problem, const Parallel& parallel);
Status product_quantize(const ProductProblem& problem, const Parallel& parallel);
Status residual_quantize(const ResidualProblem& problem, const Parallel& parallel);

// What search() did, summed over calls; Python reads and clears it.
struct Counters {
  int64_t queries, refined, repeated;  // rows asked; rows scored in float64; queries that fell to the last resort
};
Counters read_counters();
void reset_counters();

}  // namespace vecbank::cpu
