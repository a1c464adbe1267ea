// torch.ops.vecbank.*, sums weighted by a softmax of dot products, and their gradients. The CPU alone has kernels for
// them.
#pragma once

#include "../core/attend.h"
#include "ops_selection.h"

namespace vecbank::ops {

// The arguments that both ops have, checked. It keeps the tensors that it points to.
struct AttendView {
  Pairing pair;
  std::optional<RowsView> values;
  Tensor beta;
  SetsView sets;
  int64_t width = 0;  // of the values; 0 without them

  AttendView(const CpuScope& scope, const Tensor& x, const Tensor& bank, const std::optional<Tensor>& given,
             const Tensor& betas, const std::vector<Tensor>& candidate_sets, const std::vector<int64_t>& program)
      : pair(pair_rows(scope, x, bank)), beta(dense(betas)), sets(scope, candidate_sets, program, x, pair) {
    STD_TORCH_CHECK(pair.x.rows.dtype != DType::f64 && pair.bank.rows.dtype != DType::f64,
                    "vecbank: attend sums in float32: x and bank must not be float64");
    scope.same(betas, "beta");
    STD_TORCH_CHECK(betas.dim() == 1 && betas.size(0) == pair.x.rows.count && betas.scalar_type() == ScalarType::Float,
                    "vecbank: beta must be float32 (", pair.x.rows.count, "), got ", shape_of(betas));
    if (!given) return;
    scope.same(*given, "values");
    std::vector<int64_t> lead = sizes_of(*given), wanted = sizes_of(bank);
    STD_TORCH_CHECK(lead.size() == wanted.size(), "vecbank: values ", shape_of(*given), " must go with bank ",
                    shape_of(bank));
    width = lead.back();
    lead.pop_back(), wanted.pop_back();
    STD_TORCH_CHECK(lead == wanted, "vecbank: values ", shape_of(*given), " must have a row for each of bank ",
                    shape_of(bank));
    values.emplace(rows_of(*given, "values"));
    STD_TORCH_CHECK(values->rows.dtype != DType::f64, "vecbank: attend sums in float32: values must not be float64");
  }

  AttendProblem batch(int64_t b, const std::optional<Allowed>& allowed) const {
    AttendProblem p;
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    p.summed = values.has_value();
    if (values) p.values = batch_of(values->rows, pair.batches, b);
    p.beta = static_cast<const float*>(beta.const_data_ptr()) + b * p.queries.count;
    p.allowed = allowed ? &*allowed : nullptr;
    return p;
  }
  double work() const { return 2.0 * pair.work(pair.m + width); }
};

inline std::tuple<Tensor, Tensor> attend(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& values,
                                         const Tensor& beta, const std::vector<Tensor>& sets,
                                         const std::vector<int64_t>& program) {
  CpuScope scope(x, "x");
  const AttendView view(scope, x, bank, values, beta, sets, program);
  std::vector<int64_t> shape = view.pair.leading;
  Tensor lse = scope.empty(shape, ScalarType::Double);
  shape.push_back(view.width);
  Tensor out = scope.empty(shape, ScalarType::Float);
  scope.begin(view.work());
  for (int64_t b = 0; b < view.pair.batches; ++b) {
    const std::optional<Allowed> allowed = view.sets.of_batch(b, view.pair.x_batch(b).count);
    AttendProblem p = view.batch(b, allowed);
    const int64_t done = b * p.queries.count;
    p.out = static_cast<float*>(out.mutable_data_ptr()) + done * view.width;
    p.lse = static_cast<double*>(lse.mutable_data_ptr()) + done;
    CpuScope::check(cpu::attend(p, scope.threads()));
  }
  return {out, lse};
}

// `along`: for each query the product of grad and what attend() returned, less the gradient of the natural lse.
inline std::tuple<Tensor, Tensor, Tensor, Tensor> attend_backward(
    const std::optional<Tensor>& grad, const Tensor& along, const Tensor& x, const Tensor& bank,
    const std::optional<Tensor>& values, const Tensor& beta, const Tensor& lse, const std::vector<Tensor>& sets,
    const std::vector<int64_t>& program, bool need_x, bool need_bank, bool need_values, bool need_beta) {
  CpuScope scope(x, "x");
  const AttendView view(scope, x, bank, values, beta, sets, program);
  const int64_t n = view.pair.x.rows.count, d = view.pair.x.rows.width, m = view.pair.m, e = view.width;
  STD_TORCH_CHECK(grad.has_value() == values.has_value(), "vecbank: grad goes with values");
  std::optional<Tensor> rows;
  if (grad) {
    scope.same(*grad, "grad");
    STD_TORCH_CHECK(grad->scalar_type() == ScalarType::Float && grad->numel() == n * e,
                    "vecbank: grad must be float32, as many as the sums, got ", shape_of(*grad));
    rows = dense(*grad);
  }
  scope.same(along, "along");
  scope.same(lse, "lse");
  STD_TORCH_CHECK(along.scalar_type() == ScalarType::Float && along.numel() == n,
                  "vecbank: along must be float32, one for each query, got ", shape_of(along));
  STD_TORCH_CHECK(lse.scalar_type() == ScalarType::Double && lse.numel() == n,
                  "vecbank: lse must be float64, one for each query, got ", shape_of(lse));
  const Tensor slopes = dense(along), sums = dense(lse);
  const auto sized = [&](bool wanted, const Tensor& like) {
    return scope.empty(wanted ? sizes_of(like) : std::vector<int64_t>{0}, ScalarType::Float);
  };
  need_values = need_values && values.has_value();
  Tensor of_x = sized(need_x, x), of_bank = sized(need_bank, bank), of_beta = sized(need_beta, beta),
         of_values = sized(need_values, values ? *values : x);
  const auto out = [](Tensor& t, bool wanted, int64_t at) {
    return wanted ? static_cast<float*>(t.mutable_data_ptr()) + at : nullptr;
  };
  scope.begin(5.0 * view.work());
  for (int64_t b = 0; b < view.pair.batches; ++b) {
    const int64_t queries = view.pair.x_batch(b).count, done = b * queries;
    const std::optional<Allowed> allowed = view.sets.of_batch(b, queries);
    AttendGradientProblem p;
    p.forward = view.batch(b, allowed);
    p.forward.lse = const_cast<double*>(static_cast<const double*>(sums.const_data_ptr())) + done;
    if (rows) p.grad = {static_cast<const float*>(rows->const_data_ptr()) + done * e, DType::f32, queries, e, e, 1};
    p.along = static_cast<const float*>(slopes.const_data_ptr()) + done;
    p.grad_queries = out(of_x, need_x, done * d);
    p.grad_bank = out(of_bank, need_bank, b * m * d);
    p.grad_values = out(of_values, need_values, b * m * e);
    p.grad_beta = out(of_beta, need_beta, done);
    CpuScope::check(cpu::attend_gradients(p, scope.threads()));
  }
  return {of_x, of_bank, of_values, of_beta};
}

template <class Library>
void register_attend(Library& m) {
  m.impl("attend", TORCH_BOX(&attend));
  m.impl("attend_backward", TORCH_BOX(&attend_backward));
}

}  // namespace vecbank::ops
