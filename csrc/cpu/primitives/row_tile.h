// Tiles of rows, for kernels over many short rows: W rows of C classes are transposed to [C][W] in L1, so that one
// vector instruction serves one class of W rows. No horizontal sums, any C, and sums in class order for free.
// For *_kernel.cpp files alone: all of it has internal linkage.
#pragma once

#include <stdlib.h>

#include <type_traits>

#include "fastwm/dtype.h"

namespace fastwm {
namespace {

constexpr int64_t W = 32;

template <typename A>
using Tile = A (*)[W];

// Memory for some tiles of C classes. C's, because a destructor would draw C++'s exception symbols into the object,
// which levels would share.
template <typename A>
struct TileMemory {
  A* data;
  int64_t size;

  Tile<A> operator[](int64_t tile) const { return reinterpret_cast<Tile<A>>(data + tile * size); }
};

template <typename A>
TileMemory<A> allocate_tiles(int64_t tiles, int64_t classes) {
  const int64_t size = classes * W;
  return {static_cast<A*>(aligned_alloc(64, tiles * size * sizeof(A))), size};
}

template <typename A>
void free_tiles(TileMemory<A> memory) {
  free(memory.data);
}

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));

#ifdef __clang__
#define FASTWM_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define FASTWM_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, Int4{i, j, k, l})
#endif

FASTWM_FN Float4 load4(const float* x) {
  Float4 v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}

FASTWM_FN void store4(Float4 v, float* x) { __builtin_memcpy(x, &v, sizeof v); }

// out[j][i] = in[i][j] for i, j in 0..3
FASTWM_FN void transpose4(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  const Float4 a = load4(in), b = load4(in + in_stride);
  const Float4 c = load4(in + 2 * in_stride), d = load4(in + 3 * in_stride);
  const Float4 ab_low = FASTWM_SHUFFLE(a, b, 0, 4, 1, 5), ab_high = FASTWM_SHUFFLE(a, b, 2, 6, 3, 7);
  const Float4 cd_low = FASTWM_SHUFFLE(c, d, 0, 4, 1, 5), cd_high = FASTWM_SHUFFLE(c, d, 2, 6, 3, 7);
  store4(FASTWM_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5), out);
  store4(FASTWM_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7), out + out_stride);
  store4(FASTWM_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5), out + 2 * out_stride);
  store4(FASTWM_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7), out + 3 * out_stride);
}

// tile[k][r] = x[r][k]; missing rows repeat the last one, so that every lane computes something ordinary.
template <typename T>
void load(const T* x, int64_t rows, int64_t classes, Tile<accumulate_t<T>> tile) {
  int64_t k = 0;
  if constexpr (std::is_same_v<T, float>)
    for (; rows == W && k + 4 <= classes; k += 4)
      for (int64_t r = 0; r < W; r += 4) transpose4(x + r * classes + k, classes, &tile[k][r], W);
  for (; k < classes; ++k)
    for (int64_t r = 0; r < W; ++r) tile[k][r] = widen(x[(r < rows ? r : rows - 1) * classes + k]);
}

// x[r][k] = tile[k][r]
template <typename T>
void store(Tile<accumulate_t<T>> tile, int64_t rows, int64_t classes, T* x) {
  int64_t k = 0;
  if constexpr (std::is_same_v<T, float>)
    for (; rows == W && k + 4 <= classes; k += 4)
      for (int64_t r = 0; r < W; r += 4) transpose4(&tile[k][r], W, x + r * classes + k, classes);
  for (; k < classes; ++k)
    for (int64_t r = 0; r < rows; ++r) narrow(tile[k][r], x[r * classes + k]);
}

}  // namespace
}  // namespace fastwm
