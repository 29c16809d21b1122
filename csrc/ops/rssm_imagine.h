// The host side of the imagined rollout.
#pragma once

#include "fastwm/rssm_imagine.h"
#include "ops/mlp.h"
#include "ops/rssm_observe.h"

namespace fastwm {

constexpr size_t kMlpTensors = 8;  // w, b, norm, ws, bs, norms, w_out, b_out

// `mlps` holds the parameters of the prior and of all readouts, of which the actor is the first where no actions are
// given; `save` whether the layers of each readout are kept for its gradient.
template <auto kernel>
std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> rssm_imagine(
    const Tensor& deter0_, const Tensor& stoch0_, const Tensor& uniform_, const Tensor& noise_, const Tensor& heads_,
    const Tensor& w_deter, const Tensor& b_deter, const Tensor& n_deter, const Tensor& w_stoch, const Tensor& b_stoch,
    const Tensor& n_stoch, const Tensor& w_action, const Tensor& b_action, const Tensor& n_action, const Tensor& w_own,
    const Tensor& w_embeds, const Tensor& b_hidden_, const Tensor& n_hidden_, const Tensor& w_gates,
    const Tensor& b_gates_, std::vector<Tensor> mlps, std::vector<int64_t> save, const std::optional<Tensor>& given_,
    double unimix, double policy_unimix, double eps, bool bf16_products) {
  STD_TORCH_CHECK(deter0_.dim() == 2 && stoch0_.dim() == 3 && uniform_.dim() == 3 && w_deter.dim() == 2 &&
                      w_action.dim() == 2 && w_own.dim() == 3 && w_own.size(0) > 0,
                  "fastwm: rssm_imagine: expected deter [N, D], stoch [N, S, C], uniform [H, N, S]");
  const Tensor deter0 = dense(deter0_);
  const RssmSizes n{uniform_.size(0), deter0.size(0), deter0.size(1), w_deter.size(0),
                    stoch0_.size(1),  stoch0_.size(2), w_own.size(0)};
  check_rssm(n, deter0, "rssm_imagine");
  const Tensor stoch0 = dense_shaped(stoch0_, {n.B, n.S, n.C}, deter0, "stoch");
  const Tensor uniform = dense_shaped(uniform_, {n.T, n.B, n.S}, deter0, "uniform");
  STD_TORCH_CHECK(heads_.scalar_type() == ScalarType::Long && heads_.dim() == 2 && heads_.size(1) == 2 && heads_.is_cpu(),
                  "fastwm: rssm_imagine: heads must be int64 [heads, 2] on the CPU");
  const Tensor heads = dense(heads_);
  const int64_t* spec = static_cast<const int64_t*>(heads.const_data_ptr());
  STD_TORCH_CHECK(!given_ || (heads.size(0) == 0 && given_->dim() == 3),
                  "fastwm: rssm_imagine: given actions are [H, N, A] and leave no head");
  const int64_t most = w_action.size(1);  // what a head's width may be, so nothing overflows
  int64_t draws = 0, width = given_ ? given_->size(2) : 0, outputs = 0;
  for (int64_t i = 0; i < heads.size(0); ++i) {
    const ActionHead head{spec[2 * i], spec[2 * i + 1]};
    STD_TORCH_CHECK(0 < head.count && head.count <= most && 0 <= head.classes && head.classes <= most / head.count,
                    "fastwm: rssm_imagine: heads that do not fit w_action");
    draws += head.count, width += head.width(), outputs += head.outputs();
  }
  const int64_t sampled = given_ ? 0 : n.T + 1;
  const Tensor noise = dense_shaped(noise_, {sampled, n.B, draws}, deter0, "noise");
  const std::optional<Tensor> given =
      given_ ? std::optional(dense_shaped(*given_, {n.T, n.B, width}, deter0, "action")) : std::nullopt;
  const DenseArgs deter(w_deter, b_deter, n_deter, n.D, deter0, "w_deter");
  const DenseArgs stoch(w_stoch, b_stoch, n_stoch, n.Z(), deter0, "w_stoch");
  const DenseArgs action(w_action, b_action, n_action, width, deter0, "w_action");
  STD_TORCH_CHECK(deter.layers.N == n.U && stoch.layers.N == n.U && action.layers.N == n.U,
                  "fastwm: rssm_imagine: embeddings of different widths");
  const Tensor b_hidden = dense_shaped(b_hidden_, {n.D}, deter0, "b_hidden");
  const Tensor n_hidden = dense_shaped(n_hidden_, {n.D}, deter0, "n_hidden");
  const Tensor b_gates = dense_shaped(b_gates_, {3 * n.D}, deter0, "b_gates");

  STD_TORCH_CHECK(mlps.size() == kMlpTensors * (1 + save.size()) && (given_ || !save.empty()),
                  "fastwm: rssm_imagine: expected the tensors of the prior, the actor and the other readouts");
  STD_TORCH_CHECK(save.size() <= kMaxReadouts, "fastwm: rssm_imagine: more than ", kMaxReadouts, " readouts");
  std::vector<MlpParams> nets;
  for (size_t i = 0; i <= save.size(); ++i) {
    const Tensor* w = &mlps[i * kMlpTensors];
    nets.emplace_back(deter0, n.D, i == 0 ? 0 : n.Z(), w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], Activation::silu,
                      eps);
    STD_TORCH_CHECK(nets[i].n.norms == 1, "fastwm: rssm_imagine: an MLP without RMSNorm");
  }
  STD_TORCH_CHECK(nets[0].n.O == n.Z() && (given_ || nets[1].n.O == outputs),
                  "fastwm: rssm_imagine: wrong number of outputs of the prior or the actor");
  std::vector<Tensor> read;
  std::vector<Readout> readouts;
  for (size_t i = 0; i < save.size(); ++i) {
    const MlpLayers& net = nets[1 + i].n;
    read.push_back(empty_shaped(deter0, {n.T + 1, n.B, net.O}));
    read.push_back(empty_shaped(deter0, {save[i] ? net.count() : 0, (n.T + 1) * n.B, net.U()}));
    readouts.push_back({net, read[2 * i].mutable_data_ptr(), save[i] ? read[2 * i + 1].mutable_data_ptr() : nullptr});
  }
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
                      nets[0].n,
                      readouts.data(),
                      static_cast<int64_t>(readouts.size()),
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
                      actions.mutable_data_ptr(),
                      data_or_null(given)};
  kernel(p, deter0.get_device_index());
  return {deters, stochs, logits, actions, read};
}

}  // namespace fastwm
