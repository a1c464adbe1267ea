#include "among.h"

#include "../ways.h"

namespace vecbank::cpu {
namespace {

constexpr double kStretchBytes = 2 << 20;  // of the bank: it stays in the caches
constexpr double kLeastOfStretch = 64;     // rows of a query; fewer do not pay for looking up its set again

// Bank rows that are refined for all queries before the next ones, so that those that several queries may be given are
// read from memory once. `each`: rows of a query.
int64_t stretch_of_sets(double each, int64_t queries, int64_t bank_rows, int64_t row_bytes) {
  const double m = static_cast<double>(bank_rows);
  if (each * static_cast<double>(queries) < m) return bank_rows;  // hardly any row is read twice
  const double wanted = std::max(kStretchBytes / static_cast<double>(std::max<int64_t>(1, row_bytes)),
                                 kLeastOfStretch * m / std::max(each, 1.0));
  return wanted < m ? round_up_to(static_cast<int64_t>(wanted), 64) : bank_rows;
}

}  // namespace

Status Among::begin(const SearchProblem& p, const AllowedRows& allowed, const Parallel& parallel) {
  allowed_ = allowed;
  queries_ = p.queries.count;
  bank_rows_ = p.bank.count;
  row_bytes_ = p.bank.width * static_cast<int64_t>(size_of(p.bank.dtype));
  few_count_ = 0;
  if (!expected_.reserve(queries_)) return Status::out_of_memory;
  const Status told = expect_rows(allowed, queries_, parallel, expected_.get());
  double sum = 0.0;
  for (int64_t q = 0; q < queries_ && told == Status::ok; ++q) sum += static_cast<double>(expected_[q]);
  mean_ = sum / static_cast<double>(std::max<int64_t>(1, queries_));
  return told;
}

bool Among::set_apart(const SearchProblem& p) {
  few_count_ = 0;
  if (allowed_.shared()) return true;
  if (!apart_.reserve(queries_) || !few_.reserve(queries_)) return false;
  double sum = 0.0;
  for (int64_t q = 0; q < queries_; ++q) {
    const auto rows = static_cast<double>(expected_[q]);
    apart_[q] = few_rows(p, rows, mean_);
    if (!apart_[q]) continue;
    few_[few_count_++] = q;
    sum += rows;
  }
  few_mean_ = sum / static_cast<double>(std::max<int64_t>(1, few_count_));
  return true;
}

RefinedSets Among::sets() const {
  return {allowed_, nullptr, queries_, stretch_of_sets(mean_, queries_, bank_rows_, row_bytes_)};
}

RefinedSets Among::few() const {
  return {allowed_, few_.get(), few_count_, stretch_of_sets(few_mean_, few_count_, bank_rows_, row_bytes_)};
}

}  // namespace vecbank::cpu
