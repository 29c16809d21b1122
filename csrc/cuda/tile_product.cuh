// x W for the few rows of a scan's step: 16 rows by 16 columns a block, whose warps share out the depth k and add up
// their sums in order. A weight is packed once a call in the order in which its tiles read it.
#pragma once

#include "common.cuh"
#include "mma.cuh"

#include "fastwm/params/rssm_observe.h"

#include <initializer_list>
#include <type_traits>

namespace fastwm::cuda {

constexpr int kTileRows = 16, kTileColumns = 16, kWarps = kThreads / 32;
static_assert(kTileRows * kTileColumns == kThreads);

__host__ __device__ constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
template <typename Int>
__host__ __device__ constexpr Int tiles_of(Int columns) {
  return (columns + kTileColumns - 1) / kTileColumns;
}

// A weight [G, K, N] as tiles [G, N/16][K] of 16 columns; O: what products multiply.
template <typename O>
struct PackedWeight {
  O* data;
  int64_t G, K, N;

  __host__ __device__ int64_t depth() const { return (K + 15) / 16 * 16; }
  __host__ __device__ int64_t tiles() const { return tiles_of(N); }
  __host__ __device__ int64_t size() const { return G * tiles() * depth() * kTileColumns; }
  __device__ const O* tile(int64_t g, int64_t at) const { return data + (g * tiles() + at) * depth() * kTileColumns; }
};

// The place of element (k, c) of a tile: by rows, or as a lane of mma.m16n8k16 reads its second factor, 4 columns of a
// thread's k in one piece for each half of the tile. A product may take its k in any order, and takes 4 at a time.
template <typename O>
__device__ int64_t tile_offset(int64_t k, int c) {
  return k * kTileColumns + c;
}
template <>
__device__ inline int64_t tile_offset<bf16>(int64_t k, int c) {
  const int lane = c % 8 * 4 + static_cast<int>(k % 16) / 4;
  return k / 16 * (16 * kTileColumns) + lane * 8 + c / 8 * 4 + k % 4;
}

// A weight and where to put it. Where `inner` is not 0, k counts through blocks of `inner` rows that are w.sg apart.
template <typename O>
struct Packing {
  Weight from;
  int64_t inner;
  PackedWeight<O> to;
};

constexpr int kMaxPackings = 10;

template <typename O>
struct Packings {
  Packing<O> all[kMaxPackings];
  int count = 0;

  void add(const Weight& from, int64_t inner, const PackedWeight<O>& to) { all[count++] = {from, inner, to}; }
};

// blockIdx.y: which of the weights.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) pack_weights(Packings<O> packings) {
  const Weight& w = packings.all[blockIdx.y].from;
  const PackedWeight<O>& to = packings.all[blockIdx.y].to;
  const int64_t inner = packings.all[blockIdx.y].inner, rows = to.G * to.tiles() * to.depth();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < rows * kTileColumns;
       i += int64_t{gridDim.x} * kThreads) {
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
}

template <typename T, typename O>
void pack(const Packings<O>& packings, cudaStream_t on) {
  int64_t largest = 0;
  for (int i = 0; i < packings.count; ++i)
    largest = packings.all[i].to.size() > largest ? packings.all[i].to.size() : largest;
  if (largest == 0) return;
  const unsigned blocks = blocks_for(largest), most = 1024;
  pack_weights<T, O><<<dim3(blocks < most ? blocks : most, packings.count), kThreads, 0, on>>>(packings);
}

// A thread's read of a row at once: a number, or the 4 in a row that the tensor cores take from a thread.
template <typename A, int kCount>
struct Piece {
  A x[kCount];
};

// Four numbers of a row as the tensor cores take them.
struct Packed {
  uint2 pairs;
};
template <typename A>
__device__ Packed pack_row(const Piece<A, 4>& x) {
  return {make_uint2(bf16_pair(x.x[0], x.x[1]), bf16_pair(x.x[2], x.x[3]))};
}
__device__ inline Packed pack_row(const Packed& x) { return x; }

template <typename P, typename A>
__device__ P read_piece(const A* from) {
  P piece;
  if constexpr (std::is_same_v<P, Packed>) {
    piece.pairs = *reinterpret_cast<const uint2*>(from);
  } else if constexpr (sizeof(P) == 16) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    piece.x[0] = four.x, piece.x[1] = four.y, piece.x[2] = four.z, piece.x[3] = four.w;
  } else {
    piece.x[0] = *from;
  }
  return piece;
}

template <typename P, typename F>
__device__ P each(F f) {
  P piece;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(piece.x) / sizeof(piece.x[0])); ++i) piece.x[i] = f(i);
  return piece;
}

// Tensor cores read 4 numbers of a row at once: a row's width, and what a caller gave, must allow it.
constexpr bool fits_pieces(int64_t width) { return width % 4 == 0; }
inline bool fits_pieces(std::initializer_list<const void*> arrays) {
  for (const void* array : arrays)
    if (reinterpret_cast<uintptr_t>(array) % 16) return false;
  return true;
}

// A thread reads from two rows, row(0) and row(1), and ends with the sums at one row and column. Every load takes
// hundreds of cycles: so weights, which wait for nothing, can be fetched before a barrier, and rows in batches.
template <typename O, int kParts = 1>
class TileProduct {
 public:
  using A = accumulate_t<O>;
  static constexpr bool kMma = sizeof(O) == 2;
  using Row = Piece<A, kMma ? 4 : 1>;
  using Stored = std::conditional_t<kMma, Packed, Row>;  // of a row that is kept as O
  static constexpr int kDepth = kMma ? 1 : 12288 / (kTileRows * static_cast<int>(sizeof(O)));  // of rows at once
  static constexpr int kPartsAtOnce = kMma ? kParts : 1;
  struct Shared {
    O x[kTileRows][kDepth + 1];
    __align__(16) A partial[kPartsAtOnce][kWarps][kTileRows][kTileColumns + 4];
  };
  // A warp's share of `kSteps` times 128 rows of k: of the weights of every part.
  template <int kSteps>
  struct Weights {
    uint4 b[kSteps][kParts];
  };

  __device__ explicit TileProduct(Shared& shared) : s_(shared) {
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums_[part][i] = 0;
  }

  // The rows of x that this thread reads, and the row and column whose sums it gets.
  __device__ static int row(int half) { return (kMma ? threadIdx.x % 32 / 4 : threadIdx.x / 32) + 8 * half; }
  __device__ static int sum_row() { return threadIdx.x / kTileColumns; }
  __device__ static int sum_column() { return threadIdx.x % kTileColumns; }

  template <int kSteps>
  __device__ static Weights<kSteps> fetch(const O* const (&w)[kParts], int K) {
    if constexpr (kMma) {
      Weights<kSteps> weights;
      fetch_from(w, K, 0, weights);
      return weights;
    }
    return {};
  }

  // Adds x W of depth K for the tiles `w[part]`, whose first weights have been fetched. `load(half, k)` reads what
  // `value(half, k, loaded)` makes a Row of (or Packed, of bfloat16), for k within K; meanwhile() stands between the
  // first loads and their use.
  template <int kSteps, typename Load, typename Value, typename Meanwhile>
  __device__ void add(const O* const (&w)[kParts], int K, Weights<kSteps>& ahead, Load load, Value value,
                      Meanwhile meanwhile) {
    if constexpr (kMma) add_by_mma(w, K, ahead, load, value, meanwhile);
    else add_by_fma(w, K, load, value, meanwhile);
  }

  // The sums of every part at sum_row() and sum_column().
  __device__ void finish(A (&out)[kParts]) {
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int first = 0; first < kParts; first += kPartsAtOnce) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kPartsAtOnce; ++i) spread(sums_[first + i], s_.partial[i][warp]);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kPartsAtOnce; ++i) {
        A sum = 0;
#pragma unroll
        for (int from = 0; from < kWarps; ++from) sum += s_.partial[i][from][sum_row()][sum_column()];
        out[first + i] = sum;
      }
    }
  }

 private:
  static constexpr int kSums = kMma ? 8 : kTileRows;
  static constexpr int kStride = 16 * kWarps;  // of k, that the warps multiply at once

  __device__ static int first_k() { return threadIdx.x / 32 * 16; }

  template <int kSteps>
  __device__ static void fetch_from(const O* const (&w)[kParts], int K, int from, Weights<kSteps>& weights) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i)
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int k = from + first_k() + i * kStride;
        const auto* b = reinterpret_cast<const uint4*>(w[part]) + (k * kTileColumns / 8 + threadIdx.x % 32);
        weights.b[i][part] = k < K ? *b : uint4{0, 0, 0, 0};
      }
  }

  template <int kSteps, typename Load, typename Value, typename Meanwhile>
  __device__ void add_by_mma(const O* const (&w)[kParts], int K, Weights<kSteps>& ahead, Load load, Value value,
                             Meanwhile meanwhile) {
    for (int from = 0; from < K; from += kSteps * kStride) {
      if (from > 0) fetch_from(w, K, from, ahead);
      decltype(load(0, 0)) rows[kSteps][2];
      // Beyond K weights are zero, and any row will do: a branch there would keep loads from being started early.
      const auto k_of = [&](int i) {
        const int k = from + first_k() + i * kStride + static_cast<int>(threadIdx.x) % 4 * 4;
        return k < K ? k : K - 4;
      };
#pragma unroll
      for (int i = 0; i < kSteps; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) rows[i][half] = load(half, k_of(i));
      if (from == 0) meanwhile();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        uint2 x[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) x[half] = pack_row(value(half, k_of(i), rows[i][half])).pairs;
        const uint32_t a[4] = {x[0].x, x[1].x, x[0].y, x[1].y};
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const uint4 b = ahead.b[i][part];
          mma(&sums_[part][0], a, make_uint2(b.x, b.y));
          mma(&sums_[part][4], a, make_uint2(b.z, b.w));
        }
      }
    }
  }

  // Lanes are columns, twice: the halves of a warp take turns in k.
  template <typename Load, typename Value, typename Meanwhile>
  __device__ void add_by_fma(const O* const (&w)[kParts], int K, Load load, Value value, Meanwhile meanwhile) {
    meanwhile();
    const int column = threadIdx.x % kTileColumns, step = threadIdx.x / kTileColumns;
    for (int first = 0; first < K; first += kDepth) {
      const int depth = K - first < kDepth ? K - first : kDepth;
      __syncthreads();  // the rows before have been read
      for (int k = threadIdx.x % 32; k < depth; k += 32)
#pragma unroll
        for (int half = 0; half < 2; ++half) s_.x[row(half)][k] = value(half, first + k, load(half, first + k)).x[0];
      __syncthreads();
#pragma unroll 2
      for (int k = step; k < depth; k += kTileRows)
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const O weight = w[part][(first + k) * kTileColumns + column];
#pragma unroll
          for (int r = 0; r < kTileRows; ++r) sums_[part][r] += s_.x[r][k] * weight;
        }
    }
  }

  __device__ static void spread(const A (&sums)[kSums], A (&out)[kTileRows][kTileColumns + 4]) {
    const int lane = threadIdx.x % 32;
    if constexpr (kMma) {
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        A* to = &out[lane / 4 + i % 4 / 2 * 8][i / 4 * 8 + lane % 4 * 2];
        *reinterpret_cast<float2*>(to) = make_float2(sums[i], sums[i + 1]);
      }
    } else {
#pragma unroll
      for (int r = 0; r < kTileRows; ++r) {
        const A both = sums[r] + __shfl_xor_sync(0xffffffffu, sums[r], kTileColumns);
        if (lane < kTileColumns) out[r][lane] = both;
      }
    }
  }

  Shared& s_;
  A sums_[kParts][kSums];
};

}  // namespace fastwm::cuda
