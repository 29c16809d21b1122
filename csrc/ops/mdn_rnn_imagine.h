// The host side of the dreams.
#pragma once

#include "fastwm/mdn_rnn_imagine.h"
#include "ops/rssm_observe.h"

namespace fastwm {

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mdn_rnn_imagine(
    const Tensor& z0_, const Tensor& controllers_, const std::optional<Tensor>& controller_bias_, const Tensor& w_ih,
    const Tensor& w_hh, const Tensor& bias_, const Tensor& w_out, const Tensor& b_out_, const Tensor& seed_offset_,
    int64_t steps, int64_t done, int64_t reward, double temperature, bool car, double forget_bias, bool ijfo,
    bool trajectories, bool bf16_products) {
  STD_TORCH_CHECK(z0_.dim() == 2 && controllers_.dim() == 3 && w_ih.dim() == 2 && w_hh.dim() == 2 &&
                      w_out.dim() == 2 && steps >= 1 && temperature > 0,
                  "fastwm: mdn_rnn_imagine: expected z [N, Z], controllers [P, A, F], matrices, steps and temperature");
  for (const Tensor* x : {&controllers_, &w_ih, &w_hh, &w_out}) check_sizes(x->sizes());
  const Tensor z0 = dense(z0_);
  const int64_t N = z0.size(0), Z = z0.size(1), P = controllers_.size(0), A = controllers_.size(1);
  const int64_t F = controllers_.size(2), H = w_hh.size(1), I = w_ih.size(1);
  const int64_t extra = (done >= 0) + (reward >= 0), outputs = w_out.size(0);
  STD_TORCH_CHECK(dtype_of(z0) != Dtype::bf16 && Z > 0 && H > 0 && P > 0 && N % P == 0 && A > 0 &&
                      (F == Z || F == Z + H || F == Z + 2 * H) && (I == Z + A || I == Z + A + 1) &&
                      (outputs - extra) % (3 * Z) == 0 && outputs > extra && done < extra && reward < extra &&
                      (done < 0 || done != reward) && (!car || A == 3),
                  "fastwm: mdn_rnn_imagine: sizes that do not fit, or neither float32 nor float64");
  const Tensor controllers = dense_shaped(controllers_, {P, A, F}, z0, "controllers");
  std::optional<Tensor> controller_bias;
  if (controller_bias_) controller_bias = dense_shaped(*controller_bias_, {P, A}, z0, "controller_bias");
  const Tensor bias = dense_shaped(bias_, {4 * H}, z0, "bias"), b_out = dense_shaped(b_out_, {outputs}, z0, "b_out");
  STD_TORCH_CHECK(seed_offset_.dim() == 2 && seed_offset_.size(0) == N && seed_offset_.size(1) == 2 &&
                      seed_offset_.scalar_type() == ScalarType::Long && seed_offset_.device() == z0.device(),
                  "fastwm: mdn_rnn_imagine: seed_offset must be int64 [N, 2]");
  const Tensor seed_offset = dense(seed_offset_);
  const int64_t T = trajectories ? steps : 0;
  Tensor lengths = empty_shaped(z0, {N}, ScalarType::Long), returns = empty_shaped(z0, {N});
  Tensor z = torch::stable::new_zeros(z0, {T, N, Z}), action = torch::stable::new_zeros(z0, {T, N, A});
  Tensor ended = torch::stable::new_zeros(z0, {T, N}, ScalarType::Bool);
  const MdnRnnImagine p{dtype_of(z0),
                        bf16_products,
                        N, P, A, F, Z, H, (outputs - extra) / (3 * Z), I, steps,
                        z0.const_data_ptr(),
                        controllers.const_data_ptr(),
                        data_or_null(controller_bias),
                        weight_of(w_ih, {4 * H, I}, z0, "w_ih"),
                        weight_of(w_hh, {4 * H, H}, z0, "w_hh"),
                        bias.const_data_ptr(),
                        weight_of(w_out, {outputs, H}, z0, "w_out"),
                        b_out.const_data_ptr(),
                        static_cast<const int64_t*>(seed_offset.const_data_ptr()),
                        extra,
                        done,
                        reward,
                        temperature,
                        forget_bias,
                        car,
                        ijfo,
                        static_cast<int64_t*>(lengths.mutable_data_ptr()),
                        returns.mutable_data_ptr(),
                        trajectories ? z.mutable_data_ptr() : nullptr,
                        trajectories ? action.mutable_data_ptr() : nullptr,
                        trajectories ? static_cast<bool*>(ended.mutable_data_ptr()) : nullptr};
  kernel(p, z0.get_device_index());
  return {lengths, returns, z, action, ended};
}

}  // namespace fastwm
