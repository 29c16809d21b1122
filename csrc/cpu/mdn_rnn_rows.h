// The work on one row of a dream between its products: controller, LSTM gates, noise and mixture sample. A row is always
// computed by itself, so that it does not depend on which others are beside it.
#pragma once

#include "primitives/rows.h"
#include "fastwm/mdn.h"
#include "fastwm/philox.h"
#include "math/lstm.h"

namespace fastwm::FASTWM_ISA {
namespace {

// The new c and h from the gates' sums.
template <typename T, typename O>
void lstm_row(int64_t width, const T* i, const T* f, const T* g, const T* o, T* c, T* h, O* operand) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const auto gates = lstm_gates(LstmGates<T>{i[j], f[j], g[j], o[j]});
    c[j] = lstm_cell(gates.in, gates.forget, gates.cand, c[j]);
    h[j] = gates.out * gate_tanh(c[j]);
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

// The components drawn for the logits [K, Z], which become weights on the way; nothing [Z] is 0, or NaN where none can be
// drawn. scratch [3, Z].
template <typename T>
void choose_row(int64_t Z, int64_t K, T* logits, T inverse_temperature, const float* uniform, T* scratch,
                int32_t* index, T* nothing) {
  T *largest = scratch, *total = scratch + Z, *cumulated = scratch + 2 * Z;
#pragma omp simd
  for (int64_t i = 0; i < Z; ++i) largest[i] = logits[i], total[i] = cumulated[i] = 0, index[i] = 0;
  for (int64_t k = 1; k < K; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < Z; ++i) largest[i] = logits[k * Z + i] > largest[i] ? logits[k * Z + i] : largest[i];
  }
  for (int64_t k = 0; k < K; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < Z; ++i) {
      const T e = vexp_normal((logits[k * Z + i] - largest[i]) * inverse_temperature);
      logits[k * Z + i] = e;
      total[i] += e;
    }
  }
  T* threshold = total;
#pragma omp simd
  for (int64_t i = 0; i < Z; ++i) {
    threshold[i] = cdf_threshold(static_cast<T>(uniform[i]), total[i]);
    nothing[i] = nothing_of(threshold[i]);
  }
  for (int64_t k = 0; k + 1 < K; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < Z; ++i) {
      cumulated[i] += logits[k * Z + i];
      index[i] += cumulated[i] <= threshold[i] ? 1 : 0;
    }
  }
}

template <typename T>
void noise_row(int64_t Z, const T* mean, const T* log_std, const T* nothing, T spread, const float* normal, T* z) {
#pragma omp simd
  for (int64_t i = 0; i < Z; ++i) z[i] = mean[i] + nothing[i] + vexp(log_std[i]) * spread * static_cast<T>(normal[i]);
}

// Products of a few rows with two columns w [2, width]; the width is a multiple of a vector's.
template <int rows, typename T>
inline void dot_pairs(const T* const* x, const T* w, int64_t width, T (&sums)[rows][2]) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = kVectorBytes / sizeof(T);
  V sum[rows][2] = {};
  for (int64_t j = 0; j < width; j += lanes) {
    const V w0 = *reinterpret_cast<const V*>(w + j), w1 = *reinterpret_cast<const V*>(w + width + j);
    for (int m = 0; m < rows; ++m) {
      const V v = *reinterpret_cast<const V*>(x[m] + j);
      sum[m][0] += v * w0;
      sum[m][1] += v * w1;
    }
  }
  for (int m = 0; m < rows; ++m)
    for (int c = 0; c < 2; ++c) {
      sums[m][c] = 0;
      for (int i = 0; i < lanes; ++i) sums[m][c] += sum[m][c][i];
    }
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
