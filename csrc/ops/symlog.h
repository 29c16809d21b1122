// symlog and symexp: the host side, written once: kernel(params, device) is a CPU kernel or a CUDA launch.
#pragma once

#include "fastwm/symlog.h"
#include "tensor.h"

namespace fastwm {

template <auto kernel>
Tensor elementwise(const Tensor& x_) {
  const Tensor x = dense(x_);
  Tensor out = empty_dense(x);
  kernel({dtype_of(x), x.numel(), x.const_data_ptr(), nullptr, out.mutable_data_ptr()}, x.get_device_index());
  return out;
}

template <auto kernel>
Tensor elementwise_backward(const Tensor& grad_, const Tensor& x_) {
  const Tensor x = dense(x_), grad = dense_like(grad_, x, "grad");
  Tensor out = empty_dense(x);
  kernel({dtype_of(x), x.numel(), x.const_data_ptr(), grad.const_data_ptr(), out.mutable_data_ptr()},
         x.get_device_index());
  return out;
}

}  // namespace fastwm
