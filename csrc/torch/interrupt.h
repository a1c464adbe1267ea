// Ctrl-C in a long call on the CPU: who may be stopped by it, and the flag that the kernels look at. Signals alone: no
// Python and no torch here.
#pragma once

#include "../cpu/parallel.h"

namespace vecbank {

// While one lives, SIGINT may stop the long calls that this thread makes. Whoever makes one sees to it that a stop
// reaches the user as an interrupt: module.cpp does, where Python's own handler is in place.
class InterruptibleThread {
 public:
  InterruptibleThread();
  ~InterruptibleThread();
  InterruptibleThread(const InterruptibleThread&) = delete;
  InterruptibleThread& operator=(const InterruptibleThread&) = delete;

  bool interrupted() const;  // has SIGINT come during a long call of this thread?
};

// Made by an op for as long as its kernels run. Where the thread is interruptible, is the process's main one, and the
// work is long, it listens for SIGINT: the handler that was there is called as ever, and the flag is raised besides.
// Otherwise it does nothing: a short call does not pay for it.
class InterruptibleCall {
 public:
  explicit InterruptibleCall(double work);  // about how many elements are read or multiplied
  ~InterruptibleCall();
  InterruptibleCall(const InterruptibleCall&) = delete;
  InterruptibleCall& operator=(const InterruptibleCall&) = delete;

  cpu::Stop stop() const { return stop_; }

 private:
  cpu::Stop stop_;
  bool listens_ = false;  // false too where an op calls another one
};

}  // namespace vecbank
