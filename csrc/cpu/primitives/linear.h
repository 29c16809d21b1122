// Linear layers over some rows, for kernels that take a tile of rows through several of them.
#pragma once

#include "rows.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fastwm::FASTWM_ISA {
namespace {

// Numbers as a product's operand: themselves, or converted into scratch, which takes operand_size() numbers.
template <typename T, typename O>
const O* as_operand(int64_t count, const T* x, O* scratch) {
  if constexpr (kSame<T, O>) return x;
  else return convert(count, x, scratch), scratch;
}

template <typename T, typename O>
int64_t operand_size(int64_t count) {
  return kSame<T, O> ? 0 : count;
}

// Rows over which a weight's gradient is one product. AMX reads and writes the sums through the cache at each.
template <typename O>
constexpr int64_t kChunk = sizeof(O) == 2 ? 512 : 256;

// out = bias + x W, or x W without a bias
template <typename T, typename O>
void linear(int64_t rows, const O* x, int64_t ldx, const Packed<O>& w, int64_t block, const T* bias, T* out,
            int64_t ldo) {
  for (int64_t panel = 0; panel < w.panels(); ++panel) {
    const int64_t n = panel * kPanelOf<O>;
    multiply(rows, x, ldx, w, block * w.panels() + panel, Start<T>{bias ? bias + n : nullptr, 0}, out + n, ldo);
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

// The places where a row is not zero; returns how many there are. `at` has room for kVectorBytes more.
template <typename T>
int64_t nonzeros(int64_t width, const T* x, int32_t* at) {
  int64_t count = 0, first = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; first + 16 <= width; first += 16) {
      const __mmask16 there = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + first), _mm512_setzero_ps(), _CMP_NEQ_UQ);
      _mm512_storeu_si512(at + count, _mm512_maskz_compress_epi32(there, places));
      count += __builtin_popcount(there);
      places = _mm512_add_epi32(places, _mm512_set1_epi32(16));
    }
  }
#endif
  constexpr int64_t kGroup = 64;  // elsewhere in groups, whose comparisons are vectors
  for (; first < width; first += kGroup) {
    const int64_t size = width - first < kGroup ? width - first : kGroup;
    uint8_t there[kGroup];
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) there[i] = x[first + i] != 0;
    for (int64_t i = 0; i < size; ++i) {
      at[count] = static_cast<int32_t>(first + i);
      count += there[i];
    }
  }
  return count;
}

// sum += x W for a row x that is zero but at `count` places; W [., width] is stored by rows.
template <typename T>
void add_gathered(int64_t count, const int32_t* at, const T* x, const T* w, int64_t width, T* sum) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = kVectorBytes / sizeof(T), vectors = 4;
  int64_t n = 0;
  for (; n + vectors * lanes <= width; n += vectors * lanes) {
    V part[vectors];
    for (int64_t v = 0; v < vectors; ++v) part[v] = *reinterpret_cast<const V*>(sum + n + v * lanes);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t v = 0; v < vectors; ++v)
        part[v] += x[at[i]] * *reinterpret_cast<const V*>(w + at[i] * width + n + v * lanes);
    for (int64_t v = 0; v < vectors; ++v) *reinterpret_cast<V*>(sum + n + v * lanes) = part[v];
  }
  for (int64_t i = 0; n < width && i < count; ++i) add_scaled(width - n, x[at[i]], w + at[i] * width + n, sum + n);
}

// Backward: rows of w at those places += x times the sum's gradient, for `width` columns of `stride`.
template <typename T>
void scatter_rows(int64_t count, const int32_t* at, const T* x, const T* d_sum, int64_t width, int64_t stride, T* w) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = kVectorBytes / sizeof(T), vectors = 2;
  int64_t n = 0;
  for (; n + vectors * lanes <= width; n += vectors * lanes) {
    V part[vectors];
    for (int64_t v = 0; v < vectors; ++v) part[v] = *reinterpret_cast<const V*>(d_sum + n + v * lanes);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t v = 0; v < vectors; ++v)
        *reinterpret_cast<V*>(w + at[i] * stride + n + v * lanes) += x[at[i]] * part[v];
  }
  for (int64_t i = 0; n < width && i < count; ++i) add_scaled(width - n, x[at[i]], d_sum + n, w + at[i] * stride + n);
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
