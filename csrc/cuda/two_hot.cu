// One warp a row: 255 bins are eight a lane, read from main memory once.
#include "reduce.cuh"

#include "fastwm/two_hot.h"

namespace fastwm::cuda {
namespace {

constexpr int kWarp = 32;

// The row of this thread's warp, or `rows` and more past the end.
__device__ int64_t warp_row() { return (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp; }

template <typename T, typename A = accumulate_t<T>>
__device__ A row_max(const T* x, int64_t n, int lane) {
  A most = widen(x[0]);
  for (int64_t k = lane; k < n; k += kWarp) most = max(most, widen(x[k]));
  return group_reduce<kWarp>(most, Max{});
}

template <typename T>
__global__ void __launch_bounds__(kThreads) loss(TwoHotLoss p) {
  using A = accumulate_t<T>;
  const int64_t row = warp_row();
  if (row >= p.rows) return;  // with its whole warp
  const int lane = threadIdx.x % kWarp;
  const T* x = static_cast<const T*>(p.logits) + row * p.bins;
  const A most = row_max(x, p.bins, lane);
  A sum = 0;
  for (int64_t k = lane; k < p.bins; k += kWarp) sum += vexp_normal(widen(x[k]) - most);
  const A logsumexp = most + vlog(group_sum<kWarp>(sum));
  if (lane != 0) return;
  A loss = 0, undefined = 0;  // NaN where a target is
  for (int m = 0; m < kMaxTargets && target_of(p, m); ++m) {
    const A target = static_cast<const A*>(target_of(p, m))[row];
    const TwoHot<A> hot = two_hot(target, static_cast<const A*>(p.edges), p.bins);
    const A below = logsumexp - widen(x[hot.below]), above = logsumexp - widen(x[hot.above]);
    loss += static_cast<A>(share_of(p, m)) * (hot.weight == 0 ? below : (1 - hot.weight) * below + hot.weight * above);
    undefined += 0 * hot.weight;
  }
  static_cast<A*>(p.loss)[row] = loss;
  static_cast<A*>(p.logsumexp)[row] = logsumexp + undefined;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) loss_backward(TwoHotLossBackward p) {
  using A = accumulate_t<T>;
  const int64_t row = warp_row();
  if (row >= p.rows) return;
  const T* x = static_cast<const T*>(p.logits) + row * p.bins;
  T* d_x = static_cast<T*>(p.d_logits) + row * p.bins;
  const A grad = static_cast<const A*>(p.grad)[row];
  const A logsumexp = static_cast<const A*>(p.logsumexp)[row];
  const A all = static_cast<A>(1 + (p.second_target ? p.second_weight : 0));
  TwoHot<A> hot[kMaxTargets] = {};
#pragma unroll
  for (int m = 0; m < kMaxTargets; ++m)
    if (target_of(p, m))
      hot[m] = two_hot(static_cast<const A*>(target_of(p, m))[row], static_cast<const A*>(p.edges), p.bins);
  for (int64_t k = threadIdx.x % kWarp; k < p.bins; k += kWarp) {
    A d = all * vexp_normal(widen(x[k]) - logsumexp);
#pragma unroll
    for (int m = 0; m < kMaxTargets; ++m) {
      const A share = target_of(p, m) ? static_cast<A>(share_of(p, m)) : 0;
      if (k == hot[m].below) d -= share * (1 - hot[m].weight);
      if (k == hot[m].above) d -= share * hot[m].weight;
    }
    narrow(grad * d, d_x[k]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) mean(TwoHotMean p) {
  using A = accumulate_t<T>;
  const int64_t row = warp_row();
  if (row >= p.rows) return;
  const int lane = threadIdx.x % kWarp;
  const T* x = static_cast<const T*>(p.logits) + row * p.bins;
  const A* edges = static_cast<const A*>(p.edges);
  const int64_t half = p.bins / 2;
  const A most = row_max(x, p.bins, lane);
  const A centre = vexp_normal(widen(x[half]) - most);
  A sum = 0, weighted = 0;
  for (int64_t k = 1 + lane; k <= half; k += kWarp) {
    const A low = vexp_normal(widen(x[half - k]) - most), high = vexp_normal(widen(x[half + k]) - most);
    sum += low + high;
    weighted += mirrored(low, high, edges[half - k], edges[half + k]);
  }
  sum = group_sum<kWarp>(sum) + centre;
  weighted = group_sum<kWarp>(weighted) + centre * edges[half];
  if (lane != 0) return;
  static_cast<A*>(p.mean)[row] = weighted / sum;
  static_cast<A*>(p.logsumexp)[row] = most + vlog(sum);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) mean_backward(TwoHotMeanBackward p) {
  using A = accumulate_t<T>;
  const int64_t row = warp_row();
  if (row >= p.rows) return;
  const T* x = static_cast<const T*>(p.logits) + row * p.bins;
  T* d_x = static_cast<T*>(p.d_logits) + row * p.bins;
  const A* edges = static_cast<const A*>(p.edges);
  const A grad = static_cast<const A*>(p.grad)[row], mean = static_cast<const A*>(p.mean)[row];
  const A logsumexp = static_cast<const A*>(p.logsumexp)[row];
  for (int64_t k = threadIdx.x % kWarp; k < p.bins; k += kWarp)
    narrow(grad * vexp_normal(widen(x[k]) - logsumexp) * (edges[k] - mean), d_x[k]);
}

}  // namespace

#define FASTWM_LAUNCH(name, Params, kernel)                                                       \
  const char* name(const Params& p, void* stream) {                                               \
    if (p.rows == 0) return nullptr;                                                              \
    const auto on = static_cast<cudaStream_t>(stream);                                            \
    switch (p.dtype) {                                                                            \
      case Dtype::f32: kernel<float><<<blocks_for(p.rows * kWarp), kThreads, 0, on>>>(p); break;  \
      case Dtype::f64: kernel<double><<<blocks_for(p.rows * kWarp), kThreads, 0, on>>>(p); break; \
      case Dtype::bf16: kernel<bf16><<<blocks_for(p.rows * kWarp), kThreads, 0, on>>>(p); break;  \
    }                                                                                             \
    return launch_error();                                                                        \
  }

FASTWM_LAUNCH(two_hot_loss_kernel, TwoHotLoss, loss)
FASTWM_LAUNCH(two_hot_loss_backward_kernel, TwoHotLossBackward, loss_backward)
FASTWM_LAUNCH(two_hot_mean_kernel, TwoHotMean, mean)
FASTWM_LAUNCH(two_hot_mean_backward_kernel, TwoHotMeanBackward, mean_backward)

}  // namespace fastwm::cuda
