// Parameters of an MLP over many rows: Linear -> norm -> activation layers of U units, then a linear layer.
#pragma once

#include "fastwm/norm_act.h"
#include "fastwm/weight.h"

namespace fastwm {

// Linear -> RMSNorm -> SiLU, `count` layers of equal shape, one after the other in memory.
struct DenseLayers {
  Weight w;                 // [count, K, N]
  const void *bias, *norm;  // [count, N]
  int64_t count, K, N;
};

struct MlpLayers {
  DenseLayers first;  // [D + Z, U]
  DenseLayers rest;   // [count, U, U]
  Weight out;         // [U, O]
  const void* b_out;
  int64_t D, Z, O;
  int64_t norms;          // vectors [U] of a layer's norm: none, RMSNorm's scale, or LayerNorm's scale and shift
  Activation activation;  // SiLU after an RMSNorm
  double eps;

  int64_t U() const { return first.N; }
  int64_t count() const { return 1 + rest.count; }
  int64_t weights() const {  // elements, as MlpBackward has them
    return U() * (D + Z) + rest.count * U() * U() + (1 + norms) * count() * U() + O * (U() + 1);
  }
};

struct Mlp {
  Dtype dtype;
  bool bf16;  // products in bfloat16, where the CPU has them
  MlpLayers n;
  int64_t rows;
  const void *x, *z;  // [rows, D] [rows, Z]: the input, of which z is mostly zeros
  void* y;            // [rows, O]
  void* pre;          // [count, rows, U]: the layers before their norms, or null where no gradient is wanted
};

// The gradients of all weights are one array: of the first layer's two parts [U, D] [U, Z], of the others
// [count - 1, U, U], of the last [O, U], then of the biases [count, U] [O] and the norms [count, norms, U].
struct MlpBackward {
  Dtype dtype;
  bool bf16;
  MlpLayers n;
  int64_t rows;
  const void *x, *z, *pre;
  const void* grad;  // [rows, O]
  void *d_x, *d_z;   // [rows, D] [rows, Z], or null
  void* d_weights;   // or null
};

}  // namespace fastwm
