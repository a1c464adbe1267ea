// torch.ops.vecbank.*: the schemas, the CPU's ops, and the ops that only the CPU has.
#include "device_cpu.h"
#include "ops_attend.h"
#include "ops_bits.h"
#include "ops_codebook.h"
#include "ops_maxsim.h"
#include "ops_search.h"
#include "ops_selection.h"
#include "ops_sparse.h"

namespace vecbank::ops {
namespace {

// Updates in place the pack of a bank whose `rows` have been written to since.
void repack_(Tensor& packed, const Tensor& bank, int64_t metric_code, const Tensor& rows,
             const std::optional<Tensor>& bias, bool stamp) {
  const Metric metric = metric_of(metric_code);
  CpuScope scope(bank, "bank");
  const RowsView view = checked_bank(scope, bank);
  check_bias(scope, bias, bank, metric);
  STD_TORCH_CHECK(rows.dim() == 1, "vecbank: rows must be (R,), got ", shape_of(rows));
  const Tensor written = checked_codes(scope, rows);
  const int64_t* row = codes_in(written);
  for (int64_t i = 0; i < written.numel(); ++i)
    STD_TORCH_CHECK(row[i] >= 0 && row[i] < view.rows.count, "vecbank: rows must lie between 0 and ",
                    view.rows.count - 1, ", got ", row[i]);
  const CpuPacks packs(scope, packed, bank, metric, bias, /*even_if_stale=*/true);
  if (packs.of(view.rows, 0) == nullptr) return;  // no rows at all
  PackHeader* header = static_cast<PackHeader*>(packed.mutable_data_ptr());
  bool fit = written.numel() <= view.rows.count / 16;  // else all rows are packed
  Status status = Status::ok;
  const std::optional<Tensor> wide = widened_bias(scope, bias, bank, metric);
  if (fit) {
    scope.begin(10.0 * static_cast<double>(written.numel() * view.rows.width));
    status = cpu::repack_rows(view.rows, header, row, written.numel(), scope.threads(), biases_in(wide), &fit);
  }
  if (status == Status::ok && !fit) {
    scope.begin(10.0 * static_cast<double>(bank.numel()));
    const PackHeader before = *header;
    status = cpu::pack_bank(view.rows, metric, header, scope.threads(), biases_in(wide), before.panels, before.screen,
                            {before.head});
  }
  if (status != Status::ok) header->magic = 0;  // the pack is half written, and must not be used
  CpuScope::check(status);
  if (stamp) scope.stamp(packed, bank, bias);
}

}  // namespace
}  // namespace vecbank::ops

// topk and nearest ignore `exact`, which stays because schemas only grow.
STABLE_TORCH_LIBRARY(vecbank, m) {
  m.def(
      "pack(Tensor bank, int metric, Tensor? bias=None, bool stamp=False, int use=0, Tensor? rotation=None, int "
      "head=0) -> Tensor");
  m.def("repack_(Tensor(a!) pack, Tensor bank, int metric, Tensor rows, Tensor? bias=None, bool stamp=False) -> ()");
  m.def("project(Tensor x, Tensor bank, Tensor? pack, int metric, ScalarType? out_dtype=None) -> Tensor");
  m.def("exact_scores(Tensor x, Tensor bank, int metric, ScalarType? out_dtype=None, Tensor? indices=None) -> Tensor");
  m.def(
      "project_backward(Tensor grad, Tensor x, Tensor bank, int metric, bool need_x=True, bool need_bank=True, "
      "Tensor? row_least=None) -> (Tensor, Tensor)");
  m.def(
      "project_backward_small(Tensor grad, Tensor x, Tensor bank, int metric, bool need_x=True, bool need_bank=True) "
      "-> (Tensor, Tensor)");
  m.def(
      "topk(Tensor x, Tensor bank, Tensor? pack, int k, int metric, Tensor? mask=None, bool exact=True, "
      "Tensor? bias=None) -> (Tensor values, Tensor indices)");
  m.def("topk_backward(Tensor grad, Tensor x, Tensor bank, Tensor indices, int metric) -> (Tensor, Tensor)");
  m.def(
      "topk_among(Tensor x, Tensor bank, Tensor? pack, int k, int metric, Tensor[] sets, int[] program, Tensor? "
      "bias=None, "
      "bool keys=False, bool worst=False) -> (Tensor values, Tensor indices)");
  m.def(
      "radius(Tensor x, Tensor bank, Tensor? pack, Tensor radii, int metric, Tensor[] sets, int[] program, Tensor? "
      "bias=None) -> (Tensor offsets, Tensor indices, Tensor values)");
  m.def(
      "radius_count(Tensor x, Tensor bank, Tensor? pack, Tensor radii, int metric, Tensor[] sets, int[] program, "
      "Tensor? "
      "bias=None) -> Tensor");
  m.def("merge_topk(Tensor keys, Tensor indices, int k, int metric, bool wide) -> (Tensor values, Tensor indices)");
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
  m.def(
      "attend(Tensor x, Tensor bank, Tensor? values, Tensor beta, Tensor[] sets, int[] program) -> (Tensor out, Tensor "
      "lse)");
  m.def(
      "attend_backward(Tensor? grad, Tensor along, Tensor x, Tensor bank, Tensor? values, Tensor beta, Tensor lse, "
      "Tensor[] sets, int[] program, bool need_x, bool need_bank, bool need_values, bool need_beta) -> (Tensor, "
      "Tensor, "
      "Tensor, Tensor)");
  m.def(
      "hamming_topk(Tensor x, Tensor bank, int bits, int x_planes, int bank_planes, int k, Tensor[] sets, int[] "
      "program) -> (Tensor values, Tensor indices)");
  m.def("hamming_scores(Tensor x, Tensor bank, int bits, int x_planes, int bank_planes) -> Tensor");
  m.def(
      "hamming_radius(Tensor x, Tensor bank, int bits, int x_planes, int bank_planes, Tensor radii, Tensor[] sets, "
      "int[] program) -> (Tensor offsets, Tensor indices, Tensor values)");
  m.def(
      "hamming_radius_count(Tensor x, Tensor bank, int bits, int x_planes, int bank_planes, Tensor radii, Tensor[] "
      "sets, int[] program) -> Tensor");
  m.def("segment_sum(Tensor src, Tensor codes, int num_codes, Tensor? weights) -> Tensor");
  m.def("sparse_invert(Tensor offsets, Tensor ids, int width) -> (Tensor starts, Tensor documents, Tensor order)");
  m.def(
      "sparse_scores(Tensor ids, Tensor query_weights, Tensor starts, Tensor documents, Tensor weights, int count) -> "
      "Tensor");
  m.def(
      "sparse_topk(Tensor ids, Tensor query_weights, Tensor starts, Tensor documents, Tensor weights, int count, int "
      "k, Tensor[] sets, int[] program) -> (Tensor values, Tensor indices)");
  m.def(
      "sparse_backward(Tensor grad, Tensor ids, Tensor query_weights, Tensor starts, Tensor documents, Tensor weights, "
      "int count, Tensor? indices, bool need_queries, bool need_lists) -> (Tensor, Tensor)");
  m.def(
      "maxsim(Tensor queries, Tensor query_offsets, Tensor documents, Tensor offsets, int metric, bool best=False) -> "
      "(Tensor values, Tensor best)");
  m.def(
      "maxsim_pairs(Tensor queries, Tensor query_offsets, Tensor documents, Tensor offsets, Tensor indices, int "
      "metric, bool best=False) -> (Tensor values, Tensor best)");
  m.def(
      "maxsim_topk(Tensor queries, Tensor query_offsets, Tensor documents, Tensor offsets, int k, int metric, "
      "Tensor[] sets, int[] program, Tensor? codes=None, Tensor? facts=None) -> (Tensor values, Tensor indices)");
  m.def("maxsim_pack(Tensor documents, Tensor offsets, int metric) -> (Tensor codes, Tensor facts)");
}

STABLE_TORCH_LIBRARY_IMPL(vecbank, CPU, m) {
  vecbank::ops::register_searches<vecbank::CpuScope>(m);
  vecbank::ops::register_codebook_ops<vecbank::CpuScope>(m);
  vecbank::ops::register_selections(m);
  vecbank::ops::register_sparse(m);
  vecbank::ops::register_bits(m);
  vecbank::ops::register_attend(m);
  vecbank::ops::register_maxsim(m);
  m.impl("repack_", TORCH_BOX(&vecbank::ops::repack_));
  m.impl("project_backward_small", TORCH_BOX(&vecbank::ops::project_backward_small<vecbank::CpuScope>));
}
