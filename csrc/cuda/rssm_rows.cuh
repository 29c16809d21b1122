// Shared by an RSSM's stages: RMS norms across the tiles of a row, and one categorical after another.
#pragma once

#include "reduce.cuh"
#include "tile_product.cuh"
#include "together.cuh"

#include "fastwm/inverse_cdf.h"
#include "fastwm/vecmath.h"

namespace fastwm::cuda {

// 16 rows of a batch of B. Rows beyond the last are read as the last, and never written.
struct Rows {
  int first, count;

  __device__ Rows(int64_t tile, int64_t B)
      : first(static_cast<int>(tile * kTileRows)),
        count(static_cast<int>(B - first < kTileRows ? B - first : kTileRows)) {}
  __device__ bool has(int r) const { return r < count; }
  __device__ int at(int r) const { return first + (has(r) ? r : count - 1); }
};

// A thread's places in its 16 rows: the two that it reads for a product, and the one whose sums it gets.
template <typename Product>
struct Places {
  Rows rows;
  int read[2], row, column;  // of the batch; in the tile
  bool writes;               // the row is there

  __device__ Places(int64_t tile, int64_t B)
      : rows(tile, B), read{rows.at(Product::row(0)), rows.at(Product::row(1))}, row(rows.at(Product::sum_row())),
        column(Product::sum_column()), writes(rows.has(Product::sum_row())) {}
};

__host__ __device__ constexpr int64_t row_tiles(int64_t B) { return (B + kTileRows - 1) / kTileRows; }

// Each tile of a layer leaves its share of a sum over each row, sums [B, tiles]; a reader of whole rows adds the
// shares up in order, a warp two rows, and divides by the row's width. means[r], r = 0..15, is what f makes of it, for
// the whole block after the next __syncthreads.
template <typename A, typename F>
__device__ void row_means(const Rows& rows, const A* sums, int tiles, int width, A* means, F f) {
  constexpr int kBatch = 4;  // loads of a row in flight
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  A sum[2] = {0, 0};
  for (int first = 0; first < tiles; first += 32 * kBatch) {
    A shares[2][kBatch];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int tile = first + lane + 32 * i;
        shares[half][i] = tile < tiles ? sums[rows.at(warp + kWarps * half) * tiles + tile] : A{0};
      }
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < kBatch; ++i) sum[half] += shares[half][i];
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const A mean = vdivide(group_sum<32>(sum[half]), static_cast<A>(width));
    if (lane == 0) means[warp + kWarps * half] = f(mean);
  }
}

__device__ inline float inverse_rms(float mean_square, float eps) { return rsqrtf(mean_square + eps); }
__device__ inline double inverse_rms(double mean_square, double eps) { return rsqrt(mean_square + eps); }

// Adds x over the 16 columns of a tile; the row's first thread leaves its share in sums [B, tiles].
template <typename A>
__device__ void leave_share(const Rows& rows, A x, A* sums, int tiles, int tile) {
  const A sum = group_sum<kTileColumns>(x);
  const int r = threadIdx.x / kTileColumns;
  if (threadIdx.x % kTileColumns == 0 && rows.has(r)) sums[(rows.first + r) * tiles + tile] = sum;
}

// Hands out the parts of one allocation.
struct Scratch {
  unsigned char* at;
  int64_t used = 0;

  template <typename X>
  X* take(int64_t count) {
    X* part = reinterpret_cast<X*>(at + used);
    used += round_up(count * static_cast<int64_t>(sizeof(X)), 256);
    return part;
  }
  template <typename O>
  void take(PackedWeight<O>& w) {
    w.data = take<O>(w.size());
  }
};

// Whether one turn of a block's warps takes all units, and all of a block's share of deter. Where there are no tensor
// cores' turns, the narrow kernel is the wide one.
inline bool is_narrow(const RssmSizes& n) { return n.U <= 64 && n.J() <= 128; }
template <typename O>
constexpr int kNarrow = sizeof(O) == 2 ? 1 : 2;

// Tensor cores take pieces of rows.
inline bool fits_pieces(const RssmSizes& n) { return fits_pieces(n.J()) && fits_pieces(n.U) && fits_pieces(n.Z()); }

// A row's categoricals, 8 lanes each, so that a block has 32 in hand.
constexpr int kClassLanes = 8, kCategoricals = kThreads / kClassLanes;

template <typename A, int kLanes = kClassLanes>
struct Softmax {
  A top, scale;

  // The softmax of C logits, by the lanes of a group.
  __device__ Softmax(const A* logits, int C) {
    const int lane = threadIdx.x % kLanes;
    top = -INFINITY;
    for (int c = lane; c < C; c += kLanes) top = logits[c] > top ? logits[c] : top;
    top = group_reduce<kLanes>(top, Max{});
    A sum = 0;
    for (int c = lane; c < C; c += kLanes) sum += vexp(logits[c] - top);
    scale = vdivide(A{1}, group_sum<kLanes>(sum));
  }
  __device__ A of(A logit) const { return vexp(logit - top) * scale; }
};

// A class, and what the sample has there: 1, or NaN, as in all classes, where the logits or the uniform number are.
template <typename A>
struct Drawn {
  int index;
  A one;

  __device__ A at(int c) const { return c == index ? one : one - 1; }
};

// The class on which `draw` in [0, 1) falls, by the lanes of a group: the probabilities are added up in the classes' order.
template <int kLanes, typename A>
__device__ Drawn<A> draw_class(const A* logits, int C, A unimix, A draw) {
  const int lane = threadIdx.x % kLanes;
  const A floor = vdivide(unimix, static_cast<A>(C));
  const Softmax<A, kLanes> softmax(logits, C);
  A cdf = 0;
  int index = 0;
  for (int first = 0; first < C; first += kLanes) {
    const int c = first + lane;
    const A share = c < C ? (1 - unimix) * softmax.of(logits[c]) + floor : A{0};
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      cdf += __shfl_sync(0xffffffffu, share, i, kLanes);
      index += first + i + 1 < C && cdf <= draw ? 1 : 0;
    }
  }
  if (unimix == 0) index = last_drawable(index, C, [&](int c) { return softmax.of(logits[c]); });
  return {index, 1 + nothing_of(softmax.scale + draw)};
}

}  // namespace fastwm::cuda
