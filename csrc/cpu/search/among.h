// The queries of a search among candidate sets of their own: how many rows each may be given, and which are given so
// few that these are refined rather than screened.
#pragma once

#include "refined.h"

namespace vecbank::cpu {

// The search of some queries of another one, with memory for its results.
class ChosenQueries {
 public:
  [[nodiscard]] bool begin(const SearchProblem& p, const int64_t* chosen, int64_t count);
  const SearchProblem& problem() const { return problem_; }
  void give_results() const;  // to the other search's

 private:
  SearchProblem problem_, whole_;
  const int64_t* chosen_ = nullptr;
  Buffer<char> queries_, values_, gathered_;
  Buffer<int64_t> indices_;
};

class Among {
 public:
  // p.queries are those of `allowed`. A set that all queries share is counted once.
  [[nodiscard]] Status begin(const SearchProblem& p, const AllowedRows& allowed, const Parallel& parallel);

  double mean() const { return mean_; }  // of the rows that a query may be given
  const float* expected() const { return expected_.get(); }

  // Queries in two groups, each in ascending order: those whose rows are refined, and those that are screened.
  struct Group {
    const int64_t* queries = nullptr;  // null: all
    const float* expected = nullptr;
    int64_t count = 0;
    double mean = 0.0;
  };
  [[nodiscard]] bool split(const SearchProblem& p);
  const Group& few() const { return few_; }
  const Group& many() const { return many_; }

  // find(own, allowed, group, way): each group that has queries as a search of its own, or the whole search.
  template <class Find>
  [[nodiscard]] Status search_groups(const SearchProblem& p, const AllowedRows& allowed, Find&& find) {
    if (!split(p)) return Status::out_of_memory;
    for (const Group* group : {&few_, &many_}) {
      const SearchWay way = group == &few_ ? SearchWay::refined : SearchWay::screened;
      if (group->count == 0) continue;
      if (group->queries == nullptr) return find(p, allowed, *group, way);
      ChosenQueries own;
      if (!own.begin(p, group->queries, group->count)) return Status::out_of_memory;
      const Status found = find(own.problem(), allowed.of(group->queries), *group, way);
      if (found != Status::ok) return found;
      own.give_results();
    }
    return Status::ok;
  }

 private:
  double mean_ = 0.0;
  Buffer<float> expected_, split_expected_;
  Buffer<int64_t> split_;
  Group few_, many_;
};

// So many rows for each query, refined a stretch of the bank at a time where that pays.
RefinedSets refined_sets(const SearchProblem& p, const AllowedRows& allowed, double each);

}  // namespace vecbank::cpu
