// Searches of packed bits, against bits that are compared one by one. The rows lie right before memory that may not be
// read, so that a load past their end is found.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "check.h"
#include "cpu/search/radius.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

// Bytes that end where a page begins that may not be read.
class AtTheEdge {
 public:
  explicit AtTheEdge(const std::vector<uint8_t>& bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    size_ = (bytes.size() + page - 1) / page * page + page;
    start_ = static_cast<uint8_t*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(start_ + size_ - page, page, PROT_NONE);
    data_ = start_ + size_ - page - bytes.size();
    std::copy(bytes.begin(), bytes.end(), data_);
  }
  AtTheEdge(const AtTheEdge&) = delete;
  AtTheEdge& operator=(const AtTheEdge&) = delete;
  ~AtTheEdge() { munmap(start_, size_); }
  const uint8_t* data() const { return data_; }

 private:
  uint8_t *start_, *data_;
  size_t size_;
};

std::vector<uint8_t> drawn(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(static_cast<size_t>(count));
  for (auto& b : bytes) b = static_cast<uint8_t>(random());
  return bytes;
}

int64_t naive(const BitsProblem& p, int64_t q, int64_t row) {
  const auto bit = [&](const uint8_t* bytes, int64_t plane, int64_t i) {
    return bytes[plane * p.bytes() + i / 8] >> (i % 8) & 1;
  };
  int64_t sum = 0;
  for (int64_t u = 0; u < p.queries.planes; ++u)
    for (int64_t v = 0; v < p.bank.planes; ++v)
      for (int64_t i = 0; i < p.bits; ++i)
        sum += static_cast<int64_t>(bit(p.queries.row(q), u, i) != bit(p.bank.row(row), v, i))
               << (p.queries.planes - 1 - u + p.bank.planes - 1 - v);
  return sum;
}

void check_all(BitsProblem p, int workers) {
  const int64_t n = p.queries.count, m = p.bank.count;
  std::vector<int32_t> scores(static_cast<size_t>(n * m), -1);
  p.values = scores.data();
  CHECK(bits_scores(p, threads(workers)) == Status::ok);
  std::vector<std::vector<std::pair<int64_t, int64_t>>> sorted(static_cast<size_t>(n));
  for (int64_t q = 0; q < n; ++q) {
    auto& own = sorted[static_cast<size_t>(q)];
    for (int64_t j = 0; j < m; ++j) {
      own.emplace_back(naive(p, q, j), j);
      CHECK(scores[static_cast<size_t>(q * m + j)] == own.back().first);
    }
    std::sort(own.begin(), own.end());
  }
  for (const int64_t k : {int64_t{1}, int64_t{5}, int64_t{30}, m + 1}) {
    std::vector<int32_t> values(static_cast<size_t>(n * k));
    std::vector<int64_t> indices(static_cast<size_t>(n * k));
    p.k = k;
    p.values = values.data();
    p.indices = indices.data();
    CHECK(bits_topk(p, threads(workers)) == Status::ok);
    for (int64_t q = 0; q < n; ++q)
      for (int64_t i = 0; i < k; ++i) {
        const auto at = static_cast<size_t>(q * k + i);
        if (i < m) {
          const auto& [distance, row] = sorted[static_cast<size_t>(q)][static_cast<size_t>(i)];
          CHECK(values[at] == distance && indices[at] == row);
        } else {
          CHECK(values[at] == kNoDistance && indices[at] == -1);
        }
      }
  }
  if (n == 0 || m == 0) return;
  std::vector<int64_t> radii;
  for (int64_t q = 0; q < n; ++q)
    radii.push_back(q == 0 ? -1 : sorted[static_cast<size_t>(q)][static_cast<size_t>(m / 3)].first);
  for (const bool count_only : {false, true}) {
    Hits hits(workers, n);
    CHECK(bits_within(p, radii.data(), count_only, hits, threads(workers)) == Status::ok);
    std::vector<int64_t> offsets{0};
    for (int64_t q = 0; q < n; ++q) {
      int64_t count = 0;
      for (const auto& [distance, row] : sorted[static_cast<size_t>(q)])
        count += distance <= radii[static_cast<size_t>(q)];
      CHECK(hits.of(q) == count);
      offsets.push_back(offsets.back() + hits.of(q));
    }
    if (count_only) continue;
    std::vector<int64_t> indices(static_cast<size_t>(offsets.back()));
    std::vector<int32_t> values(static_cast<size_t>(offsets.back()));
    CHECK(hits.write_whole(offsets.data(), indices.data(), values.data(), threads(workers)) == Status::ok);
    for (int64_t q = 0; q < n; ++q)
      for (int64_t i = offsets[static_cast<size_t>(q)]; i < offsets[static_cast<size_t>(q) + 1]; ++i) {
        const auto& [distance, row] =
            sorted[static_cast<size_t>(q)][static_cast<size_t>(i - offsets[static_cast<size_t>(q)])];
        CHECK(values[static_cast<size_t>(i)] == distance && indices[static_cast<size_t>(i)] == row);
      }
  }
}

// `apart`: bytes between a row of the bank and the next.
void check_bits(int64_t n, int64_t m, int64_t bits, int query_planes, int bank_planes, int workers = 1,
                int64_t apart = 0) {
  const int64_t bytes = ceil_div(bits, 8), stride = bank_planes * bytes + apart;
  const AtTheEdge x(drawn(n * query_planes * bytes, 1)), bank(drawn(m > 0 ? m * stride - apart : 0, 2));
  BitsProblem p;
  p.bits = bits;
  p.queries = {x.data(), n, query_planes * bytes, query_planes};
  p.bank = {bank.data(), m, stride, bank_planes};
  for_each_isa([&] { check_all(p, workers); });
}

}  // namespace

TEST(bits_of_every_width_and_nothing_beyond_the_rows_is_read) {
  for (const int64_t bits : {1, 4, 5, 8, 9, 31, 63, 64, 65, 71, 100, 127, 128, 136, 256, 300, 520}) {
    check_bits(1, 70, bits, 1, 1);
    check_bits(7, 133, bits, 1, 1);
  }
  check_bits(9, 600, 64, 1, 1, 3);
}

TEST(few_queries_of_bits_of_every_width) {
  for (int64_t bits = 1; bits <= 1100; bits += 1 + bits / 12) check_bits(1 + bits % 8, 37, bits, 1, 1, 1, bits % 3 * 5);
  for (const int64_t bits : {64, 128, 192, 256, 512, 1024})
    for (const int64_t n : {1, 2, 3, 4, 5, 8}) check_bits(n, 45, bits, 1, 1, 1, n % 2 * 8);
  check_bits(2, 33, 8192, 1, 1);
}

TEST(bit_planes) {
  for (const int64_t bits : {1, 12, 64, 100, 330})
    for (const int planes : {1, 2, 4, 6, 7})
      check_bits(6, 70, bits, planes, planes == 1 ? 3 : planes == 7 ? 2 : planes);
}

TEST(bits_without_rows_or_queries) {
  check_bits(0, 5, 64, 1, 1);
  check_bits(3, 0, 64, 1, 1);
}

TEST(the_largest_bit_distance) {
  CHECK(largest_bit_distance(256, 1, 1) == 256);
  CHECK(largest_bit_distance(100, 4, 2) == 100 * 15 * 3);
  CHECK(largest_bit_distance(1, 30, 1) == (int64_t{1} << 30) - 1);
  CHECK(largest_bit_distance(2, 30, 1) == kNoDistance - 1);
  CHECK(largest_bit_distance(3, 30, 1) == -1);
  CHECK(largest_bit_distance(1, 31, 1) == -1 && largest_bit_distance(1, 16, 16) == -1);
  CHECK(largest_bit_distance(int64_t{1} << 62, 2, 2) == -1);
}
