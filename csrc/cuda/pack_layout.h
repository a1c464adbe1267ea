// A Bank's pack on a CUDA device. It holds what each screen reads, so that a search packs nothing but its queries:
//
//   header | centre f64[width] | panels f32 (core/pack.h), of banks of at most kPanelRows rows
//          | operands 16-bit [operand_rows(rows)][pitch] | start, lift, bounds[0], bounds[1]: f32[operand_rows(rows)]
//
// The operands (tensor_cores/operands.h) lie in the slot order of the whole bank's schedule: row i is bank row
// schedule.panel(i / 16) * 16 + i % 16. Their type follows the bank's dtype alone. Panels serve the cascade
// (stages.cu), project and the portable screen; a longer bank is packed for these a piece at a time, as a plain tensor
// is. Every part begins at a multiple of 256 bytes. Kinds and norms are the CPU's alone. Nothing here needs CUDA, since
// fake kernels compute sizes too.
#pragma once

#include "../core/pack.h"
#include "tensor_cores/operands.h"

namespace vecbank::cuda {

constexpr int64_t kPanelRows = 1 << 16;     // the longest codebook, whose pack holds float32 panels too
constexpr int64_t kWidestScreen = 1 << 14;  // a panel of 16 rows is then 1 MiB
constexpr int64_t kPackAlignment = 256;     // of a pack, of its size and of its parts

// 1 if 0 <= n <= limit, otherwise 0. Int may be a symbol (core/pack.h), which cannot be compared.
template <class Int>
Int at_most(const Int& n, int64_t limit) {
  return ((n * 0 + (limit + 1)) / (n + 1) + limit) / (limit + 1);
}

template <class Int>
struct DevicePackParts {
  Int panels_at, operands_at, terms_at, bytes;
};
template <class Int>
DevicePackParts<Int> device_pack_parts(const Int& rows, const Int& width, Metric metric) {
  const auto padded = [](const Int& n, int64_t unit) -> Int { return (n + (unit - 1)) / unit * unit; };
  const Int none = width * 0 + kCentreAt;
  if (refined_only(metric)) return {none, none, none, width * 0 + kPackAlignment};
  const Int panels = (rows + (kPanel - 1)) / kPanel * (width + 3) * (kPanel * 4) * at_most(rows, kPanelRows);
  const Int kept = padded(rows, kOperandTile) * at_most(width, kWidestScreen);
  const Int panels_at = padded(none + width * 8, kPackAlignment);
  const Int operands_at = panels_at + padded(panels, kPackAlignment);
  const Int terms_at = operands_at + kept * padded(width, kOperandDepth) * 2;
  return {panels_at, operands_at, terms_at, terms_at + kept * (4 * kTermBytes)};
}

// As pack_layout() of core/pack.h; there are no kinds and no norms.
inline PackHeader device_pack_layout(int64_t rows, int64_t width, Metric metric, DType dtype, bool biased) {
  PackHeader h = pack_layout(rows, width, metric, dtype, PanelKind::float32, biased);
  const DevicePackParts<int64_t> parts = device_pack_parts(rows, width, metric);
  h.norms_at = h.kinds_at = 0;
  h.panels_at = parts.panels_at;
  h.bytes = parts.bytes;
  return h;
}
inline int64_t device_pack_bytes(int64_t rows, int64_t width, Metric metric) {
  return device_pack_parts(rows, width, metric).bytes;
}

// Of a pack that ends before its operands.
inline int64_t codebook_pack_bytes(int64_t rows, int64_t width, Metric metric) {
  return device_pack_parts(rows, width, metric).operands_at;
}

inline bool packs_panels(const Rows& bank) { return bank.count <= kPanelRows; }
// bf16 has float32's range.
inline DType operand_type(DType bank) { return size_of(bank) == 2 ? bank : DType::bf16; }

// The operands in a pack, or in the workspace of a search.
struct PackedOperands {
  Operand rows;
  BankTerms terms;
  PackedOperands from(int64_t row) const {
    PackedOperands part = *this;
    part.rows.rows += row * rows.pitch;
    for (float** term : {&part.terms.start, &part.terms.lift, &part.terms.bounds[0], &part.terms.bounds[1]})
      if (*term != nullptr) *term += row;
    return part;
  }
};
inline PackedOperands packed_operands(const PackHeader* pack, const Rows& bank, Metric metric) {
  char* base = const_cast<char*>(reinterpret_cast<const char*>(pack));  // written by pack_bank() alone
  const DevicePackParts<int64_t> parts = device_pack_parts(bank.count, bank.width, metric);
  float* terms = reinterpret_cast<float*>(base + parts.terms_at);
  const int64_t rows = operand_rows(bank.count);
  return {{operand_type(bank.dtype), reinterpret_cast<uint16_t*>(base + parts.operands_at), operand_pitch(bank.width)},
          {terms, terms + rows, {terms + 2 * rows, terms + 3 * rows}}};
}

}  // namespace vecbank::cuda
