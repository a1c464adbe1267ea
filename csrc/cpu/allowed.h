// Candidate sets as the searches ask about them: whether a query may be given a row, which rows it may be given, and
// about how many these are.
#pragma once

#include <cmath>

#include "../core/problem.h"
#include "parallel.h"

namespace vecbank::cpu {

class AllowedRows {
 public:
  AllowedRows() = default;
  explicit AllowedRows(const Allowed& allowed);

  bool any_set() const { return allowed_.count > 0; }  // else every row is allowed
  bool shared() const { return shared_; }
  AllowedRows from(int64_t query) const {
    AllowedRows rows = *this;
    if (chosen_ != nullptr)
      rows.chosen_ += query;
    else
      rows.allowed_ = allowed_.from(query);
    return rows;
  }
  // The same for these queries alone, which are then numbered from 0 on; the list must stay where it is.
  AllowedRows of(const int64_t* queries) const {
    AllowedRows rows = *this;
    rows.chosen_ = queries;
    return rows;
  }

  bool allows(int64_t query, int64_t row) const {
    return allowed_.steps == 1 ? in_set(only(), query, row) : allowed_.count == 0 || in_all(query, row);
  }

  // Rows [first, end) hold all that a query may be given; `most`: at most so many.
  struct Extent {
    int64_t first, end, most;
  };
  Extent extent(int64_t query) const;

  // About how many rows a query may be given: exact for a set that is numbered, else from a sample.
  double expected(int64_t query) const;

  // Whether words() takes little time for each row; a set of bools is eight times as much to read.
  bool has_words() const;
  bool has_bools() const;
  // A bit for each of rows [first, first + 16 count) that says whether the query may be given it; rows beyond the bank
  // may have any. `first` is a multiple of 16.
  void words(int64_t query, int64_t first, int64_t count, uint16_t* out) const;
  // A bool for every pair, side by side.
  bool is_mask() const { return allowed_.steps == 1 && only().kind == SetKind::mask && only().mask.col_stride == 1; }
  // words() of 16 rows.
  uint32_t sixteen(int64_t query, int64_t first) const {
    uint16_t word;
    words(query, first, 1, &word);
    return word;
  }
  // Where the words of each of these queries lie in memory. False: words() must write them.
  bool words_in_place(int64_t query, int64_t queries, int64_t first, int64_t count, const uint8_t** out) const;

  // Writes the rows of [*from, to) that a query may be given, in ascending order, at most `room` of them, which is
  // 64 or more; `*from` becomes where to go on. Returns how many: none, only where there are no more.
  int64_t list(int64_t query, int64_t* from, int64_t to, int64_t room, int64_t* out) const;

 private:
  struct Run {  // rows in ascending order; null: [first, end)
    const int64_t* rows = nullptr;
    int64_t first = 0, end = 0;
    int64_t size() const { return end - first; }
  };
  const CandidateSet& only() const { return allowed_.sets[allowed_.program[0]]; }  // of a program of one step
  double sampled(int64_t query) const;
  bool in_set(const CandidateSet& set, int64_t query, int64_t row) const;
  bool in_all(int64_t query, int64_t row) const;
  void words_of(const CandidateSet& set, int64_t query, int64_t first, int64_t count, uint16_t* out) const;
  bool run_of(const CandidateSet& set, int64_t query, Run* run) const;
  Run shortest(int64_t query, int* of) const;
  int64_t number(int64_t query) const { return chosen_ != nullptr ? chosen_[query] : query; }
  const int64_t* ids(const CandidateSet& set, int64_t query) const {
    return static_cast<const int64_t*>(set.data) + (allowed_.query + number(query)) * set.stride;
  }
  const uint8_t* bits(const CandidateSet& set, int64_t query) const {
    return static_cast<const uint8_t*>(set.data) + (allowed_.query + number(query)) * set.stride;
  }

  Allowed allowed_;
  const int64_t* chosen_ = nullptr;
  bool shared_ = true;
  bool must_[Allowed::kMostSets] = {};  // which sets hold every row that is allowed
};

// The expected number of rows of every query, computed by the workers. expected: [queries].
[[nodiscard]] Status expect_rows(const AllowedRows& allowed, int64_t queries, const Parallel& parallel,
                                 float* expected);

}  // namespace vecbank::cpu
