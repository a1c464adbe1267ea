// torch.ops.vecbank.*, the ops of codebooks: codes of several codebooks, gathers, sums by code, and gradients. Each op
// is written once, for every Scope.
#pragma once

#include "ops_search.h"

namespace vecbank::ops {

// A new pack where none was given, or where the bank has changed since.
template <class Scope>
void complete(typename Scope::Packs& packs, const Scope& scope, const Tensor& bank, Metric metric) {
  if (packs.tensor) return;
  const Tensor made = pack<Scope>(bank, static_cast<int64_t>(metric), std::nullopt, false, 1, std::nullopt, 0);
  packs = typename Scope::Packs(scope, made, bank, metric, std::nullopt);
}

template <class Scope>
std::tuple<Tensor, Tensor, Tensor> residual_quantize(const Tensor& x, const std::vector<Tensor>& codebooks,
                                                     const std::vector<Tensor>& packs, int64_t metric) {
  STD_TORCH_CHECK(!codebooks.empty(), "vecbank: residual_quantize needs at least one codebook");
  STD_TORCH_CHECK(packs.empty() || packs.size() == codebooks.size(), "vecbank: ", packs.size(), " packs for ",
                  codebooks.size(), " codebooks: one each, or none");
  const ScalarType dtype = codebooks[0].scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "vecbank: codebooks must be float32 or float64");
  ResidualProblem p;
  p.metric = metric_of(metric);
  Scope scope(x, "x");
  std::vector<Pairing> pairs;  // this and the next own what the problem points to
  std::vector<typename Scope::Packs> packed;
  double work = 0.0;
  for (size_t s = 0; s < codebooks.size(); ++s) {
    const Tensor& codebook = codebooks[s];
    STD_TORCH_CHECK(codebook.dim() == 2 && codebook.scalar_type() == dtype,
                    "vecbank: codebooks must be (M, d) and share a dtype, got ", shape_of(codebook), " at stage ", s);
    pairs.push_back(pair_rows(scope, x, codebook));
    packed.emplace_back(scope, packs.empty() ? std::nullopt : std::optional(packs[s]), codebook, p.metric,
                        std::nullopt);
    p.stages.push_back({pairs.back().bank.rows, nullptr});
    work += pairs.back().work(p.stages.back().bank.count);
  }
  p.queries = pairs[0].x.rows;
  const bool itself = scope.packs_codebooks(p);
  for (size_t s = 0; s < codebooks.size(); ++s) {
    if (!itself) complete(packed[s], scope, codebooks[s], p.metric);
    p.stages[s].pack = packed[s].of(p.stages[s].bank, 0);
  }
  const int64_t stages = static_cast<int64_t>(codebooks.size());
  Tensor quantized = scope.empty(sizes_of(x), dtype), losses = scope.empty({stages}, dtype);
  Tensor codes = scope.empty(resized(x, stages), ScalarType::Long);
  p.codes = codes_out(codes);
  p.quantized = quantized.mutable_data_ptr();
  scope.begin(work);
  scope.residual_quantize(p, losses);
  return {quantized, codes, losses};
}

template <class Scope>
Tensor product_quantize(const Tensor& x, const Tensor& codebooks, const std::optional<Tensor>& packed) {
  Scope scope(x, "x");
  scope.same(codebooks, "books");
  const RowsView queries = rows_of(x, "x"), rows = rows_of(codebooks, "books");
  STD_TORCH_CHECK(codebooks.dim() == 3 && codebooks.size(1) > 0, "vecbank: codebooks must be (P, K, w), got ",
                  shape_of(codebooks));
  const int64_t parts = codebooks.size(0);
  STD_TORCH_CHECK(queries.rows.width == parts * rows.rows.width, "vecbank: x ", shape_of(x), " must be ",
                  parts * rows.rows.width, " wide, like books ", shape_of(codebooks), " side by side");
  check_mix(queries.rows.dtype, rows.rows.dtype);
  typename Scope::Packs packs(scope, packed, codebooks, Metric::sqeuclidean, std::nullopt);
  ProductProblem p;
  p.queries = queries.rows;
  for (int64_t part = 0; part < parts; ++part) p.codebooks.push_back({batch_of(rows.rows, parts, part), nullptr});
  if (!scope.packs_codebooks(p)) complete(packs, scope, codebooks, Metric::sqeuclidean);
  for (int64_t part = 0; part < parts; ++part) {
    PackedCodebook& codebook = p.codebooks[static_cast<size_t>(part)];
    codebook.pack = packs.of(codebook.bank, part);
  }
  Tensor codes = scope.empty(resized(x, parts), ScalarType::Long);
  p.codes = codes_out(codes);
  scope.begin(work_of(queries.rows.count, rows.rows.count, rows.rows.width));
  scope.product_quantize(p);
  return codes;
}

template <class Scope>
Tensor quantize_backward(const Tensor& grad, const Tensor& x, const Tensor& quantized, const Tensor& scale,
                         int64_t estimator) {
  Scope scope(x, "x");
  scope.same(grad, "grad");
  scope.same(quantized, "quantized");
  scope.same(scale, "scale");
  PassBackProblem p;
  p.dtype = dtype_of(x, "x");
  for (const Tensor* t : {&grad, &quantized})
    STD_TORCH_CHECK(t->scalar_type() == x.scalar_type() && sizes_of(*t) == sizes_of(x),
                    "vecbank: grad, x and quantized must share device, dtype and shape, got ", shape_of(*t), " for x ",
                    shape_of(x));
  STD_TORCH_CHECK(x.dim() >= 1, "vecbank: x must have at least one dimension, got a scalar");
  STD_TORCH_CHECK(scale.numel() == 1, "vecbank: scale must be a single number, got ", shape_of(scale));
  STD_TORCH_CHECK(estimator >= 0 && estimator <= 2, "vecbank: estimator must be 0, 1 or 2, got ", estimator);
  const Tensor g = dense(grad), source = dense(x), target = dense(quantized);
  Tensor out = scope.empty(sizes_of(x), x.scalar_type());
  p.grad = g.const_data_ptr();
  p.x = source.const_data_ptr();
  p.quantized = target.const_data_ptr();
  p.width = x.size(x.dim() - 1);
  p.rows = p.width == 0 ? 0 : x.numel() / p.width;
  p.estimator = static_cast<Estimator>(estimator);
  p.out = out.mutable_data_ptr();
  scope.begin(4.0 * static_cast<double>(x.numel()));
  scope.pass_back(p, scale);
  return out;
}

template <class Scope>
Tensor lookup(const Tensor& codes_given, const Tensor& bank, const std::optional<Tensor>& weights_given,
              int64_t reduce) {
  Scope scope(bank, "bank");
  const Tensor codes = checked_codes(scope, codes_given);
  const RowsView view = checked_bank(scope, bank);
  STD_TORCH_CHECK(reduce >= 0 && reduce <= 2, "vecbank: reduce must be 0 (none), 1 (sum) or 2 (mean), got ", reduce);
  STD_TORCH_CHECK(reduce == 0 || codes.dim() >= 1, "vecbank: a reduction needs codes (..., k), got a scalar");
  const std::optional<Tensor> weights = checked_weights(scope, weights_given, codes, bank.scalar_type());
  LookupProblem p;
  p.reduce = static_cast<Reduce>(reduce);
  std::vector<int64_t> shape = sizes_of(codes);
  if (p.reduce != Reduce::none) {
    p.k = shape.back();
    shape.pop_back();
  }
  p.count = 1;
  for (const int64_t s : shape) p.count *= s;
  shape.push_back(view.rows.width);
  Tensor out = scope.empty(shape, bank.scalar_type());
  p.codes = codes_in(codes);
  p.bank = view.rows;
  p.weights = data_of(weights);
  p.out = out.mutable_data_ptr();
  scope.begin(work_of(p.count, p.k, p.bank.width));
  scope.lookup(p);
  return out;
}

template <class Scope>
Tensor segment_sum(const Tensor& src, const Tensor& codes_given, int64_t num_codes,
                   const std::optional<Tensor>& weights_given) {
  Scope scope(src, "src");
  const Tensor codes = checked_codes(scope, codes_given);
  SegmentSumProblem p;
  const RowsView view = checked_source(src, codes, &p.k);
  STD_TORCH_CHECK(num_codes >= 0, "vecbank: num_codes must not be negative, got ", num_codes);
  const std::optional<Tensor> weights = checked_weights(scope, weights_given, codes, src.scalar_type());
  Tensor out = scope.empty({num_codes, view.rows.width}, src.scalar_type());
  p.codes = codes_in(codes);
  p.count = codes.numel();
  p.segments = num_codes;
  p.source = view.rows;
  p.weights = data_of(weights);
  p.weights_dtype = p.out_dtype = view.rows.dtype;
  p.out = out.mutable_data_ptr();
  scope.begin(work_of(p.count + p.segments, 1, p.source.width));
  scope.segment_sum(p);
  return out;
}

template <class Scope>
Tensor lookup_dot(const Tensor& x, const Tensor& codes_given, const Tensor& bank) {
  Scope scope(x, "x");
  const Tensor codes = checked_codes(scope, codes_given);
  LookupDotProblem p;
  const RowsView view = checked_source(x, codes, &p.k);
  const RowsView rows = checked_bank(scope, bank);
  STD_TORCH_CHECK(view.rows.width == rows.rows.width, "vecbank: x ", shape_of(x), " and bank ", shape_of(bank),
                  " differ in their last dimension");
  Tensor out = scope.empty(sizes_of(codes), bank.scalar_type());
  p.codes = codes_in(codes);
  p.x = view.rows;
  p.bank = rows.rows;
  p.out = out.mutable_data_ptr();
  scope.begin(work_of(codes.numel(), 1, p.x.width));
  scope.lookup_dot(p);
  return out;
}

template <class Scope, class Library>
void register_codebook_ops(Library& m) {
  m.impl("residual_quantize", TORCH_BOX(&residual_quantize<Scope>));
  m.impl("product_quantize", TORCH_BOX(&product_quantize<Scope>));
  m.impl("quantize_backward", TORCH_BOX(&quantize_backward<Scope>));
  m.impl("lookup", TORCH_BOX(&lookup<Scope>));
  m.impl("lookup_dot", TORCH_BOX(&lookup_dot<Scope>));
  m.impl("segment_sum", TORCH_BOX(&segment_sum<Scope>));
}

}  // namespace vecbank::ops
