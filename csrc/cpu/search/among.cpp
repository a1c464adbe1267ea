#include "among.h"

#include <cstring>

#include "../ways.h"

namespace vecbank::cpu {
namespace {

constexpr double kStretchBytes = 2 << 20;  // of the bank: it stays in the caches
constexpr double kLeastOfStretch = 64;     // rows of a query; fewer do not pay for looking up its set again

}  // namespace

bool ChosenQueries::begin(const SearchProblem& p, const int64_t* chosen, int64_t count) {
  whole_ = problem_ = p;
  chosen_ = chosen;
  const int64_t row = p.queries.width * static_cast<int64_t>(size_of(p.queries.dtype));
  if (!queries_.reserve(count * row)) return false;
  copy_rows(p.queries, chosen, count, queries_.get());
  problem_.queries = {queries_.get(), p.queries.dtype, count, p.queries.width, p.queries.width, 1};
  if (p.indices != nullptr) {
    if (!indices_.reserve(count * p.k)) return false;
    problem_.indices = indices_.get();
  }
  if (p.values != nullptr) {
    if (!values_.reserve(count * p.k * static_cast<int64_t>(size_of(p.values_dtype)))) return false;
    problem_.values = values_.get();
  }
  if (p.gathered != nullptr) {
    if (!gathered_.reserve(count * p.bank.width * static_cast<int64_t>(size_of(p.bank.dtype)))) return false;
    problem_.gathered = gathered_.get();
  }
  return true;
}

void ChosenQueries::give_results() const {
  const auto give = [&](const void* from, void* to, int64_t bytes) {
    for (int64_t i = 0; i < problem_.queries.count && to != nullptr; ++i)
      std::memcpy(static_cast<char*>(to) + chosen_[i] * bytes, static_cast<const char*>(from) + i * bytes,
                  static_cast<size_t>(bytes));
  };
  const SearchProblem& p = whole_;
  give(problem_.indices, p.indices, p.k * static_cast<int64_t>(sizeof(int64_t)));
  give(problem_.values, p.values, p.k * static_cast<int64_t>(size_of(p.values_dtype)));
  give(problem_.gathered, p.gathered, p.bank.width * static_cast<int64_t>(size_of(p.bank.dtype)));
}

Status Among::begin(const SearchProblem& p, const AllowedRows& allowed, const Parallel& parallel) {
  const int64_t n = p.queries.count;
  if (!expected_.reserve(n)) return Status::out_of_memory;
  const Status told = expect_rows(allowed, n, parallel, expected_.get());
  double sum = 0.0;
  for (int64_t q = 0; q < n && told == Status::ok; ++q) sum += static_cast<double>(expected_[q]);
  mean_ = sum / static_cast<double>(std::max<int64_t>(1, n));
  return told;
}

bool Among::split(const SearchProblem& p) {
  const int64_t n = p.queries.count;
  if (!split_.reserve(n) || !split_expected_.reserve(n)) return false;
  int64_t at = 0;
  for (Group* group : {&few_, &many_}) {
    const int64_t first = at;
    double sum = 0.0;
    for (int64_t q = 0; q < n; ++q) {
      const auto rows = static_cast<double>(expected_[q]);
      if (few_rows(p, rows, mean_) != (group == &few_)) continue;
      split_[at] = q;
      split_expected_[at++] = expected_[q];
      sum += rows;
    }
    *group = {split_.get() + first, split_expected_.get() + first, at - first,
              sum / static_cast<double>(std::max<int64_t>(1, at - first))};
  }
  SearchProblem others = p;
  others.queries.count = many_.count;
  const bool screens = many_.count > 0 && way_among(others, many_.mean, false) != SearchWay::refined;
  const Group all{nullptr, expected_.get(), n, mean_};
  if (!screens) few_ = all, many_ = {};
  if (few_.count == 0) many_ = all;
  return true;
}

RefinedSets refined_sets(const SearchProblem& p, const AllowedRows& allowed, double each) {
  const double m = static_cast<double>(p.bank.count);
  if (each * static_cast<double>(p.queries.count) < m) return {allowed};  // hardly any row is read twice
  const double row =
      static_cast<double>(std::max<int64_t>(1, p.bank.width)) * static_cast<double>(size_of(p.bank.dtype));
  const double wanted = std::max(kStretchBytes / row, kLeastOfStretch * m / std::max(each, 1.0));
  return {allowed, wanted < m ? round_up_to(static_cast<int64_t>(wanted), 64) : 0};
}

}  // namespace vecbank::cpu
