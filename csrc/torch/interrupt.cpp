#include "interrupt.h"

#include <unistd.h>

#include <csignal>

#if defined(__linux__)
#include <sys/syscall.h>
#else
#include <pthread.h>
#endif

namespace vecbank {
namespace {

constexpr double kLong = 1e7;  // a few milliseconds at the slowest

std::atomic<bool> raised{false};  // written by the handler, on the thread that the system chose
static_assert(std::atomic<bool>::is_always_lock_free);
thread_local int interruptible = 0;      // the number of InterruptibleThreads of this thread
thread_local bool interrupted_ = false;  // the flag was raised in a call of this thread
bool listening = false;                  // used by the main thread alone, as is the next
struct sigaction before;                 // the action of SIGINT before a call began to listen

bool on_main_thread() {
#if defined(__linux__)
  return syscall(SYS_gettid) == getpid();
#else
  return pthread_main_np() != 0;
#endif
}

void on_interrupt(int signal, siginfo_t* info, void* context) {
  if ((before.sa_flags & SA_SIGINFO) != 0)
    before.sa_sigaction(signal, info, context);
  else
    before.sa_handler(signal);
  raised.store(true, std::memory_order_relaxed);  // last, so that Python's own flag is set before this one
}

bool is_ours(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == on_interrupt;
}

}  // namespace

InterruptibleThread::InterruptibleThread() {
  if (interruptible++ == 0) interrupted_ = false;
}
InterruptibleThread::~InterruptibleThread() { --interruptible; }
bool InterruptibleThread::interrupted() const { return interrupted_; }

InterruptibleCall::InterruptibleCall(double work) {
  if (work < kLong || interruptible == 0 || !on_main_thread()) return;
  if (!listening) {
    if (sigaction(SIGINT, nullptr, &before) != 0) return;
    const bool informed = (before.sa_flags & SA_SIGINFO) != 0;
    if (!informed && (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN)) return;
    raised = false;
    struct sigaction ours = before;
    ours.sa_flags |= SA_SIGINFO;
    ours.sa_sigaction = on_interrupt;
    if (sigaction(SIGINT, &ours, nullptr) != 0) return;
    listening = listens_ = true;
  }
  stop_.flag = &raised;
}

InterruptibleCall::~InterruptibleCall() {
  if (!listens_) return;
  struct sigaction now;
  if (sigaction(SIGINT, nullptr, &now) == 0 && is_ours(now)) sigaction(SIGINT, &before, nullptr);
  interrupted_ = interrupted_ || raised;
  listening = false;
}

}  // namespace vecbank
