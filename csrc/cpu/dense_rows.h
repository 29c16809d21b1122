// Linear layers over some rows, for kernels that take a tile of rows through several of them.
#pragma once

#include "rssm_plan.h"

namespace fastwm::FASTWM_ISA {
namespace {

// out = bias + x W, or x W without a bias
template <typename T, typename O>
void linear(int64_t rows, const O* x, int64_t ldx, const Packed<O>& w, int64_t block, const T* bias, T* out,
            int64_t ldo) {
  for (int64_t panel = 0; panel < w.panels(); ++panel) {
    const int64_t n = panel * kPanelOf<O>;
    if (bias) copy_rows(rows, w.width(panel), bias + n, 0, out + n, ldo);
    else zero_rows(rows, w.width(panel), out + n, ldo);
    multiply(rows, x, ldx, w, block * w.panels() + panel, out + n, ldo);
  }
}

// The places where a row is not zero; returns how many there are. In groups: the comparisons of one are vectors.
template <typename T>
int64_t nonzeros(int64_t width, const T* x, int32_t* at) {
  constexpr int64_t kGroup = 64;
  int64_t count = 0;
  for (int64_t first = 0; first < width; first += kGroup) {
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

// sum += x W for a row x that is zero but at `count` places; W [., width] lies in rows.
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

}  // namespace
}  // namespace fastwm::FASTWM_ISA
