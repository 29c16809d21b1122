// What an RSSM's step kernels share: RMS norms across the tiles of a row, and one categorical after another.
#pragma once

#include "reduce.cuh"
#include "tile_product.cuh"

#include "fastwm/vecmath.h"

namespace fastwm::cuda {

// This block's 16 rows of a batch of B.
struct Rows {
  int64_t first, count;

  __device__ explicit Rows(int64_t B) : first(int64_t{blockIdx.y} * kTileRows), count(B - first) {}
  __device__ bool has(int r) const { return r < count; }
};

// Each tile of a layer leaves its share of a sum over each row, sums [B, tiles]; a reader of whole rows adds the
// shares up in order, and divides by the row's width. means: of rows r = 0..15.
template <typename A>
__device__ void row_means(const Rows& rows, const A* sums, int64_t tiles, int64_t width, A* means) {
  const int lane = threadIdx.x % 32;
  for (int r = threadIdx.x / 32; r < kTileRows; r += kWarps) {
    A sum = 0;
    if (rows.has(r))
      for (int64_t tile = lane; tile < tiles; tile += 32) sum += sums[(rows.first + r) * tiles + tile];
    sum = group_sum<32>(sum);
    if (lane == 0) means[r] = sum / static_cast<A>(width);
  }
  __syncthreads();
}

// The same of squares, as 1 / sqrt(mean + eps).
template <typename A>
__device__ void inverse_rms(const Rows& rows, const A* sums, int64_t tiles, int64_t width, A eps, A* inverse) {
  row_means(rows, sums, tiles, width, inverse);
  if (threadIdx.x < kTileRows) inverse[threadIdx.x] = 1 / sqrt(inverse[threadIdx.x] + eps);
  __syncthreads();
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
};

// A row's categoricals: a warp for each of them, as far as a block has warps.
constexpr int kSampleThreads = 512;
static inline unsigned sample_threads(const RssmSizes& n) {
  return static_cast<unsigned>(32 * n.S < kSampleThreads ? 32 * n.S : kSampleThreads);
}

// Softmax of C logits by one warp: returns each class's share at `lane` + 32 i through `each(c, probability)`.
template <typename A, typename Each>
__device__ void softmax(const A* logits, int64_t C, Each each) {
  const int lane = threadIdx.x % 32;
  A top = -INFINITY;
  for (int64_t c = lane; c < C; c += 32) top = logits[c] > top ? logits[c] : top;
  top = group_reduce<32>(top, Max{});
  A sum = 0;
  for (int64_t c = lane; c < C; c += 32) sum += vexp(logits[c] - top);
  const A scale = 1 / group_sum<32>(sum);
  for (int64_t c = lane; c < C; c += 32) each(c, vexp(logits[c] - top) * scale);
}

}  // namespace fastwm::cuda
