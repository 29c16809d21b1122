// The GRU of torch, for one element:
//
//   r, z = sigmoid(sums of r, z),  n = tanh(x_n + r h_n),  h' = (1 - z) n + z h.
//
// x_n is what the input adds to the candidate's sum, h_n what the carry adds, each with its bias.
#pragma once

#include "math/gates.h"

namespace fastwm {

template <typename A>
struct GruGates {
  A reset, update, cand;  // r, z, n
};

template <typename Math = GateMath, typename A>
FASTWM_FN GruGates<A> gru_gates(A reset, A update, A x_n, A h_n) {
  const A r = Math::sigmoid(reset);
  return {r, Math::sigmoid(update), Math::tanh(x_n + r * h_n)};
}

// h'
template <typename A>
FASTWM_FN A gru_carry(A update, A cand, A h) {
  return mix(update, h, cand);
}

// The gradients of the sums of r and z, of x_n and h_n, and of h as far as it does not pass through them.
template <typename A>
struct GruGrads {
  A reset, update, x_n, h_n, h;
};

// From the gradient of h'.
template <typename A>
FASTWM_FN GruGrads<A> gru_backward(GruGates<A> gates, A h_n, A h, A d_h) {
  const A d_n = tanh_backward(d_h * (1 - gates.update), gates.cand);
  return {sigmoid_backward(d_n * h_n, gates.reset), sigmoid_backward(d_h * (h - gates.cand), gates.update), d_n,
          d_n * gates.reset, d_h * gates.update};
}

}  // namespace fastwm
