#include "fastwm/vecmath.h"
#include "fastwm/vecmath_check.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename A, typename F>
void apply(const VecmathCheck& p, F f) {
  A* x = static_cast<A*>(p.x);
#pragma omp simd
  for (int64_t i = 0; i < p.count; ++i) x[i] = f(x[i]);
}

template <typename A>
void run(const VecmathCheck& p) {
  switch (p.function) {
    case Function::exp: return apply<A>(p, [](A x) { return vexp(x); });
    case Function::exp_normal: return apply<A>(p, [](A x) { return vexp_normal(x); });
    case Function::expm1: return apply<A>(p, [](A x) { return vexpm1(x); });
    case Function::log: return apply<A>(p, [](A x) { return vlog(x); });
    case Function::log1p: return apply<A>(p, [](A x) { return vlog1p(x); });
    case Function::tanh: return apply<A>(p, [](A x) { return vtanh(x); });
    case Function::sigmoid: return apply<A>(p, [](A x) { return vsigmoid(x); });
    case Function::silu: return apply<A>(p, [](A x) { return vsilu(x); });
    case Function::softplus: return apply<A>(p, [](A x) { return vsoftplus(x); });
    case Function::elu: return apply<A>(p, [](A x) { return velu(x); });
  }
}

}  // namespace

void vecmath_kernel(const VecmathCheck& p) { p.dtype == Dtype::f64 ? run<double>(p) : run<float>(p); }

}  // namespace fastwm::FASTWM_ISA
