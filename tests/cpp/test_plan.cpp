// How a search is shared out: no worker waits long for another one.
#include "cpu/search/screens/screen.h"
#include "rotations.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

constexpr int64_t kWidth = 256;

// The header of a pack of so many rows, for which a plan needs nothing else.
PackHeader header_of(int64_t count, int64_t head) {
  const auto b = gaussian<float>(600 * kWidth, 1);
  const auto q = rotation_of(2, kWidth);
  Buffer<char> memory;
  CHECK(memory.reserve(pack_bytes(600, kWidth, Metric::dot, false, PanelKind::int8, head)));
  CHECK(pack_bank(rows(b, kWidth), Metric::dot, memory.get(), threads(1), nullptr, PanelKind::int8, ScreenChoice::int8,
                  {head, head > 0 ? q.data() : nullptr}) == Status::ok);
  PackHeader h = *reinterpret_cast<const PackHeader*>(memory.get());
  h.rows = count;
  return h;
}

// The part of the time in which a worker is at work, if all tasks take as long.
double busy(const Grid& grid, int workers) {
  const double each = static_cast<double>(grid.tasks()) / workers;
  return each / std::ceil(each);
}

}  // namespace

TEST(workers_get_as_many_tasks_as_each_other) {
  for_each_isa([] {
    for (const int64_t head : {int64_t{0}, int64_t{100}}) {
      const PackHeader h = header_of(200'000, head);
      for (const int workers : {1, 2, 3, 4, 6, 8, 12, 16, 32})
        for (int64_t n = 16; n <= 20'000; n += n / 3 + 5) {
          SearchProblem p;
          p.queries = {nullptr, DType::f32, n, kWidth, kWidth, 1};
          p.k = 10;
          const SearchPlan plan = plan_search(p, h, workers);
          CHECK(!plan.refined_only && plan.begins_with_head() == (head > 0));
          CHECK(plan.grid.blocks * plan.grid.rows_per_block >= n && plan.grid.tasks() >= std::min<int64_t>(workers, n));
          CHECK(busy(plan.grid, workers) >= 0.7);
          if (head > 0 && n >= 1024 && workers <= 4) CHECK(busy(plan.grid, workers) > 0.85);
        }
    }
  });
}

TEST(a_batch_of_1024_keeps_two_workers_busy) {
  for_each_isa([] {
    for (const int64_t head : {int64_t{32}, int64_t{128}, int64_t{224}}) {
      const PackHeader h = header_of(200'000, head);
      SearchProblem p;
      p.queries = {nullptr, DType::f32, 1024, kWidth, kWidth, 1};
      p.k = 10;
      const SearchPlan plan = plan_search(p, h, 2);
      CHECK(busy(plan.grid, 2) == 1.0 && plan.grid.parts == 1);
    }
  });
}
