// What the host decides before it launches CUDA kernels: schedules, ranges, workspace, bounds. No kernel runs here.
#include "check.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/topk_list.h"
#include "cuda/heuristics.h"
#include "cuda/plan.h"
#include "cuda/tensor_cores/bounds.h"

namespace {

using namespace vecbank;
using namespace vecbank::cpu;

TEST(cuda_schedule_visits_every_panel_once) {
  for (const int64_t rows : {1, 15, 16, 17, 100, 1000, 12345, 100000}) {
    const cuda::Schedule s = cuda::make_schedule(rows);
    std::vector<bool> seen(static_cast<size_t>(s.panels));
    for (int64_t slot = 0; slot < s.panels; ++slot) {
      const int64_t panel = s.panel(slot);
      CHECK(panel >= 0 && panel < s.panels && !seen[static_cast<size_t>(panel)]);
      seen[static_cast<size_t>(panel)] = true;
    }
  }
  const cuda::Schedule large = cuda::make_schedule((int64_t{1} << 32) - 1);  // no overflow at the far end
  CHECK(large.panel(large.panels - 1) >= 0 && large.panel(large.panels - 1) < large.panels);
}

// The first slots of a schedule are a sample of the whole bank: no stretch of panels is left out, and none is crowded.
TEST(cuda_schedule_begins_with_a_sample) {
  for (const int64_t rows : {40000, 123456, 1000000})
    for (const int64_t first : {16, 64, 200}) {
      const cuda::Schedule s = cuda::make_schedule(rows);
      std::vector<int64_t> sample;
      for (int64_t slot = 0; slot < first; ++slot) sample.push_back(s.panel(slot));
      std::sort(sample.begin(), sample.end());
      sample.push_back(s.panels + sample[0]);
      for (size_t i = 0; i + 1 < sample.size(); ++i) {
        const double gap = static_cast<double>(sample[i + 1] - sample[i]) * static_cast<double>(first);
        CHECK(gap < 3.0 * static_cast<double>(s.panels) && gap > 0.3 * static_cast<double>(s.panels));
      }
    }
}

// Ranges of a piece: they cover it in whole tiles, and none brings more expected survivors than the list has room for.
void check_ranges(const cuda::SearchPlan& plan, int64_t n, int64_t k, int processors) {
  const int64_t end = std::min<int64_t>(plan.piece_panels, plan.schedule.panels);
  const int64_t tiles = ceil_div(std::min(n, plan.rows), cuda::kTile);
  int64_t ranges = 0;
  for (int64_t at = 0; at < end; ++ranges) {
    const cuda::Range next = cuda::next_range(plan.lists, k, tiles, processors, at, end);
    CHECK(next.end > at && next.end <= end && next.blocks >= 1 && next.blocks <= 65535);
    CHECK(next.end == end || next.end % cuda::kTilePanels == 0);
    const int64_t columns = (next.end - at) * kPanel;
    if (!plan.lists.fused)
      CHECK(at == 0 ? columns <= plan.lists.capacity : columns <= std::max<int64_t>(8 * at * kPanel, cuda::kTile));
    else
      CHECK(cuda::expected_survivors(k, at * kPanel, columns, next.blocks) <=
            static_cast<double>(plan.lists.capacity) / 2 * (1.0 + 1e-12));
    at = next.end;
  }
  CHECK(!plan.lists.fused || ranges <= 6);
}

TEST(cuda_plans_fit_the_workspace) {
  for (const int64_t n : {1, 7, 128, 5000, 1 << 20})
    for (const int64_t m : {1, 100, 8192, 1000000, 50000000})
      for (const int64_t d : {1, 64, 768, 4096, 16384, 100000})
        for (const int64_t k : {1, 10, 32, 100, 1000, 5000})
          for (const int processors : {1, 20, 132})
            for (const cuda::Path path : {cuda::Path::simt, cuda::Path::mma16, cuda::Path::sm90}) {
              if (k > m) continue;
              SearchProblem p;
              p.queries = {nullptr, DType::f32, n, d, d, 1};
              p.bank = {nullptr, DType::f32, m, d, d, 1};
              p.k = k;
              const cuda::SearchPlan plan = cuda::plan_search(p, processors, path);
              CHECK(plan.rows >= 1 && plan.rows <= cuda::kMostSearched && plan.slots >= 1);
              CHECK(plan.list >= 512 && plan.list <= cuda::kMostSorted &&
                    cuda::power_of_two_from(plan.list) == plan.list);
              CHECK(plan.slots == 1 || k <= plan.list / 2);  // a part keeps all its ranks at once
              if (plan.direct) continue;
              CHECK(plan.operands == (path != cuda::Path::simt));
              CHECK(plan.hopper == (path == cuda::Path::sm90 && d <= cuda::kWidestSm90));
              CHECK(plan.lists.fused == (k <= cuda::kMostListed && (!plan.hopper || k == 1)));
              CHECK(plan.lists.capacity >= k && plan.lists.capacity <= cuda::kMostSorted);
              CHECK(cuda::power_of_two_from(plan.lists.capacity) == plan.lists.capacity);
              CHECK(plan.piece_panels >= 1);
              check_ranges(plan, n, k, processors);
              const int64_t rows = plan.piece_panels * kPanel;
              if (plan.operands) CHECK(rows % cuda::kOperandTile == 0);
              const int64_t sides = plan.operands ? cuda::operand_rows(plan.rows) * cuda::operand_pitch(d) * 2 +
                                                        rows * cuda::operand_bytes(d)
                                                  : plan.rows * (d + 1) * 4 + rows * (d + 3) * 4;
              const int64_t bytes = plan.rows * plan.lists.capacity * static_cast<int64_t>(sizeof(cuda::Candidate)) +
                                    sides + plan.rows * 32 + d * 8 + plan.slots * (k * 16 + 8);
              CHECK(bytes + (1 << 16) <= cuda::kMostWorkspace);
            }
}

// The part of the time that multiprocessors wait for the last block of a launch, summed over the launches of a search
// whose bank is packed.
double time_lost(int64_t n, int64_t m, int64_t d, int64_t k, cuda::Path path, int processors) {
  SearchProblem p;
  p.queries = {nullptr, DType::bf16, n, d, d, 1};
  p.bank = {nullptr, DType::bf16, m, d, d, 1};
  p.k = k;
  const cuda::SearchPlan plan = cuda::plan_search(p, processors, path);
  const int64_t row_tiles = ceil_div(std::min(n, plan.rows), cuda::kTile), places = cuda::kTileBlocks * processors;
  double used = 0.0, taken = 0.0;
  for (int64_t at = 0; at < plan.schedule.panels;) {
    const cuda::Range range = cuda::next_range(plan.lists, k, row_tiles, processors, at, plan.schedule.panels);
    const cuda::TileWork w = cuda::make_tile_work(row_tiles, ceil_div(range.end - at, cuda::kTilePanels),
                                                  static_cast<int>(places), range.blocks);
    CHECK(w.blocks <= places);
    used += static_cast<double>(w.pairs()) / static_cast<double>(places);
    taken += static_cast<double>(w.begin(1) - w.begin(0));
    at = range.end;
  }
  return 1.0 - used / taken;
}

// No launch of the benchmarks' shapes ends with a wave of few blocks. (The first range of a short search with k = 32
// has few blocks, because the lists of its candidates have room for no more.)
TEST(cuda_tiles_leave_no_tail) {
  struct Shape {
    int64_t n, m, d, k;
    double allowed;
  };
  const Shape shapes[] = {{65536, 8192, 64, 1, 0.02},      {1048576, 8192, 64, 1, 0.02},
                          {1048576, 8192, 128, 1, 0.02},   {4096, 1000000, 128, 10, 0.02},
                          {4096, 1000000, 128, 100, 0.02}, {4096, 32768, 768, 32, 0.1},
                          {2048, 24576, 768, 32, 0.12}};
  for (const int processors : {108, 132})
    for (const Shape& s : shapes)
      for (const cuda::Path path : {cuda::Path::simt, cuda::Path::mma16}) {
        const double lost = time_lost(s.n, s.m, s.d, s.k, path, processors);
        CHECK(lost >= 0.0 && lost < s.allowed);
        if (lost >= s.allowed)
          std::printf("  %lld x %lld, d %lld, k %lld, path %d, %d processors: %.1f %% lost\n",
                      static_cast<long long>(s.n), static_cast<long long>(s.m), static_cast<long long>(s.d),
                      static_cast<long long>(s.k), static_cast<int>(path), processors, 100.0 * lost);
      }
}

// 16-bit inputs stay what they are; a mixture, or wider ones, are rounded to bf16.
TEST(cuda_plan_chooses_operands) {
  const auto plan = [](DType x, DType b, cuda::Path path) {
    SearchProblem p;
    p.queries = {nullptr, x, 100, 64, 64, 1};
    p.bank = {nullptr, b, 1000, 64, 64, 1};
    return cuda::plan_search(p, 20, path);
  };
  for (const DType t : {DType::bf16, DType::f16}) {
    CHECK(!plan(t, t, cuda::Path::simt).operands);
    CHECK(plan(t, t, cuda::Path::mma16).operands && cuda::operand_type(t) == t);
    CHECK(plan(t, DType::f32, cuda::Path::mma16).operands);
  }
  for (const DType wide : {DType::f32, DType::f64}) CHECK(cuda::operand_type(wide) == DType::bf16);
}

// Where the operands of a bank come from: its pack, where that holds what the screen reads; the workspace, whole where
// several chunks of queries need several pieces and there is room.
TEST(cuda_plan_packs_once) {
  using namespace cuda;
  SearchProblem p;
  p.k = 10;
  const auto plan = [&](int64_t n, int64_t m, Path path, bool packed, bool room) {
    p.queries = {nullptr, DType::bf16, n, 128, 128, 1};
    p.bank = {nullptr, DType::bf16, m, 128, 128, 1};
    p.pack = packed ? reinterpret_cast<const PackHeader*>(256) : nullptr;
    return plan_search(p, 132, path, false, room);
  };
  for (const Path path : {Path::mma16, Path::sm90}) {
    const SearchPlan with = plan(100000, 1000000, path, true, true);
    CHECK(with.ready && !with.whole && with.piece_panels >= with.schedule.panels);  // one piece
    const SearchPlan whole = plan(100000, 1000000, path, false, true);
    CHECK(!whole.ready && whole.whole && whole.piece_panels >= whole.schedule.panels);
    CHECK(!plan(100000, 1000000, path, false, false).whole);
    CHECK(!plan(1000, 1000000, path, false, true).whole);  // one chunk
    CHECK(!plan(100000, 1000, path, false, true).whole);   // one piece
    CHECK(plan(1, int64_t{1} << 31, path, true, true).piece_panels * kPanel * operand_pitch(128) <=
          kMostOperandElements);
  }
  CHECK(plan(100, kPanelRows, Path::simt, true, false).ready);
  CHECK(!plan(100, kPanelRows + 1, Path::simt, true, false).ready);  // no panels: packed a piece at a time
  CHECK(!plan(100000, 1000000, Path::simt, false, true).whole);
}

// The parts of a pack follow each other without overlap, and a size that is computed without comparisons is the same.
TEST(cuda_pack_layout) {
  using namespace cuda;
  for (const int64_t limit : {1, 255, 1 << 16})
    for (const int64_t n : {int64_t{0}, int64_t{1}, limit - 1, limit, limit + 1, 2 * limit, int64_t{1} << 40})
      CHECK(at_most<int64_t>(n, limit) == (n <= limit));
  for (const int64_t m : {int64_t{0}, int64_t{1}, int64_t{300}, kPanelRows, kPanelRows + 1, int64_t{3000000}})
    for (const int64_t d : {int64_t{0}, int64_t{1}, int64_t{64}, int64_t{100}, kWidestScreen, kWidestScreen + 1}) {
      const DevicePackParts<int64_t> parts = device_pack_parts(m, d, Metric::l2);
      const PackHeader h = device_pack_layout(m, d, Metric::l2, DType::bf16, false);
      const int64_t panels = ceil_div(m, kPanel) * (d + 3) * kPanel * 4, rows = operand_rows(m);
      const bool screened = d <= kWidestScreen;
      CHECK(h.bytes == parts.bytes && h.panels_at == parts.panels_at && device_pack_bytes(m, d, Metric::l2) == h.bytes);
      for (const int64_t at : {parts.panels_at, parts.operands_at, parts.terms_at, parts.bytes})
        CHECK(at % kPackAlignment == 0);
      CHECK(parts.panels_at >= kCentreAt + d * 8 && parts.panels_at < kCentreAt + d * 8 + kPackAlignment);
      CHECK(parts.operands_at == parts.panels_at + (m <= kPanelRows ? round_up_to(panels, kPackAlignment) : 0));
      CHECK(parts.terms_at == parts.operands_at + (screened ? rows * operand_pitch(d) * 2 : 0));
      CHECK(parts.bytes == parts.terms_at + (screened ? 16 * rows : 0));
      const Rows bank{nullptr, DType::f16, m, d, d, 1};
      const PackedOperands held = packed_operands(reinterpret_cast<const PackHeader*>(1 << 20), bank, Metric::l2);
      const char* base = reinterpret_cast<const char*>(1 << 20);
      CHECK(held.rows.type == DType::f16 && held.rows.pitch == operand_pitch(d));
      CHECK(reinterpret_cast<const char*>(held.rows.rows) == base + parts.operands_at);
      const float* terms[] = {held.terms.start, held.terms.lift, held.terms.bounds[0], held.terms.bounds[1]};
      for (int64_t i = 0; i < 4; ++i)
        CHECK(reinterpret_cast<const char*>(terms[i]) == base + parts.terms_at + 4 * i * rows);
    }
  for (const int64_t m : {0, 1000})  // a header alone
    CHECK(device_pack_bytes(m, 64, Metric::l1) == kPackAlignment);
  // Each device refuses the other's.
  const PackHeader ours = device_pack_layout(90, 8, Metric::dot, DType::f32, false);
  const PackHeader theirs = pack_layout(90, 8, Metric::dot, DType::f32, PanelKind::float32, false);
  CHECK(ours.norms_at == 0 && ours.kinds_at == 0);
  CHECK(is_pack_of(ours, ours) && !is_pack_of(ours, theirs) && !is_pack_of(theirs, ours));
}

// A fallback row costs about 300 times what a screen costs it, so among many rows overflow must be rare: k = 1 keeps
// one candidate, and as many more as a Poisson variable says.
TEST(cuda_plan_lists_of_many_rows_seldom_overflow) {
  for (const int64_t m : {1000, 8192, 20000, 65536, 1000000})
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SearchProblem p;
      p.queries = {nullptr, dtype, 1 << 20, 64, 64, 1};
      p.bank = {nullptr, dtype, m, 64, 64, 1};
      const cuda::SearchPlan plan = cuda::plan_search(p, 132, cuda::Path::mma16);
      CHECK(plan.lists.capacity >= 16 && plan.lists.capacity <= 64);
      CHECK(dtype == DType::f32 ? plan.rows > 1 << 15 : plan.rows > 1 << 16);
      // Rounded operands keep near rows as well: twice as many.
      const double more = (dtype == DType::f32 ? 2.0 : 1.0) * (cuda::expected_survivors(1, 0, m, 1) - 1.0);
      double chance = std::exp(-more), within = chance;
      for (int64_t i = 1; i < plan.lists.capacity; ++i) within += chance *= more / static_cast<double>(i);
      CHECK(1.0 - within < 2e-5);
    }
}

// Few queries begin on a few blocks with a sample; many go through a piece at once.
TEST(cuda_ranges_follow_the_number_of_queries) {
  SearchProblem p;
  p.bank = {nullptr, DType::f32, 1000000, 128, 128, 1};
  p.k = 10;
  for (const int64_t n : {1, 1 << 20}) {
    p.queries = {nullptr, DType::f32, n, 128, 128, 1};
    const cuda::SearchPlan plan = cuda::plan_search(p, 132);
    const int64_t tiles = ceil_div(std::min(n, plan.rows), cuda::kTile);
    const cuda::Range first = cuda::next_range(plan.lists, p.k, tiles, 132, 0, plan.schedule.panels);
    CHECK(first.end < plan.schedule.panels / 10);
    const cuda::Range only = cuda::next_range(plan.lists, p.k, 4 * 132, 132, 0, plan.schedule.panels);
    CHECK(only.end == plan.schedule.panels && only.blocks == 1);  // a block to every row tile
    const cuda::Range later =
        cuda::next_range(plan.lists, p.k, tiles, 132, plan.schedule.panels / 2, plan.schedule.panels);
    CHECK(later.end == plan.schedule.panels);
  }
}

TEST(cuda_plan_of_few_queries) {
  SearchProblem p;
  p.k = 10;
  for (const int64_t n : {1, 8, 16, 17, 1000})
    for (const int64_t d : {1, 128, 768, 3072, 3073, 12288, 12289, 40000})
      for (const int64_t m : {1, 50, 1000000}) {
        p.queries = {nullptr, DType::bf16, n, d, d, 1};
        p.bank = {nullptr, DType::bf16, m, d, d, 1};
        for (const cuda::Path path : {cuda::Path::simt, cuda::Path::mma16, cuda::Path::sm90}) {
          const cuda::SearchPlan plan = cuda::plan_search(p, 132, path, true);
          const bool fits = n <= 16 && d <= (n <= 4 ? 12288 : 3072) && m > 80;
          CHECK(plan.few == fits);
          CHECK(!plan.few || (plan.rows >= n && plan.lists.capacity == cuda::kFewCapacity));
          CHECK(!cuda::plan_search(p, 132, path).few);
        }
      }
}

TEST(cuda_refine_order_equals_cpu) {
  for (const int64_t d : {1, 7, 8, 9, 64, 129}) {
    const auto x = gaussian<double>(round_up_to(d, 8), 3), b = gaussian<double>(d, 4);
    std::vector<double> padded = x;
    for (int64_t i = d; i < static_cast<int64_t>(padded.size()); ++i) padded[static_cast<size_t>(i)] = 0.0;
    for (const Term term : {Term::product, Term::square}) {
      ScoreArgs a;
      double want = 0.0;
      a.queries = padded.data();
      a.bank = rows(b, d);
      a.term = term;
      a.count = 1;
      a.out = &want;
      a.out_stride = 1;
      double lane[8];
      for (int l = 0; l < 8; ++l) lane[l] = cuda::pair_lane(rows(padded, d), 0, rows(b, d), 0, l, term);
      for_each_isa([&] {
        kernels().score(a);
        CHECK(tree_sum(lane) == want);
      });
    }
  }
}

TEST(cuda_bounds_of_the_order) {
  const double keys[] = {-HUGE_VAL, -1.0, -0.0, 0.0, 2.0, HUGE_VAL};
  for (const double key : keys) CHECK(better({key, 5}, cuda::last_scored()) && better(cuda::first_scored(), {key, 0}));
}

TEST(cuda_operand_bound_covers_what_is_lost) {
  for (const int64_t d : {1, 64, 100, 1024, 16384})
    for (const DType type : {DType::bf16, DType::f16})
      for (const double lost : {0.0, 0x1p-13, 0x1p-9, 0x1p-8, 0.5}) {  // of unit rows
        const int64_t pitch = cuda::operand_pitch(d);
        CHECK(pitch % cuda::kOperandDepth == 0 && pitch >= d && pitch < d + cuda::kOperandDepth);
        const double share = cuda::operand_share(type, DType::f32, Metric::dot, false);
        const double bound = static_cast<double>(cuda::operand_norm(1.0, lost, share)) *
                             cuda::operand_bound(Metric::dot, d, pitch, 1.0, lost, share, 1.0);
        const double steps = static_cast<double>(pitch / 16) * cuda::kTensorUnit;
        CHECK(bound >= lost + (1.0 + lost) * lost + steps * (1.0 + lost) * (1.0 + lost));
        if (lost == 0.0) CHECK(bound <= share + 2.0 * steps + 0x1p-18);  // and little more
      }
  CHECK(cuda::operand_share(DType::f16, DType::f16, Metric::cosine, true) < 0x1p-20);  // queries keep their origin
  CHECK(cuda::operand_share(DType::f16, DType::f16, Metric::l2, true) > 0x1p-20);
}

// The threshold that the cascade takes from registers never exceeds the one that the screens compute column by column.
TEST(cuda_row_threshold_is_below_every_lower_bound) {
  std::mt19937 random(4);
  std::uniform_real_distribution<double> exponent(-40.0, 40.0), part(-1.0, 1.0);
  for (int i = 0; i < 200000; ++i) {
    const int64_t d = 1 + static_cast<int64_t>(random() % 4096);
    const Metric metric = i % 2 ? Metric::l2 : Metric::dot;
    const float norm = static_cast<float>(std::exp2(exponent(random))), size = static_cast<float>(part(random));
    const float r = static_cast<float>(screen_unit(d) * std::exp2(exponent(random)));
    const float upper = size * static_cast<float>(std::exp2(exponent(random)));
    const double c = start_bound_per_r2(metric, d), slack = i % 3 ? std::exp2(exponent(random) - 60.0) : 0x1p-100;
    const float gap = cuda::column_gap(2.0f * norm, r, 2.0f * above(c));
    const float threshold = cuda::row_threshold(upper - gap, cuda::twice_above(slack));
    const double exact = static_cast<double>(upper) - 2.0 * (static_cast<double>(norm) * r + c * r * r + slack);
    CHECK(static_cast<double>(threshold) <= exact);
    // And it gives little away.
    CHECK(exact - threshold <= 0x1p-18 * (std::fabs(static_cast<double>(upper)) + std::fabs(exact)) + 0x1p-120);
  }
}

// The same of lower bounds in float32, where columns have slacks of their own.
TEST(cuda_lower_bound_of_is_below_the_lower_bound) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> exponent(-40.0, 40.0), part(-1.0, 1.0);
  for (int i = 0; i < 200000; ++i) {
    const float norm = static_cast<float>(std::exp2(exponent(random))),
                r = static_cast<float>(std::exp2(exponent(random)));
    const float upper = static_cast<float>(part(random) * std::exp2(exponent(random)));
    const float lift = i % 3 ? static_cast<float>(std::exp2(exponent(random) - 20.0)) : 0.0f;
    const double slack = i % 5 ? std::exp2(exponent(random) - 60.0) : 0x1p-100;
    const float lower = cuda::lower_bound_of(upper, norm, r, 2.0f * lift + cuda::twice_above(slack));
    const double exact = static_cast<double>(upper) - 2.0 * (static_cast<double>(norm) * r + lift + slack);
    CHECK(static_cast<double>(lower) <= exact);
    CHECK(exact - lower <= 0x1p-18 * (std::fabs(static_cast<double>(upper)) + std::fabs(exact)) + 0x1p-120);
  }
  for (const float upper : {HUGE_VALF, -HUGE_VALF, NAN})
    CHECK(cuda::lower_bound_of(upper, 1.0f, 1.0f, 0.0f) == -HUGE_VALF);
  CHECK(cuda::lower_bound_of(1.0f, 0.0f, HUGE_VALF, 0.0f) == -HUGE_VALF);
}

TEST(cuda_stage_plans_fit) {
  for (const int capability : {80, 86, 89, 90, 100, 120, 0})
    for (const int64_t n : {0, 1, 64, 5000, 1 << 20, 1 << 27})
      for (const int64_t d : {0, 1, 48, 64, 128, 512, 4096, 100000})
        for (const size_t stages : {size_t{1}, size_t{8}, size_t{300}})
          for (const int64_t m : {0, 1024, 1000000})
            for (const DType dtype : {DType::f32, DType::f64}) {
              ResidualProblem p;
              p.queries = {nullptr, dtype, n, d, d, 1};
              p.stages.assign(stages, {{nullptr, dtype, m, d, d, 1}, reinterpret_cast<const PackHeader*>(64)});
              cuda::Device device;
              device.processors = 132;
              device.capability = capability;
              const cuda::StagesPlan plan = cuda::plan_stages(p.queries, p.stages, p.metric, true, device);
              CHECK(plan.blocks >= 1 && plan.blocks <= cuda::kMostStageBlocks);
              CHECK(plan.rows >= 1 && plan.rows <= cuda::kStepRows);
              if (plan.on_chip) CHECK(dtype == DType::f32 && d > 0 && cuda::stage_shared(d) <= (227 << 10));
              if (dtype == DType::f32 && d == 128 && m == 1024) CHECK(plan.on_chip);  // everywhere
              for (const cuda::Path path : {cuda::Path::simt, cuda::Path::mma16}) {
                device.path = path;
                CHECK(cuda::residual_workspace(p, device) <= cuda::kMostWorkspace);
              }
              ProductProblem q;
              q.queries = {nullptr, dtype, n, d * static_cast<int64_t>(stages), d * static_cast<int64_t>(stages), 1};
              q.codebooks = p.stages;
              CHECK(cuda::product_workspace(q, device) <= cuda::kMostWorkspace);
            }
  CHECK(cuda::shared_limit(86) == cuda::shared_limit(0) && cuda::shared_limit(80) < cuda::shared_limit(90));
}

}  // namespace
