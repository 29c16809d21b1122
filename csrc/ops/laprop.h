// LaProp: the host side, written once: kernel(params, device) is a CPU kernel or a CUDA launch.
#pragma once

#include "fastwm/laprop.h"
#include "tensor.h"

namespace fastwm {

template <auto kernel>
void laprop_step_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> nu, std::vector<Tensor> mu,
                  int64_t step, std::optional<Tensor> step_at, double lr, std::optional<Tensor> lr_at,
                  std::optional<Tensor> apply_at, double beta1, double beta2, double eps, double agc, double pmin,
                  int64_t warmup) {
  STD_TORCH_CHECK(grads.size() == params.size() && nu.size() == params.size() && mu.size() == params.size(),
                  "fastwm: expected lists of the same length");
  if (params.empty()) return;
  const Tensor& first = params[0];
  STD_TORCH_CHECK(dtype_of(first) != Dtype::bf16, "fastwm: expected float32 or float64 parameters");
  STD_TORCH_CHECK(!step_at || (step_at->scalar_type() == ScalarType::Long && step_at->device() == first.device()),
                  "fastwm: step_at must be an int64 tensor on the parameters' device");
  STD_TORCH_CHECK(!lr_at || (lr_at->scalar_type() == ScalarType::Float && lr_at->device() == first.device()),
                  "fastwm: lr_at must be a float32 tensor on the parameters' device");
  STD_TORCH_CHECK(!apply_at || (apply_at->scalar_type() == ScalarType::Bool && apply_at->device() == first.device()),
                  "fastwm: apply_at must be a bool tensor on the parameters' device");
  for (const auto* x : {&step_at, &lr_at, &apply_at})
    STD_TORCH_CHECK(!*x || (*x)->numel() == 1, "fastwm: step_at, lr_at and apply_at must hold one number");
  std::vector<LaPropTensor> tensors;
  tensors.reserve(params.size());
  int64_t chunks = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    const int64_t count = params[i].numel();
    for (const Tensor* x : {&params[i], &grads[i], &nu[i], &mu[i]})
      STD_TORCH_CHECK(x->numel() == count && x->scalar_type() == first.scalar_type() && x->device() == first.device() &&
                          x->is_contiguous(),
                      "fastwm: expected contiguous tensors of one dtype and device, a gradient, nu and mu each like "
                      "its parameter");
    if (count == 0) continue;
    tensors.push_back({params[i].mutable_data_ptr(), grads[i].const_data_ptr(), nu[i].mutable_data_ptr(),
                       mu[i].mutable_data_ptr(), count, chunks});
    chunks += laprop_chunks(count);
  }
  if (tensors.empty()) return;
  const int64_t size = 2 * chunks;
  Tensor squares = empty_dense(first, {&size, 1}, ScalarType::Double);
  LaProp p{};
  p.dtype = dtype_of(first);
  p.tensors = tensors.data(), p.tensor_count = tensors.size(), p.chunks = chunks;
  p.step = step, p.lr = lr, p.warmup = warmup;
  p.step_at = step_at ? static_cast<const int64_t*>(step_at->const_data_ptr()) : nullptr;
  p.lr_at = lr_at ? static_cast<const float*>(lr_at->const_data_ptr()) : nullptr;
  p.apply_at = apply_at ? static_cast<const bool*>(apply_at->const_data_ptr()) : nullptr;
  p.beta1 = beta1, p.beta2 = beta2, p.eps = eps, p.agc = agc, p.pmin = pmin;
  p.squares = static_cast<double*>(squares.mutable_data_ptr());
  kernel(p, first.get_device_index());
}

}  // namespace fastwm
