#include <chrono>

#include "check.h"

// vecbank_cpp_tests [name, or part of one]  that test alone, or all whose names hold the part
// vecbank_cpp_tests --shard 0/2             every second one, from the first: shards run side by side
// vecbank_cpp_tests --list                  the names, one a line; nothing runs
// Exit status: 0 all passed, 1 a check failed or no test has that name, 2 wrong arguments, 77 nothing can run here.
int main(int argc, char** argv) {
  std::string only = argc > 1 ? argv[1] : "";
  if (only == "--list") {
    for (const TestCase& t : all_tests()) std::printf("%s\n", t.name);
    return 0;
  }
  if (why_not_run() != nullptr)
    if (const char* why = why_not_run()()) {
      std::printf("NOT RUN: %s\n", why);
      return 77;
    }
  bool whole = false;
  for (const TestCase& t : all_tests()) whole = whole || only == t.name;
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
    const std::string name = t.name;
    if (whole ? name != only : name.find(only) == std::string::npos) continue;
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
