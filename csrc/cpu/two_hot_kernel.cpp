#include "fastwm/two_hot.h"

#include "fastwm/parallel.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename T, typename A = accumulate_t<T>>
FASTWM_FN A largest(const T* x, int64_t n) {
  A most = widen(x[0]);
#pragma omp simd reduction(max : most)
  for (int64_t k = 0; k < n; ++k) most = widen(x[k]) > most ? widen(x[k]) : most;
  return most;
}

template <typename T>
void loss(const TwoHotLoss& p) {
  using A = accumulate_t<T>;
#pragma omp parallel for schedule(static) if (p.rows * p.bins > kParallelElements)
  for (int64_t row = 0; row < p.rows; ++row) {
    const T* x = static_cast<const T*>(p.logits) + row * p.bins;
    const A most = largest(x, p.bins);
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < p.bins; ++k) sum += vexp_normal(widen(x[k]) - most);
    const A logsumexp = most + vlog(sum);
    A loss = 0;
    for (int m = 0; m < kMaxTargets && p.target[m]; ++m) {
      const A target = static_cast<const A*>(p.target[m])[row];
      const TwoHot<A> hot = two_hot(target, static_cast<const A*>(p.edges), p.bins);
      const A below = logsumexp - widen(x[hot.below]), above = logsumexp - widen(x[hot.above]);
      loss += static_cast<A>(p.share[m]) * (hot.weight == 0 ? below : (1 - hot.weight) * below + hot.weight * above);
    }
    static_cast<A*>(p.loss)[row] = loss;
    static_cast<A*>(p.logsumexp)[row] = logsumexp;
  }
}

// softmax minus the two-hot encodings, each weighed by its share.
template <typename T>
void loss_backward(const TwoHotLossBackward& p) {
  using A = accumulate_t<T>;
#pragma omp parallel for schedule(static) if (p.rows * p.bins > kParallelElements)
  for (int64_t row = 0; row < p.rows; ++row) {
    const T* x = static_cast<const T*>(p.logits) + row * p.bins;
    T* d_x = static_cast<T*>(p.d_logits) + row * p.bins;
    const A grad = static_cast<const A*>(p.grad)[row];
    const A logsumexp = static_cast<const A*>(p.logsumexp)[row];
    const A all = grad * static_cast<A>(p.share[0] + (p.target[1] ? p.share[1] : 0));
#pragma omp simd
    for (int64_t k = 0; k < p.bins; ++k) narrow(all * vexp_normal(widen(x[k]) - logsumexp), d_x[k]);
    A hot_grad[2 * kMaxTargets];
    int64_t hot_bin[2 * kMaxTargets];
    int hots = 0;
    for (int m = 0; m < kMaxTargets && p.target[m]; ++m) {
      const A target = static_cast<const A*>(p.target[m])[row];
      const TwoHot<A> hot = two_hot(target, static_cast<const A*>(p.edges), p.bins);
      const A share = grad * static_cast<A>(p.share[m]);
      hot_bin[hots] = hot.below, hot_grad[hots++] = share * (1 - hot.weight);
      hot_bin[hots] = hot.above, hot_grad[hots++] = share * hot.weight;
    }
    for (int i = 0; i < hots; ++i) {  // from the softmax again: what is stored may have been rounded
      A d = all * vexp_normal(widen(x[hot_bin[i]]) - logsumexp);
      for (int j = 0; j < hots; ++j) d -= hot_bin[j] == hot_bin[i] ? hot_grad[j] : 0;
      narrow(d, d_x[hot_bin[i]]);
    }
  }
}

template <typename T>
void mean(const TwoHotMean& p) {
  using A = accumulate_t<T>;
  const A* edges = static_cast<const A*>(p.edges);
  const int64_t half = p.bins / 2;
#pragma omp parallel for schedule(static) if (p.rows * p.bins > kParallelElements)
  for (int64_t row = 0; row < p.rows; ++row) {
    const T* x = static_cast<const T*>(p.logits) + row * p.bins;
    const A most = largest(x, p.bins);
    const A centre = vexp_normal(widen(x[half]) - most);
    A sum = 0, weighted = 0;
#pragma omp simd reduction(+ : sum, weighted)
    for (int64_t k = 1; k <= half; ++k) {
      const A low = vexp_normal(widen(x[half - k]) - most), high = vexp_normal(widen(x[half + k]) - most);
      sum += low + high;
      weighted += mirrored(low, high, edges[half - k], edges[half + k]);
    }
    sum += centre;
    static_cast<A*>(p.mean)[row] = (weighted + centre * edges[half]) / sum;
    static_cast<A*>(p.logsumexp)[row] = most + vlog(sum);
  }
}

template <typename T>
void mean_backward(const TwoHotMeanBackward& p) {
  using A = accumulate_t<T>;
  const A* edges = static_cast<const A*>(p.edges);
#pragma omp parallel for schedule(static) if (p.rows * p.bins > kParallelElements)
  for (int64_t row = 0; row < p.rows; ++row) {
    const T* x = static_cast<const T*>(p.logits) + row * p.bins;
    T* d_x = static_cast<T*>(p.d_logits) + row * p.bins;
    const A grad = static_cast<const A*>(p.grad)[row], mean = static_cast<const A*>(p.mean)[row];
    const A logsumexp = static_cast<const A*>(p.logsumexp)[row];
#pragma omp simd
    for (int64_t k = 0; k < p.bins; ++k)
      narrow(grad * vexp_normal(widen(x[k]) - logsumexp) * (edges[k] - mean), d_x[k]);
  }
}

}  // namespace

#define FASTWM_DISPATCH(name, Params, kernel)          \
  void name(const Params& p) {                         \
    switch (p.dtype) {                                 \
      case Dtype::f32: return kernel<float>(p);        \
      case Dtype::f64: return kernel<double>(p);       \
      case Dtype::bf16: return kernel<bf16>(p);        \
    }                                                  \
  }

FASTWM_DISPATCH(two_hot_loss_kernel, TwoHotLoss, loss)
FASTWM_DISPATCH(two_hot_loss_backward_kernel, TwoHotLossBackward, loss_backward)
FASTWM_DISPATCH(two_hot_mean_kernel, TwoHotMean, mean)
FASTWM_DISPATCH(two_hot_mean_backward_kernel, TwoHotMeanBackward, mean_backward)

}  // namespace fastwm::FASTWM_ISA
