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

template <class Lanes>
void line_squares(const float* lines, int64_t width, int group, double* out) {
  for (int c = 0; c < group; c += 8) {
    Lanes sum = Lanes::fill(0.0);
    for (int64_t k = 0; k < width; ++k) {
      const Lanes v = Lanes::load(lines + k * group + c);
      sum = Lanes::plus_exact(sum, v, v);
    }
    sum.store(out + c);
  }
}

template <class Lanes>
void norm_scales_of(const double* squares, int64_t count, float* scales) {
  constexpr double kShortest = 1e-10, kLongest = 1e15;  // products of such norms stay far from the ends of float32
  const Lanes none = Lanes::fill(__builtin_nan("")), zero = Lanes::fill(0.0), floor = Lanes::fill(kNormFloor);
  for (int64_t i = 0; i < count; i += 8) {
    const Lanes norm = Lanes::load(squares + i).root();
    Lanes scale = Lanes::fill(1.0) / Lanes::if_greater(floor, norm, floor, norm);
    scale = Lanes::if_greater(Lanes::fill(kShortest), norm, none, scale);
    scale = Lanes::if_greater(norm, Lanes::fill(kLongest), none, scale);
    Lanes::if_greater(Lanes::fill(__DBL_DENORM_MIN__), norm, zero, scale).store(scales + i);  // a zero row scores 0
  }
}

}  // namespace
}  // namespace vecbank::cpu
