// Parameters of DreamerV3's imagined rollout: H steps of the prior from N states, with the actor inside or with given
// actions, where the actor's layers are empty. See rssm_observe.h.
#pragma once

#include "fastwm/rssm_observe.h"

namespace fastwm {

// Linear -> RMSNorm -> SiLU, `count` layers of equal shape behind each other in memory.
struct DenseLayers {
  Weight w;                  // [count, K, N]
  const void *bias, *norm;   // [count, N]
  int64_t count, K, N;
};

// A part of the action: `count` categoricals of `classes` classes, or `count` reals where classes is 0.
struct ActionHead {
  int64_t count, classes;

  int64_t width() const { return count * (classes > 0 ? classes : 1); }    // of the encoded action
  int64_t outputs() const { return count * (classes > 0 ? classes : 2); }  // logits; or means, then deviations
};

struct RssmImagine {
  Dtype dtype;
  bool bf16;  // products in bfloat16, where the CPU has them
  RssmSizes n;  // T: steps H; B: rows N
  DenseLayers deter, stoch, action;  // embeddings [D, U] [Z, U] [A, U]
  Weight own, embeds;                // hidden layer [G, J, J] [G, 3U, J]
  const void *b_hidden, *n_hidden;
  Weight gates;                      // [G, J, 3J]
  const void* b_gates;
  DenseLayers prior, prior_rest;     // [D, U], [count, U, U]
  Weight logits;                     // [U, Z]
  const void* b_logits;
  DenseLayers actor, actor_rest;     // [D + Z, V], [count, V, V]
  Weight out;                        // [V, O]: the outputs of all heads
  const void* b_out;
  const int64_t* heads;              // [n_heads, 2]: count, classes
  int64_t n_heads;
  double unimix, policy_unimix, eps;
  const void *deter0, *stoch0;       // [N, D] [N, Z]
  const void* uniform;               // [H, N, S]
  const void* noise;                 // [H + 1, N, sum of counts]: uniform for categoricals, normal for reals
  void *deters, *stochs;             // [H + 1, N, D] [H + 1, N, Z]: the start states and what follows
  void* all_logits;                  // [H, N, Z]
  void* actions;                     // [H + 1, N, A], encoded; null where they are given
  const void* given;                 // [H, N, A]

  int64_t A() const { return action.K; }
  ActionHead head(int64_t i) const { return {heads[2 * i], heads[2 * i + 1]}; }
};

}  // namespace fastwm
