// torch.ops.vecbank.*, searches of packed bits. The CPU alone has kernels for them.
#pragma once

#include "ops_selection.h"

namespace vecbank::ops {

// x (..., planes * W) and bank (M, planes * W) of uint8, W = ceil(bits / 8).
class BitsView {
 public:
  BitsView(const CpuScope& scope, const Tensor& x, const Tensor& bank, int64_t bits, int64_t x_planes,
           int64_t bank_planes)
      : x_(in_rows(x, "x")), bank_(in_rows(bank, "bank")) {
    scope.same(bank, "bank");
    STD_TORCH_CHECK(bank.dim() == 2, "vecbank: bank must be (M, W), got ", shape_of(bank));
    STD_TORCH_CHECK(bits >= 1 && x_planes >= 1 && bank_planes >= 1, "vecbank: bits and planes must be at least 1, got ",
                    bits, ", ", x_planes, " and ", bank_planes);
    STD_TORCH_CHECK(largest_bit_distance(bits, x_planes, bank_planes) >= 0, "vecbank: bits = ", bits, " of ", x_planes,
                    " and ", bank_planes, " planes have distances that int32 does not hold");
    problem.bits = bits;
    problem.queries = rows(x_, x_planes, "x");
    problem.bank = rows(bank_, bank_planes, "bank");
  }

  double work() const {
    const BitRows& bank = problem.bank;
    return work_of(problem.queries.count, bank.count, problem.bytes() * bank.planes / 8);
  }
  // What SetsView asks of a search.
  Pairing pairing() const {
    Pairing pair;
    pair.x.rows.count = problem.queries.count;
    pair.m = problem.bank.count;
    return pair;
  }

  BitsProblem problem;

 private:
  static Tensor in_rows(const Tensor& t, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Byte, "vecbank: ", name, " must be packed bits, uint8");
    STD_TORCH_CHECK(t.dim() >= 1, "vecbank: ", name, " must have at least one dimension, got a scalar");
    return t.dim() == 2 ? dense_columns(t) : dense(t);
  }
  BitRows rows(const Tensor& t, int64_t planes, const char* name) const {
    const int64_t last = t.dim() - 1, width = t.size(last);
    STD_TORCH_CHECK(planes <= kMostBitPlanes && width == planes * problem.bytes(), "vecbank: ", name, " ", shape_of(t),
                    " must have ", problem.bytes(), " bytes for the ", problem.bits, " bits of each of ", planes,
                    " planes");
    int64_t count = 1;
    for (int64_t i = 0; i < last; ++i) count *= t.size(i);
    const int64_t stride = t.dim() == 2 && count > 1 ? t.stride(0) : width;
    return {static_cast<const uint8_t*>(t.const_data_ptr()), count, stride, static_cast<int>(planes)};
  }

  Tensor x_, bank_;
};

inline std::tuple<Tensor, Tensor> hamming_topk(const Tensor& x, const Tensor& bank, int64_t bits, int64_t x_planes,
                                               int64_t bank_planes, int64_t k, const std::vector<Tensor>& sets,
                                               const std::vector<int64_t>& program) {
  CpuScope scope(x, "x");
  BitsView view(scope, x, bank, bits, x_planes, bank_planes);
  STD_TORCH_CHECK(k >= 1, "vecbank: k must be at least 1, got ", k);
  BitsProblem& p = view.problem;
  const Pairing pair = view.pairing();
  const SetsView chosen(scope, sets, program, x, pair);
  const std::optional<Allowed> allowed = chosen.of_batch(0, p.queries.count);
  Tensor values = scope.empty(resized(x, k), ScalarType::Int), indices = scope.empty(resized(x, k), ScalarType::Long);
  p.k = k;
  p.allowed = allowed ? &*allowed : nullptr;
  p.values = static_cast<int32_t*>(values.mutable_data_ptr());
  p.indices = codes_out(indices);
  scope.begin(view.work());
  CpuScope::check(cpu::bits_topk(p, scope.threads()));
  return {values, indices};
}

inline Tensor hamming_scores(const Tensor& x, const Tensor& bank, int64_t bits, int64_t x_planes, int64_t bank_planes) {
  CpuScope scope(x, "x");
  BitsView view(scope, x, bank, bits, x_planes, bank_planes);
  Tensor out = scope.empty(resized(x, view.problem.bank.count), ScalarType::Int);
  view.problem.values = static_cast<int32_t*>(out.mutable_data_ptr());
  scope.begin(view.work());
  CpuScope::check(cpu::bits_scores(view.problem, scope.threads()));
  return out;
}

// Calls f(hits).
template <class F>
void bits_within(CpuScope& scope, const Tensor& x, const Tensor& bank, int64_t bits, int64_t x_planes,
                 int64_t bank_planes, const Tensor& radii, const std::vector<Tensor>& sets,
                 const std::vector<int64_t>& program, bool count_only, F&& f) {
  BitsView view(scope, x, bank, bits, x_planes, bank_planes);
  BitsProblem& p = view.problem;
  scope.same(radii, "radii");
  STD_TORCH_CHECK(radii.dim() == 1 && radii.size(0) == p.queries.count && radii.scalar_type() == ScalarType::Long &&
                      radii.is_contiguous(),
                  "vecbank: radii must be contiguous int64 (", p.queries.count, "), got ", shape_of(radii));
  const Pairing pair = view.pairing();
  const SetsView chosen(scope, sets, program, x, pair);
  const std::optional<Allowed> allowed = chosen.of_batch(0, p.queries.count);
  p.allowed = allowed ? &*allowed : nullptr;
  scope.begin(view.work());
  const cpu::Parallel threads = scope.threads();
  cpu::Hits hits(threads.workers, p.queries.count);
  CpuScope::check(cpu::bits_within(p, codes_in(radii), count_only, hits, threads));
  f(hits);
}

inline std::tuple<Tensor, Tensor, Tensor> hamming_radius(const Tensor& x, const Tensor& bank, int64_t bits,
                                                         int64_t x_planes, int64_t bank_planes, const Tensor& radii,
                                                         const std::vector<Tensor>& sets,
                                                         const std::vector<int64_t>& program) {
  CpuScope scope(x, "x");
  Tensor offsets, indices, values;
  bits_within(scope, x, bank, bits, x_planes, bank_planes, radii, sets, program, false, [&](cpu::Hits& hits) {
    offsets = scope.empty({hits.queries() + 1}, ScalarType::Long);
    int64_t* offset = codes_out(offsets);
    *offset = 0;
    for (int64_t q = 0; q < hits.queries(); ++q) offset[q + 1] = offset[q] + hits.of(q);
    const int64_t total = offset[hits.queries()];
    indices = scope.empty({total}, ScalarType::Long);
    values = scope.empty({total}, ScalarType::Int);
    CpuScope::check(hits.write_whole(offset, codes_out(indices), static_cast<int32_t*>(values.mutable_data_ptr()),
                                     scope.threads()));
  });
  return {offsets, indices, values};
}

inline Tensor hamming_radius_count(const Tensor& x, const Tensor& bank, int64_t bits, int64_t x_planes,
                                   int64_t bank_planes, const Tensor& radii, const std::vector<Tensor>& sets,
                                   const std::vector<int64_t>& program) {
  CpuScope scope(x, "x");
  Tensor counts;
  bits_within(scope, x, bank, bits, x_planes, bank_planes, radii, sets, program, true, [&](cpu::Hits& hits) {
    counts = scope.empty({hits.queries()}, ScalarType::Long);
    for (int64_t q = 0; q < hits.queries(); ++q) codes_out(counts)[q] = hits.of(q);
  });
  return counts;
}

template <class Library>
void register_bits(Library& m) {
  m.impl("hamming_topk", TORCH_BOX(&hamming_topk));
  m.impl("hamming_scores", TORCH_BOX(&hamming_scores));
  m.impl("hamming_radius", TORCH_BOX(&hamming_radius));
  m.impl("hamming_radius_count", TORCH_BOX(&hamming_radius_count));
}

}  // namespace vecbank::ops
