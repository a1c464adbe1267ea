// The interface of the CPU backend: functions take plain pointers and the caller's threads, and return a status. The
// counterpart of cuda/api.h.
#pragma once

#include "../core/attend.h"
#include "../core/bits.h"
#include "../core/estimator.h"
#include "../core/lookup.h"
#include "../core/maxsim.h"
#include "../core/problem.h"
#include "../core/residual.h"
#include "../core/sparse.h"
#include "parallel.h"

namespace vecbank::cpu {

using vecbank::pack_bytes;  // the layout of core/pack.h

// What the panels of a bank's pack for searches hold, where searches begin with this screen.
PanelKind panels_for_search(int64_t rows, int64_t width, Metric metric, ScreenChoice screen = ScreenChoice::automatic);

// Writes the whole pack to `out` (pack_bytes long, 64-byte aligned). `bias`: one per row, added to dot products.
// Status::bad_rotation: the matrix is not orthogonal.
Status pack_bank(const Rows& bank, Metric metric, void* out, const Parallel& parallel, const double* bias = nullptr,
                 PanelKind kind = PanelKind::float32, ScreenChoice screen = ScreenChoice::automatic,
                 HeadChoice head = {});

// Packs again the rows that have changed since the bank was packed, in the pack's frame. `bias`: the same as then.
// `fit` becomes false where the frame no longer suits the bank, which must then be packed anew.
Status repack_rows(const Rows& bank, PackHeader* pack, const int64_t* rows, int64_t count, const Parallel& parallel,
                   const double* bias, bool* fit);

// Returns null unless `pack` is a pack of such a bank. The header is checked before anything is read through it.
const PackHeader* check_pack(const void* pack, int64_t bytes, const Rows& bank, Metric metric, bool biased = false);

Status search(const SearchProblem& problem, const Parallel& parallel);
// The best k of `count` keys and rows of each query, as search() returns them; a row of -1 stands for none.
Status merge_keys(const double* keys, const int64_t* rows, int64_t count, const SearchProblem& problem,
                  const Parallel& parallel);
Status project(const ProjectProblem& problem, const Parallel& parallel);
// Many small problems, which share the workers.
Status search_each(const SearchProblem* problems, int64_t count, const Parallel& parallel);
Status project_each(const ProjectProblem* problems, int64_t count, const Parallel& parallel);
Status project_gradients(const ProjectGradientProblem& problem, const Parallel& parallel);
Status project_gradients_each(const ProjectGradientProblem* problems, int64_t count, const Parallel& parallel);
Status attend(const AttendProblem& problem, const Parallel& parallel);
Status attend_gradients(const AttendGradientProblem& problem, const Parallel& parallel);
Status lookup(const LookupProblem& problem, const Parallel& parallel);
Status lookup_dot(const LookupDotProblem& problem, const Parallel& parallel);
Status segment_sum(const SegmentSumProblem& problem, const Parallel& parallel);
Status quantize_loss(QuantizeLossProblem& problem, const Parallel& parallel);
Status pair_gradients(const PairProblem& problem, const Parallel& parallel);
Status pass_back(const PassBackProblem& problem, const Parallel& parallel);
Status product_quantize(const ProductProblem& problem, const Parallel& parallel);
// Whether so few rows are coded faster by codebooks that are not packed.
bool codes_without_packs(const ProductProblem& problem);
Status residual_quantize(const ResidualProblem& problem, const Parallel& parallel);

// Status::bad_index: the problem says which document is wrong.
Status invert(InvertProblem& problem, const Parallel& parallel);
Status sparse_search(const SparseSearchProblem& problem, const Parallel& parallel);
Status sparse_gradients(const SparseGradientProblem& problem, const Parallel& parallel);
// All scores; those of the listed documents, exact; and the best documents, exact.
Status maxsim(const MaxSimProblem& problem, const Parallel& parallel);
Status maxsim_pairs(const MaxSimProblem& problem, const Parallel& parallel);
Status maxsim_topk(const MaxSimProblem& problem, const Parallel& parallel);
// Codes of documents' tokens for maxsim_topk(): maxsim_code_bytes() of each token, and three facts of each document.
int64_t maxsim_code_bytes(int64_t width);
Status maxsim_pack(const RowSets& documents, Metric metric, uint8_t* codes, float* facts, const Parallel& parallel);
class Hits;  // search/radius.h
// Searches of packed bits. Ranks that no row fills hold kNoDistance and index -1; k may exceed the bank. bits_scores()
// writes all distances. largest_bit_distance() must not be -1.
Status bits_topk(const BitsProblem& problem, const Parallel& parallel);
Status bits_scores(const BitsProblem& problem, const Parallel& parallel);
// All rows at most `radii` of each query away; p.k, p.values and p.indices are not read.
Status bits_within(const BitsProblem& problem, const int64_t* radii, bool count_only, Hits& hits,
                   const Parallel& parallel);

// What search() did, summed over calls; Python reads and clears the counters.
struct Counters {
  int64_t queries, refined;  // query rows; bank rows scored in float64
  int64_t repeated;          // query rows that fell back, counted once for each part of the bank
  int64_t screened[4];  // query rows that the head, int8, int16 and float32 screens scanned for, once for each part
  int64_t bytes;        // of the bank and its pack that were read for that
  int64_t dimensions;   // coordinates of pairs that screens multiplied
  int64_t pairs;        // pairs that the first screen of a part scanned
};
Counters read_counters();

// What the head of a pack left to do, in pairs of a query and a bank row: how many there were in so many searches; how
// many its screen scanned, and the further coordinates of how many were looked at; and how many another screen did
// again.
struct HeadUse {
  int64_t searches = 0, pairs = 0, scanned = 0, survivors = 0, repeated = 0;
};
// Of the searches with this pack since it was last asked for, by any thread. Those of a pack that many others were used
// after may be forgotten.
HeadUse take_head_use(const void* pack);

void reset_counters();

// For tests: every search and product goes this way, where it can.
enum class SearchWay { automatic, screened, refined, gathered };  // gathered: of rows that all queries share
enum class ProjectWay { automatic, packed, direct, exact, raw };
void force_ways(SearchWay search, ProjectWay project);

// Rows of panels that calls of pack_bank() have written so far, all of them together, padding and second passes too; it
// only grows. For progress bars.
int64_t packed_rows();

}  // namespace vecbank::cpu
