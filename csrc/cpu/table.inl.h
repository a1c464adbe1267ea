// Assembles an instruction set's table from its vocabulary.
#pragma once

#include <type_traits>

// The screens come first: what becomes of their tiles is written in terms of their bound_tiles().
#include "search/screens/int16.inl.h"
#include "search/screens/int8.inl.h"

#include "attend.inl.h"
#include "bits.inl.h"
#include "direct.inl.h"
#include "epilogues.inl.h"
#include "keys.inl.h"
#include "maxsim.inl.h"
#include "scores.inl.h"
#include "slopes.inl.h"
#include "sums.inl.h"

namespace vecbank::cpu {
namespace {

template <int H, int P>
struct Shape {
  static constexpr int height = H, panels = P;
};

// Calls f with the register tile that groups of this many query rows were packed for.
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
  using V = typename Isa::F32;
  with_shape<Isa>(s.tile.group, [&](auto t) { scan_tiles<V, V, t.height, t.panels>(s); });
}

template <class Isa>
void argmax(const ArgmaxArgs<TileArgs<float>>& s) {
  using V = typename Isa::F32;
  with_shape<Isa>(s.tile.group, [&](auto t) { argmax_tiles<V, V, t.height, t.panels>(s); });
}

template <class Isa>
void store_f32(const StoreArgs<float>& s) {
  using V = typename Isa::F32;
  with_shape<Isa>(s.tile.group, [&](auto t) { store_tiles<V, V, false, t.height, t.panels>(s); });
}

template <class Isa, class Product>
void store_raw(const StoreArgs<float>& s) {
  with_shape<Isa>(s.tile.group, [&](auto t) { store_tiles<typename Isa::F32, Product, true, t.height, t.panels>(s); });
}

// Null where multiply_add() rounds twice: its sums would be less accurate than those of a library.
template <class Isa>
constexpr RawKernels raw_kernels() {
  using V = typename Isa::F32;
  RawKernels kernels;
  if constexpr (Isa::fused) {
    kernels.product = store_raw<Isa, V>;
    kernels.square = store_raw<Isa, Gaps<V>>;
  }
  if constexpr (!std::is_void_v<typename Isa::BFloat16Pairs>)
    kernels.pairs = store_raw<Isa, typename Isa::BFloat16Tile>;
  return kernels;
}

template <class Isa, class Tiles>
void scan_int8(const ScanArgs<Tiles>& s) {
  with_shape<Isa>(s.tile.group,
                  [&](auto t) { scan_tiles<typename Isa::F32, typename Isa::Int8, t.height, t.panels>(s); });
}

template <class Isa, class Tiles>
void argmax_int8(const ArgmaxArgs<Tiles>& s) {
  with_shape<Isa>(s.tile.group,
                  [&](auto t) { argmax_tiles<typename Isa::F32, typename Isa::Int8, t.height, t.panels>(s); });
}

template <class Isa>
constexpr int8::Kernels int8_kernels() {
  using V = typename Isa::F32;
  using Int8 = typename Isa::Int8;
  return {{scan_int8<Isa, int8::Tiles>, argmax_int8<Isa, int8::Tiles>},
          {scan_int8<Isa, int8::StartlessTiles>, argmax_int8<Isa, int8::StartlessTiles>},
          {scan_int8<Isa, int8::HeadTiles>, argmax_int8<Isa, int8::HeadTiles>},
          {scan_int8<Isa, int8::StartlessHeadTiles>, argmax_int8<Isa, int8::StartlessHeadTiles>},
          Int8::bank_code,
          Int8::product_limit,
          Int8::least_rows,
          quantize_queries<V, Int8>,
          quantize_panel<V, Int8>,
          rotate<V>,
          start_sums<V, Int8>,
          tail_product<Int8>};
}

// The int16 screen's loops; all null where the instruction set has no vocabulary for products of pairs.
template <class Isa>
constexpr int16::Kernels int16_kernels() {
  using V = typename Isa::F32;
  using Int16 = typename Isa::Int16;
  int16::Kernels kernels;
  if constexpr (!std::is_void_v<Int16>) {
    kernels.scan = scan_tiles<V, Int16, Isa::full, Int16::panels, int16::Tiles>;
    kernels.argmax = argmax_tiles<V, Int16, Isa::full, Int16::panels, int16::Tiles>;
    kernels.quantize_queries = quantize_queries<V, Int16>;
    kernels.quantize_panels = quantize_panels<V, Int16>;
  }
  return kernels;
}

// Null where multiply_add() rounds twice: its sums would be less accurate than those of a library.
template <class Isa>
constexpr auto direct_f32() {
  bool (*kernel)(const DirectArgs&) = nullptr;
  if constexpr (Isa::fused) kernel = direct<typename Isa::F32>;
  return kernel;
}

template <class Isa>
constexpr auto direct_bf16() {
  bool (*kernel)(const DirectArgs&) = nullptr;
  if constexpr (!std::is_void_v<typename Isa::BFloat16Pairs>)
    kernel = direct_queries<typename Isa::BFloat16Pairs, Term::product, BFloat16, BFloat16>;
  return kernel;
}

template <class Isa>
constexpr Kernels make_table(const char* name) {
  using Lanes = typename Isa::Lanes;
  static_assert(kAnyTileRows % Isa::full == 0);
  return {name,
          {Isa::full, Isa::mid, 1},
          Isa::full_f64,
          stats<Lanes>,
          interleave<Lanes, float>,
          interleave<Lanes, double>,
          widen<Lanes>,
          floats_of<Lanes>,
          reduce_argmax<typename Isa::F32>,
          store_f32<Isa>,
          store_tiles<typename Isa::F64, typename Isa::F64, false, Isa::full_f64, 1>,
          raw_kernels<Isa>(),
          score<Lanes>,
          finish_scores<Lanes>,
          first_best<Lanes>,
          pack_bools<Isa>,
          direct_f32<Isa>(),
          direct_bf16<Isa>(),
          narrow_floats,
          squares<Lanes>,
          line_squares<Lanes>,
          norm_scales_of<Lanes>,
          {scan<Isa>, argmax<Isa>},
          int16_kernels<Isa>(),
          int8_kernels<Isa>(),
          gather,
          narrow_row<Lanes>,
          add_bag<Lanes, (Isa::full > 8 ? 16 : 4)>,  // sums of a bag in as many registers as there are
          add_block<Lanes>,
          slopes<typename Isa::F32>,
          end_slopes<typename Isa::F32>,
          bit_kernels<Isa>(),
          attend_kernels<Isa>(),
          maxsim_kernels<Isa>(),
          divide_by_roots};
}

}  // namespace
}  // namespace vecbank::cpu
