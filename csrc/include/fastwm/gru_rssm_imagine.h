// Parameters of the dream of PlaNet's, V1's and V2's RSSM: H steps of actor and prior from N states; or of
// the prior alone, with given actions. See gru_rssm.h.
#pragma once

#include "fastwm/gru_rssm.h"
#include "fastwm/policy_head.h"

namespace fastwm {

// A layer's place in the array that holds all of the actor: weight [N, K], bias [N], and scale and shift [N] where it
// has a norm. The first layer reads [stoch, deter]: its part of stoch, [Z, N], opens the array, and its K is D.
struct ActorLayer {
  int64_t K, N;
  bool norm;
  int64_t at;   // offset of its parameters
  int64_t pre;  // offset of its columns among those of all layers

  int64_t bias() const { return at + N * K; }
  int64_t scale() const { return bias() + N; }
  int64_t end() const { return bias() + N * (norm ? 3 : 1); }
};

constexpr int64_t kMaxActorLayers = 16;

struct ActorNet {
  const void* params;        // [size]
  const ActorLayer* layers;  // the hidden ones, then the outputs
  int64_t count;
  const PolicyHead* heads;
  int64_t n_heads;
  int64_t draws, width;       // of all heads: noise, encoded action
  int64_t widest, pre, size;  // the widest layer; columns of all layers; numbers of all parameters
};

struct GruRssmImagine {
  Dtype dtype;
  bool bf16;                      // products in bfloat16, where the CPU has them
  GruRssmSizes n;                 // T: steps H; B: rows N
  GruRssmWeights w;               // its layer is the prior's
  Weight action;                  // [A, U]: the action's part of the input layer
  const void *b_input, *b_layer;  // [U] [U]
  ActorNet actor;
  const void *deter0, *stoch0;       // [N, D] [N, Z]
  const void *noise, *action_noise;  // [H, N, S] [H, N, draws]
  const void* given;                 // [H, N, A]: the actions, without an actor; or null
  void *deter, *stoch, *stats;       // [H, N, D] [H, N, Z] [H, N, O]
  void* actions;                     // [H, N, A], encoded; unused where they are given
  GruRssmSaved saved;
  void* actor_pre;  // [H, N, actor.pre]: its layers before norms, and its outputs; or null
};

struct GruRssmImagineBackward {
  Dtype dtype;
  bool bf16;
  GruRssmSizes n;
  GruRssmWeights w;
  Weight action;
  ActorNet actor;
  const void *deter0, *stoch0, *noise, *action_noise, *deter, *stoch, *stats;
  const void *input, *gates, *layer, *actor_pre;  // what the forward saved
  const void *g_deter, *g_stoch, *g_stats, *g_action;
  void* d_actor;  // [actor.size]
};

}  // namespace fastwm
