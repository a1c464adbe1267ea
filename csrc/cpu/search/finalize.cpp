#include "finalize.h"

namespace vecbank::cpu {

bool Finalizer::reserve(const SearchProblem& p, const SearchPlan& plan) {
  slots_ = p.k > 65536 ? 1 : Refiner::kQueries;
  for (int s = 0; s < slots_; ++s)
    if (!lists_[s].reserve(p.k, p.bank.count)) return false;
  const int64_t most = std::max(CandidateLists::capacity_for(p.k) + p.k, TopKList::capacity_for(p.k, p.bank.count));
  return selector_.reserve(most) && refiner_.reserve(p.bank, p.bank.width) &&
         original_.reserve(p.queries, Refiner::kQueries) &&
         (plan.refined_only || refined_.reserve(CandidateLists::capacity_for(p.k) + p.k));
}

void Finalizer::begin(const SearchTask& task) {
  task_ = &task;
  refined_count_ = 0;
  refiner_.set_frame(task.job->header, task.job->problem.bias);
  refiner_.set_stop(task.job->stop);
}

// Appends the refined scores of candidates to the first `kept`; returns how many there are then.
int64_t Finalizer::refine(const Candidate* candidates, int64_t count, int64_t kept) {
  for (int64_t at = 0; at < count; at += Refiner::kBlock) {
    const int64_t n = std::min(Refiner::kBlock, count - at);
    for (int64_t i = 0; i < n; ++i) refiner_.indices()[i] = task_->begin + candidates[at + i].place();
    refiner_.for_each_key(1, refiner_.indices(), 0, n, [&](int, double key, int64_t index) {
      if (!std::isnan(key)) refined_[kept++] = {key, index};
    });
  }
  refined_count_ += count;
  return kept;
}

// Whether k candidates have a finite lower bound, and so beat every far row; a fallback row may be even farther.
bool Finalizer::beats_far(const Candidate* candidates, int64_t count) const {
  int64_t bounded = 0;
  for (int64_t i = 0; i < count; ++i) bounded += candidates[i].lower > -HUGE_VALF;
  return bounded >= task_->job->problem.k;
}

// Where the first negligible row may win, so may the others, which were not screened. If their float64 scores are all
// equal, the first k suffice. False: each must be scored.
bool Finalizer::add_negligible(int64_t row, int64_t* kept) {
  const SearchProblem& p = task_->job->problem;
  if (!refiner_.cannot_tell(task_->job->header.negligible_size)) return false;
  double key = 0.0;
  refiner_.for_each_key(1, &task_->negligible, 0, 1, [&](int, double found, int64_t) { key = found; });
  int64_t wanted = p.k - task_->allows(row, task_->negligible);
  for (int64_t j = next_negligible(&task_->job->header, task_->negligible + 1); j >= 0 && wanted > 0;
       j = next_negligible(&task_->job->header, j + 1)) {
    if (!task_->allows(row, j)) continue;
    refined_[(*kept)++] = {key, j};
    --wanted;
  }
  return true;
}

// Refines the rows of this part, for the queries in the refiner's first slots, into the lists from `list` on; of row
// `masked_row` of the block, where it is not -1, those that it may be given. `apart`: all negligible rows belong to the
// part that screens the first of them, wherever they lie.
void Finalizer::refine_chosen(int list, int slots, bool apart, int64_t masked_row) {
  const RowKind* kinds = pack_kinds(&task_->job->header);
  int64_t n = 0;
  const auto flush = [&] {
    refiner_.for_each_key(slots, refiner_.indices(), 0, n,
                          [&](int s, double key, int64_t index) { lists_[list + s].push(key, index); });
    refined_count_ += slots * n;
    n = 0;
  };
  const auto take = [&](int64_t j) {
    refiner_.indices()[n++] = j;
    if (n == Refiner::kBlock) flush();
  };
  const auto here = [&](int64_t j) { return !apart || task_->negligible >= 0 || kinds[j] != RowKind::negligible; };
  if (masked_row < 0) {
    for (int64_t j = task_->begin; j < task_->end; ++j)
      if (here(j)) take(j);
  } else {
    int64_t some[Refiner::kBlock], at = task_->begin, count;
    while ((count = task_->list_allowed(masked_row, &at, task_->end, Refiner::kBlock, some)) > 0)
      for (int64_t i = 0; i < count; ++i)
        if (here(some[i])) take(some[i]);
  }
  if (apart && task_->negligible >= 0)
    for (int64_t j = next_negligible(&task_->job->header, task_->end); j >= 0;
         j = next_negligible(&task_->job->header, j + 1))
      if (masked_row < 0 || task_->allows(masked_row, j)) take(j);
  flush();
}

void Finalizer::refine_all(const int64_t* rows, int64_t count) {
  for (int64_t i = 0; i < count && !task_->job->stop.requested(); i += slots_)
    refine_together(rows + i, static_cast<int>(std::min<int64_t>(slots_, count - i)));
}

// Rows that are refined together share the conversion of the bank.
void Finalizer::refine_together(const int64_t* rows, int slots) {
  const SearchJob& job = *task_->job;
  const DType dtype = job.problem.queries.dtype;
  for (int s = 0; s < slots; ++s) {
    lists_[s].clear();
    refiner_.load(s, original_.row(task_->first + rows[s], s), dtype);
  }
  const bool apart = !job.plan.refined_only && job.header.negligible > 1, masked = job.allowed.any_set();
  if (masked) {
    for (int s = 0; s < slots; ++s) {
      if (s != 0) refiner_.load(0, original_.row(task_->first + rows[s]), dtype);
      refine_chosen(s, 1, apart, rows[s]);
    }
  } else if (apart) {
    refine_chosen(0, slots, apart, -1);
  } else {
    const int64_t count = task_->end - task_->begin;
    refiner_.for_each_key(slots, nullptr, task_->begin, count,
                          [&](int s, double key, int64_t index) { lists_[s].push(key, index); });
    refined_count_ += slots * count;
  }
  for (int s = 0; s < slots; ++s) {
    const int64_t count = lists_[s].finish(selector_);
    task_->report(rows[s], lists_[s].data(), count);
  }
}

}  // namespace vecbank::cpu
