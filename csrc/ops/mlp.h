// The host side of the MLP.
#pragma once

#include "fastwm/mlp.h"
#include "ops/sequence.h"

namespace fastwm {

// Layers [count, N, K] (or one, [N, K]) with their biases [count, N] and norms [count, N], or [count, norms, N] where
// `norms` is told; keeps what it had to make contiguous alive.
struct DenseArgs {
  Tensor bias, norm;
  DenseLayers layers;

  DenseArgs(const Tensor& w, const Tensor& b, const Tensor& n, int64_t K, const Tensor& like, const char* name,
            std::optional<int64_t> norms = std::nullopt)
      : bias(dense(b)), norm(dense(n)) {
    const bool one = w.dim() == 2;
    STD_TORCH_CHECK(w.dim() >= 2 && w.dim() <= 3 && w.size(w.dim() - 1) == K && w.device() == like.device() &&
                        w.scalar_type() == like.scalar_type() && b.scalar_type() == like.scalar_type() &&
                        n.scalar_type() == like.scalar_type() && b.device() == like.device() &&
                        n.device() == like.device(),
                    "fastwm: wrong shape, dtype or device of ", name);
    const int64_t count = one ? 1 : w.size(0), N = w.size(w.dim() - 2);
    STD_TORCH_CHECK(b.numel() == count * N && n.numel() == count * N * norms.value_or(1) &&
                        b.dim() == w.dim() - 1 && n.dim() == w.dim() - !norms && n.size(n.dim() - 1) == N,
                    "fastwm: wrong shape of the bias or norm of ", name);
    layers = {{w.const_data_ptr(), one ? 0 : w.stride(0), w.stride(w.dim() - 1), w.stride(w.dim() - 2)},
              bias.const_data_ptr(),
              norm.const_data_ptr(),
              count,
              K,
              N};
  }
};

inline const Tensor& matrix(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 2, "fastwm: mlp: expected x [N, D], z [N, Z], weights [out, in], norm [k, U]");
  return x;
}

// The parameters of an MLP that reads D + Z numbers like `like`, checked; keeps alive what had to be made contiguous.
struct MlpParams {
  DenseArgs first, rest;
  Tensor b_out;
  MlpLayers n;

  MlpParams(const Tensor& like, int64_t D, int64_t Z, const Tensor& w, const Tensor& b, const Tensor& norm,
            const Tensor& ws, const Tensor& bs, const Tensor& norms, const Tensor& w_out, const Tensor& b_out_,
            Activation activation, double eps)
      : first(matrix(w), b, matrix(norm), D + Z, like, "w", norm.size(0)),
        rest(ws, bs, norms, first.layers.N, like, "ws", norm.size(0)),
        b_out(dense_shaped(b_out_, {matrix(w_out).size(0)}, like, "b_out")),
        n{first.layers, rest.layers, weight_of(w_out, {b_out.size(0), first.layers.N}, like, "w_out"),
          b_out.const_data_ptr(), D, Z, b_out.size(0), norm.size(0), activation, eps} {
    STD_TORCH_CHECK(dtype_of(like) != Dtype::bf16 && ws.dim() == 3 && first.layers.N > 0 && rest.layers.N == first.layers.N,
                    "fastwm: mlp: expected float32 or float64, and layers of one width, 1 or more");
    check_sizes(std::initializer_list<int64_t>{first.layers.N, D + Z});
    STD_TORCH_CHECK(n.norms <= 2 && activation >= Activation::none && activation <= Activation::relu &&
                        (n.norms != 1 || n.activation == Activation::silu),
                    "fastwm: mlp: RMSNorm goes with SiLU; LayerNorm or no norm with any activation");
  }
};

// What forward and backward read.
struct MlpArgs {
  Tensor x, z;
  MlpParams params;
  MlpLayers n;

  MlpArgs(const Tensor& x_, const Tensor& z_, const Tensor& w, const Tensor& b, const Tensor& norm, const Tensor& ws,
          const Tensor& bs, const Tensor& norms, const Tensor& w_out, const Tensor& b_out, int64_t activation,
          double eps)
      : x(dense(matrix(x_))),
        z(dense_shaped(z_, {x.size(0), matrix(z_).size(1)}, x, "z")),
        params(x, x.size(1), z.size(1), w, b, norm, ws, bs, norms, w_out, b_out, static_cast<Activation>(activation),
               eps),
        n(params.n) {}
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
