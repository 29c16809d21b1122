// The actor inside a dream: its weights, and what it does to a row between its products; and the derivatives.
#pragma once

#include "latent_rows.h"
#include "primitives/norms.h"
#include "primitives/pack.h"
#include "primitives/parts.h"
#include "fastwm/gru_rssm_imagine.h"

namespace fastwm::FASTWM_ISA {
namespace {

// The actor's layers (of the first, deter's part) and the action's part of the model's input layer, packed once a call;
// transposed for the backward pass.
template <typename T, typename O>
struct ActorPacked {
  Packings<O> packings;
  Packed<O> layers[kMaxActorLayers], action;

  ActorPacked(const ActorNet& a, const Weight& w_action, int64_t U, bool transposed) {
    const auto add = [&](Packed<O>& packed, const Weight& w, int64_t K, int64_t N) {
      packed.blocks = 1, packed.K = transposed ? N : K, packed.N = transposed ? K : N;
      packings.add(packed, transposed ? w.transposed() : w);
    };
    for (int64_t i = 0; i < a.count; ++i) {
      const ActorLayer& layer = a.layers[i];
      add(layers[i], {ptr<T>(a.params) + layer.at, 0, 1, layer.K}, layer.K, layer.N);
    }
    add(action, w_action, a.width, U);
  }
  ActorPacked(const ActorPacked&) = delete;
};
static_assert(kMaxActorLayers + 1 <= Packings<float>::kMost);

template <typename T>
LayerNorm actor_norm(const ActorNet& a, const ActorLayer& layer) {
  if (!layer.norm) return {nullptr, nullptr};
  const T* scale = ptr<T>(a.params) + layer.scale();
  return {scale, scale + layer.N};
}

// The encoded action from the outputs of all heads and their noise.
template <typename T>
void policy_row(const ActorNet& a, const T* out, const T* noise, T* action) {
  for (int64_t i = 0; i < a.n_heads; ++i) {
    const PolicyHead& head = a.heads[i];
    for (int64_t k = 0; k < head.size; ++k) {
      if (head.dist == PolicyDist::onehot) {
        int64_t index;
        const int64_t at = k * head.classes;
        sample_row(1, head.classes, out + at, T(0), noise + k, action + at, &index);
      } else {
        action[k] = policy_real(head, out[k], out[head.size + k], noise[k]).action;
      }
    }
    out += head.outputs(), noise += head.size, action += head.width();
  }
}

// From the action's gradient to that of the outputs. zeros and probs have room for a head's classes.
template <typename T>
void policy_row_backward(const ActorNet& a, const T* out, const T* noise, const T* d_action, const T* zeros, T* probs,
                         T* d_out) {
  for (int64_t i = 0; i < a.n_heads; ++i) {
    const PolicyHead& head = a.heads[i];
    for (int64_t k = 0; k < head.size; ++k) {
      if (head.dist == PolicyDist::onehot) {
        const int64_t at = k * head.classes;
        sample_row_backward(1, head.classes, out + at, T(0), d_action + at, zeros, probs, d_out + at);
      } else {
        const PolicyReal<T> x = policy_real(head, out[k], out[head.size + k], noise[k]);
        d_out[k] = d_action[k] * x.d_mean;
        d_out[head.size + k] = d_action[k] * x.d_std;
      }
    }
    out += head.outputs(), d_out += head.outputs(), noise += head.size, d_action += head.width();
  }
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
