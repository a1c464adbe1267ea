// The workspace and how it is divided.
#pragma once

#include "../core/types.h"
#include "api.h"

namespace vecbank::cuda {

constexpr Error kTooSmall = "the workspace is smaller than what was asked for";

// Gives out pieces of the workspace one after the other. With a null base it only counts the bytes.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    T* p = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up_to(count * static_cast<int64_t>(sizeof(T)), 256);
    return p;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace vecbank::cuda
