// The best rows of the parts and pieces of a bank, and their merge into those of the whole bank.
#pragma once

#include "search.h"

namespace vecbank::cpu {

// Slot 0 of the lists accumulates over pieces; slots 1.. are the parts of the current piece.
struct Partials {
  Buffer<Scored> lists;    // [slot][query][k], sorted
  Buffer<int64_t> counts;  // [slot][query]

  // Room for so many slots; slot 0 survives growing, as a later, smaller piece can have more parts than the first.
  bool reserve(int64_t slots, int64_t queries, int64_t k);
  // The same, with slot 0 empty.
  bool begin(int64_t slots, int64_t queries, int64_t k);
  void put(int64_t slot, int64_t query, const Scored* best, int64_t count) {
    counts[slot * queries_ + query] = count;
    std::copy_n(best, count, lists.get() + (slot * queries_ + query) * k_);
  }

 private:
  int64_t slots_ = 0, queries_ = 0, k_ = 0;
};

// Merges the slots of every query: into the results where it is the last piece, else into slot 0.
Status merge(const SearchProblem& p, int64_t slots, bool last, Partials& partials, const Parallel& parallel);

}  // namespace vecbank::cpu
