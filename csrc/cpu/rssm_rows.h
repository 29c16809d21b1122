// What an RSSM does to one row between its products: norm and SiLU, the sample, the gates; and their derivatives.
#pragma once

#include <type_traits>

#include "bf16_gemm.h"
#include "team.h"
#include "fastwm/cells.h"
#include "fastwm/inverse_cdf.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename T>
const T* ptr(const void* p) { return static_cast<const T*>(p); }
template <typename T>
T* ptr(void* p) { return static_cast<T*>(p); }

// T is what sums are in, O what products multiply.
template <typename T, typename O>
constexpr bool kSame = std::is_same_v<T, O>;
template <typename T, typename O>
constexpr bool kBf16Factors = sizeof(T) == 4 && sizeof(O) == 2;

template <typename T>
void zero_rows(int64_t rows, int64_t width, T* to, int64_t stride) {
  if (width == kPanel<T>)
    for (int64_t r = 0; r < rows; ++r) std::memset(to + r * stride, 0, kPanel<T> * sizeof(T));
  else
    for (int64_t r = 0; r < rows; ++r) std::memset(to + r * stride, 0, width * sizeof(T));
}

template <typename T, typename O>
void convert(int64_t width, const T* from, O* to) {
#if FASTWM_BF16
  if constexpr (kBf16Factors<T, O>) return to_bf16(width, from, to);
#endif
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) narrow(from[i], to[i]);
}

// Keeps x as the factor of a product; factor_of then gives x itself where the types are the same, and nothing was copied.
template <typename T, typename O>
void keep_factor(int64_t width, const T* x, O* kept) {
  if constexpr (!kSame<T, O>) convert(width, x, kept);
}

template <typename T, typename O>
const O* factor_of(const T* x, const O* kept) {
  if constexpr (kSame<T, O>) return x;
  else return kept;
}

// to = number(0), number(1), ...; bfloat16 by way of floats, since the CPU converts whole vectors by one instruction.
template <typename T, typename O, typename Number>
void fill(int64_t width, O* to, Number number) {
  if constexpr (kBf16Factors<T, O>) {
    constexpr int64_t kBlock = 64;
    T block[kBlock];
    for (int64_t first = 0; first < width; first += kBlock) {
      const int64_t count = width - first < kBlock ? width - first : kBlock;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) block[i] = number(first + i);
      convert(count, block, to + first);
    }
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) narrow(number(i), to[i]);
}

template <typename T>
void add_scaled(int64_t width, T scale, const T* x, T* sum) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) sum[i] += scale * x[i];
}

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
      fill<T>(width, act + r * lda, [=](int64_t i) __attribute__((always_inline)) { return vsilu(x[i] * by * scale[i]); });
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

// h' = u c + (1 - u) h with r = sigmoid(reset), c = tanh(r cand), u = sigmoid(update + bias). r and u replace their
// pre-activations, so that the way back need not compute them again.
template <typename T, typename O>
void gates_row(int64_t width, T* reset, const T* cand, T* update, T bias, const T* prev, T* deter, O* operand) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const T u = gate_sigmoid(update[i] + bias), r = gate_sigmoid(reset[i]), c = gate_tanh(r * cand[i]);
    reset[i] = r;
    update[i] = u;
    deter[i] = u * c + (1 - u) * prev[i];
  }
  convert(width, deter, operand);
}

// d_deter becomes the gradient of h, as far as it goes past the products.
template <typename T, typename O>
void gates_row_backward(int64_t width, const T* reset, const T* cand, const T* update, const T* prev, T* d_deter,
                        O* d_reset, O* d_cand, O* d_update) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const T u = update[i], r = reset[i], c = gate_tanh(r * cand[i]);
    const T d_inner = d_deter[i] * u * (1 - c * c);
    narrow(d_inner * cand[i] * r * (1 - r), d_reset[i]);
    narrow(d_inner * r, d_cand[i]);
    narrow(d_deter[i] * (c - prev[i]) * u * (1 - u), d_update[i]);
    d_deter[i] *= 1 - u;
  }
}

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

}  // namespace
}  // namespace fastwm::FASTWM_ISA
