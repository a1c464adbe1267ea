// Packs of every kind. Float64 panels exist only while a float64 product runs.
#pragma once

#include <cstring>

#include "../core/pack.h"
#include "parallel.h"

namespace vecbank::cpu {

template <class T>
Status pack_as(const Rows& bank, Metric metric, void* out, const Parallel& parallel, const double* bias, PanelKind kind,
               ScreenChoice screen = ScreenChoice::automatic, HeadChoice head = {});

template <class T>
Panels<T> panels_as(const PackHeader* h) {
  return {reinterpret_cast<const T*>(reinterpret_cast<const char*>(h) + h->panels_at), h->rows, h->width};
}

// The first negligible row from `from` on; -1: there is none.
inline int64_t next_negligible(const PackHeader* h, int64_t from) {
  const RowKind* kinds = pack_kinds(h);
  const void* found = from >= h->rows ? nullptr
                                      : std::memchr(kinds + from, static_cast<int>(RowKind::negligible),
                                                    static_cast<size_t>(h->rows - from));
  return found == nullptr ? -1 : static_cast<const RowKind*>(found) - kinds;
}

}  // namespace vecbank::cpu
