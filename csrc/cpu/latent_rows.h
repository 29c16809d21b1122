// The latents of one row, sampled from their statistics: categoricals by the inverse CDF, Gaussians; and the derivatives.
#pragma once

#include "fastwm/inverse_cdf.h"
#include "fastwm/vecmath.h"
#include "primitives/rows.h"

namespace fastwm::FASTWM_ISA {
namespace {

// softmax(logits) of every categorical, before mixing; z [S * C] holds it.
template <typename T>
void softmax_row(int64_t S, int64_t C, const T* logits, T* z) {
  for (int64_t s = 0; s < S; ++s) {
    T top = logits[s * C];
    for (int64_t c = 1; c < C; ++c) top = logits[s * C + c] > top ? logits[s * C + c] : top;
    for (int64_t c = 0; c < C; ++c) z[s * C + c] = logits[s * C + c] - top;
  }
#pragma omp simd
  for (int64_t i = 0; i < S * C; ++i) z[i] = vexp(z[i]);
  for (int64_t s = 0; s < S; ++s) {
    T sum = 0;
    for (int64_t c = 0; c < C; ++c) sum += z[s * C + c];
    const T inverse = 1 / sum;
    for (int64_t c = 0; c < C; ++c) z[s * C + c] *= inverse;
  }
}

// Indices by the inverse CDF of (1 - unimix) softmax + unimix / C, summed in class order; z is scratch, then one-hot. Where
// the logits or the uniform number are NaN, all classes are, and the index is 0.
template <typename T>
void sample_row(int64_t S, int64_t C, const T* logits, T unimix, const T* uniform, T* z, int64_t* index) {
  softmax_row(S, C, logits, z);
  for (int64_t s = 0; s < S; ++s) {
    T cdf = 0;
    int64_t below = 0;
    T* onehot = z + s * C;
    const auto weight = [=](int64_t c) { return (1 - unimix) * onehot[c] + unimix / C; };
    for (int64_t c = 0; c + 1 < C; ++c) {
      cdf += weight(c);
      below += cdf <= uniform[s];
    }
    index[s] = last_drawable(below, C, weight);
    const T nothing = nothing_of(onehot[0] + uniform[s]);
    for (int64_t c = 0; c < C; ++c) onehot[c] = nothing;
    onehot[index[s]] += 1;
  }
}

// Straight through: d_logits = g_logits + J^T d_z, J the Jacobian of the mixed probabilities. probs is scratch.
template <typename T, typename O>
void sample_row_backward(int64_t S, int64_t C, const T* logits, T unimix, const T* d_z, const T* g_logits, T* probs,
                         O* d_logits) {
  softmax_row(S, C, logits, probs);
  for (int64_t s = 0; s < S * C; s += C) {
    T mean = 0;
    for (int64_t c = 0; c < C; ++c) mean += probs[s + c] * d_z[s + c];
    for (int64_t c = 0; c < C; ++c)
      narrow(g_logits[s + c] + (1 - unimix) * probs[s + c] * (d_z[s + c] - mean), d_logits[s + c]);
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
