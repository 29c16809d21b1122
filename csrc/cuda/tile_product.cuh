// x W for the few rows of a scan's step: 16 rows by 32 columns a block, whose warps share out the depth k and add up
// their sums in order. A weight is packed once a call in the order in which its tiles read it.
#pragma once

#include "common.cuh"
#include "mma.cuh"

#include "fastwm/rssm_observe.h"

namespace fastwm::cuda {

constexpr int kTileRows = 16, kTileColumns = 32, kWarps = kThreads / 32;

__host__ __device__ constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// A weight [G, K, N] as tiles [G, N/32][K] of 32 columns; O: what products multiply.
template <typename O>
struct PackedWeight {
  O* data;
  int64_t G, K, N;

  __host__ __device__ int64_t depth() const { return (K + 15) / 16 * 16; }
  __host__ __device__ int64_t tiles() const { return (N + kTileColumns - 1) / kTileColumns; }
  __host__ __device__ int64_t size() const { return G * tiles() * depth() * kTileColumns; }
  __device__ const O* tile(int64_t g, int64_t at) const { return data + (g * tiles() + at) * depth() * kTileColumns; }
};

// Where element (k, c) of a tile lies: by rows, or as mma.m16n8k16 reads its second factor, 4 values a lane.
template <typename O>
__device__ int64_t tile_offset(int64_t k, int c) { return k * kTileColumns + c; }
template <>
__device__ inline int64_t tile_offset<bf16>(int64_t k, int c) {
  const int in = static_cast<int>(k % 16), lane = (c % 8) * 4 + in % 8 / 2;
  return k / 16 * (16 * kTileColumns) + (c / 8 * 32 + lane) * 4 + in / 8 * 2 + in % 2;
}

// Where `inner` is not 0, k counts through blocks of `inner` rows that lie w.sg apart.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) pack_weight(Weight w, int64_t inner, PackedWeight<O> to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t rows = to.G * to.tiles() * to.depth();
  if (i >= rows * kTileColumns) return;
  const int c = static_cast<int>(i % kTileColumns);
  const int64_t row = i / kTileColumns, k = row % to.depth(), tile = row / to.depth();
  const int64_t g = tile / to.tiles(), n = tile % to.tiles() * kTileColumns + c;
  accumulate_t<O> value = 0;
  if (k < to.K && n < to.N) {
    const int64_t at = inner ? k / inner * w.sg + k % inner * w.sk : g * w.sg + k * w.sk;
    value = static_cast<const T*>(w.data)[at + n * w.sn];
  }
  narrow(value, to.data[tile * to.depth() * kTileColumns + tile_offset<O>(k, c)]);
}

template <typename T, typename O>
void pack(const Weight& w, int64_t inner, const PackedWeight<O>& to, cudaStream_t on) {
  if (to.size() > 0) pack_weight<T, O><<<blocks_for(to.size()), kThreads, 0, on>>>(w, inner, to);
}

template <typename O, int kParts = 1>
class TileProduct {
 public:
  using A = accumulate_t<O>;
  static constexpr int kPad = 16 / static_cast<int>(sizeof(O));
  static constexpr int kDepth = 12288 / (kTileRows * static_cast<int>(sizeof(O)));
  struct Shared {
    __align__(16) O x[kTileRows][kDepth + kPad];
    A partial[kWarps][kTileRows][kTileColumns];
  };

  __device__ explicit TileProduct(Shared& shared) : s_(shared) {
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int i = 0; i < kTileRows; ++i) sums_[part][i] = 0;
  }

  // Adds x W, x(r, k) given by `load`, for the tiles `w[part]` of depth K.
  template <typename Load>
  __device__ void add(const O* const (&w)[kParts], int64_t K, Load load) {
    for (int64_t first = 0; first < K; first += kDepth) {
      const int depth = static_cast<int>(K - first < kDepth ? (K - first + 15) / 16 * 16 : kDepth);
      __syncthreads();  // the rows before have been read
      for (int i = threadIdx.x; i < kTileRows * depth; i += kThreads) {
        const int r = i / depth, k = i % depth;
        narrow(first + k < K ? load(r, first + k) : A{0}, s_.x[r][k]);
      }
      __syncthreads();
      const O* tiles[kParts];
#pragma unroll
      for (int part = 0; part < kParts; ++part) tiles[part] = w[part] + first * kTileColumns;
      multiply(tiles, depth, O{});
    }
  }

  // The sums at rows r = warp and warp + 8 of column `lane`, of every part.
  __device__ void finish(A (&out)[kParts][2]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      __syncthreads();
      spread(part, O{});
      __syncthreads();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        A sum = 0;
        for (int from = 0; from < kWarps; ++from) sum += s_.partial[from][warp + kWarps * half][lane];
        out[part][half] = sum;
      }
    }
  }

 private:
  template <typename F>
  __device__ void multiply(const O* const (&w)[kParts], int depth, F) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int k = warp; k < depth; k += kWarps) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const A weight = w[part][k * kTileColumns + lane];
#pragma unroll
        for (int r = 0; r < kTileRows; ++r) sums_[part][r] += s_.x[r][k] * weight;
      }
    }
  }

  // Every lane holds two columns of rows lane / 4 and lane / 4 + 8, of each of four tiles of 8 columns.
  __device__ void multiply(const O* const (&w)[kParts], int depth, bf16) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = lane / 4, pair = lane % 4 * 2;
    for (int k = warp * 16; k < depth; k += kWarps * 16) {
      const auto two = [&](int r, int at) { return *reinterpret_cast<const uint32_t*>(&s_.x[r][k + at]); };
      const uint32_t a[4] = {two(row, pair), two(row + 8, pair), two(row, pair + 8), two(row + 8, pair + 8)};
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const auto* b = reinterpret_cast<const uint2*>(w[part] + k * kTileColumns) + lane;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const uint2 two_of_k = b[32 * n];
          mma(&sums_[part][4 * n], a, two_of_k);
        }
      }
    }
  }

  template <typename F>
  __device__ void spread(int part, F) {
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) s_.partial[threadIdx.x / 32][r][threadIdx.x % 32] = sums_[part][r];
  }

  __device__ void spread(int part, bf16) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 16; ++i)
      s_.partial[threadIdx.x / 32][lane / 4 + i % 4 / 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2] = sums_[part][i];
  }

  Shared& s_;
  A sums_[kParts][kTileRows];
};

}  // namespace fastwm::cuda
