// The LSTM, for one element:
//
//   i, f, o = sigmoid(sums of i, f, o),  g = tanh(sum of g),  c' = f c + i g,  h' = o tanh(c').
//
// A sum is all that enters a gate: input, carry, bias, and for the forget gate the constant that some papers add.
#pragma once

#include "math/gates.h"

namespace fastwm {

// One number of each gate: its sum, the gate, or the gradient of its sum.
template <typename A>
struct LstmGates {
  A in, forget, cand, out;
};

// Four numbers in the order that the weights have, as gates, and four gates in that order: torch has i, f, g, o,
// TensorFlow i, g, f, o (`ijfo`).
template <typename A>
FASTWM_FN LstmGates<A> lstm_order(A first, A second, A third, A fourth, bool ijfo) {
  return {first, ijfo ? third : second, ijfo ? second : third, fourth};
}

template <typename Math = GateMath, typename A>
FASTWM_FN LstmGates<A> lstm_gates(LstmGates<A> sums) {
  return {Math::sigmoid(sums.in), Math::sigmoid(sums.forget), Math::tanh(sums.cand), Math::sigmoid(sums.out)};
}

// c'
template <typename A>
FASTWM_FN A lstm_cell(A in, A forget, A cand, A c) {
  return forget * c + in * cand;
}

// The gradients of the sums, and of c as far as it does not pass through them.
template <typename A>
struct LstmGrads {
  LstmGates<A> sums;
  A c;
};

// From the gradients of h' and c'; tanh_c is tanh(c').
template <typename A>
FASTWM_FN LstmGrads<A> lstm_backward(LstmGates<A> gates, A c, A tanh_c, A d_h, A d_c) {
  const A d_cell = d_c + tanh_backward(d_h * gates.out, tanh_c);
  return {{sigmoid_backward(d_cell * gates.cand, gates.in), sigmoid_backward(d_cell * c, gates.forget),
           tanh_backward(d_cell * gates.in, gates.cand), sigmoid_backward(d_h * tanh_c, gates.out)},
          d_cell * gates.forget};
}

}  // namespace fastwm
