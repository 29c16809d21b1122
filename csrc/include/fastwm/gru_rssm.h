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

// The gates are in the order reset, update, new (gru, planet_gru) or reset, cand, update (layernorm_gru).
struct GruRssmWeights {
  GruCell cell;
  Activation activation;
  double unimix, eps;
  Weight stoch;                      // [Z, U]: the latent's part of the input layer
  LayerNorm n_input;                 // [U]
  Weight x;                          // [U, 3D]
  Weight h;                          // [D, 3D]; planet_gru's new gate reads reset * h
  const void* b_x;                   // [3D] or null
  const void* b_h;                   // [3D], of gru alone, or null
  LayerNorm n_gates;                 // [3D], of layernorm_gru alone
  Weight layer;                      // [D, U]: deter's part of the posterior's (or prior's) layer
  LayerNorm n_layer;                 // [U]
  Weight stats;                      // [U, O]
  const void* b_stats;               // [O] or null
  double update_bias = kUpdateBias;  // of layernorm_gru

  // Numbers saved for every element's gates: the sums that enter them; gru's h part of `new` is one of its own.
  int64_t gates() const { return cell == GruCell::gru ? 4 : 3; }
};

// The arrays that the forward saves, all before norm and activation; null where no gradient is wanted.
struct GruRssmSaved {
  void* input;  // [T, B, U]
  void* gates;  // [T, B, gates() D]
  void* layer;  // [T, B, U]
};

struct GruRssmObserve {
  Dtype dtype;
  bool bf16;  // products in bfloat16, where the CPU has them
  GruRssmSizes n;
  GruRssmWeights w;
  const void* input_in;  // [T, B, U]: the action's part of the input layer, with its bias
  const void* layer_in;  // [T, B, U]: the tokens' part of the posterior's layer, with its bias
  const bool* is_first;  // [T, B]
  const void* deter0;    // [B, D]
  const void* stoch0;    // [B, Z]
  const void* noise;     // [T, B, S]
  void* deter;           // [T, B, D]
  void* stoch;           // [T, B, Z]
  void* stats;           // [T, B, O]
  GruRssmSaved saved;
};

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

struct GruRssmObserveBackward {
  Dtype dtype;
  bool bf16;
  GruRssmSizes n;
  GruRssmWeights w;
  const bool* is_first;
  const void *deter0, *stoch0, *noise, *deter, *stoch, *stats;
  const void *input, *gates, *layer;        // what the forward saved
  const void *g_deter, *g_stoch, *g_stats;  // [T, B, D] [T, B, Z] [T, B, O]
  void *d_input, *d_layer;                  // [T, B, U]: of input_in and layer_in
  void *d_deter0, *d_stoch0;                // [B, D] [B, Z]
  void* d_weights;                          // see GruRssmGrads
};

}  // namespace fastwm
