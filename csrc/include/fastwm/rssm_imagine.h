// Parameters of DreamerV3's imagined rollout: H steps of the prior from N states, with the actor and other heads inside,
// or with given actions. See rssm_observe.h.
#pragma once

#include "fastwm/mlp.h"
#include "fastwm/rssm_observe.h"

namespace fastwm {

// A part of the action: `count` categoricals of `classes` classes, or `count` reals where classes is 0.
struct ActionHead {
  int64_t count, classes;

  int64_t width() const { return count * (classes > 0 ? classes : 1); }    // of the encoded action
  int64_t outputs() const { return count * (classes > 0 ? classes : 2); }  // logits; or means, then deviations
};

constexpr int64_t kMaxReadouts = 8;

// A head over the state, and what it makes of every one.
struct Readout {
  MlpLayers n;
  void* y;    // [H + 1, N, O]
  void* pre;  // [count, H + 1, N, U]: the layers before their norms, or null where no gradient is wanted
};

struct RssmImagine {
  Dtype dtype;
  bool bf16;                         // products in bfloat16, where the CPU has them
  RssmSizes n;                       // T: steps H; B: rows N
  DenseLayers deter, stoch, action;  // embeddings [D, U] [Z, U] [A, U]
  Weight own, embeds;                // hidden layer [G, J, J] [G, 3U, J]
  const void *b_hidden, *n_hidden;
  Weight gates;  // [G, J, 3J]
  const void* b_gates;
  MlpLayers prior;          // [D] -> [Z]
  const Readout* readouts;  // [D + Z] -> [O], the actor first
  int64_t n_readouts;
  const int64_t* heads;  // [n_heads, 2]: count, classes of the actor's outputs
  int64_t n_heads;
  double unimix, policy_unimix, eps;
  const void *deter0, *stoch0;  // [N, D] [N, Z]
  const void* uniform;          // [H, N, S]
  const void* noise;            // [H + 1, N, sum of counts]: uniform for categoricals, normal for reals
  void *deters, *stochs;        // [H + 1, N, D] [H + 1, N, Z]: the start states and what follows
  void* all_logits;             // [H, N, Z]
  void* actions;                // [H + 1, N, A], encoded
  const void* given;            // [H, N, A], or null where the actor chooses
  double update_bias = kUpdateBias;

  int64_t A() const { return action.K; }
  ActionHead head(int64_t i) const { return {heads[2 * i], heads[2 * i + 1]}; }
};

}  // namespace fastwm
