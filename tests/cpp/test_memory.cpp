// Working memory: blocks are kept for later calls, within a limit.
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/parallel.h"

namespace vecbank::cpu {
namespace {

TEST(blocks_are_kept_for_later_calls) {
  const size_t bytes = 1 << 20;
  const Block first = take_block(bytes);
  CHECK(first.data != nullptr && first.bytes >= bytes && reinterpret_cast<uintptr_t>(first.data) % 64 == 0);
  const size_t before = kept_bytes();
  give_back(first);
  CHECK(kept_bytes() == (kKeepsBlocks ? before + first.bytes : 0));
  const Block again = take_block(bytes - 100);
  CHECK(!kKeepsBlocks || again.data == first.data);
  const Block half = take_block(bytes / 4);  // a block of 1 MiB is too large for that
  CHECK(half.data != first.data);
  give_back(again);
  give_back(half);
}

TEST(few_bytes_are_kept) {
  std::vector<Block> blocks;
  for (size_t bytes = 1000; bytes < 2 * most_kept_bytes() + 2000; bytes += bytes / 3) {
    blocks.push_back(take_block(bytes));
    CHECK(blocks.back().data != nullptr && blocks.back().bytes >= bytes);
    std::memset(blocks.back().data, 1, bytes);  // all of it is ours
  }
  for (const Block& block : blocks) {
    give_back(block);
    CHECK(kept_bytes() <= most_kept_bytes());
  }
  // What was given back last is kept, unless it is more than half of what may be.
  const Block last = take_block(size_t{3} << 20);
  give_back(last);
  const Block again = take_block(size_t{3} << 20);
  CHECK(!kKeepsBlocks || again.data == last.data);
  give_back(again);
  for (int i = 0; i < 200; ++i) {  // more blocks than there are places
    std::vector<Block> small;
    for (int j = 0; j < 100; ++j) small.push_back(take_block(kLeastKept + 64 * static_cast<size_t>(j)));
    for (const Block& block : small) give_back(block);
  }
  CHECK(kept_bytes() <= most_kept_bytes());
  give_back({});
  CHECK(take_block(SIZE_MAX).data == nullptr);
  if (kKeepsBlocks) CHECK(take_block(SIZE_MAX / 2).data == nullptr);  // AddressSanitizer ends the process there
}

TEST(threads_do_not_share_a_block) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2000; ++i) {
        Buffer<int> a, b;
        const int64_t count = 20000 + 1000 * (i % 7);
        if (!a.reserve(count) || !b.reserve(2 * count)) ++wrong;
        a[0] = a[count - 1] = t;
        b[0] = b[2 * count - 1] = i;
        Buffer<int> moved = std::move(a);
        if (a.get() != nullptr || moved[0] != t || moved[count - 1] != t || b[0] != i || b[2 * count - 1] != i) ++wrong;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

}  // namespace
}  // namespace vecbank::cpu
