// How many kernels the verbs of training launch, counted on the emulator: for a chunk of queries and a bank of one
// piece. CUB's sort counts as one here, because its stand-in does; on a device it is one kernel up to a few thousand
// codes, and beyond that a histogram, a scan, and one pass for each 8 bits of the number of segments: 4 for 8192.
#define VECBANK_EMULATE 1
#include "cuda_emulator.h"

#include "check.h"
#include "cuda/api.h"

using namespace vecbank;

namespace {

constexpr long long kMost = 12;  // a call, even where it packs the bank itself

void* aligned(void* p) { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(p) + 255) / 256 * 256); }

struct Training {  // memory of one case, and a count of what its calls launch
  static constexpr int64_t n = 40, m = 700, d = 8;
  std::vector<float> x = gaussian<float>(n * d, 1), bank = gaussian<float>(m * d, 2), out = std::vector<float>(n * d);
  std::vector<int64_t> codes;
  std::vector<char> workspace;
  cuda::State state{};
  cuda::Device device;
  long long launches = 0;

  explicit Training(cuda::Path path) {
    device.path = path;
    device.capability = path == cuda::Path::sm90 ? 90 : 80;
    device.processors = 3;
    device.state = &state;
  }
  template <class Call>
  void run(int64_t bytes, Call&& call) {
    workspace.resize(static_cast<size_t>(bytes) + 256);
    device.workspace = aligned(workspace.data());
    device.workspace_bytes = bytes;
    const long long before = emulator::machine().launches;
    CHECK(call() == nullptr);
    launches += emulator::machine().launches - before;
  }
  void search(int64_t k, bool packed) {
    codes.assign(static_cast<size_t>(n * k), -7);
    SearchProblem p = problem_of(rows(x, d), rows(bank, d), k == 1 ? Metric::l2 : Metric::dot);
    p.k = k;
    p.indices = codes.data();
    std::vector<float> values(codes.size());
    if (k == 1)
      p.gathered = out.data();
    else
      p.values = values.data();
    std::vector<uint64_t> pack(static_cast<size_t>(cuda::device_pack_bytes(m, d, p.metric) / 8 + 32));
    void* packed_at = aligned(pack.data());
    if (packed) {
      run(cuda::pack_workspace(), [&] { return cuda::pack_bank(p.bank, p.metric, packed_at, device); });
      launches = 0;
      p.pack = static_cast<const PackHeader*>(packed_at);
    }
    run(cuda::search_workspace(p, device), [&] { return cuda::search(p, device); });
  }
  // Of several blocks of rows, whose sums are joined; what the numbers are changes no launch.
  void segment_sum(int64_t k, int64_t width, bool weighted) {
    const int64_t many = kSumBlock + 1;
    const std::vector<int64_t> all(static_cast<size_t>(many * k), 3);
    const std::vector<float> source(static_cast<size_t>(many * width)), weights(all.size());
    std::vector<float> sums(static_cast<size_t>(m * width));
    SegmentSumProblem p;
    p.codes = all.data();
    p.count = many * k;
    p.k = k;
    p.segments = m;
    p.source = rows(source, width);
    p.weights = weighted ? weights.data() : nullptr;
    p.out = sums.data();
    run(cuda::segment_sum_workspace(p), [&] { return cuda::segment_sum(p, device); });
    ++launches;  // the sort
  }
};

void report(const char* verb, const Training& t, bool packed = true) {
  CHECK(t.launches <= kMost);
  if (t.launches > kMost)
    std::printf("  path %d: %s%s launches %lld kernels\n", static_cast<int>(t.device.path), verb,
                packed ? "" : ", unpacked,", t.launches);
}

}  // namespace

TEST(cuda_training_launches_few_kernels) {
  for (const cuda::Path path : {cuda::Path::simt, cuda::Path::mma16, cuda::Path::sm90}) {
    for (const bool packed : {true, false}) {
      Training train(path);  // forward: search, loss, sums; backward: pointwise operations of torch
      train.search(1, packed);
      QuantizeLossProblem loss;
      loss.x = rows(train.x, Training::d);
      loss.codes = train.codes.data();
      loss.quantized = rows(train.out, Training::d);
      double mean = 0.0;
      train.run(cuda::quantize_loss_workspace(Training::n),
                [&] { return cuda::quantize_loss(loss, &mean, DType::f64, train.device); });
      train.segment_sum(1, Training::d, false);
      report("quantize_train", train, packed);

      Training encode(path);
      encode.search(8, packed);
      report("sparse.encode", encode, packed);
      if (!packed) continue;
      Training back(path);  // of its values: to x, to the weight, to the bias
      back.codes = encode.codes;
      const std::vector<float> grad(back.codes.size(), 1.0f);
      LookupProblem l;
      l.codes = back.codes.data();
      l.count = Training::n;
      l.k = 8;
      l.bank = rows(back.bank, Training::d);
      l.weights = grad.data();
      l.reduce = Reduce::sum;
      l.out = back.out.data();
      back.run(0, [&] { return cuda::lookup(l, back.device); });
      back.segment_sum(8, Training::d, true);
      back.segment_sum(1, 1, false);
      report("the gradient of sparse.encode", back);
    }

    Training cascade(path);  // backward: a lookup for each stage, and pointwise operations
    std::vector<uint64_t> pack(
        static_cast<size_t>(cuda::device_pack_bytes(Training::m, Training::d, Metric::l2) / 8 + 32));
    void* packed_at = aligned(pack.data());
    const Rows codebook = rows(cascade.bank, Training::d);
    cascade.run(cuda::pack_workspace(),
                [&] { return cuda::pack_bank(codebook, Metric::l2, packed_at, cascade.device); });
    cascade.launches = 0;
    ResidualProblem r;
    r.queries = rows(cascade.x, Training::d);
    r.stages.assign(4, {codebook, static_cast<const PackHeader*>(packed_at)});
    r.metric = Metric::l2;
    cascade.codes.resize(Training::n * 4);
    r.codes = cascade.codes.data();
    r.quantized = cascade.out.data();
    float losses[4];
    cascade.run(cuda::residual_workspace(r, cascade.device),
                [&] { return cuda::residual_quantize(r, losses, cascade.device); });
    report("residual_quantize", cascade);
    cascade.launches = 0;
    for (PackedCodebook& stage : r.stages) stage.pack = nullptr;  // as in training, where codebooks move
    cascade.run(cuda::residual_workspace(r, cascade.device),
                [&] { return cuda::residual_quantize(r, losses, cascade.device); });
    report("residual_quantize", cascade, false);
    CHECK(cascade.launches == 6);
  }
}
