#include "check.h"

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  int ran = 0;
  for (const TestCase& t : all_tests()) {
    if (!only.empty() && std::string(t.name).find(only) == std::string::npos) continue;
    const int64_t before = checks_failed;
    t.run();
    ++ran;
    std::printf("%-4s %s\n", checks_failed == before ? "ok" : "FAIL", t.name);
  }
  std::string isas;
  for (int isa = 0; isa < vecbank::kIsaCount; ++isa)
    if (vecbank::isa_available(isa)) isas += std::string(" ") + vecbank::kIsaNames[isa];
  std::printf("%d tests, %lld checks, %lld failed; instruction sets:%s\n", ran, static_cast<long long>(checks_done),
              static_cast<long long>(checks_failed), isas.c_str());
  return checks_failed != 0 || ran == 0;
}
