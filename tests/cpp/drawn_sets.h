// Candidate sets of every kind, drawn at random, beside plain tables of the rows that they hold; and programs that join
// them, evaluated without the library.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>

#include "check.h"
#include "core/allowed.h"

// Memory that ends where a page begins that nothing may touch.
class Guarded {
 public:
  explicit Guarded(int64_t bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    room_ = vecbank::round_up_to(std::max<int64_t>(bytes, 1), page);
    void* at =
        mmap(nullptr, static_cast<size_t>(room_ + page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) std::abort();
    base_ = static_cast<char*>(at);
    if (mprotect(base_ + room_, static_cast<size_t>(page), PROT_NONE) != 0) std::abort();
    all_ = room_ + page;
  }
  Guarded(Guarded&& other) noexcept { *this = std::move(other); }
  Guarded& operator=(Guarded&& other) noexcept {
    std::swap(base_, other.base_), std::swap(room_, other.room_), std::swap(all_, other.all_);
    return *this;
  }
  ~Guarded() {
    if (base_ != nullptr) munmap(base_, static_cast<size_t>(all_));
  }
  // The last `count` elements.
  template <class T>
  T* last(int64_t count) const {
    return reinterpret_cast<T*>(base_ + room_ - count * static_cast<int64_t>(sizeof(T)));
  }

 private:
  char* base_ = nullptr;
  int64_t room_ = 0, all_ = 0;
};

// So many queries for each batch of a bank's rows.
struct SetShape {
  int64_t batches, queries, rows;
  int64_t all() const { return batches * queries; }
};

struct DrawnSet {
  vecbank::CandidateSet set;
  std::vector<char> held;  // [queries of all batches][rows]
  std::vector<Guarded> memory;
  bool distinct = true;  // of ids: none twice, and all of them rows of the bank
};

constexpr int kDrawnMasks = 8;

class SetDrawer {
 public:
  explicit SetDrawer(uint32_t seed) : random(seed) {}

  int64_t below(int64_t count) { return static_cast<int64_t>(random() % static_cast<uint64_t>(count)); }
  bool chance(int of) { return below(of) == 0; }

  DrawnSet draw(vecbank::SetKind kind, const SetShape& shape, bool shared) {
    using vecbank::SetKind;
    drawn_ = {};
    shape_ = shape;
    drawn_.set.kind = kind;
    drawn_.held.resize(static_cast<size_t>(shape.all() * shape.rows));
    switch (kind) {
      case SetKind::mask: mask(shared ? kShared[below(4)] : static_cast<int>(below(kDrawnMasks))); break;
      case SetKind::bits: bits(shared); break;
      case SetKind::ranges: ranges(shared); break;
      case SetKind::exclude: ids(shared, below(7), true); break;
      case SetKind::rows: ids(shared, chance(8) ? 0 : below(2 * shape.rows + 3) / (1 + below(9)), false); break;
      case SetKind::not_self: {
        drawn_.set.first = below(shape.rows + 5) - 3;
        hold([&](int64_t q, int64_t j) { return j != drawn_.set.first + q % shape_.queries; });
        break;
      }
      case SetKind::same: labels(shared); break;
    }
    return std::move(drawn_);
  }

  // Bools with strides of every kind; 1, 2, 4 and 7 are the same for all queries.
  DrawnSet draw_mask(int variant, const SetShape& shape) {
    drawn_ = {};
    shape_ = shape;
    drawn_.held.resize(static_cast<size_t>(shape.all() * shape.rows));
    mask(variant);
    return std::move(drawn_);
  }

  std::mt19937 random;

 private:
  static constexpr int kShared[] = {1, 2, 4, 7};

  template <class F>
  void hold(F&& f) {
    for (int64_t q = 0; q < shape_.all(); ++q)
      for (int64_t j = 0; j < shape_.rows; ++j) drawn_.held[static_cast<size_t>(q * shape_.rows + j)] = f(q, j);
  }
  // `width` elements for each of `count` rows, some elements apart, in memory of exactly what they reach.
  template <class T>
  T* block(int64_t count, int64_t width, int64_t* stride) {
    *stride = count == 1 ? 0 : width + below(3);
    const int64_t reach = (count - 1) * *stride + width;
    drawn_.memory.emplace_back(reach * static_cast<int64_t>(sizeof(T)));
    return drawn_.memory.back().template last<T>(reach);
  }

  void mask(int variant) {
    const int64_t n = shape_.all(), m = shape_.rows;
    vecbank::Mask& mask = drawn_.set.mask;
    int64_t row = 0, column = 1;  // strides
    bool by_batch = false;
    if (variant == 0) row = m + below(3);
    if (variant == 2 || variant == 4) column = 2;
    if (variant == 3) row = 1, column = n;
    if (variant == 5) row = 1, column = 0;
    if (variant == 6) row = m, by_batch = true;
    if (variant == 7) column = 0;
    const auto place = [&](int64_t q, int64_t j) { return (by_batch ? q / shape_.queries : q) * row + j * column; };
    const int64_t reach = m == 0 ? 0 : place(n - 1, m - 1) + 1;
    drawn_.memory.emplace_back(reach);
    auto* data = drawn_.memory.back().last<unsigned char>(reach);
    const int few = 1 + static_cast<int>(below(9));
    const unsigned char trues[] = {1, 1, 1, 2, 128, 255};  // torch takes any byte but 0 for true
    for (int64_t i = 0; i < reach; ++i) data[i] = chance(few) ? trues[below(6)] : 0;
    mask.data = reinterpret_cast<const bool*>(data);
    mask.col_stride = column;
    if (by_batch)
      CHECK(mask.add_dim(shape_.queries, 0) && mask.add_dim(shape_.batches, row));
    else if (row != 0 || variant == 2)
      CHECK(mask.add_dim(n, row));
    hold([&](int64_t q, int64_t j) { return data[place(q, j)] != 0; });
  }

  void bits(bool shared) {
    const int64_t count = shared ? 1 : shape_.all();
    drawn_.set.width = vecbank::ceil_div(shape_.rows, 8) + (chance(2) ? 0 : below(12));
    auto* data = block<uint8_t>(count, drawn_.set.width, &drawn_.set.stride);
    const int few = 1 + static_cast<int>(below(5));
    for (int64_t i = 0; i < (count - 1) * drawn_.set.stride + drawn_.set.width; ++i)
      data[i] = chance(few) ? static_cast<uint8_t>(random()) : uint8_t{0};
    drawn_.set.data = data;
    hold([&](int64_t q, int64_t j) { return (data[(shared ? 0 : q) * drawn_.set.stride + j / 8] & 1 << j % 8) != 0; });
  }

  // A row of the bank, or a number near one, or a very large or small one.
  int64_t some_row() {
    constexpr int64_t most = std::numeric_limits<int64_t>::max();
    const int64_t ends[] = {-1, most, most - 1, -most - 1, shape_.rows, shape_.rows + 1, -2, 0};
    return chance(5) ? ends[below(8)] : below(shape_.rows + 2);
  }

  void ranges(bool shared) {
    const int64_t count = shared ? 1 : shape_.all();
    drawn_.set.width = 2;
    auto* data = block<int64_t>(count, 2, &drawn_.set.stride);
    for (int64_t q = 0; q < count; ++q) {
      int64_t* ends = data + q * drawn_.set.stride;
      ends[0] = some_row(), ends[1] = some_row();
      if (ends[0] > ends[1] && !chance(4)) std::swap(ends[0], ends[1]);
    }
    drawn_.set.data = data;
    hold([&](int64_t q, int64_t j) {
      const int64_t* ends = data + (shared ? 0 : q) * drawn_.set.stride;
      return ends[0] <= j && j < ends[1];
    });
  }

  void ids(bool shared, int64_t width, bool excluded) {
    const int64_t count = shared ? 1 : shape_.all();
    drawn_.set.width = width;
    auto* data = block<int64_t>(count, width, &drawn_.set.stride);
    drawn_.set.data = data;
    for (int64_t q = 0; q < count; ++q) {
      int64_t* own = data + q * drawn_.set.stride;
      for (int64_t i = 0; i < width; ++i) own[i] = i > 0 && chance(9) ? own[i - 1] : some_row();
      std::vector<int64_t> sorted(own, own + width);
      std::sort(sorted.begin(), sorted.end());
      for (size_t i = 0; i < sorted.size(); ++i)
        if (sorted[i] < 0 || sorted[i] >= shape_.rows || (i > 0 && sorted[i] == sorted[i - 1])) drawn_.distinct = false;
      std::copy(sorted.begin(), sorted.end(), own);
    }
    hold([&](int64_t, int64_t) { return excluded; });
    for (int64_t q = 0; q < shape_.all(); ++q)
      for (int64_t i = 0; i < width; ++i) {
        const int64_t j = data[(shared ? 0 : q) * drawn_.set.stride + i];
        if (j >= 0 && j < shape_.rows) drawn_.held[static_cast<size_t>(q * shape_.rows + j)] = !excluded;
      }
  }

  void labels(bool shared) {
    const int64_t count = shared ? 1 : shape_.all(), m = shape_.rows;
    drawn_.set.width = 1;
    auto* own = block<int64_t>(count, 1, &drawn_.set.stride);
    const int64_t many = 1 + below(6);
    const int64_t far = chance(3) ? std::numeric_limits<int64_t>::max() - 8 : -2;
    for (int64_t q = 0; q < count; ++q) own[q * drawn_.set.stride] = far + below(many + 1);
    const int64_t banks = chance(2) ? 1 : shape_.batches;
    drawn_.set.data = own;
    drawn_.set.batch_stride = banks == 1 ? 0 : m;
    drawn_.memory.emplace_back(banks * m * 8);
    drawn_.memory.emplace_back(banks * m * 8);
    auto* of_bank = drawn_.memory[1].last<int64_t>(banks * m);
    auto* order = drawn_.memory[2].last<int64_t>(banks * m);
    for (int64_t i = 0; i < banks * m; ++i) of_bank[i] = far + below(many);
    for (int64_t b = 0; b < banks; ++b) {
      std::iota(order + b * m, order + (b + 1) * m, int64_t{0});
      std::stable_sort(order + b * m, order + (b + 1) * m,
                       [&](int64_t i, int64_t j) { return of_bank[b * m + i] < of_bank[b * m + j]; });
    }
    drawn_.set.labels = of_bank;
    drawn_.set.by_label = order;
    hold([&](int64_t q, int64_t j) {
      const int64_t batch = banks == 1 ? 0 : q / shape_.queries;
      return of_bank[batch * m + j] == own[(shared ? 0 : q) * drawn_.set.stride];
    });
  }

  DrawnSet drawn_;
  SetShape shape_{};
};

constexpr vecbank::SetKind kSetKinds[] = {
    vecbank::SetKind::mask,     vecbank::SetKind::bits, vecbank::SetKind::ranges, vecbank::SetKind::exclude,
    vecbank::SetKind::not_self, vecbank::SetKind::same, vecbank::SetKind::rows};
constexpr int kSetKindCount = sizeof kSetKinds / sizeof *kSetKinds;

// Sets, and the program that joins them.
struct Joined {
  SetShape shape{};
  std::vector<DrawnSet> drawn;
  std::vector<vecbank::CandidateSet> sets;
  std::vector<int32_t> program;

  void add(DrawnSet one) {
    sets.push_back(one.set);
    drawn.push_back(std::move(one));
  }
  vecbank::Allowed allowed() const {
    vecbank::Allowed a;
    a.sets = sets.data();
    a.count = static_cast<int32_t>(sets.size());
    a.program = program.data();
    a.steps = static_cast<int32_t>(program.size());
    a.rows = shape.rows;
    return a;
  }
  // A bool for each row of the bank. `query`: of all batches.
  std::vector<char> rows_of(int64_t query) const {
    size_t at = program.size();
    std::vector<char> found = value(query, &at);
    CHECK(at == 0);
    return found;
  }

 private:
  std::vector<char> value(int64_t query, size_t* at) const {
    const int32_t step = program[--*at];
    if (step >= 0) {
      const auto first = drawn[static_cast<size_t>(step)].held.begin() + query * shape.rows;
      return {first, first + shape.rows};
    }
    std::vector<char> left = value(query, at);
    if (step == vecbank::kNot) {
      for (char& held : left) held = !held;
      return left;
    }
    const std::vector<char> right = value(query, at);
    for (size_t j = 0; j < left.size(); ++j)
      left[j] = step == vecbank::kBoth ? left[j] && right[j] : left[j] || right[j];
    return left;
  }
};

// One set alone.
inline Joined alone(DrawnSet set, const SetShape& shape) {
  Joined joined;
  joined.shape = shape;
  joined.add(std::move(set));
  joined.program = {0};
  return joined;
}

// A program of so many sets' names, some of which may be the same set, in one of three forms: ((a b) c) d, a (b (c d)),
// and any tree. Joins are negated, and all of one kind or mixed.
inline std::vector<int32_t> drawn_program(SetDrawer& draw, int64_t names, int64_t sets) {
  std::vector<int32_t> program;
  const int negated = draw.chance(2) ? 1000 : 4, kind = static_cast<int>(draw.below(4)),
            form = static_cast<int>(draw.below(3));
  const auto negate = [&] {
    while (draw.chance(negated)) program.push_back(vecbank::kNot);
  };
  int32_t next = 0;
  const auto name = [&] {
    const bool any = next >= sets || draw.chance(6);
    program.push_back(any ? static_cast<int32_t>(draw.below(sets)) : next++);
    negate();
  };
  const auto join = [&] {
    program.push_back(kind == 0 ? vecbank::kEither : kind == 1 && draw.chance(2) ? vecbank::kEither : vecbank::kBoth);
    negate();
  };
  const std::function<void(int64_t)> tree = [&](int64_t count) {
    if (count == 1) return name();
    const int64_t left = form == 0 ? count - 1 : form == 1 ? 1 : 1 + draw.below(count - 1);
    tree(left);
    tree(count - left);
    join();
  };
  tree(names);
  return program;
}

inline Joined drawn_join(SetDrawer& draw, const SetShape& shape, int64_t sets, int64_t names, bool shared) {
  Joined joined;
  joined.shape = shape;
  for (int64_t i = 0; i < sets; ++i) {
    vecbank::SetKind kind = kSetKinds[draw.below(kSetKindCount)];
    if (shared && kind == vecbank::SetKind::not_self) kind = vecbank::SetKind::exclude;
    joined.add(draw.draw(kind, shape, shared || draw.chance(3)));
  }
  joined.program = drawn_program(draw, names, sets);
  return joined;
}
