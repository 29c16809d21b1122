// The host side of the MLP.
#pragma once

#include "fastwm/mlp.h"
#include "ops/rssm_imagine.h"

namespace fastwm {

// What forward and backward read, checked; keeps alive what had to be made contiguous.
struct MlpArgs {
  Tensor x, z;
  DenseArgs first, rest;
  Tensor b_out;
  MlpLayers n;

  MlpArgs(const Tensor& x_, const Tensor& z_, const Tensor& w, const Tensor& b, const Tensor& norm, const Tensor& ws,
          const Tensor& bs, const Tensor& norms, const Tensor& w_out, const Tensor& b_out_, int64_t activation,
          double eps)
      : x(dense(matrix(x_))),
        z(dense_shaped(z_, {x.size(0), matrix(z_).size(1)}, x, "z")),
        first(matrix(w), b, matrix(norm), x.size(1) + z.size(1), x, "w", norm.size(0)),
        rest(ws, bs, norms, first.layers.N, x, "ws", norm.size(0)),
        b_out(dense_shaped(b_out_, {matrix(w_out).size(0)}, x, "b_out")),
        n{first.layers, rest.layers, weight_of(w_out, {b_out.size(0), first.layers.N}, x, "w_out"),
          b_out.const_data_ptr(), x.size(1), z.size(1), b_out.size(0), norm.size(0),
          static_cast<Activation>(activation), eps} {
    STD_TORCH_CHECK(dtype_of(x) != Dtype::bf16 && ws.dim() == 3 && rest.layers.N == first.layers.N,
                    "fastwm: mlp: expected float32 or float64, and layers of one width");
    STD_TORCH_CHECK(n.norms <= 2 && activation >= 0 && activation <= 3 &&
                        (n.norms != 1 || n.activation == Activation::silu),
                    "fastwm: mlp: RMSNorm goes with SiLU; LayerNorm or no norm with any activation");
  }

  static const Tensor& matrix(const Tensor& x) {
    STD_TORCH_CHECK(x.dim() == 2, "fastwm: mlp: expected x [N, D], z [N, Z], weights [out, in], norm [k, U]");
    return x;
  }
};

template <auto kernel>
std::tuple<Tensor, Tensor> mlp(const Tensor& x, const Tensor& z, const Tensor& w, const Tensor& b, const Tensor& norm,
                               const Tensor& ws, const Tensor& bs, const Tensor& norms, const Tensor& w_out,
                               const Tensor& b_out, int64_t activation, double eps, bool save, bool bf16_products) {
  const MlpArgs in(x, z, w, b, norm, ws, bs, norms, w_out, b_out, activation, eps);
  const int64_t rows = in.x.size(0);
  Tensor y = empty_shaped(in.x, {rows, in.n.O});
  Tensor pre = empty_shaped(in.x, {save ? in.n.count() : 0, rows, in.n.U()});
  const Mlp p{dtype_of(in.x),
              bf16_products,
              in.n,
              rows,
              in.x.const_data_ptr(),
              in.z.const_data_ptr(),
              y.mutable_data_ptr(),
              save ? pre.mutable_data_ptr() : nullptr};
  kernel(p, in.x.get_device_index());
  return {y, pre};
}

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor> mlp_backward(const Tensor& grad_, const Tensor& pre_, const Tensor& x,
                                                const Tensor& z, const Tensor& w, const Tensor& b, const Tensor& norm,
                                                const Tensor& ws, const Tensor& bs, const Tensor& norms,
                                                const Tensor& w_out, const Tensor& b_out, int64_t activation,
                                                double eps, bool inputs, bool weights, bool bf16_products) {
  const MlpArgs in(x, z, w, b, norm, ws, bs, norms, w_out, b_out, activation, eps);
  const int64_t rows = in.x.size(0);
  const Tensor grad = dense_shaped(grad_, {rows, in.n.O}, in.x, "grad");
  const Tensor pre = dense_shaped(pre_, {in.n.count(), rows, in.n.U()}, in.x, "pre");
  Tensor d_x = empty_shaped(in.x, {inputs ? rows : 0, in.n.D});
  Tensor d_z = empty_shaped(in.x, {inputs ? rows : 0, in.n.Z});
  Tensor d_weights = empty_shaped(in.x, {weights ? in.n.weights() : 0});
  const MlpBackward p{dtype_of(in.x),
                      bf16_products,
                      in.n,
                      rows,
                      in.x.const_data_ptr(),
                      in.z.const_data_ptr(),
                      pre.const_data_ptr(),
                      grad.const_data_ptr(),
                      inputs ? d_x.mutable_data_ptr() : nullptr,
                      inputs ? d_z.mutable_data_ptr() : nullptr,
                      weights ? d_weights.mutable_data_ptr() : nullptr};
  kernel(p, in.x.get_device_index());
  return {d_x, d_z, d_weights};
}

}  // namespace fastwm
