#include "merge.h"

#include <cstring>

namespace vecbank::cpu {

bool Partials::reserve(int64_t slots, int64_t queries, int64_t k) {
  queries_ = queries, k_ = k;
  if (slots <= slots_) return true;
  Buffer<Scored> more_lists;
  Buffer<int64_t> more_counts;
  if (!more_lists.reserve(slots * queries * k) || !more_counts.reserve(slots * queries)) return false;
  if (slots_ > 0) {
    std::copy_n(lists.get(), queries * k, more_lists.get());
    std::copy_n(counts.get(), queries, more_counts.get());
  }
  lists = std::move(more_lists);
  counts = std::move(more_counts);
  slots_ = slots;
  return true;
}

bool Partials::begin(int64_t slots, int64_t queries, int64_t k) {
  if (!reserve(slots, queries, k)) return false;
  std::fill_n(counts.get(), queries, int64_t{0});
  return true;
}

Status merge(const SearchProblem& p, int64_t slots, bool last, Partials& partials, const Parallel& parallel) {
  const int64_t n = p.queries.count, batch = 64;
  PerWorker<Buffer<Scored>> scratch(parallel.workers);
  if (!scratch.each([&](Buffer<Scored>& list) { return list.reserve(2 * p.k); })) return Status::out_of_memory;
  return for_each_task(parallel, ceil_div(n, batch), [&](int worker, int64_t task) {
    Scored* list = scratch[worker].get();
    for (int64_t q = task * batch; q < std::min(n, (task + 1) * batch) && !parallel.stop.requested(); ++q) {
      int64_t count = 0, fresh = 0;
      for (int64_t s = 0; s < slots; ++s) {  // every list is sorted
        const int64_t at = s * n + q, more = partials.counts[at];
        if (s > 0) fresh += more;
        std::memcpy(list + count, partials.lists.get() + at * p.k, static_cast<size_t>(more) * sizeof(Scored));
        std::inplace_merge(list, list + count, list + count + more, better);
        count = std::min(count + more, p.k);
      }
      if (!last && fresh == 0) continue;
      if (last) {
        write_result(p, q, list, count);
      } else {
        partials.counts[q] = count;
        std::memcpy(partials.lists.get() + q * p.k, list, static_cast<size_t>(count) * sizeof(Scored));
      }
    }
  });
}

Status merge_keys(const double* keys, const int64_t* rows, int64_t count, const SearchProblem& p,
                  const Parallel& parallel) {
  struct Scratch {
    Buffer<Scored> list;
    Selector selector;
  };
  PerWorker<Scratch> scratch(parallel.workers);
  if (!scratch.each([&](Scratch& s) { return s.list.reserve(count) && s.selector.reserve(count); }))
    return Status::out_of_memory;
  const int64_t n = p.queries.count, batch = 64;
  return for_each_task(parallel, ceil_div(n, batch), [&](int worker, int64_t task) {
    Scored* list = scratch[worker].list.get();
    for (int64_t q = task * batch; q < std::min(n, (task + 1) * batch); ++q) {
      int64_t kept = 0;
      for (int64_t i = q * count; i < (q + 1) * count; ++i)
        if (rows[i] >= 0 && !std::isnan(keys[i])) list[kept++] = {keys[i], rows[i]};
      write_result(p, q, list, scratch[worker].selector.best(list, kept, p.k));
    }
  });
}

}  // namespace vecbank::cpu
