// Parameters of the whole observe sequence of DreamerV3's RSSM. T steps, B rows, D deter, U hidden units, S
// categoricals of C classes, G blocks; J = D/G. Every array is contiguous but the weights, which have strides.
#pragma once

#include "fastwm/params/block_gru_scan.h"

namespace fastwm {

struct RssmSizes {
  int64_t T, B, D, U, S, C, G;

  FASTWM_HD int64_t J() const { return D / G; }  // a block's share of deter
  FASTWM_HD int64_t Z() const { return S * C; }
  FASTWM_HD BlockGruSizes gru() const { return {T, B, D, U, 2, G}; }
  FASTWM_HD int64_t weights() const { return 4 * U * D + 2 * U * Z() + 4 * D * J() + 5 * U + 4 * D + Z(); }  // elements
};

// What stands around the recurrent core.
struct RssmWeights {
  Weight stoch;                    // [Z, U]: the sample's embedding, the core's second
  Weight post;                     // [D, U]
  Weight logits;                   // [U, Z]
  const void *b_stoch, *b_logits;  // [U] [Z]
  const void *n_stoch, *n_post;    // scales of the norms [U] [U]
  double unimix;
};

}  // namespace fastwm
