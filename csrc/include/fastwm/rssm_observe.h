// Parameters of the whole observe sequence of DreamerV3's RSSM. T steps, B rows, D deter, U hidden units, S
// categoricals of C classes, G blocks; J = D/G. Every array is contiguous but the weights, which have strides.
#pragma once

#include "fastwm/block_gru_scan.h"

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

struct RssmObserve {
  BlockGruScan gru;  // deter is its carry
  RssmSizes n;
  RssmWeights w;
  const void* post_in;  // [T, B, U]: the tokens' part of the posterior layer, with its bias
  const void* stoch0;   // [B, Z]
  const void* uniform;  // [T, B, S]
  void* stoch;          // [T, B, Z]
  int64_t* index;       // [T, B, S]
  void* logits;         // [T, B, Z]
  void* post;           // [T, B, U], saved: the posterior's layer before its norm; null where no gradient is wanted
  bool compact;         // whether the gates are saved in bfloat16: CUDA's kernels alone
  bool cluster;         // whether a cluster of blocks may walk the sequence, where it fits: likewise
  void* scratch;        // as many bytes as the backend asks for
};

// The gradients, all weights' in one array, in this order and layout: w_deter [U, D], b_deter [U], n_deter [U],
// w_stoch [U, Z], b_stoch, n_stoch [U], w_own [G, J, J], w_embeds [G, 2U, J], n_hidden [D], w_gates [G, J, 3J],
// b_gates [3D], w_post [U, D], n_post [U], w_logits [Z, U], b_logits [Z].
struct RssmObserveBackward {
  BlockGruScanBackward gru;
  RssmSizes n;
  RssmWeights w;
  const void *stoch0, *stoch, *logits, *post;
  const void *g_stoch, *g_logits;  // [T, B, Z] [T, B, Z]
  bool compact;                    // as in RssmObserve
  void* d_post;                    // [T, B, U]: of post_in
  void* d_weights;
  void* scratch;
};

}  // namespace fastwm
