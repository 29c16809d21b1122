// DreamerV3's imagined rollout: H steps of the prior from N states, with the actor and other heads inside, or with given
// actions. See rssm_observe.h.
#pragma once

#include "fastwm/policy_head.h"
#include "fastwm/rssm_observe.h"

namespace fastwm {

constexpr int64_t kMaxReadouts = 8;

// An MLP over the state, and what it makes of every one. The first is the actor.
struct Readout {
  MlpLayers net;
  void* y;    // [H + 1, N, O]
  void* pre;  // [count, H + 1, N, U]: the layers before their norms, or null where no gradient is wanted
};

}  // namespace fastwm
