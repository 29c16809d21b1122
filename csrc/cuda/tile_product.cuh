// x W for the few rows of a scan's step: 16 rows by 32 columns a block, whose warps share out the depth k and add up
// their sums in order. A weight is packed once a call in the order in which its tiles read it.
#pragma once

#include "common.cuh"
#include "mma.cuh"

#include "fastwm/rssm_observe.h"

#include <type_traits>

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

// Nobody asks for the rows that a product read.
struct NoSink {
  template <typename A>
  __device__ void operator()(int, int64_t, A) const {}
};

// The grid is small and every load takes hundreds of cycles: so weights, which wait for nothing, are fetched before
// the rows, and rows in batches.
template <typename O, int kParts = 1>
class TileProduct {
 public:
  using A = accumulate_t<O>;
  static constexpr bool kMma = sizeof(O) == 2;
  static constexpr int kPad = 16 / static_cast<int>(sizeof(O));
  static constexpr int kDepth = 12288 / (kTileRows * static_cast<int>(sizeof(O)));
  static constexpr int kStep = kMma ? 16 : 1;        // of k, that a warp multiplies at once
  static constexpr int kStride = kStep * kWarps;
  static constexpr int kAhead = kParts == 1 ? 4 : 2;  // steps fetched at once
  struct Shared {
    __align__(16) O x[kTileRows][kDepth + kPad];
    A partial[kWarps][kTileRows][kTileColumns];
  };

  // rows: how many there are, at least 1.
  __device__ TileProduct(Shared& shared, int64_t rows)
      : s_(shared), last_row_(rows < kTileRows ? static_cast<int>(rows) - 1 : kTileRows - 1) {
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int i = 0; i < kTileRows; ++i) sums_[part][i] = 0;
  }

  // Adds x W, x(r, k) given by `load` for rows there are, for the tiles `w[part]` of depth K. `load` must not write;
  // `sink(r, k, x)` may. kBatch: loads of a row in flight.
  template <int kBatch = 4, typename Load, typename Sink = NoSink>
  __device__ void add(const O* const (&w)[kParts], int64_t K, Load load, Sink sink = {}) {
    const int begin = threadIdx.x / 32 * kStep;
    for (int64_t first = 0; first < K; first += kDepth) {
      const int depth = static_cast<int>(K - first < kDepth ? (K - first + 15) / 16 * 16 : kDepth);
      const O* tiles[kParts];
#pragma unroll
      for (int part = 0; part < kParts; ++part) tiles[part] = w[part] + first * kTileColumns;
      Ahead ahead;
      fetch(tiles, begin, depth, ahead);
      __syncthreads();  // the rows before have been read
      fill<kBatch>(first, depth, K, load, sink);
      __syncthreads();
      for (int k = begin; k < depth; k += kAhead * kStride) {
        if (k > begin) fetch(tiles, k, depth, ahead);
        multiply(k, depth, ahead, O{});
      }
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
#pragma unroll
        for (int from = 0; from < kWarps; ++from) sum += s_.partial[from][warp + kWarps * half][lane];
        out[part][half] = sum;
      }
    }
  }

 private:
  struct Ahead {
    std::conditional_t<kMma, uint2, A> w[kAhead][kParts][kMma ? 4 : 1];
  };

  template <int kBatch, typename Load, typename Sink>
  __device__ void fill(int64_t first, int depth, int64_t K, Load load, Sink sink) {
    const int warp = threadIdx.x / 32;
    for (int from = threadIdx.x % 32; from < depth; from += 32 * kBatch) {
      A values[2][kBatch];
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int r = warp + kWarps * half;
          const int64_t k = first + from + 32 * i;
          values[half][i] = load(r < last_row_ ? r : last_row_, k < K ? k : K - 1);
        }
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int r = warp + kWarps * half, k = from + 32 * i;
          if (k >= depth) continue;
          const bool inside = r <= last_row_ && first + k < K;
          narrow(inside ? values[half][i] : A{0}, s_.x[r][k]);
          if (inside) sink(r, first + k, values[half][i]);
        }
    }
  }

  template <typename F>
  __device__ static void fetch(const F* const (&w)[kParts], int k, int depth, Ahead& ahead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (k + i * kStride < depth)
          ahead.w[i][part][0] = w[part][(k + i * kStride) * kTileColumns + threadIdx.x % 32];
  }

  __device__ static void fetch(const bf16* const (&w)[kParts], int k, int depth, Ahead& ahead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const auto* b = reinterpret_cast<const uint2*>(w[part] + (k + i * kStride) * kTileColumns) + threadIdx.x % 32;
#pragma unroll
        for (int n = 0; n < 4; ++n)
          if (k + i * kStride < depth) ahead.w[i][part][n] = b[32 * n];
      }
  }

  template <typename F>
  __device__ void multiply(int k, int depth, const Ahead& ahead, F) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (k + i * kStride >= depth) return;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int r = 0; r < kTileRows; ++r) sums_[part][r] += s_.x[r][k + i * kStride] * ahead.w[i][part][0];
    }
  }

  // Every lane holds two columns of rows lane / 4 and lane / 4 + 8, of each of four tiles of 8 columns.
  __device__ void multiply(int first, int depth, const Ahead& ahead, bf16) {
    const int row = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int k = first + i * kStride;
      if (k >= depth) return;
      const auto two = [&](int r, int at) { return *reinterpret_cast<const uint32_t*>(&s_.x[r][k + at]); };
      const uint32_t a[4] = {two(row, pair), two(row + 8, pair), two(row, pair + 8), two(row + 8, pair + 8)};
#pragma unroll
      for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int n = 0; n < 4; ++n) mma(&sums_[part][4 * n], a, ahead.w[i][part][n]);
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
  const int last_row_;
  A sums_[kParts][kTileRows];
};

}  // namespace fastwm::cuda
