// torch.ops.vecbank.* on CUDA, the codebook's half: codes of several books, gathers, sums by code, and what goes back
// to x. Twin of ops_codebook.cpp.
#include "checked_cuda.h"

namespace vecbank::ops_cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> residual_quantize(const Tensor& x, const std::vector<Tensor>& books,
                                                     const std::vector<Tensor>& packs, int64_t metric) {
  Place place(x, "x");
  STD_TORCH_CHECK(!books.empty(), "vecbank: residual_quantize needs at least one book");
  STD_TORCH_CHECK(packs.empty() || packs.size() == books.size(), "vecbank: ", packs.size(), " packs for ", books.size(),
                  " books: one each, or none");
  const ScalarType dtype = books[0].scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "vecbank: books must be float32 or float64");
  ResidualProblem p;
  p.metric = metric_of(metric);
  std::vector<Tensor> kept;
  for (size_t s = 0; s < books.size(); ++s) {
    STD_TORCH_CHECK(books[s].dim() == 2 && books[s].scalar_type() == dtype,
                    "vecbank: books must be (M, d) and share a dtype, got ", shape_of(books[s]), " at stage ", s);
    const Pairing pair = pair_up(place, x, books[s]);
    p.queries = pair.x.rows;
    kept.push_back(pair.x.owner);
    kept.push_back(pair.bank.owner);
    kept.push_back(packs.empty() ? pack(books[s], metric, std::nullopt) : packs[s]);
    p.stages.push_back({pair.bank.rows, PackView(place, kept.back(), pair, p.metric).of(0)});
  }
  std::vector<int64_t> shape = sizes_of(x);
  Tensor quantized = place.empty(shape, dtype);
  shape.back() = static_cast<int64_t>(books.size());
  Tensor codes = place.empty(shape, ScalarType::Long), losses = place.empty({shape.back()}, dtype);
  p.codes = static_cast<int64_t*>(codes.mutable_data_ptr());
  p.quantized = quantized.mutable_data_ptr();
  check(cuda::residual_quantize(p, losses.mutable_data_ptr(),
                                place.with_workspace(cuda::residual_workspace(p, place.device()))));
  return {quantized, codes, losses};
}

Tensor product_quantize(const Tensor& x, const Tensor& books, const std::optional<Tensor>& packed) {
  Place place(x, "x");
  place.same(books, "books");
  const RowsView queries = rows_of(x, "x"), rows = rows_of(books, "books");
  STD_TORCH_CHECK(books.dim() == 3 && books.size(1) > 0, "vecbank: books must be (P, K, w), got ", shape_of(books));
  const int64_t parts = books.size(0);
  STD_TORCH_CHECK(queries.rows.width == parts * rows.rows.width, "vecbank: x ", shape_of(x), " must be ",
                  parts * rows.rows.width, " wide, like books ", shape_of(books), " side by side");
  check_mix(queries.rows.dtype, rows.rows.dtype);
  const Pairing pair{queries, rows, parts, books.size(1), {}};
  const Tensor given = packed ? *packed : pack(books, static_cast<int64_t>(Metric::sqeuclidean), std::nullopt);
  const PackView packs(place, given, pair, Metric::sqeuclidean);
  ProductProblem p;
  p.queries = queries.rows;
  for (int64_t b = 0; b < parts; ++b) p.books.push_back({batch_of(rows.rows, parts, b), packs.of(b)});
  std::vector<int64_t> shape = sizes_of(x);
  shape.back() = parts;
  Tensor codes = place.empty(shape, ScalarType::Long);
  p.codes = static_cast<int64_t*>(codes.mutable_data_ptr());
  check(cuda::product_quantize(p, place.with_workspace(cuda::product_workspace(p, place.device()))));
  return codes;
}

Tensor quantize_backward(const Tensor& grad, const Tensor& x, const Tensor& quantized, const Tensor& scale,
                         int64_t estimator) {
  Place place(x, "x");
  place.same(scale, "scale");
  PassBackProblem p;
  p.dtype = dtype_of(x, "x");
  for (const Tensor* t : {&grad, &quantized}) {
    place.same(*t, "grad and quantized");
    STD_TORCH_CHECK(t->scalar_type() == x.scalar_type() && sizes_of(*t) == sizes_of(x),
                    "vecbank: grad, x and quantized must share dtype and shape, got ", shape_of(*t), " for x ",
                    shape_of(x));
  }
  STD_TORCH_CHECK(x.dim() >= 1, "vecbank: x must have at least one dimension, got a scalar");
  STD_TORCH_CHECK(scale.numel() == 1, "vecbank: scale must be a single number, got ", shape_of(scale));
  STD_TORCH_CHECK(estimator >= 0 && estimator <= 2, "vecbank: estimator must be 0, 1 or 2, got ", estimator);
  const Tensor g = dense(grad), source = dense(x), target = dense(quantized);
  Tensor out = place.empty(sizes_of(x), x.scalar_type());
  p.grad = g.const_data_ptr();
  p.x = source.const_data_ptr();
  p.quantized = target.const_data_ptr();
  p.width = x.size(x.dim() - 1);
  p.rows = p.width == 0 ? 0 : x.numel() / p.width;
  p.estimator = static_cast<Estimator>(estimator);
  p.out = out.mutable_data_ptr();
  check(cuda::pass_back(p, scale.const_data_ptr(), dtype_of(scale, "scale"), place.device()));
  return out;
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

}  // namespace
}  // namespace vecbank::ops_cuda

STABLE_TORCH_LIBRARY_IMPL(vecbank, CUDA, m) {
  m.impl("residual_quantize", TORCH_BOX(&vecbank::ops_cuda::residual_quantize));
  m.impl("product_quantize", TORCH_BOX(&vecbank::ops_cuda::product_quantize));
  m.impl("quantize_backward", TORCH_BOX(&vecbank::ops_cuda::quantize_backward));
  m.impl("lookup", TORCH_BOX(&vecbank::ops_cuda::lookup));
  m.impl("lookup_dot", TORCH_BOX(&vecbank::ops_cuda::lookup_dot));
  m.impl("segment_sum", TORCH_BOX(&vecbank::ops_cuda::segment_sum));
}
