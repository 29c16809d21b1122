// The host side of the observe sequence of PlaNet, V1 and V2: checks, outputs, and the weights as the kernels read them.
#pragma once

#include <list>

#include "fastwm/gru_rssm.h"
#include "ops/rssm_observe.h"

namespace fastwm {

// Contiguous copies that live as long as a call.
class DenseCopies {
 public:
  explicit DenseCopies(const Tensor& like) : like_(like) {}

  const void* operator()(const Tensor& x, std::initializer_list<int64_t> shape, const char* name) {
    return kept_.emplace_back(dense_shaped(x, shape, like_, name)).const_data_ptr();
  }
  const void* operator()(const std::optional<Tensor>& x, std::initializer_list<int64_t> shape, const char* name) {
    if (!x) return nullptr;
    return data_or_null(kept_.emplace_back(dense_shaped(*x, shape, like_, name)));
  }
  LayerNorm norm(const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, int64_t width) {
    STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "fastwm: a LayerNorm has both scale and shift, or is none");
    return {(*this)(scale, {width}, "scale"), (*this)(shift, {width}, "shift")};
  }
  const bool* flags(const Tensor& x, int64_t T, int64_t B) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Bool && x.dim() == 2 && x.size(0) == T && x.size(1) == B &&
                        x.device() == like_.device(),
                    "fastwm: gru_rssm_observe: is_first must be bool [T, B]");
    return static_cast<const bool*>(kept_.emplace_back(dense(x)).const_data_ptr());
  }

 private:
  const Tensor& like_;
  std::list<Tensor> kept_;
};

inline GruRssmSizes gru_rssm_sizes(const Tensor& deter, const Tensor& stoch, int64_t T, int64_t U) {
  STD_TORCH_CHECK(deter.dim() >= 2 && (stoch.dim() == deter.dim() || stoch.dim() == deter.dim() + 1) && T > 0 &&
                      dtype_of(deter) != Dtype::bf16,
                  "fastwm: gru_rssm_observe: expected T >= 1, float32 or float64, deter [B, D], stoch [B, S, C] or [B, S]");
  check_sizes(deter.sizes());
  check_sizes(stoch.sizes());
  const int64_t d = deter.dim() - 1;
  const bool onehot = stoch.dim() > d + 1;
  const GruRssmSizes n{T, deter.size(d - 1), deter.size(d), U, stoch.size(d), onehot ? stoch.size(d + 1) : 0};
  STD_TORCH_CHECK(n.D > 0 && n.U > 0 && n.S > 0 && (n.C > 0 || !onehot),
                  "fastwm: gru_rssm_observe: a deter, layer or latent of width 0");
  check_sizes(std::initializer_list<int64_t>{n.U, n.D});
  check_sizes(std::initializer_list<int64_t>{n.U, n.O()});
  return n;
}

inline GruRssmWeights gru_rssm_weights(DenseCopies& copy, const GruRssmSizes& n, const Tensor& like,
                                       const Tensor& w_stoch, const std::optional<Tensor>& scale_input,
                                       const std::optional<Tensor>& shift_input, const Tensor& w_x, const Tensor& w_h,
                                       const std::optional<Tensor>& scale_gates,
                                       const std::optional<Tensor>& shift_gates, const Tensor& w_layer,
                                       const std::optional<Tensor>& scale_layer,
                                       const std::optional<Tensor>& shift_layer, const Tensor& w_stats, int64_t cell,
                                       int64_t activation, double unimix, double eps) {
  STD_TORCH_CHECK(0 <= cell && cell <= static_cast<int64_t>(GruCell::layernorm_gru) && 0 <= activation &&
                      activation <= static_cast<int64_t>(Activation::relu) &&
                      scale_gates.has_value() == (cell == static_cast<int64_t>(GruCell::layernorm_gru)),
                  "fastwm: gru_rssm_observe: no such cell or activation");
  return {static_cast<GruCell>(cell),
          static_cast<Activation>(activation),
          unimix,
          eps,
          weight_of(w_stoch, {n.U, n.Z()}, like, "w_stoch"),
          copy.norm(scale_input, shift_input, n.U),
          weight_of(w_x, {3 * n.D, n.U}, like, "w_x"),
          weight_of(w_h, {3 * n.D, n.D}, like, "w_h"),
          nullptr,
          nullptr,
          copy.norm(scale_gates, shift_gates, 3 * n.D),
          weight_of(w_layer, {n.U, n.D}, like, "w_layer"),
          copy.norm(scale_layer, shift_layer, n.U),
          weight_of(w_stats, {n.O(), n.U}, like, "w_stats"),
          nullptr};
}

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gru_rssm_observe(
    const Tensor& input_in, const Tensor& layer_in, const Tensor& is_first, const Tensor& deter0, const Tensor& stoch0,
    const Tensor& noise, const Tensor& w_stoch, const std::optional<Tensor>& scale_input,
    const std::optional<Tensor>& shift_input, const Tensor& w_x, const std::optional<Tensor>& b_x, const Tensor& w_h,
    const std::optional<Tensor>& b_h, const std::optional<Tensor>& scale_gates,
    const std::optional<Tensor>& shift_gates, const Tensor& w_layer, const std::optional<Tensor>& scale_layer,
    const std::optional<Tensor>& shift_layer, const Tensor& w_stats, const std::optional<Tensor>& b_stats,
    int64_t cell, int64_t activation, double unimix, double eps, bool save, bool bf16_products) {
  STD_TORCH_CHECK(input_in.dim() == 3 && deter0.dim() == 2, "fastwm: gru_rssm_observe: expected input_in [T, B, U]");
  const GruRssmSizes n = gru_rssm_sizes(deter0, stoch0, input_in.size(0), input_in.size(2));
  DenseCopies copy(deter0);
  GruRssmWeights w =
      gru_rssm_weights(copy, n, deter0, w_stoch, scale_input, shift_input, w_x, w_h, scale_gates, shift_gates, w_layer,
                       scale_layer, shift_layer, w_stats, cell, activation, unimix, eps);
  w.b_x = copy(b_x, {3 * n.D}, "b_x");
  w.b_h = copy(b_h, {3 * n.D}, "b_h");
  w.b_stats = copy(b_stats, {n.O()}, "b_stats");
  const int64_t kept = save ? n.T : 0;
  Tensor deter = empty_shaped(deter0, {n.T, n.B, n.D});
  Tensor stoch = n.C ? empty_shaped(deter0, {n.T, n.B, n.S, n.C}) : empty_shaped(deter0, {n.T, n.B, n.S});
  Tensor stats = n.C ? empty_shaped(deter0, {n.T, n.B, n.S, n.C}) : empty_shaped(deter0, {n.T, n.B, n.O()});
  Tensor input = empty_shaped(deter0, {kept, n.B, n.U});
  Tensor gates = empty_shaped(deter0, {kept, n.B, w.gates() * n.D});
  Tensor layer = empty_shaped(deter0, {kept, n.B, n.U});
  const auto saved = [save](Tensor& x) { return save ? x.mutable_data_ptr() : nullptr; };
  const GruRssmObserve p{dtype_of(deter0),
                         bf16_products,
                         n,
                         w,
                         copy(input_in, {n.T, n.B, n.U}, "input_in"),
                         copy(layer_in, {n.T, n.B, n.U}, "layer_in"),
                         copy.flags(is_first, n.T, n.B),
                         copy(deter0, {n.B, n.D}, "deter"),
                         n.C ? copy(stoch0, {n.B, n.S, n.C}, "stoch") : copy(stoch0, {n.B, n.S}, "stoch"),
                         copy(noise, {n.T, n.B, n.S}, "noise"),
                         deter.mutable_data_ptr(),
                         stoch.mutable_data_ptr(),
                         stats.mutable_data_ptr(),
                         {saved(input), saved(gates), saved(layer)}};
  kernel(p, deter0.get_device_index());
  return {deter, stoch, stats, input, gates, layer};
}

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gru_rssm_observe_backward(
    const Tensor& g_deter, const Tensor& g_stoch, const Tensor& g_stats, const Tensor& is_first, const Tensor& deter0,
    const Tensor& stoch0, const Tensor& noise, const Tensor& deter, const Tensor& stoch, const Tensor& stats,
    const Tensor& input, const Tensor& gates, const Tensor& layer, const Tensor& w_stoch,
    const std::optional<Tensor>& scale_input, const std::optional<Tensor>& shift_input, const Tensor& w_x,
    const Tensor& w_h, const std::optional<Tensor>& scale_gates, const std::optional<Tensor>& shift_gates,
    const Tensor& w_layer, const std::optional<Tensor>& scale_layer, const std::optional<Tensor>& shift_layer,
    const Tensor& w_stats, int64_t cell, int64_t activation, double unimix, double eps, bool bf16_products) {
  STD_TORCH_CHECK(deter.dim() == 3 && deter0.dim() == 2 && input.dim() == 3,
                  "fastwm: gru_rssm_observe: expected deter [T, B, D], input [T, B, U]");
  const GruRssmSizes n = gru_rssm_sizes(deter0, stoch0, deter.size(0), input.size(2));
  DenseCopies copy(deter0);
  const GruRssmWeights w =
      gru_rssm_weights(copy, n, deter0, w_stoch, scale_input, shift_input, w_x, w_h, scale_gates, shift_gates, w_layer,
                       scale_layer, shift_layer, w_stats, cell, activation, unimix, eps);
  const auto latents = [&](const Tensor& x, const char* name) {
    return n.C ? copy(x, {n.T, n.B, n.S, n.C}, name) : copy(x, {n.T, n.B, n.S}, name);
  };
  const auto statistics = [&](const Tensor& x, const char* name) {
    return n.C ? copy(x, {n.T, n.B, n.S, n.C}, name) : copy(x, {n.T, n.B, n.O()}, name);
  };
  Tensor d_input = empty_dense(input), d_layer = empty_dense(layer);
  Tensor d_deter0 = empty_dense(deter0), d_stoch0 = empty_dense(stoch0);
  Tensor d_weights = empty_shaped(deter0, {GruRssmGrads(n).size});
  const GruRssmObserveBackward p{dtype_of(deter0),
                                 bf16_products,
                                 n,
                                 w,
                                 copy.flags(is_first, n.T, n.B),
                                 copy(deter0, {n.B, n.D}, "deter0"),
                                 n.C ? copy(stoch0, {n.B, n.S, n.C}, "stoch0") : copy(stoch0, {n.B, n.S}, "stoch0"),
                                 copy(noise, {n.T, n.B, n.S}, "noise"),
                                 copy(deter, {n.T, n.B, n.D}, "deter"),
                                 latents(stoch, "stoch"),
                                 statistics(stats, "stats"),
                                 copy(input, {n.T, n.B, n.U}, "input"),
                                 copy(gates, {n.T, n.B, w.gates() * n.D}, "gates"),
                                 copy(layer, {n.T, n.B, n.U}, "layer"),
                                 copy(g_deter, {n.T, n.B, n.D}, "g_deter"),
                                 latents(g_stoch, "g_stoch"),
                                 statistics(g_stats, "g_stats"),
                                 d_input.mutable_data_ptr(),
                                 d_layer.mutable_data_ptr(),
                                 d_deter0.mutable_data_ptr(),
                                 d_stoch0.mutable_data_ptr(),
                                 d_weights.mutable_data_ptr()};
  kernel(p, deter0.get_device_index());
  return {d_input, d_layer, d_deter0, d_stoch0, d_weights};
}

}  // namespace fastwm
