#include "counted.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <utility>

#include "screens/screen.h"

namespace vecbank::cpu {
namespace {

static_assert(kScreenCount == sizeof(Counters{}.screened) / sizeof(int64_t));

constexpr int kCounters = static_cast<int>(Counted::screened) + kScreenCount;
std::atomic<int64_t> counters[kCounters];

// The packs whose heads were used last; a pack that was freed leaves its place to others.
struct PackUse {
  const void* pack;
  uint64_t turn;  // when it was used
  HeadUse use;
};
constexpr int kPacks = 64;
PackUse packs[kPacks];
uint64_t turns = 0;
std::mutex packs_mutex;

int64_t read(Counted what, int which = 0) {
  return counters[static_cast<int>(what) + which].load(std::memory_order_relaxed);
}

}  // namespace

void count(Counted what, int64_t more, int which) {
  counters[static_cast<int>(what) + which].fetch_add(more, std::memory_order_relaxed);
}

Counters read_counters() {
  Counters c{};
  c.queries = read(Counted::queries);
  c.refined = read(Counted::refined);
  c.repeated = read(Counted::repeated);
  c.bytes = read(Counted::bytes);
  c.dimensions = read(Counted::dimensions);
  c.pairs = read(Counted::pairs);
  for (int s = 0; s < kScreenCount; ++s) c.screened[s] = read(Counted::screened, s);
  return c;
}

void reset_counters() {
  for (std::atomic<int64_t>& counter : counters) counter.store(0, std::memory_order_relaxed);
}

void add_head_use(const void* pack, const HeadUse& more) {
  const std::lock_guard<std::mutex> lock(packs_mutex);
  PackUse* place = std::find_if(packs, packs + kPacks, [&](const PackUse& p) { return p.pack == pack; });
  if (place == packs + kPacks) {
    place = std::min_element(packs, packs + kPacks, [](const PackUse& a, const PackUse& b) { return a.turn < b.turn; });
    *place = {pack, 0, {}};
  }
  place->turn = ++turns;
  HeadUse& use = place->use;
  use.searches += more.searches;
  use.pairs += more.pairs;
  use.scanned += more.scanned;
  use.survivors += more.survivors;
  use.repeated += more.repeated;
}

HeadUse take_head_use(const void* pack) {
  const std::lock_guard<std::mutex> lock(packs_mutex);
  for (PackUse& p : packs)
    if (p.pack == pack) return std::exchange(p.use, {});
  return {};
}

}  // namespace vecbank::cpu
