// Ctrl-C inside a long kernel. Whoever loads the library leaves a question, "does the user want to stop?", which the
// thread that called the operator asks ten times a second. No inline functions: kernels include this.
#pragma once

#include <cstdint>

namespace fastwm {

// One a call, made by the calling thread before its parallel region.
class Stop {
 public:
  Stop();

  // Whether this thread leaves before `step`, which it asks once a step, counted from 0. Threads that wait for each other,
  // at least once a step, leave together: at the step after the one in which the user was asked.
  bool before(int64_t step, bool together);

 private:
  const uint64_t caller_;
  int64_t next_;  // milliseconds: when the user is asked again
  int64_t at_;    // the step at which all leave
};

using StopQuestion = bool (*)();
__attribute__((visibility("default"))) void set_stop_question(StopQuestion);

void throw_if_stopped();  // by the host, where the kernel that it called has been stopped

}  // namespace fastwm
