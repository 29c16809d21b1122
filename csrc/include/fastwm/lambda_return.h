// The lambda-return's parameters and its maths, shared by C++ and CUDA.
#pragma once

#include "fastwm/params/lambda_return.h"

namespace fastwm {

// R_t = reward_t + cont_t * ((1 - lam_t) * next_value_t + lam_t * R_{t+1}),  R_T = next_value_{T-1}

// The factor of cont: the next value, bootstrapped to depth lam.
template <typename A>
FASTWM_FN A lambda_mix(A lam, A next_value, A next_ret) {
  return (1 - lam) * next_value + lam * next_ret;
}

}  // namespace fastwm
