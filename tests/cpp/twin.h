// Memory with two sides, for the cases of the CUDA kernels: a case makes inputs and reads answers on the host's side,
// and a kernel is given the device's side, which exists while a call runs. On a GPU that is cudaMalloc and copies. The
// emulator's device side is host memory too; so that a host pointer that was handed to a kernel is noticed there as
// well, the host's side is overwritten (and poisoned, under AddressSanitizer) until the call is over.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <new>
#include <type_traits>
#include <vector>

#include "cuda/api.h"

namespace twin {

// The device's memory. The including file defines these.
struct Side {
  static const bool kShowsAll;      // every block has a device side during a call, not only those that the call names
  static void* take(size_t bytes);  // null: there is none
  static void give(void* p);
  static bool write(void* device, const void* host, size_t bytes);
  static bool read(void* host, const void* device, size_t bytes);
  static vecbank::cuda::Error wait();
  static void hide(void* host, size_t bytes);
  static void show(void* host, size_t bytes);
  static bool hidden(const void* host, size_t bytes);
};

constexpr size_t kAlignment = 256;  // cudaMalloc's, so that an address has the same alignment on both sides

struct Block {
  size_t bytes = 0;
  char* device = nullptr;  // null: none at present
};
inline std::map<char*, Block, std::less<>>& blocks() {
  static std::map<char*, Block, std::less<>> all;
  return all;
}

template <class T>
struct Memory {  // an allocator
  using value_type = T;
  Memory() = default;
  template <class U>
  Memory(const Memory<U>&) {}
  T* allocate(size_t count) {
    const size_t bytes = count * sizeof(T);
    char* p = static_cast<char*>(::operator new(bytes, std::align_val_t(kAlignment)));
    blocks()[p].bytes = bytes;
    return reinterpret_cast<T*>(p);
  }
  void deallocate(T* p, size_t) {
    blocks().erase(reinterpret_cast<char*>(p));
    ::operator delete(p, std::align_val_t(kAlignment));
  }
  template <class U>
  bool operator==(const Memory<U>&) const {
    return true;
  }
};

// One call of a driver: to() gives the device's side of everything that the driver is handed.
class Crossing {
 public:
  static Crossing*& current() {
    static Crossing* now = nullptr;
    return now;
  }
  Crossing() {
    current() = this;
    if (Side::kShowsAll)
      for (auto& [host, block] : blocks()) bring(host, block);
    if (Side::kShowsAll) show(false);
  }
  ~Crossing() {
    if (hidden_) show(true);
    for (auto& [host, block] : blocks()) {
      if (block.device != nullptr) Side::give(block.device);
      block.device = nullptr;
    }
    current() = nullptr;
  }
  Crossing(const Crossing&) = delete;

  const char* fault() const { return fault_; }

  // The host's sides get what the device's hold.
  bool fetch() {
    if (hidden_) show(true);
    for (auto& [host, block] : blocks())
      if (block.device != nullptr && !Side::read(host, block.device, block.bytes)) return false;
    return true;
  }
  // Work of the host between two kernels, on the host's sides: for a stand-in of a library.
  template <class Body>
  vecbank::cuda::Error on_host(Body&& body) {
    if (const vecbank::cuda::Error e = Side::wait()) return e;
    if (!fetch()) return "the device's memory could not be read";
    body();
    for (auto& [host, block] : blocks())
      if (block.device != nullptr && !Side::write(block.device, host, block.bytes))
        return "the device's memory could not be written";
    if (Side::kShowsAll) show(false);
    return nullptr;
  }
  template <class T>
  T* host_of(T* device) const {
    const char* p = reinterpret_cast<const char*>(device);
    for (const auto& [host, block] : blocks())
      if (block.device != nullptr && p >= block.device && p < block.device + block.bytes)
        return reinterpret_cast<T*>(host + (p - block.device));
    return nullptr;
  }

  template <class T>
  std::enable_if_t<std::is_arithmetic_v<T> || std::is_enum_v<T> || std::is_null_pointer_v<T>, T> to(T value) {
    return value;
  }
  template <class T>
  T* to(T* p) {
    if (p == nullptr) return nullptr;
    char* at = reinterpret_cast<char*>(const_cast<std::remove_const_t<T>*>(p));
    auto found = blocks().upper_bound(at);
    if (found == blocks().begin() || at >= (--found)->first + found->second.bytes) {
      fault_ = "the case hands over a pointer to memory that is no Vec";
      return nullptr;
    }
    bring(found->first, found->second);
    return reinterpret_cast<T*>(found->second.device + (at - found->first));
  }
  vecbank::cuda::Multiply to(const vecbank::cuda::Multiply& m) { return m; }  // the host's own
  vecbank::cuda::Device to(const vecbank::cuda::Device& d) {
    return moved(d, &vecbank::cuda::Device::state, workspace);
  }
  vecbank::Rows to(const vecbank::Rows& r) { return moved(r, &vecbank::Rows::data); }
  vecbank::Mask to(const vecbank::Mask& m) { return moved(m, &vecbank::Mask::data); }
  vecbank::PackedCodebook to(const vecbank::PackedCodebook& c) {
    return moved(c, &vecbank::PackedCodebook::bank, &vecbank::PackedCodebook::pack);
  }
  template <class T>
  std::vector<T> to(const std::vector<T>& all) {
    std::vector<T> there;
    for (const T& one : all) there.push_back(to(one));
    return there;
  }
  vecbank::SearchProblem to(const vecbank::SearchProblem& p) {
    using P = vecbank::SearchProblem;
    return moved(p, &P::queries, &P::bank, &P::pack, &P::bias, &P::mask, &P::values, &P::indices, &P::gathered);
  }
  vecbank::ProjectProblem to(const vecbank::ProjectProblem& p) {
    using P = vecbank::ProjectProblem;
    return moved(p, &P::queries, &P::bank, &P::pack, &P::out, &P::indices);
  }
  vecbank::LookupProblem to(const vecbank::LookupProblem& p) {
    using P = vecbank::LookupProblem;
    return moved(p, &P::codes, &P::bank, &P::weights, &P::out);
  }
  vecbank::LookupDotProblem to(const vecbank::LookupDotProblem& p) {
    using P = vecbank::LookupDotProblem;
    return moved(p, &P::codes, &P::x, &P::bank, &P::out);
  }
  vecbank::SegmentSumProblem to(const vecbank::SegmentSumProblem& p) {
    using P = vecbank::SegmentSumProblem;
    return moved(p, &P::codes, &P::source, &P::weights, &P::out, &P::counts);
  }
  vecbank::QuantizeLossProblem to(const vecbank::QuantizeLossProblem& p) {
    using P = vecbank::QuantizeLossProblem;
    return moved(p, &P::x, &P::codes, &P::quantized, &P::keep);
  }
  vecbank::PairProblem to(const vecbank::PairProblem& p) {
    using P = vecbank::PairProblem;
    return moved(p, &P::queries, &P::bank, &P::indices, &P::grad, &P::grad_queries, &P::grad_bank);
  }
  vecbank::PassBackProblem to(const vecbank::PassBackProblem& p) {
    using P = vecbank::PassBackProblem;
    return moved(p, &P::grad, &P::x, &P::quantized, &P::out);
  }
  vecbank::ResidualProblem to(const vecbank::ResidualProblem& p) {
    using P = vecbank::ResidualProblem;
    return moved(p, &P::queries, &P::stages, &P::codes, &P::quantized, &P::squares, &P::valid);
  }
  vecbank::ProductProblem to(const vecbank::ProductProblem& p) {
    using P = vecbank::ProductProblem;
    return moved(p, &P::queries, &P::codebooks, &P::codes);
  }

 private:
  static constexpr auto workspace = &vecbank::cuda::Device::workspace;

  template <class P, class... Members>
  P moved(P problem, Members... members) {
    ((problem.*members = to(problem.*members)), ...);
    return problem;
  }
  void bring(char* host, Block& block) {
    if (block.device != nullptr) return;
    block.device = static_cast<char*>(Side::take(block.bytes));
    if (block.device == nullptr) throw std::bad_alloc();
    if (!Side::write(block.device, host, block.bytes)) fault_ = "the device's memory could not be written";
  }
  void show(bool visible) {
    for (auto& [host, block] : blocks()) (visible ? Side::show : Side::hide)(host, block.bytes);
    hidden_ = !visible;
  }

  const char* fault_ = nullptr;
  bool hidden_ = false;
};

}  // namespace twin

template <class T>
using Vec = std::vector<T, twin::Memory<T>>;

// Calls a driver, or anything that takes device memory, with the device's side of every argument, and waits for it.
template <class Driver, class... Args>
bool ran(Driver&& driver, const Args&... args) {
  twin::Crossing crossing;
  vecbank::cuda::Error error = nullptr;
  const auto call = [&](auto&&... there) { error = crossing.fault() == nullptr ? driver(there...) : nullptr; };
  call(crossing.to(args)...);
  if (error == nullptr) error = crossing.fault();
  if (error == nullptr) error = twin::Side::wait();
  const bool back = crossing.fetch();
  if (error == nullptr && !back) error = "the device's memory could not be read";
  if (error != nullptr) std::printf("  %s\n", error);
  return error == nullptr;
}
