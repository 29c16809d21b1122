// DreamerV3's block GRU, for one element. With one block and a LayerNorm before the gates it is DreamerV2's:
//
//   r = sigmoid(sum of r),  c = tanh(r * sum of c),  u = sigmoid(sum of u + update bias),  h' = u c + (1 - u) h.
#pragma once

#include "math/gates.h"

namespace fastwm {

constexpr double kUpdateBias = -1;  // in both papers' code: a cell that has learned nothing keeps most of its carry

template <typename A>
struct BlockGruGates {
  A reset, cand, update;  // r, c, u
};

// `update` has its bias already.
template <typename Math = GateMath, typename A>
FASTWM_FN BlockGruGates<A> block_gru_gates(A reset, A cand, A update) {
  const A r = Math::sigmoid(reset);
  return {r, Math::tanh(r * cand), Math::sigmoid(update)};
}

// h' as the sequences of DreamerV3 round it. Single cells and DreamerV2's GRU round it as mix(update, cand, h). Both stay,
// so that every kernel keeps its results bit for bit.
template <typename A>
FASTWM_FN A block_gru_carry(A update, A cand, A h) {
  return update * cand + (1 - update) * h;
}

// The gradients of the three sums, and of h as far as it does not pass through them.
template <typename A>
struct BlockGruGrads {
  A reset, cand, update, h;
};

// From the gradient of h'; cand_sum is the candidate's sum.
template <typename A>
FASTWM_FN BlockGruGrads<A> block_gru_backward(BlockGruGates<A> gates, A cand_sum, A h, A d_h) {
  const A d_inner = tanh_backward(d_h * gates.update, gates.cand);
  return {sigmoid_backward(d_inner * cand_sum, gates.reset), d_inner * gates.reset,
          sigmoid_backward(d_h * (gates.cand - h), gates.update), d_h * (1 - gates.update)};
}

// A gate of the LayerNorm GRU before the sigmoid or tanh, from its sum x.
template <typename A>
struct NormedGate {
  A normal, value;  // (x - mean) / deviation; normal * scale + shift
};

template <typename A>
FASTWM_FN NormedGate<A> norm_gate(A x, A mean, A inverse_deviation, A scale, A shift) {
  const A normal = (x - mean) * inverse_deviation;
  return {normal, normal * scale + shift};
}

}  // namespace fastwm
