#include "counted.h"

#include <atomic>

#include "../api.h"
#include "screens/screen.h"

namespace vecbank::cpu {
namespace {

static_assert(kScreenCount == sizeof(Counters{}.screened) / sizeof(int64_t));

constexpr int kCounters = static_cast<int>(Counted::screened) + kScreenCount;
std::atomic<int64_t> counters[kCounters];

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

}  // namespace vecbank::cpu
