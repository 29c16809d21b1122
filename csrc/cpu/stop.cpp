#include "fastwm/stop.h"

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <ctime>

#include "fastwm/stopped.h"

namespace fastwm {
namespace {

constexpr int64_t kEvery = 100;  // milliseconds

std::atomic<StopQuestion> question{nullptr};
thread_local bool stopped = false;  // the kernel that this thread called last

int64_t now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return int64_t{time.tv_sec} * 1000 + time.tv_nsec / 1000000;
}

}  // namespace

Stop::Stop() : caller_(pthread_self()), next_(question.load() ? now() + kEvery : INT64_MAX), at_(INT64_MAX) {}

bool Stop::before(int64_t step, bool together) {
  if (caller_ == pthread_self() && next_ != INT64_MAX) {
    const int64_t time = now();
    if (time >= next_) {
      next_ = time + kEvery;
      if (question.load()()) {
        stopped = true;
        next_ = INT64_MAX;
        __atomic_store_n(&at_, together ? step + 1 : 0, __ATOMIC_RELAXED);
      }
    }
  }
  return step >= __atomic_load_n(&at_, __ATOMIC_RELAXED);
}

void set_stop_question(StopQuestion ask) { question.store(ask); }

void throw_if_stopped() {
  if (!stopped) return;
  stopped = false;
  throw Stopped();
}

}  // namespace fastwm
