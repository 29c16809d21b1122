// Parameters of the RSSM of PlaNet, Dreamer V1 and DreamerV2: a dense layer, a GRU, a dense layer and the latent's
// statistics. T steps, B rows, D deter, U hidden units, S latents of C classes. Weights have strides, all else is
// contiguous.
#pragma once

#include "fastwm/norm_act.h"
#include "fastwm/rssm_observe.h"

namespace fastwm {

struct GruRssmSizes {
  int64_t T, B, D, U, S, C;  // C is 0 for Gaussian latents

  int64_t Z() const { return C ? S * C : S; }      // the flat latent
  int64_t O() const { return C ? S * C : 2 * S; }  // its statistics: logits, or means and raw deviations
};

struct LayerNorm {
  const void *scale, *shift;  // null where there is no norm
};

// Numbers saved for every element's gates: the sums that enter them; gru's h part of `new` is one of its own. They are in
// the order reset, update, new (gru, planet_gru) or reset, cand, update (layernorm_gru).
FASTWM_FN int64_t gates_of(GruCell cell) { return cell == GruCell::gru ? 4 : 3; }

// Offsets of the weights' gradients in one array: w_stoch [Z, U], n_input [2, U] (scale, shift), w_x
// [3D, U], b_x [3D], w_h [3D, D], b_h [3D], n_gates [2, 3D], w_layer [U, D], n_layer [2, U], w_stats [O, U], b_stats [O].
// Parts that a variant lacks have their place all the same, and stay zero.
struct GruRssmGrads {
  int64_t stoch, n_input, x, b_x, h, b_h, n_gates, layer, n_layer, stats, b_stats, size;

  // Always inline: instruction sets would share a function.
  __attribute__((always_inline)) explicit GruRssmGrads(const GruRssmSizes& n)
      : stoch(0), n_input(stoch + n.Z() * n.U), x(n_input + 2 * n.U), b_x(x + 3 * n.D * n.U), h(b_x + 3 * n.D),
        b_h(h + 3 * n.D * n.D), n_gates(b_h + 3 * n.D), layer(n_gates + 6 * n.D), n_layer(layer + n.U * n.D),
        stats(n_layer + 2 * n.U), b_stats(stats + n.O() * n.U), size(b_stats + n.O()) {}
};

}  // namespace fastwm
