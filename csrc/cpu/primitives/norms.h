// Norms and activations of rows, forward and backward: RMSNorm with SiLU, LayerNorm with any activation or none.
#pragma once

#include "rows.h"
#include "fastwm/gru_rssm.h"

namespace fastwm::FASTWM_ISA {
namespace {

// Rows of a norm that are at work together: no row waits for another's sum.
constexpr int64_t kNormRows = 16;

// 1 / rms of up to kNormRows rows.
template <typename T>
void inverse_rms(int64_t rows, int64_t width, const T* x, int64_t stride, T eps, T* inverse) {
  for (int64_t r = 0; r < rows; ++r) inverse[r] = dot(width, x + r * stride, x + r * stride);
  for (int64_t r = 0; r < rows; ++r) inverse[r] = 1 / static_cast<T>(__builtin_sqrt(inverse[r] / width + eps));
}

// act = silu(y), y = pre / rms(pre) * scale
template <typename T, typename O>
void rms_silu(int64_t rows, int64_t width, const T* pre, int64_t ldp, const T* scale, T eps, O* act, int64_t lda) {
  T inverse[kNormRows];
  for (; rows > 0; rows -= kNormRows, pre += kNormRows * ldp, act += kNormRows * lda) {
    const int64_t group = rows < kNormRows ? rows : kNormRows;
    inverse_rms(group, width, pre, ldp, eps, inverse);
    for (int64_t r = 0; r < group; ++r) {
      const T *x = pre + r * ldp, by = inverse[r];
      fill<T>(width, act + r * lda,
              [=](int64_t i) __attribute__((always_inline)) { return vsilu(x[i] * by * scale[i]); });
    }
  }
}

// From d_act, which is overwritten, to d_pre; adds to the scale's gradient, and computes act again. All rows are dense.
template <typename T, typename O>
void rms_silu_backward(int64_t rows, int64_t width, const T* pre, const T* scale, T eps, T* d_act, O* d_pre, O* act,
                       T* d_scale) {
  T inverse[kNormRows];
  for (int64_t first = 0; first < rows; first += kNormRows) {
    const int64_t group = rows - first < kNormRows ? rows - first : kNormRows, begin = first * width;
    inverse_rms(group, width, pre + begin, width, eps, inverse);
    for (int64_t r = 0; r < group; ++r) {
      const T *x = pre + begin + r * width, by = inverse[r];
      T* d = d_act + begin + r * width;
      O* y = act + begin + r * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const T normal = x[i] * by, z = normal * scale[i], s = vsigmoid(z), d_z = d[i] * s * (1 + z * (1 - s));
        narrow(z * s, y[i]);
        d_scale[i] += d_z * normal;
        d[i] = d_z * scale[i];
      }
    }
    for (int64_t r = 0; r < group; ++r) {
      const T *x = pre + begin + r * width, *d = d_act + begin + r * width, by = inverse[r];
      const T mean = dot(width, x, d) * by / width;
      O* out = d_pre + begin + r * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) narrow(by * (d[i] - x[i] * by * mean), out[i]);
    }
  }
}

template <typename T>
struct Moments {
  T mean, inverse;  // 1 / standard deviation
};

template <typename T>
Moments<T> moments(int64_t width, const T* x, T eps) {
  const T mean = sum(width, x) / width;
  const auto square = [mean](auto x) { return (x - mean) * (x - mean); };
  const T squares =
      sum_of<T>(width, [=](int64_t i) { return square(vector_at(x + i)); }, [=](int64_t i) { return square(x[i]); });
  return {mean, 1 / static_cast<T>(__builtin_sqrt(squares / width + eps))};
}

// From d_normal to d_pre, normal = (pre - mean) / deviation.
template <typename T>
void normal_backward(int64_t width, const T* pre, const Moments<T>& m, const T* d_normal, T* d_pre) {
  const T mean = sum(width, d_normal) / width;
  const T products = sum_of<T>(
      width, [=](int64_t i) { return vector_at(d_normal + i) * (vector_at(pre + i) - m.mean); },
      [=](int64_t i) { return d_normal[i] * (pre[i] - m.mean); });
  const T slope = products * m.inverse / width;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i)
    d_pre[i] = m.inverse * (d_normal[i] - mean - (pre[i] - m.mean) * m.inverse * slope);
}

template <Activation f, typename T, typename O>
void layer_row(int64_t width, const T* pre, const LayerNorm& norm, T eps, O* act) {
  if (!norm.scale) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) narrow(activate<f>(pre[i]), act[i]);
    return;
  }
  const Moments<T> m = moments(width, pre, eps);
  const T *scale = ptr<T>(norm.scale), *shift = ptr<T>(norm.shift);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) narrow(activate<f>((pre[i] - m.mean) * m.inverse * scale[i] + shift[i]), act[i]);
}

// From d_act, which is overwritten, to d_pre; adds to the norm's gradients (d_scale [width], then d_shift), and
// computes act again.
template <Activation f, typename T>
void layer_row_backward(int64_t width, const T* pre, const LayerNorm& norm, T eps, T* d_act, T* d_pre, T* act,
                        T* d_norm) {
  if (!norm.scale) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const T x = pre[i];
      d_pre[i] = d_act[i] * activation_slope<f>(x);
      act[i] = activate<f>(x);
    }
    return;
  }
  const Moments<T> m = moments(width, pre, eps);
  const T *scale = ptr<T>(norm.scale), *shift = ptr<T>(norm.shift);
  T *d_scale = d_norm, *d_shift = d_norm + width;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const T normal = (pre[i] - m.mean) * m.inverse, y = normal * scale[i] + shift[i];
    const T d_y = d_act[i] * activation_slope<f>(y);
    act[i] = activate<f>(y);
    d_scale[i] += d_y * normal;
    d_shift[i] += d_y;
    d_act[i] = d_y * scale[i];
  }
  normal_backward(width, pre, m, d_act, d_pre);
}

// Calls body(tag) with the activation as a constant, `decltype(tag)::value`.
template <Activation f>
struct ActivationTag {
  static constexpr Activation value = f;
};

template <typename Body>
void with_activation(Activation f, Body body) {
  switch (f) {
    case Activation::none: return body(ActivationTag<Activation::none>{});
    case Activation::silu: return body(ActivationTag<Activation::silu>{});
    case Activation::elu: return body(ActivationTag<Activation::elu>{});
    case Activation::relu: return body(ActivationTag<Activation::relu>{});
  }
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
