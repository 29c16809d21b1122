// Gates: one thread an element, neighbouring threads on neighbouring elements, so every access is coalesced.
// LayerNorm in front of them: one block a row; its backward one block a chunk of rows, which sums its share of the
// weights' gradients in a fixed order, without atomics.
#include "common.cuh"

#include "fastwm/cells.h"

namespace fastwm::cuda {
namespace {

template <typename Cell, typename G, typename C, typename Params>
__global__ void __launch_bounds__(kThreads) pointwise(Params p) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.rows * p.width) return;
  const bool is_small = (i >> 32) == 0 && (p.width >> 32) == 0;  // a 64-bit division costs ten times as much
  const int64_t row = is_small ? static_cast<uint32_t>(i) / static_cast<uint32_t>(p.width) : i / p.width;
  Cell::run(p, Element<G, C>{row, i - row * p.width, p.width});
}

template <typename Cell, typename Params>
const char* run(const Params& p, void* stream) {
  const unsigned blocks = blocks_for(p.rows * p.width);
  if (blocks == 0) return nullptr;
  dispatch(p, [&](auto g, auto c) {
    pointwise<Cell, decltype(g), decltype(c), Params><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  });
  return launch_error();
}

// ---------------------------------------------------------------------------------------------- LayerNorm GRU

__device__ __forceinline__ float reciprocal_root(float x) { return rsqrtf(x); }
__device__ __forceinline__ double reciprocal_root(double x) { return rsqrt(x); }

template <typename A>
__device__ __forceinline__ A warp_sum(A x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// The block's sums of x and y, for every thread.
template <typename A>
__device__ __forceinline__ void block_sums(A& x, A& y) {
  constexpr int kWarps = kThreads / 32;
  __shared__ A sums[2][kWarps];
  x = warp_sum(x);
  y = warp_sum(y);
  __syncthreads();  // the sums of the call before this one have been read
  if (threadIdx.x % 32 == 0) {
    sums[0][threadIdx.x / 32] = x;
    sums[1][threadIdx.x / 32] = y;
  }
  __syncthreads();
  x = y = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    x += sums[0][warp];
    y += sums[1][warp];
  }
}

template <typename G, typename C>
__global__ void __launch_bounds__(kThreads) layernorm_forward(LayernormGruGates p) {
  using A = accumulate_t<C>;
  const int64_t row = blockIdx.x, D = p.width, wide = 3 * D;
  const G* gates = static_cast<const G*>(p.gates) + row * wide;
  const C *weight = static_cast<const C*>(p.weight), *bias = static_cast<const C*>(p.bias);
  A sum = 0, squares = 0, none = 0;
  for (int64_t j = threadIdx.x; j < wide; j += kThreads) sum += widen(gates[j]);
  block_sums(sum, none);
  const A mean = sum / static_cast<A>(wide);
  for (int64_t j = threadIdx.x; j < wide; j += kThreads) squares += (widen(gates[j]) - mean) * (widen(gates[j]) - mean);
  block_sums(squares, none);
  const A rstd = reciprocal_root(squares / static_cast<A>(wide) + static_cast<A>(p.eps));
  if (threadIdx.x == 0) {
    static_cast<A*>(p.stats)[2 * row] = mean;
    static_cast<A*>(p.stats)[2 * row + 1] = rstd;
  }
  const A update_bias = static_cast<A>(p.update_bias);
  for (int64_t j = threadIdx.x; j < D; j += kThreads) {
    A sums[3];
#pragma unroll
    for (int k = 0; k < 3; ++k)
      sums[k] = norm_gate(widen(gates[k * D + j]), mean, rstd, widen(weight[k * D + j]), widen(bias[k * D + j])).value;
    const auto y = block_gru_gates(sums[0], sums[1], sums[2] + update_bias);
    const A h = widen(static_cast<const C*>(p.h)[row * D + j]);
    narrow(mix(y.update, y.cand, h), static_cast<C*>(p.y)[row * D + j]);
  }
}

// Every thread owns the same columns of all rows of its chunk, so that its sums need no synchronisation.
template <typename G, typename C>
__global__ void __launch_bounds__(kThreads) layernorm_backward(LayernormGruGatesBackward p) {
  using A = accumulate_t<C>;
  const int64_t D = p.width, wide = 3 * D;
  const int64_t first = blockIdx.x * p.rows / p.chunks, end = (blockIdx.x + 1) * p.rows / p.chunks;
  const C *weight = static_cast<const C*>(p.weight), *bias = static_cast<const C*>(p.bias);
  A* d_weight = static_cast<A*>(p.scratch) + 3 * blockIdx.x * wide;
  A *d_bias = d_weight + wide, *d_norm = d_bias + wide;
  const A update_bias = static_cast<A>(p.update_bias);
  for (int64_t j = threadIdx.x; j < D; j += kThreads)
    for (int k = 0; k < 3; ++k) d_weight[k * D + j] = d_bias[k * D + j] = 0;
  for (int64_t row = first; row < end; ++row) {
    const A mean = static_cast<const A*>(p.stats)[2 * row], rstd = static_cast<const A*>(p.stats)[2 * row + 1];
    const G* gates = static_cast<const G*>(p.gates) + row * wide;
    G* d_gates = static_cast<G*>(p.d_gates) + row * wide;
    A sum = 0, dot = 0;
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < D; j += kThreads) {
      const A grad = widen(static_cast<const C*>(p.g_y)[row * D + j]);
      NormedGate<A> sums[3];
#pragma unroll
      for (int k = 0; k < 3; ++k)
        sums[k] = norm_gate(widen(gates[k * D + j]), mean, rstd, widen(weight[k * D + j]), widen(bias[k * D + j]));
      const A h = widen(static_cast<const C*>(p.h)[row * D + j]);
      const auto y = block_gru_gates(sums[0].value, sums[1].value, sums[2].value + update_bias);
      const auto d_y = block_gru_backward(y, sums[1].value, h, grad);
      narrow(d_y.h, static_cast<C*>(p.d_h)[row * D + j]);
      const A d_sums[3] = {d_y.reset, d_y.cand, d_y.update};
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        const A d = d_sums[k] * widen(weight[k * D + j]);
        d_weight[k * D + j] += d_sums[k] * sums[k].normal;
        d_bias[k * D + j] += d_sums[k];
        d_norm[k * D + j] = d;
        sum += d;
        dot += d * sums[k].normal;
      }
    }
    block_sums(sum, dot);
    sum /= static_cast<A>(wide);
    dot /= static_cast<A>(wide);
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < D; j += kThreads)
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        const A norm = (widen(gates[k * D + j]) - mean) * rstd;
        narrow(rstd * (d_norm[k * D + j] - sum - norm * dot), d_gates[k * D + j]);
      }
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads) sum_chunks(LayernormGruGatesBackward p) {
  using A = accumulate_t<C>;
  const int64_t wide = 3 * p.width, j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= wide) return;
  const A* scratch = static_cast<const A*>(p.scratch);
  A d_weight = 0, d_bias = 0;
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
    d_weight += scratch[3 * chunk * wide + j];
    d_bias += scratch[(3 * chunk + 1) * wide + j];
  }
  narrow(d_weight, static_cast<C*>(p.d_weight)[j]);
  narrow(d_bias, static_cast<C*>(p.d_bias)[j]);
}

}  // namespace

const char* gru_gates_kernel(const GruCells& p, void* stream) { return run<Gru>(p, stream); }
const char* gru_gates_backward_kernel(const GruCellsBackward& p, void* stream) { return run<Gru>(p, stream); }
const char* block_gru_gates_kernel(const BlockGruCells& p, void* stream) { return run<BlockGru>(p, stream); }
const char* block_gru_gates_backward_kernel(const BlockGruCellsBackward& p, void* stream) {
  return run<BlockGru>(p, stream);
}
const char* planet_gru_reset_kernel(const PlanetGruReset& p, void* stream) { return run<PlanetGru>(p, stream); }
const char* planet_gru_reset_backward_kernel(const PlanetGruResetBackward& p, void* stream) {
  return run<PlanetGru>(p, stream);
}
const char* planet_gru_update_kernel(const PlanetGruUpdate& p, void* stream) { return run<PlanetGru>(p, stream); }
const char* planet_gru_update_backward_kernel(const PlanetGruUpdateBackward& p, void* stream) {
  return run<PlanetGru>(p, stream);
}
const char* lstm_gates_kernel(const LstmCells& p, void* stream) {
  return p.ijfo ? run<Lstm<true>>(p, stream) : run<Lstm<false>>(p, stream);
}
const char* lstm_gates_backward_kernel(const LstmCellsBackward& p, void* stream) {
  return p.ijfo ? run<Lstm<true>>(p, stream) : run<Lstm<false>>(p, stream);
}

const char* layernorm_gru_gates_kernel(const LayernormGruGates& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  dispatch(p, [&](auto g, auto c) {
    layernorm_forward<decltype(g), decltype(c)><<<static_cast<unsigned>(p.rows), kThreads, 0, on>>>(p);
  });
  return launch_error();
}

const char* layernorm_gru_gates_backward_kernel(const LayernormGruGatesBackward& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  dispatch(p, [&](auto g, auto c) {
    layernorm_backward<decltype(g), decltype(c)><<<static_cast<unsigned>(p.chunks), kThreads, 0, on>>>(p);
    sum_chunks<decltype(c)><<<blocks_for(3 * p.width), kThreads, 0, on>>>(p);
  });
  return launch_error();
}

}  // namespace fastwm::cuda
