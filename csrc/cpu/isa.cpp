#include "fastwm/isa.h"

#include <atomic>

namespace fastwm {

Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

static std::atomic<Isa>& level() {
  static std::atomic<Isa> value{best_isa()};
  return value;
}

Isa isa() { return level().load(std::memory_order_relaxed); }

void set_isa(Isa value) { level().store(value, std::memory_order_relaxed); }

}  // namespace fastwm
