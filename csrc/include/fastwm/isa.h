// CPU instruction set levels. A kernel file csrc/cpu/<op>_kernel.cpp is compiled once per level, each into its
// own namespace; FASTWM_CPU_KERNEL declares them all and the function that calls the one in use.
#pragma once

#include "fastwm/stop.h"

#define FASTWM_API __attribute__((visibility("default")))

namespace fastwm {

enum class Isa : int { baseline, avx2, avx512 };

FASTWM_API Isa isa();          // the level in use: the best one this CPU has, unless set
FASTWM_API Isa best_isa();     // the best level that was compiled and that this CPU has
FASTWM_API void set_isa(Isa);  // the caller has checked it against best_isa()

}  // namespace fastwm

#if defined(__x86_64__)
#define FASTWM_CPU_KERNEL(name, Params)                                                     \
  namespace baseline {                                                                      \
  void name(const Params&);                                                                 \
  }                                                                                         \
  namespace avx2 {                                                                          \
  void name(const Params&);                                                                 \
  }                                                                                         \
  namespace avx512 {                                                                        \
  void name(const Params&);                                                                 \
  }                                                                                         \
  static void name(const Params& p, int /*device*/) {                                       \
    constexpr void (*levels[])(const Params&) = {baseline::name, avx2::name, avx512::name}; \
    levels[static_cast<int>(isa())](p);                                                     \
    throw_if_stopped();                                                                     \
  }
#else
#define FASTWM_CPU_KERNEL(name, Params)               \
  namespace baseline {                                \
  void name(const Params&);                           \
  }                                                   \
  static void name(const Params& p, int /*device*/) { \
    baseline::name(p);                                \
    throw_if_stopped();                               \
  }
#endif
