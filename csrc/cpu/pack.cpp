// Packs a bank: panels, norms, kinds and bounds in one pass, in a frame chosen from a sample (frame.cpp).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../core/bounds.h"
#include "api.h"
#include "frame.h"
#include "pack.h"
#include "panel_writer.h"
#include "search/screens/head_coder.h"

namespace vecbank::cpu {
namespace {

std::atomic<int64_t> rows_written{0};  // packed_rows()

// Asks for large pages: a search reads a pack from end to end, and the addresses of small pages would have to be looked
// up all the time.
void use_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), from = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t to = (begin + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (from < to) (void)madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);  // advice: it may fail
#endif
}

constexpr double kRotationPays = 1.25;  // finer codes by so much are worth the rotation of queries

// What a worker found in the rows that it packed.
struct Tally {
  int64_t fallbacks = 0, exceptional = 0, far = 0, negligible = 0;
  double size = 0.0;                  // the largest coordinate of a negligible row
  double most = 0.0, least = kNoRow;  // the largest packed norm; the smallest from the origin but 0
  static constexpr double kNoRow = std::numeric_limits<double>::infinity();
  void count(RowKind kind) {
    fallbacks += kind == RowKind::fallback;
    far += kind == RowKind::far;
    negligible += kind == RowKind::negligible;
    exceptional += kind != RowKind::ordinary;
  }
  void add(const Tally& t) {
    fallbacks += t.fallbacks, exceptional += t.exceptional, far += t.far, negligible += t.negligible;
    size = std::max(size, t.size), most = std::max(most, t.most), least = std::min(least, t.least);
  }
};

template <class T>
struct PanelScratch {
  PanelWriter<T> writer;
  Tally tally;
  Buffer<T> panels, rotated;  // that become codes
  HeadCoder head;
  bool reserve(const Rows& bank, Stop stop, PanelKind kind, int64_t head_width) {
    const int64_t together = head_width > 0 ? HeadCoder::kTogether : 1;
    return writer.reserve(bank, stop) &&
           (kind != PanelKind::int8 ||
            (panels.reserve(together * (bank.width + 3) * kPanel) && rotated.reserve(bank.width * kPanel))) &&
           (head_width == 0 || head.reserve(bank.width, head_width));
  }
};

// A pack that is being written.
template <class T>
struct Packing {
  using Scratch = PanelScratch<T>;
  const Rows& bank;
  PackHeader& h;
  const double* biases = nullptr;
  double* norms = nullptr;
  RowKind* kinds = nullptr;
  char* panels = nullptr;
  int64_t stride = 0;             // bytes between panels
  double negligible_below = 0.0;  // packed norm, for distances; a zero row is always negligible

  Packing(const Rows& rows, PackHeader& header, const double* bias) : bank(rows), h(header), biases(bias) {
    char* base = reinterpret_cast<char*>(&h);
    const Metric metric = static_cast<Metric>(h.metric);
    if (record(metric).unit_rows) norms = reinterpret_cast<double*>(base + h.norms_at);
    kinds = reinterpret_cast<RowKind*>(base + h.kinds_at);
    panels = base + h.panels_at;
    stride = panel_bytes(h.panels, h.width, metric, h.biased != 0, h.head);
  }

  // `number`: the row's norm or bias, where there is one.
  RowKind kind_of(int64_t j, const ColumnFacts& facts, double number, Scratch& scratch) const {
    const MetricRecord m = record(static_cast<Metric>(h.metric));
    Tally& tally = scratch.tally;
    if (((m.unit_rows || h.biased) && std::isnan(number)) || (!m.unit_rows && std::isnan(facts.packed)))
      return RowKind::never;
    if (facts.packed < std::numeric_limits<double>::infinity()) tally.most = std::max(tally.most, facts.packed);
    if (facts.whole > 0.0) tally.least = std::min(tally.least, facts.whole);
    if (m.shares_frame && !(facts.packed * (1.0 - 0x1p-19) <= kFarNorm)) return RowKind::far;
    if (!facts.fits) return RowKind::fallback;
    if (h.biased || (facts.whole > 0.0 && !(facts.whole < negligible_below))) return RowKind::ordinary;
    const double size = scratch.writer.norms.largest(bank, j);
    if (!m.shares_frame && size > 0.0) return RowKind::ordinary;  // the squares of its coordinates underflow
    tally.size = std::max(tally.size, size);
    return RowKind::negligible;
  }

  // Writes panels [p, end). `fresh`: every row's kind is determined; else negligible rows stay negligible, and no other
  // row becomes negligible.
  void write(int64_t p, int64_t end, Scratch& scratch, bool fresh) {
    const int64_t together = h.panels != PanelKind::int8 ? end - p : h.head > 0 ? HeadCoder::kTogether : 1;
    for (; p < end && !scratch.writer.stop.requested(); p += together) {
      const int64_t count = std::min(together, end - p);
      for (int64_t i = 0; i < count; ++i) write_numbers(p + i, panel_of(p, i, scratch), scratch, fresh);
      if constexpr (sizeof(T) == 4) {
        if (h.panels == PanelKind::int8 && !scratch.writer.stop.requested()) code(p, count, scratch);
      }
    }
  }

  T* panel_of(int64_t p, int64_t i, Scratch& scratch) {
    return h.panels == PanelKind::int8 ? scratch.panels.get() + i * (h.width + 3) * kPanel
                                       : reinterpret_cast<T*>(panels + (p + i) * stride);
  }

  void write_numbers(int64_t p, T* panel, Scratch& scratch, bool fresh) {
    double unused[kPanel];
    scratch.writer.write(
        bank, h, p, biases, norms != nullptr ? norms + p * kPanel : unused,
        [&](int64_t j, const ColumnFacts& facts, double number) {
          RowKind kind = kind_of(j, facts, number, scratch);
          if (!fresh && (kind == RowKind::negligible || kind == RowKind::ordinary))
            kind = kinds[j] == RowKind::negligible ? RowKind::negligible : RowKind::ordinary;
          kinds[j] = kind;
          scratch.tally.count(kind);
          return kind;
        },
        panel);
  }

  void code(int64_t p, int64_t count, Scratch& scratch) {
    const float *panel = scratch.panels.get(), *bound = panel + (h.width + 1) * kPanel;
    if (h.head > 0) return scratch.head.code(panel, h, p, count);
    const float* coordinates = panel + kPanel;
    if (h.rotated) {
      kernels().int8.rotate(coordinates, kPanel, h.width, scratch.rotated.get());
      coordinates = scratch.rotated.get();
    }
    kernels().int8.quantize_panel(coordinates, bound, bound + kPanel, int8::Layout(h), h.bank_code,
                                  int8::rounding_of(h), reinterpret_cast<int32_t*>(panels + p * stride));
  }

  // Whether a sample's rows have larger codes, next to their largest coordinate, when they are rotated.
  bool rotation_pays(Scratch& scratch) {
    double plain = 0.0, rotated = 0.0;  // sums of norms in codes
    const int64_t count = ceil_div(bank.count, kPanel), sample = std::min<int64_t>(count, 8);
    const auto norms_of = [&](const float* coordinates) {
      double sum = 0.0;
      for (int c = 0; c < kPanel; ++c) {
        double most = 0.0, squares = 0.0;
        for (int64_t k = 0; k < h.width; ++k) {
          const double v = static_cast<double>(coordinates[k * kPanel + c]);
          most = std::max(most, std::fabs(v));
          squares += v * v;
        }
        if (most > 0.0) sum += std::sqrt(squares) / most;
      }
      return sum;
    };
    for (int64_t s = 0; s < sample; ++s) {
      double unused[kPanel];
      scratch.writer.write(
          bank, h, s * (count - 1) / std::max<int64_t>(1, sample - 1), biases, unused,
          [](int64_t, const ColumnFacts& facts, double) { return facts.fits ? RowKind::ordinary : RowKind::never; },
          scratch.panels.get());
      kernels().int8.rotate(scratch.panels.get() + kPanel, kPanel, h.width, scratch.rotated.get());
      plain += norms_of(scratch.panels.get() + kPanel);
      rotated += norms_of(scratch.rotated.get());
    }
    return rotated > kRotationPays * plain;
  }

  // Writes all panels, and into the header what was found about the rows.
  Status write_all(PerWorker<Scratch>& workers, const Parallel& parallel, Tally& all) {
    const int64_t count = ceil_div(bank.count, kPanel);
    int64_t batch = std::max<int64_t>(1, (1 << 16) / ((bank.width + 3) * kPanel));  // enough work for a task
    if (h.head > 0) batch = round_up_to(batch, HeadCoder::kTogether);
    h.first_negligible = -1;
    const Status done = for_each_task(parallel, ceil_div(count, batch), [&](int worker, int64_t task) {
      const int64_t end = std::min(count, (task + 1) * batch);
      write(task * batch, end, workers[worker], true);
      rows_written.fetch_add((end - task * batch) * kPanel, std::memory_order_relaxed);
    });
    if (done != Status::ok) return done;
    all = {};
    for (Scratch& scratch : workers) {
      all.add(scratch.tally);
      scratch.tally = {};
    }
    h.fallbacks = all.fallbacks, h.exceptional = all.exceptional, h.far = all.far, h.negligible = all.negligible;
    h.negligible_size = all.size;
    screen_first_negligible(0, workers[0]);
    return parallel.stop.requested() ? Status::stopped : Status::ok;
  }

  // The first negligible row from `from` on is screened for all of them.
  void screen_first_negligible(int64_t from, Scratch& scratch) {
    h.first_negligible = h.negligible == 0 ? -1 : next_negligible(&h, from);
    if (const int64_t p = h.first_negligible / kPanel; h.first_negligible >= 0) write(p, p + 1, scratch, false);
    scratch.tally = {};
  }
};

}  // namespace

template <class T>
Status pack_as(const Rows& bank, Metric metric, void* out, const Parallel& parallel, const double* bias, PanelKind kind,
               ScreenChoice screen, HeadChoice head) {
  KeepSubnormals keep;
  const PackHeader planned = pack_layout(bank.count, bank.width, metric, bank.dtype, kind, bias != nullptr, head.width);
  char* base = static_cast<char*>(out);
  use_large_pages(out, planned.bytes);
  PackHeader& h = *static_cast<PackHeader*>(out);
  const float kept_error = head.width > 0 && head.rotation == nullptr ? h.turn_error : 0.0f;
  std::memset(base, 0, static_cast<size_t>(planned.rotation_at));  // gaps too, so that equal banks have equal packs
  if (head.width > 0) {
    const int64_t end = planned.tails_at + bank.count * tail_bytes(bank.width, head.width);
    std::memset(base + end, 0, static_cast<size_t>(planned.bytes - end));
  }
  h = planned;
  h.screen = screen;
  h.turn_error = kept_error;
  if (kind == PanelKind::int8) h.bank_code = static_cast<int8_t>(kernels().int8.bank_code);
  if (refined_only(metric)) return Status::ok;
  if (head.rotation != nullptr) {
    double off = 0.0;
    const Status measured = turn_error_of(head.rotation, bank.width, parallel, &off);
    if (measured != Status::ok) return measured;
    if (!(off <= static_cast<double>(kMostTurnError))) return Status::bad_rotation;
    h.turn_error = round_up(off);
    pack_rotation(head.rotation, bank.width, pack_rotation(&h));
  }
  double* centre = reinterpret_cast<double*>(base + h.centre_at);
  const Status framed = choose_frame(bank, metric, centre, &h.exponent, &h.centred, parallel.stop);
  if (framed != Status::ok) return framed;

  PerWorker<PanelScratch<T>> workers(parallel.workers);
  if (!workers.each([&](PanelScratch<T>& scratch) { return scratch.reserve(bank, parallel.stop, kind, head.width); }))
    return Status::out_of_memory;
  Packing<T> packing(bank, h, bias);
  if constexpr (sizeof(T) == 4)
    h.rotated = kind == PanelKind::int8 && head.width == 0 && packing.rotation_pays(workers[0]);
  Tally found;
  const Status written = packing.write_all(workers, parallel, found);
  if (written != Status::ok) return written;
  const bool far_apart = record(metric).shares_frame && found.least < std::ldexp(found.most, -kNegligible);
  if (record(metric).unit_rows || (found.most <= kMaxBankNorm && !far_apart)) return Status::ok;

  // The sample was not representative of all rows.
  const int32_t before = h.exponent;
  const Status revised =
      revise_exponent(bank, metric, h.centred ? centre : nullptr, parallel, &h.exponent, &packing.negligible_below);
  if (revised != Status::ok) return revised;
  const double least = std::ldexp(found.least, h.exponent - before);
  if (h.exponent == before && !(least < packing.negligible_below)) return Status::ok;
  return packing.write_all(workers, parallel, found);
}
template Status pack_as<float>(const Rows&, Metric, void*, const Parallel&, const double*, PanelKind, ScreenChoice,
                               HeadChoice);
template Status pack_as<double>(const Rows&, Metric, void*, const Parallel&, const double*, PanelKind, ScreenChoice,
                                HeadChoice);

Status repack_rows(const Rows& bank, PackHeader* pack, const int64_t* rows, int64_t count, const Parallel& threads,
                   const double* bias, bool* fit) {
  KeepSubnormals keep;
  const Parallel alone, &parallel = count * bank.width < (1 << 14) ? alone : threads;  // too little work to share
  PackHeader& h = *pack;
  *fit = true;
  if (refined_only(static_cast<Metric>(h.metric))) return Status::ok;
  h.rewritten += count;
  *fit = h.rewritten <= h.rows;  // else the frame was chosen for other rows than these
  if (!*fit) return Status::ok;
  Packing<float> packing(bank, h, bias);
  Buffer<int64_t> touched;
  PerWorker<PanelScratch<float>> workers(parallel.workers);
  if (!workers.each([&](PanelScratch<float>& scratch) { return scratch.reserve(bank, {}, h.panels, h.head); }) ||
      !touched.reserve(count))
    return Status::out_of_memory;
  int64_t* panels = touched.get();
  for (int64_t i = 0; i < count; ++i) panels[i] = rows[i] / kPanel;
  std::sort(panels, panels + count);
  const int64_t tasks = std::unique(panels, panels + count) - panels;

  Tally before, after;
  for (int64_t i = 0; i < tasks; ++i)
    for (int64_t j = panels[i] * kPanel; j < std::min(bank.count, (panels[i] + 1) * kPanel); ++j)
      before.count(packing.kinds[j]);
  bool first_gone = false;
  for (int64_t i = 0; i < count; ++i) {
    first_gone = first_gone || rows[i] == h.first_negligible;
    packing.kinds[rows[i]] = RowKind::ordinary;
  }
  const Status written = for_each_task(
      parallel, tasks, [&](int worker, int64_t i) { packing.write(panels[i], panels[i] + 1, workers[worker], false); });
  if (written != Status::ok) return written;
  for (const PanelScratch<float>& scratch : workers) after.add(scratch.tally);
  h.fallbacks += after.fallbacks - before.fallbacks, h.far += after.far - before.far;
  h.negligible += after.negligible - before.negligible, h.exceptional += after.exceptional - before.exceptional;
  if (first_gone) packing.screen_first_negligible(h.first_negligible, workers[0]);
  *fit = h.fallbacks <= std::max(h.fallbacks + before.fallbacks - after.fallbacks, h.rows / 256);
  return parallel.stop.requested() ? Status::stopped : Status::ok;
}

PanelKind panels_for_search(int64_t rows, int64_t width, Metric metric, ScreenChoice screen) {
  const bool pays = rows >= kernels().int8.least_rows && width >= int8::kLeastWidth;
  const bool wanted = screen == ScreenChoice::int8 || (screen == ScreenChoice::automatic && pays);
  return wanted && int8::serves(width, metric) ? PanelKind::int8 : PanelKind::float32;
}

int64_t packed_rows() { return rows_written.load(std::memory_order_relaxed); }

Status pack_bank(const Rows& bank, Metric metric, void* out, const Parallel& parallel, const double* bias,
                 PanelKind kind, ScreenChoice screen, HeadChoice head) {
  if (head.width > 0) take_head_use(out);  // of another pack that was there
  return pack_as<float>(bank, metric, out, parallel, bias, kind, screen, head);
}

const PackHeader* check_pack(const void* pack, int64_t bytes, const Rows& bank, Metric metric, bool biased) {
  if (pack == nullptr || bytes < static_cast<int64_t>(sizeof(PackHeader)) ||
      reinterpret_cast<uintptr_t>(pack) % alignof(PackHeader) != 0)
    return nullptr;
  const PackHeader* h = static_cast<const PackHeader*>(pack);
  const PanelKind kind =
      h->panels == PanelKind::int8 && int8::serves(bank.width, metric) ? PanelKind::int8 : PanelKind::float32;
  const int64_t head = kind == PanelKind::int8 && h->head > 0 && h->head < bank.width ? h->head : 0;
  return is_pack_of(*h, pack_layout(bank.count, bank.width, metric, bank.dtype, kind, biased, head)) &&
                 bytes >= h->bytes
             ? h
             : nullptr;
}

}  // namespace vecbank::cpu
