// The arithmetic of the Hopper screen (csrc/cuda/tensor_cores/sm90_layout.h) against the documentation of PTX and the
// driver, written down again here. tests/cuda/sm90_layouts.cu compares it with CuTe where CuTe's headers are installed.
#include <set>

#include "check.h"
#include "cuda/tensor_cores/sm90_layout.h"

namespace {

using namespace vecbank::cuda::sm90;
using vecbank::DType;

TEST(sm90_shared_memory_fits) {
  for (int blocks = 1; blocks <= kMostBlocks; ++blocks) {
    const SharedMap m = shared_map(blocks);
    struct Piece {
      int64_t at, bytes, align;
    };
    const Piece pieces[] = {{m.queries, int64_t{kRows} * blocks * 128, 1024},
                            {m.ring, int64_t{m.stages} * kColumns * 128, 1024},
                            {m.columns, int64_t{m.tiles} * kColumns * 12, 16},
                            {m.queues, int64_t{kConsumerWarps} * kQueue * (kBunch + 1) * 4, 4},
                            {m.rows, int64_t{kRows} * 3 * 4, 4},
                            {m.barriers, (2 * kMostStages + 2) * 8, 8}};
    int64_t end = 0;
    for (const Piece& p : pieces) {
      CHECK(p.at >= end && p.at % p.align == 0);
      end = p.at + p.bytes;
    }
    CHECK(end + 1023 <= m.bytes && m.bytes <= 227 * 1024);
    CHECK(m.stages >= blocks);  // else a tile never fits
  }
}

TEST(sm90_work_covers_every_pair_once) {
  for (const int64_t rows : {1, 255, 256, 257, 5000, 65536})
    for (const int64_t columns : {1, 127, 128, 129, 8192, 100000})
      for (const int processors : {1, 2, 7, 78, 114, 132, 5000}) {
        const Work w = make_work(rows, columns, processors, columns);
        CHECK(w.blocks == std::min(processors, w.pairs()));
        CHECK(make_work(rows, columns, processors, 1).blocks == std::min(processors, w.row_tiles));
        std::vector<int> seen(static_cast<size_t>(w.pairs()));
        int least = w.pairs(), most = 0;
        for (int b = 0; b < w.blocks; ++b) {
          const int begin = w.begin(b), end = w.begin(b + 1);
          least = std::min(least, end - begin);
          most = std::max(most, end - begin);
          for (int at = begin; at < end;) {
            const Segment s = w.segment(at, end);
            CHECK(s.begin < s.end && s.end <= w.column_tiles && s.row_tile < w.row_tiles);
            for (int t = s.begin; t < s.end; ++t) ++seen[static_cast<size_t>(s.row_tile * w.column_tiles + t)];
            at += s.end - s.begin;
          }
        }
        CHECK(most - least <= 1);
        CHECK(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
      }
  for (const int64_t rows : {1, 65536}) {  // the largest launch stays within int
    const int64_t most = most_columns(rows);
    const Work w = make_work(rows, most, 132, most);
    CHECK(most % kColumns == 0 && int64_t{w.row_tiles} * w.column_tiles < int64_t{1} << 31);
    CHECK(w.begin(132) == w.pairs() && w.begin(131) > 0);
  }
}

// PTX, "matrix descriptor": bits 0-13 start, 16-29 leading, 32-45 stride, each (bytes & 0x3ffff) >> 4; 49-51 base
// offset; 62-63 swizzle, 1 for 128 bytes.
TEST(sm90_descriptor_fields) {
  const auto field = [](uint64_t word, int from, int bits) { return word >> from & ((uint64_t{1} << bits) - 1); };
  for (unsigned address = 0; address < (227u << 10); address += 1024) {
    const uint64_t d = tile_descriptor(address);
    CHECK(field(d, 0, 14) * 16 == address);
    CHECK(field(d, 32, 14) * 16 == 1024);  // eight lines of 128 bytes
    CHECK(field(d, 49, 3) == 0 && field(d, 62, 2) == 1);
    CHECK(field(d, 14, 2) == 0 && field(d, 30, 2) == 0 && field(d, 46, 3) == 0 && field(d, 52, 10) == 0);
  }
  // The offsets move the start field alone, and never carry out of it.
  for (int blocks = 1; blocks <= kMostBlocks; ++blocks) {
    const SharedMap m = shared_map(blocks);
    const unsigned base = 1024;  // the highest aligned start
    for (int stage = 0; stage < m.stages; ++stage)
      for (int step = 0; step < 4; ++step) {
        const uint64_t d = tile_descriptor(base + static_cast<unsigned>(m.ring)) +
                           static_cast<uint64_t>(stage) * kStageOffset + static_cast<uint64_t>(step) * kStepOffset;
        CHECK(field(d, 0, 14) * 16 == base + static_cast<unsigned>(m.ring + stage * 128 * kColumns + step * 32));
        CHECK(d >> 14 == tile_descriptor(0) >> 14);
      }
    for (int group = 0; group < kGroups; ++group)
      for (int block = 0; block < blocks; ++block)
        for (int h = 0; h < kHalves; ++h) {
          const int at = m.queries + (group * blocks + block) * kQueryBox;
          const uint64_t d = tile_descriptor(base + static_cast<unsigned>(m.queries + group * blocks * kQueryBox)) +
                             static_cast<uint64_t>(block) * kQueryOffset + static_cast<uint64_t>(h) * kHalfOffset;
          CHECK(field(d, 0, 14) * 16 == base + static_cast<unsigned>(at + h * 64 * 128));
        }
  }
}

// PTX, "register fragments" of wgmma .m64nNk16 with .f32 D: thread t of a warpgroup holds rows 16 (t / 32) + t % 32 / 4
// (+ 8 for its d2, d3, d6, d7, ...) and columns 2 (t % 4) + 8 i, + 1.
TEST(sm90_scores_of_a_thread) {
  std::set<std::pair<int, int>> seen;
  for (int warp = 0; warp < 4; ++warp)
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < kColumns / 8; ++i)
        for (int d = 0; d < 4; ++d) {
          const int row = 16 * warp + lane / 4 + (d >= 2 ? 8 : 0), column = 8 * i + 2 * (lane % 4) + (d & 1);
          CHECK(score_row(32 * warp + lane, 4 * i + d) == row && score_column(32 * warp + lane, 4 * i + d) == column);
          seen.insert({row, column});
        }
  CHECK(seen.size() == 64 * kColumns && kScores == kColumns / 2);
}

TEST(sm90_tensor_maps) {
  alignas(256) static uint16_t some[64];
  for (const int64_t d : {1, 63, 64, 65, 100, 128, 200, 256})
    for (const int64_t n : {1, 7, 128, 1000, 1 << 20}) {
      const vecbank::cuda::Operand operand{DType::f16, some, vecbank::cuda::operand_pitch(d)};
      const TensorSpec s = tensor_spec(operand, n, kColumns);
      CHECK(tensor_spec_fault(s) == nullptr);
      CHECK(s.size[0] % 64 == 0 && s.size[0] >= static_cast<uint64_t>(d) && s.size[0] < static_cast<uint64_t>(d) + 64);
      CHECK(s.size[1] == static_cast<uint64_t>(n) && s.stride[0] == 2 * s.size[0]);
      CHECK(s.box[0] == 64 && s.box[1] == kColumns && s.step[0] == 1 && s.step[1] == 1);
      CHECK(blocks_of(operand.pitch) * 64 == static_cast<int>(s.size[0]));
    }
  TensorSpec s = tensor_spec({DType::bf16, some, 64}, 10, kGroupRows);
  CHECK(s.box[0] * s.box[1] * 2 == kQueryBox);
  const auto refused = [&](auto&& damage) {
    TensorSpec broken = s;
    damage(broken);
    return tensor_spec_fault(broken) != nullptr;
  };
  CHECK(refused([](TensorSpec& t) { t.base = some + 1; }));
  CHECK(refused([](TensorSpec& t) { t.base = nullptr; }));
  CHECK(refused([](TensorSpec& t) { t.stride[0] = 136; }));
  CHECK(refused([](TensorSpec& t) { t.stride[0] = 64; }));
  CHECK(refused([](TensorSpec& t) { t.size[1] = 0; }));
  CHECK(refused([](TensorSpec& t) { t.size[1] = (uint64_t{1} << 32) + 1; }));
  CHECK(refused([](TensorSpec& t) { t.box[1] = 257; }));
  CHECK(refused([](TensorSpec& t) { t.box[0] = 128; }));
}

// What the ring guarantees, over random interleavings of a producer and eight consumer warps: no warp waits for ever, a
// stage is never overwritten while a warp reads it, every warp reads the blocks in order, and a tile's columns stay
// until the last warp has used the tile's scores.
struct Barrier {
  int arrivals, pending;
  unsigned phase = 0;
  explicit Barrier(int n) : arrivals(n), pending(n) {}
  void arrive() {
    if (--pending == 0) pending = arrivals, phase ^= 1;
  }
  bool passed(unsigned parity) const { return phase != parity; }
};

struct Model {
  int blocks, stages, slots;
  std::vector<Barrier> full, empty;
  std::vector<int> block_in, tile_in;  // what lies in each stage, and in each slot for columns; -1: being written
  bool sound = true;
  Model(int b, int s, int t) : blocks(b), stages(s), slots(t) {
    full.assign(static_cast<size_t>(stages), Barrier(1));
    empty.assign(static_cast<size_t>(stages), Barrier(kConsumerWarps));
    block_in.assign(static_cast<size_t>(stages), -1);
    tile_in.assign(static_cast<size_t>(slots), -1);
  }
};
struct Consumer {
  Turn ring;
  int block = 0, scored = 0, held = -1;  // next block; tiles whose scores were read; stage not yet released
};

// Runs `tiles` tiles through the ring; false if a warp is stuck or reads a block that is not there.
bool ring_holds(int blocks, int stages, int slots, int tiles, uint32_t seed) {
  Model m(blocks, stages, slots);
  std::mt19937 random(seed);
  Turn ring;
  int next = 0;  // block to load
  std::vector<Consumer> warps(kConsumerWarps);
  const int total = tiles * blocks;
  for (int idle = 0; idle < 5000;) {
    const int who = static_cast<int>(random() % (kConsumerWarps + 1));
    bool moved = false;
    if (who == kConsumerWarps) {
      if (next < total && m.empty[static_cast<size_t>(ring.stage)].passed(ring.parity ^ 1)) {
        m.block_in[static_cast<size_t>(ring.stage)] = next;
        if (next % blocks == 0) m.tile_in[static_cast<size_t>(next / blocks % slots)] = next / blocks;
        m.full[static_cast<size_t>(ring.stage)].arrive();
        ring.advance(stages);
        ++next;
        moved = true;
      }
    } else {
      Consumer& w = warps[static_cast<size_t>(who)];
      const auto check_columns = [&](int tile) {
        m.sound = m.sound && m.tile_in[static_cast<size_t>(tile % slots)] == tile;
      };
      if (w.block == total && w.held < 0) {
        if (w.scored < tiles) check_columns(w.scored), ++w.scored, moved = true;
      } else if (w.held >= 0 &&
                 (w.block % blocks == 0 || random() % 2 == 0)) {  // a product is complete: releases its stage
        m.empty[static_cast<size_t>(w.held)].arrive();
        w.held = -1;
        moved = true;
      } else if (w.block % blocks == 0 && w.scored < w.block / blocks) {  // scores a tile before the next one
        check_columns(w.scored);
        ++w.scored;
        moved = true;
      } else if (m.full[static_cast<size_t>(w.ring.stage)].passed(w.ring.parity)) {
        m.sound = m.sound && m.block_in[static_cast<size_t>(w.ring.stage)] == w.block;
        check_columns(w.block / blocks);
        if (w.held >= 0) {
          m.sound = m.sound && m.block_in[static_cast<size_t>(w.held)] == w.block - 1;  // still being multiplied
          m.empty[static_cast<size_t>(w.held)].arrive();
        }
        w.held = w.ring.stage;
        w.ring.advance(stages);
        ++w.block;
        moved = true;
      }
    }
    idle = moved ? 0 : idle + 1;
  }
  bool done = next == total;
  for (const Consumer& w : warps) done = done && w.scored == tiles && w.held < 0;
  return done && m.sound;
}

TEST(sm90_ring_neither_stalls_nor_overwrites) {
  for (int blocks = 1; blocks <= kMostBlocks; ++blocks) {
    const SharedMap m = shared_map(blocks);
    for (uint32_t seed = 0; seed < 20; ++seed) CHECK(ring_holds(blocks, m.stages, m.tiles, 40, seed));
    bool fewer = true;  // the model detects a fault: one slot fewer for the columns is too few
    for (uint32_t seed = 0; seed < 200; ++seed) fewer = fewer && ring_holds(blocks, m.stages, m.tiles - 1, 40, seed);
    CHECK(!fewer);
  }
}

}  // namespace
