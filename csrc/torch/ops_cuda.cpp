// torch.ops.vecbank.* on CUDA: the same schemas and contracts as ops.cpp, on the current stream of x's device, with a
// workspace from torch's caching allocator. A library of its own (_C_cuda), loaded only beside a torch with CUDA.
// Nothing here waits for the device, so every op can be captured into a CUDA graph.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdlib>
#include <cstring>

#include "../cuda/api.h"
#include "common.h"

namespace vecbank::ops_cuda {
namespace {

using cuda::Device;

void check(cuda::Error error) { STD_TORCH_CHECK(error == nullptr, "vecbank: CUDA: ", error == nullptr ? "" : error); }

cuda::Path wanted_path() {
  const char* name = std::getenv("VECBANK_CUDA_PATH");
  if (name == nullptr || *name == 0 || std::strcmp(name, "simt") == 0) return cuda::Path::simt;
  if (std::strcmp(name, "mma16") == 0) return cuda::Path::mma16;
  if (std::strcmp(name, "sm90") == 0) return cuda::Path::sm90;  // NEVER RUN
  STD_TORCH_CHECK(std::strcmp(name, "mma") == 0, "vecbank: VECBANK_CUDA_PATH must be simt, mma, mma16 or sm90, got ",
                  name);
  return cuda::Path::mma;
}

// The device of an op's first tensor, made current for as long as this lives.
class Place {
 public:
  explicit Place(const Tensor& t, const char* name) : Place(t.get_device_index(), t.is_cuda(), name) {}

  void same(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == index_, "vecbank: ", name,
                    " must be on the same CUDA device as the other arguments (cuda:", index_, ")");
  }
  Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) const {
    return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), dtype,
                                std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CUDA, index_));
  }
  // The workspace lives until the next call of this, or the op's end; the allocator knows the stream.
  const Device& with_workspace(int64_t bytes) {
    if (bytes > device_.workspace_bytes) {
      workspace_ = empty({bytes}, ScalarType::Byte);
      device_.workspace = workspace_->mutable_data_ptr();
      device_.workspace_bytes = bytes;
    }
    return device_;
  }
  const Device& device() const { return device_; }

 private:
  Place(int32_t index, bool is_cuda, const char* name) : index_(checked(index, is_cuda, name)), guard_(index) {
    check(cuda::use_device(index, &device_));
    device_.path = wanted_path();
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &device_.stream));
  }
  static int32_t checked(int32_t index, bool is_cuda, const char* name) {
    STD_TORCH_CHECK(is_cuda, "vecbank: ", name, " must be on a CUDA device, like the other arguments");
    return index;
  }
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  Device device_;
  std::optional<Tensor> workspace_;
};

char* at(const Tensor& t, int64_t elements, DType dtype) {
  return static_cast<char*>(t.mutable_data_ptr()) + elements * static_cast<int64_t>(size_of(dtype));
}

Pairing pair_up(const Place& place, const Tensor& x, const Tensor& bank) {
  place.same(bank, "bank");
  return pair_rows(x, bank);
}

// The pack of each batch. Only its size can be checked here; what it says about itself is checked on the device.
struct PackView {
  const char* data = nullptr;
  int64_t bytes = 0;
  PackView(const Place& place, const std::optional<Tensor>& pack, const Pairing& pair, Metric metric,
           bool biased = false) {
    if (!pack || pair.m == 0) return;
    place.same(*pack, "pack");
    bytes = round_up_to(cuda::pack_bytes(pair.m, pair.bank.rows.width, metric, biased), 64);
    STD_TORCH_CHECK(
        pack->scalar_type() == ScalarType::Byte && pack->is_contiguous() && pack->numel() == bytes * pair.batches,
        "vecbank: pack does not belong to a bank of this shape, metric and bias; repack it");
    data = static_cast<const char*>(pack->const_data_ptr());
  }
  const PackHeader* of(int64_t b) const {
    return data == nullptr ? nullptr : reinterpret_cast<const PackHeader*>(data + b * bytes);
  }
};

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

Tensor pack(const Tensor& bank, int64_t metric_code, const std::optional<Tensor>& bias) {
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
  for (int64_t b = 0; b < pair.batches; ++b) {
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    p.pack = p.bank.dtype == DType::f64 ? nullptr : packs.of(b);  // float64 has no screen to share
    p.out = at(out, b * p.queries.count * p.bank.count, p.out_dtype);
    check(cuda::project(p, place.with_workspace(cuda::project_workspace(p, place.device()))));
  }
  return out;
}

struct Found {
  Tensor values, indices, gathered;
};
enum Want { kValues = 1, kGathered = 2 };

// The mask's rows seen with one stride; only one of three or more dimensions can need a copy.
Mask mask_of(const Place& place, const Tensor& mask, const Tensor& x, int64_t m, std::optional<Tensor>* owner) {
  place.same(mask, "mask");
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool && mask.dim() == x.dim() && mask.size(mask.dim() - 1) == m,
                  "vecbank: mask must be bool and expanded to (..., M), got ", shape_of(mask));
  for (int64_t i = 0; i + 1 < x.dim(); ++i)
    STD_TORCH_CHECK(mask.size(i) == x.size(i), "vecbank: mask ", shape_of(mask), " does not match x ", shape_of(x));
  *owner = mask;
  int64_t row_stride = x.dim() >= 2 ? mask.stride(mask.dim() - 2) : 0;
  for (int64_t i = mask.dim() - 3; i >= 0; --i)
    if (mask.size(i) != 1 && mask.stride(i) != mask.stride(i + 1) * mask.size(i + 1)) {
      *owner = dense(mask);
      row_stride = m;
      break;
    }
  return {static_cast<const bool*>((*owner)->const_data_ptr()), row_stride, (*owner)->stride(mask.dim() - 1)};
}

Found search(Place& place, const Pairing& pair, const Tensor& x, const Tensor& bank,
             const std::optional<Tensor>& packed, int64_t k, bool listed, Metric metric,
             const std::optional<Tensor>& mask, bool exact, int want,
             const std::optional<Tensor>& bias = std::nullopt) {
  const PackView packs(place, packed, pair, metric, bias.has_value());
  const std::optional<Tensor> wide = bias_of(place, bias, bank, metric);
  std::vector<int64_t> shape = pair.leading;
  if (listed) shape.push_back(k);
  Found found;
  SearchProblem p;
  p.metric = metric;
  p.k = k;
  p.exact = exact;
  p.bias = data_of(wide);
  found.indices = place.empty(shape, ScalarType::Long);
  if (want & kValues) {
    p.values_dtype = pair.x.rows.dtype == DType::f64 ? DType::f64 : DType::f32;
    found.values = place.empty(shape, scalar_type(p.values_dtype));
  }
  if (want & kGathered) found.gathered = place.empty(sizes_of(x), bank.scalar_type());
  std::optional<Tensor> owner;
  const Mask all = mask ? mask_of(place, *mask, x, pair.m, &owner) : Mask{};
  for (int64_t b = 0; b < pair.batches; ++b) {
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    p.pack = packs.of(b);
    const int64_t first = b * p.queries.count;
    p.mask = all;
    if (all.data != nullptr) p.mask.data += first * all.row_stride;
    p.indices = static_cast<int64_t*>(found.indices.mutable_data_ptr()) + first * k;
    if (want & kValues) p.values = at(found.values, first * k, p.values_dtype);
    if (want & kGathered) p.gathered = at(found.gathered, first * p.bank.width, p.bank.dtype);
    check(cuda::search(p, place.with_workspace(cuda::search_workspace(p, place.device()))));
  }
  return found;
}

std::tuple<Tensor, Tensor> topk(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed, int64_t k,
                                int64_t metric, const std::optional<Tensor>& mask, bool exact,
                                const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(bank.dim() >= 2 && k >= 1 && k <= bank.size(bank.dim() - 2),
                  "vecbank: k must lie between 1 and M, got k = ", k, " with bank ", shape_of(bank));
  Place place(x, "x");
  Found f =
      search(place, pair_up(place, x, bank), x, bank, packed, k, true, metric_of(metric), mask, exact, kValues, bias);
  return {f.values, f.indices};
}

std::tuple<Tensor, Tensor> nearest(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed,
                                   int64_t metric, bool exact) {
  Place place(x, "x");
  Found f = search(place, pair_up(place, x, bank), x, bank, packed, 1, false, metric_of(metric), std::nullopt, exact,
                   kValues);
  return {f.values, f.indices};
}

std::tuple<Tensor, Tensor> quantize(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed,
                                    int64_t metric) {
  Place place(x, "x");
  Found f = search(place, pair_up(place, x, bank), x, bank, packed, 1, false, metric_of(metric), std::nullopt, true,
                   kGathered);
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
  Found found = search(place, pair, x, bank, packed, 1, false, metric_of(metric), std::nullopt, true, kGathered);
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

// ---- Gathers and scatter-adds
// ------------------------------------------------------------------------------------------

Tensor checked_codes(const Place& place, const Tensor& codes) {
  place.same(codes, "codes");
  STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Long, "vecbank: codes must be int64");
  return dense(codes);
}

std::optional<Tensor> checked_weights(const Place& place, const std::optional<Tensor>& weights, const Tensor& codes,
                                      ScalarType dtype) {
  if (!weights) return std::nullopt;
  place.same(*weights, "weights");
  STD_TORCH_CHECK(weights->scalar_type() == dtype, "vecbank: weights must have the dtype of the rows they weigh");
  STD_TORCH_CHECK(sizes_of(*weights) == sizes_of(codes), "vecbank: weights ", shape_of(*weights),
                  " must have the shape of codes ", shape_of(codes));
  return dense(*weights);
}

Tensor lookup(const Tensor& codes_in, const Tensor& bank, const std::optional<Tensor>& weights_in, int64_t reduce) {
  Place place(bank, "bank");
  const Tensor codes = checked_codes(place, codes_in);
  STD_TORCH_CHECK(bank.dim() == 2, "vecbank: bank must be (M, d), got ", shape_of(bank));
  STD_TORCH_CHECK(reduce >= 0 && reduce <= 2, "vecbank: reduce must be 0 (none), 1 (sum) or 2 (mean), got ", reduce);
  STD_TORCH_CHECK(reduce == 0 || codes.dim() >= 1, "vecbank: a reduction needs codes (..., k), got a scalar");
  const RowsView view = rows_of(bank, "bank");
  const std::optional<Tensor> weights = checked_weights(place, weights_in, codes, bank.scalar_type());
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
  Tensor out = place.empty(shape, bank.scalar_type());
  p.codes = static_cast<const int64_t*>(codes.const_data_ptr());
  p.bank = view.rows;
  p.weights = weights ? weights->const_data_ptr() : nullptr;
  p.out = out.mutable_data_ptr();
  check(cuda::lookup(p, place.device()));
  return out;
}

Tensor segment_sum(const Tensor& src, const Tensor& codes_in, int64_t num_codes,
                   const std::optional<Tensor>& weights_in) {
  Place place(src, "src");
  const Tensor codes = checked_codes(place, codes_in);
  SegmentSumProblem p;
  const RowsView view = checked_source(src, codes, &p.k);
  STD_TORCH_CHECK(num_codes >= 0, "vecbank: num_codes must not be negative, got ", num_codes);
  const std::optional<Tensor> weights = checked_weights(place, weights_in, codes, src.scalar_type());
  Tensor out = place.empty({num_codes, view.rows.width}, src.scalar_type());
  p.codes = static_cast<const int64_t*>(codes.const_data_ptr());
  p.count = codes.numel();
  p.segments = num_codes;
  p.source = view.rows;
  p.weights = weights ? weights->const_data_ptr() : nullptr;
  p.weights_dtype = p.out_dtype = view.rows.dtype;
  p.out = out.mutable_data_ptr();
  check(cuda::segment_sum(p, place.with_workspace(cuda::segment_sum_workspace(p.count, p.segments))));
  return out;
}

Tensor lookup_dot(const Tensor& x, const Tensor& codes_in, const Tensor& bank) {
  Place place(x, "x");
  place.same(bank, "bank");
  const Tensor codes = checked_codes(place, codes_in);
  LookupDotProblem p;
  const RowsView view = checked_source(x, codes, &p.k);
  STD_TORCH_CHECK(bank.dim() == 2, "vecbank: bank must be (M, d), got ", shape_of(bank));
  const RowsView rows = rows_of(bank, "bank");
  STD_TORCH_CHECK(view.rows.width == rows.rows.width, "vecbank: x ", shape_of(x), " and bank ", shape_of(bank),
                  " differ in their last dimension");
  Tensor out = place.empty(sizes_of(codes), bank.scalar_type());
  p.codes = static_cast<const int64_t*>(codes.const_data_ptr());
  p.x = view.rows;
  p.bank = rows.rows;
  p.out = out.mutable_data_ptr();
  check(cuda::lookup_dot(p, place.device()));
  return out;
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
  m.impl("topk", TORCH_BOX(&vecbank::ops_cuda::topk));
  m.impl("topk_backward", TORCH_BOX(&vecbank::ops_cuda::topk_backward));
  m.impl("nearest", TORCH_BOX(&vecbank::ops_cuda::nearest));
  m.impl("quantize", TORCH_BOX(&vecbank::ops_cuda::quantize));
  m.impl("quantize_train", TORCH_BOX(&vecbank::ops_cuda::quantize_train));
  m.impl("lookup", TORCH_BOX(&vecbank::ops_cuda::lookup));
  m.impl("lookup_dot", TORCH_BOX(&vecbank::ops_cuda::lookup_dot));
  m.impl("segment_sum", TORCH_BOX(&vecbank::ops_cuda::segment_sum));
}
