// vecbank_cuda_timer: milliseconds of every kernel of a call, beside what was predicted of it
// (bench/cuda_predictions.csv). No torch and no Python. A case runs at once; the caller gives each a process of its
// own, so that a fault costs one case.
//   vecbank_cuda_timer --list                              the names of the cases
//   vecbank_cuda_timer --case NAME [options]               one case; without --case: all of them
//   vecbank_cuda_timer --dry-run [--predictions FILE]      plans every case without a device, and checks the
//   predictions
// Options: --predictions FILE, --json FILE (a line is added for each case), --seconds MOST (of repetitions; 1.5)
// Exit status: 0 measured (or this device cannot run the case), 1 an error, 2 wrong arguments, 77 no CUDA device.
#include <cxxabi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>

#include "cuda/launch.h"
#include "timer_cases.h"

namespace timer {
namespace {

// ---- Predictions
// -----------------------------------------------------------------------------------------------------

struct Prediction {
  std::string which, kernel;  // a case; a kernel's name or its beginning, or "total"
  double ms;
};

// Lines "case,kernel,ms,why"; others begin with # or are empty.
bool read_predictions(const std::string& path, std::vector<Prediction>& all) {
  std::ifstream file(path);
  if (!file) return std::fprintf(stderr, "--predictions: %s cannot be read\n", path.c_str()), false;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.empty() || line[0] == '#') continue;
    const size_t a = line.find(','), b = line.find(',', a + 1), c = line.find(',', b + 1);
    char* end = nullptr;
    const double ms = c == std::string::npos ? 0.0 : std::strtod(line.c_str() + b + 1, &end);
    if (c == std::string::npos || end != line.c_str() + c || !(ms > 0.0))
      return std::fprintf(stderr, "%s:%d: expected case,kernel,ms,why with ms above 0, got: %s\n", path.c_str(), number,
                          line.c_str()),
             false;
    all.push_back({line.substr(0, a), line.substr(a + 1, b - a - 1), ms});
  }
  return true;
}
double predicted(const std::vector<Prediction>& all, const std::string& which, const std::string& kernel) {
  for (const Prediction& p : all)
    if (p.which == which &&
        (p.kernel == "total" ? kernel == "total" : kernel.compare(0, p.kernel.size(), p.kernel) == 0))
      return p.ms;
  return 0.0;
}

// ---- Every launch between two events
// -----------------------------------------------------------------------------------

struct Watch {
  std::vector<std::pair<const void*, std::pair<cudaEvent_t, cudaEvent_t>>> launches;
  size_t used = 0;
};
Watch watch;

void on_launch(const void* kernel, const Device& device, bool before) {
  if (before) {
    if (watch.used == watch.launches.size()) {
      watch.launches.emplace_back();
      cudaEventCreate(&watch.launches.back().second.first);
      cudaEventCreate(&watch.launches.back().second.second);
    }
    watch.launches[watch.used].first = kernel;
  }
  const auto& [start, stop] = watch.launches[watch.used].second;
  cudaEventRecord(before ? start : stop, static_cast<cudaStream_t>(device.stream));
  if (!before) ++watch.used;
}

// "void vecbank::cuda::(anonymous namespace)::screen_kernel<1>(Args)" -> "screen_kernel<1>"
std::string short_name(const void* kernel) {
  const char* mangled = nullptr;
  if (cudaFuncGetName(&mangled, kernel) != cudaSuccess || mangled == nullptr) return "unknown";
  int status = 0;
  char* plain = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = status == 0 && plain != nullptr ? plain : mangled;
  std::free(plain);
  const auto drop = [&](const std::string& what) {
    for (size_t at = name.find(what); at != std::string::npos; at = name.find(what)) name.erase(at, what.size());
  };
  drop("(anonymous namespace)::");
  drop("vecbank::");
  size_t begin = 0, end = name.size();
  for (size_t i = 0, depth = 0; i < name.size(); ++i) {
    if (name[i] == '<') ++depth;
    if (name[i] == '>') --depth;
    if (depth != 0) continue;
    if (name[i] == ' ' || (name[i] == ':' && i > 0 && name[i - 1] == ':')) begin = i + 1;
    if (name[i] == '(') {
      end = i;
      break;
    }
  }
  return name.substr(begin, end - begin);
}

// ---- Measuring
// ---------------------------------------------------------------------------------------------------------

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0.0 : v.size() % 2 ? v[v.size() / 2] : 0.5 * (v[v.size() / 2 - 1] + v[v.size() / 2]);
}

struct Options {
  std::string only, json, predictions;
  double seconds = 1.5;
  bool list = false, dry = false;
};
struct KernelTime {
  std::string name;
  size_t launches = 0;  // of one call
  std::vector<double> ms;
};

void report(const Case& c, const Options& o, const std::vector<Prediction>& predictions, double total,
            const std::vector<double>& all, const std::vector<KernelTime>& kernels) {
  const auto against = [&](const std::string& kernel, double ms) {
    const double expected = predicted(predictions, c.name, kernel);
    char text[64] = "";
    if (expected > 0.0) std::snprintf(text, sizeof text, "  predicted %.3f: x %.2f", expected, ms / expected);
    return std::string(text);
  };
  std::printf("%-52s %9.3f ms (least %.3f, %zu calls)%s\n", c.name.c_str(), total,
              *std::min_element(all.begin(), all.end()), all.size(), against("total", total).c_str());
  double sum = 0.0;
  std::string json;
  for (const KernelTime& k : kernels) {
    const double ms = median(k.ms);
    sum += ms;
    std::printf("    %-40s %5zu launches %9.4f each %9.3f ms%s\n", k.name.c_str(), k.launches,
                ms / static_cast<double>(k.launches), ms, against(k.name, ms).c_str());
    char text[512];
    std::snprintf(text, sizeof text, "%s{\"name\": \"%s\", \"launches\": %zu, \"ms\": %.5f, \"predicted_ms\": %.5f}",
                  json.empty() ? "" : ", ", k.name.c_str(), k.launches, ms, predicted(predictions, c.name, k.name));
    json += text;
  }
  std::printf("    %-40s %24s %15.3f ms\n", "between kernels, and what launch() does not start", "", total - sum);
  std::fflush(stdout);
  if (o.json.empty()) return;
  cudaDeviceProp facts{};
  cudaGetDeviceProperties(&facts, 0);
  if (std::FILE* file = std::fopen(o.json.c_str(), "a")) {
    std::fprintf(file,
                 "{\"case\": \"%s\", \"gpu\": \"%s\", \"ms\": %.5f, \"least_ms\": %.5f, \"calls\": %zu, "
                 "\"predicted_ms\": %.5f, \"kernels\": [%s]}\n",
                 c.name.c_str(), facts.name, total, *std::min_element(all.begin(), all.end()), all.size(),
                 predicted(predictions, c.name, "total"), json.c_str());
    std::fclose(file);
  }
}

int failed(const Case& c, const char* why) {
  std::printf("FAIL %s: %s\n", c.name.c_str(), why);
  std::fflush(stdout);
  return 1;
}

int measure(const Case& c, const Options& o, const std::vector<Prediction>& predictions) {
  Device device;
  if (const Error e = cuda::use_device(0, &device)) return failed(c, e);
  device.path = c.path;
  device.few = c.few;
  if (const Error e = cuda::search_fault(device)) {
    std::printf("not run: %s: %s\n", c.name.c_str(), e);
    return 0;
  }
  Store store(false);
  const Prepared p = c.prepare(store, device);
  if (!p.call) return failed(c, "its data could not be prepared");
  device.workspace = store.empty<char>(p.workspace);
  device.workspace_bytes = p.workspace;
  constexpr int64_t kFlushed = int64_t{256} << 20;  // more than any L2 holds
  char* flush = store.empty<char>(kFlushed);
  cudaEvent_t start, stop;
  cudaEventCreate(&start), cudaEventCreate(&stop);
  const auto began = std::chrono::steady_clock::now();
  const auto spent = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count(); };
  const auto once = [&](int turn) -> Error {
    cudaMemsetAsync(flush, turn + 1, kFlushed, nullptr);
    cudaEventRecord(start, nullptr);
    if (const Error e = p.call(device)) return e;
    cudaEventRecord(stop, nullptr);
    const cudaError_t status = cudaDeviceSynchronize();
    return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
  };
  std::vector<double> total;
  for (int turn = -2; turn < 9 && (turn < 3 || spent() < o.seconds / 2); ++turn) {  // the first two warm up
    if (const Error e = once(turn)) return failed(c, e);
    float ms = 0.0f;
    cudaEventElapsedTime(&ms, start, stop);
    if (turn >= 0) total.push_back(static_cast<double>(ms));
  }
  std::vector<KernelTime> kernels;
  cuda::launch_hook = on_launch;
  for (int turn = 0; turn < 7 && (turn < 3 || spent() < o.seconds); ++turn) {
    watch.used = 0;
    if (const Error e = once(turn)) return failed(c, e);
    for (size_t i = 0; i < watch.used; ++i) {
      const auto& [kernel, events] = watch.launches[i];
      const std::string name = short_name(kernel);
      auto found = std::find_if(kernels.begin(), kernels.end(), [&](const KernelTime& k) { return k.name == name; });
      if (found == kernels.end()) kernels.push_back({name}), found = kernels.end() - 1;
      if (found->ms.size() <= static_cast<size_t>(turn)) found->ms.push_back(0.0);
      float ms = 0.0f;
      cudaEventElapsedTime(&ms, events.first, events.second);
      found->ms.back() += static_cast<double>(ms);
      if (turn == 0) ++found->launches;
    }
  }
  cuda::launch_hook = nullptr;
  report(c, o, predictions, median(total), total, kernels);
  return 0;
}

// Plans every case as for an H100, without a device.
int dry_run(const std::vector<Case>& cases, const std::vector<Prediction>& predictions) {
  int faults = 0;
  const auto fault = [&](const std::string& what) { std::printf("FAIL %s\n", what.c_str()), ++faults; };
  std::map<std::string, int> names;
  Device device;
  device.processors = 132;
  device.capability = 90;
  for (const Case& c : cases) {
    if (++names[c.name] > 1) fault(c.name + ": two cases of that name");
    device.path = c.path;
    device.few = c.few;
    Store store(true);
    const Prepared p = c.prepare(store, device);
    if (!p.call) fault(c.name + ": nothing to call");
    const bool bounded = c.name.find("/packed") != std::string::npos;  // others may hold operands, or sorted codes
    if (bounded && p.workspace > cuda::kMostWorkspace)
      fault(c.name + ": a workspace of " + std::to_string(p.workspace) + " bytes");
    if (store.bytes() > int64_t{8} << 30) fault(c.name + ": more than 8 GiB of data");
    std::printf("%-52s %7.1f MiB of data, %6.1f MiB of workspace, predicted %.3f ms\n", c.name.c_str(),
                static_cast<double>(store.bytes()) / (1 << 20), static_cast<double>(p.workspace) / (1 << 20),
                predicted(predictions, c.name, "total"));
  }
  for (const Prediction& p : predictions)
    if (names.count(p.which) == 0) fault("a prediction for " + p.which + ", which is no case");
  std::printf("dry run: %zu cases, %zu predictions, %d faults\n", cases.size(), predictions.size(), faults);
  return faults != 0;
}

int run(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : nullptr;
    if (flag == "--list") {
      o.list = true;
    } else if (flag == "--dry-run") {
      o.dry = true;
    } else if (value != nullptr && (flag == "--case" || flag == "--json" || flag == "--predictions")) {
      (flag == "--case" ? o.only : flag == "--json" ? o.json : o.predictions) = value;
      ++i;
    } else if (value != nullptr && flag == "--seconds" && std::atof(value) > 0.0) {
      o.seconds = std::atof(value);
      ++i;
    } else {
      std::fprintf(stderr,
                   "vecbank_cuda_timer: %s: expected --list, --case NAME, --dry-run, --json FILE, "
                   "--predictions FILE or --seconds NUMBER\n",
                   flag.c_str());
      return 2;
    }
  }
  std::vector<Case> cases = all_cases();
  if (!o.only.empty())
    cases.erase(std::remove_if(cases.begin(), cases.end(), [&](const Case& c) { return c.name != o.only; }),
                cases.end());
  if (cases.empty()) {
    std::fprintf(stderr, "vecbank_cuda_timer: --case: there is no %s (--list names the cases)\n", o.only.c_str());
    return 2;
  }
  if (o.list) {
    for (const Case& c : cases) std::printf("%s\n", c.name.c_str());
    return 0;
  }
  std::vector<Prediction> predictions;
  if (!o.predictions.empty() && !read_predictions(o.predictions, predictions)) return 2;
  if (o.dry) return dry_run(cases, predictions);
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("NOT RUN: no CUDA device\n");
    return 77;
  }
  int status = 0;
  for (const Case& c : cases) status = std::max(status, measure(c, o, predictions));
  return status;
}

}  // namespace
}  // namespace timer

int main(int argc, char** argv) {
  try {
    return timer::run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::printf("FAIL: no memory on the device\n");
    return 1;
  }
}
