// Before a worker's scan: how much of the bank its queries may be given, and whether a sample of the bank gives the
// first thresholds.
#include "worker.h"

namespace vecbank::cpu {
namespace {

// A sample of some 400 columns for each rank costs about as much as the survivors that it saves.
constexpr int64_t kSamplePanelsPerRank = 24;
constexpr int64_t kHeadSample = 16;  // of a part with a head: survivors cost more, and fall with the threshold's rank
// Of all rows, where a query may be given some of them; a scan that looks at bits has few survivors without a sample.
constexpr int64_t kMostSampledRank = 256;

}  // namespace

int64_t SearchWorker::most_sampled_lanes(const SearchProblem& p) {
  return sampled_lanes(p.mask.data != nullptr || p.allowed != nullptr ? kMostSampledRank : p.k);
}

// The rank among all rows of the k-th best of those that a query of the block may be given.
int64_t SearchWorker::sampled_rank() const {
  const double k = static_cast<double>(task_.job->problem.k);
  if (share_ >= 1.0) return task_.job->problem.k;
  return share_ > 0.0 ? static_cast<int64_t>(std::min(std::ceil(k / share_), 1e9)) : int64_t{1000000000};
}

// The share of the bank that a query of the block may be given, of those that are screened.
double SearchWorker::share_allowed() const {
  const SearchJob& job = *task_.job;
  if (job.expected == nullptr) return 1.0;
  double sum = 0.0;
  int64_t rows = 0;
  for (int64_t r = 0; r < task_.rows; ++r) {
    if (lists_.fell_back(r)) continue;
    sum += static_cast<double>(job.expected[task_.first + r]);
    ++rows;
  }
  return rows == 0 ? 0.0 : std::min(1.0, sum / (static_cast<double>(rows) * static_cast<double>(job.expected_of)));
}

// The bits of a visit's columns that each row may be given; none where nearly all may, and those that may not are told
// one by one. Negligible rows must be pushed, whether a row may be given them or not.
void SearchWorker::tell_allowed(const Visit& visit, ScanTarget* target) {
  const SearchJob& job = *task_.job;
  const int64_t panels = visit.to - visit.from, first = job.offset + visit.from * kPanel, rows = task_.rows;
  const uint8_t **now = allowed_rows_.get(), **ahead = now + rows + kPanel;
  if (job.allowed.words_in_place(task_.first, rows, first, panels, now)) {
    // What is read for the next visit lies on as many pages as there are rows.
    const int64_t next = job.offset + visit.next * kPanel;
    for (int64_t r = 0; r < rows; ++r) ahead[r] = now[r] + (next - first) / 8;
    std::fill_n(ahead + rows, kPanel, ahead[rows - 1]);
    target->ahead = ahead;
    target->ahead_bytes = 2 * panels;
  } else {
    if (visit.from < told_from_ || visit.to > told_to_) {  // all of its run, so that memory is read in longer stretches
      told_from_ = visit.from;
      told_to_ = std::max(visit.to, visit.run_end);
      for (int64_t r = 0; r < rows; ++r)
        job.allowed.words(task_.first + r, first, told_to_ - told_from_,
                          allowed_words_.get() + r * (told_to_ - told_from_));
    }
    for (int64_t r = 0; r < rows; ++r)
      now[r] = reinterpret_cast<const uint8_t*>(allowed_words_.get() + r * (told_to_ - told_from_) +
                                                (visit.from - told_from_));
  }
  std::fill_n(now + rows, kPanel, now[rows - 1]);
  target->allowed = now;
}

// Whether a first threshold from a sample of the part saves more survivors than the sample costs.
bool SearchWorker::samples() const {
  const SearchProblem& p = task_.job->problem;
  const int64_t rank = sampled_rank();
  if (p.k > kMostSampledK || !screen_->keeps_columns()) return false;
  if (rank > p.k && rank > (by_bits_ ? p.k + p.k / 2 : kMostSampledRank)) return false;
  if (task_.to >= RunningArgmax::kMostPanels) return false;
  if (sample_panels() < std::max<int64_t>(16, rank / 4)) return false;
  int64_t open = 0;
  for (int64_t r = 0; r < task_.rows; ++r) open += lists_.threshold(r) == CandidateLists::kNone;
  return open > 0;
}

// Enough panels for the best lanes to be about the best columns of the sample.
int64_t SearchWorker::sample_panels() const {
  const int64_t panels = task_.to - task_.from, wanted = std::max<int64_t>(16, kSamplePanelsPerRank * sampled_rank());
  if (screen_->tail_width() > 0) return std::max({int64_t{16}, panels / kHeadSample, std::min(wanted, panels / 4)});
  return std::min(wanted, panels / 8);
}

}  // namespace vecbank::cpu
