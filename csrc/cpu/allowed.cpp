#include "allowed.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "isa.h"
#include "kernels.h"

namespace vecbank::cpu {
namespace {

constexpr int32_t kMostWordSteps = 16;
// To tell how many rows a query may be given, some are looked at: runs of 64 where they come in words, because a place
// in memory costs as much as a run, else single ones. Of a set that all queries share, more are.
constexpr int64_t kRuns = 32, kSharedRuns = 256, kRun = 64, kSample = 128, kSharedSample = 4096;

// Golden sections: scattered, so that rows that lie in some order by their attributes do not mislead.
double section(int64_t i) {
  const double at = 0.6180339887498949 * static_cast<double>(i + 1);
  return at - std::floor(at);
}

bool contains(const int64_t* ids, int64_t count, int64_t row) {
  const int64_t* at = std::lower_bound(ids, ids + count, row);
  return at != ids + count && *at == row;
}

// Words of 16 bits for rows [first, end), one row after the other.
template <class Holds>
void write_words(int64_t first, int64_t end, int64_t count, uint16_t* out, Holds&& holds) {
  for (int64_t w = 0; w < count; ++w) {
    uint32_t word = 0;
    for (int64_t j = first + 16 * w; j < std::min(end, first + 16 * w + 16); ++j)
      word |= static_cast<uint32_t>(holds(j)) << ((j - first) & 15);
    out[w] = static_cast<uint16_t>(word);
  }
}

}  // namespace

AllowedRows::AllowedRows(const Allowed& allowed) : allowed_(allowed), shared_(allowed.shared()) {
  // A set that is joined by `both` alone holds every row that is allowed. From the last step backwards: what a `both`
  // joins must hold where the whole must, what another join joins need not.
  bool must[2 * Allowed::kMostSets + 2];
  int depth = 0;
  must[depth++] = true;
  for (int32_t i = allowed.steps; i-- > 0 && depth > 0;) {
    const bool holds = must[--depth];
    const int32_t step = allowed.program[i];
    if (step >= 0) {
      must_[step] = must_[step] || holds;
    } else {
      must[depth++] = holds && step == kBoth;
      if (step != kNot) must[depth++] = holds && step == kBoth;
    }
  }
}

bool AllowedRows::in_set(const CandidateSet& s, int64_t query, int64_t row) const {
  switch (s.kind) {
    case SetKind::mask: return s.mask.allows(allowed_.query + number(query), row);
    case SetKind::bits: return bits(s, query)[row >> 3] >> (row & 7) & 1;
    case SetKind::ranges: {
      const int64_t* ends = ids(s, query);
      return row >= ends[0] && row < ends[1];
    }
    case SetKind::exclude: return !contains(ids(s, query), s.width, row);
    case SetKind::not_self: return row != s.first + allowed_.within + number(query);
    case SetKind::same: return s.labels[allowed_.batch * s.batch_stride + row] == *ids(s, query);
    case SetKind::rows: return contains(ids(s, query), s.width, row);
  }
  return false;
}

bool AllowedRows::in_all(int64_t query, int64_t row) const {
  bool stack[Allowed::kMostSets + 1];
  int depth = 0;
  for (int32_t i = 0; i < allowed_.steps; ++i) {
    const int32_t step = allowed_.program[i];
    if (step >= 0) {
      stack[depth++] = in_set(allowed_.sets[step], query, row);
    } else if (step == kNot) {
      stack[depth - 1] = !stack[depth - 1];
    } else {
      --depth;
      stack[depth - 1] = step == kBoth ? stack[depth - 1] && stack[depth] : stack[depth - 1] || stack[depth];
    }
  }
  return stack[0];
}

// Where a set's rows are numbered one by one, or are a range.
bool AllowedRows::run_of(const CandidateSet& s, int64_t query, Run* run) const {
  if (s.kind == SetKind::ranges) {
    const int64_t* ends = ids(s, query);
    const int64_t first = std::clamp<int64_t>(ends[0], 0, allowed_.rows);
    *run = {nullptr, first, std::max(first, std::min(ends[1], allowed_.rows))};
    return true;
  }
  if (s.kind == SetKind::rows) {
    const int64_t* listed = ids(s, query);
    const int64_t* first = std::lower_bound(listed, listed + s.width, int64_t{0});
    *run = {first, 0, std::lower_bound(first, listed + s.width, allowed_.rows) - first};
    return true;
  }
  if (s.kind == SetKind::same) {
    const int64_t shift = allowed_.batch * s.batch_stride, label = *ids(s, query);
    const int64_t *labels = s.labels + shift, *order = s.by_label + shift, *end = order + allowed_.rows;
    const int64_t* first = std::lower_bound(order, end, label, [&](int64_t j, int64_t l) { return labels[j] < l; });
    const int64_t* last = std::upper_bound(first, end, label, [&](int64_t l, int64_t j) { return l < labels[j]; });
    *run = {first, 0, last - first};
    return true;
  }
  return false;
}

// The shortest run that holds all that a query may be given; `of`: the set that it is, or -1.
AllowedRows::Run AllowedRows::shortest(int64_t query, int* of) const {
  Run best{nullptr, 0, allowed_.rows};
  *of = -1;
  for (int32_t i = 0; i < allowed_.count; ++i) {
    Run run;
    if (must_[i] && run_of(allowed_.sets[i], query, &run) && (run.size() < best.size() || *of < 0)) {
      best = run;
      *of = i;
    }
  }
  return best;
}

AllowedRows::Extent AllowedRows::extent(int64_t query) const {
  Extent extent{0, allowed_.rows, allowed_.rows};
  for (int32_t i = 0; i < allowed_.count; ++i) {
    Run run;
    if (!must_[i] || !run_of(allowed_.sets[i], query, &run)) continue;
    extent.most = std::min(extent.most, run.size());
    if (run.size() == 0) return {0, 0, 0};
    extent.first = std::max(extent.first, run.rows == nullptr ? run.first : run.rows[0]);
    extent.end = std::min(extent.end, run.rows == nullptr ? run.end : run.rows[run.end - 1] + 1);
  }
  extent.first = std::max<int64_t>(extent.first, 0);
  extent.end = std::min(extent.end, allowed_.rows);
  if (extent.end <= extent.first) return {0, 0, 0};
  extent.most = std::min(extent.most, extent.end - extent.first);
  return extent;
}

double AllowedRows::expected(int64_t query) const {
  if (allowed_.count == 0) return static_cast<double>(allowed_.rows);
  return std::min(sampled(query), static_cast<double>(extent(query).most));
}

double AllowedRows::sampled(int64_t query) const {
  int of;
  const Run run = shortest(query, &of);
  const double most = static_cast<double>(run.size());
  if (run.size() == 0 || (of >= 0 && allowed_.steps == 1)) return most;
  if (allowed_.steps == 1 && only().kind == SetKind::exclude)
    return std::max(0.0, most - static_cast<double>(only().width));
  if (allowed_.steps == 1 && only().kind == SetKind::not_self) return std::max(0.0, most - 1.0);
  // The rows of a set for all are counted by the first query, for all.
  if (const int64_t runs = shared_ ? kSharedRuns : kRuns;
      run.rows == nullptr && has_words() && run.size() > runs * kRun) {
    int64_t found = 0;
    for (int64_t i = 0; i < runs; ++i) {
      const auto at = static_cast<int64_t>(section(i) * static_cast<double>(run.size() - kRun));
      uint16_t bits[kRun / 16];
      words(query, (run.first + at) / 16 * 16, kRun / 16, bits);
      for (const uint16_t word : bits) found += std::popcount(word);
    }
    return most * (static_cast<double>(found) + 0.5) / static_cast<double>(runs * kRun + 1);
  }
  const int64_t sample = std::min(run.size(), shared_ ? kSharedSample : kSample);
  int64_t found = 0;
  for (int64_t i = 0; i < sample; ++i) {
    const int64_t j = run.first + std::min(run.size() - 1, static_cast<int64_t>(section(i) * most));
    const int64_t row = run.rows == nullptr ? j : run.rows[j];
    found += row >= 0 && row < allowed_.rows && allows(query, row);
  }
  if (sample == run.size()) return static_cast<double>(found);
  return most * (static_cast<double>(found) + 0.5) / static_cast<double>(sample + 1);
}

int64_t AllowedRows::list(int64_t query, int64_t* from, int64_t to, int64_t room, int64_t* out) const {
  const bool alone = allowed_.steps == 1;
  int64_t count = 0;
  int of;
  const Run run = shortest(query, &of);
  if (run.rows != nullptr) {
    // Lists that do not ascend, which only a direct call of an op can bring, give some of their rows, and end.
    const int64_t *end = run.rows + run.end, *at = std::lower_bound(run.rows, end, *from);
    for (; at < end && *at < to && count < room; ++at) {
      if (*at < *from || (count > 0 && *at <= out[count - 1])) continue;  // named twice
      out[count] = *at;
      count += alone || allows(query, *at);
    }
    *from = count == room && at < end ? out[count - 1] + 1 : to;
    return count;
  }
  int64_t j = std::max(*from, run.first);
  const int64_t end = std::min(to, run.end);
  if (alone && only().kind == SetKind::ranges) {
    for (; j < end && count < room; ++j) out[count++] = j;
  } else if (has_words()) {
    constexpr int64_t kTogether = 64;
    uint16_t some[kTogether];
    while (j < end && count + 64 <= room) {
      const int64_t first = j / 16 * 16, left = round_up_to(ceil_div(end - first, 16), 4);
      const int64_t n = std::min({left, std::max<int64_t>(4, (room - count) / 8 / 4 * 4), kTogether});
      const uint8_t* bytes = reinterpret_cast<const uint8_t*>(some);
      if (!words_in_place(query, 1, first, n, &bytes)) words(query, first, n, some);
      for (int64_t w = 0; w < n && count + 64 <= room; w += 4) {
        const int64_t at = first + 16 * w;
        uint16_t four[4];
        std::memcpy(four, bytes + 2 * w, sizeof four);
        uint64_t word = 0;
        for (int i = 0; i < 4; ++i) word |= static_cast<uint64_t>(four[i]) << (16 * i);
        if (at < j) word &= ~uint64_t{0} << (j - at);
        if (at + 64 > end) word = at < end ? word & ~uint64_t{0} >> (at + 64 - end) : 0;
        for (; word != 0; word &= word - 1) out[count++] = at + std::countr_zero(word);
        j = std::min(end, at + 64);
      }
    }
  } else {
    for (; j < end && count < room; ++j) {
      out[count] = j;
      count += allows(query, j);
    }
  }
  *from = j < end ? j : to;
  return count;
}

bool AllowedRows::has_words() const {
  if (allowed_.count == 0 || allowed_.steps > kMostWordSteps) return false;
  for (int32_t i = 0; i < allowed_.count; ++i) {
    const CandidateSet& s = allowed_.sets[i];
    if (s.kind == SetKind::same || (s.kind == SetKind::mask && s.mask.col_stride != 1)) return false;
  }
  return true;
}

bool AllowedRows::words_in_place(int64_t query, int64_t queries, int64_t first, int64_t count,
                                 const uint8_t** out) const {
  if (std::endian::native != std::endian::little || allowed_.steps != 1 || only().kind != SetKind::bits) return false;
  if ((first >> 3) + 2 * count > only().width) return false;
  for (int64_t q = 0; q < queries; ++q) out[q] = bits(only(), query + q) + (first >> 3);
  return true;
}

bool AllowedRows::has_bools() const {
  for (int32_t i = 0; i < allowed_.count; ++i)
    if (allowed_.sets[i].kind == SetKind::mask) return true;
  return false;
}

void AllowedRows::words_of(const CandidateSet& s, int64_t query, int64_t first, int64_t count, uint16_t* out) const {
  const int64_t end = std::min(allowed_.rows, first + 16 * count);
  const auto flip = [&](int64_t row, bool on) {
    const auto bit = static_cast<uint16_t>(1u << ((row - first) & 15));
    uint16_t& word = out[(row - first) >> 4];
    word = static_cast<uint16_t>(on ? word | bit : word & ~bit);
  };
  switch (s.kind) {
    case SetKind::mask: {
      if (s.mask.col_stride != 1) break;
      const unsigned char* row = s.mask.bytes(allowed_.query + number(query));
      const int64_t whole = std::max<int64_t>(0, (end - first) / 16);
      kernels().pack_bools(row + first, whole, out);
      std::fill(out + whole, out + count, uint16_t{0});
      for (int64_t j = first + 16 * whole; j < end; ++j) flip(j, row[j] != 0);
      return;
    }
    case SetKind::bits: {
      const int64_t bytes = std::min(2 * count, s.width - (first >> 3));
      const uint8_t* packed = bits(s, query) + (first >> 3);
      if constexpr (std::endian::native == std::endian::little)
        std::memcpy(out, packed, static_cast<size_t>(bytes));
      else
        for (int64_t i = 0; i < bytes; i += 2)
          out[i / 2] = static_cast<uint16_t>(packed[i] | (i + 1 < bytes ? packed[i + 1] << 8 : 0));
      return;
    }
    case SetKind::ranges:
    case SetKind::rows: {
      std::fill_n(out, count, uint16_t{0});
      Run run;
      (void)run_of(s, query, &run);
      if (run.rows != nullptr) {
        const int64_t* last = run.rows + run.end;
        for (const int64_t* at = std::lower_bound(run.rows, last, first); at < last && *at < end; ++at)
          if (*at >= first) flip(*at, true);
        return;
      }
      const int64_t from = std::max(first, run.first), to = std::min(end, run.end);
      for (int64_t j = from; j < to; ++j) {
        if (((j - first) & 15) == 0 && j + 16 <= to) {
          out[(j - first) >> 4] = 0xffff;
          j += 15;
        } else {
          flip(j, true);
        }
      }
      return;
    }
    case SetKind::exclude: {
      std::fill_n(out, count, uint16_t{0xffff});
      const int64_t *listed = ids(s, query), *last = listed + s.width;
      for (const int64_t* at = std::lower_bound(listed, last, first); at < last && *at < end; ++at)
        if (*at >= first) flip(*at, false);
      return;
    }
    case SetKind::not_self: {
      std::fill_n(out, count, uint16_t{0xffff});
      const int64_t own = s.first + allowed_.within + number(query);
      if (own >= first && own < end) flip(own, false);
      return;
    }
    case SetKind::same: break;
  }
  write_words(first, end, count, out, [&](int64_t j) { return in_set(s, query, j); });
}

void AllowedRows::words(int64_t query, int64_t first, int64_t count, uint16_t* out) const {
  if (allowed_.steps > kMostWordSteps)
    return write_words(first, allowed_.rows, count, out, [&](int64_t j) { return allows(query, j); });
  constexpr int64_t kTogether = 64;
  uint16_t stack[kMostWordSteps][kTogether];
  for (int64_t at = 0; at < count; at += kTogether) {
    const int64_t n = std::min(kTogether, count - at);
    int depth = 0;
    for (int32_t i = 0; i < allowed_.steps; ++i) {
      const int32_t step = allowed_.program[i];
      if (step >= 0) {
        words_of(allowed_.sets[step], query, first + 16 * at, n, allowed_.steps == 1 ? out + at : stack[depth]);
        ++depth;
      } else if (step == kNot) {
        for (int64_t w = 0; w < n; ++w) stack[depth - 1][w] = static_cast<uint16_t>(~stack[depth - 1][w]);
      } else {
        --depth;
        for (int64_t w = 0; w < n; ++w)
          stack[depth - 1][w] = static_cast<uint16_t>(step == kBoth ? stack[depth - 1][w] & stack[depth][w]
                                                                    : stack[depth - 1][w] | stack[depth][w]);
      }
    }
    if (allowed_.steps > 1) std::copy_n(stack[0], n, out + at);
  }
}

Status expect_rows(const AllowedRows& allowed, int64_t queries, const Parallel& parallel, float* expected) {
  constexpr int64_t kTogether = 16;
  if (allowed.shared()) {
    std::fill_n(expected, queries, static_cast<float>(allowed.expected(0)));
    return Status::ok;
  }
  return for_each_task(parallel, ceil_div(queries, kTogether), [&](int, int64_t task) {
    for (int64_t q = task * kTogether; q < std::min(queries, (task + 1) * kTogether); ++q)
      expected[q] = static_cast<float>(allowed.expected(q));
  });
}

}  // namespace vecbank::cpu
