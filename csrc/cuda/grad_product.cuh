// What a weight's gradient is made of: a^T b over all rows of a sequence, and sums over columns, in a fixed order.
#pragma once

#include "common.cuh"

namespace fastwm::cuda {

constexpr int kSquare = 64, kGradDepth = 16;

// out[m, n] = sum_r a(r, m) b(r, n) for the 64 x 64 square of this block; a thread holds 4 x 4 of it.
template <typename T, typename LoadA, typename LoadB>
__device__ void grad_product(int64_t rows, int64_t M, int64_t N, T* out, LoadA a, LoadB b) {
  __shared__ T sa[kGradDepth][kSquare + 1], sb[kGradDepth][kSquare + 1];
  const int64_t m0 = int64_t{blockIdx.x} * kSquare, n0 = int64_t{blockIdx.y} * kSquare;
  const int my = threadIdx.x / 16, nx = threadIdx.x % 16;
  T sums[4][4] = {};
  for (int64_t first = 0; first < rows; first += kGradDepth) {
    __syncthreads();
    for (int i = threadIdx.x; i < kGradDepth * kSquare; i += kThreads) {
      const int r = i / kSquare, at = i % kSquare;
      sa[r][at] = first + r < rows && m0 + at < M ? a(first + r, m0 + at) : T{0};
      sb[r][at] = first + r < rows && n0 + at < N ? b(first + r, n0 + at) : T{0};
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kGradDepth; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += sa[r][my + 16 * i] * sb[r][nx + 16 * j];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t m = m0 + my + 16 * i, n = n0 + nx + 16 * j;
      if (m < M && n < N) out[m * N + n] = sums[i][j];
    }
}

static inline dim3 squares(int64_t M, int64_t N, int64_t groups = 1) {
  return dim3(static_cast<unsigned>((M + kSquare - 1) / kSquare), static_cast<unsigned>((N + kSquare - 1) / kSquare),
              static_cast<unsigned>(groups));
}

// out[c] = sum_r x(r, c) for the 32 columns of this block, 8 rows at a time.
template <typename T, typename Load>
__device__ void column_sums(int64_t rows, int64_t N, T* out, Load x) {
  constexpr int kLanes = kThreads / 32;
  __shared__ T sums[kLanes][32];
  const int64_t c = int64_t{blockIdx.x} * 32 + threadIdx.x % 32;
  T sum = 0;
  if (c < N)
    for (int64_t r = threadIdx.x / 32; r < rows; r += kLanes) sum += x(r, c);
  sums[threadIdx.x / 32][threadIdx.x % 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32 || c >= N) return;
  for (int lane = 1; lane < kLanes; ++lane) sum += sums[lane][threadIdx.x];
  out[c] = sum;
}

}  // namespace fastwm::cuda
