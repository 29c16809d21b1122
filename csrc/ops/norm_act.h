// Norm and activation: the host side, written once: kernel(params, device) is a CPU kernel or a CUDA launch.
#pragma once

#include "fastwm/norm_act.h"
#include "tensor.h"

namespace fastwm {

struct NormActSizes {
  int64_t rows = 1, width = 0;
  std::vector<int64_t> stats, affine;  // shapes: [S, ...] and [S, D], S = 2 with a bias (LayerNorm), else 1

  NormActSizes(const Tensor& x, bool layer_norm) {
    STD_TORCH_CHECK(x.dim() > 0 && x.size(-1) > 0, "fastwm: expected x [..., D] with D >= 1");
    width = x.size(-1);
    stats.push_back(layer_norm ? 2 : 1);
    for (int64_t d = 0; d + 1 < x.dim(); ++d) stats.push_back(x.size(d)), rows *= x.size(d);
    affine = {stats[0], width};
  }
};

inline Activation activation_of(int64_t number) {
  STD_TORCH_CHECK(0 <= number && number <= static_cast<int64_t>(Activation::relu), "fastwm: no such activation: ", number);
  return static_cast<Activation>(number);
}

template <auto kernel>
std::tuple<Tensor, Tensor> norm_act(const Tensor& x_, const Tensor& weight_, const std::optional<Tensor>& bias_,
                                    double eps, int64_t activation) {
  const Tensor x = dense(x_);
  const NormActSizes sizes(x, bias_.has_value());
  const ScalarType wide = accumulate_type(x);
  const Tensor weight = dense_as(weight_, {&sizes.width, 1}, wide, x, "weight");
  const std::optional<Tensor> bias = dense_like(bias_, weight, "bias");
  Tensor y = empty_dense(x), stats = empty_dense(x, sizes.stats, wide);
  const NormAct p{dtype_of(x),
                  activation_of(activation),
                  sizes.rows,
                  sizes.width,
                  eps,
                  x.const_data_ptr(),
                  weight.const_data_ptr(),
                  data_or_null(bias),
                  y.mutable_data_ptr(),
                  stats.mutable_data_ptr()};
  kernel(p, x.get_device_index());
  return {y, stats};
}

template <auto kernel>
std::tuple<Tensor, Tensor> norm_act_backward(const Tensor& grad_, const Tensor& x_, const Tensor& weight_,
                                             const std::optional<Tensor>& bias_, const Tensor& stats_,
                                             int64_t activation) {
  const Tensor x = dense(x_), grad = dense_like(grad_, x, "grad");
  const NormActSizes sizes(x, bias_.has_value());
  const ScalarType wide = accumulate_type(x);
  const Tensor weight = dense_as(weight_, {&sizes.width, 1}, wide, x, "weight");
  const std::optional<Tensor> bias = dense_like(bias_, weight, "bias");
  const Tensor stats = dense_as(stats_, sizes.stats, wide, x, "stats");
  const int64_t blocks = norm_act_blocks(sizes.rows);
  Tensor d_x = empty_dense(x), d_affine = empty_dense(x, sizes.affine, wide);
  Tensor scratch = empty_dense(x, std::vector<int64_t>{blocks, 3, sizes.width}, wide);
  const NormActBackward p{dtype_of(x),
                          activation_of(activation),
                          sizes.rows,
                          sizes.width,
                          grad.const_data_ptr(),
                          x.const_data_ptr(),
                          weight.const_data_ptr(),
                          data_or_null(bias),
                          stats.const_data_ptr(),
                          d_x.mutable_data_ptr(),
                          d_affine.mutable_data_ptr(),
                          scratch.mutable_data_ptr(),
                          blocks};
  kernel(p, x.get_device_index());
  return {d_x, d_affine};
}

}  // namespace fastwm
