#include "fastwm/symlog.h"

#include "fastwm/parallel.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename T, typename F>
void each(const Symlog& p, F f) {
  const T* x = static_cast<const T*>(p.x);
  const T* grad = static_cast<const T*>(p.grad);
  T* out = static_cast<T*>(p.out);
#pragma omp parallel for simd schedule(static) if (parallel : p.count > kParallelElements)
  for (int64_t i = 0; i < p.count; ++i) narrow(f(widen(x[i]), grad ? widen(grad[i]) : widen(x[i])), out[i]);
}

template <typename F>
void for_dtype(const Symlog& p, F f) {
  switch (p.dtype) {
    case Dtype::f32: return each<float>(p, f);
    case Dtype::f64: return each<double>(p, f);
    case Dtype::bf16: return each<bf16>(p, f);
  }
}

}  // namespace

void symlog_kernel(const Symlog& p) {
  for_dtype(p, [](auto x, auto) { return symlog(x); });
}

void symexp_kernel(const Symlog& p) {
  for_dtype(p, [](auto x, auto) { return symexp(x); });
}

void symlog_backward_kernel(const Symlog& p) {
  for_dtype(p, [](auto x, auto grad) { return symlog_backward(x, grad); });
}

void symexp_backward_kernel(const Symlog& p) {
  for_dtype(p, [](auto y, auto grad) { return symexp_backward(y, grad); });
}

}  // namespace fastwm::FASTWM_ISA
