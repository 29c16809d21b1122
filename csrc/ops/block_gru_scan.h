// The host side of the block GRU over a sequence.
#pragma once

#include "fastwm/block_gru_scan.h"
#include "ops/sequence.h"

namespace fastwm {

inline BlockGruSizes block_gru_sizes(const Tensor& sequence, const Tensor& w_carry, const Tensor& w_own) {
  STD_TORCH_CHECK(sequence.dim() == 3 && w_carry.dim() == 2 && w_own.dim() == 3 && sequence.size(0) > 0 &&
                      w_own.size(0) > 0,
                  "fastwm: block_gru_scan: expected [T, B, D] with T >= 1");
  const BlockGruSizes n{sequence.size(0), sequence.size(1), sequence.size(2), w_carry.size(0), 1, w_own.size(0)};
  STD_TORCH_CHECK(dtype_of(sequence) != Dtype::bf16 && n.J() * n.G == n.D && n.D > 0 && n.U > 0,
                  "fastwm: block_gru_scan: expected float32 or float64, widths >= 1, and blocks that divide the carry");
  check_sizes(std::initializer_list<int64_t>{n.U, n.D});
  return n;
}

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor, Tensor> block_gru_scan(
    const Tensor& hidden_in_, const Tensor& is_first_, const Tensor& h0_, const Tensor& w_carry, const Tensor& b_carry_,
    const Tensor& n_carry_, const Tensor& w_own, const Tensor& w_embeds, const Tensor& n_hidden_, const Tensor& w_gates,
    const Tensor& b_gates_, double update_bias, double eps, bool save, bool bf16_products) {
  const Tensor hidden_in = dense(hidden_in_);
  const BlockGruSizes n = block_gru_sizes(hidden_in, w_carry, w_own);
  const Tensor is_first = dense_first(is_first_, n.T, n.B, hidden_in);
  const Tensor h0 = dense_shaped(h0_, {n.B, n.D}, hidden_in, "h");
  const Tensor b_carry = dense_shaped(b_carry_, {n.U}, hidden_in, "b_carry");
  const Tensor b_gates = dense_shaped(b_gates_, {3 * n.D}, hidden_in, "b_gates");
  const Tensor n_carry = dense_shaped(n_carry_, {n.U}, hidden_in, "n_carry");
  const Tensor n_hidden = dense_shaped(n_hidden_, {n.D}, hidden_in, "n_hidden");
  Tensor h = empty_dense(hidden_in);
  const int64_t kept = save ? n.T : 0;
  Tensor embeds = empty_shaped(hidden_in, {kept, n.B, n.U});
  Tensor hidden = empty_shaped(hidden_in, {kept, n.B, n.D});
  Tensor gates = empty_shaped(hidden_in, {kept, n.B, 3 * n.D});
  const auto saved = [save](Tensor& x) { return save ? x.mutable_data_ptr() : nullptr; };
  const BlockGruScan p{dtype_of(hidden_in),
                       bf16_products,
                       n,
                       {weight_of(w_carry, {n.U, n.D}, hidden_in, "w_carry"),
                        weight_of(w_own, {n.G, n.J(), n.J()}, hidden_in, "w_own"),
                        weight_of(w_embeds, {n.G, n.U, n.J()}, hidden_in, "w_embeds"),
                        weight_of(w_gates, {n.G, n.J(), 3 * n.J()}, hidden_in, "w_gates"),
                        b_carry.const_data_ptr(),
                        b_gates.const_data_ptr(),
                        n_carry.const_data_ptr(),
                        n_hidden.const_data_ptr()},
                       update_bias,
                       eps,
                       hidden_in.const_data_ptr(),
                       static_cast<const bool*>(is_first.const_data_ptr()),
                       h0.const_data_ptr(),
                       h.mutable_data_ptr(),
                       {saved(embeds), saved(hidden), saved(gates)}};
  kernel(p, hidden_in.get_device_index());
  return {h, embeds, hidden, gates};
}

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor> block_gru_scan_backward(
    const Tensor& g_h_, const Tensor& is_first_, const Tensor& h0_, const Tensor& h_, const Tensor& embeds_,
    const Tensor& hidden_, const Tensor& gates_, const Tensor& w_carry, const Tensor& n_carry_, const Tensor& w_own,
    const Tensor& w_embeds, const Tensor& n_hidden_, const Tensor& w_gates, double eps, bool bf16_products) {
  const Tensor h = dense(h_);
  const BlockGruSizes n = block_gru_sizes(h, w_carry, w_own);
  const Tensor g_h = dense_like(g_h_, h, "g_h");
  const Tensor is_first = dense_first(is_first_, n.T, n.B, h);
  const Tensor h0 = dense_shaped(h0_, {n.B, n.D}, h, "h0");
  const Tensor embeds = dense_shaped(embeds_, {n.T, n.B, n.U}, h, "embeds");
  const Tensor hidden = dense_shaped(hidden_, {n.T, n.B, n.D}, h, "hidden");
  const Tensor gates = dense_shaped(gates_, {n.T, n.B, 3 * n.D}, h, "gates");
  const Tensor n_carry = dense_shaped(n_carry_, {n.U}, h, "n_carry");
  const Tensor n_hidden = dense_shaped(n_hidden_, {n.D}, h, "n_hidden");
  Tensor d_hidden = empty_dense(hidden), d_h0 = empty_dense(h0);
  Tensor d_weights = empty_shaped(h, {n.weights()});
  const BlockGruScanBackward p{dtype_of(h),
                               bf16_products,
                               n,
                               {weight_of(w_carry, {n.U, n.D}, h, "w_carry"),
                                weight_of(w_own, {n.G, n.J(), n.J()}, h, "w_own"),
                                weight_of(w_embeds, {n.G, n.U, n.J()}, h, "w_embeds"),
                                weight_of(w_gates, {n.G, n.J(), 3 * n.J()}, h, "w_gates"),
                                nullptr,
                                nullptr,
                                n_carry.const_data_ptr(),
                                n_hidden.const_data_ptr()},
                               eps,
                               static_cast<const bool*>(is_first.const_data_ptr()),
                               h0.const_data_ptr(),
                               h.const_data_ptr(),
                               embeds.const_data_ptr(),
                               hidden.const_data_ptr(),
                               gates.const_data_ptr(),
                               g_h.const_data_ptr(),
                               d_hidden.mutable_data_ptr(),
                               d_h0.mutable_data_ptr(),
                               d_weights.mutable_data_ptr()};
  kernel(p, h.get_device_index());
  return {d_hidden, d_h0, d_weights};
}

}  // namespace fastwm
