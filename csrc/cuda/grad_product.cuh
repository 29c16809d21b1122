// The sums in a weight's gradient: a^T b over all rows of a sequence, and sums over columns, in a fixed order.
#pragma once

#include "common.cuh"
#include "mma.cuh"

#include "fastwm/dtype.h"

#include <type_traits>

namespace fastwm::cuda {

constexpr int kSquare = 64;

__host__ __device__ constexpr int64_t squares_along(int64_t width) { return (width + kSquare - 1) / kSquare; }
__host__ __device__ constexpr int64_t squares(int64_t M, int64_t N, int64_t groups = 1) {
  return squares_along(M) * squares_along(N) * groups;
}

// Which 64 x 64 square of which gradient a block makes: gradients that share a launch are stored one after the other.
struct Square {
  int64_t left, g, m0, n0;

  __device__ explicit Square(int64_t block) : left(block) {}
  // Whether it is of this gradient [groups, M, N]; else the next one is to be asked about.
  __device__ bool of(int64_t M, int64_t N, int64_t groups = 1) {
    const int64_t across = squares_along(N), each = squares_along(M) * across;
    if (left >= each * groups) {
      left -= each * groups;
      return false;
    }
    g = left / each, m0 = left % each / across * kSquare, n0 = left % across * kSquare;
    return true;
  }
};

// out[m, n] = sum_r a(r, m) b(r, n) for one square. O: what products multiply; T: what they are stored in. `a` and `b`
// are asked within their bounds alone, many rows at once, and must not write.
template <typename T, typename O>
class GradProduct {
  static constexpr bool kMma = sizeof(O) == 2;
  static constexpr int kDepth = kMma ? 32 : 16;
  // Columns of rows where the tensor cores want pairs: 8 columns of 4 pairs that a warp reads are in different banks.
  static constexpr int kWidth = kMma ? kDepth + 8 : kSquare + 1;
  static constexpr int kLoads = kDepth * kSquare / kThreads;

 public:
  struct Shared {
    __align__(16) O a[kMma ? kSquare : kDepth][kWidth];
    __align__(16) O b[kMma ? kSquare : kDepth][kWidth];
  };

  template <typename LoadA, typename LoadB>
  __device__ static void run(Shared& s, const Square& at, int64_t rows, int64_t M, int64_t N, T* out, LoadA a,
                             LoadB b) {
    T next_a[kLoads], next_b[kLoads], sums[16] = {};
    const auto fetch = [&](int64_t first) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int64_t r = first + row_of(i), m = at.m0 + threadIdx.x % kSquare, n = at.n0 + threadIdx.x % kSquare;
        const int64_t row = r < rows ? r : rows - 1;
        next_a[i] = a(row, m < M ? m : M - 1);
        next_b[i] = b(row, n < N ? n : N - 1);
        if (r >= rows) next_a[i] = 0;
      }
    };
    if (rows > 0) fetch(0);
    for (int64_t first = 0; first < rows; first += kDepth) {
      __syncthreads();
      store(s.a, next_a);
      store(s.b, next_b);
      __syncthreads();
      if (first + kDepth < rows) fetch(first + kDepth);
      multiply(s, sums, O{});
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int64_t m = at.m0 + row_of_sum(i), n = at.n0 + column_of_sum(i);
      if (m < M && n < N) out[m * N + n] = sums[i];
    }
  }

 private:
  // For pairs of rows where the tensor cores want pairs.
  __device__ static int row_of(int load) {
    const int first = threadIdx.x / kSquare, rows = kThreads / kSquare;
    return kMma ? 2 * (first + rows * (load / 2)) + load % 2 : first + rows * load;
  }

  template <typename Tile>
  __device__ static void store(Tile& tile, const T (&x)[kLoads]) {
    const int c = threadIdx.x % kSquare;
#pragma unroll
    for (int i = 0; i < kLoads; i += kMma ? 2 : 1)
      if constexpr (kMma) *reinterpret_cast<uint32_t*>(&tile[c][row_of(i)]) = bf16_pair(x[i], x[i + 1]);
      else narrow(x[i], tile[row_of(i)][c]);
  }

  // A thread's 4 x 4, 16 apart; or of a warp's 16 x 32 the four tiles of 8 columns as mma lays them out.
  __device__ static int row_of_sum(int i) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    return kMma ? warp % 4 * 16 + lane / 4 + i % 4 / 2 * 8 : threadIdx.x / 16 + 16 * (i / 4);
  }
  __device__ static int column_of_sum(int i) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    return kMma ? warp / 4 * 32 + i / 4 * 8 + lane % 4 * 2 + i % 2 : threadIdx.x % 16 + 16 * (i % 4);
  }

  template <typename F>
  __device__ static void multiply(const Shared& s, T (&sums)[16], F) {
#pragma unroll
    for (int r = 0; r < kDepth; ++r)
#pragma unroll
      for (int i = 0; i < 16; ++i) sums[i] += s.a[r][row_of_sum(i)] * s.b[r][column_of_sum(i)];
  }

  __device__ static void multiply(const Shared& s, T (&sums)[16], bf16) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const auto two = [&](const O* column, int r) {
      return *reinterpret_cast<const uint32_t*>(column + r + lane % 4 * 2);
    };
#pragma unroll
    for (int r = 0; r < kDepth; r += 16) {
      const O *above = s.a[warp % 4 * 16 + lane / 4], *below = s.a[warp % 4 * 16 + lane / 4 + 8];
      const uint32_t a[4] = {two(above, r), two(below, r), two(above, r + 8), two(below, r + 8)};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const O* column = s.b[warp / 4 * 32 + n * 8 + lane / 4];
        mma(&sums[4 * n], a, make_uint2(two(column, r), two(column, r + 8)));
      }
    }
  }
};

// out[c] = sum_r x(r, c) for the 32 columns of this block, 8 rows at a time.
template <typename T, typename Load>
__device__ void column_sums(int64_t rows, int64_t N, T* out, Load x) {
  constexpr int kLanes = kThreads / 32;
  __shared__ T sums[kLanes][32];
  const int64_t c = int64_t{blockIdx.x} * 32 + threadIdx.x % 32;
  T sum = 0;
  if (c < N)
#pragma unroll 4
    for (int64_t r = threadIdx.x / 32; r < rows; r += kLanes) sum += x(r, c);
  sums[threadIdx.x / 32][threadIdx.x % 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32 || c >= N) return;
  for (int lane = 1; lane < kLanes; ++lane) sum += sums[lane][threadIdx.x];
  out[c] = sum;
}

}  // namespace fastwm::cuda
