// Packs of either precision. float32 panels screen; float64 panels exist only while a float64 product runs.
#pragma once

#include "../core/pack.h"
#include "parallel.h"

namespace vecbank::cpu {

template <class T>
Status pack_as(const Rows& bank, Metric metric, void* out, const Parallel& parallel, const double* bias = nullptr);
inline int64_t pack_bytes_as(int64_t rows, int64_t width, Metric metric, int64_t element, bool biased) {
  return pack_layout(rows, width, metric, DType::f32, element, biased).bytes;
}

template <class T>
Panels<T> panels_as(const PackHeader* h) {
  return {reinterpret_cast<const T*>(reinterpret_cast<const char*>(h) + h->panels_at), h->rows, h->width};
}

}  // namespace vecbank::cpu
