// The host side of the observe sequence: checks, outputs, and the weights as the kernels read them.
#pragma once

#include "fastwm/rssm_observe.h"
#include "ops/sequence.h"

namespace fastwm {

inline void check_rssm(const RssmSizes& n, const Tensor& deter, const char* name) {
  STD_TORCH_CHECK(dtype_of(deter) != Dtype::bf16 && n.J() * n.G == n.D,
                  "fastwm: ", name, ": expected float32 or float64, and blocks that divide deter");
  STD_TORCH_CHECK(n.D > 0 && n.U > 0 && n.S > 0 && n.C > 0, "fastwm: ", name, ": a deter, layer or latent of width 0");
  check_sizes(std::initializer_list<int64_t>{n.U, n.D});
  check_sizes(std::initializer_list<int64_t>{n.U, n.S, n.C});
}

template <auto kernel, bool can_compact = false, auto scratch_bytes = no_scratch<RssmObserve>>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rssm_observe(
    const Tensor& hidden_in_, const Tensor& post_in_, const Tensor& is_first_, const Tensor& deter0_,
    const Tensor& stoch0_, const Tensor& uniform_, const Tensor& w_deter, const Tensor& b_deter_,
    const Tensor& n_deter_, const Tensor& w_stoch, const Tensor& b_stoch_, const Tensor& n_stoch_, const Tensor& w_own,
    const Tensor& w_embeds, const Tensor& n_hidden_, const Tensor& w_gates, const Tensor& b_gates_,
    const Tensor& w_post, const Tensor& n_post_, const Tensor& w_logits, const Tensor& b_logits_, double unimix,
    double eps, bool save, bool compact, bool bf16_products) {
  STD_TORCH_CHECK(hidden_in_.dim() == 3 && stoch0_.dim() == 3 && w_deter.dim() == 2 && w_own.dim() == 3 &&
                      hidden_in_.size(0) > 0 && w_own.size(0) > 0,
                  "fastwm: rssm_observe: expected hidden_in [T, B, D] with T >= 1, stoch [B, S, C]");
  const Tensor hidden_in = dense(hidden_in_);
  const RssmSizes n{hidden_in.size(0), hidden_in.size(1), hidden_in.size(2), w_deter.size(0),
                    stoch0_.size(1),   stoch0_.size(2),   w_own.size(0)};
  check_rssm(n, hidden_in, "rssm_observe");
  const Tensor post_in = dense_shaped(post_in_, {n.T, n.B, n.U}, hidden_in, "post_in");
  const Tensor deter0 = dense_shaped(deter0_, {n.B, n.D}, hidden_in, "deter");
  const Tensor stoch0 = dense_shaped(stoch0_, {n.B, n.S, n.C}, hidden_in, "stoch");
  const Tensor uniform = dense_shaped(uniform_, {n.T, n.B, n.S}, hidden_in, "uniform");
  const Tensor is_first = dense_first(is_first_, n.T, n.B, hidden_in);
  const Tensor b_deter = dense_shaped(b_deter_, {n.U}, hidden_in, "b_deter");
  const Tensor b_stoch = dense_shaped(b_stoch_, {n.U}, hidden_in, "b_stoch");
  const Tensor b_gates = dense_shaped(b_gates_, {3 * n.D}, hidden_in, "b_gates");
  const Tensor b_logits = dense_shaped(b_logits_, {n.Z()}, hidden_in, "b_logits");
  const Tensor n_deter = dense_shaped(n_deter_, {n.U}, hidden_in, "n_deter");
  const Tensor n_stoch = dense_shaped(n_stoch_, {n.U}, hidden_in, "n_stoch");
  const Tensor n_hidden = dense_shaped(n_hidden_, {n.D}, hidden_in, "n_hidden");
  const Tensor n_post = dense_shaped(n_post_, {n.U}, hidden_in, "n_post");
  const BlockGruWeights gru{weight_of(w_deter, {n.U, n.D}, hidden_in, "w_deter"),
                            weight_of(w_own, {n.G, n.J(), n.J()}, hidden_in, "w_own"),
                            weight_of(w_embeds, {n.G, 2 * n.U, n.J()}, hidden_in, "w_embeds"),
                            weight_of(w_gates, {n.G, n.J(), 3 * n.J()}, hidden_in, "w_gates"),
                            b_deter.const_data_ptr(),
                            b_gates.const_data_ptr(),
                            n_deter.const_data_ptr(),
                            n_hidden.const_data_ptr()};
  const RssmWeights w{weight_of(w_stoch, {n.U, n.Z()}, hidden_in, "w_stoch"),
                      weight_of(w_post, {n.U, n.D}, hidden_in, "w_post"),
                      weight_of(w_logits, {n.Z(), n.U}, hidden_in, "w_logits"),
                      b_stoch.const_data_ptr(),
                      b_logits.const_data_ptr(),
                      n_stoch.const_data_ptr(),
                      n_post.const_data_ptr(),
                      unimix};
  Tensor deter = empty_dense(hidden_in);
  Tensor stoch = empty_shaped(hidden_in, {n.T, n.B, n.S, n.C});
  Tensor index = empty_shaped(hidden_in, {n.T, n.B, n.S}, ScalarType::Long);
  Tensor logits = empty_shaped(hidden_in, {n.T, n.B, n.S, n.C});
  const int64_t kept = save ? n.T : 0;
  Tensor embeds = empty_shaped(hidden_in, {kept, n.B, 2 * n.U});
  Tensor hidden = empty_shaped(hidden_in, {kept, n.B, n.D});
  STD_TORCH_CHECK(!compact || (can_compact && dtype_of(hidden_in) == Dtype::f32),
                  "fastwm: rssm_observe: only CUDA's kernels save gates in bfloat16, and only beside float32");
  const auto gate_dtype = compact ? ScalarType::BFloat16 : hidden_in.scalar_type();
  Tensor gates = empty_shaped(hidden_in, {kept, n.B, 3 * n.D}, gate_dtype);
  Tensor post = empty_shaped(hidden_in, {kept, n.B, n.U});
  const auto saved = [save](Tensor& x) { return save ? x.mutable_data_ptr() : nullptr; };
  RssmObserve p{{dtype_of(hidden_in),
                       bf16_products,
                       n.gru(),
                       gru,
                       -1.0,
                       eps,
                       hidden_in.const_data_ptr(),
                       static_cast<const bool*>(is_first.const_data_ptr()),
                       deter0.const_data_ptr(),
                       deter.mutable_data_ptr(),
                       {saved(embeds), saved(hidden), saved(gates)}},
                      n,
                      w,
                      post_in.const_data_ptr(),
                      stoch0.const_data_ptr(),
                      uniform.const_data_ptr(),
                      stoch.mutable_data_ptr(),
                      static_cast<int64_t*>(index.mutable_data_ptr()),
                      logits.mutable_data_ptr(),
                      saved(post),
                      compact,
                      nullptr};
  Tensor scratch = scratch_memory(hidden_in, scratch_bytes(p));
  p.scratch = scratch.mutable_data_ptr();
  kernel(p, hidden_in.get_device_index());
  return {deter, stoch, index, logits, embeds, hidden, gates, post};
}

template <auto kernel, bool can_compact = false, auto scratch_bytes = no_scratch<RssmObserveBackward>>
std::tuple<Tensor, Tensor, Tensor> rssm_observe_backward(
    const Tensor& g_deter_, const Tensor& g_stoch_, const Tensor& g_logits_, const Tensor& is_first_,
    const Tensor& deter0_, const Tensor& stoch0_, const Tensor& deter_, const Tensor& stoch_, const Tensor& logits_,
    const Tensor& embeds_, const Tensor& hidden_, const Tensor& gates_, const Tensor& post_, const Tensor& w_deter,
    const Tensor& n_deter_, const Tensor& w_stoch, const Tensor& n_stoch_, const Tensor& w_own, const Tensor& w_embeds,
    const Tensor& n_hidden_, const Tensor& w_gates, const Tensor& w_post, const Tensor& n_post_,
    const Tensor& w_logits, double unimix, double eps, bool bf16_products) {
  STD_TORCH_CHECK(deter_.dim() == 3 && logits_.dim() == 4 && w_deter.dim() == 2 && w_own.dim() == 3 &&
                      deter_.size(0) > 0 && w_own.size(0) > 0,
                  "fastwm: rssm_observe: expected deter [T, B, D] with T >= 1, logits [T, B, S, C]");
  const Tensor deter = dense(deter_);
  const RssmSizes n{deter.size(0),   deter.size(1),   deter.size(2), w_deter.size(0),
                    logits_.size(2), logits_.size(3), w_own.size(0)};
  check_rssm(n, deter, "rssm_observe");
  const Tensor logits = dense_shaped(logits_, {n.T, n.B, n.S, n.C}, deter, "logits");
  const Tensor g_deter = dense_like(g_deter_, deter, "g_deter");
  const Tensor g_stoch = dense_like(g_stoch_, logits, "g_stoch");
  const Tensor g_logits = dense_like(g_logits_, logits, "g_logits");
  const Tensor deter0 = dense_shaped(deter0_, {n.B, n.D}, deter, "deter0");
  const Tensor stoch0 = dense_shaped(stoch0_, {n.B, n.S, n.C}, deter, "stoch0");
  const Tensor stoch = dense_like(stoch_, logits, "stoch");
  const Tensor is_first = dense_first(is_first_, n.T, n.B, deter);
  const Tensor embeds = dense_shaped(embeds_, {n.T, n.B, 2 * n.U}, deter, "embeds");
  const Tensor hidden = dense_shaped(hidden_, {n.T, n.B, n.D}, deter, "hidden");
  const bool compact = can_compact && gates_.scalar_type() == ScalarType::BFloat16;
  const Tensor gates = dense_shaped(gates_, {n.T, n.B, 3 * n.D}, compact ? gates_ : deter, "gates");
  const Tensor post = dense_shaped(post_, {n.T, n.B, n.U}, deter, "post");
  const Tensor n_deter = dense_shaped(n_deter_, {n.U}, deter, "n_deter");
  const Tensor n_stoch = dense_shaped(n_stoch_, {n.U}, deter, "n_stoch");
  const Tensor n_hidden = dense_shaped(n_hidden_, {n.D}, deter, "n_hidden");
  const Tensor n_post = dense_shaped(n_post_, {n.U}, deter, "n_post");
  const BlockGruWeights gru{weight_of(w_deter, {n.U, n.D}, deter, "w_deter"),
                            weight_of(w_own, {n.G, n.J(), n.J()}, deter, "w_own"),
                            weight_of(w_embeds, {n.G, 2 * n.U, n.J()}, deter, "w_embeds"),
                            weight_of(w_gates, {n.G, n.J(), 3 * n.J()}, deter, "w_gates"),
                            nullptr,
                            nullptr,
                            n_deter.const_data_ptr(),
                            n_hidden.const_data_ptr()};
  const RssmWeights w{weight_of(w_stoch, {n.U, n.Z()}, deter, "w_stoch"),
                      weight_of(w_post, {n.U, n.D}, deter, "w_post"),
                      weight_of(w_logits, {n.Z(), n.U}, deter, "w_logits"),
                      nullptr,
                      nullptr,
                      n_stoch.const_data_ptr(),
                      n_post.const_data_ptr(),
                      unimix};
  Tensor d_hidden = empty_dense(hidden), d_post = empty_dense(post);
  Tensor d_weights = empty_shaped(deter, {n.weights()});
  RssmObserveBackward p{{dtype_of(deter),
                               bf16_products,
                               n.gru(),
                               gru,
                               eps,
                               static_cast<const bool*>(is_first.const_data_ptr()),
                               deter0.const_data_ptr(),
                               deter.const_data_ptr(),
                               embeds.const_data_ptr(),
                               hidden.const_data_ptr(),
                               gates.const_data_ptr(),
                               g_deter.const_data_ptr(),
                               d_hidden.mutable_data_ptr(),
                               nullptr,
                               nullptr},
                              n,
                              w,
                              stoch0.const_data_ptr(),
                              stoch.const_data_ptr(),
                              logits.const_data_ptr(),
                              post.const_data_ptr(),
                              g_stoch.const_data_ptr(),
                              g_logits.const_data_ptr(),
                              compact,
                              d_post.mutable_data_ptr(),
                              d_weights.mutable_data_ptr(),
                              nullptr};
  Tensor scratch = scratch_memory(deter, scratch_bytes(p));
  p.scratch = scratch.mutable_data_ptr();
  kernel(p, deter.get_device_index());
  return {d_hidden, d_post, d_weights};
}

}  // namespace fastwm
