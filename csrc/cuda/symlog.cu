// One thread an element.
#include "common.cuh"

#include "fastwm/symlog.h"

namespace fastwm::cuda {
namespace {

enum class Function { symlog, symexp, symlog_backward, symexp_backward };

template <typename T, Function f>
__global__ void __launch_bounds__(kThreads) each(Symlog p) {
  using A = accumulate_t<T>;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.count) return;
  const A x = widen(static_cast<const T*>(p.x)[i]);
  A out;
  if constexpr (f == Function::symlog) out = symlog(x);
  else if constexpr (f == Function::symexp) out = symexp(x);
  else if constexpr (f == Function::symlog_backward) out = symlog_backward(x, widen(static_cast<const T*>(p.grad)[i]));
  else out = symexp_backward(x, widen(static_cast<const T*>(p.grad)[i]));
  narrow(out, static_cast<T*>(p.out)[i]);
}

template <Function f>
const char* launch(const Symlog& p, void* stream) {
  if (p.count == 0) return nullptr;
  const auto on = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case Dtype::f32: each<float, f><<<blocks_for(p.count), kThreads, 0, on>>>(p); break;
    case Dtype::f64: each<double, f><<<blocks_for(p.count), kThreads, 0, on>>>(p); break;
    case Dtype::bf16: each<bf16, f><<<blocks_for(p.count), kThreads, 0, on>>>(p); break;
  }
  return launch_error();
}

}  // namespace

const char* symlog_kernel(const Symlog& p, void* stream) { return launch<Function::symlog>(p, stream); }
const char* symexp_kernel(const Symlog& p, void* stream) { return launch<Function::symexp>(p, stream); }
const char* symlog_backward_kernel(const Symlog& p, void* stream) {
  return launch<Function::symlog_backward>(p, stream);
}
const char* symexp_backward_kernel(const Symlog& p, void* stream) {
  return launch<Function::symexp_backward>(p, stream);
}

}  // namespace fastwm::cuda
