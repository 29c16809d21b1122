// What every operator's host side needs of a tensor. Checks here only keep a direct torch.ops call from
// crashing; the messages for users are in fastwm/ops.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "fastwm/dtype.h"

namespace fastwm {

using torch::stable::Tensor;
using torch::headeronly::ScalarType;

inline Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::Double: return Dtype::f64;
    case ScalarType::BFloat16: return Dtype::bf16;
    default: STD_TORCH_CHECK(false, "fastwm: expected a float32, float64 or bfloat16 tensor");
  }
}

inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// x, contiguous, once it is known to have the shape, dtype and device of `like`.
inline Tensor dense_like(const Tensor& x, const Tensor& like, const char* name) {
  bool same = x.dim() == like.dim() && x.scalar_type() == like.scalar_type() && x.device() == like.device();
  for (int64_t d = 0; same && d < x.dim(); ++d) same = x.size(d) == like.size(d);
  STD_TORCH_CHECK(same, "fastwm: ", name, " must have the same shape, dtype and device as the other tensors");
  return dense(x);
}

inline std::optional<Tensor> dense_like(const std::optional<Tensor>& x, const Tensor& like,
                                        const char* name) {
  if (!x) return std::nullopt;
  return dense_like(*x, like, name);
}

inline const void* data_or_null(const std::optional<Tensor>& x) { return x ? x->const_data_ptr() : nullptr; }

// Uninitialised and contiguous, on the device of `like`. The C function spares the name look-up and boxing of
// torch::stable::empty, about a microsecond a call.
inline Tensor empty_of(torch::headeronly::IntHeaderOnlyArrayRef sizes, int32_t dtype, const Tensor& like) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = strides.size(); d-- > 0; stride *= sizes[d] > 0 ? sizes[d] : 1) strides[d] = stride;
  int32_t device_type = 0, device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device));
  AtenTensorHandle out = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  dtype, device_type, device, &out));
  return Tensor(out);
}

// Uninitialised and contiguous, of the dtype and the first `dim` sizes of `like`, whatever its strides.
inline Tensor empty_dense(const Tensor& like, int64_t dim) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return empty_of({like.sizes().data(), static_cast<size_t>(dim)}, dtype, like);
}

inline Tensor empty_dense(const Tensor& like) { return empty_dense(like, like.dim()); }

}  // namespace fastwm
