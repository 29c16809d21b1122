// The lambda-return's host side, written once: kernel(params, device) is a CPU kernel or a CUDA launch.
#pragma once

#include "fastwm/lambda_return.h"
#include "tensor.h"

namespace fastwm {

template <auto kernel>
Tensor lambda_return(const Tensor& reward_, const Tensor& cont_, const Tensor& next_value_,
                     const std::optional<Tensor>& lam_, double lam_value) {
  STD_TORCH_CHECK(reward_.dim() > 0 && reward_.size(0) > 0, "fastwm: expected [T, ...] with T >= 1");
  const Tensor reward = dense(reward_);
  const Tensor cont = dense_like(cont_, reward, "cont");
  const Tensor next_value = dense_like(next_value_, reward, "next_value");
  const std::optional<Tensor> lam = dense_like(lam_, reward, "lam");
  Tensor ret = empty_dense(reward);
  const int64_t steps = reward.size(0);
  const LambdaReturn p{dtype_of(reward),
                       steps,
                       reward.numel() / steps,
                       reward.const_data_ptr(),
                       cont.const_data_ptr(),
                       next_value.const_data_ptr(),
                       data_or_null(lam),
                       lam_value,
                       ret.mutable_data_ptr()};
  kernel(p, reward.get_device_index());
  return ret;
}

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor> lambda_return_backward(
    const Tensor& grad_, const Tensor& cont_, const Tensor& next_value_, const Tensor& ret_,
    const std::optional<Tensor>& lam_, double lam_value) {
  STD_TORCH_CHECK(grad_.dim() > 0 && grad_.size(0) > 0, "fastwm: expected [T, ...] with T >= 1");
  const Tensor grad = dense(grad_);
  const Tensor cont = dense_like(cont_, grad, "cont");
  const Tensor next_value = dense_like(next_value_, grad, "next_value");
  const Tensor ret = dense_like(ret_, grad, "ret");
  const std::optional<Tensor> lam = dense_like(lam_, grad, "lam");
  Tensor d_reward = empty_dense(grad), d_cont = empty_dense(grad), d_next_value = empty_dense(grad);
  const int64_t steps = grad.size(0);
  const LambdaReturnBackward p{dtype_of(grad),
                               steps,
                               grad.numel() / steps,
                               grad.const_data_ptr(),
                               cont.const_data_ptr(),
                               next_value.const_data_ptr(),
                               ret.const_data_ptr(),
                               data_or_null(lam),
                               lam_value,
                               d_reward.mutable_data_ptr(),
                               d_cont.mutable_data_ptr(),
                               d_next_value.mutable_data_ptr()};
  kernel(p, grad.get_device_index());
  return {d_reward, d_cont, d_next_value};
}

}  // namespace fastwm
