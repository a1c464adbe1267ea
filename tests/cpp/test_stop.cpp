// With a raised flag every driver returns Status::stopped, and long loops check the flag as they run.
#include "check.h"
#include "core/pack.h"
#include "cpu/refine.h"
#include "cpu/search/worker.h"
#include "cpu/topk_list.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

constexpr int64_t kWidth = 24, kRows = 900, kQueries = 200;

// Two workers, and a flag that is raised.
struct Stopped {
  std::atomic<bool> flag{true};

  Parallel workers(int count = 2) {
    Parallel p = threads(count);
    p.stop.flag = &flag;
    return p;
  }
};

struct Data {
  std::vector<float> x = gaussian<float>(kQueries * kWidth, 1), b = gaussian<float>(kRows * kWidth, 2);
  std::vector<int64_t> codes = std::vector<int64_t>(static_cast<size_t>(kQueries), 3);
  std::vector<float> out = std::vector<float>(static_cast<size_t>(kRows * kRows), -7.0f);
  std::vector<float> more = out;
  std::vector<int64_t> indices = std::vector<int64_t>(static_cast<size_t>(kQueries * 500), -7);
  Buffer<char> memory;

  PackHeader* pack(Metric metric) {
    memory.reserve(pack_bytes(kRows, kWidth, metric));
    CHECK(pack_bank(rows(b, kWidth), metric, memory.get(), threads(1)) == Status::ok);
    return reinterpret_cast<PackHeader*>(memory.get());
  }
  bool untouched() const {
    for (const float v : out)
      if (v != -7.0f) return false;
    for (const int64_t i : indices)
      if (i != -7) return false;
    return true;
  }
};

SearchProblem search_problem(Data& d, int64_t k) {
  SearchProblem p;
  p.queries = rows(d.x, kWidth);
  p.bank = rows(d.b, kWidth);
  p.k = k;
  p.values = d.out.data();
  p.indices = d.indices.data();
  return p;
}

}  // namespace

TEST(stop_ends_a_search_before_it_writes) {
  for_each_isa([] {
    for (const int64_t k : {1, 10, 400})  // the last is refined without a screen
      for (const bool packed : {true, false}) {
        Data d;
        SearchProblem p = search_problem(d, k);
        if (packed) p.pack = d.pack(p.metric);
        for_each_way([&] {
          CHECK(search(p, Stopped().workers()) == Status::stopped);
          CHECK(d.untouched());
        });
      }
  });
}

TEST(stop_is_seen_inside_a_task_of_a_search) {
  for_each_isa([] {
    for (const int64_t k : {1, 10, 400}) {
      Data d;
      SearchProblem p = search_problem(d, k);
      p.pack = d.pack(p.metric);
      std::atomic<bool> raised{true};
      const SearchJob job{p, *p.pack, plan_search(p, *p.pack, 1), {&raised}};
      SearchWorker worker;
      CHECK(worker.reserve(p, job.plan));
      reset_counters();
      worker.run(job, {0, p.queries.count, 0, job.plan.grid.panels, 0});
      CHECK(read_counters().refined == 0 && d.untouched());
      CHECK(search_alone(p, worker, job.stop) == Status::stopped);
      CHECK(search_alone(p, worker, {}) == Status::ok);  // and the worker can run another search
      CHECK(d.indices[0] >= 0);
    }
  });
}

TEST(stop_is_seen_between_blocks_of_refined_rows) {
  Data d;
  std::atomic<bool> raised{false};
  Refiner refiner;
  CHECK(refiner.reserve(rows(d.b, kWidth), kWidth));
  refiner.set_metric(Metric::dot, nullptr);
  refiner.set_stop({&raised});
  refiner.load(0, d.x.data(), DType::f32);
  int64_t seen = 0;
  refiner.for_each_key(1, nullptr, 0, kRows, [&](int, double, int64_t) {
    ++seen;
    raised = true;
  });
  CHECK(seen == Refiner::kBlock);  // of kRows
}

TEST(stop_is_seen_between_stretches) {
  std::atomic<bool> raised{false};
  std::vector<int64_t> begun;
  CHECK(!in_stretches({&raised}, 0, 100, 10, [&](int64_t from, int64_t to) {
    CHECK(to == from + 10);
    begun.push_back(from);
    raised = from == 20;
  }));
  CHECK((begun == std::vector<int64_t>{0, 10, 20}));
  int64_t reached = 0;
  CHECK(in_stretches({}, 0, 95, 10, [&](int64_t, int64_t to) { reached = to; }));
  CHECK(reached == 95 && stretch_of(0) > 0 && stretch_of(int64_t{1} << 40) == 1);
}

TEST(stop_keeps_later_tasks_from_running) {
  std::atomic<bool> raised{false};
  Parallel parallel = threads(1);
  parallel.stop.flag = &raised;
  int64_t ran = 0;
  CHECK(for_each_task(parallel, 10, [&](int, int64_t task) {
          ++ran;
          raised = task == 3;
        }) == Status::stopped);
  CHECK(ran == 4);
  raised = false;
  CHECK(for_each_task(parallel, 10, [&](int, int64_t) {}) == Status::ok);
}

TEST(each_worker_begins_with_its_own_tasks) {
  for (int64_t tasks : {0, 1, 2, 3, 4, 10, 101}) {
    std::vector<std::atomic<int>> ran(static_cast<size_t>(tasks));
    CHECK(for_each_own_task(threads(4), tasks, [&](int worker, int64_t task) {
            CHECK(worker >= 0 && worker < 4);
            ++ran[static_cast<size_t>(task)];
          }) == Status::ok);
    for (const auto& times : ran) CHECK(times == 1);
  }
  // Workers that run one after another: the first one does its own, and then those of the others, in order.
  Parallel one_by_one;
  one_by_one.workers = 3;
  one_by_one.run = [](void*, int workers, void (*body)(void*, int), void* arg) {
    for (int w = workers; w-- > 0;) body(arg, w);
  };
  std::vector<int64_t> order;
  CHECK(for_each_own_task(one_by_one, 9, [&](int, int64_t task) { order.push_back(task); }) == Status::ok);
  CHECK((order == std::vector<int64_t>{6, 7, 8, 0, 1, 2, 3, 4, 5}));
  std::atomic<bool> raised{false};
  one_by_one.stop.flag = &raised;
  order.clear();
  CHECK(for_each_own_task(one_by_one, 9, [&](int, int64_t task) {
          order.push_back(task);
          raised = task == 7;
        }) == Status::stopped);
  CHECK((order == std::vector<int64_t>{6, 7}));
}

TEST(stop_ends_packing_and_products) {
  for_each_isa([] {
    Data d;
    d.memory.reserve(pack_bytes(kRows, kWidth, Metric::cosine));
    CHECK(pack_bank(rows(d.b, kWidth), Metric::cosine, d.memory.get(), Stopped().workers()) == Status::stopped);
    const std::vector<double> x64(d.x.begin(), d.x.end()), b64(d.b.begin(), d.b.end());
    for (const bool wide : {false, true})
      for (const bool exact : {false, true}) {
        ProjectProblem p;
        p.queries = wide ? rows(x64, kWidth) : rows(d.x, kWidth);
        p.bank = wide ? rows(b64, kWidth) : rows(d.b, kWidth);
        p.out = d.out.data();
        p.exact = exact;
        CHECK(project(p, Stopped().workers()) == Status::stopped);
        if (!wide) p.pack = d.pack(p.metric);
        CHECK(project(p, Stopped().workers()) == Status::stopped);
        CHECK(d.untouched());
      }
    ProjectProblem listed;
    listed.queries = rows(d.x, kWidth);
    listed.bank = rows(d.b, kWidth);
    listed.out = d.out.data();
    listed.exact = true;
    listed.indices = d.codes.data();
    listed.k = 1;
    CHECK(project(listed, Stopped().workers()) == Status::stopped);
    CHECK(d.untouched());
  });
}

TEST(stop_ends_codes_of_several_codebooks) {
  for_each_isa([] {
    Data d;
    const PackedCodebook codebook{rows(d.b, kWidth), d.pack(Metric::sqeuclidean)};
    std::vector<double> squares(2);
    std::vector<int64_t> valid(2);
    ResidualProblem p;
    p.queries = rows(d.x, kWidth);
    p.stages = {codebook, codebook};
    p.codes = d.indices.data();
    p.quantized = d.out.data();
    p.squares = squares.data();
    p.valid = valid.data();
    CHECK(residual_quantize(p, Stopped().workers()) == Status::stopped);
    const auto wide = gaussian<float>(2200 * 2 * kWidth, 3);
    ProductProblem q;
    q.queries = rows(wide, 2 * kWidth);
    q.codebooks = {codebook, codebook};
    std::vector<int64_t> codes(2200 * 2, -7);
    q.codes = codes.data();
    CHECK(product_quantize(q, Stopped().workers()) == Status::stopped);
    CHECK(d.untouched() && codes == std::vector<int64_t>(2200 * 2, -7));
  });
}

TEST(stop_ends_gathers_sums_and_gradients) {
  Data d;
  const Rows x = rows(d.x, kWidth), b = rows(d.b, kWidth);
  Stopped stopped;
  const Parallel parallel = stopped.workers();

  const LookupProblem gathered{.codes = d.codes.data(), .count = kQueries, .bank = b, .out = d.out.data()};
  CHECK(lookup(gathered, parallel) == Status::stopped);
  const LookupDotProblem dots{.codes = d.codes.data(), .x = x, .bank = b, .out = d.out.data()};
  CHECK(lookup_dot(dots, parallel) == Status::stopped);
  for (const int64_t segments : {int64_t{4}, kRows}) {  // read as a stream, and sorted by code
    SegmentSumProblem s;
    s.codes = d.codes.data();
    s.count = kQueries;
    s.segments = segments;
    s.source = x;
    s.out = d.out.data();
    CHECK(segment_sum(s, parallel) == Status::stopped);
  }
  PairProblem pairs;
  pairs.queries = x;
  pairs.bank = b;
  pairs.indices = d.codes.data();
  pairs.grad = d.x.data();
  pairs.grad_queries = d.more.data();
  pairs.grad_bank = d.out.data();
  CHECK(pair_gradients(pairs, parallel) == Status::stopped);
  ProjectGradientProblem gradients;
  gradients.queries = gradients.grad = x;  // a bank of kWidth rows
  gradients.bank = {d.b.data(), DType::f32, kWidth, kWidth, kWidth, 1};
  gradients.grad_queries = d.more.data();
  gradients.grad_bank = d.out.data();
  CHECK(project_gradients(gradients, parallel) == Status::stopped);
  QuantizeLossProblem loss;
  loss.x = loss.quantized = x;
  loss.codes = d.codes.data();
  CHECK(quantize_loss(loss, parallel) == Status::stopped);
  PassBackProblem back;
  back.grad = back.x = back.quantized = d.x.data();
  back.rows = kQueries;
  back.width = kWidth;
  back.out = d.out.data();
  CHECK(pass_back(back, parallel) == Status::stopped);
  CHECK(d.untouched());
}
