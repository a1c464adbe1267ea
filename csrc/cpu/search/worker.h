// One worker of a search: its screens, its lists of candidates, and the finalizer that decides among them.
#pragma once

#include "argmax.h"
#include "finalize.h"
#include "screens/screen.h"

namespace vecbank::cpu {

// A sample keeps one column a lane, so there are more lanes than ranks, or its k-th best would lie far below that of
// the columns; beyond this k the lanes of a block would take more memory than its candidates.
constexpr int64_t kMostSampledK = 128;
// Where a query may be given a larger share of the bank, a scan does not look at its bits, or its bools.
constexpr double kMostBitShare = 0.8, kMostBoolShare = 0.35;
// Visits whose bits are read together follow each other: so many of their panels, but enough runs for a scattered
// order.
constexpr int64_t kPanelsTogether = 2048, kLeastRuns = 16;
inline int64_t sampled_lanes(int64_t k) { return round_up_to(k + k / 2 + 4, kPanel); }

class SearchWorker {
 public:
  bool reserve(const SearchProblem& problem, const SearchPlan& plan);
  void run(const SearchJob& job, const GridTask& task);

 private:
  void screen_with(int number);
  void start_lists();
  void visit_all();
  void start_from_argmax();
  static int64_t most_sampled_lanes(const SearchProblem& problem);
  int64_t sampled_rank() const;
  bool samples() const;
  int64_t sample_panels() const;
  template <class VisitFirst>
  void start_from_sample(VisitFirst&& visit_first);
  void scan(const Visit& visit, int64_t row, int64_t rows, const float* thresholds);
  template <class Rescan>
  void take_argmax(Rescan&& rescan);
  void push(int64_t row, int64_t panel, const float* upper, uint32_t lanes);
  bool given(int64_t row, int64_t j) const;
  bool may_win(int64_t row, int64_t panel, int lane);
  void push_lane(int64_t row, int64_t panel, Bounds seen, int lane);
  void tighten(int64_t row);
  void refine_best(int64_t row, Candidate* candidates, int64_t count, int64_t wanted);
  void share_threshold(int64_t row, float threshold);
  int64_t undecided_rows() const;
  bool refined_more_than_saved(double deciding) const;
  double share_allowed() const;
  void tell_allowed(const Visit& visit, ScanTarget* target);
  bool worth_its_survivors() const;
  int64_t few_undecided() const;
  Candidate bounds_of(int64_t row, double key) const { return bounds_of_key(task_, queries_, *screen_, row, key); }
  double earlier_threshold(int64_t row) const;
  Bounds bounds(int64_t row, int64_t panel, float upper, int lane, bool by_argmax = false);
  void settle(int64_t row, int64_t panel, float upper, int lane);
  void settle_waiting();

  SearchTask task_;
  ScreenQueries queries_;
  Screens screens_;
  Screen* screen_ = nullptr;
  int screen_number_ = 0;
  int first_screen_ = 0;  // earlier screens have left too many rows undecided
  CandidateLists lists_;
  RunningArgmax argmax_;
  Finalizer finalizer_;
  Buffer<bool> negligible_may_win_;  // rows whose best may be the first negligible row
  Buffer<int64_t> fallback_rows_;
  int64_t fallbacks_ = 0;  // rows that fell back before the screen: not finite, for example
  int64_t scanned_row_ = 0, scanned_panel_ = 0;
  struct Waiting {
    int64_t row, panel;
    float upper;
    int lane;
  };
  static constexpr int kWaiting = 32;
  Waiting waiting_[kWaiting];  // survivors whose further coordinates are on their way from memory
  int waiting_count_ = 0;
  int64_t scanned_columns_ = 0;  // of the part, by the screen in use
  double screening_ = 0.0;       // seconds of that screen
  int64_t refined_early_ = 0;    // bank rows that the screen's lists had refined
  Buffer<Candidate> sampled_;    // the best of each lane of a sample
  Buffer<int32_t> tightened_;    // rows refined early, per query row
  Buffer<const uint8_t*> allowed_rows_;
  Buffer<uint16_t> allowed_words_;  // of panels [told_from_, told_to_), for every row
  int64_t told_from_ = 0, told_to_ = 0, visits_together_ = 1;
  bool by_bits_ = false;   // a scan looks at the bits of candidate sets
  bool by_panel_ = false;  // bools are looked at 16 at a time, when columns are pushed
  double share_ = 1.0;     // of the bank, that a query of the block may be given
};

}  // namespace vecbank::cpu
