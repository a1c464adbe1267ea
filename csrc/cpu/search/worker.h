// One worker of a search: its screens, its lists of candidates, and the finalizer that decides among them.
#pragma once

#include "argmax.h"
#include "finalize.h"
#include "screens/screen.h"

namespace vecbank::cpu {

class SearchWorker {
 public:
  bool reserve(const SearchProblem& problem, const SearchPlan& plan);
  void run(const SearchJob& job, const GridTask& task);

 private:
  void screen_with(Screen& screen);
  void start_lists();
  void visit_all();
  void scan(const Visit& visit, int64_t row, int64_t rows, const float* thresholds);
  template <class Rescan>
  void take_argmax(bool last, Rescan&& rescan);
  void push(int64_t row, int64_t panel, const float* upper, uint32_t lanes);
  void push_lane(int64_t row, int64_t panel, float upper, int lane, float lower);
  void share_thresholds();
  bool too_many_fallbacks() const;
  bool few_allowed(int64_t row) const;
  double earlier_threshold(int64_t row) const;
  float lower_bound(int64_t row, int64_t panel, float upper, int lane) const;

  SearchTask task_;
  ScreenQueries queries_;
  std::unique_ptr<Screen> screens_[kScreenCount];
  Screen* screen_ = nullptr;
  int first_screen_ = 0;  // earlier screens have left too many rows undecided
  CandidateLists lists_;
  RunningArgmax argmax_;
  Finalizer finalizer_;
  Buffer<bool> negligible_may_win_;  // rows whose best may be the first negligible row
  Buffer<int64_t> fallback_rows_;
  int64_t fallbacks_ = 0;  // rows that fell back before the screen: masked to a few, or not finite
  int64_t scanned_row_ = 0, scanned_panel_ = 0;
};

}  // namespace vecbank::cpu
