// The host side of the recurrent cells' whole sequences: checks, outputs, and the weights as the kernels read them.
#pragma once

#include <initializer_list>

#include "fastwm/scans.h"
#include "tensor.h"

namespace fastwm {

// What forward and backward check alike: the arguments, contiguous, but the weight, which is read by its strides.
struct ScanArguments {
  ScanCell cell;
  Tensor h;
  std::optional<Tensor> c, scale, bias, is_first;
  ScanSizes n;
  ScanWeights w;

  ScanArguments(int64_t T, const Tensor& h_, const std::optional<Tensor>& c_, const Tensor& weight,
                const std::optional<Tensor>& scale_, const std::optional<Tensor>& bias_,
                const std::optional<Tensor>& is_first_, int64_t cell_, double eps, double gate_bias, bool ijfo)
      : cell(static_cast<ScanCell>(cell_)), h(dense(h_)) {
    STD_TORCH_CHECK(0 <= cell_ && cell_ <= 3 && T > 0 && h.dim() == 2 && h.size(1) > 0 && dtype_of(h) != Dtype::bf16,
                    "fastwm: cell_scan: expected a known cell, T >= 1, and h [B, D] of float32 or float64, D >= 1");
    n = {T, h.size(0), h.size(1)};
    const bool norm = cell == ScanCell::layernorm_gru;
    STD_TORCH_CHECK(c_.has_value() == (cell == ScanCell::lstm) && scale_.has_value() == norm &&
                        (cell == ScanCell::gru || bias_.has_value() == norm),
                    "fastwm: cell_scan: c is for an LSTM, scale and bias for a norm, bias for a GRU");
    const int64_t wide = scan_gates(cell) * n.D;
    c = shaped(c_, {n.B, n.D}, "c");
    scale = shaped(scale_, {wide}, "scale");
    bias = shaped(bias_, {norm ? wide : n.D}, "bias");
    if (is_first_) is_first = dense_as(*is_first_, {n.T, n.B}, ScalarType::Bool, h, "is_first");
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == wide && weight.size(1) == n.D &&
                        weight.scalar_type() == h.scalar_type() && weight.device() == h.device(),
                    "fastwm: cell_scan: weight must be [gates * D, D] of h's dtype and device");
    const int64_t out = weight.stride(0), in = weight.stride(1);
    w = {{weight.const_data_ptr(), n.D * out, in, out}, data_or_null(scale), data_or_null(bias), eps, gate_bias, ijfo};
  }

  std::optional<Tensor> shaped(const std::optional<Tensor>& x, std::initializer_list<int64_t> shape,
                               const char* name) const {
    if (!x) return std::nullopt;
    return dense_as(*x, {shape.begin(), shape.size()}, h.scalar_type(), h, name);
  }
  Tensor empty(std::initializer_list<int64_t> shape) const {
    return empty_dense(h, {shape.begin(), shape.size()}, h.scalar_type());
  }
  Tensor empty_like(const std::optional<Tensor>& x) const { return x ? empty_dense(*x) : empty({0}); }
  const bool* resets() const { return static_cast<const bool*>(data_or_null(is_first)); }
};

template <auto kernel, auto scratch_bytes = no_scratch<Scan>>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cell_scan(
    const Tensor& input_, const Tensor& h, const std::optional<Tensor>& c, const Tensor& weight,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& bias, const std::optional<Tensor>& is_first,
    int64_t cell, double eps, double gate_bias, bool ijfo, bool save, bool bf16_products) {
  STD_TORCH_CHECK(input_.dim() == 3, "fastwm: cell_scan: expected input [T, B, gates * D]");
  const ScanArguments a(input_.size(0), h, c, weight, scale, bias, is_first, cell, eps, gate_bias, ijfo);
  const auto [T, B, D] = a.n;
  const Tensor input = *a.shaped(input_, {T, B, scan_gates(a.cell) * D}, "input");
  const int64_t kept = save ? T : 0;
  Tensor output = a.empty({T, B, D}), h_T = a.empty({B, D}), c_T = a.empty({a.c ? B : 0, D});
  Tensor cells = a.empty({a.c ? kept : 0, B, D}), saved = a.empty({kept, B, scan_saved(a.cell) * D});
  Scan p{a.cell,
               dtype_of(a.h),
               bf16_products,
               a.n,
               a.w,
               a.resets(),
               input.const_data_ptr(),
               a.h.const_data_ptr(),
               data_or_null(a.c),
               output.mutable_data_ptr(),
               h_T.mutable_data_ptr(),
               c_T.mutable_data_ptr(),
               save ? cells.mutable_data_ptr() : nullptr,
               save ? saved.mutable_data_ptr() : nullptr,
               nullptr};
  Tensor scratch = scratch_memory(a.h, scratch_bytes(p));
  p.scratch = scratch.mutable_data_ptr();
  kernel(p, a.h.get_device_index());
  return {output, h_T, c_T, cells, saved};
}

template <auto kernel, auto scratch_bytes = no_scratch<ScanBackward>>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> cell_scan_backward(
    const std::optional<Tensor>& g_output_, const std::optional<Tensor>& g_h_, const std::optional<Tensor>& g_c_,
    const Tensor& output_, const Tensor& cells_, const Tensor& saved_, const Tensor& h, const std::optional<Tensor>& c,
    const Tensor& weight, const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& is_first, int64_t cell, double eps, double gate_bias, bool ijfo, bool bf16_products) {
  STD_TORCH_CHECK(output_.dim() == 3, "fastwm: cell_scan: expected output [T, B, D]");
  const ScanArguments a(output_.size(0), h, c, weight, scale, bias, is_first, cell, eps, gate_bias, ijfo);
  const auto [T, B, D] = a.n;
  const Tensor output = *a.shaped(output_, {T, B, D}, "output");
  const Tensor cells = *a.shaped(cells_, {a.c ? T : 0, B, D}, "cells");
  const Tensor saved = *a.shaped(saved_, {T, B, scan_saved(a.cell) * D}, "saved");
  const auto g_output = a.shaped(g_output_, {T, B, D}, "g_output"), g_h = a.shaped(g_h_, {B, D}, "g_h");
  const auto g_c = a.shaped(g_c_, {B, D}, "g_c");
  Tensor d_input = a.empty({T, B, scan_gates(a.cell) * D}), d_h = empty_dense(a.h), d_c = a.empty_like(a.c);
  Tensor d_weight = a.empty({scan_gates(a.cell) * D, D}), d_scale = a.empty_like(a.scale);
  Tensor d_bias = a.empty_like(a.bias);
  ScanBackward p{a.cell,
                       dtype_of(a.h),
                       bf16_products,
                       a.n,
                       a.w,
                       a.resets(),
                       a.h.const_data_ptr(),
                       data_or_null(a.c),
                       output.const_data_ptr(),
                       cells.const_data_ptr(),
                       saved.const_data_ptr(),
                       data_or_null(g_output),
                       data_or_null(g_h),
                       data_or_null(g_c),
                       d_input.mutable_data_ptr(),
                       d_h.mutable_data_ptr(),
                       d_c.mutable_data_ptr(),
                       d_weight.mutable_data_ptr(),
                       d_scale.mutable_data_ptr(),
                       d_bias.mutable_data_ptr(),
                       nullptr};
  Tensor scratch = scratch_memory(a.h, scratch_bytes(p));
  p.scratch = scratch.mutable_data_ptr();
  kernel(p, a.h.get_device_index());
  return {d_input, d_h, d_c, d_weight, d_scale, d_bias};
}

}  // namespace fastwm
