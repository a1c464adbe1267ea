// The CUDA backend as its callers see it: plain pointers to device memory, a stream, a workspace; an error message or
// null back. No CUDA header is needed to include this. Nothing here synchronises with the device, except where said.
#pragma once

#include "../core/estimator.h"
#include "../core/lookup.h"
#include "../core/problem.h"
#include "../core/residual.h"
#include "pack_layout.h"

namespace vecbank::cuda {

using Error = const char*;  // null: fine

// Which screen runs: search_path() in heuristics.h chooses. simt: float32. mma16: 16-bit inputs as they are, others
// rounded to bf16 for the screen. sm90: the operands are the same, and Hopper's kernel screens them up to width 256.
enum class Path : int32_t { simt = 0, mma16 = 1, sm90 = 2 };
bool has_sm90();  // whether this build has that kernel: CUTLASS's headers were there

// What is known of a device's tensor cores. unchecked: a graph was being captured, and the check would wait for the
// device; or the check could not run, and may run later. absent: its compute capability is below 8.0. sound: they
// compute as tensor_cores/bounds.h assumes.
enum class TensorCores : int32_t { unchecked = 0, absent = 1, sound = 2, unsound = 3 };

// What their self-check found: the worst errors, in units of 2^-22 of the magnitudes that one instruction adds.
struct SelfCheck {
  float integers, subnormals, bf16, fp16;
  int32_t instructions;  // that were compared
};

// What the kernels count, for the host to read at any time. There is one State for each device.
struct State {
  unsigned long long queries, refined, repeated;  // as in core/problem.h
  unsigned int bad_codes;                         // sticky: a code was out of range, or a pack was not valid
};

struct Device {
  int number = 0;          // the current device's
  void* stream = nullptr;  // cudaStream_t
  int processors = 1;      // multiprocessors: the plans count blocks by them
  int capability = 80;     // 10 * major + minor
  int64_t l2_bytes = int64_t{40} << 20;
  Path path = Path::simt;
  bool few = true;         // few queries read the bank's own rows, on every path (few.cu)
  State* state = nullptr;  // device memory, see use_device()
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  int64_t piece_elements = kMostOperandElements;  // of the operands in a piece of the bank; tests take less
};

constexpr int kMostDevices = 64;
constexpr int64_t kMostWorkspace = int64_t{64} << 20;

// Makes a device current and finds its properties and State; the caller sets stream and workspace.
Error use_device(int number, Device* device);
// Whether work on the device's stream is being captured into a graph.
bool is_capturing(const Device& device);
// These two make the device current too, and wait until it is idle.
Error read_state(int number, int64_t (&counters)[4]);  // queries, refined, repeated, bad_codes
Error clear_state(int number, bool counters, bool flag);

// The self-check (tensor_cores/self_check.h) runs once for each process and device, at the first call, and waits for
// it; this is the only call of an op that waits. While `stream` is being captured it does not run, and a later call
// runs it. Where it fails to run, two later calls try again.
struct Checked {
  TensorCores outcome = TensorCores::unchecked;
  SelfCheck found{};
  Error error = nullptr;  // why the device could not be checked
};
Checked tensor_cores(int number, const Device& device);
// Where to report a device that was just found unsound; one place for the process.
void report_unsound_to(void (*report)(int number));

// The workspace that an operation needs, in bytes.
int64_t search_workspace(const SearchProblem& problem, const Device& device);
// The same with room for the bank's operands, 2 bytes a coordinate and 12 a row: with so much workspace a search of
// several chunks of queries writes them once, not once a chunk. 0: this search would gain nothing.
int64_t whole_search_workspace(const SearchProblem& problem, const Device& device);
int64_t project_workspace(const ProjectProblem& problem, const Device& device);
int64_t pack_workspace();
int64_t segment_sum_workspace(const SegmentSumProblem& problem);
int64_t pair_workspace(const PairProblem& problem);
int64_t quantize_loss_workspace(int64_t rows);
int64_t residual_workspace(const ResidualProblem& problem, const Device& device);
int64_t product_workspace(const ProductProblem& problem, const Device& device);

// Whether the call itself packs codebooks that come without a pack (which of them do makes no difference here), all of
// them in a few launches and only what it reads. Where it does not, each stage is a search, and packs of the caller's
// save it from packing for every chunk of rows.
bool packs_codebooks(const ResidualProblem& problem, const Device& device);
bool packs_codebooks(const ProductProblem& problem, const Device& device);

// Writes the whole pack to `out` (device_pack_bytes() of pack_layout.h long, 256-byte aligned).
Error pack_bank(const Rows& bank, Metric metric, void* out, const Device& device, const double* bias = nullptr);
Error widen(const Rows& one, double* to, const Device& device);  // one row to float64

// `problem.pack` is in device memory and is checked there: a pack of something else raises the sticky flag, and every
// query is answered by refinement alone.
Error search(const SearchProblem& problem, const Device& device);
Error search_fault(const Device& device);  // why device.path cannot search there or in this build; null: it can
Error project(const ProjectProblem& problem, const Device& device);
// The same through a library's product, which the caller provides: out[i * stride + j] = queries[i] . bank[j] in
// `dtype`, in the stream's order. library_can() (library/rules.h) says which problems it serves.
struct Multiply {
  void* context;
  Error (*run)(void* context, const Rows& queries, const Rows& bank, void* out, DType dtype, int64_t stride);
};
int64_t project_library_workspace(const ProjectProblem& problem, const Device& device);
Error project_by_library(const ProjectProblem& problem, const Multiply& multiply, const Device& device);
Error lookup(const LookupProblem& problem, const Device& device);
Error lookup_dot(const LookupDotProblem& problem, const Device& device);
Error segment_sum(const SegmentSumProblem& problem, const Device& device);
Error pair_gradients(const PairProblem& problem, const Device& device);
// As the CPU's, but the scale is one number in device memory; the problem's own is not read.
Error pass_back(const PassBackProblem& problem, const void* scale, DType scale_dtype, const Device& device);
// As the CPU's, but the losses (mean squares, in the codebooks' dtype) go to device memory, one a stage, and the
// problem's own sums stay unset. Packs that codebooks come with are checked as search()'s is.
Error residual_quantize(const ResidualProblem& problem, void* losses, const Device& device);
Error product_quantize(const ProductProblem& problem, const Device& device);
// As the CPU's, but the mean goes to device memory, in `dtype` (f32 or f64), and the problem's own sums stay unset.
Error quantize_loss(const QuantizeLossProblem& problem, void* mean, DType dtype, const Device& device);

}  // namespace vecbank::cuda
