// Packs of either precision. Screens use float32 panels; float64 panels exist only while a float64 product runs.
#pragma once

#include "../core/pack.h"
#include "parallel.h"

namespace vecbank::cpu {

template <class T>
Status pack_as(const Rows& bank, Metric metric, void* out, const Parallel& parallel, const double* bias = nullptr);

template <class T>
Panels<T> panels_as(const PackHeader* h) {
  return {reinterpret_cast<const T*>(reinterpret_cast<const char*>(h) + h->panels_at), h->rows, h->width};
}

}  // namespace vecbank::cpu
