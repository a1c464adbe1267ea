#include "head_coder.h"

#include <cmath>
#include <cstring>

#include "../../isa.h"
#include "../../kernels.h"

namespace vecbank::cpu {

bool HeadCoder::reserve(int64_t width, int64_t head) {
  const int64_t rows = kTogether * kPanel + kAnyTileRows;  // a part of a tile at the end
  return rotation_.reserve() && groups_.reserve(rows * width + kPanel) &&
         turned_.reserve(rows * Rotation::stride_of(width)) && lines_.reserve((head + 1) * kPanel);
}

void HeadCoder::code(const float* panels, PackHeader& h, int64_t first, int64_t count) {
  const int64_t d = h.width, panel_floats = (d + 3) * kPanel, rows = count * kPanel, stride = Rotation::stride_of(d);
  const int group = kernels().heights[0];
  for (int64_t r = 0; r < round_up_to(rows, group); ++r) {
    const float* from = panels + r / kPanel * panel_floats + kPanel + r % kPanel;
    float* to = groups_.get() + r / group * (d * group) + r % group;
    for (int64_t k = 0; k < d; ++k) to[k * group] = r < rows ? from[k * kPanel] : 0.0f;
  }
  rotation_.turn(pack_rotation(&h), d, groups_.get(), d * group, group, rows, turned_.get());

  const int8::Layout layout(h);
  const float none[kPanel] = {};  // r_b is in the tail's bound
  int8_t* tails = reinterpret_cast<int8_t*>(&h) + h.tails_at;
  for (int64_t p = 0; p < count; ++p) {
    const float *bound = panels + p * panel_floats + (d + 1) * kPanel, *upper = bound + kPanel;
    const float* turned = turned_.get() + p * kPanel * stride;
    const void* row[kPanel];
    Affine maps[kPanel];
    for (int c = 0; c < kPanel; ++c) row[c] = turned + c * stride;
    kernels().interleave_f32(row, kPanel, kPanel, DType::f32, h.head, maps, lines_.get());
    int32_t* out =
        reinterpret_cast<int32_t*>(reinterpret_cast<char*>(&h) + h.panels_at) + (first + p) * layout.stride();
    kernels().int8.quantize_panel(lines_.get(), none, upper, layout, h.bank_code, int8::kRounding, out);
    float* line = reinterpret_cast<float*>(out) + (layout.groups + 4) * kPanel;
    for (int c = 0; c < kPanel; ++c) {
      line[c] = 0.0f;
      const int64_t j = (first + p) * kPanel + c;
      if (j < h.rows)
        code_tail(turned + c * stride, h, static_cast<double>(bound[c]), std::isinf(upper[c]),
                  tails + j * tail_bytes(d, h.head), line + c);
    }
  }
}

// `bound`: r_b. A blank row never survives, or always does, whatever its tail.
void HeadCoder::code_tail(const float* turned, const PackHeader& h, double bound, bool blank, int8_t* out,
                          float* line) const {
  const int64_t width = h.width - h.head, padded = tail_bytes(h.width, h.head) - kTailFacts;
  const float* tail = turned + h.head;
  std::memset(out, 0, static_cast<size_t>(padded + kTailFacts));
  if (blank) return;
  const auto squares_of = [](const float* numbers, int64_t count) {
    return kernels().stats(numbers, DType::f32, count, {}).squares;
  };
  const double head_squares = squares_of(turned, h.head), squares = squares_of(tail, width);
  double errors = 0.0;
  float largest = 0.0f;
  for (int64_t k = 0; k < width; ++k) largest = std::fmax(largest, std::fabs(tail[k]));
  const float finest = 0x1p96f, scale = largest * finest > 127.0f ? 127.0f / largest : finest;
  for (int64_t k = 0; k < width; ++k) {
    const float exact = tail[k] * scale, code = int8::rounded(exact);
    errors += static_cast<double>(exact - code) * static_cast<double>(exact - code);
    out[k] = static_cast<int8_t>(code);
  }
  const double rho = static_cast<double>(h.turn_error), room = 1.0 + 0x1p-30;
  const double norm = std::sqrt(squares) * static_cast<double>(scale) * (1.0 + 0x1p-20);
  const double other = (bound + rho * (1.0 + 2.0 * rho) * std::sqrt(head_squares + squares)) * (1.0 + 0x1p-20);
  const head::TailFacts facts{1.0f / scale, above(std::sqrt(errors) * room + int8::kRounding * norm), above(norm),
                              above(other)};
  std::memcpy(out + padded, &facts, sizeof facts);
  *line = above(std::sqrt(squares + other * other / head::kMixed) * head::kTailRoom);
}

}  // namespace vecbank::cpu
