// Rows that are copied, and sums of rows in float64, by vectors of columns: no column waits for another, and within a
// column the order is that of the rows. A product is rounded before it is added. (That of two floats of 24 bits or
// fewer has 48 bits at most, and no exponent that float64 does not have: there is nothing to round, and fused it is the
// same.)
#pragma once

#include "kernels.h"
#include "rows.inl.h"

namespace vecbank::cpu {
namespace {

// ---- Copies --------------------------------------------------------------------------------------------------------

constexpr int64_t kLine = 64, kWide = 4096;  // bytes; wider rows keep the processor's own prefetching busy

// As many bytes as a register holds: 16, 32 or 64.
typedef char Bytes __attribute__((vector_size(__BIGGEST_ALIGNMENT__), aligned(1), may_alias));
static_assert(kLine % sizeof(Bytes) == 0);

// Lines rather than a memcpy of the whole row: with narrow registers gcc makes `rep movs` of that, which takes twice as
// long, and a call takes longer for each row that is not of a known size.
template <int64_t Size>
VB_INLINE void copy_row(char* to, const char* from, int64_t bytes) {
  const auto line = [&](int64_t b) __attribute__((always_inline)) {
    for (int64_t k = b; k < b + kLine; k += static_cast<int64_t>(sizeof(Bytes)))
      *reinterpret_cast<Bytes*>(to + k) = *reinterpret_cast<const Bytes*>(from + k);
  };
  if constexpr (Size != 0 && Size < kLine) {
    __builtin_memcpy(to, from, Size);
  } else if (bytes < kLine || bytes > kWide) {
    __builtin_memcpy(to, from, static_cast<size_t>(bytes));
  } else {
    for (int64_t b = 0; b + kLine <= bytes; b += kLine) line(b);
    if (bytes % kLine != 0) line(bytes - kLine);  // overlaps the one before it
  }
}

// The size of a row is known to the compiler where Size is not 0. False: a code is no row.
template <int64_t Size>
bool gather_rows(const GatherArgs& a) {
  const int64_t bytes = Size != 0 ? Size : a.bytes;
  const int64_t read = 4096 / std::max(bytes, kLine) + 1, written = 8192 / std::max(bytes, kLine) + 1;
  const bool fetched = bytes >= kLine && bytes <= kWide;
  const int64_t read_until = fetched && a.far_bank ? a.count - read : 0;
  const int64_t written_until = fetched && a.far_out ? a.count - written : 0;
  bool good = true;
  for (int64_t i = 0; i < a.count; ++i) {
    const int64_t code = a.codes[i];
    char* out = a.out + i * bytes;
    if (i < read_until) {  // an address only, which may be anywhere: later codes have not been looked at
      const uint64_t row = reinterpret_cast<uint64_t>(a.bank) +
                           static_cast<uint64_t>(a.codes[i + read]) * static_cast<uint64_t>(a.row_bytes);
      for (int64_t b = 0; b < bytes; b += kLine)
        __builtin_prefetch(reinterpret_cast<const void*>(row + static_cast<uint64_t>(b)));
    }
    if (i < written_until)  // else the stores wait until each line has come
      for (int64_t b = 0; b < bytes; b += kLine) __builtin_prefetch(out + written * bytes + b, 1);
    if (__builtin_expect(static_cast<uint64_t>(code) < static_cast<uint64_t>(a.rows), 1)) {
      copy_row<Size>(out, a.bank + code * a.row_bytes, bytes);
    } else {
      good = good && code == -1;
      __builtin_memset(out, 0, static_cast<size_t>(bytes));
    }
  }
  return good;
}

inline bool gather(const GatherArgs& a) {
  switch (a.bytes) {  // short rows, for which a call of memcpy takes as long as the copy
    case 4: return gather_rows<4>(a);
    case 8: return gather_rows<8>(a);
    case 16: return gather_rows<16>(a);
    case 32: return gather_rows<32>(a);
    case 64: return gather_rows<64>(a);
    case 128: return gather_rows<128>(a);
    case 256: return gather_rows<256>(a);
    case 512: return gather_rows<512>(a);
    default: return gather_rows<0>(a);
  }
}

template <class Lanes>
void narrow_row(const double* row, DType dtype, int64_t width, void* to) {
  with_dtype(dtype, [&](auto type) {
    using S = Element<decltype(type)>;
    S* out = static_cast<S*>(to);
    int64_t k = 0;
    if constexpr (std::is_same_v<S, float>)
      for (; k + 8 <= width; k += 8) Lanes::load(row + k).store(out + k);
    for (; k < width; ++k) narrow(row[k], out + k);
  });
}

// ---- Bags ----------------------------------------------------------------------------------------------------------

constexpr int64_t kRowsAhead = 16;  // how many rows early a row is fetched: chosen rows lie far apart

// Columns c .. c + 8 * Sums of a bag, whose sums stay in registers; fewer than 8 exist where `Some` is set.
// False: a code is no row.
template <class Lanes, int Sums, bool Weighted, bool Some, class S>
VB_INLINE bool add_columns(const BagArgs& a, int64_t c) {
  const S* bank = static_cast<const S*>(a.bank.data) + c;
  const S* weights = static_cast<const S*>(a.weights);
  const int64_t stride = a.bank.row_stride, known = a.count + a.ahead;
  bool good = true;
  Lanes sum[Sums];
  for (int j = 0; j < Sums; ++j) sum[j] = Lanes::load(a.sum + c + 8 * j);
  for (int64_t t = 0; t < a.count; ++t) {
    if (t + kRowsAhead < known) {
      // An address only, which may be anywhere: the codes of later bags have not been looked at.
      const uint64_t row = reinterpret_cast<uint64_t>(bank) +
                           static_cast<uint64_t>(a.codes[t + kRowsAhead]) * static_cast<uint64_t>(stride) * sizeof(S);
      for (uint64_t byte = 0; byte < 8 * Sums * sizeof(S); byte += 64)
        __builtin_prefetch(reinterpret_cast<const void*>(row + byte));
    }
    if (__builtin_expect(static_cast<uint64_t>(a.codes[t]) >= static_cast<uint64_t>(a.bank.count), 0)) {
      good = good && a.codes[t] == -1;
      continue;
    }
    const S* row = bank + a.codes[t] * stride;
    const Lanes w = Lanes::fill(Weighted ? widened(weights[t]) : 1.0);
    for (int j = 0; j < Sums; ++j) {
      const Lanes x = Some ? load_some<Lanes>(row + 8 * j, a.bank.width - c) : Lanes::load(row + 8 * j);
      if constexpr (!Weighted)
        sum[j] = sum[j] + x;
      else if constexpr (std::is_same_v<S, double>)
        sum[j] = sum[j] + w * x;
      else
        sum[j] = Lanes::plus_exact(sum[j], w, x);
    }
  }
  for (int j = 0; j < Sums; ++j) sum[j].store(a.sum + c + 8 * j);
  return good;
}

template <class Lanes, int Sums, bool Weighted, class S>
bool add_bag_of(const BagArgs& a) {
  int64_t c = 0;
  bool good = true;
  const auto columns = [&](auto sums) {
    for (constexpr int n = sums.value; c + 8 * n <= a.bank.width; c += 8 * n)
      good &= add_columns<Lanes, n, Weighted, false, S>(a, c);
  };
  columns(std::integral_constant<int, Sums>{});
  columns(std::integral_constant<int, 4>{});
  columns(std::integral_constant<int, 1>{});
  if (c < a.bank.width) good &= add_columns<Lanes, 1, Weighted, true, S>(a, c);
  return good;
}

template <class Lanes, int Sums>
bool add_bag(const BagArgs& a) {
  return with_dtype(a.bank.dtype, [&](auto type) {
    using S = Element<decltype(type)>;
    return a.weights != nullptr ? add_bag_of<Lanes, Sums, true, S>(a) : add_bag_of<Lanes, Sums, false, S>(a);
  });
}

// ---- Blocks of segment sums
// ------------------------------------------------------------------------------------------

constexpr int kListed = 4;  // rows of a list that are added in one go, so that the part is read and written less often

template <class S>
struct Listed {
  const S* rows[kListed];
  double weights[kListed];
};

// Adds N rows to a block's sum of one code: `First` of its list, which start the part; `Last`, after which the part is
// added to the sum of all blocks.
template <class Lanes, int N, bool First, bool Last, bool Weighted, class S>
VB_INLINE void add_listed(const Listed<S>& list, int64_t width, double* part, double* sum) {
  Lanes w[N];
  for (int i = 0; i < N; ++i) w[i] = Lanes::fill(Weighted ? list.weights[i] : 1.0);
  const auto step = [&](int64_t k, auto&& load) __attribute__((always_inline)) {
    const auto term = [&](int i) __attribute__((always_inline)) {
      const Lanes x = load(list.rows[i] + k);
      return Weighted ? w[i] * x : x;
    };
    Lanes p = First ? term(0) : Lanes::load(part + k) + term(0);
    for (int i = 1; i < N; ++i) p = p + term(i);
    if constexpr (Last)
      (Lanes::load(sum + k) + p).store(sum + k);
    else
      p.store(part + k);
  };
  int64_t k = 0;
  for (; k + 8 <= width; k += 8) step(k, [](const S* p) __attribute__((always_inline)) { return Lanes::load(p); });
  if (k < width) step(k, [&](const S* p) __attribute__((always_inline)) { return load_some<Lanes>(p, width - k); });
}

template <class Lanes, bool First, bool Weighted, class S>
VB_INLINE void add_last(int count, const Listed<S>& list, int64_t width, double* part, double* sum) {
  switch (count) {
    case 1: return add_listed<Lanes, 1, First, true, Weighted>(list, width, part, sum);
    case 2: return add_listed<Lanes, 2, First, true, Weighted>(list, width, part, sum);
    case 3: return add_listed<Lanes, 3, First, true, Weighted>(list, width, part, sum);
    default: return add_listed<Lanes, 4, First, true, Weighted>(list, width, part, sum);
  }
}

// Lists the rows of each code of the block, then adds the lists up.
template <class Lanes, bool Weighted, class S>
void add_block_of(const BlockSumArgs& a) {
  constexpr int64_t kFetched = 512;  // wider rows keep the processor's own prefetching busy
  int64_t lists = 0;
  for (int64_t i = 0; i < a.rows; ++i) {
    const int64_t code = a.codes[i];
    if (code < 0) continue;
    // Whether a row is its code's first is no branch: it could not be foreseen. What comes before a first row is
    // next[-1].
    const int16_t before = a.last[code];
    a.next[before] = a.last[code] = static_cast<int16_t>(i);
    a.next[i] = -1;
    a.first[lists] = static_cast<int16_t>(i);
    lists += before < 0;
  }
  const auto row = [&](int64_t i) { return static_cast<const S*>(a.source) + i * a.row_stride; };
  const int64_t bytes = a.width * static_cast<int64_t>(sizeof(S));
  const int64_t ahead = bytes <= kFetched ? a.ahead : 0;
  int64_t done = 0;
  for (int64_t l = 0; l < lists; ++l) {
    const int64_t i = a.first[l], code = a.codes[i];
    a.last[code] = -1;
    double* sum = a.sums + code * a.stride;
    Listed<S> list;
    bool first = true;
    for (int64_t at = i; at >= 0;) {
      int count = 0;
      for (; count < kListed && at >= 0; at = a.next[at], ++count) {
        list.rows[count] = row(at);
        // The lists are not in the order of memory, so the next block is fetched in order meanwhile.
        if (done < ahead)
          for (int64_t byte = 0; byte < bytes; byte += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(row(kSumBlock + done)) + byte);
        ++done;
        if constexpr (Weighted) list.weights[count] = a.weights[at];
      }
      if (at < 0)
        first ? add_last<Lanes, true, Weighted>(count, list, a.width, a.part, sum)
              : add_last<Lanes, false, Weighted>(count, list, a.width, a.part, sum);
      else if (first)
        add_listed<Lanes, kListed, true, false, Weighted>(list, a.width, a.part, sum);
      else
        add_listed<Lanes, kListed, false, false, Weighted>(list, a.width, a.part, sum);
      first = false;
    }
  }
}

template <class Lanes>
void add_block(const BlockSumArgs& a) {
  with_dtype(a.dtype, [&](auto type) {
    using S = Element<decltype(type)>;
    a.weights != nullptr ? add_block_of<Lanes, true, S>(a) : add_block_of<Lanes, false, S>(a);
  });
}

}  // namespace
}  // namespace vecbank::cpu
