// The interface of screens: cheap scores with a proved bound, which leave few bank rows to float64. A screen converts
// queries and panels to its own arithmetic, runs its loops over a visit's panels, and returns the lower bound that
// belongs to an upper one. Lists, threads and answers are outside a screen.
//
// CONTRIBUTING.md has the recipe of a new one.
#pragma once

#include <memory>
#include <new>

#include "../../queries.h"
#include "../search.h"

namespace vecbank::cpu {

// A block of queries in the frame of the bank, with the norm and the slack of each, for bounds.
struct ScreenQueries {
  QueryBlock<float> packed;
  Buffer<float> norms;    // at least the packed norm
  Buffer<double> slacks;  // slack_x of core/bounds.h
  int64_t rows = 0;

  double centre_norm = 0.0;

  bool reserve(const SearchProblem& problem, const SearchPlan& plan);
  void pack(const SearchTask& task);
  // A refined score of row `row` in the piece's packed units, and how far that may be off; not finite where it cannot
  // be told.
  double packed_score(const SearchTask& task, int64_t row, double key, double* error) const;
};

struct Bounds {
  float upper, lower;
};

class Screen {
 public:
  virtual ~Screen() = default;

  virtual bool reserve(const SearchProblem& problem, const SearchPlan& plan) = 0;

  // Prepares the screen for this block of queries and this piece of a bank.
  virtual void begin(ScreenQueries& queries, const SearchJob& job) = 0;

  virtual int64_t panels_per_visit() const = 0;

  // What is read of the pack or the bank for a panel.
  virtual int64_t panel_bytes() const = 0;

  // Pushes the columns of a visit's panels that reach the threshold, for rows [row, row + rows) of the block.
  virtual void scan(const Visit& visit, int64_t row, int64_t rows, const ScanTarget& target) = 0;

  // Carries the running argmax of the whole block over a visit's panels.
  virtual void argmax(const Visit& visit, float* running) = 0;

  // About how many panels are worth an argmax without a gate: with wide bounds, few.
  virtual int64_t argmax_panels() const = 0;

  // A score of 1 in packed units, in this screen's units for a row.
  virtual double unit(int64_t row) const = 0;

  // The bounds of a column's score in this screen's units, from its upper bound, which is finite, as scan() or argmax()
  // gave it. The upper bound may become closer; where it is then below the threshold, the lower one is not computed.
  virtual Bounds bounds(int64_t row, int64_t panel, int lane, float upper, float threshold, bool by_argmax) = 0;
  // What bounds() will read of a column; a call of it should follow soon.
  virtual void fetch(int64_t /*panel*/, int /*lane*/) const {}

  // Whether bounds() knows the columns of earlier visits too.
  virtual bool keeps_columns() const = 0;

  // The calls of bounds() since begin() that looked at further coordinates of a row, and at how many.
  virtual int64_t survivors() const { return 0; }
  virtual int64_t tail_width() const { return 0; }
};

template <class S>
std::unique_ptr<Screen> make_screen() {
  return std::unique_ptr<Screen>(new (std::nothrow) S);
}

// The bounds of a refined score, in the units of the screen in use; none where they cannot be told.
Candidate bounds_of_key(const SearchTask& task, const ScreenQueries& queries, const Screen& screen, int64_t row,
                        double key);

struct ScreenEntry {
  int query_bytes;                                    // of a coordinate of a query
  bool (*serves)(const PackHeader& bank, int group);  // whether it can serve, and is asked for or worth it
  std::unique_ptr<Screen> (*make)();                  // null: no memory
};
extern const ScreenEntry head_screen, int8_screen, int16_screen, float32_screen;

// The screens in the order in which they are tried: where a screen leaves too many rows undecided, the next one is
// used. The last one serves every bank that can be screened.
constexpr const ScreenEntry* kScreens[] = {&head_screen, &int8_screen, &int16_screen, &float32_screen};
constexpr int kScreenCount = sizeof kScreens / sizeof *kScreens;

// A worker's screens from number `from` on, made where they are not there yet.
using Screens = std::unique_ptr<Screen>[kScreenCount];
inline bool reserve_screens(Screens& screens, int from, const SearchProblem& problem, const SearchPlan& plan) {
  for (int s = from; s < kScreenCount; ++s) {
    if (screens[s] == nullptr) screens[s] = kScreens[s]->make();
    if (screens[s] == nullptr || !screens[s]->reserve(problem, plan)) return false;
  }
  return true;
}

// The first screen from number `from` on that serves.
inline int next_screen(int from, const PackHeader& bank, int group) {
  while (!kScreens[from]->serves(bank, group)) ++from;
  return from;
}

}  // namespace vecbank::cpu
