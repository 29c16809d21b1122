#include "fastwm/two_hot.h"

#include "primitives/arena.h"
#include "primitives/vector.h"
#include "fastwm/parallel.h"

namespace fastwm::FASTWM_ISA {
namespace {

// A row at work, in whole vectors: what a compiler leaves to scalars at the end of 255 bins takes as long as the rest.
template <typename A>
class Row {
 public:
  explicit Row(int64_t bins)
      : bins_(bins), whole_((bins + kWhole - 1) / kWhole * kWhole), arena_([this](Arena& a) {
          for (A** row : {&x, &y, &term}) *row = a.take<A>(whole_);
        }) {
    for (int64_t k = bins; k < whole_; ++k) x[k] = -__builtin_inff();
  }

  // x = logits; returns the largest
  template <typename T>
  A load(const T* logits) {
#pragma omp simd
    for (int64_t k = 0; k < bins_; ++k) x[k] = widen(logits[k]);
    return largest(whole_, x);
  }

  // y = scale exp(x - shift); returns the sum
  A exponentials(A shift, A scale = 1) {
#pragma omp simd
    for (int64_t k = 0; k < whole_; ++k) y[k] = scale * vexp_normal(x[k] - shift);
    return sum(whole_, y);
  }

  A *x, *y, *term;  // [bins] and what fills the last vector

 private:
  static constexpr int64_t kWhole = 64 / sizeof(A);
  const int64_t bins_, whole_;
  Arena arena_;
};

// Calls body(row, scratch) for all rows.
template <typename A, typename Body>
void for_each_row(int64_t rows, int64_t bins, Body body) {
#pragma omp parallel if (rows * bins > kParallelElements)
  {
    Row<A> scratch(bins);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) body(row, scratch);
  }
}

template <typename T>
void loss(const TwoHotLoss& p) {
  using A = accumulate_t<T>;
  for_each_row<A>(p.rows, p.bins, [&](int64_t row, Row<A>& at) {
    const A most = at.load(static_cast<const T*>(p.logits) + row * p.bins);
    const A logsumexp = most + vlog(at.exponentials(most));
    A loss = 0, undefined = 0;  // NaN where a target is
    for (int m = 0; m < kMaxTargets && target_of(p, m); ++m) {
      const A target = static_cast<const A*>(target_of(p, m))[row];
      const TwoHot<A> hot = two_hot(target, static_cast<const A*>(p.edges), p.bins);
      const A below = logsumexp - at.x[hot.below], above = logsumexp - at.x[hot.above];
      loss +=
          static_cast<A>(share_of(p, m)) * (hot.weight == 0 ? below : (1 - hot.weight) * below + hot.weight * above);
      undefined += 0 * hot.weight;
    }
    static_cast<A*>(p.loss)[row] = loss;
    static_cast<A*>(p.logsumexp)[row] = logsumexp + undefined;
  });
}

// softmax minus the two-hot encodings, each weighed by its share.
template <typename T>
void loss_backward(const TwoHotLossBackward& p) {
  using A = accumulate_t<T>;
  for_each_row<A>(p.rows, p.bins, [&](int64_t row, Row<A>& at) {
    T* d_x = static_cast<T*>(p.d_logits) + row * p.bins;
    const A grad = static_cast<const A*>(p.grad)[row];
    at.load(static_cast<const T*>(p.logits) + row * p.bins);
    const A all = grad * static_cast<A>(1 + (p.second_target ? p.second_weight : 0));
    at.exponentials(static_cast<const A*>(p.logsumexp)[row], all);
    for (int m = 0; m < kMaxTargets && target_of(p, m); ++m) {
      const A target = static_cast<const A*>(target_of(p, m))[row];
      const TwoHot<A> hot = two_hot(target, static_cast<const A*>(p.edges), p.bins);
      const A share = grad * static_cast<A>(share_of(p, m));
      at.y[hot.below] -= share * (1 - hot.weight);
      at.y[hot.above] -= share * hot.weight;
    }
#pragma omp simd
    for (int64_t k = 0; k < p.bins; ++k) narrow(at.y[k], d_x[k]);
  });
}

template <typename T>
void mean(const TwoHotMean& p) {
  using A = accumulate_t<T>;
  const A* edges = static_cast<const A*>(p.edges);
  const int64_t half = p.bins / 2;
  for_each_row<A>(p.rows, p.bins, [&](int64_t row, Row<A>& at) {
    const A most = at.load(static_cast<const T*>(p.logits) + row * p.bins), all = at.exponentials(most);
    const A* y = at.y;
#pragma omp simd
    for (int64_t k = 1; k <= half; ++k)
      at.term[k - 1] = mirrored(y[half - k], y[half + k], edges[half - k], edges[half + k]);
    static_cast<A*>(p.mean)[row] = (sum(half, at.term) + y[half] * edges[half]) / all;
    static_cast<A*>(p.logsumexp)[row] = most + vlog(all);
  });
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

#define FASTWM_DISPATCH(name, Params, kernel)    \
  void name(const Params& p) {                   \
    switch (p.dtype) {                           \
      case Dtype::f32: return kernel<float>(p);  \
      case Dtype::f64: return kernel<double>(p); \
      case Dtype::bf16: return kernel<bf16>(p);  \
    }                                            \
  }

FASTWM_DISPATCH(two_hot_loss_kernel, TwoHotLoss, loss)
FASTWM_DISPATCH(two_hot_loss_backward_kernel, TwoHotLossBackward, loss_backward)
FASTWM_DISPATCH(two_hot_mean_kernel, TwoHotMean, mean)
FASTWM_DISPATCH(two_hot_mean_backward_kernel, TwoHotMeanBackward, mean_backward)

}  // namespace fastwm::FASTWM_ISA
