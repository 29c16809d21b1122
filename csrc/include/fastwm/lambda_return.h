// The lambda-return's parameters and its maths, shared by C++ and CUDA.
#pragma once

#include "fastwm/dtype.h"

namespace fastwm {

// R_t = reward_t + cont_t * ((1 - lam_t) * next_value_t + lam_t * R_{t+1}),  R_T = next_value_{T-1}
struct LambdaReturn {
  Dtype dtype;
  int64_t steps, columns;                 // T, B: every array is [T, B], contiguous
  const void *reward, *cont, *next_value;
  const void* lam;                        // nullptr: lam_value everywhere
  double lam_value;
  void* ret;
};

struct LambdaReturnBackward {
  Dtype dtype;
  int64_t steps, columns;
  const void *grad, *cont, *next_value, *ret;
  const void* lam;
  double lam_value;
  void *d_reward, *d_cont, *d_next_value;
};

// What cont multiplies: the next value, bootstrapped to depth lam.
template <typename A>
FASTWM_FN A lambda_mix(A lam, A next_value, A next_ret) {
  return (1 - lam) * next_value + lam * next_ret;
}

}  // namespace fastwm
