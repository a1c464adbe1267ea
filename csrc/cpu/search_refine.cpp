// The second half of a search: float64 scores decide among what the screen has left, or among all rows.
#include "search.h"

namespace vecbank::cpu {

// Refines a row's candidates and reports its best k. False: the row must be refined against everything.
bool SearchWorker::settle(int64_t row) {
  if (lists_.closed(row)) return true;
  if (lists_.gave_up(row)) return false;
  int64_t count;
  const Candidate* candidates = lists_.finish(row, &count);
  if (lists_.gave_up(row)) return false;
  const SearchProblem& p = job_->problem;
  if (job_->header.far > 0 && !beats_far(candidates, count)) return false;
  if (count == 1 && p.values == nullptr && job_->partial == nullptr && candidates[0].upper < HUGE_VALF &&
      !zero_wins_[row]) {
    const Scored only{0.0, begin_ + candidates[0].column};  // nobody asked for the score
    job_->report(first_ + row, part_, &only, 1);
    return true;
  }
  refiner_.load(0, original_.row(first_ + row), p.queries.dtype);
  int64_t kept = 0;
  for (int64_t at = 0; at < count; at += Refiner::kBlock) {
    const int64_t n = std::min(Refiner::kBlock, count - at);
    for (int64_t i = 0; i < n; ++i) refiner_.indices()[i] = begin_ + candidates[at + i].column;
    refiner_.for_each_key(1, refiner_.indices(), 0, n, [&](int, double key, int64_t index) {
      if (!std::isnan(key)) refined_[kept++] = {key, index};
    });
  }
  refined_count_ += count;
  if (zero_wins_[row] && !add_negligible(row, &kept)) return false;
  job_->report(first_ + row, part_, refined_.get(), select_best(refined_.get(), kept, p.k));
  return true;
}

// Far rows lose to k rows that are bounded from below. Without so many, a special row may be farther still.
bool SearchWorker::beats_far(const Candidate* candidates, int64_t count) const {
  int64_t bounded = 0;
  for (int64_t i = 0; i < count; ++i) bounded += candidates[i].lower > -HUGE_VALF;
  return bounded >= job_->problem.k;
}

// The first negligible row may win, and then the others may as well, which nobody has screened. Where float64 cannot
// tell them apart, the first k are enough. False: each has to be scored.
bool SearchWorker::add_negligible(int64_t row, int64_t* kept) {
  const SearchProblem& p = job_->problem;
  if (!refiner_.cannot_tell(job_->header.negligible_size)) return false;
  double key = 0.0;
  refiner_.for_each_key(1, &zero_, 0, 1, [&](int, double found, int64_t) { key = found; });
  const bool* allowed = p.mask.data == nullptr ? nullptr : p.mask.row(first_ + row) + job_->offset * p.mask.col_stride;
  const auto may = [&](int64_t j) { return allowed == nullptr || allowed[j * p.mask.col_stride]; };
  int64_t wanted = p.k - may(zero_);
  for (int64_t j = next_negligible(&job_->header, zero_ + 1); j >= 0 && wanted > 0;
       j = next_negligible(&job_->header, j + 1)) {
    if (!may(j)) continue;
    refined_[(*kept)++] = {key, j};
    --wanted;
  }
  return true;
}

// Refines what `allowed` lets through of this part's rows for the queries in the refiner's first slots, into the lists
// from `list` on. `apart`: negligible rows belong to the part that screens the first of them, wherever they lie.
template <class F>
void SearchWorker::refine_chosen(int list, int slots, bool apart, F&& allowed) {
  const RowKind* kinds = pack_kinds(&job_->header);
  int64_t n = 0;
  const auto flush = [&] {
    refiner_.for_each_key(slots, refiner_.indices(), 0, n,
                          [&](int s, double key, int64_t index) { direct_[list + s].push(key, index); });
    refined_count_ += slots * n;
    n = 0;
  };
  const auto take = [&](int64_t j) {
    if (!allowed(j)) return;
    refiner_.indices()[n++] = j;
    if (n == Refiner::kBlock) flush();
  };
  for (int64_t j = begin_; j < end_; ++j)
    if (!apart || zero_ >= 0 || kinds[j] != RowKind::negligible) take(j);
  if (apart && zero_ >= 0)
    for (int64_t j = next_negligible(&job_->header, end_); j >= 0; j = next_negligible(&job_->header, j + 1)) take(j);
  flush();
}

void SearchWorker::refine_all(int64_t at, int slots) {
  const SearchProblem& p = job_->problem;
  for (int s = 0; s < slots; ++s) {
    direct_[s].clear();
    refiner_.load(s, original_.row(first_ + left_[at + s]), p.queries.dtype);
  }
  const bool apart = !job_->plan.direct && job_->header.negligible > 1;
  if (p.mask.data == nullptr && !apart) {
    refiner_.for_each_key(slots, nullptr, begin_, end_ - begin_,
                          [&](int s, double key, int64_t index) { direct_[s].push(key, index); });
    refined_count_ += slots * (end_ - begin_);
  } else if (p.mask.data == nullptr) {
    refine_chosen(0, slots, apart, [](int64_t) { return true; });
  } else {
    for (int s = 0; s < slots; ++s) {
      const int64_t row = first_ + left_[at + s], stride = p.mask.col_stride;
      if (s != 0) refiner_.load(0, original_.row(row), p.queries.dtype);
      const bool* allowed = p.mask.row(row) + job_->offset * stride;
      refine_chosen(s, 1, apart, [&](int64_t j) { return allowed[j * stride]; });
    }
  }
  for (int s = 0; s < slots; ++s) {
    const int64_t count = direct_[s].finish();
    job_->report(first_ + left_[at + s], part_, direct_[s].data(), count);
  }
}

}  // namespace vecbank::cpu
