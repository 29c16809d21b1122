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

}  // namespace fastwm
