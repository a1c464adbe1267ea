// The pieces of a search: the plan, a job (one packed bank), and the workers that run its tasks.
#pragma once

#include <atomic>

#include "api.h"
#include "queries.h"
#include "refine.h"
#include "topk_list.h"

namespace vecbank::cpu {

constexpr int64_t kQueryBytes = 192 << 10;    // packed queries of a block: part of L2
constexpr int64_t kListBytes = 4 << 20;       // candidate lists of a block
constexpr int64_t kPartialBytes = 16 << 20;   // best rows of all parts, waiting for the merge
constexpr int64_t kVisitBytes = 64 << 10;     // panels between jumps,
constexpr int64_t kLongVisitBytes = 1 << 20;  // and where few queries leave it to memory how fast they come
constexpr int64_t kLeadPanels = 64;           // how many panels a single winner is sought in without a gate
constexpr int64_t kMinFixedWidth = 16;        // below, turning sums into scores costs what the products save
constexpr int64_t kPackBytes = 6 << 20;       // a plain tensor is packed in pieces of this size

struct SearchPlan {
  int group = 1;
  bool direct = false;  // k is so large, or the width so extreme, that everything is refined
  bool fixed = false;   // screen in 16 bit fixed point
  int64_t rows_per_block = 1, blocks = 1;
  int64_t panels_per_part = 1, parts = 1;
};

SearchPlan plan_search(const SearchProblem& problem, const PackHeader& header, int workers);

struct SearchJob {
  const SearchProblem& problem;  // its bank is this job's piece
  const PackHeader& header;
  Panels<float> panels;
  SearchPlan plan;
  int64_t offset = 0;                    // of this piece in the caller's bank
  double start_bound = 0.0;              // beta per r^2, see bounds.h
  std::atomic<float>* shared = nullptr;  // per query: the best threshold any part has proved
  const Scored* earlier = nullptr;       // [query][k]: the best of the pieces before this one, if any
  const int64_t* earlier_counts = nullptr;
  Scored* partial = nullptr;          // [part][query][k]; null: a single part, written straight out
  int64_t* partial_counts = nullptr;  // [part][query]
  Stop stop{};
  void report(int64_t query, int64_t part, const Scored* best, int64_t count) const;
};

// Turns a query's final list into values, indices and the gathered row. `bank` is the caller's whole bank.
void write_result(const SearchProblem& whole, int64_t query, const Scored* best, int64_t count, int64_t offset);

struct Visit {  // panels [from, to), and where the next visit begins
  int64_t from, to, next;
};

class SearchWorker {
 public:
  bool reserve(const SearchProblem& problem, const SearchPlan& plan);
  void run(const SearchJob& job, int64_t block, int64_t part);

 private:
  void begin_screen();
  void fix_queries();
  void screen(int64_t from, int64_t to);
  bool lost() const;
  template <class Tiles>
  void aim(Tiles& tile, const Visit& visit, int64_t row, int64_t rows);
  void lead(const Visit& visit);
  void scan(const Visit& visit, int64_t row, int64_t rows, const float* thresholds);
  bool leads(int64_t panels) const;
  template <class Rescan>
  void take_leaders(bool last, Rescan&& rescan);
  void offer(int64_t row, int64_t panel, const float* upper, uint32_t lanes);
  void offer_lane(int64_t row, int64_t panel, float upper, int lane, float lower);
  float earlier_bar(int64_t row) const;
  float lower_bound(int64_t row, int64_t panel, float upper, int lane) const;
  bool settle(int64_t row);
  bool beats_far(const Candidate* candidates, int64_t count) const;
  bool add_negligible(int64_t row, int64_t* kept);
  void refine_all(int64_t at, int slots);
  template <class F>
  void refine_chosen(int list, int slots, bool apart, F&& allowed);
  bool sparse(int64_t row) const;

  QueryBlock<float> queries_;
  CandidateLists lists_;
  Refiner refiner_;
  RowReader original_;
  Buffer<float> norms_, leaders_, units_;
  Buffer<int32_t> fixed_rows_, fixed_panels_;
  Buffer<Peak> peaks_;
  Buffer<double> slacks_;
  Buffer<Scored> refined_;
  Buffer<int64_t> left_;    // rows for refine_all
  Buffer<bool> zero_wins_;  // queries that the first negligible row may be the best for
  TopKList direct_[Refiner::kQueries];

  const SearchJob* job_ = nullptr;
  int slots_ = 1;
  int64_t first_ = 0, rows_ = 0, begin_ = 0, end_ = 0, part_ = 0, refined_count_ = 0;
  int64_t zero_ = -1;     // the first negligible row, if it stands for others and this part screens it
  int64_t resigned_ = 0;  // rows given up before the screen: masked to a few, or not finite
  int64_t scanned_row_ = 0, scanned_panel_ = 0;
  int64_t fixed_from_ = -1;  // the visit whose panels are in fixed_panels_
  bool fixed_ = false;       // this block is screened in fixed point: its scores count in units_
  FixedBound fixed_bound_{};
  bool fixed_poorly_ = false, leads_poorly_ = false;
};

// A search of few enough queries for one worker: what a driver of its own threads calls. `p.pack` is there.
Status search_alone(const SearchProblem& p, SearchWorker& worker, Stop stop);

}  // namespace vecbank::cpu
