// Which tensor each pack was made from, kept beside the packs: for a device whose memory cannot be read without waiting
// for it. A pack is known by its address.
#pragma once

#include <cstring>
#include <mutex>
#include <unordered_map>

#include "pack.h"

namespace vecbank {

class PackStamps {
 public:
  explicit PackStamps(size_t most) : most_(most) {}

  void put(const void* pack, const PackStamp& stamp) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stamps_.size() >= most_ && stamps_.count(pack) == 0) {
      stamps_.clear();
      lost_ = true;
    }
    stamps_[pack] = stamp;
  }
  // Another pack lies there, which is not stamped.
  void erase(const void* pack) {
    const std::lock_guard<std::mutex> lock(mutex_);
    stamps_.erase(pack);
  }
  // Whether the caller wants the pack compared with the bank. A pack without a stamp is the caller's responsibility,
  // unless stamps were lost: then no pack without one is used.
  bool held(const void* pack) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return lost_ || stamps_.count(pack) != 0;
  }
  bool is(const void* pack, const PackStamp& now) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = stamps_.find(pack);
    return found != stamps_.end() && std::memcmp(&found->second, &now, sizeof now) == 0;
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_map<const void*, PackStamp> stamps_;
  size_t most_;
  bool lost_ = false;
};

}  // namespace vecbank
