// The recurrent cells' host side, written once: kernel(params, device) is a CPU kernel or a CUDA launch.
#pragma once

#include <array>

#include "fastwm/cells.h"
#include "tensor.h"

namespace fastwm {

inline void check_carry(const Tensor& carry, const Tensor& gates) {
  STD_TORCH_CHECK(carry.dim() > 0, "fastwm: a cell's carry has at least one dimension");
  check_sizes(carry.sizes());
  const Dtype g = dtype_of(gates), c = dtype_of(carry);
  STD_TORCH_CHECK(g == c || (g == Dtype::bf16 && c == Dtype::f32),
                  "fastwm: gates must have the carry's dtype, or be bfloat16 beside a float32 carry");
}

// x, contiguous, once it is known to be [..., parts * width] beside a carry [..., width].
inline Tensor dense_beside(const Tensor& x, const Tensor& carry, int64_t parts, ScalarType dtype) {
  const int64_t last = carry.dim() - 1;
  bool fits = x.dim() == carry.dim() && x.scalar_type() == dtype && x.device() == carry.device() &&
              x.size(last) == parts * carry.size(last);
  for (int64_t d = 0; fits && d < last; ++d) fits = x.size(d) == carry.size(d);
  STD_TORCH_CHECK(fits, "fastwm: expected [..., ", parts, " * width] of one dtype and device beside a carry [..., width]");
  return dense(x);
}

// Runs a cell of fastwm/cells.h on contiguous copies of its inputs, and returns its outputs.
template <typename Cell, auto kernel, size_t tensors>
auto run_cell(const Tensor* const (&in)[tensors], int64_t blocks = 1, double bias = 0, bool ijfo = false) {
  static_assert(tensors == std::size(Cell::in));
  const Tensor *gates = nullptr, *carry = nullptr;
  for (size_t t = 0; t < tensors; ++t) (Cell::in[t].stored == Stored::gate ? gates : carry) = in[t];
  check_carry(*carry, *gates);
  const int64_t width = carry->size(carry->dim() - 1);
  STD_TORCH_CHECK(blocks > 0 && width % blocks == 0, "fastwm: the carry must divide into the blocks");

  Cells p{dtype_of(*gates), dtype_of(*carry), width ? carry->numel() / width * blocks : 0, width / blocks, {}, {},
          bias, ijfo};
  std::array<std::optional<Tensor>, tensors> x;
  for (size_t t = 0; t < tensors; ++t) {
    const ScalarType dtype = (Cell::in[t].stored == Stored::gate ? gates : carry)->scalar_type();
    x[t] = dense_beside(*in[t], *carry, Cell::in[t].parts, dtype);
    p.in[t] = x[t]->const_data_ptr();
  }
  std::array<std::optional<Tensor>, std::size(Cell::out)> y;
  for (size_t o = 0; o < y.size(); ++o) {
    size_t like = 0;  // every output looks like some input
    while (Cell::in[like].stored != Cell::out[o].stored || Cell::in[like].parts != Cell::out[o].parts) ++like;
    y[o] = empty_dense(*x[like]);
    p.out[o] = y[o]->mutable_data_ptr();
  }
  if (p.rows > 0) kernel(p, carry->get_device_index());
  return y;
}

template <auto kernel>
Tensor gru_gates(const Tensor& input, const Tensor& hidden, const Tensor& h) {
  return *run_cell<Gru, kernel>({&input, &hidden, &h})[0];
}

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor> gru_gates_backward(const Tensor& grad, const Tensor& input,
                                                      const Tensor& hidden, const Tensor& h) {
  const auto d = run_cell<GruBackward, kernel>({&grad, &input, &hidden, &h});
  return {*d[0], *d[1], *d[2]};
}

template <auto kernel>
Tensor block_gru_gates(const Tensor& gates, const Tensor& h, int64_t blocks, double update_bias) {
  return *run_cell<BlockGru, kernel>({&gates, &h}, blocks, update_bias)[0];
}

template <auto kernel>
std::tuple<Tensor, Tensor> block_gru_gates_backward(const Tensor& grad, const Tensor& gates, const Tensor& h,
                                                    int64_t blocks, double update_bias) {
  const auto d = run_cell<BlockGruBackward, kernel>({&grad, &gates, &h}, blocks, update_bias);
  return {*d[0], *d[1]};
}

template <auto kernel>
std::tuple<Tensor, Tensor> planet_gru_reset(const Tensor& gates, const Tensor& h) {
  const auto y = run_cell<PlanetReset, kernel>({&gates, &h});
  return {*y[0], *y[1]};
}

template <auto kernel>
std::tuple<Tensor, Tensor> planet_gru_reset_backward(const Tensor& grad_reset_h, const Tensor& grad_update,
                                                     const Tensor& gates, const Tensor& h) {
  const auto d = run_cell<PlanetResetBackward, kernel>({&grad_reset_h, &grad_update, &gates, &h});
  return {*d[0], *d[1]};
}

template <auto kernel>
Tensor planet_gru_update(const Tensor& update, const Tensor& cand, const Tensor& h) {
  return *run_cell<PlanetUpdate, kernel>({&update, &cand, &h})[0];
}

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor> planet_gru_update_backward(const Tensor& grad, const Tensor& update,
                                                              const Tensor& cand, const Tensor& h) {
  const auto d = run_cell<PlanetUpdateBackward, kernel>({&grad, &update, &cand, &h});
  return {*d[0], *d[1], *d[2]};
}

template <auto kernel>
std::tuple<Tensor, Tensor> lstm_gates(const Tensor& input, const Tensor& hidden, const Tensor& c,
                                      double forget_bias, bool ijfo) {
  const auto y = run_cell<Lstm<false>, kernel>({&input, &hidden, &c}, 1, forget_bias, ijfo);
  return {*y[0], *y[1]};
}

template <auto kernel>
std::tuple<Tensor, Tensor> lstm_gates_backward(const Tensor& grad_h, const Tensor& grad_c, const Tensor& input,
                                               const Tensor& hidden, const Tensor& c, double forget_bias,
                                               bool ijfo) {
  const auto d = run_cell<LstmBackward<false>, kernel>({&grad_h, &grad_c, &input, &hidden, &c}, 1, forget_bias, ijfo);
  return {*d[0], *d[1]};
}

// ------------------------------------------------------------------------- with LayerNorm in front of the gates

// Uninitialised, in the type that the carry is computed in.
inline Tensor empty_accumulator(const std::vector<int64_t>& sizes, const Tensor& carry) {
  const bool is_double = carry.scalar_type() == ScalarType::Double;
  return torch::stable::new_empty(carry, sizes, is_double ? ScalarType::Double : ScalarType::Float);
}

inline Tensor dense_vector(const Tensor& x, const Tensor& carry, int64_t size) {
  STD_TORCH_CHECK(x.dim() == 1 && x.size(0) == size && x.scalar_type() == carry.scalar_type() &&
                      x.device() == carry.device(),
                  "fastwm: weight and bias must be [3 * width] of the carry's dtype and device");
  return dense(x);
}

template <auto kernel>
std::tuple<Tensor, Tensor> layernorm_gru_gates(const Tensor& gates_, const Tensor& weight_, const Tensor& bias_,
                                               const Tensor& h_, double eps, double update_bias) {
  check_carry(h_, gates_);
  const int64_t width = h_.size(h_.dim() - 1);
  const Tensor h = dense(h_), gates = dense_beside(gates_, h, 3, gates_.scalar_type());
  const Tensor weight = dense_vector(weight_, h, 3 * width), bias = dense_vector(bias_, h, 3 * width);
  STD_TORCH_CHECK(width > 0, "fastwm: a carry of width 0 has no norm");
  std::vector<int64_t> sizes(h.sizes().data(), h.sizes().data() + h.dim());
  sizes.back() = 2;
  Tensor out = empty_dense(h), stats = empty_accumulator(sizes, h);
  const LayerNormGru p{dtype_of(gates),
                       dtype_of(h),
                       h.numel() / width,
                       width,
                       gates.const_data_ptr(),
                       weight.const_data_ptr(),
                       bias.const_data_ptr(),
                       h.const_data_ptr(),
                       eps,
                       update_bias,
                       out.mutable_data_ptr(),
                       stats.mutable_data_ptr()};
  if (p.rows > 0) kernel(p, h.get_device_index());
  return {out, stats};
}

// The weights' gradients are summed in chunks of rows, as many as the shape asks for, whatever the threads.
inline int64_t row_chunks(int64_t rows, bool on_cpu) {
  const int64_t wanted = (rows + (on_cpu ? 15 : 3)) / (on_cpu ? 16 : 4), most = on_cpu ? 64 : 132;
  return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor, Tensor> layernorm_gru_gates_backward(
    const Tensor& grad_, const Tensor& gates_, const Tensor& weight_, const Tensor& bias_, const Tensor& h_,
    const Tensor& stats_, double update_bias) {
  check_carry(h_, gates_);
  const int64_t width = h_.size(h_.dim() - 1);
  const Tensor h = dense(h_), gates = dense_beside(gates_, h, 3, gates_.scalar_type());
  const Tensor grad = dense_like(grad_, h, "grad");
  const Tensor weight = dense_vector(weight_, h, 3 * width), bias = dense_vector(bias_, h, 3 * width);
  const Tensor stats = dense(stats_);
  const ScalarType stats_type = h.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(width > 0 && stats.numel() * width == 2 * h.numel() && stats.scalar_type() == stats_type &&
                      stats.device() == h.device(),
                  "fastwm: stats must be those of the forward");
  const int64_t rows = h.numel() / width;
  const int64_t chunks = row_chunks(rows, h.is_cpu());
  Tensor d_gates = empty_dense(gates), d_h = empty_dense(h);
  Tensor d_weight = empty_dense(weight), d_bias = empty_dense(bias);
  Tensor scratch = empty_accumulator({chunks, 3, 3 * width}, h);
  const LayerNormGruBackward p{dtype_of(gates),
                               dtype_of(h),
                               rows,
                               width,
                               grad.const_data_ptr(),
                               gates.const_data_ptr(),
                               weight.const_data_ptr(),
                               bias.const_data_ptr(),
                               h.const_data_ptr(),
                               stats.const_data_ptr(),
                               update_bias,
                               d_gates.mutable_data_ptr(),
                               d_weight.mutable_data_ptr(),
                               d_bias.mutable_data_ptr(),
                               d_h.mutable_data_ptr(),
                               chunks,
                               scratch.mutable_data_ptr()};
  kernel(p, h.get_device_index());
  return {d_gates, d_weight, d_bias, d_h};
}

}  // namespace fastwm
