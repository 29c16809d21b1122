// Parameters of DreamerV3's recurrent core over a sequence. T steps, B rows, D carry, U units of an embedding,
// G blocks; J = D/G. Every array is contiguous but the weights, which have strides.
#pragma once

#include "fastwm/dtype.h"
#include "fastwm/weight.h"
#include "math/block_gru.h"

namespace fastwm {

struct BlockGruSizes {
  int64_t T, B, D, U;
  int64_t E;  // embeddings that a step computes: the carry's comes first
  int64_t G;

  FASTWM_HD int64_t J() const { return D / G; }
  FASTWM_HD int64_t X() const { return E * U; }
  FASTWM_HD int64_t weights() const {
    return D * U + D * J() + D * X() + 3 * D * J() + 2 * U + 4 * D;
  }  // elements, of E = 1
};

struct BlockGruWeights {
  Weight carry;                    // [D, U]
  Weight own;                      // [G, J, J]
  Weight embeds;                   // [G, E U, J]
  Weight gates;                    // [G, J, 3J]
  const void *b_carry, *b_gates;   // [U] [3D]
  const void *n_carry, *n_hidden;  // scales of the norms [U] [D]
};

// The arrays that the forward saves: the layers before their norms, and the gates as r, cand before its tanh, u; null where no
// gradient is wanted.
struct BlockGruSaved {
  void* embeds;  // [T, B, E U]
  void* hidden;  // [T, B, D]
  void* gates;   // [T, B, G, 3, J]
};

struct BlockGruScan {
  Dtype dtype;
  bool bf16;  // products in bfloat16, where the hardware has them
  BlockGruSizes n;
  BlockGruWeights w;
  double update_bias, eps;
  const void* hidden_in;  // [T, B, D]: what the inputs add to the hidden layer, with its bias
  const bool* is_first;   // [T, B]
  const void* h0;         // [B, D]
  void* h;                // [T, B, D]
  BlockGruSaved saved;
};

// The gradients of block_gru_scan's weights, in one array, in this order and layout: w_carry [U, D], b_carry [U],
// n_carry [U], w_own [G, J, J], w_embeds [G, U, J], n_hidden [D], w_gates [G, J, 3J], b_gates [3D].
struct BlockGruScanBackward {
  Dtype dtype;
  bool bf16;
  BlockGruSizes n;
  BlockGruWeights w;
  double eps;
  const bool* is_first;
  const void *h0, *h;
  const void *embeds, *hidden, *gates;  // what the forward saved
  const void* g_h;                      // [T, B, D]
  void *d_hidden, *d_h0;                // [T, B, D] of hidden_in, [B, D]; d_h0 is null where it is not wanted
  void* d_weights;                      // null where a caller lays them out
};

}  // namespace fastwm
