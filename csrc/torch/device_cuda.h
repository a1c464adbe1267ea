// A CUDA device as the device of an op: where the arguments must lie, how results are allocated, and the kernels on
// torch's current stream, with a workspace from torch's caching allocator. The counterpart of device_cpu.h. Nothing
// here waits for the device, so every op can be captured into a CUDA graph.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdlib>
#include <cstring>
#include <exception>

#include "../core/stamps.h"
#include "../cuda/api.h"
#include "../cuda/heuristics.h"
#include "aten_product.h"
#include "common.h"

namespace vecbank {

class CudaPacks;

// The device of an op's first tensor, made current for the lifetime of a CudaScope.
class CudaScope {
 public:
  using Packs = CudaPacks;

  CudaScope(const Tensor& first, const char* name)
      : index_(checked_index(first, name)), where_(torch::headeronly::DeviceType::CUDA, index_), guard_(index_) {
    check(cuda::use_device(index_, &device_));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &device_.stream));
  }

  void same(const Tensor& t, const char* name) const {
    const bool there = t.is_cuda() && t.get_device_index() == index_;
    if (!there) check_place(false, name, ("cuda:" + std::to_string(index_)).c_str());
  }
  Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) const {
    return torch::stable::empty(IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), dtype, std::nullopt, where_);
  }
  void widen(const Rows& one, double* to) const { check(cuda::widen(one, to, device_)); }        // one row to float64
  static PanelKind panels_for(const BankShape&, Metric, PackUse) { return PanelKind::float32; }  // there is one layout
  static int64_t pack_bytes(const BankShape& bank, Metric metric, bool /*biased*/, PanelKind = PanelKind::float32,
                            int64_t = 0) {
    return cuda::device_pack_bytes(bank.m, bank.width, metric);
  }
  void stamp(Tensor& pack, const Tensor& bank, const std::optional<Tensor>& bias) const {
    if (pack.numel() > 0) stamps().put(pack.const_data_ptr(), stamp_of(bank, bias));
  }
  // Whether a stamped pack may not be used: its bank has changed, or the call is being captured into a CUDA graph,
  // whose replays would not look at the stamp again.
  bool stale(const Tensor& pack, const Tensor& bank, const std::optional<Tensor>& bias) const {
    const void* at = pack.const_data_ptr();
    return stamps().held(at) && (!stamps().is(at, stamp_of(bank, bias)) || cuda::is_capturing(device_));
  }

  // ---- The kernels --------------------------------------------------------------------------------------------------

  void begin(double) {}  // a launch returns at once, so Ctrl-C has no long call to stop

  void pack_bank(const Rows& bank, Metric metric, void* out, const double* bias, PanelKind = PanelKind::float32,
                 ScreenChoice = ScreenChoice::automatic, HeadChoice = {}) {
    stamps().erase(out);
    check(cuda::pack_bank(bank, metric, out, with_workspace(cuda::pack_workspace()), bias));
  }
  template <class ProblemOf>
  void search_batches(int64_t batches, double /*work*/, ProblemOf&& problem_of) {
    for (int64_t b = 0; b < batches; ++b) search(problem_of(b));
  }
  template <class ProblemOf>
  void project_batches(int64_t batches, double /*work*/, ProblemOf&& problem_of) {
    for (int64_t b = 0; b < batches; ++b) project(problem_of(b));
  }
  void search(const SearchProblem& p) {
    choose_screen();
    const int64_t whole = cuda::whole_search_workspace(p, device_);
    const bool roomy = whole > 0 && with_workspace_if_there(whole);
    check(cuda::search(p, roomy ? device_ : with_workspace(cuda::search_workspace(p, device_))));
  }
  void project(ProjectProblem p) {
    const auto path =
        p.exact ? cuda::ProjectPath::exact : cuda::project_path(p, device_.capability, project_override());
    p.exact = path == cuda::ProjectPath::exact;
    if (p.exact)
      check(cuda::project(p, device_));  // no workspace
    else if (path == cuda::ProjectPath::library)
      project_by_library(p);
    else
      check(cuda::project(p, with_workspace(cuda::project_workspace(p, device_))));
  }
  void pair_gradients(const PairProblem& p) { check(cuda::pair_gradients(p, with_workspace(cuda::pair_workspace(p)))); }
  void lookup(const LookupProblem& p) const { check(cuda::lookup(p, device_)); }
  void lookup_dot(const LookupDotProblem& p) const { check(cuda::lookup_dot(p, device_)); }
  void segment_sum(const SegmentSumProblem& p) {
    check(cuda::segment_sum(p, with_workspace(cuda::segment_sum_workspace(p))));
  }
  template <class Problem>
  bool packs_codebooks(const Problem& p) const {
    return cuda::packs_codebooks(p, device_);
  }
  void product_quantize(const ProductProblem& p) {
    choose_screen();
    check(cuda::product_quantize(p, with_workspace(cuda::product_workspace(p, device_))));
  }
  void quantize_loss(const QuantizeLossProblem& p, Tensor& loss) {
    check(cuda::quantize_loss(p, loss.mutable_data_ptr(), dtype_of(loss, "loss"),
                              with_workspace(cuda::quantize_loss_workspace(p.x.count))));
  }
  void residual_quantize(const ResidualProblem& p, Tensor& losses) {
    choose_screen();
    check(cuda::residual_quantize(p, losses.mutable_data_ptr(), with_workspace(cuda::residual_workspace(p, device_))));
  }
  void pass_back(const PassBackProblem& p, const Tensor& scale) const {
    check(cuda::pass_back(p, scale.const_data_ptr(), dtype_of(scale, "scale"), device_));
  }

 private:
  static void check(cuda::Error error) {
    STD_TORCH_CHECK(error == nullptr, "vecbank: CUDA: ", error == nullptr ? "" : error);
  }
  static int32_t checked_index(const Tensor& t, const char* name) {
    check_place(t.is_cuda(), name, "a CUDA device");
    return t.get_device_index();
  }
  // The first search on a device checks its tensor cores, unless VECBANK_CUDA_PATH names a path.
  void choose_screen() {
    const auto [name, wanted] = cuda::wanted_path();
    STD_TORCH_CHECK(name == nullptr || wanted, "vecbank: VECBANK_CUDA_PATH must be simt, mma16 or sm90, got ",
                    name == nullptr ? "" : name);
    const auto found = wanted ? cuda::TensorCores::unchecked : cuda::tensor_cores(index_, device_).outcome;
    device_.path = cuda::search_path(device_.capability, found, wanted, cuda::has_sm90());
  }
  static cuda::ProjectOverride project_override() {
    const char* name = std::getenv("VECBANK_CUDA_PROJECT");
    if (name == nullptr || *name == 0) return cuda::ProjectOverride::none;
    if (std::strcmp(name, "kernel") == 0) return cuda::ProjectOverride::kernel;
    STD_TORCH_CHECK(std::strcmp(name, "library") == 0, "vecbank: VECBANK_CUDA_PROJECT must be kernel or library, got ",
                    name);
    return cuda::ProjectOverride::library;
  }
  // The workspace lives until the next call of with_workspace(), or the op's end; the allocator orders its reuse by the
  // stream.
  const cuda::Device& with_workspace(int64_t bytes) {
    if (bytes > device_.workspace_bytes) {
      workspace_ = empty({bytes}, ScalarType::Byte);
      device_.workspace = workspace_->mutable_data_ptr();
      device_.workspace_bytes = bytes;
    }
    return device_;
  }
  // Memory that a call can do without.
  bool with_workspace_if_there(int64_t bytes) {
    try {
      with_workspace(bytes);
    } catch (const std::exception&) {
      return false;
    }
    return true;
  }
  // One for the process: which packs it was asked to stamp. 4 MiB at most.
  static PackStamps& stamps() {
    static PackStamps all(1 << 15);
    return all;
  }
  void project_by_library(const ProjectProblem& p) {
    const auto multiply = [](void* where, const Rows& x, const Rows& bank, void* out, DType dtype, int64_t stride) {
      aten_product(x, bank, out, dtype, stride, *static_cast<const torch::stable::Device*>(where));
      return cuda::Error{nullptr};
    };
    check(
        cuda::project_by_library(p, {&where_, multiply}, with_workspace(cuda::project_library_workspace(p, device_))));
  }

  int32_t index_;
  torch::stable::Device where_;
  torch::stable::accelerator::DeviceGuard guard_;
  cuda::Device device_;
  std::optional<Tensor> workspace_;
};

// There is no tensor where no pack was given, or a stale one. Only the size of a pack can be checked on the host; its
// header is checked on the device.
class CudaPacks : public PackBytes {
 public:
  CudaPacks(const CudaScope& scope, const std::optional<Tensor>& pack, const Tensor& bank, Metric metric,
            const std::optional<Tensor>& bias)
      : PackBytes{pack, 0} {
    if (!tensor) return;
    scope.same(*tensor, "pack");
    check_is_pack(*tensor);
    const BankShape shape = bank_shape(bank);
    if (shape.m == 0) return;
    bytes = CudaScope::pack_bytes(shape, metric, bias.has_value());
    check_pack_fits(tensor->numel() == bytes * shape.batches);
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % cuda::kPackAlignment == 0,
                    "vecbank: pack must begin at a multiple of 256 bytes, as vecbank::pack() makes it");
    if (scope.stale(*tensor, bank, bias)) tensor.reset();
  }

  const PackHeader* of(const Rows& bank, int64_t b) const {
    return !tensor || bank.count == 0 ? nullptr : reinterpret_cast<const PackHeader*>(batch(b));
  }
};

}  // namespace vecbank
