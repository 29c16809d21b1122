// One tensor core product of a warp.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fastwm/dtype.h"

namespace fastwm::cuda {

// d [16, 8] += a [16, 16] b [16, 8], bfloat16 with float sums, laid out over the lanes as mma.sync.m16n8k16 has it.
__device__ __forceinline__ void mma(float* d, const uint32_t (&a)[4], uint2 b) {
#if defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
#elif defined(FASTWM_EMULATED)
  emulated::mma_m16n8k16(d, a, b);
#endif
}

// Two numbers in bfloat16, the first in the low half.
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  uint32_t pair;
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
  bf16 halves[2];
  narrow(low, halves[0]), narrow(high, halves[1]);
  pair = halves[0].bits | uint32_t{halves[1].bits} << 16;
#endif
  return pair;
}

}  // namespace fastwm::cuda
