// Parameters of the whole observe sequence of DreamerV3's RSSM. T steps, B rows, D deter, U hidden units, S
// categoricals of C classes, G blocks; J = D/G. Every array is contiguous but the weights, which have strides.
#pragma once

#include "fastwm/dtype.h"

namespace fastwm {

// A weight [G, K, N] as a product reads it, y_g = x_g W_g: element (g, k, n) lies at g*sg + k*sk + n*sn.
struct Weight {
  const void* data;
  int64_t sg, sk, sn;

  Weight transposed() const { return {data, sg, sn, sk}; }
};

struct RssmSizes {
  int64_t T, B, D, U, S, C, G;

  FASTWM_HD int64_t J() const { return D / G; }  // a block's share of deter
  FASTWM_HD int64_t Z() const { return S * C; }
  FASTWM_HD int64_t weights() const { return 4 * U * D + 2 * U * Z() + 4 * D * J() + 5 * U + 4 * D + Z(); }  // elements
};

struct RssmWeights {
  Weight deter;               // [D, U]
  Weight stoch;               // [Z, U]
  Weight own;                 // [G, J, J]
  Weight embeds;              // [G, 2U, J]
  Weight gates;               // [G, J, 3J]
  Weight post;                // [D, U]
  Weight logits;              // [U, Z]
  const void *b_deter, *b_stoch, *b_gates, *b_logits;          // [U] [U] [3D] [Z]
  const void *n_deter, *n_stoch, *n_hidden, *n_post;           // scales of the norms [U] [U] [D] [U]
  double unimix, eps;
};

// What the forward saves: the layers before their norms, and the gates as r, cand before its tanh, u; null where no
// gradient is wanted.
struct RssmSaved {
  void* embeds;  // [T, B, 2U]: of deter, of stoch
  void* hidden;  // [T, B, D]
  void* gates;   // [T, B, G, 3, J]
  void* post;    // [T, B, U]
};

struct RssmObserve {
  Dtype dtype;
  bool bf16;  // products in bfloat16, where the hardware has them
  RssmSizes n;
  RssmWeights w;
  const void* hidden_in;    // [T, B, D]: the action's part of the hidden layer, with its bias
  const void* post_in;      // [T, B, U]: the tokens' part of the posterior layer, with its bias
  const bool* is_first;     // [T, B]
  const void* deter0;       // [B, D]
  const void* stoch0;       // [B, Z]
  const void* uniform;      // [T, B, S]
  void* deter;              // [T, B, D]
  void* stoch;              // [T, B, Z]
  int64_t* index;           // [T, B, S]
  void* logits;             // [T, B, Z]
  RssmSaved saved;
  void* scratch;            // as many bytes as the backend asks for
};

// The gradients, all weights' in one array, in this order and layout: w_deter [U, D], b_deter [U], n_deter [U],
// w_stoch [U, Z], b_stoch, n_stoch [U], w_own [G, J, J], w_embeds [G, 2U, J], n_hidden [D], w_gates [G, J, 3J],
// b_gates [3D], w_post [U, D], n_post [U], w_logits [Z, U], b_logits [Z].
struct RssmObserveBackward {
  Dtype dtype;
  bool bf16;
  RssmSizes n;
  RssmWeights w;
  const bool* is_first;
  const void *deter0, *stoch0, *deter, *stoch, *logits;
  const void *embeds, *hidden, *gates, *post;  // what the forward saved
  const void *g_deter, *g_stoch, *g_logits;    // [T, B, D] [T, B, Z] [T, B, Z]
  void *d_hidden, *d_post;                     // [T, B, D] [T, B, U]: of hidden_in and post_in
  void* d_weights;
  void* scratch;
};

}  // namespace fastwm
