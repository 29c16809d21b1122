// RMSNorm and LayerNorm, each with an activation: parameters and maths, shared by C++ and CUDA.
#pragma once

#include "fastwm/dtype.h"
#include "fastwm/vecmath.h"

namespace fastwm {

enum class Activation : int64_t { none, silu, elu, relu };

// y = f(xhat * weight + bias), xhat = (x - mean) * inv_std. RMSNorm is the case without mean and bias (nullptr).
// Everything but x, y, grad and d_x is in the type computed in.
struct NormAct {
  Dtype dtype;
  Activation activation;
  int64_t rows, width;
  double eps;
  const void* x;               // [rows, width]
  const void *weight, *bias;   // [width]
  void* y;                     // [rows, width]
  void* stats;                 // [2, rows] inv_std and mean; RMSNorm: [1, rows]
};

struct NormActBackward {
  Dtype dtype;
  Activation activation;
  int64_t rows, width;
  const void *grad, *x;        // [rows, width]
  const void *weight, *bias;   // [width]
  const void* stats;           // as above
  void* d_x;                   // [rows, width]
  void* d_affine;              // [2, width] d_weight and d_bias; RMSNorm: [1, width]
  void* scratch;               // [blocks, 3, width]: each block's share of d_affine, and room for one row
  int64_t blocks;
};

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
