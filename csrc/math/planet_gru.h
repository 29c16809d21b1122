// PlaNet's GRU, which is Keras' with reset_after=False, for one element:
//
//   r, u = sigmoid(sums of r, u),  c = tanh(sum of c),  h' = u h + (1 - u) c.
//
// The reset gate acts before the product: the candidate's sum has (r h) W in it. So the cell has two stages, one on
// each side of that product.
#pragma once

#include "math/gates.h"

namespace fastwm {

// h', from the gates u and c.
template <typename A>
FASTWM_FN A planet_carry(A update, A cand, A h) {
  return mix(update, h, cand);
}

// The gradients of the gate u, of the candidate's sum, and of h as far as it does not pass through them.
template <typename A>
struct PlanetUpdateGrads {
  A update, cand, h;
};

// From the gradient of h'.
template <typename A>
FASTWM_FN PlanetUpdateGrads<A> planet_update_backward(A update, A cand, A h, A d_h) {
  return {d_h * (h - cand), tanh_backward(d_h * (1 - update), cand), d_h * update};
}

// The gradients of the reset gate's sum, and of h by way of r h.
template <typename A>
struct PlanetResetGrads {
  A reset, h;
};

// From the gradient of r h.
template <typename A>
FASTWM_FN PlanetResetGrads<A> planet_reset_backward(A reset, A h, A d_reset_h) {
  return {sigmoid_backward(d_reset_h * h, reset), d_reset_h * reset};
}

}  // namespace fastwm
