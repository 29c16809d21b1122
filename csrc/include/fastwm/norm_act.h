// RMSNorm and LayerNorm, each with an activation: parameters and maths, shared by C++ and CUDA.
#pragma once

#include "fastwm/params/norm_act.h"
#include "fastwm/vecmath.h"

namespace fastwm {

// y = f(xhat * weight + bias), xhat = (x - mean) * inv_std. RMSNorm is the case without mean and bias (null). The
// stats are inv_std and, of LayerNorm, the mean.

// Rows are summed into d_weight by blocks, and blocks in order: the result does not depend on the threads.
constexpr int64_t kMinBlockRows = 32, kMaxBlocks = 128;

FASTWM_FN int64_t norm_act_blocks(int64_t rows) {
  const int64_t blocks = (rows + kMinBlockRows - 1) / kMinBlockRows;
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

template <Activation f, typename A>
FASTWM_FN A activate(A z) {
  if constexpr (f == Activation::silu) return vsilu(z);
  else if constexpr (f == Activation::elu) return velu(z);
  else if constexpr (f == Activation::relu) return z < 0 ? 0 : z;
  else return z;
}

template <Activation f, typename A>
FASTWM_FN A activation_slope(A z) {
  if constexpr (f == Activation::silu) {
    const A s = vsigmoid(z);
    return s + z * s * (1 - s);
  } else if constexpr (f == Activation::elu) {
    return z > 0 ? 1 : vexp(z);
  } else if constexpr (f == Activation::relu) {
    return z <= 0 ? 0 : 1;  // 1 of NaN, as torch has it
  } else {
    return 1;
  }
}

}  // namespace fastwm
