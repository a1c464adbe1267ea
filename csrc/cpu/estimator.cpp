// pass_back(): three passes over a row while it is in L1, sums in eight lanes.
#include "api.h"

#include <algorithm>
#include <type_traits>

#include "../core/half.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kLanes = 8;

// f(k) summed over k < width, in an order that depends on the width alone; Count sums at once.
template <class A, int Count, class F>
void sum_over(int64_t width, A (&sums)[Count], F&& f) {
  A lanes[Count][kLanes] = {};
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      A terms[Count];
      f(k + lane, terms);
      for (int s = 0; s < Count; ++s) lanes[s][lane] += terms[s];
    }
  for (int64_t k = whole; k < width; ++k) {
    A terms[Count];
    f(k, terms);
    for (int s = 0; s < Count; ++s) lanes[s][k - whole] += terms[s];
  }
  for (int s = 0; s < Count; ++s) {
    const A* l = lanes[s];
    sums[s] = ((l[0] + l[4]) + (l[1] + l[5])) + ((l[2] + l[6]) + (l[3] + l[7]));
  }
}

template <class A>
Rotation<A> rotation_of_row(const A* g, const A* x, const A* t, int64_t width) {
  A sums[4], bisector[1];
  sum_over(width, sums, [=](int64_t k, A* s) {
    s[0] = x[k] * x[k];
    s[1] = t[k] * t[k];
    s[2] = g[k] * x[k];
    s[3] = g[k] * t[k];
  });
  const A inverse_x = inverse_unit(sums[0]), inverse_t = inverse_unit(sums[1]);
  sum_over(width, bisector, [=](int64_t k, A* s) { s[0] = bisector_term(x[k], t[k], inverse_x, inverse_t); });
  return rotation_of<A>({sums[0], sums[1], sums[2], sums[3]}, bisector[0]);
}

template <class S>
void pass_rows(const PassBackProblem& p, int64_t first, int64_t last, void* scratch) {
  using A = std::conditional_t<std::is_same_v<S, double>, double, float>;
  const int64_t d = p.width;
  const A scale = static_cast<A>(p.scale);
  A* wide = static_cast<A*>(scratch);
  const auto row_of = [&](const void* data, int64_t r, int which) -> const A* {
    const S* row = static_cast<const S*>(data) + r * d;
    if constexpr (std::is_same_v<S, A>) return row;
    A* copy = wide + which * d;
    for (int64_t k = 0; k < d; ++k) copy[k] = static_cast<A>(widened(row[k]));
    return copy;
  };
  for (int64_t r = first; r < last; ++r) {
    const A *g = row_of(p.grad, r, 0), *x = row_of(p.x, r, 1), *t = row_of(p.quantized, r, 2);
    S* out = static_cast<S*>(p.out) + r * d;
    const auto write = [&](auto&& passed) {
      for (int64_t k = 0; k < d; ++k) narrow(static_cast<double>(passed(k) + scale * (x[k] - t[k])), out + k);
    };
    switch (p.estimator) {
      case Estimator::none: write([](int64_t) { return A{0}; }); break;
      case Estimator::straight: write([=](int64_t k) { return g[k]; }); break;
      case Estimator::rotation: {
        const Rotation<A> f = rotation_of_row(g, x, t, d);
        write([=](int64_t k) { return f(g[k], x[k], t[k]); });
      }
    }
  }
}

}  // namespace

Status pass_back(const PassBackProblem& p, const Parallel& parallel) {
  const int64_t batch = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(p.width, 1));
  Buffer<double> scratch;
  if (!scratch.reserve(3 * p.width * parallel.workers)) return Status::out_of_memory;
  return for_each_task(parallel, ceil_div(p.rows, batch), [&](int worker, int64_t task) {
    const int64_t first = task * batch, last = std::min(p.rows, first + batch);
    with_dtype(p.dtype, [&](auto type) {
      pass_rows<Element<decltype(type)>>(p, first, last, scratch.get() + 3 * p.width * worker);
    });
  });
}

}  // namespace vecbank::cpu
