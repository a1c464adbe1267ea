#include "memory.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <type_traits>

namespace vecbank::cpu {
namespace {

// What is kept, the last given back first. Nothing waits for the flag: whoever finds it set does without the blocks, as
// a process that was forked meanwhile does for ever.
class KeptBlocks {
 public:
  // The least block that serves; none where it would be more than twice as large.
  Block take(size_t bytes) {
    if (!lock()) return {};
    int best = -1;
    for (int i = 0; i < count_; ++i)
      if (blocks_[i].bytes >= bytes && blocks_[i].bytes / 2 <= bytes &&
          (best < 0 || blocks_[i].bytes < blocks_[best].bytes))
        best = i;
    const Block found = best < 0 ? Block{} : remove(best);
    unlock();
    return found;
  }

  // False: it is not kept.
  bool keep(Block block) {
    if (block.bytes > most_ / 2 || !lock()) return false;
    Block dropped[kMost];
    int drops = 0;
    while (count_ == kMost || (count_ > 0 && total_ + block.bytes > most_)) dropped[drops++] = remove(count_ - 1);
    std::copy_backward(blocks_, blocks_ + count_, blocks_ + count_ + 1);
    blocks_[0] = block;
    ++count_;
    total_ += block.bytes;
    unlock();
    for (int i = 0; i < drops; ++i) std::free(dropped[i].data);
    return true;
  }

  size_t total() const { return total_; }
  size_t most() const { return most_; }

 private:
  static constexpr int kMost = 64;

  bool lock() { return !busy_.test_and_set(std::memory_order_acquire); }
  void unlock() { busy_.clear(std::memory_order_release); }
  Block remove(int i) {
    const Block block = blocks_[i];
    std::copy(blocks_ + i + 1, blocks_ + count_, blocks_ + i);
    --count_;
    total_ -= block.bytes;
    return block;
  }

  const size_t most_ = std::clamp(kLimitPerThread * std::thread::hardware_concurrency(), kLeastLimit, kMostLimit);
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  std::atomic<size_t> total_{0};
  int count_ = 0;
  Block blocks_[kMost + 1];
};

static_assert(std::is_trivially_destructible_v<KeptBlocks>);  // threads may give blocks back while the process ends

KeptBlocks& kept() {
  static KeptBlocks blocks;
  return blocks;
}

}  // namespace

Block take_block(size_t bytes) {
  if (bytes > SIZE_MAX - 64) return {};
  bytes = (bytes + 63) / 64 * 64;
  if (kKeepsBlocks && bytes >= kLeastKept)
    if (const Block found = kept().take(bytes); found.data != nullptr) return found;
  void* const data = std::aligned_alloc(64, bytes);
  return {data, data == nullptr ? 0 : bytes};
}

void give_back(Block block) {
  if (block.data == nullptr) return;
  if (!kKeepsBlocks || block.bytes < kLeastKept || !kept().keep(block)) std::free(block.data);
}

size_t kept_bytes() { return kKeepsBlocks ? kept().total() : 0; }
size_t most_kept_bytes() { return kKeepsBlocks ? kept().most() : 0; }

}  // namespace vecbank::cpu
