// Retrieval with sparse vectors: the transposition of documents into inverted lists, exact scores and the best k, and
// the gradients of both. The order of every sum is stated in core/sparse.h.
#include <atomic>
#include <cmath>

#include "../core/half.h"
#include "allowed.h"
#include "api.h"
#include "isa.h"
#include "kernels.h"
#include "members.h"
#include "search/merge.h"
#include "topk_list.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kBlock = 4096;  // documents whose sums are added up together: they stay in L1
constexpr int64_t kLook = 256;    // sums that are compared with the k-th best at once

// Calls f(float{}) or f(double{}).
template <class F>
void with_weights(DType dtype, F&& f) {
  if (dtype == DType::f64)
    f(double{});
  else
    f(float{});
}

double weight_at(const void* weights, DType dtype, int64_t i) {
  return dtype == DType::f64 ? static_cast<const double*>(weights)[i]
                             : static_cast<double>(static_cast<const float*>(weights)[i]);
}

void narrow(const double* from, DType dtype, int64_t count, void* to, int64_t at) {
  kernels().narrow(from, dtype, count, static_cast<char*>(to) + at * static_cast<int64_t>(size_of(dtype)));
}

// Where a query has come to in the list of one of its terms.
struct Cursor {
  int64_t at, end;
  double weight;
};

// The terms of a query; returns how many there are. `first`: the document to begin with.
int64_t begin_query(const SparseQueries& q, const InvertedLists& lists, int64_t query, int64_t first, Cursor* out) {
  int64_t count = 0;
  for (int64_t j = query * q.terms; j < (query + 1) * q.terms; ++j) {
    if (q.ids[j] < 0) continue;
    const int64_t begin = lists.starts[q.ids[j]], end = lists.starts[q.ids[j] + 1];
    const int32_t* documents = lists.documents;
    const int64_t at = first == 0 ? begin : std::lower_bound(documents + begin, documents + end, first) - documents;
    out[count++] = {at, end, weight_at(q.weights, lists.dtype, j)};
  }
  return count;
}

// Adds to the kBlock sums of documents from `first` on, term after term; returns whether there was anything to add.
// What lies beyond the block is a later one's, or no document at all.
template <class T>
bool add_terms(const InvertedLists& lists, Cursor* cursors, int64_t count, int64_t first, double* sums) {
  constexpr int kTogether = 8;
  constexpr uint32_t room = kBlock;
  static_assert((room & (room - 1)) == 0, "so that many places are inside where their bits, joined, are");
  const auto low = static_cast<uint32_t>(first);
  bool any = false;
  for (int64_t j = 0; j < count; ++j) {
    const double w = cursors[j].weight;
    const int32_t* documents = lists.documents;
    const T* weights = static_cast<const T*>(lists.weights);
    const int64_t end = cursors[j].end;
    int64_t at = cursors[j].at;
    for (; at + kTogether <= end; at += kTogether) {
      uint32_t places[kTogether], bits = 0;
      double products[kTogether];
      for (int i = 0; i < kTogether; ++i) bits |= places[i] = static_cast<uint32_t>(documents[at + i]) - low;
      if (bits >= room) break;
      for (int i = 0; i < kTogether; ++i) products[i] = w * static_cast<double>(weights[at + i]);
      for (int i = 0; i < kTogether; ++i) sums[places[i]] += products[i];
    }
    for (; at < end; ++at) {
      const uint32_t place = static_cast<uint32_t>(documents[at]) - low;
      if (place >= room) break;
      sums[place] += w * static_cast<double>(weights[at]);
    }
    any = any || at != cursors[j].at;
    cursors[j].at = at;
  }
  return any;
}

// How the documents are divided where there are few queries.
struct Parts {
  int64_t size, count;
  Parts(int64_t documents, int64_t wanted) {
    size = round_up_to(ceil_div(documents, std::max<int64_t>(wanted, 1)), 4 * kBlock);
    count = ceil_div(documents, size);
  }
};

// A query of a group: how many terms it has, and which documents it must look at.
struct Query {
  int64_t terms, first, last;
};

struct Worker {
  Buffer<double> sums;
  Buffer<Cursor> cursors;
  Buffer<Query> queries;
  std::unique_ptr<TopKList[]> lists;
  Selector selector;

  bool reserve(int64_t count, const SparseSearchProblem& p) {
    if (!sums.reserve(kBlock) || !cursors.reserve(count * p.queries.terms) || !queries.reserve(count)) return false;
    if (p.k == 0) return true;
    lists.reset(new (std::nothrow) TopKList[static_cast<size_t>(count)]);
    for (int64_t q = 0; q < count && lists != nullptr; ++q)
      if (!lists[static_cast<size_t>(q)].reserve(p.k, p.lists.count)) return false;
    return lists != nullptr && selector.reserve(TopKList::capacity_for(p.k, p.lists.count));
  }
};

// Offers the list the documents of a block that the query may be given.
void look(const double* sums, int64_t count, int64_t first, int64_t query, const AllowedRows& allowed, TopKList& list) {
  for (int64_t from = 0; from < count; from += kLook) {
    const int64_t some = std::min(kLook, count - from);
    if (!list.takes_any(sums + from, some)) continue;
    if (!allowed.any_set()) {
      list.push_all(sums + from, some, [&](int64_t i) { return first + from + i; });
      continue;
    }
    int64_t rows[kLook], at = first + from, found;
    while ((found = allowed.list(query, &at, first + from + some, kLook, rows)) > 0)
      for (int64_t i = 0; i < found; ++i) list.push(sums[rows[i] - first], rows[i]);
  }
}

// Of a query that may be given few documents: looks each of them up in the lists of its terms.
template <class T>
void look_up(const InvertedLists& lists, Cursor* cursors, int64_t count, int64_t first, int64_t last, int64_t query,
             const AllowedRows& allowed, TopKList& list) {
  int64_t rows[kLook], from = first, found;
  while ((found = allowed.list(query, &from, last, kLook, rows)) > 0)
    for (int64_t i = 0; i < found; ++i) {
      double sum = 0.0;
      for (Cursor* c = cursors; c < cursors + count; ++c) {
        c->at = std::lower_bound(lists.documents + c->at, lists.documents + c->end, rows[i]) - lists.documents;
        if (c->at < c->end && lists.documents[c->at] == rows[i])
          sum += c->weight * static_cast<double>(static_cast<const T*>(lists.weights)[c->at]);
      }
      list.push(sum, rows[i]);
    }
}

// Queries [query, query + count) among documents [first, last): a block of documents after the other, so that the lists
// of the terms that several queries have are read from memory once.
template <class T>
void search_group(const SparseSearchProblem& p, const AllowedRows& allowed, int64_t query, int64_t count, int64_t first,
                  int64_t last, Stop stop, Worker& w) {
  constexpr int64_t kLookUp = 32;  // about what it costs to look a document up in a list, in entries of it
  const int64_t width = p.queries.terms;
  for (int64_t q = 0; q < count && !stop.requested(); ++q) {
    Query& own = w.queries[q];
    TopKList& list = w.lists[static_cast<size_t>(q)];
    Cursor* cursors = w.cursors.get() + q * width;
    list.clear();
    own = {0, first, last};
    if (!allowed.any_set()) {
      own.terms = begin_query(p.queries, p.lists, query + q, first, cursors);
      continue;
    }
    const AllowedRows::Extent extent = allowed.extent(query + q);
    own.first = std::max(first, extent.first / kBlock * kBlock);
    own.last = std::min(last, extent.end);
    if (own.last <= own.first) continue;
    own.terms = begin_query(p.queries, p.lists, query + q, own.first, cursors);
    int64_t entries = own.last - own.first;  // sums are about as much work
    for (int64_t j = 0; j < own.terms; ++j) entries += cursors[j].end - cursors[j].at;
    if (extent.most * std::max<int64_t>(own.terms, 1) * kLookUp >= entries) continue;
    look_up<T>(p.lists, cursors, own.terms, own.first, own.last, query + q, allowed, list);
    own.last = own.first;
  }
  bool zeros = false;  // all sums are
  for (int64_t from = first; from < last && !stop.requested(); from += kBlock) {
    for (int64_t q = 0; q < count; ++q) {
      const Query& own = w.queries[q];
      if (from < own.first || from >= own.last) continue;
      if (!zeros) std::fill_n(w.sums.get(), kBlock, 0.0);
      TopKList& list = w.lists[static_cast<size_t>(q)];
      zeros = !add_terms<T>(p.lists, w.cursors.get() + q * width, own.terms, from, w.sums.get());
      if (!zeros || list.takes(0.0))
        look(w.sums.get(), std::min(kBlock, own.last - from), from, query + q, allowed, list);
    }
  }
}

template <class T>
Status search(const SparseSearchProblem& p, const Parallel& parallel) {
  const int64_t n = p.queries.count, m = p.lists.count, workers = parallel.workers;
  const AllowedRows allowed = p.allowed != nullptr ? AllowedRows(*p.allowed) : AllowedRows();
  const int64_t list = TopKList::capacity_for(p.k, m) * static_cast<int64_t>(sizeof(Scored));
  const int64_t most = std::clamp<int64_t>((1 << 19) / list, 1, 32);
  const int64_t together = std::clamp<int64_t>(n / (8 * workers), 1, most), groups = ceil_div(n, together);
  const Parts parts(m, groups >= 4 * workers ? 1 : std::min(ceil_div(4 * workers, groups), ceil_div(m, p.k)));
  PerWorker<Worker> scratch(workers);
  Partials partials;
  if (!scratch.each([&](Worker& w) { return w.reserve(together, p); }) || !partials.begin(parts.count, n, p.k))
    return Status::out_of_memory;
  const Status searched = for_each_task(parallel, groups * parts.count, [&](int worker, int64_t task) {
    Worker& w = scratch[worker];
    const int64_t part = task % parts.count, query = task / parts.count * together;
    const int64_t count = std::min(together, n - query), first = part * parts.size;
    search_group<T>(p, allowed, query, count, first, std::min(m, first + parts.size), parallel.stop, w);
    for (int64_t q = 0; q < count; ++q) {
      TopKList& best = w.lists[static_cast<size_t>(q)];
      const int64_t kept = best.finish(w.selector);
      partials.put(part, query + q, best.data(), kept);
    }
  });
  if (searched != Status::ok) return searched;
  SearchProblem results;
  results.queries.count = n;
  results.k = p.k;
  results.values = p.values;
  results.values_dtype = p.lists.dtype;
  results.indices = p.indices;
  return merge(results, parts.count, true, partials, parallel);
}

template <class T>
Status all_scores(const SparseSearchProblem& p, const Parallel& parallel) {
  const int64_t n = p.queries.count, m = p.lists.count;
  const Parts parts(m, n >= 4 * parallel.workers ? 1 : 4 * parallel.workers);
  PerWorker<Worker> scratch(parallel.workers);
  if (!scratch.each([&](Worker& w) { return w.reserve(1, p); })) return Status::out_of_memory;
  return for_each_task(parallel, n * parts.count, [&](int worker, int64_t task) {
    Worker& w = scratch[worker];
    const int64_t query = task / parts.count, first = task % parts.count * parts.size;
    const int64_t last = std::min(m, first + parts.size);
    const int64_t terms = begin_query(p.queries, p.lists, query, first, w.cursors.get());
    for (int64_t from = first; from < last && !parallel.stop.requested(); from += kBlock) {
      const int64_t size = std::min(kBlock, last - from);
      std::fill_n(w.sums.get(), kBlock, 0.0);
      add_terms<T>(p.lists, w.cursors.get(), terms, from, w.sums.get());
      narrow(w.sums.get(), p.lists.dtype, size, p.values, query * m + from);
    }
  });
}

template <class Id>
Status invert_ids(InvertProblem& p, Stop stop) {
  const Id* ids = static_cast<const Id*>(p.ids);
  int64_t* next = p.starts;  // first how many a term has, at last where its list ends
  std::fill_n(next, p.terms + 1, int64_t{0});
  const auto each = [&](auto&& f) {  // f(document, its entries): whether to go on
    bool good = true;
    const int64_t stretch = stretch_of(4 + p.entries / std::max<int64_t>(p.documents, 1));
    const bool done = in_stretches(stop, 0, p.documents, stretch, [&](int64_t from, int64_t to) {
      for (int64_t d = from; d < to && good; ++d)
        for (int64_t i = p.offsets[d]; i < p.offsets[d + 1] && good; ++i) {
          good = f(d, i);
          if (!good) p.wrong_document = d, p.wrong_term = static_cast<int64_t>(ids[i]);
        }
    });
    return !good ? Status::bad_index : done ? Status::ok : Status::stopped;
  };
  Status status = each([&](int64_t, int64_t i) {
    const bool inside = ids[i] >= 0 && static_cast<int64_t>(ids[i]) < p.terms;
    if (inside) ++next[ids[i]];
    return inside;
  });
  if (status != Status::ok) return status;
  int64_t total = 0;
  for (int64_t t = 0; t <= p.terms; ++t) {
    const int64_t here = next[t];
    next[t] = total;
    total += here;
  }
  Buffer<int32_t> last;  // the last document of each list so far
  if (!last.reserve(p.terms)) return Status::out_of_memory;
  std::fill_n(last.get(), p.terms, int32_t{-1});
  status = each([&](int64_t d, int64_t i) {
    const auto document = static_cast<int32_t>(d);
    const int64_t term = static_cast<int64_t>(ids[i]), at = next[term];
    if (last[term] == document) return false;
    last[term] = document;
    p.listed[at] = document;
    p.order[at] = i;
    next[term] = at + 1;
    return true;
  });
  if (status != Status::ok) return status;
  for (int64_t t = p.terms; t > 0; --t) p.starts[t] = p.starts[t - 1];
  p.starts[0] = 0;
  return Status::ok;
}

// Where a document is in the list of a term; -1: nowhere.
int64_t entry_of(const InvertedLists& lists, int64_t term, int64_t document) {
  const int32_t *begin = lists.documents + lists.starts[term], *end = lists.documents + lists.starts[term + 1];
  const int32_t* at = std::lower_bound(begin, end, document);
  return at != end && *at == document ? at - lists.documents : -1;
}

// Calls f(entry, gradient of the score) for the documents of query `q` that hold a term.
template <class T, class F>
void each_gradient(const SparseGradientProblem& p, int64_t q, int64_t term, F&& f) {
  const T* grad = static_cast<const T*>(p.grad);
  const int64_t m = p.lists.count;
  if (p.indices != nullptr) {
    for (int64_t i = q * p.k; i < (q + 1) * p.k; ++i) {
      const int64_t entry = p.indices[i] < 0 ? -1 : entry_of(p.lists, term, p.indices[i]);
      if (entry >= 0) f(entry, static_cast<double>(grad[i]));
    }
    return;
  }
  for (int64_t i = p.lists.starts[term]; i < p.lists.starts[term + 1]; ++i) {
    const auto document = static_cast<int64_t>(static_cast<uint32_t>(p.lists.documents[i]));
    if (document < m) f(i, static_cast<double>(grad[q * m + document]));
  }
}

template <class T>
Status query_gradients(const SparseGradientProblem& p, const Parallel& parallel) {
  const T* weights = static_cast<const T*>(p.lists.weights);
  T* out = static_cast<T*>(p.grad_queries);
  return for_each_task(parallel, p.queries.count, [&](int, int64_t q) {
    for (int64_t j = q * p.queries.terms; j < (q + 1) * p.queries.terms && !parallel.stop.requested(); ++j) {
      double sum = 0.0;
      if (p.queries.ids[j] >= 0)
        each_gradient<T>(p, q, p.queries.ids[j],
                         [&](int64_t entry, double grad) { sum += grad * static_cast<double>(weights[entry]); });
      out[j] = static_cast<T>(sum);
    }
  });
}

template <class T>
Status list_gradients(const SparseGradientProblem& p, const Parallel& parallel) {
  constexpr int64_t together = 16;
  const T* weights = static_cast<const T*>(p.queries.weights);
  const int64_t* starts = p.lists.starts;
  Segments members;  // where each term comes in the queries
  const Status built = members.build(p.queries.ids, p.queries.count * p.queries.terms, p.lists.terms, parallel.stop);
  if (built != Status::ok) return built;
  int64_t longest = 0;
  for (int64_t t = 0; t < p.lists.terms; ++t) longest = std::max(longest, starts[t + 1] - starts[t]);
  PerWorker<Buffer<double>> scratch(parallel.workers);
  if (!scratch.each([&](Buffer<double>& sums) { return sums.reserve(longest); })) return Status::out_of_memory;
  return for_each_task(parallel, ceil_div(p.lists.terms, together), [&](int worker, int64_t task) {
    double* sums = scratch[worker].get();
    for (int64_t t = task * together; t < std::min(p.lists.terms, (task + 1) * together); ++t) {
      const int64_t begin = starts[t], count = starts[t + 1] - begin;
      std::fill_n(sums, count, 0.0);
      for (int64_t o = members.begin(t); o < members.end(t) && count > 0 && !parallel.stop.requested(); ++o) {
        const int64_t j = members.order[o];
        const auto w = static_cast<double>(weights[j]);
        each_gradient<T>(p, j / p.queries.terms, t,
                         [&](int64_t entry, double grad) { sums[entry - begin] += grad * w; });
      }
      narrow(sums, p.lists.dtype, count, p.grad_lists, begin);
    }
  });
}

}  // namespace

Status invert(InvertProblem& p, const Parallel& parallel) {
  return p.wide_ids ? invert_ids<int64_t>(p, parallel.stop) : invert_ids<int32_t>(p, parallel.stop);
}

Status sparse_search(const SparseSearchProblem& p, const Parallel& parallel) {
  if (p.queries.count == 0 || p.lists.count == 0) return Status::ok;
  Status status = Status::ok;
  with_weights(p.lists.dtype, [&](auto type) {
    using T = decltype(type);
    status = p.k > 0 ? search<T>(p, parallel) : all_scores<T>(p, parallel);
  });
  return status;
}

Status sparse_gradients(const SparseGradientProblem& p, const Parallel& parallel) {
  Status status = Status::ok;
  with_weights(p.lists.dtype, [&](auto type) {
    using T = decltype(type);
    if (p.grad_queries != nullptr) status = query_gradients<T>(p, parallel);
    if (p.grad_lists != nullptr && status == Status::ok) status = list_gradients<T>(p, parallel);
  });
  return status;
}

}  // namespace vecbank::cpu
