#include <chrono>

#include "check.h"

// vecbank_cpp_tests [part of a name]        those tests alone
// vecbank_cpp_tests --shard 0/2             every second one, from the first: shards run side by side
int main(int argc, char** argv) {
  std::string only = argc > 1 ? argv[1] : "";
  int shard = 0, shards = 1;
  if (only == "--shard") {
    if (argc != 3 || std::sscanf(argv[2], "%d/%d", &shard, &shards) != 2 || shard < 0 || shard >= shards) {
      std::fprintf(stderr, "--shard wants i/n with 0 <= i < n, for instance 0/2\n");
      return 2;
    }
    only.clear();
  }
  int ran = 0, number = 0;
  for (const TestCase& t : all_tests()) {
    if (number++ % shards != shard) continue;
    if (!only.empty() && std::string(t.name).find(only) == std::string::npos) continue;
    const int64_t before = checks_failed;
    const auto start = std::chrono::steady_clock::now();
    t.run();
    ++ran;
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    std::printf("%-4s %6.1f s  %s\n", checks_failed == before ? "ok" : "FAIL", took.count(), t.name);
    std::fflush(stdout);  // a crash in the next test must not swallow this line
  }
  std::string isas;
  for (int isa = 0; isa < vecbank::cpu::kIsaCount; ++isa)
    if (vecbank::cpu::isa_available(isa)) isas += std::string(" ") + vecbank::cpu::kIsaNames[isa];
  std::printf("%d tests, %lld checks, %lld failed; instruction sets:%s\n", ran, static_cast<long long>(checks_done),
              static_cast<long long>(checks_failed), isas.c_str());
  return checks_failed != 0 || ran == 0;
}
