// The packed bank, which a Bank prepares once and the kernels then stream.
//
//   header | stamp | centre f64[width] | norms f64[rows] (cosine) | kinds u8[rows]
//          | panels f32[ceil(rows/16)][width + 3][16]
//
// The pack of a metric without a screen is a header and a stamp alone. A pack for searches alone has the codes of the
// int8 screen instead of float32 panels (cpu/search/screens/int8.h). Where its rows are rotated so that few coordinates
// hold most of their lengths, it may have a head (cpu/search/screens/head.h):
//
//   ... | kinds | rotation f32[ceil(width/16)][width + 1][16] | panels of the head's codes | tails u8[rows][tail_bytes]
// A panel holds 16 bank rows, transposed, so that one vector load reads the same coordinate of neighbouring rows:
//   line 0            what a dense product's accumulators start from (-|b|^2/2 for distances, else 0 or the bias)
//   lines 1..width    coordinates of (b * unit - centre) * 2^exponent, rounded once to float32
//   line width + 1    how far one float32 score can be off, per unit of query norm (see bounds.h)
//   line width + 2    what a screen's accumulators start from: line 0 plus its own error bound
// A column whose screen starts at -inf never survives the screen; padding starts there. A column whose screen starts at
// +inf always survives, so float64 refinement scores it. A row's kind says whether it starts at either, and why.
#pragma once

#include "bounds.h"

namespace vecbank {

constexpr int kPanel = 16;
constexpr int64_t kCentreAt = 256;         // after the header and the stamp
constexpr float kMostTurnError = 0x1p-5f;  // PackHeader::turn_error: a matrix that is less orthogonal is refused

// What panels hold: numbers, which serve every op, or 8-bit codes, which serve searches.
enum class PanelKind : int32_t { float32, float64, int8 };

// The screen that a search of this pack begins with.
enum class ScreenChoice : int16_t { automatic, float32, int16, int8 };

// A head for int8 panels (cpu/search/screens/head.h): its width, at least 1 and below the bank's, and the rotation,
// [bank width][bank width]. Without a rotation that of the pack stays, which has a head of this width.
struct HeadChoice {
  int64_t width = 0;  // 0: no head
  const float* rotation = nullptr;
};

enum class RowKind : uint8_t {
  ordinary,
  fallback,    // float32 cannot represent the row: refined for every query
  never,       // the row holds a NaN, so it is never a result: not screened
  far,         // so far that the row is the worst for every screened query: not screened
  negligible,  // the row is zero, or so small that float64 distances seldom differ: only the first is screened
};

struct PackHeader {
  uint64_t magic;
  int64_t rows, width;
  int32_t metric, dtype;
  int32_t exponent;                      // power of two that every coordinate was scaled by
  int32_t centred;                       // 0: centre is all zero
  int32_t screenable;                    // 0: no screen, or too wide for the float32 bound
  int32_t biased;                        // dot products add a bias per row, as an encoder's do
  int64_t fallbacks;                     // fallback rows
  int64_t exceptional, far, negligible;  // rows of any kind but ordinary; of these two kinds
  int64_t first_negligible;              // the negligible row that is screened for all; -1: none
  double negligible_size;                // the largest magnitude of negligible rows' coordinates
  int64_t rewritten;                     // rows written again since the frame was chosen
  PanelKind panels;
  int8_t bank_code;  // the largest code of int8 panels
  int8_t rotated;    // int8 panels code rotated rows
  ScreenChoice screen;
  int32_t head;      // int8 panels: how many coordinates they hold, of rows that the pack's rotation has turned; 0: all
  float turn_error;  // how far two turned rows' product can be from that of the rows, in proportion to both norms
  int64_t centre_at, norms_at, kinds_at, rotation_at, panels_at, tails_at, bytes;  // offsets, and the whole size
};

// Int8 panels: groups of four codes, and lines of what a screen needs besides. Dot products without a bias have no line
// of starts.
constexpr int64_t kCodeGroup = 4;
template <class Int>
Int code_groups(const Int& width) {
  return (width + (kCodeGroup - 1)) / kCodeGroup;
}
inline int64_t code_lines(Metric metric, bool biased, int64_t head) {
  return head > 0 ? 5 : record(metric).term == Term::square || biased ? 4 : 3;
}

template <class Int>
Int panel_bytes(PanelKind kind, const Int& width, Metric metric, bool biased, int64_t head = 0) {
  const Int coded = head > 0 ? width * 0 + head : width;
  if (kind == PanelKind::int8) return (code_groups(coded) + code_lines(metric, biased, head)) * (kPanel * 4);
  return (width + 3) * (kPanel * (kind == PanelKind::float64 ? 8 : 4));
}

// The rest of a row that has a head: its codes, and four numbers (cpu/search/screens/head.h).
constexpr int64_t kTailFacts = 16;
template <class Int>
Int tail_bytes(const Int& width, int64_t head) {
  return (width + (15 - head)) / 16 * 16 + kTailFacts;
}
template <class Int>
Int rotation_bytes(const Int& width) {
  return (width + (kPanel - 1)) / kPanel * (width + 1) * (kPanel * 4);
}

// Where the parts of a pack begin, and its size, which is a multiple of 64. Int is int64_t, or a number with +, * and a
// division that rounds down: the sizes of a traced program are symbolic.
template <class Int>
struct PackParts {
  Int norms_at, kinds_at, rotation_at, panels_at, tails_at, bytes;
};
template <class Int>
PackParts<Int> pack_parts(const Int& rows, const Int& width, Metric metric, bool biased, PanelKind kind,
                          int64_t head = 0) {
  const auto padded = [](const Int& bytes) -> Int { return (bytes + 63) / 64 * 64; };
  const Int none = width * 0 + kCentreAt;
  if (refined_only(metric)) return {none, none, none, none, none, none};
  const bool normed = record(metric).unit_rows;
  const Int norms_at = padded(width * 8) + kCentreAt;
  const Int kinds_at = normed ? norms_at + padded(rows * 8) : norms_at;
  const Int rotation_at = kinds_at + padded(rows);
  const Int panels_at = head > 0 ? rotation_at + rotation_bytes(width) : rotation_at;
  const Int tails_at = panels_at + (rows + (kPanel - 1)) / kPanel * panel_bytes(kind, width, metric, biased, head);
  const Int bytes = head > 0 ? tails_at + padded(rows * tail_bytes(width, head)) : tails_at;
  return {norms_at, kinds_at, rotation_at, panels_at, tails_at, bytes};
}

// The tensor that a pack was made from, as it was then. The stamp lies after the header. A stamp of zeros is not
// checked: the caller is responsible for the pack. Any other stamp is compared with the tensor that the pack is used
// with, and a stale pack is not used.
struct PackStamp {
  uint64_t data;    // where the bank's rows lie
  uint64_t layout;  // a hash of their type, sizes and strides
  int64_t version;  // how often the tensor had been written to
  uint64_t bias;    // the same for the bias
  int64_t bias_version;
};
static_assert(sizeof(PackHeader) + sizeof(PackStamp) <= kCentreAt);

constexpr uint64_t kPackMagic = 0x314b4e4142434556ull;  // "VECBANK1", little-endian

// The header of a pack before anything is known about the rows: where its parts lie, and its size.
inline PackHeader pack_layout(int64_t rows, int64_t width, Metric metric, DType dtype, PanelKind kind, bool biased,
                              int64_t head = 0) {
  PackHeader h{};
  h.magic = kPackMagic;
  h.rows = rows;
  h.width = width;
  h.metric = static_cast<int32_t>(metric);
  h.dtype = static_cast<int32_t>(dtype);
  h.screenable = width <= kMaxScreenWidth && !refined_only(metric);
  h.biased = biased;
  h.panels = kind;
  h.first_negligible = -1;
  h.head = static_cast<int32_t>(head);
  const PackParts<int64_t> parts = pack_parts(rows, width, metric, biased, kind, head);
  h.centre_at = kCentreAt;
  h.norms_at = parts.norms_at;
  h.kinds_at = parts.kinds_at;
  h.rotation_at = parts.rotation_at;
  h.panels_at = parts.panels_at;
  h.tails_at = parts.tails_at;
  h.bytes = parts.bytes;
  return h;
}

inline int64_t pack_bytes(int64_t rows, int64_t width, Metric metric, bool biased = false,
                          PanelKind kind = PanelKind::float32, int64_t head = 0) {
  return pack_parts(rows, width, metric, biased, kind, head).bytes;
}

// Whether `h`, which may hold arbitrary bytes, is the header of a pack of the bank that `expected` was laid out for.
// The two metrics may differ where they share a pack.
VB_INLINE bool is_pack_of(const PackHeader& h, const PackHeader& expected) {
  const bool kin = h.metric >= 0 && h.metric < kMetrics &&
                   share_a_pack(static_cast<Metric>(h.metric), static_cast<Metric>(expected.metric));
  const bool same = h.magic == expected.magic && h.rows == expected.rows && h.width == expected.width &&
                    h.dtype == expected.dtype && h.screenable == expected.screenable && h.biased == expected.biased &&
                    h.panels == expected.panels && h.head == expected.head;
  const bool placed = h.centre_at == expected.centre_at && h.norms_at == expected.norms_at &&
                      h.kinds_at == expected.kinds_at && h.rotation_at == expected.rotation_at &&
                      h.panels_at == expected.panels_at && h.tails_at == expected.tails_at && h.bytes == expected.bytes;
  const bool coded = h.panels != PanelKind::int8 || h.bank_code >= 1;
  const bool sound = coded && h.exponent >= -960 && h.exponent <= 960 && h.first_negligible >= -1 &&
                     h.first_negligible < h.rows && (h.negligible > 0) == (h.first_negligible >= 0) &&
                     h.turn_error >= 0.0f && h.turn_error <= kMostTurnError;
  return kin && same && placed && sound;
}

template <class T>
struct Panels {  // a view; lines are kPanel wide
  const T* data = nullptr;
  int64_t rows = 0, width = 0;
  int64_t lines() const { return width + 3; }
  int64_t stride() const { return lines() * kPanel; }
  int64_t count() const { return (rows + kPanel - 1) / kPanel; }
  const T* panel(int64_t p) const { return data + p * stride(); }
  const T* line(int64_t p, int64_t l) const { return panel(p) + l * kPanel; }
};

VB_INLINE const double* pack_centre(const PackHeader* h) {
  return reinterpret_cast<const double*>(reinterpret_cast<const char*>(h) + h->centre_at);
}
VB_INLINE const double* pack_norms(const PackHeader* h) {
  return reinterpret_cast<const double*>(reinterpret_cast<const char*>(h) + h->norms_at);
}
VB_INLINE const RowKind* pack_kinds(const PackHeader* h) {
  return reinterpret_cast<const RowKind*>(reinterpret_cast<const char*>(h) + h->kinds_at);
}
VB_INLINE Panels<float> pack_panels(const PackHeader* h) {
  return {reinterpret_cast<const float*>(reinterpret_cast<const char*>(h) + h->panels_at), h->rows, h->width};
}

}  // namespace vecbank
