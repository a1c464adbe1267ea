// The working memory of calls. The system clears a page when it is touched first, and a few hundred first touches
// take longer than a search among some thousand rows. So blocks that a call gives back are kept for later calls.
#pragma once

#include <cstddef>

namespace vecbank::cpu {

struct Block {
  void* data = nullptr;  // aligned to 64 bytes
  size_t bytes = 0;
};

constexpr size_t kLeastKept = size_t{64} << 10;  // bytes of a block: malloc has smaller ones at hand
constexpr size_t kLeastLimit = size_t{32} << 20, kLimitPerThread = size_t{4} << 20, kMostLimit = size_t{128} << 20;
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeepsBlocks = false;  // what is read after it was given back must be found
#else
constexpr bool kKeepsBlocks = true;
#endif

// At least so many bytes, uninitialised; `data` is null where there is no memory.
Block take_block(size_t bytes);
void give_back(Block block);

// Bytes that are kept now, and the most that are: 4 MiB for each hardware thread, from 32 to 128 MiB.
size_t kept_bytes();
size_t most_kept_bytes();

}  // namespace vecbank::cpu
