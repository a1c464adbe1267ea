// The float32 screen's loop. A panel's bound line is multiplied as one more coordinate, so a tile of products is
// already a tile of upper bounds. The proof is in core/bounds.h.
#pragma once

#include "../../mainloop.inl.h"

namespace vecbank::cpu {
namespace {

// epilogue(tile of float32 upper bounds, row, panel, valid panels). Every screen has such a function.
template <class V, class Product, int Height, int PanelCount, class Epilogue>
VB_INLINE void bound_tiles(const TileArgs<float>& t, Epilogue&& epilogue) {
  for_each_tile<Product, Height, PanelCount, false>(t, 1, t.width + 1, epilogue);
}

}  // namespace
}  // namespace vecbank::cpu
