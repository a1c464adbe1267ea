// Ctrl-C in a long call on the CPU: which calls it may stop, and the flag that the kernels check. This file uses
// signals alone, neither Python nor torch.
#pragma once

#include "../cpu/parallel.h"

namespace vecbank {

// While an InterruptibleThread exists, SIGINT may stop the long calls of its thread. Its owner must report a stop to
// the user as an interrupt: module.cpp does so, where Python's own handler is installed.
class InterruptibleThread {
 public:
  InterruptibleThread();
  ~InterruptibleThread();
  InterruptibleThread(const InterruptibleThread&) = delete;
  InterruptibleThread& operator=(const InterruptibleThread&) = delete;

  bool interrupted() const;  // whether SIGINT came during a long call of this thread
};

// An op holds an InterruptibleCall while its kernels run. Where the thread is interruptible and the process's main
// thread, and the work is long, the call listens for SIGINT: the previous handler is called as before, and the flag is
// raised as well. Otherwise the call does nothing, so that short calls cost nothing.
class InterruptibleCall {
 public:
  explicit InterruptibleCall(double work);  // `work`: about how many elements are read or multiplied
  ~InterruptibleCall();
  InterruptibleCall(const InterruptibleCall&) = delete;
  InterruptibleCall& operator=(const InterruptibleCall&) = delete;

  cpu::Stop stop() const { return stop_; }

 private:
  cpu::Stop stop_;
  bool listens_ = false;  // false also where an op calls another one
};

}  // namespace vecbank
