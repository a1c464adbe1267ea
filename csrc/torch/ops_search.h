// torch.ops.vecbank.*, the searches: a bank's pack, scores, the best rows, and their gradients. Each op is written
// once, for every Scope.
#pragma once

#include "checked.h"

namespace vecbank::ops {

// The head that a pack is to have; none without a rotation.
template <class Scope>
HeadChoice head_of(const Scope& scope, const std::optional<Tensor>& rotation, int64_t head, int64_t width,
                   PanelKind panels) {
  STD_TORCH_CHECK(rotation.has_value() == (head != 0),
                  "vecbank: a head goes with a rotation, and a rotation with a head");
  if (!rotation) return {};
  scope.same(*rotation, "rotation");
  STD_TORCH_CHECK(panels == PanelKind::int8, "vecbank: a head needs a pack of codes on the CPU: its use must be int8");
  STD_TORCH_CHECK(head >= 1 && head < width, "vecbank: head must lie between 1 and ", width - 1, ", got ", head);
  STD_TORCH_CHECK(rotation->scalar_type() == ScalarType::Float && rotation->dim() == 2 && rotation->size(0) == width &&
                      rotation->size(1) == width && rotation->is_contiguous(),
                  "vecbank: rotation must be contiguous float32 (", width, ", ", width, "), got ", shape_of(*rotation));
  return {head, static_cast<const float*>(rotation->const_data_ptr())};
}

template <class Scope>
Tensor pack(const Tensor& bank, int64_t metric_code, const std::optional<Tensor>& bias, bool stamp, int64_t use_code,
            const std::optional<Tensor>& rotation, int64_t head_width) {
  const Metric metric = metric_of(metric_code);
  Scope scope(bank, "bank");
  const BankShape shape = bank_shape(bank);
  const RowsView view = rows_of(bank, "bank");
  const std::optional<Tensor> wide = widened_bias(scope, bias, bank, metric);
  const PackUse use = use_of(use_code);
  const PanelKind panels = Scope::panels_for(shape, metric, use);
  const HeadChoice head = head_of(scope, rotation, head_width, shape.width, panels);
  const int64_t bytes = Scope::pack_bytes(shape, metric, bias.has_value(), panels, head.width);
  Tensor out =
      bank.dim() == 3 ? scope.empty({shape.batches, bytes}, ScalarType::Byte) : scope.empty({bytes}, ScalarType::Byte);
  scope.begin(10.0 * static_cast<double>(bank.numel()));
  for (int64_t b = 0; b < shape.batches; ++b)
    scope.pack_bank(batch_of(view.rows, shape.batches, b), metric,
                    static_cast<char*>(out.mutable_data_ptr()) + b * bytes, biases_in(wide), panels, use.screen, head);
  if (stamp) scope.stamp(out, bank, bias);
  return out;
}

// Scores (..., columns) against every row of the bank, or exact scores against the rows that p lists.
template <class Scope>
Tensor scores_of(Scope& scope, ProjectProblem& p, const Tensor& x, const Pairing& pair, int64_t columns,
                 std::optional<ScalarType> dtype, const typename Scope::Packs* packs) {
  Tensor out = scope.empty(resized(x, columns), dtype.value_or(x.scalar_type()));
  p.out_dtype = dtype_of(out, "out_dtype");
  if (columns == 0) return out;  // an empty list of indices has a null address, which would mean no list
  const double work = pair.work(columns);
  scope.begin(work);
  scope.project_batches(pair.batches, work, [&](int64_t b) {
    ProjectProblem one = p;
    one.queries = pair.x_batch(b);
    one.bank = pair.bank_batch(b);
    const bool screened = packs != nullptr && one.bank.dtype != DType::f64;  // a float64 product uses no float32 panels
    one.pack = screened ? packs->of(one.bank, b) : nullptr;
    one.out = at(out, b * one.queries.count * columns, p.out_dtype);
    return one;
  });
  return out;
}

template <class Scope>
Tensor project(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed, int64_t metric,
               std::optional<ScalarType> out_dtype) {
  ProjectProblem p;
  p.metric = metric_of(metric);
  Scope scope(x, "x");
  const Pairing pair = pair_rows(scope, x, bank);
  const typename Scope::Packs packs(scope, packed, bank, p.metric, std::nullopt);
  return scores_of(scope, p, x, pair, pair.m, out_dtype, &packs);
}

template <class Scope>
Tensor exact_scores(const Tensor& x, const Tensor& bank, int64_t metric, std::optional<ScalarType> out_dtype,
                    const std::optional<Tensor>& indices) {
  ProjectProblem p;
  p.metric = metric_of(metric);
  p.exact = true;
  Scope scope(x, "x");
  const Pairing pair = pair_rows(scope, x, bank);
  std::optional<Tensor> listed;
  if (indices) {
    listed = checked_codes(scope, *indices);
    STD_TORCH_CHECK(bank.dim() == 2 && indices->dim() == x.dim() && resized(*indices, pair.x.rows.width) == sizes_of(x),
                    "vecbank: indices go with a bank (M, d), and must be (..., k) for x (..., d), got ",
                    shape_of(*indices));
    p.indices = codes_in(*listed);
    p.k = listed->size(listed->dim() - 1);
  }
  return scores_of<Scope>(scope, p, x, pair, listed ? p.k : pair.m, out_dtype, nullptr);
}

// Searches of every batch, whose results are p's values (or the gathered rows, if `gather`) and indices, of this shape.
// `complete(one, b)`: adds to the problem of batch b what p does not have.
template <class Scope, class Complete>
std::tuple<Tensor, Tensor> run_searches(Scope& scope, const SearchProblem& p, const Pairing& pair, const Tensor& x,
                                        const Tensor& bank, const typename Scope::Packs& packs,
                                        const std::vector<int64_t>& shape, bool gather, Complete&& complete) {
  Tensor indices = scope.empty(shape, ScalarType::Long);
  Tensor best = gather ? scope.empty(sizes_of(x), bank.scalar_type()) : scope.empty(shape, scalar_type(p.values_dtype));
  const double work = pair.work(pair.m);
  scope.begin(work);
  scope.search_batches(pair.batches, work, [&](int64_t b) {
    SearchProblem one = p;
    one.queries = pair.x_batch(b);
    one.bank = pair.bank_batch(b);
    one.pack = packs.of(one.bank, b);
    const int64_t first = b * one.queries.count;
    one.indices = codes_out(indices) + first * p.k;
    if (gather)
      one.gathered = at(best, first * one.bank.width, one.bank.dtype);
    else
      one.values = at(best, first * p.k, p.values_dtype);
    complete(one, b);
    return one;
  });
  return {best, indices};
}

// The k best rows of each query: their values and indices, (..., k). Without k the best row alone: its value, or a copy
// of it if `gather`, and its index, (...).
template <class Scope>
std::tuple<Tensor, Tensor> best_rows(Scope& scope, const Pairing& pair, const Tensor& x, const Tensor& bank,
                                     const std::optional<Tensor>& packed, Metric metric, std::optional<int64_t> k,
                                     bool gather, const std::optional<Tensor>& mask,
                                     const std::optional<Tensor>& bias) {
  const typename Scope::Packs packs(scope, packed, bank, metric, bias);
  const std::optional<Tensor> wide = widened_bias(scope, bias, bank, metric);
  const MaskView masks(scope, mask, x, pair.m);
  SearchProblem p;
  p.metric = metric;
  p.k = k.value_or(1);
  p.bias = biases_in(wide);
  p.values_dtype = pair.x.rows.dtype == DType::f64 ? DType::f64 : DType::f32;
  return run_searches(scope, p, pair, x, bank, packs, k ? resized(x, *k) : pair.leading, gather,
                      [&](SearchProblem& one, int64_t b) { one.mask = masks.mask.from(b * one.queries.count); });
}

template <class Scope>
std::tuple<Tensor, Tensor> search(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed,
                                  int64_t metric_code, std::optional<int64_t> k, bool gather,
                                  const std::optional<Tensor>& mask = std::nullopt,
                                  const std::optional<Tensor>& bias = std::nullopt) {
  const Metric metric = metric_of(metric_code);
  Scope scope(x, "x");
  return best_rows(scope, pair_rows(scope, x, bank), x, bank, packed, metric, k, gather, mask, bias);
}

template <class Scope>
std::tuple<Tensor, Tensor> topk(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed, int64_t k,
                                int64_t metric, const std::optional<Tensor>& mask, bool /*exact*/,
                                const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(bank.dim() >= 2 && k >= 1 && k <= bank.size(bank.dim() - 2),
                  "vecbank: k must lie between 1 and M, got k = ", k, " with bank ", shape_of(bank));
  return search<Scope>(x, bank, packed, metric, k, false, mask, bias);
}

template <class Scope>
std::tuple<Tensor, Tensor> nearest(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed,
                                   int64_t metric, bool /*exact*/) {
  return search<Scope>(x, bank, packed, metric, std::nullopt, false);
}

template <class Scope>
std::tuple<Tensor, Tensor> quantize(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed,
                                    int64_t metric) {
  return search<Scope>(x, bank, packed, metric, std::nullopt, true);
}

template <class Scope>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> quantize_train(const Tensor& x, const Tensor& bank,
                                                                  const std::optional<Tensor>& packed,
                                                                  int64_t metric_code,
                                                                  const std::optional<Tensor>& mask) {
  const Metric metric = metric_of(metric_code);
  Scope scope(x, "x");
  const Pairing pair = pair_rows(scope, x, bank);
  std::optional<Tensor> keep;
  if (mask) {
    scope.same(*mask, "mask");
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool && sizes_of(*mask) == pair.leading,
                    "vecbank: mask must be bool with x's shape less the last dimension, got ", shape_of(*mask));
    keep = dense(*mask);
  }
  auto [quantized, codes] =
      best_rows(scope, pair, x, bank, packed, metric, std::nullopt, true, std::nullopt, std::nullopt);
  const DType wide = pair.bank.rows.dtype == DType::f64 ? DType::f64 : DType::f32;
  std::vector<int64_t> shape = sizes_of(bank);
  Tensor sums = scope.empty(shape, scalar_type(wide)), loss = scope.empty({}, scalar_type(wide));
  shape.pop_back();
  Tensor counts = scope.empty(shape, ScalarType::Float);
  QuantizeLossProblem l;
  l.x = pair.x.rows;
  l.codes = codes_out(codes);
  l.quantized = rows_of(quantized, "quantized").rows;
  l.keep = static_cast<const bool*>(data_of(keep));
  scope.begin(2.0 * static_cast<double>(x.numel()));
  scope.quantize_loss(l, loss);
  for (int64_t b = 0; b < pair.batches; ++b) {
    SegmentSumProblem s;
    s.source = pair.x_batch(b);
    s.count = s.source.count;
    s.segments = pair.m;
    s.codes = l.codes + b * s.count;
    s.out_dtype = wide;
    s.out = at(sums, b * pair.m * l.x.width, wide);
    s.counts = static_cast<float*>(counts.mutable_data_ptr()) + b * pair.m;
    scope.segment_sum(s);
  }
  return {quantized, codes, loss, counts, sums};
}

template <class Scope>
std::tuple<Tensor, Tensor> topk_backward(const Tensor& grad, const Tensor& x, const Tensor& bank,
                                         const Tensor& indices_in, int64_t metric) {
  Scope scope(x, "x");
  scope.same(grad, "grad");
  const Tensor indices = checked_codes(scope, indices_in);
  const Pairing pair = pair_rows(scope, x, bank);
  STD_TORCH_CHECK(sizes_of(grad) == sizes_of(indices), "vecbank: grad ", shape_of(grad), " must match indices ",
                  shape_of(indices));
  PairProblem p;
  p.metric = metric_of(metric);
  const int64_t rows = pair.x.rows.count;
  p.k = rows == 0 ? 1 : indices.numel() / rows;
  STD_TORCH_CHECK(p.k * rows == indices.numel(), "vecbank: indices ", shape_of(indices), " do not fit x ", shape_of(x));
  const Tensor grads = dense(grad);
  p.grad_dtype = dtype_of(grads, "grad");
  Tensor grad_x = scope.empty(sizes_of(x), x.scalar_type());
  Tensor grad_bank = scope.empty(sizes_of(bank), bank.scalar_type());
  scope.begin(pair.work(p.k) + static_cast<double>(bank.numel()));
  for (int64_t b = 0; b < pair.batches; ++b) {
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    const int64_t first = b * p.queries.count;
    p.indices = codes_in(indices) + first * p.k;
    p.grad = const_at(grads, first * p.k, p.grad_dtype);
    p.grad_queries = at(grad_x, first * p.queries.width, p.queries.dtype);
    p.grad_bank = at(grad_bank, b * p.bank.count * p.bank.width, p.bank.dtype);
    scope.pair_gradients(p);
  }
  return {grad_x, grad_bank};
}

// The gradients of project in one kernel: for problems, and batches of them, that are too small for products of a
// library. Empty where not needed.
template <class Scope>
std::tuple<Tensor, Tensor> project_backward_small(const Tensor& grad, const Tensor& x, const Tensor& bank,
                                                  int64_t metric, bool need_x, bool need_bank) {
  Scope scope(x, "x");
  scope.same(grad, "grad");
  const Tensor given_x = dense_columns(x), given_bank = dense_columns(bank);
  const Pairing pair = pair_rows(scope, given_x, given_bank);
  STD_TORCH_CHECK(pair.bank.rows.dtype != DType::f64, "vecbank: bank must not be float64 here");
  STD_TORCH_CHECK(!record(metric_of(metric)).ball,
                  "vecbank: project_backward_small has no gradient of points in a ball");
  STD_TORCH_CHECK(sizes_of(grad) == resized(x, pair.m), "vecbank: grad ", shape_of(grad), " does not fit x ",
                  shape_of(x), " and bank ", shape_of(bank));
  const RowsView grads = rows_of(grad, "grad");
  ProjectGradientProblem p;
  p.metric = metric_of(metric);
  Tensor grad_x = scope.empty(need_x ? sizes_of(x) : std::vector<int64_t>{0}, x.scalar_type());
  Tensor grad_bank = scope.empty(need_bank ? sizes_of(bank) : std::vector<int64_t>{0}, bank.scalar_type());
  const double work = 3.0 * pair.work(pair.m);
  scope.begin(work);
  scope.gradient_batches(pair.batches, work, [&](int64_t b) {
    ProjectGradientProblem one = p;
    one.queries = pair.x_batch(b);
    one.bank = pair.bank_batch(b);
    one.grad = batch_of(grads.rows, pair.batches, b);
    if (need_x) one.grad_queries = at(grad_x, b * one.queries.count * one.queries.width, one.queries.dtype);
    if (need_bank) one.grad_bank = at(grad_bank, b * one.bank.count * one.bank.width, one.bank.dtype);
    return one;
  });
  return {grad_x, grad_bank};
}

// project_backward is plain ATen and lives in Python (_backward.py): it is three matrix products, and needs no kernel
// here.
template <class Scope, class Library>
void register_searches(Library& m) {
  m.impl("pack", TORCH_BOX(&pack<Scope>));
  m.impl("project", TORCH_BOX(&project<Scope>));
  m.impl("exact_scores", TORCH_BOX(&exact_scores<Scope>));
  m.impl("topk", TORCH_BOX(&topk<Scope>));
  m.impl("topk_backward", TORCH_BOX(&topk_backward<Scope>));
  m.impl("nearest", TORCH_BOX(&nearest<Scope>));
  m.impl("quantize", TORCH_BOX(&quantize<Scope>));
  m.impl("quantize_train", TORCH_BOX(&quantize_train<Scope>));
}

}  // namespace vecbank::ops
