// Runs a function of vecmath.h over an array, at the instruction set level in use: for its test.
#pragma once

#include "fastwm/dtype.h"
#include "fastwm/isa.h"

namespace fastwm {

enum class Function : int32_t { exp, expm1, log, log1p, tanh, sigmoid, silu, elu, exp_normal, softplus };

struct VecmathCheck {
  Dtype dtype;  // f32 or f64
  Function function;
  int64_t count;
  void* x;      // [count], replaced by the results
};

FASTWM_API void vecmath_check(const VecmathCheck&);

}  // namespace fastwm
