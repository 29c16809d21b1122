// The host side of the dream of PlaNet's, V1's and V2's RSSM.
#pragma once

#include "fastwm/gru_rssm_imagine.h"
#include "ops/gru_rssm_observe.h"

namespace fastwm {

// The actor's parameters, all in one array (see ActorLayer), and what its lists say of its layers and heads.
class ActorArgs {
 public:
  // layers: width and whether it has a norm, for each, the outputs last; heads: distribution, size and classes;
  // scales: min_std and shift of each head. Where all are empty there is no actor: the actions are given.
  ActorArgs(const Tensor& params_, const std::vector<int64_t>& layers, const std::vector<int64_t>& heads,
            const std::vector<double>& scales, const GruRssmSizes& n, const Tensor& like) {
    const int64_t count = layers.size() / 2, n_heads = heads.size() / 3;
    params = dense(params_);
    if (count == 0 && n_heads == 0 && params.numel() == 0) return;
    STD_TORCH_CHECK(count > 0 && count <= kMaxActorLayers && layers.size() % 2 == 0 && n_heads > 0 &&
                        heads.size() % 3 == 0 && scales.size() == 2 * heads.size() / 3,
                    "fastwm: gru_rssm_imagine: expected 1 to ", kMaxActorLayers, " layers, and heads");
    ActorNet& a = net;
    a.count = count, a.n_heads = n_heads;
    const int64_t most = params.numel();  // what each layer's parameters may number, so nothing overflows
    STD_TORCH_CHECK(layers[0] <= most / n.Z(), "fastwm: gru_rssm_imagine: layers that do not fit the actor's parameters");
    int64_t at = n.Z() * layers[0], inputs = n.D;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t width = layers[2 * i];
      STD_TORCH_CHECK(0 < width && width <= most / inputs,
                      "fastwm: gru_rssm_imagine: layers that do not fit the actor's parameters");
      layers_[i] = {inputs, width, layers[2 * i + 1] != 0, at, a.pre};
      inputs = width, at = layers_[i].end(), a.pre += width;
      a.widest = width > a.widest ? width : a.widest;
    }
    int64_t outputs = 0;
    const int64_t last = layers_[count - 1].N;
    for (int64_t i = 0; i < n_heads; ++i) {
      const PolicyHead head{static_cast<PolicyDist>(heads[3 * i]), heads[3 * i + 1], heads[3 * i + 2], scales[2 * i],
                            scales[2 * i + 1]};
      STD_TORCH_CHECK(0 <= heads[3 * i] && heads[3 * i] <= 2 && head.size > 0 &&
                          (head.classes > 0) == (head.dist == PolicyDist::onehot) && head.classes >= 0 &&
                          head.size <= last && head.classes <= last / head.size,
                      "fastwm: gru_rssm_imagine: no such head");
      heads_.push_back(head);
      outputs += head.outputs(), a.draws += head.size, a.width += head.width();
    }
    STD_TORCH_CHECK(outputs == last, "fastwm: gru_rssm_imagine: outputs that do not fit the heads");
    a.size = at;
    a.params = dense_shaped(params, {at}, like, "actor").const_data_ptr();
    a.layers = layers_;
    a.heads = heads_.data();
  }
  ActorArgs(const ActorArgs&) = delete;

  Tensor params;
  ActorNet net{};

 private:
  ActorLayer layers_[kMaxActorLayers];
  std::vector<PolicyHead> heads_;
};

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gru_rssm_imagine(
    const Tensor& deter0, const Tensor& stoch0, const Tensor& noise, const Tensor& action_noise, const Tensor& w_action,
    const Tensor& b_input, const Tensor& b_layer, const Tensor& w_stoch, const std::optional<Tensor>& scale_input,
    const std::optional<Tensor>& shift_input, const Tensor& w_x, const std::optional<Tensor>& b_x, const Tensor& w_h, const std::optional<Tensor>& b_h,
    const std::optional<Tensor>& scale_gates, const std::optional<Tensor>& shift_gates, const Tensor& w_layer,
    const std::optional<Tensor>& scale_layer, const std::optional<Tensor>& shift_layer, const Tensor& w_stats,
    const std::optional<Tensor>& b_stats, const std::optional<Tensor>& given, const Tensor& actor,
    std::vector<int64_t> layers, std::vector<int64_t> heads, std::vector<double> scales, int64_t cell,
    int64_t activation, double unimix, double eps, bool save, bool bf16_products) {
  STD_TORCH_CHECK(deter0.dim() == 2 && noise.dim() == 3 && w_stoch.dim() == 2,
                  "fastwm: gru_rssm_imagine: expected deter [N, D], noise [H, N, S]");
  const GruRssmSizes n = gru_rssm_sizes(deter0, stoch0, noise.size(0), w_stoch.size(0));
  DenseCopies copy(deter0);
  GruRssmWeights w =
      gru_rssm_weights(copy, n, deter0, w_stoch, scale_input, shift_input, w_x, w_h, scale_gates, shift_gates, w_layer,
                       scale_layer, shift_layer, w_stats, cell, activation, unimix, eps);
  w.b_x = copy(b_x, {3 * n.D}, "b_x");
  w.b_h = copy(b_h, {3 * n.D}, "b_h");
  w.b_stats = copy(b_stats, {n.O()}, "b_stats");
  ActorArgs args(actor, layers, heads, scales, n, deter0);
  ActorNet& a = args.net;
  STD_TORCH_CHECK(given.has_value() == (a.count == 0) && (!given || given->dim() == 3),
                  "fastwm: gru_rssm_imagine: expected an actor, or given actions [H, N, A]");
  if (given) a.width = given->size(2);
  Tensor deter = empty_shaped(deter0, {n.T, n.B, n.D});
  Tensor stoch = n.C ? empty_shaped(deter0, {n.T, n.B, n.S, n.C}) : empty_shaped(deter0, {n.T, n.B, n.S});
  Tensor stats = n.C ? empty_shaped(deter0, {n.T, n.B, n.S, n.C}) : empty_shaped(deter0, {n.T, n.B, n.O()});
  Tensor actions = empty_shaped(deter0, {given ? 0 : n.T, n.B, a.width});
  const int64_t kept = save ? n.T : 0;
  Tensor input = empty_shaped(deter0, {kept, n.B, n.U});
  Tensor gates = empty_shaped(deter0, {kept, n.B, w.gates() * n.D});
  Tensor layer = empty_shaped(deter0, {kept, n.B, n.U});
  Tensor actor_pre = empty_shaped(deter0, {kept, n.B, a.pre});
  const auto saved = [save](Tensor& x) { return save ? x.mutable_data_ptr() : nullptr; };
  const GruRssmImagine p{dtype_of(deter0),
                       bf16_products,
                       n,
                       w,
                       weight_of(w_action, {n.U, a.width}, deter0, "w_action"),
                       copy(b_input, {n.U}, "b_input"),
                       copy(b_layer, {n.U}, "b_layer"),
                       a,
                       copy(deter0, {n.B, n.D}, "deter"),
                       n.C ? copy(stoch0, {n.B, n.S, n.C}, "stoch") : copy(stoch0, {n.B, n.S}, "stoch"),
                       copy(noise, {n.T, n.B, n.S}, "noise"),
                       copy(action_noise, {n.T, n.B, a.draws}, "action_noise"),
                       copy(given, {n.T, n.B, a.width}, "action"),
                       deter.mutable_data_ptr(),
                       stoch.mutable_data_ptr(),
                       stats.mutable_data_ptr(),
                       actions.mutable_data_ptr(),
                       {saved(input), saved(gates), saved(layer)},
                       saved(actor_pre)};
  kernel(p, deter0.get_device_index());
  return {deter, stoch, stats, actions, input, gates, layer, actor_pre};
}

template <auto kernel>
Tensor gru_rssm_imagine_backward(
    const Tensor& g_deter, const Tensor& g_stoch, const Tensor& g_stats, const Tensor& g_action, const Tensor& deter0,
    const Tensor& stoch0, const Tensor& noise, const Tensor& action_noise, const Tensor& deter, const Tensor& stoch,
    const Tensor& stats, const Tensor& input, const Tensor& gates, const Tensor& layer, const Tensor& actor_pre,
    const Tensor& w_action, const Tensor& w_stoch, const std::optional<Tensor>& scale_input,
    const std::optional<Tensor>& shift_input, const Tensor& w_x, const Tensor& w_h,
    const std::optional<Tensor>& scale_gates, const std::optional<Tensor>& shift_gates, const Tensor& w_layer,
    const std::optional<Tensor>& scale_layer, const std::optional<Tensor>& shift_layer, const Tensor& w_stats,
    const Tensor& actor, std::vector<int64_t> layers, std::vector<int64_t> heads, std::vector<double> scales,
    int64_t cell, int64_t activation, double unimix, double eps, bool bf16_products) {
  STD_TORCH_CHECK(deter0.dim() == 2 && deter.dim() == 3 && w_stoch.dim() == 2,
                  "fastwm: gru_rssm_imagine: expected deter0 [N, D], deter [H, N, D]");
  const GruRssmSizes n = gru_rssm_sizes(deter0, stoch0, deter.size(0), w_stoch.size(0));
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
  const ActorArgs args(actor, layers, heads, scales, n, deter0);
  const ActorNet& a = args.net;
  Tensor d_actor = empty_shaped(deter0, {a.size});
  const GruRssmImagineBackward p{dtype_of(deter0),
                               bf16_products,
                               n,
                               w,
                               weight_of(w_action, {n.U, a.width}, deter0, "w_action"),
                               a,
                               copy(deter0, {n.B, n.D}, "deter0"),
                               n.C ? copy(stoch0, {n.B, n.S, n.C}, "stoch0") : copy(stoch0, {n.B, n.S}, "stoch0"),
                               copy(noise, {n.T, n.B, n.S}, "noise"),
                               copy(action_noise, {n.T, n.B, a.draws}, "action_noise"),
                               copy(deter, {n.T, n.B, n.D}, "deter"),
                               latents(stoch, "stoch"),
                               statistics(stats, "stats"),
                               copy(input, {n.T, n.B, n.U}, "input"),
                               copy(gates, {n.T, n.B, w.gates() * n.D}, "gates"),
                               copy(layer, {n.T, n.B, n.U}, "layer"),
                               copy(actor_pre, {n.T, n.B, a.pre}, "actor_pre"),
                               copy(g_deter, {n.T, n.B, n.D}, "g_deter"),
                               latents(g_stoch, "g_stoch"),
                               statistics(g_stats, "g_stats"),
                               copy(g_action, {n.T, n.B, a.width}, "g_action"),
                               d_actor.mutable_data_ptr()};
  kernel(p, deter0.get_device_index());
  return d_actor;
}

}  // namespace fastwm
