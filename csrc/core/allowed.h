// Which bank rows a query may be given, as the caller says it: sets of several kinds, joined by a program in postfix
// notation. Everything is read in place.
#pragma once

#include "mask.h"

namespace vecbank {

// The codes are those that the torch ops take.
enum class SetKind : int32_t {
  mask = 0,      // a bool for every pair
  bits = 1,      // a bit for every pair: row j is bit j % 8 of byte j / 8
  ranges = 2,    // rows [start, stop)
  exclude = 3,   // all rows but these, in ascending order
  not_self = 4,  // all rows but first + the query's number
  same = 5,      // rows with the query's label
  rows = 6,      // these rows, in ascending order; numbers from the bank's size on are none
};
constexpr int32_t kBoth = -1, kEither = -2, kNot = -3;  // joins

struct CandidateSet {
  SetKind kind = SetKind::mask;
  Mask mask;                   // of kind mask
  const void* data = nullptr;  // [queries][width]: bytes of bits, else int64
  int64_t width = 0;
  int64_t stride = 0;                 // elements from a query's to the next one's; 0: the same for all queries
  const int64_t* labels = nullptr;    // same: [bank rows]
  const int64_t* by_label = nullptr;  // same: the bank's rows, sorted by label and then by number
  int64_t batch_stride = 0;           // of labels and by_label; 0: the same for all batches
  int64_t first = 0;                  // not_self
};

struct Allowed {
  static constexpr int kMostSets = 64;

  const CandidateSet* sets = nullptr;
  int32_t count = 0;
  const int32_t* program = nullptr;  // numbers of sets, and joins
  int32_t steps = 0;
  int64_t rows = 0;    // of the bank
  int64_t query = 0;   // the query that row 0 stands for
  int64_t within = 0;  // the same, as numbered within its batch
  int64_t batch = 0;

  // Whether all queries share the sets.
  bool shared() const {
    for (int32_t i = 0; i < count; ++i) {
      const CandidateSet& s = sets[i];
      if (s.kind == SetKind::not_self || (s.kind == SetKind::mask ? !s.mask.shared() : s.stride != 0)) return false;
    }
    return true;
  }
  Allowed from(int64_t later) const {  // the same, whose row 0 is this query's
    Allowed allowed = *this;
    allowed.query += later;
    allowed.within += later;
    return allowed;
  }
  Allowed of_batch(int64_t b, int64_t queries) const {
    Allowed allowed = *this;
    allowed.batch = b;
    allowed.query = b * queries;
    allowed.within = 0;
    return allowed;
  }
};

// Whether a program leaves exactly one result, and names no set that is not there.
inline bool is_sound(const int32_t* program, int32_t steps, int32_t sets) {
  if (sets > Allowed::kMostSets) return false;
  int32_t depth = 0, named = 0;
  for (int32_t i = 0; i < steps; ++i) {
    const int32_t step = program[i];
    if (step >= sets || step < kNot) return false;
    if (step >= 0)
      ++depth, ++named;
    else if (depth < (step == kNot ? 1 : 2))
      return false;
    else
      depth -= step != kNot;
    if (named > Allowed::kMostSets) return false;
  }
  return depth == 1;
}

}  // namespace vecbank
