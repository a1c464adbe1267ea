// Assembles an instruction set's table from its vocabulary.
#pragma once

#include "epilogues.inl.h"
#include "rows.inl.h"

namespace vecbank {
namespace {

template <class Isa>
void scan(const ScanArgs& s) {
  using V = typename Isa::F32;
  if (s.tile.group == 1)
    scan_tiles<V, 1, Isa::one_panels>(s);
  else if (s.tile.group == Isa::full)
    scan_tiles<V, Isa::full, Isa::full_panels>(s);
  else
    scan_tiles<V, Isa::mid, Isa::mid_panels>(s);
}

template <class Isa>
void lead(const LeadArgs& s) {
  using V = typename Isa::F32;
  if (s.tile.group == 1)
    lead_tiles<V, 1, Isa::one_panels>(s);
  else if (s.tile.group == Isa::full)
    lead_tiles<V, Isa::full, Isa::full_panels>(s);
  else
    lead_tiles<V, Isa::mid, Isa::mid_panels>(s);
}

template <class Isa>
void store_f32(const StoreArgs<float>& s) {
  using V = typename Isa::F32;
  if (s.tile.group == 1)
    store_tiles<V, 1, Isa::one_panels>(s);
  else if (s.tile.group == Isa::full)
    store_tiles<V, Isa::full, Isa::full_panels>(s);
  else
    store_tiles<V, Isa::mid, Isa::mid_panels>(s);
}

template <class Isa>
constexpr Kernels make_table(const char* name) {
  using Lanes = typename Isa::Lanes;
  return {name,
          {Isa::full, Isa::mid, 1},
          Isa::full_f64,
          stats<Lanes>,
          interleave<Lanes, float>,
          interleave<Lanes, double>,
          widen<Lanes>,
          scan<Isa>,
          lead<Isa>,
          store_f32<Isa>,
          store_tiles<typename Isa::F64, Isa::full_f64, 1>,
          score<Lanes>};
}

}  // namespace
}  // namespace vecbank
