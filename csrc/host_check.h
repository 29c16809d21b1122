// What generated hosts need: sizes and shapes on the stack, and checks whose messages name the argument, what was
// wanted and what was given.
#pragma once

#include <initializer_list>
#include <string>

#include "fastwm/weight.h"
#include "tensor.h"

namespace fastwm {

constexpr int64_t kMostDims = 64;
constexpr int64_t kAny = kMostDims;  // dimensions that an argument may have beyond those it must have

// The sizes of some neighbouring dimensions of a tensor; as a number their product.
class Dims {
 public:
  Dims(const Tensor& x, int64_t before, int64_t after) : sizes(x.sizes().slice(before, x.dim() - before - after)) {
    for (const int64_t size : sizes) product_ *= size;
  }
  operator int64_t() const { return product_; }

  const torch::headeronly::IntHeaderOnlyArrayRef sizes;

 private:
  int64_t product_ = 1;
};

// A dimension that a shape may lack: it does where the size is 0.
struct Maybe {
  int64_t size;
};

class Shape {
 public:
  template <typename... Parts>
  explicit Shape(const Parts&... parts) {
    (add(parts), ...);
  }
  operator torch::headeronly::IntHeaderOnlyArrayRef() const { return {sizes_, static_cast<size_t>(dims_)}; }

 private:
  void add(int64_t size) { sizes_[dims_++] = size; }
  void add(Maybe part) {
    if (part.size > 0) add(part.size);
  }
  void add(const Dims& part) {
    for (const int64_t size : part.sizes) add(size);
  }

  int64_t sizes_[kMostDims + 8];
  int64_t dims_ = 0;
};

inline std::string dtype_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Bool: return "bool";
    default: return "another dtype";
  }
}

inline std::string device_text(const Tensor& x) {
  if (x.is_cpu()) return "cpu";
  return x.is_cuda() ? "cuda:" + std::to_string(x.get_device_index()) : "another device";
}

inline std::string tensor_text(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype, const Tensor& on) {
  return sizes_text(sizes) + " " + dtype_text(dtype) + " on " + device_text(on);
}

inline Dtype dtype_of(ScalarType dtype) {
  return dtype == ScalarType::Double ? Dtype::f64 : dtype == ScalarType::BFloat16 ? Dtype::bf16 : Dtype::f32;
}

// The dtype that kernels compute in, as accumulate_t has it.
inline ScalarType accumulate_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool is_float32(ScalarType dtype) { return dtype == ScalarType::Float; }
inline bool is_bfloat16(const Tensor& x) { return x.scalar_type() == ScalarType::BFloat16; }

inline bool gates_fit(ScalarType gate, ScalarType carry) {
  return gate == carry || (gate == ScalarType::BFloat16 && carry == ScalarType::Float);
}

struct Host {
  const char* op;
  const Tensor& like;  // all tensors are on its device

  // Raises unless x has `fixed` dimensions, or up to `more` more. `text` is the argument with its declared shape.
  void rank(const Tensor& x, const char* text, int64_t fixed, int64_t more) const {
    STD_TORCH_CHECK(fixed <= x.dim() && x.dim() <= (more < kAny ? fixed + more : kMostDims), "fastwm: ", op,
                    ": expected ", text, ", got ", sizes_text(x.sizes()));
    if (x.numel() == 0 || x.numel() > kMostElements) check_sizes(x.sizes());
  }

  ScalarType dtype(const Tensor& x, const char* name, std::initializer_list<ScalarType> allowed) const {
    const ScalarType dtype = x.scalar_type();
    for (const ScalarType each : allowed)
      if (each == dtype) return dtype;
    std::string wanted;
    for (const ScalarType each : allowed) wanted += (wanted.empty() ? "" : " or ") + dtype_text(each);
    STD_TORCH_CHECK(false, "fastwm: ", op, ": expected ", name, " of ", wanted, ", got ", dtype_text(dtype));
  }

  void enumerator(int64_t value, int64_t count, const char* name) const {
    STD_TORCH_CHECK(0 <= value && value < count, "fastwm: ", op, ": no such ", name, ": ", value);
  }

  void lengths(const char* name, std::initializer_list<size_t> sizes) const {
    for (const size_t size : sizes)
      STD_TORCH_CHECK(size == *sizes.begin(), "fastwm: ", op, ": expected lists of one length for ", name);
  }

  void check(const Tensor& x, const char* text, torch::headeronly::IntHeaderOnlyArrayRef shape,
             ScalarType dtype) const {
    bool fits = x.dim() == static_cast<int64_t>(shape.size()) && x.scalar_type() == dtype &&
                (&x == &like || x.device() == like.device());
    for (int64_t d = 0; fits && d < x.dim(); ++d) fits = x.size(d) == shape[d];
    STD_TORCH_CHECK(fits, "fastwm: ", op, ": expected ", text, " = ", tensor_text(shape, dtype, like), ", got ",
                    tensor_text(x.sizes(), x.scalar_type(), x));
  }

  Tensor dense(const Tensor& x, const char* text, const Shape& shape, ScalarType dtype) const {
    check(x, text, shape, dtype);
    return fastwm::dense(x);
  }
  std::optional<Tensor> dense(const std::optional<Tensor>& x, const char* text, const Shape& shape,
                              ScalarType dtype) const {
    if (!x) return std::nullopt;
    return dense(*x, text, shape, dtype);
  }

  // A weight of any strides as a product x W reads it: [..., out, in] as torch.nn.Linear holds it, or [G, in, out].
  Weight linear(const Tensor& x, const char* text, const Shape& shape, ScalarType dtype) const {
    check(x, text, shape, dtype);
    check_sizes(x.sizes());
    const int64_t n = x.dim();
    return {x.const_data_ptr(), n > 2 ? x.stride(0) : 0, x.stride(n - 1), x.stride(n - 2)};
  }
  Weight blocks(const Tensor& x, const char* text, const Shape& shape, ScalarType dtype) const {
    check(x, text, shape, dtype);
    check_sizes(x.sizes());
    return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
  }

  Tensor empty(const Shape& shape, ScalarType dtype) const { return empty_dense(like, shape, dtype); }
  Tensor zeros(torch::headeronly::IntHeaderOnlyArrayRef shape, ScalarType dtype) const {
    return torch::stable::new_zeros(like, shape, dtype);
  }
};

}  // namespace fastwm
