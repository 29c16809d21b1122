// The functions of vecmath.h over an array, in place. tests/test_vecmath.py compiles this file once for each instruction
// set level, with -DFASTWM_ISA=<level>, and calls `vecmath_<level>`.
#include "fastwm/vecmath.h"

using namespace fastwm;

namespace {

template <typename A, typename F>
void apply(A* x, int64_t count, F f) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) x[i] = f(x[i]);
}

template <typename A>
void run(int function, int64_t count, A* x) {
  switch (function) {
    case 0: return apply(x, count, [](A a) { return vexp(a); });
    case 1: return apply(x, count, [](A a) { return vexp_normal(a); });
    case 2: return apply(x, count, [](A a) { return vexpm1(a); });
    case 3: return apply(x, count, [](A a) { return vlog(a); });
    case 4: return apply(x, count, [](A a) { return vlog1p(a); });
    case 5: return apply(x, count, [](A a) { return vtanh(a); });
    case 6: return apply(x, count, [](A a) { return vsigmoid(a); });
    case 7: return apply(x, count, [](A a) { return vsilu(a); });
    case 8: return apply(x, count, [](A a) { return velu(a); });
    case 9: return apply(x, count, [](A a) { return vsoftplus(a); });
  }
}

}  // namespace

#define VECMATH_NAME(isa) vecmath_##isa
#define VECMATH(isa) VECMATH_NAME(isa)

extern "C" __attribute__((visibility("default"))) void VECMATH(FASTWM_ISA)(int function, bool doubles, int64_t count,
                                                                            void* x) {
  doubles ? run(function, count, static_cast<double*>(x)) : run(function, count, static_cast<float*>(x));
}
