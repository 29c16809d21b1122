// Sums over a group of threads that share a row, in an order that is always the same.
#pragma once

#include "common.cuh"

namespace fastwm::cuda {

struct Sum {
  template <typename A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
};

struct Max {
  template <typename A>
  __device__ A operator()(A a, A b) const {
    return a > b ? a : b;
  }
};

// What `op` makes of x over the kGroup threads of this one's group, known to all of them. All threads of the block
// must call it. kGroup: a power of two up to 32, or the whole block.
template <int kGroup, typename Op, typename A>
__device__ A group_reduce(A x, Op op) {
  constexpr int kLanes = kGroup < 32 ? kGroup : 32;
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, step));
  if constexpr (kGroup > 32) {
    static_assert(kGroup == kThreads);
    __shared__ A warps[kThreads / 32];
    __syncthreads();  // the array may still be read from the call before
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = warps[0];
#pragma unroll
    for (int w = 1; w < kThreads / 32; ++w) x = op(x, warps[w]);
  }
  return x;
}

template <int kGroup, typename A>
__device__ A group_sum(A x) {
  return group_reduce<kGroup>(x, Sum{});
}

}  // namespace fastwm::cuda
