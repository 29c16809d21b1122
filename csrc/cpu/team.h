// Threads that walk through a sequence together: each takes its range of a stage's work, and a barrier follows.
#pragma once

#include <cstdint>

#include <sched.h>

namespace fastwm::FASTWM_ISA {
namespace {

struct alignas(64) Barrier {
  int arrived = 0;
  alignas(64) int phase = 0;
};

struct Range {
  int64_t first, last;
};

// One thread's place in its team. A team of one waits for nobody.
struct Team {
  int rank, size;
  Barrier* barrier;

  Range range(int64_t count) const { return {count * rank / size, count * (rank + 1) / size}; }

  void wait() const {
    if (size == 1) return;
    const int phase = __atomic_load_n(&barrier->phase, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_ACQ_REL) == size) {
      __atomic_store_n(&barrier->arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&barrier->phase, phase + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int spins = 0; __atomic_load_n(&barrier->phase, __ATOMIC_ACQUIRE) == phase; ++spins) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
      if (spins > 4096) sched_yield();  // more threads than cores: let the others arrive
    }
  }
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
