#include "fastwm/lambda_return.h"

#include "fastwm/parallel.h"

namespace fastwm::FASTWM_ISA {
namespace {

// A strip of the batch: its running value stays in L1 while time passes, and threads share the strips out.
constexpr int64_t kStrip = 512;

// Calls body(first column, number of columns) on every strip.
template <typename Body>
void for_each_strip(int64_t steps, int64_t columns, Body body) {
  const int64_t strips = (columns + kStrip - 1) / kStrip;
#pragma omp parallel for schedule(static) if (strips > 1 && steps * columns > kParallelElements)
  for (int64_t s = 0; s < strips; ++s) {
    const int64_t first = s * kStrip;
    body(first, first + kStrip < columns ? kStrip : columns - first);
  }
}

template <typename T, bool lam_varies>
void forward(const LambdaReturn& p) {
  using A = accumulate_t<T>;
  for_each_strip(p.steps, p.columns, [&p](int64_t first, int64_t width) {
    A next_ret[kStrip];  // R_{t+1}
    const T* last = static_cast<const T*>(p.next_value) + (p.steps - 1) * p.columns + first;
    for (int64_t b = 0; b < width; ++b) next_ret[b] = widen(last[b]);
    for (int64_t t = p.steps - 1; t >= 0; --t) {
      const int64_t at = t * p.columns + first;
      const T* reward = static_cast<const T*>(p.reward) + at;
      const T* cont = static_cast<const T*>(p.cont) + at;
      const T* next_value = static_cast<const T*>(p.next_value) + at;
      const T* lams = lam_varies ? static_cast<const T*>(p.lam) + at : nullptr;
      const A lam_value = static_cast<A>(p.lam_value);
      T* ret = static_cast<T*>(p.ret) + at;
#pragma omp simd
      for (int64_t b = 0; b < width; ++b) {
        const A lam = lam_varies ? widen(lams[b]) : lam_value;
        next_ret[b] = widen(reward[b]) + widen(cont[b]) * lambda_mix(lam, widen(next_value[b]), next_ret[b]);
        narrow(next_ret[b], ret[b]);
      }
    }
  });
}

// G_t = grad_t + cont_{t-1} * lam_{t-1} * G_{t-1}: the same scan, forwards in time.
template <typename T, bool lam_varies>
void backward(const LambdaReturnBackward& p) {
  using A = accumulate_t<T>;
  for_each_strip(p.steps, p.columns, [&p](int64_t first, int64_t width) {
    A carry[kStrip] = {};  // cont_{t-1} * lam_{t-1} * G_{t-1}
    for (int64_t t = 0; t < p.steps; ++t) {
      const int64_t at = t * p.columns + first;
      const bool is_last = t == p.steps - 1;
      const T* grad = static_cast<const T*>(p.grad) + at;
      const T* cont = static_cast<const T*>(p.cont) + at;
      const T* next_value = static_cast<const T*>(p.next_value) + at;
      const T* next_ret = is_last ? next_value : static_cast<const T*>(p.ret) + at + p.columns;
      const T* lams = lam_varies ? static_cast<const T*>(p.lam) + at : nullptr;
      const A lam_value = static_cast<A>(p.lam_value);
      T* d_reward = static_cast<T*>(p.d_reward) + at;
      T* d_cont = static_cast<T*>(p.d_cont) + at;
      T* d_next_value = static_cast<T*>(p.d_next_value) + at;
#pragma omp simd
      for (int64_t b = 0; b < width; ++b) {
        const A lam = lam_varies ? widen(lams[b]) : lam_value;
        const A g = widen(grad[b]) + carry[b];
        const A g_mix = g * widen(cont[b]);
        narrow(g, d_reward[b]);
        narrow(g * lambda_mix(lam, widen(next_value[b]), widen(next_ret[b])), d_cont[b]);
        narrow(g_mix * (is_last ? 1 : 1 - lam), d_next_value[b]);
        carry[b] = g_mix * lam;
      }
    }
  });
}

}  // namespace

void lambda_return_kernel(const LambdaReturn& p) {
  switch (p.dtype) {
    case Dtype::f32: return p.lam ? forward<float, true>(p) : forward<float, false>(p);
    case Dtype::f64: return p.lam ? forward<double, true>(p) : forward<double, false>(p);
    case Dtype::bf16: return p.lam ? forward<bf16, true>(p) : forward<bf16, false>(p);
  }
}

void lambda_return_backward_kernel(const LambdaReturnBackward& p) {
  switch (p.dtype) {
    case Dtype::f32: return p.lam ? backward<float, true>(p) : backward<float, false>(p);
    case Dtype::f64: return p.lam ? backward<double, true>(p) : backward<double, false>(p);
    case Dtype::bf16: return p.lam ? backward<bf16, true>(p) : backward<bf16, false>(p);
  }
}

}  // namespace fastwm::FASTWM_ISA
