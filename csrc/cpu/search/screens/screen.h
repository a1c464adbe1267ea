// What a screen is: cheap scores with a proved bound, which leave few bank rows to float64. A screen turns queries and
// panels into its own arithmetic, runs its loops over a visit's panels, and says how far its bounds lie apart. It knows
// nothing of lists, threads or answers.
//
// CONTRIBUTING.md has the recipe of a new one.
#pragma once

#include <memory>

#include "../../queries.h"
#include "../search.h"

namespace vecbank::cpu {

// A block of queries in the frame of the bank, with what bounds need to know of each.
struct ScreenQueries {
  QueryBlock<float> packed;
  Buffer<float> norms;    // at least the packed norm
  Buffer<double> slacks;  // slack_x of core/bounds.h
  int64_t rows = 0;

  bool reserve(const SearchProblem& problem, const SearchPlan& plan);
  void pack(const SearchTask& task);
};

// Where survivors go: those that reach their row's threshold.
struct ScanTarget {
  const float* thresholds;  // per row, from the first row that is scanned
  PushSurvivors push;
  void* context;
};

class Screen {
 public:
  virtual ~Screen() = default;

  virtual bool reserve(const SearchProblem& problem, const SearchPlan& plan) = 0;

  // From here on the screen serves this block of queries against this piece of a bank.
  virtual void begin(ScreenQueries& queries, const SearchJob& job) = 0;

  virtual int64_t panels_per_visit() const = 0;

  // Pushes what reaches its threshold among a visit's panels, for rows [row, row + rows) of the block.
  virtual void scan(const Visit& visit, int64_t row, int64_t rows, const ScanTarget& target) = 0;

  // Carries the running argmax of the whole block over a visit's panels.
  virtual void argmax(const Visit& visit, float* running) = 0;

  // What a score of 1 in packed units counts in this screen's scores of a row.
  virtual double unit(int64_t row) const = 0;

  // How far an upper bound can lie above the screen's score, and the screen's score above the refined one, in this
  // screen's units. `r`: the column's bound line; `slack`: what else there is, in packed units.
  virtual double margin(int64_t row, double r, double slack) const = 0;
};

struct ScreenEntry {
  int query_bytes;                                    // of a coordinate of a query
  bool (*serves)(const PackHeader& bank, int group);  // can it, and is it worth it?
  std::unique_ptr<Screen> (*make)();                  // null: no memory
};
extern const ScreenEntry int16_screen, float32_screen;

// In the order in which they are tried: a screen that leaves too many rows undecided hands over to the next. The last
// one serves whatever can be screened at all.
constexpr const ScreenEntry* kScreens[] = {&int16_screen, &float32_screen};
constexpr int kScreenCount = 2;

}  // namespace vecbank::cpu
