// When a CPU kernel is worth threads.
#pragma once

#include <cstdint>

namespace fastwm {

// Waking OpenMP's threads costs a few microseconds: below this many elements one thread is faster.
constexpr int64_t kParallelElements = 32768;

}  // namespace fastwm
