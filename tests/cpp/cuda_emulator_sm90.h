// Hopper's own instructions for the block emulator, as PTX defines them, not merely as the kernels use them: barriers
// with phases, bulk copies that land late and in any order, products that are made only when they are waited for, from
// whatever their descriptors point at. A copy's target is NaN until it lands; operands that change under a product, a
// copy that no thread waited for, and a wait that never ends, all stop the program.
#pragma once

#include "cuda_emulator.h"  // first, since it defines __device__

#include "cuda/tensor_cores/bounds.h"
#include "cuda/tensor_cores/sm90_layout.h"

#define VECBANK_SM90_CODE 1

namespace emulator {

struct Barrier {                     // in the eight bytes of a real one
  int16_t pending, arrivals, lines;  // lines: of 16 bytes, still to land
  uint16_t phase;
  void complete_phase() {
    if (pending == 0 && lines == 0) phase ^= 1, pending = arrivals;
  }
};
static_assert(sizeof(Barrier) == sizeof(uint64_t));

struct Landing {  // a copy under way
  std::vector<std::pair<char*, std::vector<char>>> lines;
  Barrier* barrier;
};

struct Product {
  float* acc;
  uint64_t a, b, seen;
  bool half;
  int batch;
};

struct Hopper {                                                                          // of a block
  std::vector<std::vector<Product>> products = std::vector<std::vector<Product>>(1024);  // of each thread
  std::vector<int> batches = std::vector<int>(1024);
  int waiting[16] = {}, generation[16] = {};  // named barriers
};
struct Memory {
  std::vector<Landing> landings;
  long long idle = 0, landed = 0, multiplied = 0;
  unsigned odds = 32;  // of this many polls one lands a copy
};
inline Hopper& hopper() {
  static Hopper h[kAtOnce];
  return h[machine().now];
}
inline Memory& memory() {
  static Memory m;
  return m;
}

constexpr unsigned kSharedStart = 0x480;  // of a block's dynamic memory: not where the swizzle repeats
inline char* shared_at(unsigned address) { return block().shared + (address - kSharedStart); }

inline void land(size_t which) {
  Memory& h = memory();
  Landing& l = h.landings[which];
  for (const auto& line : l.lines) {
    std::memcpy(line.first, line.second.data(), line.second.size());
    l.barrier->lines = static_cast<int16_t>(l.barrier->lines - static_cast<int>(line.second.size() / 16));
  }
  if (l.barrier->lines < 0) stop("more bytes landed than a barrier was told of");
  l.barrier->complete_phase();
  l = h.landings.back();
  h.landings.pop_back();
  ++h.landed;
}
// A thread that waits lets the others run, and now and then lands a copy.
inline void poll() {
  Memory& h = memory();
  if (!h.landings.empty() && machine().below(h.odds) == 0) {
    land(machine().below(h.landings.size()));
    h.odds = 32u << 3 * machine().below(3);  // 32, 256 or 2048: copies come soon or very late
    h.idle = 0;
  }
  if (++h.idle > 4000000) stop("everyone waits");
  to_scheduler();
}
inline void progress() { memory().idle = 0; }

// A matrix element by its descriptor: rows in groups of eight lines of 128 bytes, `stride` apart; bits 4-6 of the
// address are exclusive-ored with bits 7-9.
inline const char* element(uint64_t descriptor, int row, int k) {
  const unsigned start = static_cast<unsigned>(descriptor & 0x3fff) << 4;
  const unsigned stride = static_cast<unsigned>(descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) stop("a descriptor without the 128-byte swizzle");
  if ((start >> 7 & 7) != 0 || stride % 1024 != 0) stop("a swizzled tile begins where its pattern does not");
  unsigned at = start + static_cast<unsigned>(row / 8) * stride + static_cast<unsigned>(row % 8) * 128 +
                static_cast<unsigned>(k) * 2;
  at ^= (at >> 7 & 7) << 4;
  return shared_at(at);
}
inline float number(const char* at, bool half) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return half ? vecbank::widened_f32(vecbank::Float16{bits}) : vecbank::widened_f32(vecbank::BFloat16{bits});
}
inline uint64_t digest(const Product& p, int columns) {
  uint64_t sum = 0;
  for (int row = 0; row < 64 + columns; ++row)
    for (int k = 0; k < 16; k += 4) {
      uint64_t word;
      std::memcpy(&word, row < 64 ? element(p.a, row, k) : element(p.b, row - 64, k), 8);
      sum = sum * 0x9e3779b97f4a7c15ull + word + (sum >> 31);
    }
  return sum;
}
// The 64 sums of one thread, rounded as badly as kTensorUnit allows, now up and now down.
inline void make(const Product& p, int thread, int columns) {
  const int warp = thread / 32, lane = thread % 32;
  float x[2][16], b[16];
  for (int i = 0; i < 2; ++i)
    for (int k = 0; k < 16; ++k) x[i][k] = number(element(p.a, 16 * warp + lane / 4 + 8 * i, k), p.half);
  if (std::all_of(&x[0][0], &x[0][0] + 32, [](float v) { return v == 0.0f; })) return;  // rows beyond the last
  for (int j = 0; j < columns / 8; ++j)
    for (int e = 0; e < 2; ++e) {
      for (int k = 0; k < 16; ++k) b[k] = number(element(p.b, 8 * j + 2 * (lane % 4) + e, k), p.half);
      for (int i = 0; i < 2; ++i) {
        float& acc = p.acc[4 * j + 2 * i + e];
        double sum = acc, size = std::fabs(sum);
        for (int k = 0; k < 16; ++k) {
          const double term = static_cast<double>(x[i][k]) * b[k];
          sum += term;
          size += std::fabs(term);
        }
        if (std::isfinite(size)) sum += ((lane + j) % 2 != 0 ? 0.98 : -0.98) * vecbank::cuda::kTensorUnit * size;
        acc = static_cast<float>(sum);
      }
    }
}

}  // namespace emulator

namespace vecbank::cuda {

inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(static_cast<const char*>(p) - emulator::block().shared) + emulator::kSharedStart;
}

namespace sm90 {

using TensorMap = TensorSpec;
inline Error encode(const TensorSpec& spec, TensorMap* map) {
  *map = spec;
  return tensor_spec_fault(spec);
}

// ---- Barriers ------------------------------------------------------------------------------------------------------

inline emulator::Barrier& real(uint64_t* barrier) { return *reinterpret_cast<emulator::Barrier*>(barrier); }
inline void barrier_init(uint64_t* barrier, int arrivals) {
  real(barrier) = {static_cast<int16_t>(arrivals), static_cast<int16_t>(arrivals), 0, 0};
}
inline void barrier_init_done() {}
inline void barrier_arrive(uint64_t* barrier) {
  emulator::Barrier& b = real(barrier);
  if (b.pending <= 0) emulator::stop("too many arrivals at a barrier");
  --b.pending;
  b.complete_phase();
  emulator::progress();
}
inline void barrier_expect(uint64_t* barrier, int bytes) {
  if (bytes % 16 != 0) emulator::stop("a bulk copy is not a multiple of 16 bytes");
  real(barrier).lines = static_cast<int16_t>(real(barrier).lines + bytes / 16);
  barrier_arrive(barrier);
}
inline void barrier_wait(uint64_t* barrier, unsigned parity) {
  while (real(barrier).phase == parity) emulator::poll();
  emulator::progress();
}
inline void turn_pass(int group) {
  emulator::Hopper& h = emulator::hopper();
  if (++h.waiting[group] == 128 * kGroups) h.waiting[group] = 0, ++h.generation[group];
  emulator::progress();
}
inline void turn_wait(int group) {
  const int before = emulator::hopper().generation[group];
  turn_pass(group);
  while (emulator::hopper().generation[group] == before) emulator::poll();
  emulator::progress();
}

// ---- Copies --------------------------------------------------------------------------------------------------------

inline void copy_line(emulator::Landing& landing, char* to, const void* from, size_t bytes) {
  std::vector<char> line(bytes);
  if (from != nullptr) std::memcpy(line.data(), from, bytes);
  std::memset(to, 0xff, bytes);  // until it lands
  landing.lines.emplace_back(to, std::move(line));
}
inline void load_bytes(const void* global, uint64_t* barrier, void* shared, int bytes) {
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0 || shared_address(shared) % 16 != 0 || bytes % 16 != 0)
    emulator::stop("a bulk copy is not aligned");
  emulator::Landing landing{{}, &real(barrier)};
  copy_line(landing, static_cast<char*>(shared), global, static_cast<size_t>(bytes));
  emulator::memory().landings.push_back(std::move(landing));
}
inline void load_box(const TensorMap& map, uint64_t* barrier, void* shared, int64_t coordinate, int64_t row) {
  const unsigned start = shared_address(shared);
  if (start % 1024 != 0) emulator::stop("a box begins where the swizzle's pattern does not");
  emulator::Landing landing{{}, &real(barrier)};
  for (unsigned r = 0; r < map.box[1]; ++r)
    for (unsigned chunk = 0; chunk < map.box[0] / 8; ++chunk) {
      unsigned at = start + r * map.box[0] * 2 + chunk * 16;
      at ^= (at >> 7 & 7) << 4;
      const uint64_t y = static_cast<uint64_t>(row) + r, x = static_cast<uint64_t>(coordinate) + chunk * 8;
      const bool inside = y < map.size[1] && x + 8 <= map.size[0];
      copy_line(landing, emulator::shared_at(at),
                inside ? static_cast<const char*>(map.base) + y * map.stride[0] + x * 2 : nullptr, 16);
    }
  emulator::memory().landings.push_back(std::move(landing));
}

// ---- Products ------------------------------------------------------------------------------------------------------

template <bool Bf16>
void multiply(float (&acc)[kScores], uint64_t a, uint64_t b) {
  emulator::Hopper& h = emulator::hopper();
  const size_t thread = static_cast<size_t>(emulator::block().now);
  emulator::Product p{acc, a, b, 0, !Bf16, h.batches[thread]};
  if (thread % 128 == 0) p.seen = emulator::digest(p, kColumns);
  h.products[thread].push_back(p);
}
inline void products_begin(float (&)[kHalves][kScores]) {}
inline void products_go_on() {}
inline void products_commit() { ++emulator::hopper().batches[static_cast<size_t>(emulator::block().now)]; }
template <int Pending>
void products_wait() {
  emulator::Hopper& h = emulator::hopper();
  const size_t thread = static_cast<size_t>(emulator::block().now);
  auto& waiting = h.products[thread];
  size_t done = 0;
  for (; done < waiting.size() && waiting[done].batch < h.batches[thread] - Pending; ++done) {
    if (thread % 128 == 0 && waiting[done].seen != emulator::digest(waiting[done], kColumns))
      emulator::stop("operands changed under a product");
    emulator::make(waiting[done], static_cast<int>(thread) % 128, kColumns);
    ++emulator::memory().multiplied;
  }
  waiting.erase(waiting.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(done));
  emulator::progress();
  __syncwarp();  // the instruction is .sync.aligned: no thread of a warp is past it before the others
}
inline void products_wait_all(float (&)[kHalves][kScores]) { products_wait<0>(); }

template <int>
void give_registers() {}
template <int>
void take_registers() {}
inline float max_nan(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : std::max(a, b); }

}  // namespace sm90
}  // namespace vecbank::cuda
