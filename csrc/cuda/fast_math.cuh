// Activations by two instructions of the special function unit, whose relative errors are some 2^-22: for what bfloat16
// rounds next. Elsewhere those of vecmath.h.
#pragma once

#include "common.cuh"

#include "fastwm/vecmath.h"

namespace fastwm::cuda {

#if defined(__CUDA_ARCH__)
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#else
__device__ inline float reciprocal(float x) { return 1 / x; }
__device__ inline float power_of_two(float x) { return exp2f(x); }
#endif

template <bool kFast>
struct Activation {
  template <typename T>
  __device__ static T sigmoid(T x) {
    if constexpr (kFast) return reciprocal(1 + power_of_two(-1.44269504f * x));
    else return vsigmoid(x);
  }
  template <typename T>
  __device__ static T silu(T x) {
    if constexpr (kFast) return x * sigmoid(x);
    else return vsilu(x);
  }
  template <typename T>
  __device__ static T tanh(T x) {
    if constexpr (kFast) return 2 * sigmoid(2 * x) - 1;
    else return vtanh(x);
  }
};

}  // namespace fastwm::cuda
