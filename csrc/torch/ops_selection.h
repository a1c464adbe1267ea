// torch.ops.vecbank.*, searches among candidate sets: the k best, all within a radius, and the merge of parts. The CPU
// alone has kernels for them.
#pragma once

#include "../cpu/search/radius.h"
#include "ops_search.h"

namespace vecbank::ops {

// Candidate sets as python/vecbank/_ops/sets.py lowers them: `program` holds pairs of a code and its operand.
class SetsView {
 public:
  SetsView(const CpuScope& scope, const std::vector<Tensor>& sets, const std::vector<int64_t>& program, const Tensor& x,
           const Pairing& pair) {
    if (program.empty()) return;
    STD_TORCH_CHECK(program.size() % 2 == 0 && program.size() <= 4096,
                    "vecbank: program must hold pairs of a code and an operand");
    const int64_t queries = pair.x.rows.count;
    for (size_t i = 0; i < program.size(); i += 2) {
      const int64_t code = program[i], operand = program[i + 1];
      STD_TORCH_CHECK(code >= kNot && code <= static_cast<int64_t>(SetKind::rows), "vecbank: program has no code ",
                      code);
      if (code < 0) {
        steps_.push_back(static_cast<int32_t>(code));
        continue;
      }
      CandidateSet set;
      set.kind = static_cast<SetKind>(code);
      const auto tensor = [&](int64_t which) -> const Tensor& {
        const int64_t at = operand + which;
        STD_TORCH_CHECK(at >= 0 && at < static_cast<int64_t>(sets.size()), "vecbank: program names set ", at, " of ",
                        sets.size());
        scope.same(sets[static_cast<size_t>(at)], "a set");
        return sets[static_cast<size_t>(at)];
      };
      switch (set.kind) {
        case SetKind::mask: {
          masks_.emplace_back(scope, tensor(0), x, pair.m);
          set.mask = masks_.back().mask;
          break;
        }
        case SetKind::not_self: set.first = operand; break;
        case SetKind::same: {
          per_query(tensor(0), queries, ScalarType::Long, &set);
          STD_TORCH_CHECK(set.width == 1, "vecbank: labels must be (n, 1), got ", shape_of(tensor(0)));
          of_bank(tensor(1), pair);
          of_bank(tensor(2), pair);
          set.labels = codes_in(tensor(1));
          set.by_label = codes_in(tensor(2));
          set.batch_stride = tensor(1).size(0) == 1 ? 0 : pair.m;
          const int64_t* order = set.by_label;
          for (int64_t j = 0; j < tensor(2).numel(); ++j)
            STD_TORCH_CHECK(order[j] >= 0 && order[j] < pair.m, "vecbank: rows in order of label must lie below ",
                            pair.m);
          STD_TORCH_CHECK(tensor(1).size(0) == tensor(2).size(0),
                          "vecbank: labels and their order must have one shape");
          break;
        }
        default: {
          per_query(tensor(0), queries, set.kind == SetKind::bits ? ScalarType::Byte : ScalarType::Long, &set);
          STD_TORCH_CHECK(set.kind != SetKind::ranges || set.width == 2, "vecbank: ranges must be (n, 2)");
          STD_TORCH_CHECK(set.kind != SetKind::bits || set.width * 8 >= pair.m,
                          "vecbank: bits must be (n, W) with W bytes for ", pair.m, " rows");
        }
      }
      steps_.push_back(static_cast<int32_t>(sets_.size()));
      sets_.push_back(set);
    }
    const auto count = static_cast<int32_t>(sets_.size()), steps = static_cast<int32_t>(steps_.size());
    STD_TORCH_CHECK(is_sound(steps_.data(), steps, count), "vecbank: program must join at most ", Allowed::kMostSets,
                    " sets into one");
    allowed_ = {sets_.data(), count, steps_.data(), steps, pair.m};
  }

  std::optional<Allowed> of_batch(int64_t b, int64_t queries) const {
    if (steps_.empty()) return std::nullopt;
    return allowed_.of_batch(b, queries);
  }

 private:
  static void per_query(const Tensor& t, int64_t queries, ScalarType dtype, CandidateSet* set) {
    STD_TORCH_CHECK(t.dim() == 2 && (t.size(0) == 1 || t.size(0) == queries) && t.scalar_type() == dtype &&
                        (t.size(1) <= 1 || t.stride(1) == 1 || t.numel() == 0),
                    "vecbank: a set must be (1 or ", queries, ", W) of its own dtype, with rows in one piece, got ",
                    shape_of(t));
    set->data = t.const_data_ptr();
    set->width = t.size(1);
    set->stride = t.size(0) == 1 ? 0 : t.stride(0);
  }
  static void of_bank(const Tensor& t, const Pairing& pair) {
    STD_TORCH_CHECK(t.dim() == 2 && (t.size(0) == 1 || t.size(0) == pair.batches) && t.size(1) == pair.m &&
                        t.scalar_type() == ScalarType::Long && t.is_contiguous(),
                    "vecbank: labels of the bank must be contiguous int64 (1 or ", pair.batches, ", ", pair.m,
                    "), got ", shape_of(t));
  }

  std::vector<MaskView> masks_;  // keep their tensors
  std::vector<CandidateSet> sets_;
  std::vector<int32_t> steps_;
  Allowed allowed_;
};

inline Metric ordered(int64_t code, bool worst) {
  const Metric metric = metric_of(code);
  STD_TORCH_CHECK(!worst || record(metric).smaller_is_better,
                  "vecbank: worst goes with distances: of a similarity, it is the best of -x");
  return worst ? farthest(metric) : metric;
}

inline std::tuple<Tensor, Tensor> topk_among(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed,
                                             int64_t k, int64_t metric_code, const std::vector<Tensor>& sets,
                                             const std::vector<int64_t>& program, const std::optional<Tensor>& bias,
                                             bool keys, bool worst) {
  STD_TORCH_CHECK(bank.dim() >= 2 && k >= 1 && k <= bank.size(bank.dim() - 2),
                  "vecbank: k must lie between 1 and M, got k = ", k, " with bank ", shape_of(bank));
  const Metric metric = ordered(metric_code, worst);
  STD_TORCH_CHECK(!worst || !packed, "vecbank: worst uses no pack");
  CpuScope scope(x, "x");
  const Pairing pair = pair_rows(scope, x, bank);
  const CpuPacks packs(scope, packed, bank, metric, bias);
  const std::optional<Tensor> wide = widened_bias(scope, bias, bank, metric);
  const SetsView view(scope, sets, program, x, pair);
  SearchProblem p;
  p.metric = metric;
  p.k = k;
  p.bias = biases_in(wide);
  p.keys = keys;
  p.values_dtype = keys || pair.x.rows.dtype == DType::f64 ? DType::f64 : DType::f32;
  std::vector<std::optional<Allowed>> allowed;
  allowed.reserve(static_cast<size_t>(pair.batches));  // problems point into it
  return run_searches(scope, p, pair, x, bank, packs, resized(x, k), false, [&](SearchProblem& one, int64_t b) {
    allowed.push_back(view.of_batch(b, one.queries.count));
    one.allowed = allowed.back() ? &*allowed.back() : nullptr;
  });
}

// Calls f(hits) for each batch.
template <class F>
void within(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed, const Tensor& radii,
            int64_t metric_code, const std::vector<Tensor>& sets, const std::vector<int64_t>& program,
            const std::optional<Tensor>& bias, bool count_only, F&& f) {
  const Metric metric = metric_of(metric_code);
  CpuScope scope(x, "x");
  const Pairing pair = pair_rows(scope, x, bank);
  scope.same(radii, "radii");
  STD_TORCH_CHECK(radii.dim() == 1 && radii.size(0) == pair.x.rows.count && radii.scalar_type() == ScalarType::Double &&
                      radii.is_contiguous(),
                  "vecbank: radii must be contiguous float64 (", pair.x.rows.count, "), got ", shape_of(radii));
  const CpuPacks packs(scope, packed, bank, metric, bias);
  const std::optional<Tensor> wide = widened_bias(scope, bias, bank, metric);
  const SetsView view(scope, sets, program, x, pair);
  scope.begin(pair.work(pair.m));
  for (int64_t b = 0; b < pair.batches; ++b) {
    SearchProblem p;
    p.metric = metric;
    p.bias = biases_in(wide);
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    p.pack = packs.of(p.bank, b);
    const std::optional<Allowed> allowed = view.of_batch(b, p.queries.count);
    p.allowed = allowed ? &*allowed : nullptr;
    const cpu::Parallel threads = scope.threads();
    auto hits = std::make_unique<cpu::Hits>(threads.workers, p.queries.count);
    const auto* own = static_cast<const double*>(radii.const_data_ptr()) + b * p.queries.count;
    CpuScope::check(cpu::find_within(p, own, count_only, *hits, threads));
    f(std::move(hits));
  }
}

inline std::tuple<Tensor, Tensor, Tensor> radius(const Tensor& x, const Tensor& bank,
                                                 const std::optional<Tensor>& packed, const Tensor& radii,
                                                 int64_t metric, const std::vector<Tensor>& sets,
                                                 const std::vector<int64_t>& program,
                                                 const std::optional<Tensor>& bias) {
  std::vector<std::unique_ptr<cpu::Hits>> found;
  CpuScope scope(x, "x");
  within(x, bank, packed, radii, metric, sets, program, bias, false,
         [&](std::unique_ptr<cpu::Hits> hits) { found.push_back(std::move(hits)); });
  Tensor offsets = scope.empty({radii.size(0) + 1}, ScalarType::Long);
  int64_t* offset = codes_out(offsets);
  *offset = 0;
  for (const auto& hits : found)
    for (int64_t q = 0; q < hits->queries(); ++q, ++offset) offset[1] = offset[0] + hits->of(q);
  if (found.empty()) std::fill_n(codes_out(offsets), radii.size(0) + 1, 0);
  const int64_t total = codes_in(offsets)[radii.size(0)];
  const DType dtype = dtype_of(x, "x") == DType::f64 ? DType::f64 : DType::f32;
  Tensor indices = scope.empty({total}, ScalarType::Long), values = scope.empty({total}, scalar_type(dtype));
  const int64_t* first = codes_in(offsets);
  Tensor own = scope.empty({radii.size(0) + 1}, ScalarType::Long);
  for (const auto& hits : found) {
    for (int64_t q = 0; q <= hits->queries(); ++q) codes_out(own)[q] = first[q] - first[0];
    CpuScope::check(hits->write(metric_of(metric), codes_in(own), codes_out(indices) + first[0],
                                at(values, first[0], dtype), dtype, scope.threads()));
    first += hits->queries();
  }
  return {offsets, indices, values};
}

inline Tensor radius_count(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed,
                           const Tensor& radii, int64_t metric, const std::vector<Tensor>& sets,
                           const std::vector<int64_t>& program, const std::optional<Tensor>& bias) {
  CpuScope scope(x, "x");
  Tensor counts = scope.empty({radii.dim() == 1 ? radii.size(0) : 0}, ScalarType::Long);
  int64_t* out = codes_out(counts);
  within(x, bank, packed, radii, metric, sets, program, bias, true, [&](std::unique_ptr<cpu::Hits> hits) {
    for (int64_t q = 0; q < hits->queries(); ++q) *out++ = hits->of(q);
  });
  return counts;
}

inline std::tuple<Tensor, Tensor> merge_topk(const Tensor& keys, const Tensor& indices, int64_t k, int64_t metric,
                                             bool wide) {
  CpuScope scope(keys, "keys");
  scope.same(indices, "indices");
  STD_TORCH_CHECK(keys.dim() >= 1 && keys.scalar_type() == ScalarType::Double &&
                      indices.scalar_type() == ScalarType::Long && sizes_of(keys) == sizes_of(indices),
                  "vecbank: keys must be float64 and indices int64 of the same shape (..., n), got ", shape_of(keys),
                  " and ", shape_of(indices));
  const int64_t n = keys.size(keys.dim() - 1);
  STD_TORCH_CHECK(k >= 1 && k <= n, "vecbank: k must lie between 1 and ", n, ", got ", k);
  const Tensor given = dense(keys), rows = dense(indices);
  SearchProblem p;
  p.metric = metric_of(metric);
  p.k = k;
  p.queries.count = keys.numel() / n;
  p.values_dtype = wide ? DType::f64 : DType::f32;
  Tensor values = scope.empty(resized(keys, k), scalar_type(p.values_dtype)),
         best = scope.empty(resized(keys, k), ScalarType::Long);
  p.values = values.mutable_data_ptr();
  p.indices = codes_out(best);
  CpuScope::check(
      cpu::merge_keys(static_cast<const double*>(given.const_data_ptr()), codes_in(rows), n, p, scope.threads()));
  return {values, best};
}

template <class Library>
void register_selections(Library& m) {
  m.impl("topk_among", TORCH_BOX(&topk_among));
  m.impl("radius", TORCH_BOX(&radius));
  m.impl("radius_count", TORCH_BOX(&radius_count));
  m.impl("merge_topk", TORCH_BOX(&merge_topk));
}

}  // namespace vecbank::ops
