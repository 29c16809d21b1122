// What the host side of operators over whole sequences shares.
#pragma once

#include <initializer_list>

#include "fastwm/weight.h"
#include "tensor.h"

namespace fastwm {

// x, contiguous, of this shape and of like's dtype and device.
inline Tensor dense_shaped(const Tensor& x, std::initializer_list<int64_t> shape, const Tensor& like,
                           const char* name) {
  return dense_as(x, {shape.begin(), shape.size()}, like.scalar_type(), like, name);
}

inline Tensor empty_shaped(const Tensor& like, std::initializer_list<int64_t> shape,
                           std::optional<ScalarType> dtype = std::nullopt) {
  return empty_dense(like, {shape.begin(), shape.size()}, dtype.value_or(like.scalar_type()));
}

// A weight of shape [n0, n1] or [n0, n1, n2], of any strides, as a product x W reads it.
inline Weight weight_of(const Tensor& w, std::initializer_list<int64_t> shape, const Tensor& like, const char* name) {
  check_like(w, {shape.begin(), shape.size()}, like.scalar_type(), like, name);
  check_sizes(w.sizes());
  if (w.dim() == 3) return {w.const_data_ptr(), w.stride(0), w.stride(1), w.stride(2)};
  return {w.const_data_ptr(), 0, w.stride(1), w.stride(0)};  // Linear holds [out, in]
}

// is_first, contiguous, once it is known to be bool [T, B].
inline Tensor dense_first(const Tensor& x, int64_t T, int64_t B, const Tensor& like) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Bool && x.dim() == 2 && x.size(0) == T && x.size(1) == B &&
                      x.device() == like.device(),
                  "fastwm: is_first must be bool [T, B]");
  return dense(x);
}

}  // namespace fastwm
