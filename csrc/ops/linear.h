// The host side of a linear layer over many rows.
#pragma once

#include "fastwm/linear.h"
#include "ops/sequence.h"

namespace fastwm {

// x [rows, K] and the weight [N, K] or [G, K, N / G], checked.
inline LinearLayer linear_layer(const Tensor& x, const Tensor& weight, bool bf16_products) {
  STD_TORCH_CHECK(x.dim() == 2 && dtype_of(x) != Dtype::bf16 && (weight.dim() == 2 || weight.dim() == 3),
                  "fastwm: linear: expected x [rows, K] of float32 or float64, weight [N, K] or [G, K, J]");
  const bool out_in = weight.dim() == 2;
  const int64_t K = x.size(1), G = out_in ? 1 : weight.size(0), J = weight.size(out_in ? 0 : 2);
  const Weight w = out_in ? weight_of(weight, {J, K}, x, "weight") : weight_of(weight, {G, K, J}, x, "weight");
  return {dtype_of(x), bf16_products, x.size(0), K, G, J, w, out_in};
}

template <auto kernel>
Tensor linear(const Tensor& x_, const Tensor& weight, const std::optional<Tensor>& bias_, bool bf16_products) {
  const LinearLayer layer = linear_layer(x_, weight, bf16_products);
  const Tensor x = dense(x_);
  const std::optional<Tensor> bias = bias_ ? std::optional(dense_shaped(*bias_, {layer.N()}, x, "bias")) : std::nullopt;
  Tensor y = empty_shaped(x, {layer.rows, layer.N()});
  kernel(Linear{layer, x.const_data_ptr(), data_or_null(bias), y.mutable_data_ptr()}, x.get_device_index());
  return y;
}

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad_, const Tensor& x_, const Tensor& weight,
                                                   bool inputs, bool weights, bool bf16_products) {
  const LinearLayer layer = linear_layer(x_, weight, bf16_products);
  const Tensor x = dense(x_), grad = dense_shaped(grad_, {layer.rows, layer.N()}, x, "grad");
  Tensor d_x = empty_shaped(x, {inputs ? layer.rows : 0, layer.K}), d_bias = empty_shaped(x, {weights ? layer.N() : 0});
  Tensor d_weight = weights ? empty_dense(weight) : empty_shaped(x, {0});
  const LinearBackward p{layer,
                         x.const_data_ptr(),
                         grad.const_data_ptr(),
                         inputs ? d_x.mutable_data_ptr() : nullptr,
                         weights ? d_weight.mutable_data_ptr() : nullptr,
                         weights ? d_bias.mutable_data_ptr() : nullptr};
  kernel(p, x.get_device_index());
  return {d_x, d_weight, d_bias};
}

}  // namespace fastwm
