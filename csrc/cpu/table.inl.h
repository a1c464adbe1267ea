// Assembles an instruction set's table from its vocabulary.
#pragma once

#include "epilogues.inl.h"
#include "rows.inl.h"

namespace vecbank::cpu {
namespace {

template <int H, int P>
struct Shape {
  static constexpr int height = H, panels = P;
};

// f with the register tile that groups of this many query rows were packed for.
template <class Isa, class F>
void with_shape(int group, F&& f) {
  if (group == 1)
    f(Shape<1, Isa::one_panels>{});
  else if (group == Isa::full)
    f(Shape<Isa::full, Isa::full_panels>{});
  else
    f(Shape<Isa::mid, Isa::mid_panels>{});
}

template <class Isa>
void scan(const ScanArgs<TileArgs<float>>& s) {
  with_shape<Isa>(s.tile.group, [&](auto t) { scan_tiles<Isa, t.height, t.panels>(s); });
}

template <class Isa>
void lead(const LeadArgs<TileArgs<float>>& s) {
  with_shape<Isa>(s.tile.group, [&](auto t) { lead_tiles<Isa, t.height, t.panels>(s); });
}

template <class Isa>
void store_f32(const StoreArgs<float>& s) {
  with_shape<Isa>(s.tile.group, [&](auto t) { store_tiles<typename Isa::F32, t.height, t.panels>(s); });
}

template <class Isa>
constexpr Kernels make_table(const char* name) {
  using Lanes = typename Isa::Lanes;
  Kernels table = {name,
                   {Isa::full, Isa::mid, 1},
                   Isa::full_f64,
                   stats<Lanes>,
                   interleave<Lanes, float>,
                   interleave<Lanes, double>,
                   widen<Lanes>,
                   scan<Isa>,
                   lead<Isa>,
                   find_peaks<typename Isa::F32>,
                   store_f32<Isa>,
                   store_tiles<typename Isa::F64, Isa::full_f64, 1>,
                   score<Lanes>};
  if constexpr (Isa::has_fixed) {
    table.scan_fixed = scan_tiles<Isa, Isa::full, 1, FixedTiles>;
    table.lead_fixed = lead_tiles<Isa, Isa::full, 1, FixedTiles>;
    table.fix_rows = fix_rows<Isa>;
    table.fix_panels = fix_panels<Isa>;
  }
  return table;
}

}  // namespace
}  // namespace vecbank::cpu
