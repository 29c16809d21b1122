// The host side of the imagined rollout.
#pragma once

#include "fastwm/rssm_imagine.h"
#include "ops/rssm_observe.h"

namespace fastwm {

// Layers [count, N, K] (or one, [N, K]) with their biases [count, N] and norms [count, N], or [count, norms, N] where
// `norms` is told; keeps what it had to make contiguous alive.
struct DenseArgs {
  Tensor bias, norm;
  DenseLayers layers;

  DenseArgs(const Tensor& w, const Tensor& b, const Tensor& n, int64_t K, const Tensor& like, const char* name,
            std::optional<int64_t> norms = std::nullopt)
      : bias(dense(b)), norm(dense(n)) {
    const bool one = w.dim() == 2;
    STD_TORCH_CHECK(w.dim() >= 2 && w.dim() <= 3 && w.size(w.dim() - 1) == K && w.device() == like.device() &&
                        w.scalar_type() == like.scalar_type() && b.scalar_type() == like.scalar_type() &&
                        n.scalar_type() == like.scalar_type() && b.device() == like.device() &&
                        n.device() == like.device(),
                    "fastwm: wrong shape, dtype or device of ", name);
    const int64_t count = one ? 1 : w.size(0), N = w.size(w.dim() - 2);
    STD_TORCH_CHECK(b.numel() == count * N && n.numel() == count * N * norms.value_or(1) &&
                        b.dim() == w.dim() - 1 && n.dim() == w.dim() - !norms && n.size(n.dim() - 1) == N,
                    "fastwm: wrong shape of the bias or norm of ", name);
    layers = {{w.const_data_ptr(), one ? 0 : w.stride(0), w.stride(w.dim() - 1), w.stride(w.dim() - 2)},
              bias.const_data_ptr(),
              norm.const_data_ptr(),
              count,
              K,
              N};
  }
};

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor, Tensor> rssm_imagine(
    const Tensor& deter0_, const Tensor& stoch0_, const Tensor& uniform_, const Tensor& noise_, const Tensor& heads_,
    const Tensor& w_deter, const Tensor& b_deter, const Tensor& n_deter, const Tensor& w_stoch, const Tensor& b_stoch,
    const Tensor& n_stoch, const Tensor& w_action, const Tensor& b_action, const Tensor& n_action, const Tensor& w_own,
    const Tensor& w_embeds, const Tensor& b_hidden_, const Tensor& n_hidden_, const Tensor& w_gates,
    const Tensor& b_gates_, const Tensor& w_prior, const Tensor& b_prior, const Tensor& n_prior,
    const Tensor& w_priors, const Tensor& b_priors, const Tensor& n_priors, const Tensor& w_logits,
    const Tensor& b_logits_, const Tensor& w_actor, const Tensor& b_actor, const Tensor& n_actor,
    const Tensor& w_actors, const Tensor& b_actors, const Tensor& n_actors, const Tensor& w_out,
    const Tensor& b_out_, const std::optional<Tensor>& given_, double unimix, double policy_unimix, double eps,
    bool bf16_products) {
  STD_TORCH_CHECK(deter0_.dim() == 2 && stoch0_.dim() == 3 && uniform_.dim() == 3 && w_deter.dim() == 2 &&
                      w_action.dim() == 2 && w_own.dim() == 3 && w_prior.dim() == 2 && w_actor.dim() == 2 &&
                      w_out.dim() == 2 && w_own.size(0) > 0,
                  "fastwm: rssm_imagine: expected deter [N, D], stoch [N, S, C], uniform [H, N, S]");
  const Tensor deter0 = dense(deter0_);
  const RssmSizes n{uniform_.size(0), deter0.size(0), deter0.size(1), w_deter.size(0),
                    stoch0_.size(1),  stoch0_.size(2), w_own.size(0)};
  STD_TORCH_CHECK(dtype_of(deter0) != Dtype::bf16 && n.J() * n.G == n.D,
                  "fastwm: rssm_imagine: expected float32 or float64, and blocks that divide deter");
  const Tensor stoch0 = dense_shaped(stoch0_, {n.B, n.S, n.C}, deter0, "stoch");
  const Tensor uniform = dense_shaped(uniform_, {n.T, n.B, n.S}, deter0, "uniform");
  STD_TORCH_CHECK(heads_.scalar_type() == ScalarType::Long && heads_.dim() == 2 && heads_.size(1) == 2,
                  "fastwm: rssm_imagine: heads must be int64 [heads, 2]");
  const Tensor heads = dense(heads_);
  const int64_t* spec = static_cast<const int64_t*>(heads.const_data_ptr());
  STD_TORCH_CHECK(!given_ || (heads.size(0) == 0 && given_->dim() == 3),
                  "fastwm: rssm_imagine: given actions are [H, N, A] and leave no head");
  int64_t draws = 0, width = given_ ? given_->size(2) : 0, outputs = 0;
  for (int64_t i = 0; i < heads.size(0); ++i) {
    const ActionHead head{spec[2 * i], spec[2 * i + 1]};
    STD_TORCH_CHECK(head.count > 0 && head.classes >= 0, "fastwm: rssm_imagine: an empty head");
    draws += head.count, width += head.width(), outputs += head.outputs();
  }
  const int64_t sampled = given_ ? 0 : n.T + 1;
  const Tensor noise = dense_shaped(noise_, {sampled, n.B, draws}, deter0, "noise");
  const std::optional<Tensor> given =
      given_ ? std::optional(dense_shaped(*given_, {n.T, n.B, width}, deter0, "action")) : std::nullopt;
  const DenseArgs deter(w_deter, b_deter, n_deter, n.D, deter0, "w_deter");
  const DenseArgs stoch(w_stoch, b_stoch, n_stoch, n.Z(), deter0, "w_stoch");
  const DenseArgs action(w_action, b_action, n_action, width, deter0, "w_action");
  const DenseArgs prior(w_prior, b_prior, n_prior, n.D, deter0, "w_prior");
  const DenseArgs priors(w_priors, b_priors, n_priors, prior.layers.N, deter0, "w_priors");
  const DenseArgs actor(w_actor, b_actor, n_actor, n.D + n.Z(), deter0, "w_actor");
  const DenseArgs actors(w_actors, b_actors, n_actors, actor.layers.N, deter0, "w_actors");
  STD_TORCH_CHECK(deter.layers.N == n.U && stoch.layers.N == n.U && action.layers.N == n.U &&
                      priors.layers.N == prior.layers.N && actors.layers.N == actor.layers.N &&
                      w_priors.dim() == 3 && w_actors.dim() == 3,
                  "fastwm: rssm_imagine: layers of different widths");
  const Tensor b_hidden = dense_shaped(b_hidden_, {n.D}, deter0, "b_hidden");
  const Tensor n_hidden = dense_shaped(n_hidden_, {n.D}, deter0, "n_hidden");
  const Tensor b_gates = dense_shaped(b_gates_, {3 * n.D}, deter0, "b_gates");
  const Tensor b_logits = dense_shaped(b_logits_, {n.Z()}, deter0, "b_logits");
  const Tensor b_out = dense_shaped(b_out_, {outputs}, deter0, "b_out");
  Tensor deters = empty_shaped(deter0, {n.T + 1, n.B, n.D});
  Tensor stochs = empty_shaped(deter0, {n.T + 1, n.B, n.S, n.C}), logits = empty_shaped(deter0, {n.T, n.B, n.S, n.C});
  Tensor actions = empty_shaped(deter0, {sampled, n.B, width});
  const RssmImagine p{dtype_of(deter0),
                      bf16_products,
                      n,
                      deter.layers,
                      stoch.layers,
                      action.layers,
                      weight_of(w_own, {n.G, n.J(), n.J()}, deter0, "w_own"),
                      weight_of(w_embeds, {n.G, 3 * n.U, n.J()}, deter0, "w_embeds"),
                      b_hidden.const_data_ptr(),
                      n_hidden.const_data_ptr(),
                      weight_of(w_gates, {n.G, n.J(), 3 * n.J()}, deter0, "w_gates"),
                      b_gates.const_data_ptr(),
                      prior.layers,
                      priors.layers,
                      weight_of(w_logits, {n.Z(), prior.layers.N}, deter0, "w_logits"),
                      b_logits.const_data_ptr(),
                      actor.layers,
                      actors.layers,
                      weight_of(w_out, {outputs, actor.layers.N}, deter0, "w_out"),
                      b_out.const_data_ptr(),
                      spec,
                      heads.size(0),
                      unimix,
                      policy_unimix,
                      eps,
                      deter0.const_data_ptr(),
                      stoch0.const_data_ptr(),
                      uniform.const_data_ptr(),
                      noise.const_data_ptr(),
                      deters.mutable_data_ptr(),
                      stochs.mutable_data_ptr(),
                      logits.mutable_data_ptr(),
                      given ? nullptr : actions.mutable_data_ptr(),
                      data_or_null(given)};
  kernel(p, deter0.get_device_index());
  return {deters, stochs, logits, actions};
}

}  // namespace fastwm
