// The CPU as the device of an op: where the arguments must lie, how results are allocated, and the kernels, which
// Ctrl-C can stop. The counterpart of device_cuda.h.
#pragma once

#include <algorithm>
#include <cstring>

#include "../cpu/api.h"
#include "common.h"
#include "interrupt.h"

namespace vecbank {

class CpuPacks;

class CpuScope {
 public:
  using Packs = CpuPacks;

  CpuScope(const Tensor& first, const char* name) { same(first, name); }

  void same(const Tensor& t, const char* name) const { check_place(t.is_cpu(), name, "the CPU"); }
  Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) const {
    return torch::stable::empty(IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), dtype);
  }
  void widen(const Rows& one, double* to) const {  // one row to float64
    with_dtype(one.dtype, [&](auto type) {
      const auto* from = static_cast<decltype(type)>(one.data);
      for (int64_t i = 0; i < one.width; ++i) to[i] = widened(from[i * one.col_stride]);
    });
  }
  static PanelKind panels_for(const BankShape& bank, Metric metric, PackUse use) {
    return use.searches ? cpu::panels_for_search(bank.m, bank.width, metric, use.screen) : PanelKind::float32;
  }
  static int64_t pack_bytes(const BankShape& bank, Metric metric, bool biased, PanelKind panels, int64_t head) {
    return cpu::pack_bytes(bank.m, bank.width, metric, biased, panels, head);
  }
  void stamp(Tensor& pack, const Tensor& bank, const std::optional<Tensor>& bias) const;

  // ---- The kernels, after begin(): Ctrl-C may stop those that have much work ----------------------------------------

  void begin(double work) { call_.emplace(work); }

  void pack_bank(const Rows& bank, Metric metric, void* out, const double* bias, PanelKind panels, ScreenChoice screen,
                 HeadChoice head) const {
    check(cpu::pack_bank(bank, metric, out, threads(), bias, panels, screen, head));
  }
  // Solves problem_of(b) for every batch.
  template <class ProblemOf>
  void search_batches(int64_t batches, double work, ProblemOf&& problem_of) const {
    solve_batches<SearchProblem>(batches, work, problem_of, cpu::search, cpu::search_each);
  }
  template <class ProblemOf>
  void project_batches(int64_t batches, double work, ProblemOf&& problem_of) const {
    solve_batches<ProjectProblem>(batches, work, problem_of, cpu::project, cpu::project_each);
  }
  template <class ProblemOf>
  void gradient_batches(int64_t batches, double work, ProblemOf&& problem_of) const {
    solve_batches<ProjectGradientProblem>(batches, work, problem_of, cpu::project_gradients,
                                          cpu::project_gradients_each);
  }
  void pair_gradients(const PairProblem& p) const { check(cpu::pair_gradients(p, threads())); }
  void lookup(const LookupProblem& p) const { check(cpu::lookup(p, threads())); }
  void lookup_dot(const LookupDotProblem& p) const { check(cpu::lookup_dot(p, threads())); }
  void segment_sum(const SegmentSumProblem& p) const { check(cpu::segment_sum(p, threads())); }
  bool packs_codebooks(const ResidualProblem&) const { return false; }
  bool packs_codebooks(const ProductProblem& p) const { return cpu::codes_without_packs(p); }
  void product_quantize(const ProductProblem& p) const { check(cpu::product_quantize(p, threads())); }
  void quantize_loss(QuantizeLossProblem& p, Tensor& loss) const {
    check(cpu::quantize_loss(p, threads()));
    write_mean(loss, 0, p.squares, p.valid, p.x.width);
  }
  void residual_quantize(ResidualProblem& p, Tensor& losses) const {
    std::vector<double> squares(p.stages.size());
    std::vector<int64_t> valid(p.stages.size());
    p.squares = squares.data();
    p.valid = valid.data();
    check(cpu::residual_quantize(p, threads()));
    for (size_t s = 0; s < squares.size(); ++s)
      write_mean(losses, static_cast<int64_t>(s), squares[s], valid[s], p.queries.width);
  }
  void pass_back(PassBackProblem& p, const Tensor& scale) const {
    with_dtype(dtype_of(scale, "scale"),
               [&](auto type) { p.scale = widened(*static_cast<decltype(type)>(scale.const_data_ptr())); });
    check(cpu::pass_back(p, threads()));
  }

  static void check(Status status) {
    STD_TORCH_CHECK(status != Status::out_of_memory, "vecbank: out of memory for the workspace");
    STD_TORCH_CHECK(status != Status::stopped, "vecbank: interrupted");
    STD_TORCH_CHECK(status != Status::bad_rotation, "vecbank: rotation must be orthogonal, and finite");
    STD_TORCH_CHECK(status != Status::bad_index, "vecbank: codes must lie between -1 and the number of bank rows - 1");
  }
  // These are torch's own threads, so torch.set_num_threads applies and no second pool exists.
  cpu::Parallel threads() const {
    cpu::Parallel parallel;
    if (call_) parallel.stop = call_->stop();
    parallel.workers = static_cast<int>(torch::stable::get_num_threads());
    parallel.run = [](void*, int workers, void (*body)(void*, int), void* arg) {
      torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
        for (int64_t w = begin; w < end; ++w) body(arg, static_cast<int>(w));
      });
    };
    return parallel;
  }

 private:
  // Where there are batches enough, every thread solves some of them; else all threads share each.
  template <class Problem, class ProblemOf, class One, class Each>
  void solve_batches(int64_t batches, double work, ProblemOf&& problem_of, One&& one, Each&& each) const {
    constexpr int64_t kTogether = 1024;
    constexpr double kLarge = 1e9;
    const cpu::Parallel parallel = threads();
    if (batches < 2 * parallel.workers || work > kLarge * static_cast<double>(batches)) {
      for (int64_t b = 0; b < batches; ++b) check(one(problem_of(b), parallel));
      return;
    }
    std::vector<Problem> problems;
    problems.reserve(static_cast<size_t>(std::min(batches, kTogether)));
    for (int64_t b = 0; b < batches; b += kTogether) {
      problems.clear();
      for (int64_t i = b; i < std::min(batches, b + kTogether); ++i) problems.push_back(problem_of(i));
      check(each(problems.data(), static_cast<int64_t>(problems.size()), parallel));
    }
  }

  // Writes to element i of a float32 or float64 tensor the mean over the elements of so many rows.
  static void write_mean(Tensor& t, int64_t i, double sum, int64_t rows, int64_t width) {
    const double mean = sum / std::max(1.0, static_cast<double>(rows) * static_cast<double>(width));
    if (t.scalar_type() == ScalarType::Double)
      static_cast<double*>(t.mutable_data_ptr())[i] = mean;
    else
      static_cast<float*>(t.mutable_data_ptr())[i] = static_cast<float>(mean);
  }

  std::optional<InterruptibleCall> call_;
};

// ---- Packs: the header and the stamp of a caller's pack are checked before use --------------------------------------

inline void CpuScope::stamp(Tensor& pack, const Tensor& bank, const std::optional<Tensor>& bias) const {
  if (pack.numel() == 0) return;  // no batches
  const PackStamp made = stamp_of(bank, bias);
  std::memcpy(static_cast<char*>(pack.mutable_data_ptr()) + sizeof(PackHeader), &made, sizeof made);
}

// There is no tensor where no pack was given, or where the bank has changed since the pack was made. A pack of another
// bank is an error, and is not read.
class CpuPacks : public PackBytes {
 public:
  CpuPacks(const CpuScope& scope, const std::optional<Tensor>& pack, const Tensor& bank, Metric metric,
           const std::optional<Tensor>& bias, bool even_if_stale = false)
      : PackBytes{pack, 0}, metric_(metric), biased_(bias.has_value()) {
    if (!tensor) return;
    scope.same(*tensor, "pack");
    check_is_pack(*tensor);
    const int64_t batches = bank_shape(bank).batches;
    bytes = batches == 0 ? 0 : tensor->numel() / batches;
    if (!even_if_stale && stale(bank, bias)) tensor.reset();
  }

  const PackHeader* of(const Rows& bank, int64_t b) const {
    if (!tensor || bank.count == 0) return nullptr;
    const PackHeader* header = cpu::check_pack(batch(b), bytes, bank, metric_, biased_);
    check_pack_fits(header != nullptr);
    return header;
  }

 private:
  // The stamp in the first batch's pack serves for all batches.
  bool stale(const Tensor& bank, const std::optional<Tensor>& bias) const {
    if (bytes < static_cast<int64_t>(sizeof(PackHeader) + sizeof(PackStamp))) return false;
    PackHeader header{};
    PackStamp made{};
    std::memcpy(&header, batch(0), sizeof header);
    std::memcpy(&made, batch(0) + sizeof header, sizeof made);
    if (header.magic != kPackMagic || made.data == 0) return false;
    if (made.data != reinterpret_cast<uintptr_t>(bank.const_data_ptr())) return true;
    const PackStamp now = stamp_of(bank, bias);
    return std::memcmp(&made, &now, sizeof made) != 0;
  }

  Metric metric_;
  bool biased_;
};

}  // namespace vecbank
