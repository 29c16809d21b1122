// Runs of a few numbers, a run a lane, in memory <-> one vector a number, [numbers, stride of lanes]: eight lanes
// at a time in registers, where the compiler's own strided accesses take one instruction or more a number.
#pragma once

#include <string.h>

#include "fastwm/dtype.h"

namespace fastwm {

#if defined(__AVX__) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FASTWM_TRANSPOSE 1

typedef float Float8 __attribute__((vector_size(32)));

FASTWM_FN Float8 load8(const float* from) {
  Float8 x;
  memcpy(&x, from, sizeof x);
  return x;
}

FASTWM_FN void transpose8(Float8 (&x)[8]) {
  Float8 y[8];
  for (int i = 0; i < 8; i += 2) {  // pairs of rows, interleaved
    y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {  // pairs of pairs
    x[i] = __builtin_shufflevector(y[i], y[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    x[i + 1] = __builtin_shufflevector(y[i], y[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    x[i + 2] = __builtin_shufflevector(y[i + 1], y[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    x[i + 3] = __builtin_shufflevector(y[i + 1], y[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {  // halves
    y[i] = __builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    y[i + 4] = __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int i = 0; i < 8; ++i) x[i] = y[i];
}

// to[k * stride + i] = from[i * lane_stride + k] for i < lanes (a multiple of 8) and k < numbers <= 8. Reads
// eight numbers of every run.
FASTWM_FN void runs_to_vectors(const float* from, int64_t lane_stride, int64_t numbers, int64_t lanes, float* to,
                               int64_t stride) {
  for (int64_t i = 0; i < lanes; i += 8) {
    Float8 x[8];
    for (int j = 0; j < 8; ++j) x[j] = load8(from + (i + j) * lane_stride);
    transpose8(x);
    for (int k = 0; k < 8; ++k)
      if (k < numbers) memcpy(to + k * stride + i, &x[k], sizeof x[k]);
  }
}

// to[i * numbers + k] = from[k * stride + i], likewise. Whole vectors are written, each over the last one's end,
// until those of the last eight lanes, which must stop where the runs stop.
FASTWM_FN void vectors_to_runs(const float* from, int64_t stride, int64_t numbers, int64_t lanes, float* to) {
  for (int64_t i = 0; i < lanes; i += 8) {
    Float8 x[8] = {};
    for (int k = 0; k < 8; ++k)
      if (k < numbers) x[k] = load8(from + k * stride + i);
    transpose8(x);
    float last[8 * 8 + 8];
    float* out = i + 8 < lanes ? to + i * numbers : last;
    for (int j = 0; j < 8; ++j) memcpy(out + j * numbers, &x[j], sizeof x[j]);
    if (out == last) memcpy(to + i * numbers, last, static_cast<size_t>(8 * numbers) * sizeof(float));
  }
}

#endif
#endif

}  // namespace fastwm
