// What a dream does to one row between its products: controller, LSTM gates, noise and mixture sample. A row is always
// computed by itself, so that it does not depend on which others are beside it.
#pragma once

#include "rssm_rows.h"
#include "fastwm/cells.h"
#include "fastwm/mdn.h"
#include "fastwm/philox.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename T>
T dot(int64_t width, const T* x, const T* y) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += x[i] * y[i];
  return sum;
}

// c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')
template <typename T, typename O>
void lstm_row(int64_t width, const T* i, const T* f, const T* g, const T* o, T* c, T* h, O* operand) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    c[j] = gate_sigmoid(f[j]) * c[j] + gate_sigmoid(i[j]) * gate_tanh(g[j]);
    h[j] = gate_sigmoid(o[j]) * gate_tanh(c[j]);
    narrow(h[j], operand[j]);
  }
}

// `blocks` blocks of four numbers of a stream, from block `first` on.
template <PhiloxKind kind>
void draw_row(int64_t blocks, uint64_t seed, uint64_t offset, int64_t first, float* numbers) {
#pragma omp simd
  for (int64_t b = 0; b < blocks; ++b) {
    const Philox n = philox_numbers(philox_block(seed, offset, static_cast<uint64_t>(first + b)), kind);
    numbers[4 * b] = float_of(n.x[0]);
    numbers[4 * b + 1] = float_of(n.x[1]);
    numbers[4 * b + 2] = float_of(n.x[2]);
    numbers[4 * b + 3] = float_of(n.x[3]);
  }
}

// out [3K, Z], the logits, means and log-stds of each component, to z [Z]; the logits become weights on the way.
// scratch [3, Z].
template <typename T>
void mixture_row(int64_t Z, int64_t K, T* out, T inverse_temperature, T spread, const float* uniform,
                 const float* normal, T* scratch, T* z) {
  T *largest = scratch, *total = scratch + Z, *cumulated = scratch + 2 * Z;
#pragma omp simd
  for (int64_t i = 0; i < Z; ++i) largest[i] = out[i], total[i] = 0;
  for (int64_t k = 1; k < K; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < Z; ++i) largest[i] = out[k * Z + i] > largest[i] ? out[k * Z + i] : largest[i];
  }
  for (int64_t k = 0; k < K; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < Z; ++i) {
      const T e = vexp_normal((out[k * Z + i] - largest[i]) * inverse_temperature);
      out[k * Z + i] = e;
      total[i] += e;
    }
  }
  T *threshold = total, *log_std = largest;
  const T *means = out + K * Z, *log_stds = out + 2 * K * Z;
#pragma omp simd
  for (int64_t i = 0; i < Z; ++i) {
    threshold[i] = cdf_threshold(static_cast<T>(uniform[i]), total[i]);
    cumulated[i] = 0;
    z[i] = means[i];
    log_std[i] = log_stds[i];
  }
  for (int64_t k = 1; k < K; ++k) {  // the k-th is drawn where the weights before it do not exceed the threshold
#pragma omp simd
    for (int64_t i = 0; i < Z; ++i) {
      cumulated[i] += out[(k - 1) * Z + i];
      const bool passed = cumulated[i] <= threshold[i];
      z[i] = passed ? means[k * Z + i] : z[i];
      log_std[i] = passed ? log_stds[k * Z + i] : log_std[i];
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < Z; ++i) z[i] += vexp(log_std[i]) * spread * static_cast<T>(normal[i]);
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
