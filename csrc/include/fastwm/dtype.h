// Element types as kernels see them: torch-free, shared by C++ and CUDA.
// Everything here has internal linkage: a weak symbol compiled with AVX-512 must never serve the baseline.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FASTWM_HD __host__ __device__
#define FASTWM_FN static FASTWM_MEMBER
#define FASTWM_MEMBER __host__ __device__ __forceinline__
#else
#define FASTWM_HD
#define FASTWM_FN static FASTWM_MEMBER
#define FASTWM_MEMBER inline __attribute__((always_inline))
#endif

namespace fastwm {

enum class Dtype : int32_t { f32, f64, bf16 };

struct bf16 {
  uint16_t bits;
};

// widen: an element in the type that kernels compute in (float for bfloat16).
FASTWM_FN float widen(float x) { return x; }
FASTWM_FN double widen(double x) { return x; }
FASTWM_FN float widen(bf16 x) {
  union {
    uint32_t u;
    float f;
  } w = {static_cast<uint32_t>(x.bits) << 16};
  return w.f;
}

template <typename T>
using accumulate_t = decltype(widen(T{}));

// narrow: back to the stored type, to the nearest, ties to even.
FASTWM_FN void narrow(float x, float& out) { out = x; }
FASTWM_FN void narrow(double x, double& out) { out = x; }
FASTWM_FN void narrow(float x, bf16& out) {
  union {
    float f;
    uint32_t u;
  } w = {x};
  const uint32_t rounded = (w.u + 0x7fffu + ((w.u >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>((w.u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

}  // namespace fastwm
