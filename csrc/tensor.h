// What every operator's host side needs of a tensor.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "fastwm/dtype.h"
#include "fastwm/memory.h"

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

// Tensors without elements may have sizes of any product. This bounds it, empty dimensions aside, so that hosts and
// kernels may multiply sizes without overflow.
constexpr int64_t kMostElements = int64_t{1} << 48;

template <typename Sizes>
void check_sizes(const Sizes& sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(size <= kMostElements / product, "fastwm: a tensor with sizes beyond 2^48 elements");
    product *= size > 0 ? size : 1;
  }
}

inline Tensor dense(const Tensor& x) {
  if (x.numel() == 0) check_sizes(x.sizes());
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

inline std::string sizes_text(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::string text = "[";
  for (size_t d = 0; d < sizes.size(); ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
  return text + "]";
}

// Kernels know by a null pointer what is absent. Nobody reads an empty tensor, whose own pointer may be null.
inline const void* data_or_null(const std::optional<Tensor>& x) {
  static const double nothing = 0;
  if (!x) return nullptr;
  const void* data = x->const_data_ptr();
  return data ? data : &nothing;
}

// Uninitialised and contiguous, on the device of `like`. The C function spares the name look-up and boxing of
// torch::stable::empty, about a microsecond a call.
inline Tensor empty_dense(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  check_sizes(sizes);
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= sizes[d] > 0 ? sizes[d] : 1) strides[d] = stride;
  int32_t device_type = 0, device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device));
  AtenTensorHandle out = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(),
                                                  static_cast<int32_t>(dtype), device_type, device, &out));
  Tensor tensor(out);
  if (device_type == aoti_torch_device_type_cpu())
    use_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * static_cast<int64_t>(tensor.element_size()));
  return tensor;
}

// What a kernel that allocates its own scratch memory asks the host for.
template <typename Params>
int64_t no_scratch(const Params&) {
  return 0;
}

}  // namespace fastwm
