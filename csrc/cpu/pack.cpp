// Packs a bank: panels, norms, kinds and bounds in one pass, in a frame chosen from a sample (frame.cpp).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../core/bounds.h"
#include "api.h"
#include "frame.h"
#include "pack.h"

namespace vecbank::cpu {
namespace {

template <class T>
void interleave(const void* const* rows, int count, DType dtype, int64_t width, const Affine* maps, T* out) {
  if constexpr (sizeof(T) == 4)
    kernels().interleave_f32(rows, count, kPanel, dtype, width, maps, out);
  else
    kernels().interleave_f64(rows, count, kPanel, dtype, width, maps, out);
}

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

struct PanelScratch {
  RowReader reader;
  NormScratch norms;
  Tally tally;
  Stop stop{};
  bool reserve(const Rows& bank, Stop flag) {
    stop = flag;
    return reader.reserve(bank, kPanel) && norms.reserve(bank);
  }
};

// A pack that is being written.
template <class T>
struct Packing {
  const Rows& bank;
  PackHeader& h;
  double* norms = nullptr;
  RowKind* kinds = nullptr;
  T* panels = nullptr;
  double negligible_below = 0.0;  // packed norm, for distances; a zero row is always negligible

  Packing(const Rows& rows, PackHeader& header) : bank(rows), h(header) {
    char* base = reinterpret_cast<char*>(&h);
    norms = reinterpret_cast<double*>(base + h.norms_at);
    kinds = reinterpret_cast<RowKind*>(base + h.kinds_at);
    panels = reinterpret_cast<T*>(base + h.panels_at);
  }

  RowKind kind_of(int64_t j, const ColumnFacts& facts, PanelScratch& scratch) const {
    const MetricRecord m = record(static_cast<Metric>(h.metric));
    Tally& tally = scratch.tally;
    if (((m.unit_rows || h.biased) && std::isnan(norms[j])) || (!m.unit_rows && std::isnan(facts.packed)))
      return RowKind::never;
    if (facts.packed < std::numeric_limits<double>::infinity()) tally.most = std::max(tally.most, facts.packed);
    if (facts.whole > 0.0) tally.least = std::min(tally.least, facts.whole);
    if (m.shares_frame && !(facts.packed * (1.0 - 0x1p-19) <= kFarNorm)) return RowKind::far;
    if (!facts.fits) return RowKind::fallback;
    if (h.biased || (facts.whole > 0.0 && !(facts.whole < negligible_below))) return RowKind::ordinary;
    const double size = scratch.norms.largest(bank, j);
    if (!m.shares_frame && size > 0.0) return RowKind::ordinary;  // the squares of its coordinates underflow
    tally.size = std::max(tally.size, size);
    return RowKind::negligible;
  }

  // Writes panel p. `fresh`: every row's kind is determined; else negligible rows stay negligible, and no other row
  // becomes negligible.
  void write(int64_t p, PanelScratch& scratch, bool fresh) {
    const Metric metric = static_cast<Metric>(h.metric);
    const MetricRecord m = record(metric);
    const int64_t d = bank.width;
    const int count = static_cast<int>(std::min<int64_t>(kPanel, bank.count - p * kPanel));
    const double post = std::ldexp(1.0, h.exponent);
    const double* centre = h.centred ? pack_centre(&h) : nullptr;
    T* panel = panels + p * (d + 3) * kPanel;
    T *start = panel, *coordinates = panel + kPanel, *bound = coordinates + d * kPanel, *upper = bound + kPanel;
    constexpr T inf = std::numeric_limits<T>::infinity();
    for (int c = 0; c < kPanel; ++c) start[c] = 0, bound[c] = 0, upper[c] = -inf;

    const void* rows[kPanel];
    Affine maps[kPanel];
    bool blank[kPanel] = {}, any_blank = false;
    for (int c = 0; c < count; ++c) {
      if (scratch.stop.requested()) return;
      const int64_t j = p * kPanel + c;
      rows[c] = scratch.reader.row(j, c);
      maps[c] = {centre, 1.0, post};
      const auto squares_in = [&](const Affine& map) { return kernels().stats(rows[c], bank.dtype, d, map).squares; };
      double whole = 0.0;
      if (m.unit_rows) {
        const double norm = scratch.norms.norm(bank, j);
        norms[j] = floored(norm);
        maps[c].pre = 1.0 / norms[j];
        whole = norm / norms[j] * post;
      }
      const double squares = squares_in(maps[c]);
      if (!m.unit_rows)
        whole = centre == nullptr ? std::sqrt(squares) * kNormRoom : std::sqrt(squares_in({nullptr, 1.0, post}));
      const ColumnFacts f =
          column_facts(metric, squares, whole, m.unit_rows ? norms[j] : 1.0, h.biased ? norms[j] : 0.0, post);
      RowKind kind = kind_of(j, f, scratch);
      if (!fresh && (kind == RowKind::negligible || kind == RowKind::ordinary))
        kind = kinds[j] == RowKind::negligible ? RowKind::negligible : RowKind::ordinary;
      kinds[j] = kind;
      scratch.tally.count(kind);
      blank[c] = kind == RowKind::fallback || kind == RowKind::never || kind == RowKind::far;
      any_blank = any_blank || blank[c];
      if (blank[c]) {
        upper[c] = kind == RowKind::fallback ? inf : -inf;
        continue;
      }
      double r = bank_bound(metric, d, f.packed, f.whole), beta = start_bound(d, 2.0 * std::fabs(f.start));
      if (kind == RowKind::negligible && m.shares_frame) {
        // The first negligible row stands for all: the others are at most this far from it, so none of their scores
        // exceeds its bound.
        const double apart = 2.0 * h.negligible_size * std::sqrt(static_cast<double>(d)) * post * kNormRoom;
        r += apart;
        beta += apart * (f.packed + apart);
      }
      start[c] = static_cast<T>(f.start);
      bound[c] = round_up(r);
      upper[c] = kind == RowKind::negligible && j != h.first_negligible ? -inf : round_up(f.start + beta);
    }
    interleave(rows, count, bank.dtype, d, maps, coordinates);
    if (any_blank)
      for (int64_t k = 0; k < d; ++k)
        for (int c = 0; c < count; ++c)
          if (blank[c]) coordinates[k * kPanel + c] = 0;
  }

  // Writes all panels, and into the header what was found about the rows.
  Status write_all(PerWorker<PanelScratch>& workers, const Parallel& parallel, Tally& all) {
    const int64_t count = ceil_div(bank.count, kPanel);
    const int64_t batch = std::max<int64_t>(1, (1 << 16) / ((bank.width + 3) * kPanel));  // enough work for a task
    h.first_negligible = -1;
    const Status done = for_each_task(parallel, ceil_div(count, batch), [&](int worker, int64_t task) {
      for (int64_t p = task * batch; p < std::min(count, (task + 1) * batch); ++p) write(p, workers[worker], true);
    });
    if (done != Status::ok) return done;
    all = {};
    for (PanelScratch& scratch : workers) {
      all.add(scratch.tally);
      scratch.tally = {};
    }
    h.fallbacks = all.fallbacks, h.exceptional = all.exceptional, h.far = all.far, h.negligible = all.negligible;
    h.negligible_size = all.size;
    screen_first_negligible(0, workers[0]);
    return parallel.stop.requested() ? Status::stopped : Status::ok;
  }

  // The first negligible row from `from` on is screened for all of them.
  void screen_first_negligible(int64_t from, PanelScratch& scratch) {
    h.first_negligible = h.negligible == 0 ? -1 : next_negligible(&h, from);
    if (h.first_negligible >= 0) write(h.first_negligible / kPanel, scratch, false);
    scratch.tally = {};
  }
};

}  // namespace

template <class T>
Status pack_as(const Rows& bank, Metric metric, void* out, const Parallel& parallel, const double* bias) {
  KeepSubnormals keep;
  const PackHeader planned = pack_layout(bank.count, bank.width, metric, bank.dtype, sizeof(T), bias != nullptr);
  char* base = static_cast<char*>(out);
  std::memset(base, 0, static_cast<size_t>(planned.panels_at));  // gaps too, so that equal banks have equal packs
  PackHeader& h = *static_cast<PackHeader*>(out);
  h = planned;
  if (refined_only(metric)) return Status::ok;
  double* centre = reinterpret_cast<double*>(base + h.centre_at);
  const Status framed = choose_frame(bank, metric, centre, &h.exponent, &h.centred, parallel.stop);
  if (framed != Status::ok) return framed;

  PerWorker<PanelScratch> workers(parallel.workers);
  if (!workers.each([&](PanelScratch& scratch) { return scratch.reserve(bank, parallel.stop); }))
    return Status::out_of_memory;
  Packing<T> packing(bank, h);
  if (bias != nullptr) std::copy_n(bias, bank.count, packing.norms);
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
template Status pack_as<float>(const Rows&, Metric, void*, const Parallel&, const double*);
template Status pack_as<double>(const Rows&, Metric, void*, const Parallel&, const double*);

Status repack_rows(const Rows& bank, PackHeader* pack, const int64_t* rows, int64_t count, const Parallel& threads,
                   bool* fit) {
  KeepSubnormals keep;
  const Parallel alone, &parallel = count * bank.width < (1 << 14) ? alone : threads;  // too little work to share
  PackHeader& h = *pack;
  *fit = true;
  if (refined_only(static_cast<Metric>(h.metric))) return Status::ok;
  h.rewritten += count;
  *fit = h.rewritten <= h.rows;  // else the frame was chosen for other rows than these
  if (!*fit) return Status::ok;
  Packing<float> packing(bank, h);
  Buffer<int64_t> touched;
  PerWorker<PanelScratch> workers(parallel.workers);
  if (!workers.each([&](PanelScratch& scratch) { return scratch.reserve(bank, {}); }) || !touched.reserve(count))
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
  const Status written =
      for_each_task(parallel, tasks, [&](int worker, int64_t i) { packing.write(panels[i], workers[worker], false); });
  if (written != Status::ok) return written;
  for (const PanelScratch& scratch : workers) after.add(scratch.tally);
  h.fallbacks += after.fallbacks - before.fallbacks, h.far += after.far - before.far;
  h.negligible += after.negligible - before.negligible, h.exceptional += after.exceptional - before.exceptional;
  if (first_gone) packing.screen_first_negligible(h.first_negligible, workers[0]);
  *fit = h.fallbacks <= std::max(h.fallbacks + before.fallbacks - after.fallbacks, h.rows / 256);
  return parallel.stop.requested() ? Status::stopped : Status::ok;
}

Status pack_bank(const Rows& bank, Metric metric, void* out, const Parallel& parallel, const double* bias) {
  return pack_as<float>(bank, metric, out, parallel, bias);
}

const PackHeader* check_pack(const void* pack, int64_t bytes, const Rows& bank, Metric metric, bool biased) {
  if (pack == nullptr || bytes < static_cast<int64_t>(sizeof(PackHeader)) ||
      reinterpret_cast<uintptr_t>(pack) % alignof(PackHeader) != 0)
    return nullptr;
  const PackHeader* h = static_cast<const PackHeader*>(pack);
  return is_pack_of(*h, pack_layout(bank.count, bank.width, metric, bank.dtype, 4, biased)) && bytes >= h->bytes
             ? h
             : nullptr;
}

}  // namespace vecbank::cpu
