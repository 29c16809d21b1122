// A team of threads goes through a sequence together: each takes its range of a stage's work, and a barrier follows.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

#include "fastwm/stop.h"

namespace fastwm::FASTWM_ISA {
namespace {

constexpr int kMaxThreads = 256;

inline int max_threads() {
#ifdef _OPENMP
  const int threads = omp_get_max_threads();
  return threads < kMaxThreads ? threads : kMaxThreads;
#else
  return 1;
#endif
}

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// A barrier takes microseconds where every thread has a core. Where another process has taken one, the thread that is
// late needs the core of those that wait: after kSpins pauses (0.3 to 1 ms) they sleep. Sooner, a quiet machine pays for
// waking: 1,024 pauses cost an update of size12m 15 % on a virtual machine.
constexpr int kSpins = 16384;

struct alignas(64) Barrier {
  int arrived = 0;
  alignas(64) int phase = 0;
  int sleeping = 0;

  void sleep_while(int old) {
#if defined(__linux__)
    __atomic_add_fetch(&sleeping, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&phase, __ATOMIC_SEQ_CST) == old)
      syscall(SYS_futex, &phase, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
    __atomic_sub_fetch(&sleeping, 1, __ATOMIC_RELAXED);
#else
    while (__atomic_load_n(&phase, __ATOMIC_ACQUIRE) == old) sched_yield();
#endif
  }

  void open(int next) {
    __atomic_store_n(&phase, next, __ATOMIC_SEQ_CST);
#if defined(__linux__)
    if (__atomic_load_n(&sleeping, __ATOMIC_SEQ_CST))
      syscall(SYS_futex, &phase, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
#endif
  }
};

struct Range {
  int64_t first, last;
};

// One thread's place in its team. A team of one waits for nobody.
struct Team {
  int rank, size;
  Barrier* barrier;
  Stop* stop = nullptr;

  Range range(int64_t count) const { return {count * rank / size, count * (rank + 1) / size}; }

  // Whether the team leaves before this step, since the user has stopped the call. It waits at least once a step.
  bool leaves(int64_t step) const { return stop && stop->before(step, size > 1); }

  void wait() const {
    if (size == 1) return;
    const int phase = __atomic_load_n(&barrier->phase, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_ACQ_REL) == size) {
      __atomic_store_n(&barrier->arrived, 0, __ATOMIC_RELAXED);
      barrier->open(phase + 1);
      return;
    }
    for (int spins = 0; __atomic_load_n(&barrier->phase, __ATOMIC_ACQUIRE) == phase; ++spins) {
      if (spins == kSpins) return barrier->sleep_while(phase);
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }
};

// Inside a parallel region: the calling thread's place in the team of all its threads.
inline Team team_of_all(Barrier* barrier = nullptr, Stop* stop = nullptr) {
#ifdef _OPENMP
  return {thread_number(), omp_get_num_threads(), barrier, stop};
#else
  return {0, 1, barrier, stop};
#endif
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
