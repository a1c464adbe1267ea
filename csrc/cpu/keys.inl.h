// What becomes of the raw scores of a query, eight at a time.
#pragma once

#include "rows.inl.h"

namespace vecbank::cpu {
namespace {

// Raw scores become keys, or keys values, in the steps of key_of() and value_of().
template <class Lanes>
void finish_scores(const FinishArgs& a) {
  for (int64_t i = 0; i < a.count; i += 8) {
    Lanes score = Lanes::load(a.scores + i);
    if (a.norms != nullptr) score = score / (Lanes::fill(a.query_norm) * load_some<Lanes>(a.norms + i, a.count - i));
    if (a.bias != nullptr) score = score + load_some<Lanes>(a.bias + i, a.count - i);
    if (a.negate) score = score * Lanes::fill(-1.0);
    if (a.root) score = score.root();
    score.store(a.scores + i);
  }
}

// Without a branch on what the keys are: a wrong guess would cost more than all of it.
template <class Lanes>
int64_t first_best(const double* keys, int64_t count, double least) {
  if (count <= 4) {
    double best = least;
    int64_t at = -1;
    for (int64_t i = 0; i < count; ++i) {
      at = keys[i] > best ? i : at;
      best = keys[i] > best ? keys[i] : best;
    }
    return at;
  }
  constexpr double first[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  Lanes most = Lanes::fill(least), place = Lanes::fill(HUGE_VAL), here = Lanes::load(first);
  const auto look = [&](const Lanes& key) __attribute__((always_inline)) {
    place = Lanes::if_greater(key, most, here, place);
    most = Lanes::if_greater(key, most, key, most);
    here = here + Lanes::fill(8.0);
  };
  for (int64_t i = 0; i < count; i += 8) {
    const Lanes key = Lanes::load(keys + i);
    look(count - i >= 8 ? key : Lanes::if_greater(Lanes::fill(static_cast<double>(count)), here, key, most));
  }
  const double best = most.largest();
  if (!(best > least)) return -1;
  const Lanes others = Lanes::if_greater(Lanes::fill(best), most, Lanes::fill(HUGE_VAL), place);
  return static_cast<int64_t>(-(Lanes::fill(0.0) - others).largest());
}

// Several sums advance together, as each waits for its own last addition: of even and odd coordinates.
template <class Lanes, int Halves>
VB_INLINE void line_squares_of(const float* lines, int64_t width, int group, double* out) {
  Lanes sum[2][Halves];
  for (auto& halves : sum)
    for (Lanes& half : halves) half = Lanes::fill(0.0);
  const auto add = [&](int64_t k, Lanes* halves) __attribute__((always_inline)) {
    for (int h = 0; h < Halves; ++h) {
      const Lanes v = Lanes::load(lines + k * group + 8 * h);
      halves[h] = Lanes::plus_exact(halves[h], v, v);
    }
  };
  int64_t k = 0;
  for (; k + 2 <= width; k += 2) add(k, sum[0]), add(k + 1, sum[1]);
  if (k < width) add(k, sum[0]);
  for (int h = 0; h < Halves; ++h) (sum[0][h] + sum[1][h]).store(out + 8 * h);
}

template <class Lanes>
void line_squares(const float* lines, int64_t width, int group, double* out) {
  for (int c = 0; c < group; c += 16)
    group - c > 8 ? line_squares_of<Lanes, 2>(lines + c, width, group, out + c)
                  : line_squares_of<Lanes, 1>(lines + c, width, group, out + c);
}

template <class Lanes>
void norm_scales_of(const double* squares, int64_t count, float* scales) {
  constexpr double kShortest = 1e-10, kLongest = 1e15;  // products of such norms stay far from the ends of float32
  const Lanes none = Lanes::fill(__builtin_nan("")), zero = Lanes::fill(0.0), floor = Lanes::fill(kNormFloor);
  const auto scale_of = [&](int64_t i) __attribute__((always_inline)) {
    const Lanes norm = Lanes::load(squares + i).root();
    Lanes scale = Lanes::fill(1.0) / Lanes::if_greater(floor, norm, floor, norm);
    scale = Lanes::if_greater(Lanes::fill(kShortest), norm, none, scale);
    scale = Lanes::if_greater(norm, Lanes::fill(kLongest), none, scale);
    return Lanes::if_greater(Lanes::fill(__DBL_DENORM_MIN__), norm, zero, scale);  // a zero row scores 0
  };
  int64_t i = 0;
  for (; i + 8 < count; i += 16) {  // two roots at a time, as a root takes long
    const Lanes first = scale_of(i), second = scale_of(i + 8);
    first.store(scales + i);
    second.store(scales + i + 8);
  }
  if (i < count) scale_of(i).store(scales + i);
}

// A bit for each of 16 count bools, the first the lowest.
template <class Isa>
void pack_bools(const unsigned char* bools, int64_t count, uint16_t* out) {
  for (int64_t w = 0; w < count; w += 4) {
    const int64_t n = count - w < 4 ? count - w : 4;
    unsigned char some[64] = {};
    if (n < 4) __builtin_memcpy(some, bools + 16 * w, static_cast<size_t>(16 * n));
    const uint64_t bits = Isa::bits_of_bools(n < 4 ? some : bools + 16 * w);
    if (n == 4 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
      __builtin_memcpy(out + w, &bits, sizeof bits);
    else
      for (int64_t i = 0; i < n; ++i) out[w + i] = static_cast<uint16_t>(bits >> (16 * i));
  }
}

}  // namespace
}  // namespace vecbank::cpu
