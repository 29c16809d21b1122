// The layers of the actor inside a dream, packed once a call, and where they are in the arrays of a row.
#pragma once

#include "actor_rows.h"
#include "primitives/norms.h"
#include "primitives/pack.h"
#include "primitives/parts.h"
#include "fastwm/params/gru_rssm.h"

namespace fastwm::FASTWM_ISA {
namespace {

// A row holds all layers before their norms, and then the outputs.
inline int64_t actor_columns(const MlpLayers& net) { return (1 + net.L) * net.U + net.O; }
inline int64_t actor_widest(const MlpLayers& net) { return net.U > net.O ? net.U : net.O; }

// Layer i of L + 1, or after them the outputs.
struct ActorLayer {
  int64_t K, N;  // of the first, K is deter's part
  int64_t column;
};

inline ActorLayer actor_layer(const MlpLayers& net, int64_t Z, int64_t i) {
  return {i ? net.U : net.K - Z, i > net.L ? net.O : net.U, i * net.U};
}

template <typename T>
LayerNorm actor_norm(const MlpLayers& net, int64_t i) {
  if (net.k == 0) return {nullptr, nullptr};
  const T* scale = i ? ptr<T>(net.norms) + (i - 1) * 2 * net.U : ptr<T>(net.norm);
  return {scale, scale + net.U};
}

// The layers (of the first, deter's part) and the action's part of the model's input layer; transposed for the backward pass.
template <typename O>
struct ActorPacked {
  Packings<O> packings;
  Packed<O> first, rest, out, action;

  ActorPacked(const MlpLayers& net, int64_t Z, const Weight& w_action, int64_t A, int64_t U, bool transposed) {
    const auto add = [&](Packed<O>& packed, const Weight& w, int64_t blocks, int64_t K, int64_t N) {
      packed.blocks = blocks, packed.K = transposed ? N : K, packed.N = transposed ? K : N;
      packings.add(packed, transposed ? w.transposed() : w);
    };
    add(first, net.w, 1, net.K - Z, net.U);
    add(rest, net.ws, net.L, net.U, net.U);
    add(out, net.w_out, 1, net.U, net.O);
    add(action, w_action, 1, A, U);
  }
  ActorPacked(const ActorPacked&) = delete;
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
