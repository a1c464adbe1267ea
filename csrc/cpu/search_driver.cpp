// search(): pieces of a plain tensor, parts of a piece, and the merge that makes them one answer.
#include <cstring>
#include <limits>
#include <new>

#include "pack.h"
#include "search.h"

namespace vecbank::cpu {

void write_result(const SearchProblem& p, int64_t query, const Scored* best, int64_t count, int64_t offset) {
  const double worst = is_distance(p.metric) ? HUGE_VAL : -HUGE_VAL;
  for (int64_t i = 0; i < p.k; ++i) {
    const int64_t at = query * p.k + i;
    if (p.indices != nullptr) p.indices[at] = i < count ? best[i].index + offset : -1;
    if (p.values == nullptr) continue;
    const double value = i < count ? value_of(p.metric, best[i].key) : worst;
    if (p.values_dtype == DType::f64)
      static_cast<double*>(p.values)[at] = value;
    else
      static_cast<float*>(p.values)[at] = static_cast<float>(value);
  }
  if (p.gathered == nullptr) return;
  const int64_t d = p.bank.width, size = static_cast<int64_t>(size_of(p.bank.dtype));
  char* out = static_cast<char*>(p.gathered) + query * d * size;
  if (count > 0) {
    const char* row = static_cast<const char*>(p.bank.row(best[0].index + offset));
    if (p.bank.col_stride == 1)
      std::memcpy(out, row, static_cast<size_t>(d * size));
    else
      for (int64_t k = 0; k < d; ++k) std::memcpy(out + k * size, row + k * p.bank.col_stride * size, size);
    return;
  }
  with_dtype(p.bank.dtype, [&](auto type) {
    auto* values = reinterpret_cast<Element<decltype(type)>*>(out);
    for (int64_t k = 0; k < d; ++k) narrow(std::numeric_limits<double>::quiet_NaN(), values + k);
  });
}

void SearchJob::report(int64_t query, int64_t part, const Scored* best, int64_t count) const {
  if (partial == nullptr) return write_result(problem, query, best, count, offset);
  const int64_t at = part * problem.queries.count + query;
  partial_counts[at] = count;
  Scored* out = partial + at * problem.k;
  for (int64_t i = 0; i < count; ++i) out[i] = {best[i].key, best[i].index + offset};
}

namespace {

// Slot 0 of the partial lists accumulates over pieces; slots 1.. are the parts of the current piece.
struct Partials {
  Buffer<Scored> lists;
  Buffer<int64_t> counts;
  // Slot 0 survives growing: a later, smaller piece can have more parts than the first.
  bool reserve(int64_t slots, int64_t queries, int64_t k) {
    if (slots <= slots_) return true;
    Partials more;
    if (!more.lists.reserve(slots * queries * k) || !more.counts.reserve(slots * queries)) return false;
    if (slots_ > 0) {
      std::copy_n(lists.get(), queries * k, more.lists.get());
      std::copy_n(counts.get(), queries, more.counts.get());
    }
    more.slots_ = slots;
    *this = std::move(more);
    return true;
  }

 private:
  int64_t slots_ = 0;
};

Status merge(const SearchProblem& p, int64_t slots, bool last, Partials& partials, const Parallel& parallel) {
  const int64_t n = p.queries.count, batch = 64;
  std::unique_ptr<Buffer<Scored>[]> scratch(new (std::nothrow) Buffer<Scored>[parallel.workers]);
  if (!scratch) return Status::out_of_memory;
  for (int w = 0; w < parallel.workers; ++w)
    if (!scratch[w].reserve(2 * p.k)) return Status::out_of_memory;
  return for_each_task(parallel, ceil_div(n, batch), [&](int worker, int64_t task) {
    Scored* list = scratch[worker].get();
    for (int64_t q = task * batch; q < std::min(n, (task + 1) * batch) && !parallel.stop.asked(); ++q) {
      int64_t count = 0, fresh = 0;
      for (int64_t s = 0; s < slots; ++s) {  // every list comes sorted
        const int64_t at = s * n + q, more = partials.counts[at];
        if (s > 0) fresh += more;
        std::memcpy(list + count, partials.lists.get() + at * p.k, static_cast<size_t>(more) * sizeof(Scored));
        std::inplace_merge(list, list + count, list + count + more, better);
        count = std::min(count + more, p.k);
      }
      if (!last && fresh == 0) continue;
      if (last) {
        write_result(p, q, list, count, 0);
      } else {
        partials.counts[q] = count;
        std::memcpy(partials.lists.get() + q * p.k, list, static_cast<size_t>(count) * sizeof(Scored));
      }
    }
  });
}

// One piece of the bank: all of it when it came packed.
Status search_piece(const SearchProblem& whole, const PackHeader& header, int64_t offset, bool only, bool first,
                    bool last, Partials& partials, const Parallel& parallel) {
  SearchProblem p = whole;
  p.bank.data = whole.bank.row(offset);
  p.bank.count = header.rows;
  SearchJob job{p, header, pack_panels(&header), plan_search(p, header, parallel.workers)};
  job.start_bound = start_bound_per_r2(p.metric, header.width);
  job.stop = parallel.stop;
  const int64_t n = p.queries.count;
  const bool merging = !only || job.plan.parts > 1;
  Buffer<std::atomic<float>> shared;
  if (merging) {
    const int64_t slots = job.plan.parts + 1;
    if (!partials.reserve(slots, n, p.k) || !shared.reserve(n)) return Status::out_of_memory;
    if (first) std::fill_n(partials.counts.get(), n, int64_t{0});
    for (int64_t i = 0; i < n; ++i) new (&shared[i]) std::atomic<float>(-HUGE_VALF);
    job.shared = shared.get();
    if (!first) job.earlier = partials.lists.get(), job.earlier_counts = partials.counts.get();
    job.partial = partials.lists.get() + n * p.k;
    job.partial_counts = partials.counts.get() + n;
    job.offset = offset;
  }
  const int64_t tasks = job.plan.blocks * job.plan.parts;
  const int workers = static_cast<int>(std::min<int64_t>(parallel.workers, tasks));
  std::unique_ptr<SearchWorker[]> crew(new (std::nothrow) SearchWorker[workers]);
  if (!crew) return Status::out_of_memory;
  for (int w = 0; w < workers; ++w)
    if (!crew[w].reserve(p, job.plan)) return Status::out_of_memory;
  const Status found = for_each_task(parallel, tasks, [&](int worker, int64_t task) {
    crew[worker].run(job, task % job.plan.blocks, task / job.plan.blocks);
  });
  return merging && found == Status::ok ? merge(whole, job.plan.parts + 1, last, partials, parallel) : found;
}

Status search_rows(const SearchProblem& p, int64_t piece, const Parallel& parallel) {
  Partials partials;
  if (p.pack != nullptr) return search_piece(p, *p.pack, 0, true, true, true, partials, parallel);
  Buffer<char> pack;
  const bool only = piece >= p.bank.count;
  for (int64_t at = 0; at < p.bank.count; at += piece) {
    Rows rows = p.bank;
    rows.data = p.bank.row(at);
    rows.count = std::min(piece, p.bank.count - at);
    if (!pack.reserve(pack_bytes(rows.count, rows.width, p.metric, p.bias != nullptr))) return Status::out_of_memory;
    Status status = pack_bank(rows, p.metric, pack.get(), parallel, p.bias != nullptr ? p.bias + at : nullptr);
    if (status == Status::ok)
      status = search_piece(p, *reinterpret_cast<const PackHeader*>(pack.get()), at, only, at == 0,
                            at + piece >= p.bank.count, partials, parallel);
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

}  // namespace

Status search_alone(const SearchProblem& p, SearchWorker& worker, Stop stop) {
  Parallel alone;
  alone.stop = stop;
  SearchJob job{p, *p.pack, pack_panels(p.pack), plan_search(p, *p.pack, 1)};
  job.stop = stop;
  job.start_bound = start_bound_per_r2(p.metric, p.bank.width);
  if (job.plan.parts != 1) return search(p, alone);  // a bank beyond 2^30 rows
  if (!worker.reserve(p, job.plan)) return Status::out_of_memory;
  return for_each_task(alone, job.plan.blocks, [&](int, int64_t block) { worker.run(job, block, 0); });
}

Status search(const SearchProblem& p, const Parallel& parallel) {
  if (p.queries.count == 0) return Status::ok;
  if (p.bank.count == 0) {
    for (int64_t q = 0; q < p.queries.count; ++q) write_result(p, q, nullptr, 0, 0);
    return Status::ok;
  }
  // Work too small to be worth waking threads for runs on this one.
  const double work =
      static_cast<double>(p.queries.count) * static_cast<double>(p.bank.count) * static_cast<double>(p.bank.width + 8);
  Parallel chosen = parallel;
  if (work < 2e5) chosen.workers = 1;

  const int64_t panel = (p.bank.width + 3) * kPanel * 4;
  const int64_t most = std::max<int64_t>(1, kPackBytes / panel) * kPanel;
  // Even pieces: a small last one would be refined whole, for want of rows to screen.
  const int64_t piece = round_up_to(ceil_div(p.bank.count, ceil_div(p.bank.count, most)), kPanel);
  const bool pieces = p.pack == nullptr && piece < p.bank.count;
  // Several pieces keep their best rows between them, so bound how many queries are in flight.
  const int64_t step =
      pieces ? std::max<int64_t>(1024, kPartialBytes / (p.k * static_cast<int64_t>(sizeof(Scored)))) : p.queries.count;
  for (int64_t q = 0; q < p.queries.count; q += step) {
    SearchProblem slice = p;
    slice.queries.data = p.queries.row(q);
    slice.queries.count = std::min(step, p.queries.count - q);
    slice.mask = p.mask.from(q);
    if (p.indices != nullptr) slice.indices = p.indices + q * p.k;
    if (p.values != nullptr)
      slice.values = static_cast<char*>(p.values) + q * p.k * static_cast<int64_t>(size_of(p.values_dtype));
    if (p.gathered != nullptr)
      slice.gathered = static_cast<char*>(p.gathered) + q * p.bank.width * static_cast<int64_t>(size_of(p.bank.dtype));
    const Status status = search_rows(slice, piece, chosen);
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

}  // namespace vecbank::cpu
