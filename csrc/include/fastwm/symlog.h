// symlog, symexp and their backward passes: parameters and maths, shared by C++ and CUDA.
#pragma once

#include "fastwm/dtype.h"
#include "fastwm/vecmath.h"

namespace fastwm {

// out = f(x), or for a backward f(x, grad); all [count].
struct Symlog {
  Dtype dtype;
  int64_t count;
  const void *x, *grad;
  void* out;
};

template <typename A>
FASTWM_FN A magnitude(A x) {
  return x < 0 ? -x : x;
}

// y >= 0 with the sign of x.
template <typename A>
FASTWM_FN A with_sign_of(A x, A y) {
  return x < 0 ? -y : y;
}

template <typename A>
FASTWM_FN A symlog(A x) {
  return with_sign_of(x, vlog1p(magnitude(x)));
}

template <typename A>
FASTWM_FN A symexp(A x) {
  return with_sign_of(x, vexpm1(magnitude(x)));
}

template <typename A>
FASTWM_FN A symlog_backward(A x, A grad) {
  return grad / (1 + magnitude(x));
}

template <typename A>
FASTWM_FN A symexp_backward(A y, A grad) {
  return grad * (1 + magnitude(y));
}  // y is the output: e^|x| = 1 + |y|

}  // namespace fastwm
