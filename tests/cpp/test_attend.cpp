// Sums weighted by a softmax and their gradients, against float64 sums row by row, on every instruction set; and the
// same bits for every number of workers.
#include <cmath>

#include "check.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

struct Case {
  int64_t n, m, d, e;
  bool masked = false;
  DType dtype = DType::f32;
};

class Problem {
 public:
  explicit Problem(const Case& c) : c_(c) {
    x_ = drawn(c.n * c.d, 1), bank_ = drawn(c.m * c.d, 2), values_ = drawn(c.m * c.e, 3), grad_ = drawn(c.n * c.e, 4);
    beta_ = gaussian<float>(c.n, 5, 1.0 / std::sqrt(static_cast<double>(c.d)));
    grad_lse_ = gaussian<float>(c.n, 6);
    if (c.masked) {
      std::mt19937 random(7);
      for (int64_t i = 0; i < c.n * c.m; ++i) mask_.push_back(static_cast<unsigned char>(random() % 3 != 0));
      for (int64_t j = 0; j < c.m; ++j) mask_[static_cast<size_t>(c.n / 2 * c.m + j)] = 0;  // a query without a row
      set_.mask.data = reinterpret_cast<const bool*>(mask_.data());
      set_.mask.col_stride = 1;
      set_.mask.add_dim(c.n, c.m);
      allowed_ = {&set_, 1, &step_, 1, c.m};
    }
    for (const auto& from : {&x_, &bank_, &values_}) narrow_.push_back(narrowed(*from));
  }

  void check(int workers) {
    AttendProblem p;
    p.queries = rows(0, c_.n, c_.d), p.bank = rows(1, c_.m, c_.d), p.values = rows(2, c_.m, c_.e);
    p.summed = c_.e > 0;
    p.beta = beta_.data();
    p.allowed = c_.masked ? &allowed_ : nullptr;
    std::vector<float> out(static_cast<size_t>(c_.n * c_.e)), gx(x_.size()), gb(bank_.size()), gv(values_.size()),
        gbeta(beta_.size());
    std::vector<double> lse(static_cast<size_t>(c_.n));
    p.out = out.data(), p.lse = lse.data();
    CHECK(attend(p, threads(workers)) == Status::ok);
    solve();
    close(out, out_), close(lse, lse_);  // in powers of two

    AttendGradientProblem g;
    g.forward = p;
    g.grad = {grad_.data(), DType::f32, c_.n, c_.e, c_.e, 1};
    std::vector<float> along(static_cast<size_t>(c_.n));
    for (int64_t i = 0; i < c_.n; ++i) {
      double sum = -static_cast<double>(grad_lse_[at(i)]);
      for (int64_t c = 0; c < c_.e; ++c) sum += static_cast<double>(grad_[at(i * c_.e + c)]) * out_[at(i * c_.e + c)];
      along[at(i)] = static_cast<float>(sum);
    }
    g.along = along.data();
    g.grad_queries = gx.data(), g.grad_bank = gb.data(), g.grad_beta = gbeta.data();
    g.grad_values = c_.e > 0 ? gv.data() : nullptr;
    CHECK(attend_gradients(g, threads(workers)) == Status::ok);
    close(gx, gx_), close(gb, gb_), close(gv, gv_), close(gbeta, gbeta_);

    std::vector<float> again(gb.size()), out_again(out.size());
    g.grad_bank = again.data(), g.forward.out = out_again.data(), g.grad_queries = nullptr, g.grad_beta = nullptr;
    CHECK(attend_gradients(g, threads(workers + 2)) == Status::ok);
    CHECK(again == gb);
    p.out = out_again.data();
    CHECK(attend(p, threads(1)) == Status::ok);
    CHECK(out_again == out);
  }

 private:
  static size_t at(int64_t i) { return static_cast<size_t>(i); }

  // Values that every dtype holds.
  static std::vector<float> drawn(int64_t count, uint32_t seed) {
    std::vector<float> v = gaussian<float>(count, seed);
    for (auto& x : v) x = std::round(x * 16.0f) / 16.0f;
    return v;
  }
  std::vector<uint16_t> narrowed(const std::vector<float>& from) const {
    std::vector<uint16_t> out(from.size());
    for (size_t i = 0; i < from.size(); ++i) {
      if (c_.dtype == DType::bf16) narrow(from[i], reinterpret_cast<BFloat16*>(&out[i]));
      if (c_.dtype == DType::f16) narrow(from[i], reinterpret_cast<Float16*>(&out[i]));
    }
    return out;
  }
  Rows rows(size_t which, int64_t count, int64_t width) const {
    const std::vector<float>* wide[] = {&x_, &bank_, &values_};
    const void* data = c_.dtype == DType::f32 ? static_cast<const void*>(wide[which]->data()) : narrow_[which].data();
    return {data, c_.dtype, count, width, width, 1};
  }
  bool may(int64_t i, int64_t j) const { return !c_.masked || mask_[at(i * c_.m + j)] != 0; }

  void solve() {
    if (!lse_.empty()) return;
    const auto [n, m, d, e, masked, dtype] = c_;
    out_.assign(at(n * e), 0.0), lse_.assign(at(n), -INFINITY), gx_.assign(at(n * d), 0.0), gb_.assign(at(m * d), 0.0);
    gv_.assign(at(m * e), 0.0), gbeta_.assign(at(n), 0.0);
    for (int64_t i = 0; i < n; ++i) {
      std::vector<double> score(at(m)), weight(at(m), 0.0);
      const auto beta = static_cast<double>(beta_[at(i)]);
      double most = -INFINITY, total = 0.0, along = -static_cast<double>(grad_lse_[at(i)]);
      for (int64_t j = 0; j < m; ++j) {
        for (int64_t k = 0; k < d; ++k)
          score[at(j)] += static_cast<double>(x_[at(i * d + k)]) * static_cast<double>(bank_[at(j * d + k)]);
        if (may(i, j)) most = std::max(most, beta * score[at(j)]);
      }
      for (int64_t j = 0; j < m; ++j)
        if (may(i, j)) total += weight[at(j)] = std::exp(beta * score[at(j)] - most);
      if (total > 0) lse_[at(i)] = (most + std::log(total)) / std::log(2.0);
      for (int64_t j = 0; j < m && total > 0; ++j) {
        weight[at(j)] /= total;
        for (int64_t c = 0; c < e; ++c) {
          out_[at(i * e + c)] += weight[at(j)] * static_cast<double>(values_[at(j * e + c)]);
          gv_[at(j * e + c)] += weight[at(j)] * static_cast<double>(grad_[at(i * e + c)]);
        }
      }
      for (int64_t c = 0; c < e; ++c) along += static_cast<double>(grad_[at(i * e + c)]) * out_[at(i * e + c)];
      for (int64_t j = 0; j < m; ++j) {
        double slope = 0.0;
        for (int64_t c = 0; c < e; ++c)
          slope += static_cast<double>(grad_[at(i * e + c)]) * static_cast<double>(values_[at(j * e + c)]);
        slope = weight[at(j)] * (slope - along);
        gbeta_[at(i)] += slope * score[at(j)];
        for (int64_t k = 0; k < d; ++k) {
          gx_[at(i * d + k)] += slope * beta * static_cast<double>(bank_[at(j * d + k)]);
          gb_[at(j * d + k)] += slope * beta * static_cast<double>(x_[at(i * d + k)]);
        }
      }
    }
  }

  template <class T>
  static void close(const std::vector<T>& got, const std::vector<double>& want) {
    double most = 1e-3;
    for (const double w : want)
      if (std::isfinite(w)) most = std::max(most, std::fabs(w));
    for (size_t i = 0; i < want.size(); ++i) {
      const auto g = static_cast<double>(got[i]);
      CHECK(g == want[i] || std::fabs(g - want[i]) <= 2e-5 * most);
    }
  }

  const Case c_;
  std::vector<float> x_, bank_, values_, grad_, beta_, grad_lse_;
  std::vector<std::vector<uint16_t>> narrow_;
  std::vector<unsigned char> mask_;
  CandidateSet set_;
  const int32_t step_ = 0;
  Allowed allowed_;
  std::vector<double> out_, lse_, gx_, gb_, gv_, gbeta_;
};

void check(const Case& c, int workers) {
  Problem problem(c);
  for_each_isa([&] { problem.check(workers); });
}

}  // namespace

TEST(attend_of_many_sizes) {
  check({1, 1, 1, 1}, 1);
  check({5, 7, 3, 2}, 2);
  check({17, 113, 15, 13}, 1);
  check({33, 500, 19, 37}, 3);
  check({300, 230, 8, 20}, 2);
  check({40, 97, 31, 0}, 2);
}

TEST(attend_among_some) {
  check({20, 130, 9, 6, true}, 2);
  check({140, 40, 16, 0, true}, 3);
}

TEST(attend_of_16_bits) {
  check({20, 130, 9, 6, false, DType::bf16}, 2);
  check({20, 130, 16, 5, true, DType::f16}, 1);
}

TEST(attend_of_nothing) {
  AttendProblem p;
  CHECK(attend(p, threads(2)) == Status::ok);
  std::vector<float> x(6, 1.0f), out(4, 9.0f), beta(2, 1.0f), grad(6, 9.0f);
  std::vector<double> lse(2, 0.0);
  p.queries = {x.data(), DType::f32, 2, 3, 3, 1};
  p.bank = {nullptr, DType::f32, 0, 3, 3, 1};
  p.values = {nullptr, DType::f32, 0, 2, 2, 1};
  p.beta = beta.data(), p.out = out.data(), p.lse = lse.data();
  CHECK(attend(p, threads(2)) == Status::ok);
  CHECK(out == std::vector<float>(4, 0.0f));
  CHECK(lse == std::vector<double>(2, -INFINITY));
  AttendGradientProblem g;
  g.forward = p, g.along = beta.data(), g.grad_queries = grad.data();
  CHECK(attend_gradients(g, threads(2)) == Status::ok);
  CHECK(grad == std::vector<float>(6, 0.0f));
}
