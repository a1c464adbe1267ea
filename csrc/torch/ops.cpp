// torch.ops.vecbank.*: schemas, checks, allocation. The Python layer says it more kindly; this one lets nothing
// through.
#include <algorithm>

#include "checked.h"
#include "interrupt.h"

namespace vecbank::ops {
namespace {

// The work of scoring every query against so many rows.
double work_of(const Pairing& pair, int64_t rows) {
  return static_cast<double>(pair.x.rows.count) * static_cast<double>(rows) *
         static_cast<double>(pair.x.rows.width + 8);
}

void check_bias(const std::optional<Tensor>& bias, const Tensor& bank, Metric metric) {
  if (!bias) return;
  check_cpu(*bias, "bias");
  STD_TORCH_CHECK(metric == Metric::dot && bank.dim() == 2,
                  "vecbank: a bias goes with the dot metric and a bank (M, d)");
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == bank.size(0) && bias->scalar_type() == bank.scalar_type(),
                  "vecbank: bias must be (M,) in the bank's dtype, got ", shape_of(*bias), " for bank ",
                  shape_of(bank));
}

// One bias per bank row, widened.
std::vector<double> bias_of(const std::optional<Tensor>& bias, const Tensor& bank, Metric metric) {
  std::vector<double> wide;
  check_bias(bias, bank, metric);
  if (!bias) return wide;
  const Tensor values = dense(*bias);
  with_dtype(dtype_of(values, "bias"), [&](auto type) {
    const auto* data = static_cast<decltype(type)>(values.const_data_ptr());
    for (int64_t i = 0; i < values.numel(); ++i) wide.push_back(widened(data[i]));
  });
  return wide;
}

void write_stamp(Tensor& packed, const Tensor& bank, const std::optional<Tensor>& bias) {
  const PackStamp made = stamp_of(bank, bias);
  std::memcpy(static_cast<char*>(packed.mutable_data_ptr()) + sizeof(PackHeader), &made, sizeof made);
}

}  // namespace

Tensor pack(const Tensor& bank, int64_t metric_code, const std::optional<Tensor>& bias, bool stamp) {
  const Metric metric = metric_of(metric_code);
  check_cpu(bank, "bank");
  STD_TORCH_CHECK(bank.dim() == 2 || bank.dim() == 3, "vecbank: bank must be (M, d) or (B, M, d), got ",
                  shape_of(bank));
  const RowsView view = rows_of(bank, "bank");
  const int64_t batches = bank.dim() == 3 ? bank.size(0) : 1, m = bank.size(bank.dim() - 2);
  const std::vector<double> biases = bias_of(bias, bank, metric);
  const int64_t bytes = round_up_to(cpu::pack_bytes(m, view.rows.width, metric, bias.has_value()), 64);
  Tensor out =
      empty_cpu(bank.dim() == 3 ? std::vector<int64_t>{batches, bytes} : std::vector<int64_t>{bytes}, ScalarType::Byte);
  const InterruptibleCall call(10.0 * static_cast<double>(bank.numel()));
  for (int64_t b = 0; b < batches; ++b)
    check_status(cpu::pack_bank(batch_of(view.rows, batches, b), metric,
                                static_cast<char*>(out.mutable_data_ptr()) + b * bytes, torch_threads(call.stop()),
                                bias ? biases.data() : nullptr));
  if (stamp && batches > 0) write_stamp(out, bank, bias);
  return out;
}

// The pack of a bank whose `rows` have been written to since, in place.
void repack_(Tensor& packed, const Tensor& bank, int64_t metric_code, const Tensor& rows,
             const std::optional<Tensor>& bias, bool stamp) {
  const Metric metric = metric_of(metric_code);
  const RowsView view = checked_bank(bank, "bank");
  check_bias(bias, bank, metric);
  STD_TORCH_CHECK(rows.dim() == 1, "vecbank: rows must be (R,), got ", shape_of(rows));
  const Tensor written = checked_codes(rows);
  const int64_t* at = static_cast<const int64_t*>(written.const_data_ptr());
  for (int64_t i = 0; i < written.numel(); ++i)
    STD_TORCH_CHECK(at[i] >= 0 && at[i] < view.rows.count, "vecbank: rows must lie between 0 and ", view.rows.count - 1,
                    ", got ", at[i]);
  const PackView packs(packed);
  if (packs.of(view.rows, metric, 0, bias.has_value()) == nullptr) return;  // no rows at all
  PackHeader* header = static_cast<PackHeader*>(packed.mutable_data_ptr());
  bool fit = written.numel() <= view.rows.count / 16;  // else in one go
  Status status = Status::ok;
  if (fit) {
    const InterruptibleCall call(10.0 * static_cast<double>(written.numel() * view.rows.width));
    status = cpu::repack_rows(view.rows, header, at, written.numel(), torch_threads(call.stop()), &fit);
  }
  if (status == Status::ok && !fit) {
    const InterruptibleCall call(10.0 * static_cast<double>(bank.numel()));
    const std::vector<double> biases = bias_of(bias, bank, metric);
    status = cpu::pack_bank(view.rows, metric, header, torch_threads(call.stop()), bias ? biases.data() : nullptr);
  }
  if (status != Status::ok) header->magic = 0;  // half written, and good for nothing
  check_status(status);
  if (stamp) write_stamp(packed, bank, bias);
}

namespace {

Tensor project(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed, int64_t metric_code,
               std::optional<ScalarType> out_dtype) {
  const Metric metric = metric_of(metric_code);
  const Pairing pair = pair_up(x, bank);
  const PackView packs(packed, bank, std::nullopt, pair.batches);
  std::vector<int64_t> shape = pair.leading;
  shape.push_back(pair.m);
  Tensor out = empty_cpu(shape, out_dtype.value_or(x.scalar_type()));
  ProjectProblem p;
  p.metric = metric;
  p.out_dtype = dtype_of(out, "out_dtype");
  const InterruptibleCall call(work_of(pair, pair.m));
  for (int64_t b = 0; b < pair.batches; ++b) {
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    p.pack = p.bank.dtype == DType::f64 ? nullptr : packs.of(p.bank, metric, b);  // float64 has no screen to share
    p.out = static_cast<char*>(out.mutable_data_ptr()) +
            b * p.queries.count * p.bank.count * static_cast<int64_t>(size_of(p.out_dtype));
    check_status(cpu::project(p, torch_threads(call.stop())));
  }
  return out;
}

Tensor exact_scores(const Tensor& x, const Tensor& bank, int64_t metric, std::optional<ScalarType> out_dtype,
                    const std::optional<Tensor>& indices) {
  const Pairing pair = pair_up(x, bank);
  std::optional<Tensor> listed;
  if (indices) listed = checked_codes(*indices);
  if (listed) check_listed(pair, bank, *listed);
  ProjectProblem p;
  p.metric = metric_of(metric);
  p.exact = true;
  std::vector<int64_t> shape = pair.leading;
  shape.push_back(listed ? listed->size(listed->dim() - 1) : pair.m);
  Tensor out = empty_cpu(shape, out_dtype.value_or(x.scalar_type()));
  p.out_dtype = dtype_of(out, "out_dtype");
  if (out.numel() == 0) return out;  // an empty list of indices has no address, as no list has
  if (listed) {
    p.indices = static_cast<const int64_t*>(listed->const_data_ptr());
    p.k = shape.back();
  }
  const InterruptibleCall call(work_of(pair, shape.back()));
  for (int64_t b = 0; b < pair.batches; ++b) {
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    p.out = static_cast<char*>(out.mutable_data_ptr()) +
            b * p.queries.count * p.bank.count * static_cast<int64_t>(size_of(p.out_dtype));
    check_status(cpu::project(p, torch_threads(call.stop())));
  }
  return out;
}

struct Found {
  Tensor values, indices, gathered;
};
enum Want { kValues = 1, kGathered = 2 };

Found search(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed, int64_t k, bool listed,
             int64_t metric_code, const std::optional<Tensor>& mask, int want,
             const std::optional<Tensor>& bias = std::nullopt) {
  const Metric metric = metric_of(metric_code);
  const Pairing pair = pair_up(x, bank);
  const PackView packs(packed, bank, bias, pair.batches);
  std::vector<int64_t> shape = pair.leading;
  if (listed) shape.push_back(k);
  Found found;
  SearchProblem p;
  p.metric = metric;
  p.k = k;
  const std::vector<double> biases = bias_of(bias, bank, metric);
  if (bias) p.bias = biases.data();
  found.indices = empty_cpu(shape, ScalarType::Long);
  if (want & kValues) {
    p.values_dtype = pair.x.rows.dtype == DType::f64 ? DType::f64 : DType::f32;
    found.values = empty_cpu(shape, scalar_type(p.values_dtype));
  }
  if (want & kGathered) found.gathered = empty_cpu(sizes_of(x), bank.scalar_type());

  if (mask) check_cpu(*mask, "mask");
  const MaskView masks(mask, x, pair.m);
  const InterruptibleCall call(work_of(pair, pair.m));
  for (int64_t b = 0; b < pair.batches; ++b) {
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    p.pack = packs.of(p.bank, metric, b, bias.has_value());
    const int64_t first = b * p.queries.count;
    p.mask = masks.mask.from(first);
    p.indices = static_cast<int64_t*>(found.indices.mutable_data_ptr()) + first * k;
    if (want & kValues)
      p.values = static_cast<char*>(found.values.mutable_data_ptr()) +
                 first * k * static_cast<int64_t>(size_of(p.values_dtype));
    if (want & kGathered)
      p.gathered = static_cast<char*>(found.gathered.mutable_data_ptr()) +
                   first * p.bank.width * static_cast<int64_t>(size_of(p.bank.dtype));
    check_status(cpu::search(p, torch_threads(call.stop())));
  }
  return found;
}

std::tuple<Tensor, Tensor> topk(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed, int64_t k,
                                int64_t metric, const std::optional<Tensor>& mask, bool /*exact*/,
                                const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(bank.dim() >= 2 && k >= 1 && k <= bank.size(bank.dim() - 2),
                  "vecbank: k must lie between 1 and M, got k = ", k, " with bank ", shape_of(bank));
  Found f = search(x, bank, packed, k, true, metric, mask, kValues, bias);
  return {f.values, f.indices};
}

std::tuple<Tensor, Tensor> nearest(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed,
                                   int64_t metric, bool /*exact*/) {
  Found f = search(x, bank, packed, 1, false, metric, std::nullopt, kValues);
  return {f.values, f.indices};
}

std::tuple<Tensor, Tensor> quantize(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& packed,
                                    int64_t metric) {
  Found f = search(x, bank, packed, 1, false, metric, std::nullopt, kGathered);
  return {f.gathered, f.indices};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> quantize_train(const Tensor& x, const Tensor& bank,
                                                                  const std::optional<Tensor>& packed, int64_t metric,
                                                                  const std::optional<Tensor>& mask) {
  if (mask) {
    check_cpu(*mask, "mask");
    std::vector<int64_t> rows = sizes_of(x);
    rows.pop_back();
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool && sizes_of(*mask) == rows,
                    "vecbank: mask must be bool with x's shape less the last dimension, got ", shape_of(*mask));
  }
  Found found = search(x, bank, packed, 1, false, metric, std::nullopt, kGathered);
  const Pairing pair = pair_up(x, bank);
  const DType sums_dtype = pair.bank.rows.dtype == DType::f64 ? DType::f64 : DType::f32;
  std::vector<int64_t> shape = sizes_of(bank);
  Tensor sums = empty_cpu(shape, scalar_type(sums_dtype));
  shape.pop_back();
  Tensor counts = empty_cpu(shape, ScalarType::Float);
  Tensor loss = empty_cpu({}, scalar_type(sums_dtype));

  std::optional<Tensor> keep;
  if (mask) keep = dense(*mask);
  QuantizeLossProblem l;
  l.x = pair.x.rows;
  l.codes = static_cast<int64_t*>(found.indices.mutable_data_ptr());
  l.quantized = rows_of(found.gathered, "quantized").rows;
  l.keep = keep ? static_cast<const bool*>(keep->const_data_ptr()) : nullptr;
  const InterruptibleCall call(2.0 * static_cast<double>(x.numel()));
  check_status(cpu::quantize_loss(l, torch_threads(call.stop())));
  set(loss, 0, l.squares / std::max(1.0, static_cast<double>(l.valid) * static_cast<double>(l.x.width)));

  for (int64_t b = 0; b < pair.batches; ++b) {
    SegmentSumProblem s;
    s.source = pair.x_batch(b);
    s.count = s.source.count;
    s.segments = pair.m;
    s.codes = l.codes + b * s.count;
    s.out_dtype = sums_dtype;
    s.out = static_cast<char*>(sums.mutable_data_ptr()) +
            b * pair.m * l.x.width * static_cast<int64_t>(size_of(sums_dtype));
    s.counts = static_cast<float*>(counts.mutable_data_ptr()) + b * pair.m;
    check_status(cpu::segment_sum(s, torch_threads(call.stop())));
  }
  return {found.gathered, found.indices, loss, counts, sums};
}

std::tuple<Tensor, Tensor> topk_backward(const Tensor& grad, const Tensor& x, const Tensor& bank,
                                         const Tensor& indices_in, int64_t metric) {
  const Tensor indices = checked_codes(indices_in);
  const Pairing pair = pair_up(x, bank);
  check_cpu(grad, "grad");
  STD_TORCH_CHECK(sizes_of(grad) == sizes_of(indices), "vecbank: grad ", shape_of(grad), " must match indices ",
                  shape_of(indices));
  PairProblem p;
  p.metric = metric_of(metric);
  const int64_t rows = pair.x.rows.count;
  p.k = rows == 0 ? 1 : indices.numel() / rows;
  STD_TORCH_CHECK(p.k * rows == indices.numel(), "vecbank: indices ", shape_of(indices), " do not fit x ", shape_of(x));
  const Tensor grads = dense(grad);
  p.grad_dtype = dtype_of(grads, "grad");
  const InterruptibleCall call(work_of(pair, p.k) + static_cast<double>(bank.numel()));
  Tensor grad_x = empty_cpu(sizes_of(x), x.scalar_type()), grad_bank = empty_cpu(sizes_of(bank), bank.scalar_type());
  const auto at = [](const Tensor& t, int64_t elements, int64_t size) {
    return static_cast<char*>(t.mutable_data_ptr()) + elements * size;
  };
  for (int64_t b = 0; b < pair.batches; ++b) {
    p.queries = pair.x_batch(b);
    p.bank = pair.bank_batch(b);
    const int64_t first = b * p.queries.count;
    p.indices = static_cast<const int64_t*>(indices.const_data_ptr()) + first * p.k;
    p.grad =
        static_cast<const char*>(grads.const_data_ptr()) + first * p.k * static_cast<int64_t>(size_of(p.grad_dtype));
    p.grad_queries = at(grad_x, first * p.queries.width, static_cast<int64_t>(size_of(p.queries.dtype)));
    p.grad_bank = at(grad_bank, b * p.bank.count * p.bank.width, static_cast<int64_t>(size_of(p.bank.dtype)));
    check_status(cpu::pair_gradients(p, torch_threads(call.stop())));
  }
  return {grad_x, grad_bank};
}

}  // namespace
}  // namespace vecbank::ops

// topk and nearest once took `exact`; the argument is ignored, and stays because schemas only grow.
STABLE_TORCH_LIBRARY(vecbank, m) {
  m.def("pack(Tensor bank, int metric, Tensor? bias=None, bool stamp=False) -> Tensor");
  m.def("repack_(Tensor(a!) pack, Tensor bank, int metric, Tensor rows, Tensor? bias=None, bool stamp=False) -> ()");
  m.def("project(Tensor x, Tensor bank, Tensor? pack, int metric, ScalarType? out_dtype=None) -> Tensor");
  m.def("exact_scores(Tensor x, Tensor bank, int metric, ScalarType? out_dtype=None, Tensor? indices=None) -> Tensor");
  m.def(
      "project_backward(Tensor grad, Tensor x, Tensor bank, int metric, bool need_x=True, bool need_bank=True, "
      "Tensor? row_least=None) -> (Tensor, Tensor)");
  m.def(
      "topk(Tensor x, Tensor bank, Tensor? pack, int k, int metric, Tensor? mask=None, bool exact=True, "
      "Tensor? bias=None) -> (Tensor values, Tensor indices)");
  m.def("topk_backward(Tensor grad, Tensor x, Tensor bank, Tensor indices, int metric) -> (Tensor, Tensor)");
  m.def("nearest(Tensor x, Tensor bank, Tensor? pack, int metric, bool exact=True) -> (Tensor values, Tensor indices)");
  m.def("quantize(Tensor x, Tensor bank, Tensor? pack, int metric) -> (Tensor quantized, Tensor codes)");
  m.def(
      "quantize_train(Tensor x, Tensor bank, Tensor? pack, int metric, Tensor? mask=None) -> (Tensor quantized, Tensor "
      "codes, Tensor loss, Tensor counts, Tensor sums)");
  m.def(
      "residual_quantize(Tensor x, Tensor[] books, Tensor[] packs, int metric) -> (Tensor quantized, Tensor codes, "
      "Tensor losses)");
  m.def("product_quantize(Tensor x, Tensor books, Tensor? pack) -> Tensor");
  m.def("quantize_backward(Tensor grad, Tensor x, Tensor quantized, Tensor scale, int estimator) -> Tensor");
  m.def("lookup(Tensor codes, Tensor bank, Tensor? weights, int reduce) -> Tensor");
  m.def("lookup_dot(Tensor x, Tensor codes, Tensor bank) -> Tensor");
  m.def("segment_sum(Tensor src, Tensor codes, int num_codes, Tensor? weights) -> Tensor");
}

// project_backward is plain ATen and lives in Python (_backward.py): three matrix products and no kernel of ours.
STABLE_TORCH_LIBRARY_IMPL(vecbank, CPU, m) {
  m.impl("pack", TORCH_BOX(&vecbank::ops::pack));
  m.impl("repack_", TORCH_BOX(&vecbank::ops::repack_));
  m.impl("project", TORCH_BOX(&vecbank::ops::project));
  m.impl("exact_scores", TORCH_BOX(&vecbank::ops::exact_scores));
  m.impl("topk", TORCH_BOX(&vecbank::ops::topk));
  m.impl("topk_backward", TORCH_BOX(&vecbank::ops::topk_backward));
  m.impl("nearest", TORCH_BOX(&vecbank::ops::nearest));
  m.impl("quantize", TORCH_BOX(&vecbank::ops::quantize));
  m.impl("quantize_train", TORCH_BOX(&vecbank::ops::quantize_train));
}
