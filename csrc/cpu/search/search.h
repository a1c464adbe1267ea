// The data of a search: the plan, the job (one packed piece of a bank), and the task (a block of queries against a part
// of the piece) that a worker runs.
#pragma once

#include <atomic>

#include "../allowed.h"
#include "../api.h"
#include "../pieces.h"
#include "../topk_list.h"

namespace vecbank::cpu {

constexpr int64_t kQueryBytes = 192 << 10;    // packed queries of a block: part of L2
constexpr int64_t kPartialBytes = 16 << 20;   // best rows of all parts, waiting for the merge
constexpr int64_t kVisitBytes = 64 << 10;     // panels of a visit
constexpr int64_t kLongVisitBytes = 1 << 20;  // panels of a visit for few queries, where memory limits the speed

// Panels [from, to), where the next visit begins, and where the run of visits ends that this one belongs to.
struct Visit {
  int64_t from, to, next, run_end = 0;

  // Whether what was prepared for this visit, from its first panel on, serves another one.
  bool covers(const Visit& other) const { return other.from == from && other.to <= to; }
};
constexpr Visit kNoVisit{-1, -1, -1};
inline int64_t panels_per_visit(int64_t bytes, int64_t width) {
  return std::max<int64_t>(4, bytes / ((width + 3) * kPanel * 4));
}

struct SearchPlan {
  int group = 1;              // query rows of a register tile
  bool refined_only = false;  // nothing is screened: no screen serves this metric, k or width
  int first_screen = 0;       // of kScreens, unless refined_only
  PanelKind panels = PanelKind::float32;
  int64_t head = 0;  // the width of the pack's head; 0: none
  Grid grid;

  bool begins_with_head() const;
};

SearchPlan plan_search(const SearchProblem& problem, const PackHeader& header, int workers);

// Refining a candidate takes about as long as screening so many columns: 100 (d + 80) products.
inline int64_t columns_per_candidate(int64_t width) {
  const int64_t d = std::max<int64_t>(1, width);
  return 100 * (d + 80) / d;
}

// HeadUse of api.h, while workers add to it.
struct SharedHeadUse {
  std::atomic<int64_t> scanned{0}, survivors{0}, repeated{0};
};

struct SearchJob {
  const SearchProblem& problem;  // whose bank is this job's piece
  const PackHeader& header;
  SearchPlan plan;
  Stop stop{};
  int64_t offset = 0;                    // of this piece in the caller's bank
  std::atomic<float>* shared = nullptr;  // per query: the best threshold that any part has proved, in packed units
  const Scored* earlier = nullptr;       // [query][k]: the best of the pieces before this one, if any
  const int64_t* earlier_counts = nullptr;
  Scored* partial = nullptr;          // [part][query][k]; null: a single part, whose results are written directly
  int64_t* partial_counts = nullptr;  // [part][query]
  SharedHeadUse* head_use = nullptr;  // null: the first screen is not a head's
  AllowedRows allowed{};              // of the whole bank
  const float* expected = nullptr;    // per query: about how many rows it may be given; null: all
  int64_t expected_of = 0;            // rows of the whole bank
};

struct SearchTask {
  const SearchJob* job = nullptr;
  int64_t first = 0, rows = 0;  // queries
  int64_t from = 0, to = 0;     // panels of the part
  int64_t begin = 0, end = 0;   // bank rows of the part
  int64_t part = 0;
  int64_t negligible = -1;  // the first negligible row, if it stands for others and this part screens it

  SearchTask() = default;
  SearchTask(const SearchJob& job, const GridTask& task);

  // Reports the best `count` bank rows of query `row` of the block, numbered within the piece.
  void report(int64_t row, const Scored* best, int64_t count) const;
  // Whether query `row` may be given row `j` of the piece.
  bool allows(int64_t row, int64_t j) const { return job->allowed.allows(first + row, job->offset + j); }
  // Narrows [from, to) to the panels where a query that is screened may be given a row.
  template <class Screens>
  void clip_to_allowed(Screens&& screens) {
    if (!job->allowed.any_set()) return;
    int64_t least = end, most = begin;
    for (int64_t r = 0; r < rows; ++r) {
      if (!screens(r)) continue;
      const AllowedRows::Extent extent = job->allowed.extent(first + r);
      least = std::min(least, extent.first - job->offset);
      most = std::max(most, extent.end - job->offset);
    }
    from = std::min(std::max(from, least / kPanel), to);
    to = std::max(from, std::min(to, ceil_div(most, kPanel)));
  }
  // AllowedRows::list() within the piece.
  int64_t list_allowed(int64_t row, int64_t* from, int64_t to, int64_t room, int64_t* out) const;
};

// Writes a query's final list as values, indices and the gathered row.
void write_result(const SearchProblem& whole, int64_t query, const Scored* best, int64_t count);

class SearchWorker;

// A search of few queries by one worker, for drivers that share out the work themselves. `p.pack` must not be null.
Status search_alone(const SearchProblem& p, SearchWorker& worker, Stop stop);

}  // namespace vecbank::cpu
