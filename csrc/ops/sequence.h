// What the host side of operators over whole sequences shares.
#pragma once

#include <initializer_list>

#include "fastwm/weight.h"
#include "tensor.h"

namespace fastwm {

// x, contiguous, of this shape and of like's dtype and device.
inline Tensor dense_shaped(const Tensor& x, std::initializer_list<int64_t> shape, const Tensor& like,
                           const char* name) {
  bool same = x.dim() == static_cast<int64_t>(shape.size()) && x.scalar_type() == like.scalar_type() &&
              x.device() == like.device();
  int64_t d = 0;
  for (int64_t size : shape) same = same && x.size(d++) == size;
  STD_TORCH_CHECK(same, "fastwm: wrong shape, dtype or device of ", name);
  return dense(x);
}

inline Tensor empty_shaped(const Tensor& like, std::initializer_list<int64_t> shape,
                           std::optional<ScalarType> dtype = std::nullopt) {
  return empty_dense(like, {shape.begin(), shape.size()}, dtype.value_or(like.scalar_type()));
}

// A weight of shape [n0, n1] or [n0, n1, n2], of any strides, as a product x W reads it.
inline Weight weight_of(const Tensor& w, std::initializer_list<int64_t> shape, const Tensor& like, const char* name) {
  bool same = w.dim() == static_cast<int64_t>(shape.size()) && w.scalar_type() == like.scalar_type() &&
              w.device() == like.device();
  int64_t d = 0;
  for (int64_t size : shape) same = same && w.size(d++) == size;
  STD_TORCH_CHECK(same, "fastwm: wrong shape, dtype or device of ", name);
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
