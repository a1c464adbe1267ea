// The screen of a head: the int8 screen (int8.h) over the first coordinates of turned rows, which hold most of their
// lengths, and a bound for the rest. What it leaves sees the rest in 8 bits, before float64. This file has the proof
// and the layout, head.inl.h the loops, head.cpp the driver, and head_coder.h writes the codes.
//
// Q is a float32 matrix, nearly orthogonal, h the head's width. A packed query x and a packed row b become y = Q x and
// c = Q b, as computed, with
//     |<y, c> - <x, b>| <= rho |x| |b|        (PackHeader::turn_error; rotation.cpp has the proof)
// and r_b of core/bounds.h covers packing and refinement, in proportion to |x|. With other = r_b + rho |b|, where |b|
// is taken from |c| (|b| <= (1 + 2 rho) |c|), the product part of the refined score is at most
//     <y_h, c_h> + |y_t| |c_t| + |x| other
//         <= <y_h, c_h> + sqrt(|y_t|^2 + kMixed |x|^2) sqrt(|c_t|^2 + other^2 / kMixed),
// by Cauchy and Schwarz for (|y_t|, sqrt(kMixed) |x|) and (|c_t|, other / sqrt(kMixed)).
// <y_h, c_h> is bounded as the int8 screen's product is, without r_b. The last product is one number of the query times
// one of the row, in float32; both are stored larger by kTailRoom, which covers its rounding.
//
// Survivors: with y_t = (xi + e_x) / scale, in 16 bits, and c_t = (beta + e_b) step, in 8,
//     scale <y_t, c_t> / step = <xi, beta> + <xi, e_b> + <e_x, c_t / step>,
// and the last two are at most |xi| |e_b| + |e_x| |c_t / step|, measured for each row and each query. The lower bound
// lies below the upper one by twice the sum of the head's margin, this margin, and |x| other.
//
// Products that underflow while rows are turned are off by sqrt(d) times what QuerySlack allows for one row, so the
// slack of a query is multiplied by 1 + sqrt(d) (ScreenQueries::pack()).
#pragma once

#include "int8.h"

namespace vecbank::cpu::head {

constexpr int64_t kLeastWidth = 16;          // of a head that is chosen; any width of at least 1 works
constexpr double kMixed = 0x1p-12;           // any positive number is correct; |x| other is small beside the tails
constexpr double kTailRoom = 1.0 + 0x1p-20;  // three roundings of 2^-24
constexpr double kLeastPart = 0x1p-8;        // a query's head counts as at least this part of its length
constexpr double kSumLimit = 0x1p30;         // of |xi| |beta|, so that int32 sums cannot overflow

// A row of the tails: codes, padded with zeros to a multiple of 16, then these.
struct TailFacts {
  float step, error, norm;  // |e_b| and |c_t / step|, both rounded up
  float other;
};
static_assert(sizeof(TailFacts) == kTailFacts);

struct Tails {
  const int8_t* data = nullptr;
  int64_t width = 0, stride = 0;

  Tails() = default;
  explicit Tails(const PackHeader& h)
      : data(reinterpret_cast<const int8_t*>(&h) + h.tails_at),
        width(h.width - h.head),
        stride(tail_bytes(h.width, h.head)) {}
  const int8_t* codes(int64_t row) const { return data + row * stride; }
  TailFacts facts(int64_t row) const {
    TailFacts f;
    __builtin_memcpy(&f, codes(row) + (stride - kTailFacts), sizeof f);
    return f;
  }
};

// Elements of a query's tail: whole vectors of any instruction set, the last ones zero.
inline int64_t query_tail(int64_t width) { return round_up_to(width, 32); }

}  // namespace vecbank::cpu::head
