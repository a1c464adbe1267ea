#include "rotation.h"

#include <algorithm>
#include <cmath>

#include "../core/bounds.h"
#include "isa.h"
#include "kernels.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kChunk = 2 * kAnyTileRows;  // rows that are turned at a time: the matrix is read once for each chunk

}  // namespace

void pack_rotation(const float* matrix, int64_t width, float* panels) {
  const int64_t count = ceil_div(width, kPanel);
  std::fill_n(panels, count * (width + 1) * kPanel, 0.0f);
  for (int64_t i = 0; i < width; ++i) {
    float* line = panels + i / kPanel * (width + 1) * kPanel + kPanel + i % kPanel;
    for (int64_t k = 0; k < width; ++k) line[k * kPanel] = matrix[i * width + k];
  }
}

// With Q^T Q = I + D, and turned rows Q x + t_x whose |t_x| <= g |x|: the products differ by at most
// (|D| + 2 g |Q| + g^2) |x| |b|. Q is square, so D has the spectrum of Q Q^T - I, whose Frobenius norm is measured in
// float64. A turned coordinate is a sum in runs of 32 and of the runs (mainloop.inl.h), so it is off by at most
// gamma(32 + d / 32 + 4) times sum |Q_ik| |x_k|, and the norm of these sums is at most |Q|_F |x|.
Status turn_error_of(const float* matrix, int64_t width, const Parallel& parallel, double* out) {
  constexpr int64_t kTogether = 4;
  struct Worker {
    Buffer<double> rows, products;
    double defect = 0.0;
  };
  const int64_t stride = round_up_to(width, 8);
  PerWorker<Worker> workers(parallel.workers);
  if (!workers.each(
          [&](Worker& w) { return w.rows.reserve(kTogether * stride) && w.products.reserve(kTogether * width); }))
    return Status::out_of_memory;
  const Rows all{matrix, DType::f32, width, width, width, 1};
  const Status done = for_each_task(parallel, ceil_div(width, kTogether), [&](int worker, int64_t task) {
    Worker& w = workers[worker];
    const int64_t first = task * kTogether, count = std::min(kTogether, width - first);
    for (int64_t i = 0; i < count; ++i)
      kernels().widen(all.row(first + i), DType::f32, width, w.rows.get() + i * stride);
    ScoreArgs a;
    a.queries = w.rows.get();
    a.query_stride = stride;
    a.query_count = static_cast<int>(count);
    a.bank = all;
    a.first = first;  // the matrix of products is symmetric
    a.count = width - first;
    a.out = w.products.get();
    a.out_stride = a.count;
    kernels().score(a);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = i; j < a.count; ++j) {
        const double off = w.products[i * a.count + j] - (i == j ? 1.0 : 0.0);
        w.defect += (i == j ? 1.0 : 2.0) * off * off;
      }
  });
  if (done != Status::ok) return done;
  double squares = 0.0;
  for (const Worker& w : workers) squares += w.defect;
  const double d = static_cast<double>(width), defect = std::sqrt(squares) * (1.0 + 0x1p-20) + d * 0x1p-50;
  const double steps = 32.0 + std::ceil(d / 32.0) + 4.0;
  const double each = steps * 0x1p-24 * 1.01 * std::sqrt(d) * (1.0 + defect);
  *out = (defect + 2.0 * each * (1.0 + defect) + each * each) * (1.0 + 0x1p-20);
  return Status::ok;
}

bool Rotation::reserve() {
  if (!ones_.reserve(kChunk + kPanel) || !zeros_.reserve(kChunk + kPanel)) return false;
  std::fill_n(ones_.get(), kChunk + kPanel, 1.0f);
  std::fill_n(zeros_.get(), kChunk + kPanel, 0.0f);
  return true;
}

void Rotation::turn(const float* panels, int64_t width, const float* groups, int64_t stride, int group, int64_t rows,
                    float* out) const {
  const int64_t chunk = kChunk / group * group;
  for (int64_t at = 0; at < rows; at += chunk) {
    StoreArgs<float> a;
    a.tile.queries = groups + at / group * stride;
    a.tile.query_stride = stride;
    a.tile.group = group;
    a.tile.rows = std::min(chunk, rows - at);
    a.tile.panels = panels;
    a.tile.panel_stride = (width + 1) * kPanel;
    a.tile.width = width;
    a.tile.columns = stride_of(width);
    a.scale = ones_.get();
    a.term = zeros_.get();
    a.out = out + at * stride_of(width);
    a.out_stride = stride_of(width);
    kernels().store_f32(a);
  }
}

}  // namespace vecbank::cpu
