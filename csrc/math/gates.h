// The activations of a gate and their derivatives, for every recurrent cell on both devices.
//
// The cells' functions return structs and take numbers, or structs by value that a caller writes in braces. A struct whose
// address is taken (by a reference, or by copying a variable) stays in memory in an `omp simd` loop, and GCC leaves the
// loop scalar.
#pragma once

#include "fastwm/vecmath.h"

namespace fastwm {

// A gate needs absolute accuracy, not vtanh's last bits. On the CPU, where these functions are most of a cell's time, tanh
// is a rational minimax fit within 4e-7, never outside [-1, 1], at a third of the price.
#ifdef __CUDA_ARCH__
FASTWM_FN float gate_tanh(float x) { return vtanh(x); }
#else
FASTWM_FN float gate_tanh(float x) {
  const float c = bound(x, -8.4f, 8.4f), t = c * c;
  const float p = (((1.445773127e-8f * t + 2.137969094e-5f) * t + 3.541612555e-3f) * t + 1.341957570e-1f) * t + 1.0f;
  const float q = (((8.219912854e-7f * t + 3.361419168e-4f) * t + 2.605142128e-2f) * t + 4.675289953e-1f) * t + 1.0f;
  return x != x ? x : bound(c * p / q, -1.0f, 1.0f);
}
#endif

FASTWM_FN double gate_tanh(double x) { return vtanh(x); }

FASTWM_FN float gate_sigmoid(float x) { return 0.5f + 0.5f * gate_tanh(0.5f * x); }
FASTWM_FN double gate_sigmoid(double x) { return vsigmoid(x); }

namespace {

// The activations that a cell uses unless its kernel names others (cuda/fast_math.cuh).
struct GateMath {
  template <typename A>
  FASTWM_FN A sigmoid(A x) {
    return gate_sigmoid(x);
  }
  template <typename A>
  FASTWM_FN A tanh(A x) {
    return gate_tanh(x);
  }
};

}  // namespace

// The gradient of x, from that of y = sigmoid(x).
template <typename A>
FASTWM_FN A sigmoid_backward(A d_y, A y) {
  return d_y * y * (1 - y);
}

// The gradient of x, from that of y = tanh(x).
template <typename A>
FASTWM_FN A tanh_backward(A d_y, A y) {
  return d_y * (1 - y * y);
}

// share * x + (1 - share) * rest, by one multiplication.
template <typename A>
FASTWM_FN A mix(A share, A x, A rest) {
  return rest + share * (x - rest);
}

}  // namespace fastwm
