// torch.ops.vecbank.*, retrieval with sparse vectors. The CPU alone has kernels for it.
#pragma once

#include "../core/sparse.h"
#include "ops_selection.h"

namespace vecbank::ops {

inline std::tuple<Tensor, Tensor, Tensor> sparse_invert(const Tensor& offsets, const Tensor& ids, int64_t width) {
  CpuScope scope(offsets, "offsets");
  scope.same(ids, "ids");
  STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == ScalarType::Long,
                  "vecbank: offsets must be int64 (M + 1,), got ", shape_of(offsets));
  STD_TORCH_CHECK(ids.dim() == 1 && (ids.scalar_type() == ScalarType::Long || ids.scalar_type() == ScalarType::Int),
                  "vecbank: ids must be int32 or int64 (nnz,), got ", shape_of(ids));
  STD_TORCH_CHECK(width >= 0, "vecbank: width must not be negative, got ", width);
  const Tensor given = dense(offsets), terms = dense(ids);
  InvertProblem p;
  p.offsets = codes_in(given);
  p.ids = terms.const_data_ptr();
  p.wide_ids = ids.scalar_type() == ScalarType::Long;
  p.documents = offsets.size(0) - 1;
  p.terms = width;
  p.entries = ids.size(0);
  STD_TORCH_CHECK(p.documents <= INT32_MAX, "vecbank: there must be fewer than 2^31 documents, got ", p.documents);
  STD_TORCH_CHECK(p.offsets[0] == 0 && p.offsets[p.documents] == p.entries,
                  "vecbank: offsets must lead from 0 to the number of ids ", p.entries, ", got ", p.offsets[0], " to ",
                  p.offsets[p.documents]);
  for (int64_t d = 0; d < p.documents; ++d)
    STD_TORCH_CHECK(p.offsets[d] <= p.offsets[d + 1], "vecbank: offsets must ascend, but row ", d, " goes from ",
                    p.offsets[d], " to ", p.offsets[d + 1]);
  Tensor starts = scope.empty({width + 1}, ScalarType::Long), listed = scope.empty({p.entries}, ScalarType::Int),
         order = scope.empty({p.entries}, ScalarType::Long);
  p.starts = codes_out(starts);
  p.listed = static_cast<int32_t*>(listed.mutable_data_ptr());
  p.order = codes_out(order);
  scope.begin(8.0 * static_cast<double>(p.entries + p.terms));
  const Status status = cpu::invert(p, scope.threads());
  const bool outside = p.wrong_term < 0 || p.wrong_term >= width;
  STD_TORCH_CHECK(status != Status::bad_index || !outside,
                  "vecbank: ids must lie between 0 and width - 1 = ", width - 1, ", but row ", p.wrong_document,
                  " has ", p.wrong_term);
  STD_TORCH_CHECK(status != Status::bad_index, "vecbank: ids must name a term once in a row, but row ",
                  p.wrong_document, " has ", p.wrong_term, " twice");
  CpuScope::check(status);
  return {starts, listed, order};
}

// Queries and lists, checked, and how many entries the queries' terms have. It keeps the tensors that it points to.
struct SparseView {
  Tensor ids, query_weights, starts, listed, weights;
  SparseQueries queries;
  InvertedLists lists;
  int64_t entries = 0;

  // `whole`: every list will be looked at.
  SparseView(const CpuScope& scope, const Tensor& query_ids, const Tensor& given, const Tensor& list_starts,
             const Tensor& documents, const Tensor& list_weights, int64_t count, bool whole)
      : ids(dense(query_ids)),
        query_weights(dense(given)),
        starts(dense(list_starts)),
        listed(dense(documents)),
        weights(dense(list_weights)) {
    for (const Tensor* t : {&query_ids, &given, &list_starts, &documents, &list_weights}) scope.same(*t, "a tensor");
    const ScalarType dtype = list_weights.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "vecbank: weights must be float32 or float64");
    STD_TORCH_CHECK(given.scalar_type() == dtype, "vecbank: query weights must have the dtype of the documents'");
    STD_TORCH_CHECK(
        query_ids.dim() >= 1 && query_ids.scalar_type() == ScalarType::Long && sizes_of(query_ids) == sizes_of(given),
        "vecbank: query ids must be int64 (..., T) with as many weights, got ", shape_of(query_ids), " and ",
        shape_of(given));
    STD_TORCH_CHECK(list_starts.dim() == 1 && list_starts.size(0) >= 1 && list_starts.scalar_type() == ScalarType::Long,
                    "vecbank: starts must be int64 (V + 1,), got ", shape_of(list_starts));
    STD_TORCH_CHECK(documents.dim() == 1 && documents.scalar_type() == ScalarType::Int &&
                        sizes_of(documents) == sizes_of(list_weights),
                    "vecbank: documents must be int32 (nnz,) with as many weights, got ", shape_of(documents), " and ",
                    shape_of(list_weights));
    STD_TORCH_CHECK(count >= 0 && count <= INT32_MAX, "vecbank: count must lie between 0 and 2^31 - 1, got ", count);
    lists = {codes_in(starts),         static_cast<const int32_t*>(listed.const_data_ptr()),
             weights.const_data_ptr(), dtype_of(list_weights, "weights"),
             list_starts.size(0) - 1,  count};
    queries.ids = codes_in(ids);
    queries.weights = query_weights.const_data_ptr();
    queries.terms = query_ids.size(query_ids.dim() - 1);
    queries.count = 1;
    for (int64_t i = 0; i + 1 < query_ids.dim(); ++i) queries.count *= query_ids.size(i);
    for (int64_t j = 0; j < ids.numel(); ++j) {
      const int64_t term = queries.ids[j];
      STD_TORCH_CHECK(term >= -1 && term < lists.terms, "vecbank: query ids must lie between -1 and ", lists.terms - 1,
                      ", got ", term);
      if (term >= 0) entries += checked_list(term);
    }
    STD_TORCH_CHECK(!whole || (lists.starts[0] == 0 && lists.starts[lists.terms] == listed.numel()),
                    "vecbank: starts must lead from 0 to the number of documents listed");
    for (int64_t t = 0; whole && t < lists.terms; ++t) checked_list(t);
  }
  double work() const {
    return static_cast<double>(queries.count) * static_cast<double>(lists.count) + 4.0 * static_cast<double>(entries);
  }

 private:
  int64_t checked_list(int64_t term) const {
    const int64_t begin = lists.starts[term], end = lists.starts[term + 1];
    STD_TORCH_CHECK(begin >= 0 && begin <= end && end <= listed.numel(),
                    "vecbank: starts must ascend from 0 to the number of documents listed, but those of term ", term,
                    " are ", begin, " and ", end);
    return end - begin;
  }
};

inline Tensor sparse_scores(const Tensor& ids, const Tensor& query_weights, const Tensor& starts,
                            const Tensor& documents, const Tensor& weights, int64_t count) {
  CpuScope scope(ids, "query ids");
  const SparseView view(scope, ids, query_weights, starts, documents, weights, count, false);
  Tensor values = scope.empty(resized(ids, count), weights.scalar_type());
  SparseSearchProblem p;
  p.queries = view.queries;
  p.lists = view.lists;
  p.values = values.mutable_data_ptr();
  scope.begin(view.work());
  CpuScope::check(cpu::sparse_search(p, scope.threads()));
  return values;
}

inline std::tuple<Tensor, Tensor> sparse_topk(const Tensor& ids, const Tensor& query_weights, const Tensor& starts,
                                              const Tensor& documents, const Tensor& weights, int64_t count, int64_t k,
                                              const std::vector<Tensor>& sets, const std::vector<int64_t>& program) {
  CpuScope scope(ids, "query ids");
  const SparseView view(scope, ids, query_weights, starts, documents, weights, count, false);
  STD_TORCH_CHECK(k >= 1 && k <= count, "vecbank: k must lie between 1 and the number of documents ", count,
                  ", got k = ", k);
  Pairing pair;
  pair.m = count;
  pair.x.rows.count = view.queries.count;
  const SetsView among(scope, sets, program, query_weights, pair);
  const std::optional<Allowed> allowed = among.of_batch(0, view.queries.count);
  Tensor values = scope.empty(resized(ids, k), weights.scalar_type()),
         indices = scope.empty(resized(ids, k), ScalarType::Long);
  SparseSearchProblem p;
  p.queries = view.queries;
  p.lists = view.lists;
  p.k = k;
  p.allowed = allowed ? &*allowed : nullptr;
  p.values = values.mutable_data_ptr();
  p.indices = codes_out(indices);
  scope.begin(view.work());
  CpuScope::check(cpu::sparse_search(p, scope.threads()));
  return {values, indices};
}

// The gradients of the scores of all documents, or of those in `indices` (..., k).
inline std::tuple<Tensor, Tensor> sparse_backward(const Tensor& grad, const Tensor& ids, const Tensor& query_weights,
                                                  const Tensor& starts, const Tensor& documents, const Tensor& weights,
                                                  int64_t count, const std::optional<Tensor>& indices,
                                                  bool need_queries, bool need_lists) {
  CpuScope scope(ids, "query ids");
  const SparseView view(scope, ids, query_weights, starts, documents, weights, count, true);
  scope.same(grad, "grad");
  if (indices) {
    scope.same(*indices, "indices");
    STD_TORCH_CHECK(indices->scalar_type() == ScalarType::Long && indices->dim() == ids.dim(),
                    "vecbank: indices must be int64 (..., k), got ", shape_of(*indices));
  }
  const int64_t k = indices ? indices->size(indices->dim() - 1) : count;
  STD_TORCH_CHECK(grad.scalar_type() == weights.scalar_type() && sizes_of(grad) == resized(ids, k) &&
                      (!indices || sizes_of(*indices) == sizes_of(grad)),
                  "vecbank: grad must have the scores' shape and dtype, got ", shape_of(grad));
  const Tensor given = dense(grad);
  const std::optional<Tensor> chosen = indices ? std::optional(dense(*indices)) : std::nullopt;
  Tensor grad_queries = scope.empty(need_queries ? sizes_of(ids) : std::vector<int64_t>{0}, grad.scalar_type()),
         grad_lists = scope.empty({need_lists ? weights.size(0) : 0}, grad.scalar_type());
  SparseGradientProblem p;
  p.queries = view.queries;
  p.lists = view.lists;
  p.grad = given.const_data_ptr();
  p.indices = chosen ? codes_in(*chosen) : nullptr;
  p.k = k;
  p.grad_queries = need_queries ? grad_queries.mutable_data_ptr() : nullptr;
  p.grad_lists = need_lists ? grad_lists.mutable_data_ptr() : nullptr;
  scope.begin(8.0 * static_cast<double>(view.entries) + static_cast<double>(weights.size(0)));
  CpuScope::check(cpu::sparse_gradients(p, scope.threads()));
  return {grad_queries, grad_lists};
}

template <class Library>
void register_sparse(Library& m) {
  m.impl("sparse_invert", TORCH_BOX(&sparse_invert));
  m.impl("sparse_scores", TORCH_BOX(&sparse_scores));
  m.impl("sparse_topk", TORCH_BOX(&sparse_topk));
  m.impl("sparse_backward", TORCH_BOX(&sparse_backward));
}

}  // namespace vecbank::ops
