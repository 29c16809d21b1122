// One row of a dense layer between its products: LayerNorm where there is one, and the activation; and its derivative.
#pragma once

#include "rssm_rows.h"
#include "fastwm/gru_rssm.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename T>
struct Moments {
  T mean, inverse;  // 1 / standard deviation
};

template <typename T>
Moments<T> moments(int64_t width, const T* x, T eps) {
  const T mean = sum(width, x) / width;
  const auto square = [mean](auto x) { return (x - mean) * (x - mean); };
  const T squares = sum_of<T>(
      width, [=](int64_t i) { return square(vector_at(x + i)); }, [=](int64_t i) { return square(x[i]); });
  return {mean, 1 / static_cast<T>(__builtin_sqrt(squares / width + eps))};
}

// The way back from d_normal to d_pre, normal = (pre - mean) / deviation.
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

// Calls body(z, x[z]) for what is not zero: a one-hot latent's cost is then its ones'.
template <typename T, typename Body>
void for_each_nonzero(int64_t count, const T* x, Body body) {
  constexpr int64_t kBlock = 64 / sizeof(T);
  for (int64_t z0 = 0; z0 < count; z0 += kBlock) {
    const int64_t end = z0 + kBlock < count ? z0 + kBlock : count;
    if (z0 + kBlock <= count) {
      uint64_t words[8], any = 0;
      std::memcpy(words, x + z0, sizeof words);
      for (uint64_t word : words) any |= word;
      if (!any) continue;
    }
    for (int64_t z = z0; z < end; ++z)
      if (x[z] != 0) body(z, x[z]);
  }
}

// z = mean + (softplus(raw) + 0.1) noise
template <typename T>
void gaussian_row(int64_t S, const T* stats, const T* noise, T* z) {
#pragma omp simd
  for (int64_t s = 0; s < S; ++s) z[s] = stats[s] + (vsoftplus(stats[S + s]) + T(0.1)) * noise[s];
}

template <typename T>
void gaussian_row_backward(int64_t S, const T* stats, const T* noise, const T* d_z, const T* g_stats, T* d_stats) {
#pragma omp simd
  for (int64_t s = 0; s < S; ++s) {
    d_stats[s] = g_stats[s] + d_z[s];
    d_stats[S + s] = g_stats[S + s] + d_z[s] * noise[s] * vsigmoid(stats[S + s]);
  }
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
