// Preparing a bank: choose a centre and a scale from a sample, then write panels, norms and bounds in one pass.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../core/bounds.h"
#include "../core/pack_internal.h"
#include "isa.h"
#include "kernels.h"
#include "reader.h"

namespace vecbank {
namespace {

PackHeader layout(int64_t rows, int64_t width, Metric metric, DType dtype, int64_t element, bool biased) {
  PackHeader h{};
  h.magic = kPackMagic;
  h.rows = rows;
  h.width = width;
  h.metric = static_cast<int32_t>(metric);
  h.dtype = static_cast<int32_t>(dtype);
  h.screenable = width <= kMaxScreenWidth;
  h.biased = biased;
  h.centre_at = round_up_to(sizeof(PackHeader), 64);
  h.norms_at = h.centre_at + round_up_to(width * 8, 64);
  h.panels_at = h.norms_at + (metric == Metric::cosine || biased ? round_up_to(rows * 8, 64) : 0);
  h.bytes = h.panels_at + ceil_div(rows, kPanel) * (width + 3) * kPanel * element;
  return h;
}

double floored(double norm) { return norm < kNormFloor ? kNormFloor : norm; }  // NaN stays

// The refinement's own norms, in its own order: cosine divides by exactly these.
struct NormScratch {
  RowReader reader;
  Buffer<double> wide;
  bool reserve(const Rows& bank) { return reader.reserve(bank, 1) && wide.reserve(round_up_to(bank.width, 8)); }
  double norm(const Rows& bank, int64_t i) {
    const void* row = reader.row(i);
    kernels().widen(row, bank.dtype, bank.width, wide.get());
    ScoreArgs self;
    self.queries = wide.get();
    self.bank = bank;
    self.bank.data = row;
    self.bank.row_stride = 0;
    self.count = 1;
    double squares = 0.0;
    self.out = &squares;
    kernels().score(self);
    return std::sqrt(squares);
  }
};

double median(double* values, int64_t count) {  // the lower one: an element, so that integers stay integers
  if (count == 0) return 0.0;
  std::nth_element(values, values + (count - 1) / 2, values + count);
  return values[(count - 1) / 2];
}

// Centre: the component-wise median of a sample where that makes rows much shorter, else zero. Any centre is right;
// this one makes bounds tight for data far from the origin, and no outlier can drag it.
// Exponent: brings the sample's median norm to about 1.
Status choose_frame(const Rows& bank, Metric metric, double* centre, int32_t* exponent, int32_t* centred) {
  const int64_t d = bank.width;
  std::fill_n(centre, d, 0.0);
  *exponent = 0;
  *centred = 0;
  const int64_t most = std::clamp<int64_t>((1 << 16) / std::max<int64_t>(d, 1), 15, 63);
  const int64_t count = std::min(bank.count, most);
  if (count == 0 || d == 0) return Status::ok;
  Buffer<double> sample, column;
  NormScratch norms;
  const int64_t stride = round_up_to(d, 8);
  if (!sample.reserve(count * stride) || !column.reserve(count) || !norms.reserve(bank)) return Status::out_of_memory;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t i = count == 1 ? 0 : s * (bank.count - 1) / (count - 1);
    double* row = sample.get() + s * stride;
    const double scale = metric == Metric::cosine ? 1.0 / floored(norms.norm(bank, i)) : 1.0;
    kernels().widen(norms.reader.row(i), bank.dtype, d, row);
    for (int64_t k = 0; k < d; ++k) row[k] *= scale;
  }
  for (int64_t k = 0; k < d; ++k) {
    int64_t finite = 0;
    for (int64_t s = 0; s < count; ++s)
      if (std::isfinite(sample[s * stride + k])) column[finite++] = sample[s * stride + k];
    centre[k] = median(column.get(), finite);
    // Cosine's unit rows are rounded anyway; a short centre keeps x . centre cheap to get right.
    if (bank.dtype != DType::f64) centre[k] = static_cast<double>(static_cast<float>(centre[k]));
  }
  const auto median_norm = [&](const double* shift) {
    int64_t finite = 0;
    for (int64_t s = 0; s < count; ++s) {
      double squares = 0.0;
      for (int64_t k = 0; k < d; ++k) {
        const double v = sample[s * stride + k] - (shift != nullptr ? shift[k] : 0.0);
        squares += v * v;
      }
      if (std::isfinite(squares)) column[finite++] = std::sqrt(squares);
    }
    const double middle = median(column.get(), finite);
    return middle > 0.0 || finite == 0 ? middle : *std::max_element(column.get(), column.get() + finite);
  };
  const double plain = median_norm(nullptr), shifted = median_norm(centre);
  *centred = shifted < 0.5 * plain;
  if (!*centred) std::fill_n(centre, d, 0.0);
  const double norm = *centred ? shifted : plain;
  if (norm > 0.0) *exponent = std::clamp(-std::ilogb(norm), -960, 960);
  return Status::ok;
}

template <class T>
void interleave(const void* const* rows, int count, DType dtype, int64_t width, const Affine* maps, T* out) {
  if constexpr (sizeof(T) == 4)
    kernels().interleave_f32(rows, count, kPanel, dtype, width, maps, out);
  else
    kernels().interleave_f64(rows, count, kPanel, dtype, width, maps, out);
}

struct PanelScratch {
  RowReader reader;
  NormScratch norms;
};

// Panel p of the pack; returns how many of its columns are special.
template <class T>
int64_t write_panel(const Rows& bank, const PackHeader& h, double* norms, T* panel, int64_t p, PanelScratch& scratch) {
  const Metric metric = static_cast<Metric>(h.metric);
  const int64_t d = bank.width;
  const int count = static_cast<int>(std::min<int64_t>(kPanel, bank.count - p * kPanel));
  const double post = std::ldexp(1.0, h.exponent);
  const double* centre = h.centred ? pack_centre(&h) : nullptr;
  T *start = panel, *coordinates = panel + kPanel, *bound = coordinates + d * kPanel, *upper = bound + kPanel;
  constexpr T inf = std::numeric_limits<T>::infinity();
  for (int c = 0; c < kPanel; ++c) start[c] = 0, bound[c] = 0, upper[c] = -inf;

  const void* rows[kPanel];
  Affine maps[kPanel];
  bool special[kPanel] = {};
  int64_t specials = 0;
  for (int c = 0; c < count; ++c) {
    const int64_t j = p * kPanel + c;
    rows[c] = scratch.reader.row(j, c);
    maps[c] = {centre, 1.0, post};
    double original = post;  // unit rows
    if (metric == Metric::cosine) {
      norms[j] = floored(scratch.norms.norm(bank, j));
      maps[c].pre = 1.0 / norms[j];
      special[c] = !(norms[j] <= kMaxNorm);
    }
    const double squares = kernels().stats(rows[c], bank.dtype, d, maps[c]).squares;
    const double packed = std::sqrt(squares) * (1.0 + 0x1p-20);
    if (metric != Metric::cosine) {
      original =
          centre == nullptr ? packed : std::sqrt(kernels().stats(rows[c], bank.dtype, d, {nullptr, 1.0, post}).squares);
      special[c] = !(original <= kMaxNorm * std::min(post, 1.0));
    }
    special[c] = special[c] || !(packed <= std::min(kMaxBankNorm, kMaxNorm * post)) ||
                 (h.biased && !(std::fabs(norms[j]) * post <= kMaxBankNorm));
    if (special[c]) {
      upper[c] = inf;
      ++specials;
      continue;
    }
    bound[c] = bank_bound(metric, d, packed, original);
    if (is_distance(metric)) {
      start[c] = static_cast<T>(-0.5 * squares);
      upper[c] = round_up(-0.5 * squares + start_bound(d, squares));
    } else if (h.biased) {
      start[c] = static_cast<T>(norms[j] * post);
      upper[c] = round_up(norms[j] * post + start_bound(d, 2.0 * std::fabs(norms[j] * post)));
    } else {
      upper[c] = 0;
    }
  }
  interleave(rows, count, bank.dtype, d, maps, coordinates);
  if (specials != 0)
    for (int64_t k = 0; k < d; ++k)
      for (int c = 0; c < count; ++c)
        if (special[c]) coordinates[k * kPanel + c] = 0;
  return specials;
}

}  // namespace

template <class T>
Status pack_as(const Rows& bank, Metric metric, void* out, const Parallel& parallel, const double* bias) {
  KeepSubnormals keep;
  const PackHeader planned = layout(bank.count, bank.width, metric, bank.dtype, sizeof(T), bias != nullptr);
  char* base = static_cast<char*>(out);
  std::memset(base, 0, static_cast<size_t>(planned.panels_at));  // gaps too: equal banks have equal packs
  PackHeader& h = *static_cast<PackHeader*>(out);
  h = planned;
  const Status framed =
      choose_frame(bank, metric, reinterpret_cast<double*>(base + h.centre_at), &h.exponent, &h.centred);
  if (framed != Status::ok) return framed;

  std::unique_ptr<PanelScratch[]> scratch(new (std::nothrow) PanelScratch[parallel.workers]);
  if (!scratch) return Status::out_of_memory;
  for (int w = 0; w < parallel.workers; ++w)
    if (!scratch[w].reader.reserve(bank, kPanel) || !scratch[w].norms.reserve(bank)) return Status::out_of_memory;
  double* norms = reinterpret_cast<double*>(base + h.norms_at);
  if (bias != nullptr) std::copy_n(bias, bank.count, norms);
  T* panels = reinterpret_cast<T*>(base + h.panels_at);
  const int64_t count = ceil_div(bank.count, kPanel), stride = (bank.width + 3) * kPanel;
  const int64_t batch = std::max<int64_t>(1, (1 << 16) / stride);  // a task worth handing out
  std::atomic<int64_t> special{0};
  for_each_task(parallel, ceil_div(count, batch), [&](int worker, int64_t task) {
    int64_t found = 0;
    for (int64_t p = task * batch; p < std::min(count, (task + 1) * batch); ++p)
      found += write_panel<T>(bank, h, norms, panels + p * stride, p, scratch[worker]);
    special.fetch_add(found);
  });
  h.special = special;
  return Status::ok;
}
template Status pack_as<float>(const Rows&, Metric, void*, const Parallel&, const double*);
template Status pack_as<double>(const Rows&, Metric, void*, const Parallel&, const double*);

int64_t pack_bytes_as(int64_t rows, int64_t width, Metric metric, int64_t element, bool biased) {
  return layout(rows, width, metric, DType::f32, element, biased).bytes;
}

int64_t pack_bytes(int64_t rows, int64_t width, Metric metric, bool biased) {
  return pack_bytes_as(rows, width, metric, 4, biased);
}

Status pack_bank(const Rows& bank, Metric metric, void* out, const Parallel& parallel, const double* bias) {
  return pack_as<float>(bank, metric, out, parallel, bias);
}

const PackHeader* check_pack(const void* pack, int64_t bytes, const Rows& bank, Metric metric, bool biased) {
  if (pack == nullptr || bytes < static_cast<int64_t>(sizeof(PackHeader)) ||
      reinterpret_cast<uintptr_t>(pack) % alignof(PackHeader) != 0)
    return nullptr;
  const PackHeader* h = static_cast<const PackHeader*>(pack);
  PackHeader expected = layout(bank.count, bank.width, metric, bank.dtype, 4, biased);
  expected.exponent = h->exponent;
  expected.centred = h->centred;
  expected.special = h->special;
  if (is_distance(metric) && is_distance(static_cast<Metric>(h->metric)))
    expected.metric = h->metric;  // l2 and sqeuclidean share a pack
  const bool same = std::memcmp(&expected, h, sizeof expected) == 0;
  return same && bytes >= h->bytes && std::abs(h->exponent) <= 960 ? h : nullptr;
}

}  // namespace vecbank
