// One thread a column: neighbouring threads read neighbouring columns, so every access is coalesced, and only
// the running value is a dependent chain; the loads of later steps are issued ahead of it.
#include "common.cuh"

#include "fastwm/lambda_return.h"

namespace fastwm::cuda {
namespace {

template <typename T>
__device__ __forceinline__ accumulate_t<T> load(const void* array, int64_t at) {
  return widen(static_cast<const T*>(array)[at]);
}

template <typename T>
__device__ __forceinline__ void store(accumulate_t<T> x, void* array, int64_t at) {
  narrow(x, static_cast<T*>(array)[at]);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) forward(LambdaReturn p) {
  using A = accumulate_t<T>;
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= p.columns) return;
  A next_ret = load<T>(p.next_value, (p.steps - 1) * p.columns + column);  // R_{t+1}
#pragma unroll 4
  for (int64_t t = p.steps - 1; t >= 0; --t) {
    const int64_t at = t * p.columns + column;
    const A lam = p.lam ? load<T>(p.lam, at) : static_cast<A>(p.lam_value);
    const A mix = lambda_mix(lam, load<T>(p.next_value, at), next_ret);
    next_ret = load<T>(p.reward, at) + load<T>(p.cont, at) * mix;
    store<T>(next_ret, p.ret, at);
  }
}

// G_t = grad_t + cont_{t-1} * lam_{t-1} * G_{t-1}: the same scan, forwards in time.
template <typename T>
__global__ void __launch_bounds__(kThreads) backward(LambdaReturnBackward p) {
  using A = accumulate_t<T>;
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= p.columns) return;
  A carry = 0;  // cont_{t-1} * lam_{t-1} * G_{t-1}
#pragma unroll 4
  for (int64_t t = 0; t < p.steps; ++t) {
    const int64_t at = t * p.columns + column;
    const bool is_last = t == p.steps - 1;
    const A lam = p.lam ? load<T>(p.lam, at) : static_cast<A>(p.lam_value);
    const A next_value = load<T>(p.next_value, at);
    const A next_ret = is_last ? next_value : load<T>(p.ret, at + p.columns);
    const A g = load<T>(p.grad, at) + carry;
    const A g_mix = g * load<T>(p.cont, at);
    store<T>(g, p.d_reward, at);
    store<T>(g * lambda_mix(lam, next_value, next_ret), p.d_cont, at);
    store<T>(g_mix * (is_last ? 1 : 1 - lam), p.d_next_value, at);
    carry = g_mix * lam;
  }
}

}  // namespace

const char* lambda_return_kernel(const LambdaReturn& p, void* stream) {
  if (p.columns == 0) return nullptr;
  const auto on = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case Dtype::f32: forward<float><<<blocks_for(p.columns), kThreads, 0, on>>>(p); break;
    case Dtype::f64: forward<double><<<blocks_for(p.columns), kThreads, 0, on>>>(p); break;
    case Dtype::bf16: forward<bf16><<<blocks_for(p.columns), kThreads, 0, on>>>(p); break;
  }
  return launch_error();
}

const char* lambda_return_backward_kernel(const LambdaReturnBackward& p, void* stream) {
  if (p.columns == 0) return nullptr;
  const auto on = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case Dtype::f32: backward<float><<<blocks_for(p.columns), kThreads, 0, on>>>(p); break;
    case Dtype::f64: backward<double><<<blocks_for(p.columns), kThreads, 0, on>>>(p); break;
    case Dtype::bf16: backward<bf16><<<blocks_for(p.columns), kThreads, 0, on>>>(p); break;
  }
  return launch_error();
}

}  // namespace fastwm::cuda
