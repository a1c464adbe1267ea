// torch.ops.vecbank.*, the codebook's half: codes of several books, gathers, sums by code, and what goes back to x.
#include "checked.h"
#include "interrupt.h"

namespace vecbank::ops {
namespace {

double work_of(int64_t rows, int64_t each, int64_t width) {
  return static_cast<double>(rows) * static_cast<double>(each) * static_cast<double>(width + 8);
}

// The pack that came with a bank, or a new one where none came or the bank has changed since.
PackView pack_for(const std::optional<Tensor>& given, const Tensor& bank, int64_t metric, int64_t batches) {
  const PackView view(given, bank, std::nullopt, batches);
  if (view.tensor) return view;
  return PackView(pack(bank, metric, std::nullopt, false), bank, std::nullopt, batches);
}

std::tuple<Tensor, Tensor, Tensor> residual_quantize(const Tensor& x, const std::vector<Tensor>& books,
                                                     const std::vector<Tensor>& packs, int64_t metric) {
  STD_TORCH_CHECK(!books.empty(), "vecbank: residual_quantize needs at least one book");
  STD_TORCH_CHECK(packs.empty() || packs.size() == books.size(), "vecbank: ", packs.size(), " packs for ", books.size(),
                  " books: one each, or none");
  const ScalarType dtype = books[0].scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "vecbank: books must be float32 or float64");
  ResidualProblem p;
  p.metric = metric_of(metric);
  std::vector<Tensor> kept;
  double work = 0.0;
  for (size_t s = 0; s < books.size(); ++s) {
    STD_TORCH_CHECK(books[s].dim() == 2 && books[s].scalar_type() == dtype,
                    "vecbank: books must be (M, d) and share a dtype, got ", shape_of(books[s]), " at stage ", s);
    const Pairing pair = pair_up(x, books[s]);
    p.queries = pair.x.rows;
    work += work_of(pair.x.rows.count, pair.m, pair.x.rows.width);
    kept.push_back(pair.x.owner);
    kept.push_back(pair.bank.owner);
    const PackView packed = pack_for(packs.empty() ? std::nullopt : std::optional(packs[s]), books[s], metric, 1);
    if (packed.tensor) kept.push_back(*packed.tensor);
    p.stages.push_back({pair.bank.rows, packed.of(pair.bank.rows, p.metric, 0)});
  }
  std::vector<int64_t> shape = sizes_of(x);
  Tensor quantized = empty_cpu(shape, dtype);
  shape.back() = static_cast<int64_t>(books.size());
  Tensor codes = empty_cpu(shape, ScalarType::Long), losses = empty_cpu({shape.back()}, dtype);
  std::vector<double> squares(books.size());
  std::vector<int64_t> valid(books.size());
  p.codes = static_cast<int64_t*>(codes.mutable_data_ptr());
  p.quantized = quantized.mutable_data_ptr();
  p.squares = squares.data();
  p.valid = valid.data();
  const InterruptibleCall call(work);
  check_status(cpu::residual_quantize(p, torch_threads(call.stop())));
  for (size_t s = 0; s < books.size(); ++s)
    set(losses, static_cast<int64_t>(s),
        squares[s] / std::max(1.0, static_cast<double>(valid[s]) * static_cast<double>(p.queries.width)));
  return {quantized, codes, losses};
}

Tensor product_quantize(const Tensor& x, const Tensor& books, const std::optional<Tensor>& packed) {
  check_cpu(x, "x");
  check_cpu(books, "books");
  const RowsView queries = rows_of(x, "x"), rows = rows_of(books, "books");
  STD_TORCH_CHECK(books.dim() == 3 && books.size(1) > 0, "vecbank: books must be (P, K, w), got ", shape_of(books));
  const int64_t parts = books.size(0);
  STD_TORCH_CHECK(queries.rows.width == parts * rows.rows.width, "vecbank: x ", shape_of(x), " must be ",
                  parts * rows.rows.width, " wide, like books ", shape_of(books), " side by side");
  check_mix(queries.rows.dtype, rows.rows.dtype);
  const PackView packs = pack_for(packed, books, static_cast<int64_t>(Metric::sqeuclidean), parts);
  ProductProblem p;
  p.queries = queries.rows;
  for (int64_t b = 0; b < parts; ++b) {
    const Rows book = batch_of(rows.rows, parts, b);
    p.books.push_back({book, packs.of(book, Metric::sqeuclidean, b)});
  }
  std::vector<int64_t> shape = sizes_of(x);
  shape.back() = parts;
  Tensor codes = empty_cpu(shape, ScalarType::Long);
  p.codes = static_cast<int64_t*>(codes.mutable_data_ptr());
  const InterruptibleCall call(work_of(queries.rows.count, rows.rows.count, rows.rows.width));
  check_status(cpu::product_quantize(p, torch_threads(call.stop())));
  return codes;
}

Tensor quantize_backward(const Tensor& grad, const Tensor& x, const Tensor& quantized, const Tensor& scale,
                         int64_t estimator) {
  check_cpu(grad, "grad");
  check_cpu(scale, "scale");
  PassBackProblem p;
  p.dtype = dtype_of(x, "x");
  for (const Tensor* t : {&grad, &quantized})
    STD_TORCH_CHECK(t->is_cpu() && t->scalar_type() == x.scalar_type() && sizes_of(*t) == sizes_of(x),
                    "vecbank: grad, x and quantized must share device, dtype and shape, got ", shape_of(*t), " for x ",
                    shape_of(x));
  STD_TORCH_CHECK(x.dim() >= 1, "vecbank: x must have at least one dimension, got a scalar");
  STD_TORCH_CHECK(scale.numel() == 1, "vecbank: scale must be a single number, got ", shape_of(scale));
  STD_TORCH_CHECK(estimator >= 0 && estimator <= 2, "vecbank: estimator must be 0, 1 or 2, got ", estimator);
  with_dtype(dtype_of(scale, "scale"),
             [&](auto type) { p.scale = widened(*static_cast<decltype(type)>(scale.const_data_ptr())); });
  const Tensor g = dense(grad), source = dense(x), target = dense(quantized);
  Tensor out = empty_cpu(sizes_of(x), x.scalar_type());
  p.grad = g.const_data_ptr();
  p.x = source.const_data_ptr();
  p.quantized = target.const_data_ptr();
  p.width = x.size(x.dim() - 1);
  p.rows = p.width == 0 ? 0 : x.numel() / p.width;
  p.estimator = static_cast<Estimator>(estimator);
  p.out = out.mutable_data_ptr();
  const InterruptibleCall call(4.0 * static_cast<double>(x.numel()));
  check_status(cpu::pass_back(p, torch_threads(call.stop())));
  return out;
}

Tensor lookup(const Tensor& codes_in, const Tensor& bank, const std::optional<Tensor>& weights_in, int64_t reduce) {
  const Tensor codes = checked_codes(codes_in);
  const RowsView view = checked_bank(bank, "bank");
  STD_TORCH_CHECK(reduce >= 0 && reduce <= 2, "vecbank: reduce must be 0 (none), 1 (sum) or 2 (mean), got ", reduce);
  STD_TORCH_CHECK(reduce == 0 || codes.dim() >= 1, "vecbank: a reduction needs codes (..., k), got a scalar");
  const std::optional<Tensor> weights = checked_weights(weights_in, codes, bank.scalar_type());
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
  Tensor out = empty_cpu(shape, bank.scalar_type());
  p.codes = static_cast<const int64_t*>(codes.const_data_ptr());
  p.bank = view.rows;
  p.weights = weights ? weights->const_data_ptr() : nullptr;
  p.out = out.mutable_data_ptr();
  const InterruptibleCall call(work_of(p.count, p.k, p.bank.width));
  check_status(cpu::lookup(p, torch_threads(call.stop())));
  return out;
}

Tensor segment_sum(const Tensor& src, const Tensor& codes_in, int64_t num_codes,
                   const std::optional<Tensor>& weights_in) {
  const Tensor codes = checked_codes(codes_in);
  SegmentSumProblem p;
  check_cpu(src, "src");
  const RowsView view = checked_source(src, codes, &p.k);
  STD_TORCH_CHECK(num_codes >= 0, "vecbank: num_codes must not be negative, got ", num_codes);
  const std::optional<Tensor> weights = checked_weights(weights_in, codes, src.scalar_type());
  Tensor out = empty_cpu({num_codes, view.rows.width}, src.scalar_type());
  p.codes = static_cast<const int64_t*>(codes.const_data_ptr());
  p.count = codes.numel();
  p.segments = num_codes;
  p.source = view.rows;
  p.weights = weights ? weights->const_data_ptr() : nullptr;
  p.weights_dtype = view.rows.dtype;
  p.out_dtype = view.rows.dtype;
  p.out = out.mutable_data_ptr();
  const InterruptibleCall call(work_of(p.count + p.segments, 1, p.source.width));
  check_status(cpu::segment_sum(p, torch_threads(call.stop())));
  return out;
}

Tensor lookup_dot(const Tensor& x, const Tensor& codes_in, const Tensor& bank) {
  const Tensor codes = checked_codes(codes_in);
  LookupDotProblem p;
  check_cpu(x, "x");
  const RowsView view = checked_source(x, codes, &p.k);
  const RowsView rows = checked_bank(bank, "bank");
  STD_TORCH_CHECK(view.rows.width == rows.rows.width, "vecbank: x ", shape_of(x), " and bank ", shape_of(bank),
                  " differ in their last dimension");
  Tensor out = empty_cpu(sizes_of(codes), bank.scalar_type());
  p.codes = static_cast<const int64_t*>(codes.const_data_ptr());
  p.x = view.rows;
  p.bank = rows.rows;
  p.out = out.mutable_data_ptr();
  const InterruptibleCall call(work_of(codes.numel(), 1, p.x.width));
  check_status(cpu::lookup_dot(p, torch_threads(call.stop())));
  return out;
}

}  // namespace
}  // namespace vecbank::ops

STABLE_TORCH_LIBRARY_IMPL(vecbank, CPU, m) {
  m.impl("residual_quantize", TORCH_BOX(&vecbank::ops::residual_quantize));
  m.impl("product_quantize", TORCH_BOX(&vecbank::ops::product_quantize));
  m.impl("quantize_backward", TORCH_BOX(&vecbank::ops::quantize_backward));
  m.impl("lookup", TORCH_BOX(&vecbank::ops::lookup));
  m.impl("lookup_dot", TORCH_BOX(&vecbank::ops::lookup_dot));
  m.impl("segment_sum", TORCH_BOX(&vecbank::ops::segment_sum));
}
