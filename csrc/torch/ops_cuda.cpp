// torch.ops.vecbank.* on CUDA: the same schemas and contracts as ops.cpp, on the current stream of x's device, with a
// workspace from torch's caching allocator. A library of its own (_C_cuda), loaded only beside a torch with CUDA.
// Nothing here waits for the device, so every op can be captured into a CUDA graph.
#include <cstdlib>
#include <cstring>

#include "../cuda/heuristics.h"
#include "aten_product.h"
#include "checked_cuda.h"

namespace vecbank::ops_cuda {
namespace {

// One float64 bias per bank row.
std::optional<Tensor> bias_of(Place& place, const std::optional<Tensor>& bias, const Tensor& bank, Metric metric) {
  if (!bias) return std::nullopt;
  place.same(*bias, "bias");
  STD_TORCH_CHECK(metric == Metric::dot && bank.dim() == 2,
                  "vecbank: a bias goes with the dot metric and a bank (M, d)");
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == bank.size(0) && bias->scalar_type() == bank.scalar_type(),
                  "vecbank: bias must be (M,) in the bank's dtype, got ", shape_of(*bias), " for bank ",
                  shape_of(bank));
  Tensor wide = place.empty(sizes_of(*bias), ScalarType::Double);
  const Rows one{bias->const_data_ptr(), dtype_of(*bias, "bias"), 1, bias->size(0), 0, bias->stride(0)};
  check(cuda::widen(one, static_cast<double*>(wide.mutable_data_ptr()), place.device()));
  return wide;
}
const double* data_of(const std::optional<Tensor>& wide) {
  return wide ? static_cast<const double*>(wide->const_data_ptr()) : nullptr;
}

}  // namespace

Tensor pack(const Tensor& bank, int64_t metric_code, const std::optional<Tensor>& bias, bool stamp) {
  STD_TORCH_CHECK(!stamp, "vecbank: a pack on a CUDA device carries no stamp; call pack() again when the bank changes");
  const Metric metric = metric_of(metric_code);
  Place place(bank, "bank");
  STD_TORCH_CHECK(bank.dim() == 2 || bank.dim() == 3, "vecbank: bank must be (M, d) or (B, M, d), got ",
                  shape_of(bank));
  const RowsView view = rows_of(bank, "bank");
  const int64_t batches = bank.dim() == 3 ? bank.size(0) : 1, m = bank.size(bank.dim() - 2);
  const std::optional<Tensor> wide = bias_of(place, bias, bank, metric);
  const int64_t bytes = round_up_to(cuda::pack_bytes(m, view.rows.width, metric, bias.has_value()), 64);
  Tensor out = place.empty(bank.dim() == 3 ? std::vector<int64_t>{batches, bytes} : std::vector<int64_t>{bytes},
                           ScalarType::Byte);
  const Device& device = place.with_workspace(cuda::pack_workspace());
  for (int64_t b = 0; b < batches; ++b)
    check(cuda::pack_bank(batch_of(view.rows, batches, b), metric,
                          static_cast<char*>(out.mutable_data_ptr()) + b * bytes, device, data_of(wide)));
  return out;
}

namespace {

cuda::Wish wanted_project() {
  const char* name = std::getenv("VECBANK_CUDA_PROJECT");
  if (name == nullptr || *name == 0) return cuda::Wish::none;
  if (std::strcmp(name, "kernel") == 0) return cuda::Wish::kernel;
  STD_TORCH_CHECK(std::strcmp(name, "library") == 0, "vecbank: VECBANK_CUDA_PROJECT must be kernel or library, got ",
                  name);
  return cuda::Wish::library;
}

void project_by_library(const ProjectProblem& p, Place& place, const torch::stable::Device& where) {
  const auto multiply = [](void* context, const Rows& x, const Rows& bank, void* out, DType dtype, int64_t stride) {
    aten_product(x, bank, out, dtype, stride, *static_cast<const torch::stable::Device*>(context));
    return cuda::Error{nullptr};
  };
  check(cuda::project_by_library(p, {const_cast<torch::stable::Device*>(&where), multiply},
                                 place.with_workspace(cuda::project_library_workspace(p))));
}

Tensor project(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed, int64_t metric_code,
               std::optional<ScalarType> out_dtype) {
  ProjectProblem p;
  p.metric = metric_of(metric_code);
  Place place(x, "x");
  const Pairing pair = pair_up(place, x, bank);
  const PackView packs(place, packed, pair, p.metric);
  std::vector<int64_t> shape = pair.leading;
  shape.push_back(pair.m);
  Tensor out = place.empty(shape, out_dtype.value_or(x.scalar_type()));
  p.out_dtype = dtype_of(out, "out_dtype");
  const cuda::Wish wish = wanted_project();
  for (int64_t b = 0; b < pair.batches; ++b) {
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    p.pack = p.bank.dtype == DType::f64 ? nullptr : packs.of(b);  // float64 has no screen to share
    p.out = at(out, b * p.queries.count * p.bank.count, p.out_dtype);
    if (cuda::project_path(p, place.device().capability, wish) == cuda::ProjectPath::library)
      project_by_library(p, place, x.device());
    else
      check(cuda::project(p, place.with_workspace(cuda::project_workspace(p, place.device()))));
  }
  return out;
}

Tensor exact_scores(const Tensor& x, const Tensor& bank, int64_t metric, std::optional<ScalarType> out_dtype,
                    const std::optional<Tensor>& indices) {
  Place place(x, "x");
  const Pairing pair = pair_up(place, x, bank);
  std::optional<Tensor> listed;
  if (indices) listed = checked_codes(place, *indices);
  if (listed) check_listed(pair, bank, *listed);
  ProjectProblem p;
  p.metric = metric_of(metric);
  p.exact = true;
  std::vector<int64_t> shape = pair.leading;
  shape.push_back(listed ? listed->size(listed->dim() - 1) : pair.m);
  Tensor out = place.empty(shape, out_dtype.value_or(x.scalar_type()));
  p.out_dtype = dtype_of(out, "out_dtype");
  if (out.numel() == 0) return out;  // an empty list of indices has no address, as no list has
  if (listed) {
    p.indices = static_cast<const int64_t*>(listed->const_data_ptr());
    p.k = shape.back();
  }
  for (int64_t b = 0; b < pair.batches; ++b) {
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    p.out = at(out, b * p.queries.count * p.bank.count, p.out_dtype);
    check(cuda::project(p, place.device()));
  }
  return out;
}

struct Found {
  Tensor values, indices, gathered;
};
enum Want { kValues = 1, kGathered = 2 };

Found search(Place& place, const Pairing& pair, const Tensor& x, const Tensor& bank,
             const std::optional<Tensor>& packed, int64_t k, bool listed, Metric metric,
             const std::optional<Tensor>& mask, int want, const std::optional<Tensor>& bias = std::nullopt) {
  const PackView packs(place, packed, pair, metric, bias.has_value());
  const std::optional<Tensor> wide = bias_of(place, bias, bank, metric);
  std::vector<int64_t> shape = pair.leading;
  if (listed) shape.push_back(k);
  Found found;
  SearchProblem p;
  p.metric = metric;
  p.k = k;
  p.bias = data_of(wide);
  found.indices = place.empty(shape, ScalarType::Long);
  if (want & kValues) {
    p.values_dtype = pair.x.rows.dtype == DType::f64 ? DType::f64 : DType::f32;
    found.values = place.empty(shape, scalar_type(p.values_dtype));
  }
  if (want & kGathered) found.gathered = place.empty(sizes_of(x), bank.scalar_type());
  if (mask) place.same(*mask, "mask");
  const MaskView masks(mask, x, pair.m);
  for (int64_t b = 0; b < pair.batches; ++b) {
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    p.pack = packs.of(b);
    const int64_t first = b * p.queries.count;
    p.mask = masks.mask.from(first);
    p.indices = static_cast<int64_t*>(found.indices.mutable_data_ptr()) + first * k;
    if (want & kValues) p.values = at(found.values, first * k, p.values_dtype);
    if (want & kGathered) p.gathered = at(found.gathered, first * p.bank.width, p.bank.dtype);
    check(cuda::search(p, place.with_workspace(cuda::search_workspace(p, place.device()))));
  }
  return found;
}

std::tuple<Tensor, Tensor> topk(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed, int64_t k,
                                int64_t metric, const std::optional<Tensor>& mask, bool /*exact*/,
                                const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(bank.dim() >= 2 && k >= 1 && k <= bank.size(bank.dim() - 2),
                  "vecbank: k must lie between 1 and M, got k = ", k, " with bank ", shape_of(bank));
  Place place(x, "x");
  Found f = search(place, pair_up(place, x, bank), x, bank, packed, k, true, metric_of(metric), mask, kValues, bias);
  return {f.values, f.indices};
}

std::tuple<Tensor, Tensor> nearest(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed,
                                   int64_t metric, bool /*exact*/) {
  Place place(x, "x");
  Found f = search(place, pair_up(place, x, bank), x, bank, packed, 1, false, metric_of(metric), std::nullopt, kValues);
  return {f.values, f.indices};
}

std::tuple<Tensor, Tensor> quantize(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed,
                                    int64_t metric) {
  Place place(x, "x");
  Found f =
      search(place, pair_up(place, x, bank), x, bank, packed, 1, false, metric_of(metric), std::nullopt, kGathered);
  return {f.gathered, f.indices};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> quantize_train(const Tensor& x, const Tensor& bank,
                                                                  const std::optional<Tensor>& packed, int64_t metric,
                                                                  const std::optional<Tensor>& mask) {
  Place place(x, "x");
  const Pairing pair = pair_up(place, x, bank);
  std::optional<Tensor> keep;
  if (mask) {
    place.same(*mask, "mask");
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool && sizes_of(*mask) == pair.leading,
                    "vecbank: mask must be bool with x's shape less the last dimension, got ", shape_of(*mask));
    keep = dense(*mask);
  }
  Found found = search(place, pair, x, bank, packed, 1, false, metric_of(metric), std::nullopt, kGathered);
  const DType wide = pair.bank.rows.dtype == DType::f64 ? DType::f64 : DType::f32;
  std::vector<int64_t> shape = sizes_of(bank);
  Tensor sums = place.empty(shape, scalar_type(wide));
  shape.pop_back();
  Tensor counts = place.empty(shape, ScalarType::Float), loss = place.empty({}, scalar_type(wide));
  QuantizeLossProblem l;
  l.x = pair.x.rows;
  l.codes = static_cast<int64_t*>(found.indices.mutable_data_ptr());
  l.quantized = rows_of(found.gathered, "quantized").rows;
  l.keep = keep ? static_cast<const bool*>(keep->const_data_ptr()) : nullptr;
  check(cuda::quantize_loss(l, loss.mutable_data_ptr(), wide,
                            place.with_workspace(cuda::quantize_loss_workspace(l.x.count))));
  for (int64_t b = 0; b < pair.batches; ++b) {
    SegmentSumProblem s;
    s.source = pair.x_batch(b);
    s.count = s.source.count;
    s.segments = pair.m;
    s.codes = l.codes + b * s.count;
    s.out_dtype = wide;
    s.out = at(sums, b * pair.m * l.x.width, wide);
    s.counts = static_cast<float*>(counts.mutable_data_ptr()) + b * pair.m;
    check(cuda::segment_sum(s, place.with_workspace(cuda::segment_sum_workspace(s.count, s.segments))));
  }
  return {found.gathered, found.indices, loss, counts, sums};
}

std::tuple<Tensor, Tensor> topk_backward(const Tensor& grad, const Tensor& x, const Tensor& bank,
                                         const Tensor& indices_in, int64_t metric) {
  Place place(x, "x");
  place.same(grad, "grad");
  const Tensor indices = checked_codes(place, indices_in);
  const Pairing pair = pair_up(place, x, bank);
  STD_TORCH_CHECK(sizes_of(grad) == sizes_of(indices), "vecbank: grad ", shape_of(grad), " must match indices ",
                  shape_of(indices));
  PairProblem p;
  p.metric = metric_of(metric);
  const int64_t rows = pair.x.rows.count;
  p.k = rows == 0 ? 1 : indices.numel() / rows;
  STD_TORCH_CHECK(p.k * rows == indices.numel(), "vecbank: indices ", shape_of(indices), " do not fit x ", shape_of(x));
  const Tensor grads = dense(grad);
  p.grad_dtype = dtype_of(grads, "grad");
  Tensor grad_x = place.empty(sizes_of(x), x.scalar_type()),
         grad_bank = place.empty(sizes_of(bank), bank.scalar_type());
  for (int64_t b = 0; b < pair.batches; ++b) {
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    const int64_t first = b * p.queries.count;
    p.indices = static_cast<const int64_t*>(indices.const_data_ptr()) + first * p.k;
    p.grad =
        static_cast<const char*>(grads.const_data_ptr()) + first * p.k * static_cast<int64_t>(size_of(p.grad_dtype));
    p.grad_queries = at(grad_x, first * p.queries.width, p.queries.dtype);
    p.grad_bank = at(grad_bank, b * p.bank.count * p.bank.width, p.bank.dtype);
    check(cuda::pair_gradients(p, place.with_workspace(cuda::pair_workspace(p.queries.count * p.k, p.bank.count))));
  }
  return {grad_x, grad_bank};
}

}  // namespace
}  // namespace vecbank::ops_cuda

STABLE_TORCH_LIBRARY_IMPL(vecbank, CUDA, m) {
  m.impl("pack", TORCH_BOX(&vecbank::ops_cuda::pack));
  m.impl("project", TORCH_BOX(&vecbank::ops_cuda::project));
  m.impl("exact_scores", TORCH_BOX(&vecbank::ops_cuda::exact_scores));
  m.impl("topk", TORCH_BOX(&vecbank::ops_cuda::topk));
  m.impl("topk_backward", TORCH_BOX(&vecbank::ops_cuda::topk_backward));
  m.impl("nearest", TORCH_BOX(&vecbank::ops_cuda::nearest));
  m.impl("quantize", TORCH_BOX(&vecbank::ops_cuda::quantize));
  m.impl("quantize_train", TORCH_BOX(&vecbank::ops_cuda::quantize_train));
}
