// torch.ops.vecbank.*, sets of rows. The CPU alone has kernels for them.
#pragma once

#include "../core/maxsim.h"
#include "ops_selection.h"

namespace vecbank::ops {

// Both sides, checked. It keeps the tensors that it points to.
struct SetsOfRows {
  RowsView query_rows, document_rows;
  Tensor query_offsets, offsets;
  MaxSimProblem problem;

  SetsOfRows(const CpuScope& scope, const Tensor& queries, const Tensor& given_query_offsets, const Tensor& documents,
             const Tensor& given_offsets, int64_t metric)
      : query_rows(rows_of(queries, "queries")),
        document_rows(rows_of(documents, "documents")),
        query_offsets(dense(given_query_offsets)),
        offsets(dense(given_offsets)) {
    for (const Tensor* t : {&queries, &given_query_offsets, &documents, &given_offsets}) scope.same(*t, "a tensor");
    STD_TORCH_CHECK(queries.dim() == 2 && documents.dim() == 2 && queries.size(1) == documents.size(1),
                    "vecbank: queries and documents must be (rows, d) of one d, got ", shape_of(queries), " and ",
                    shape_of(documents));
    check_mix(query_rows.rows.dtype, document_rows.rows.dtype);
    problem.metric = metric_of(metric);
    problem.queries = sets(query_rows.rows, given_query_offsets, query_offsets, "query_offsets");
    problem.documents = sets(document_rows.rows, given_offsets, offsets, "offsets");
  }
  double work(double share) const {
    return share * work_of(problem.queries.rows.count, problem.documents.rows.count, problem.queries.rows.width);
  }
  // [query tokens][columns], or nothing.
  Tensor best(const CpuScope& scope, bool wanted, int64_t columns) {
    Tensor rows = wanted ? scope.empty({problem.queries.rows.count, columns}, ScalarType::Long)
                         : scope.empty({0}, ScalarType::Long);
    if (wanted) problem.best = codes_out(rows);
    return rows;
  }

 private:
  static RowSets sets(const Rows& rows, const Tensor& given, const Tensor& offsets, const char* name) {
    STD_TORCH_CHECK(given.dim() == 1 && given.size(0) >= 1 && given.scalar_type() == ScalarType::Long,
                    "vecbank: ", name, " must be int64 (sets + 1,), got ", shape_of(given));
    const RowSets found{rows, codes_in(offsets), given.size(0) - 1};
    STD_TORCH_CHECK(found.offsets[0] == 0 && found.offsets[found.count] == rows.count, "vecbank: ", name,
                    " must lead from 0 to the number of rows ", rows.count, ", got ", found.offsets[0], " to ",
                    found.offsets[found.count]);
    for (int64_t s = 0; s < found.count; ++s)
      STD_TORCH_CHECK(found.offsets[s] <= found.offsets[s + 1], "vecbank: ", name, " must never fall, but go from ",
                      found.offsets[s], " to ", found.offsets[s + 1], " at set ", s);
    return found;
  }
};

inline std::tuple<Tensor, Tensor> maxsim(const Tensor& queries, const Tensor& query_offsets, const Tensor& documents,
                                         const Tensor& offsets, int64_t metric, bool best) {
  CpuScope scope(queries, "queries");
  SetsOfRows sets(scope, queries, query_offsets, documents, offsets, metric);
  MaxSimProblem& p = sets.problem;
  const bool wide = p.queries.rows.dtype == DType::f64;
  Tensor values = scope.empty({p.queries.count, p.documents.count}, wide ? ScalarType::Double : ScalarType::Float);
  Tensor rows = sets.best(scope, best, p.documents.count);
  p.values = values.mutable_data_ptr();
  p.values_dtype = wide ? DType::f64 : DType::f32;
  scope.begin(sets.work(1.0));
  CpuScope::check(cpu::maxsim(p, scope.threads()));
  return {values, rows};
}

inline std::tuple<Tensor, Tensor> maxsim_pairs(const Tensor& queries, const Tensor& query_offsets,
                                               const Tensor& documents, const Tensor& offsets, const Tensor& indices,
                                               int64_t metric, bool best) {
  CpuScope scope(queries, "queries");
  SetsOfRows sets(scope, queries, query_offsets, documents, offsets, metric);
  MaxSimProblem& p = sets.problem;
  scope.same(indices, "indices");
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long && indices.dim() == 2 && indices.size(0) == p.queries.count,
                  "vecbank: indices must be int64 (Q, k), got ", shape_of(indices));
  const Tensor listed = dense(indices);
  p.listed = codes_in(listed);
  p.k = indices.size(1);
  for (int64_t i = 0; i < listed.numel(); ++i)
    STD_TORCH_CHECK(p.listed[i] >= -1 && p.listed[i] < p.documents.count, "vecbank: codes must lie between -1 and ",
                    p.documents.count - 1, ", got ", p.listed[i]);
  Tensor values = scope.empty({p.queries.count, p.k}, ScalarType::Double);
  Tensor rows = sets.best(scope, best, p.k);
  p.values = values.mutable_data_ptr();
  const double documents_count = static_cast<double>(std::max<int64_t>(1, p.documents.count));
  scope.begin(4.0 * sets.work(static_cast<double>(p.k) / documents_count));
  CpuScope::check(cpu::maxsim_pairs(p, scope.threads()));
  return {values, rows};
}

inline std::tuple<Tensor, Tensor> maxsim_topk(const Tensor& queries, const Tensor& query_offsets,
                                              const Tensor& documents, const Tensor& offsets, int64_t k, int64_t metric,
                                              const std::vector<Tensor>& sets_of_documents,
                                              const std::vector<int64_t>& program, const std::optional<Tensor>& codes,
                                              const std::optional<Tensor>& facts) {
  CpuScope scope(queries, "queries");
  SetsOfRows sets(scope, queries, query_offsets, documents, offsets, metric);
  MaxSimProblem& p = sets.problem;
  STD_TORCH_CHECK(k >= 1 && k <= p.documents.count, "vecbank: k must lie between 1 and the number of documents ",
                  p.documents.count, ", got k = ", k);
  STD_TORCH_CHECK(codes.has_value() == facts.has_value(), "vecbank: codes and facts go together");
  if (codes) {
    scope.same(*codes, "codes");
    scope.same(*facts, "facts");
    const int64_t bytes = cpu::maxsim_code_bytes(p.documents.rows.width);
    STD_TORCH_CHECK(codes->dim() == 2 && codes->scalar_type() == ScalarType::Byte && codes->is_contiguous() &&
                        codes->size(0) == p.documents.rows.count && codes->size(1) == bytes,
                    "vecbank: codes must be what vecbank::maxsim_pack returned for these documents, got ",
                    shape_of(*codes));
    STD_TORCH_CHECK(facts->dim() == 2 && facts->scalar_type() == ScalarType::Float && facts->is_contiguous() &&
                        facts->size(0) == p.documents.count && facts->size(1) == 3,
                    "vecbank: facts must be what vecbank::maxsim_pack returned for these documents, got ",
                    shape_of(*facts));
    p.codes = {static_cast<const uint8_t*>(codes->const_data_ptr()),
               static_cast<const float*>(facts->const_data_ptr())};
  }
  Pairing pair;
  pair.m = p.documents.count;
  pair.x.rows.count = p.queries.count;
  const Tensor each = scope.empty({p.queries.count, 0}, ScalarType::Float);
  const SetsView among(scope, sets_of_documents, program, each, pair);
  const std::optional<Allowed> allowed = among.of_batch(0, p.queries.count);
  p.k = k;
  p.allowed = allowed ? &*allowed : nullptr;
  Tensor values = scope.empty({p.queries.count, k}, ScalarType::Double),
         found = scope.empty({p.queries.count, k}, ScalarType::Long);
  p.values = values.mutable_data_ptr();
  p.found = codes_out(found);
  scope.begin(sets.work(1.0));
  CpuScope::check(cpu::maxsim_topk(p, scope.threads()));
  return {values, found};
}

inline std::tuple<Tensor, Tensor> maxsim_pack(const Tensor& documents, const Tensor& offsets, int64_t metric) {
  CpuScope scope(documents, "documents");
  const SetsOfRows sets(scope, documents, offsets, documents, offsets, metric);
  const MaxSimProblem& p = sets.problem;
  STD_TORCH_CHECK(record(p.metric).term == Term::product, "vecbank: codes are for dot and cosine, got metric ", metric);
  Tensor codes =
             scope.empty({p.documents.rows.count, cpu::maxsim_code_bytes(p.documents.rows.width)}, ScalarType::Byte),
         facts = scope.empty({p.documents.count, 3}, ScalarType::Float);
  scope.begin(8.0 * static_cast<double>(documents.numel()));
  CpuScope::check(cpu::maxsim_pack(p.documents, p.metric, static_cast<uint8_t*>(codes.mutable_data_ptr()),
                                   static_cast<float*>(facts.mutable_data_ptr()), scope.threads()));
  return {codes, facts};
}

template <class Library>
void register_maxsim(Library& m) {
  m.impl("maxsim", TORCH_BOX(&maxsim));
  m.impl("maxsim_pairs", TORCH_BOX(&maxsim_pairs));
  m.impl("maxsim_topk", TORCH_BOX(&maxsim_topk));
  m.impl("maxsim_pack", TORCH_BOX(&maxsim_pack));
}

}  // namespace vecbank::ops
