// Masks of up to six dimensions with strides of every kind, read in place; and products of width 0.
#include <memory>
#include <numeric>

#include "check.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

// A mask over leading dimensions and M columns. Each dimension is broadcast or real; the real ones lie in memory in any
// order, with gaps between them, in a block of exactly the bytes that they reach (so that a sanitizer reports one
// more).
struct StridedMask {
  std::vector<int64_t> sizes, strides;  // outermost first; the last is M
  std::unique_ptr<bool[]> data;
  Mask view;
  bool fits;

  StridedMask(const std::vector<int64_t>& shape, std::mt19937& random) : sizes(shape), strides(shape.size(), 0) {
    std::vector<size_t> order(shape.size());
    std::iota(order.begin(), order.end(), size_t{0});
    if (random() % 2 != 0) std::shuffle(order.begin(), order.end(), random);
    int64_t reach = 1, step = 1;
    for (auto i = order.rbegin(); i != order.rend(); ++i) {
      if (random() % 4 == 0) continue;  // broadcast
      if (random() % 4 == 0) step += static_cast<int64_t>(random() % 3);
      strides[*i] = step;
      reach += (sizes[*i] - 1) * step;
      step *= sizes[*i];
    }
    for (size_t i = 0; i < sizes.size(); ++i)  // the stride of a single element does not matter
      if (sizes[i] == 1 && random() % 2 != 0) strides[i] = static_cast<int64_t>(random() % 1000);
    data.reset(new bool[static_cast<size_t>(reach)]);
    for (int64_t i = 0; i < reach; ++i) data[static_cast<size_t>(i)] = random() % 3 != 0;
    view = {data.get(), strides.back()};
    fits = true;
    for (size_t i = sizes.size() - 1; i-- > 0;) fits = fits && view.add_dim(sizes[i], strides[i]);
  }

  int64_t queries() const {
    return std::accumulate(sizes.begin(), sizes.end() - 1, int64_t{1}, std::multiplies<int64_t>());
  }
  bool at(int64_t query, int64_t column) const {
    int64_t offset = sizes.back() == 1 ? 0 : column * strides.back();
    for (size_t i = sizes.size() - 1; i-- > 0; query /= sizes[i])
      if (sizes[i] != 1) offset += query % sizes[i] * strides[i];
    return data[static_cast<size_t>(offset)];
  }
};

std::vector<int64_t> found(const std::vector<float>& x, const std::vector<float>& b, int64_t d, int64_t k,
                           const Mask& mask, int workers) {
  SearchProblem p;
  p.queries = rows(x, d);
  p.bank = rows(b, d);
  p.k = k;
  p.mask = mask;
  std::vector<int64_t> indices(static_cast<size_t>(p.queries.count * k)), before;
  p.indices = indices.data();
  for_each_way([&] {
    CHECK(search(p, threads(workers)) == Status::ok);
    CHECK(before.empty() || before == indices);
    before = indices;
  });
  return indices;
}

}  // namespace

TEST(masks_are_read_where_they_lie) {
  std::mt19937 random(1);
  for (int round = 0; round < 400; ++round) {
    std::vector<int64_t> shape(1 + random() % 6);
    for (auto& size : shape) size = 1 + static_cast<int64_t>(random() % 4);
    const StridedMask mask(shape, random);
    CHECK(mask.fits);
    for (int64_t q = 0; q < mask.queries(); ++q)
      for (int64_t j = 0; j < shape.back(); ++j) {
        CHECK(mask.view.allows(q, j) == mask.at(q, j));
        if (q > 0) CHECK(mask.view.from(1).allows(q - 1, j) == mask.at(q, j));
      }
  }
}

TEST(a_mask_of_too_many_dimensions_is_refused_not_misread) {
  Mask mask;
  for (int i = 0; i < Mask::kMaxDims; ++i) CHECK(mask.add_dim(2, 100 + 7 * i));
  CHECK(!mask.add_dim(2, 1));
  CHECK(mask.add_dim(1, 99));  // a single element needs no room
}

TEST(search_under_a_mask_of_any_strides) {
  std::mt19937 random(2);
  for_each_isa([&] {
    for (int round = 0; round < 12; ++round) {
      const int64_t d = 5, m = round % 3 == 0 ? 7 : 700;
      std::vector<int64_t> shape(1 + random() % 6, 1);
      for (size_t i = 0; i + 1 < shape.size(); ++i) shape[i] = 1 + static_cast<int64_t>(random() % 4);
      shape.back() = m;
      const StridedMask mask(shape, random);
      const int64_t n = mask.queries();
      const std::unique_ptr<bool[]> dense(new bool[static_cast<size_t>(n * m)]);
      for (int64_t q = 0; q < n; ++q)
        for (int64_t j = 0; j < m; ++j) dense[static_cast<size_t>(q * m + j)] = mask.at(q, j);
      Mask plain{dense.get(), 1};
      CHECK(plain.add_dim(n, m));
      const auto x = gaussian<float>(n * d, 3), b = gaussian<float>(m * d, 4);
      for (const int64_t k : {1, 5}) {
        const auto indices = found(x, b, d, k, mask.view, 1 + round % 3);
        CHECK(indices == found(x, b, d, k, plain, 2));
        for (size_t i = 0; i < indices.size(); ++i)
          CHECK(indices[i] < 0 || mask.at(static_cast<int64_t>(i) / k, indices[i]));
      }
    }
  });
}

TEST(vectors_of_no_width_have_score_zero) {
  for_each_isa([] {
    for (const Metric metric : {Metric::dot, Metric::cosine, Metric::l2, Metric::sqeuclidean, Metric::l1})
      for (const int64_t n : {1, 3, 200}) {
        const int64_t m = 500;
        const float nothing = 0;
        for (const DType dtype : {DType::f32, DType::f64}) {
          std::vector<float> out(static_cast<size_t>(n * m), 7.0f);
          ProjectProblem p;
          p.queries = {&nothing, dtype, n, 0, 0, 1};
          p.bank = {&nothing, dtype, m, 0, 0, 1};
          p.metric = metric;
          p.out = out.data();
          CHECK(project(p, threads(2)) == Status::ok);
          for (const float value : out) CHECK(value == 0.0f);
          SearchProblem s;
          s.queries = p.queries;
          s.bank = p.bank;
          s.metric = metric;
          s.k = 2;
          std::vector<int64_t> indices(static_cast<size_t>(n * 2), -7);
          s.indices = indices.data();
          CHECK(search(s, threads(2)) == Status::ok);
          for (size_t i = 0; i < indices.size(); ++i) CHECK(indices[i] == static_cast<int64_t>(i % 2));
        }
      }
  });
}
