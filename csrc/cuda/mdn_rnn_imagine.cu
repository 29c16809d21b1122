// A block dreams a few dreams to their end in one launch. Their state stays in shared memory; the weights, which every
// block reads at every step, come from L2. A thread computes all four gates of a unit for all the block's dreams.
#include "common.cuh"
#include "reduce.cuh"

#include "fastwm/mdn.h"
#include "fastwm/params/mdn_rnn_imagine.h"
#include "fastwm/philox.h"
#include "math/lstm.h"

namespace fastwm::cuda {
namespace {

constexpr int kMostThreads = 512;

// One number of each of the block's dreams: two vector loads.
template <typename T>
struct __align__(16) Rows {
  static constexpr int count = 32 / sizeof(T);
  T of[count];
};

// sums[g] += x W over the columns `column` + g * step.
template <int columns, typename T>
__device__ void multiply(const Rows<T>* x, int64_t K, const Weight& w, int64_t column, int64_t step,
                         Rows<T> (&sums)[columns]) {
  const T* at = static_cast<const T*>(w.data) + column * w.sn;
#pragma unroll 4
  for (int64_t k = 0; k < K; ++k) {
    const Rows<T> row = x[k];
#pragma unroll
    for (int g = 0; g < columns; ++g) {
      const T weight = __ldg(at + k * w.sk + g * step * w.sn);
#pragma unroll
      for (int r = 0; r < Rows<T>::count; ++r) sums[g].of[r] += row.of[r] * weight;
    }
  }
}

template <typename T>
__device__ Rows<T> all_rows(T value) {
  Rows<T> rows;
#pragma unroll
  for (int r = 0; r < Rows<T>::count; ++r) rows.of[r] = value;
  return rows;
}

template <typename T>
struct Block {
  Rows<T>*h, *next_h, *c;  // [H]
  Rows<T>* x;              // [I]: z, action, restart
  Rows<T>* out;            // [outputs]
  int64_t first;           // dream

  __device__ T feature(const MdnRnnImagine& p, int64_t i, int r) const {
    if (i < p.Z) return x[i].of[r];
    i -= p.Z;
    if (p.F == p.Z + p.H) return h[i].of[r];
    return i < p.H ? c[i].of[r] : h[i - p.H].of[r];
  }

  // A warp an action of a dream.
  __device__ void act(const MdnRnnImagine& p, int64_t t, const bool* alive) const {
    constexpr int R = Rows<T>::count;
    const int lane = threadIdx.x % 32;
    for (int64_t i = threadIdx.x / 32; i < R * p.A; i += blockDim.x / 32) {
      const int r = static_cast<int>(i % R);
      const int64_t a = i / R, n = min(first + r, p.N - 1), candidate = n / (p.N / p.P) * p.A + a;
      const T* w = static_cast<const T*>(p.controllers) + candidate * p.F;
      T sum = 0;
      for (int64_t f = lane; f < p.F; f += 32) sum += w[f] * feature(p, f, r);
      sum = group_sum<32>(sum);
      if (p.controller_bias != nullptr) sum += static_cast<const T*>(p.controller_bias)[candidate];
      T action = vtanh(sum);
      if (p.car && a == 1) action = (action + 1) / 2;
      if (p.car && a == 2) action = action < 0 ? 0 : action;
      if (lane == 0) x[p.Z + a].of[r] = action;
      if (lane == 0 && p.action != nullptr && alive[r]) static_cast<T*>(p.action)[(t * p.N + n) * p.A + a] = action;
    }
    if (p.I > p.Z + p.A && threadIdx.x < R) x[p.I - 1].of[threadIdx.x] = t == 0 ? 1 : 0;
  }

  __device__ void lstm(const MdnRnnImagine& p) const {
    const T* bias = static_cast<const T*>(p.bias);
    for (int64_t j = threadIdx.x; j < p.H; j += blockDim.x) {
      Rows<T> gates[4];
#pragma unroll
      for (int g = 0; g < 4; ++g) gates[g] = all_rows(bias[g * p.H + j]);
      multiply(x, p.I, p.ih, j, p.H, gates);
      multiply(h, p.H, p.hh, j, p.H, gates);
      Rows<T> cell = c[j], hidden;
#pragma unroll
      for (int r = 0; r < Rows<T>::count; ++r) {
        LstmGates<T> sums = lstm_order(gates[0].of[r], gates[1].of[r], gates[2].of[r], gates[3].of[r], p.ijfo);
        sums.forget += static_cast<T>(p.forget_bias);
        const LstmGates<T> y = lstm_gates(sums);
        cell.of[r] = lstm_cell(y.in, y.forget, y.cand, cell.of[r]);
        hidden.of[r] = y.out * gate_tanh(cell.of[r]);
      }
      c[j] = cell;
      next_h[j] = hidden;
    }
  }

  __device__ void outputs(const MdnRnnImagine& p) const {
    const int64_t count = p.extra + 3 * p.Z * p.K;
    for (int64_t o = threadIdx.x; o < count; o += blockDim.x) {
      Rows<T> sums[1] = {all_rows(static_cast<const T*>(p.out_bias)[o])};
      multiply(h, p.H, p.out, o, 0, sums);
      out[o] = sums[0];
    }
  }

  // A thread a latent of a dream.
  __device__ void sample(const MdnRnnImagine& p, int64_t t, const bool* alive) const {
    constexpr int R = Rows<T>::count;
    const T inverse_temperature = static_cast<T>(1 / p.temperature);
    for (int64_t i = threadIdx.x; i < R * p.Z; i += blockDim.x) {
      const int r = static_cast<int>(i % R);
      const int64_t z = i / R, n = first + r;
      if (!alive[r]) continue;
      const uint64_t seed = p.seed_offset[2 * n], offset = static_cast<uint64_t>(p.seed_offset[2 * n + 1]) + t;
      const uint64_t block = z / 4, blocks = (p.Z + 3) / 4;
      const Philox words = philox_block(seed, offset, block + blocks);
      const bool second = z % 4 >= 2;
      float normal, other;
      philox_normal(words.x[second ? 2 : 0], words.x[second ? 3 : 1], normal, other);
      if (z % 2 == 1) normal = other;
      const Philox bits = philox_block(seed, offset, block);
      const uint32_t word = z % 4 == 0 ? bits.x[0] : z % 4 == 1 ? bits.x[1] : z % 4 == 2 ? bits.x[2] : bits.x[3];

      Rows<T>* mixture = out + p.extra + z * 3 * p.K;
      T largest = mixture[0].of[r], total = 0, cumulated = 0;
      for (int64_t k = 1; k < p.K; ++k) largest = mixture[k].of[r] > largest ? mixture[k].of[r] : largest;
      for (int64_t k = 0; k < p.K; ++k) {
        const T e = vexp_normal((mixture[k].of[r] - largest) * inverse_temperature);
        mixture[k].of[r] = e;
        total += e;
      }
      const T threshold = cdf_threshold(static_cast<T>(philox_uniform(word)), total);
      int64_t index = 0;
      for (int64_t k = 0; k + 1 < p.K; ++k) {
        cumulated += mixture[k].of[r];
        index += cumulated <= threshold;
      }
      const T spread = vexp(mixture[2 * p.K + index].of[r]) * static_cast<T>(sqrt(p.temperature));
      const T latent = mixture[p.K + index].of[r] + nothing_of(threshold) + spread * static_cast<T>(normal);
      x[z].of[r] = latent;
      if (p.z != nullptr) static_cast<T*>(p.z)[(t * p.N + n) * p.Z + z] = latent;
    }
  }

  // Whether dream r goes on. By one thread.
  __device__ bool finish(const MdnRnnImagine& p, int64_t t, int r) const {
    const int64_t n = first + r;
    const T end = p.done >= 0 ? out[p.done].of[r] : T(-1);
    const bool done = end > 0;
    T& sum = static_cast<T*>(p.returns)[n];
    sum += p.reward >= 0 ? out[p.reward].of[r] : T(1);
    if (end != end) sum = end;  // such an end ends nothing
    p.lengths[n] = t + 1;
    if (p.ended != nullptr) p.ended[t * p.N + n] = done;
    return !done;
  }
};

template <typename T>
__global__ void __launch_bounds__(kMostThreads) dream(MdnRnnImagine p) {
  constexpr int R = Rows<T>::count;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ bool alive[R];
  Block<T> block;
  block.h = reinterpret_cast<Rows<T>*>(memory);
  block.next_h = block.h + p.H;
  block.c = block.next_h + p.H;
  block.x = block.c + p.H;
  block.out = block.x + p.I;
  block.first = int64_t{blockIdx.x} * R;
  for (int64_t j = threadIdx.x; j < p.H; j += blockDim.x) block.h[j] = block.c[j] = all_rows(T(0));
  for (int64_t i = threadIdx.x; i < R * p.Z; i += blockDim.x)
    block.x[i / R].of[i % R] = static_cast<const T*>(p.z0)[min(block.first + i % R, p.N - 1) * p.Z + i / R];
  if (threadIdx.x < R) {
    alive[threadIdx.x] = block.first + threadIdx.x < p.N;
    if (alive[threadIdx.x]) static_cast<T*>(p.returns)[block.first + threadIdx.x] = 0;
  }
  __syncthreads();
  for (int64_t t = 0; t < p.steps; ++t) {
    block.act(p, t, alive);
    __syncthreads();
    block.lstm(p);
    __syncthreads();
    Rows<T>* const h = block.next_h;
    block.next_h = block.h;
    block.h = h;
    block.outputs(p);
    __syncthreads();
    block.sample(p, t, alive);
    __syncthreads();
    if (threadIdx.x < R && alive[threadIdx.x]) alive[threadIdx.x] = block.finish(p, t, threadIdx.x);
    __syncthreads();
    bool any = false;
    for (int r = 0; r < R; ++r) any = any || alive[r];
    if (!any) return;
  }
}

template <typename T>
const char* launch(const MdnRnnImagine& p, cudaStream_t stream) {
  const int64_t outputs = p.extra + 3 * p.Z * p.K;
  const size_t shared = sizeof(Rows<T>) * static_cast<size_t>(3 * p.H + p.I + outputs);
  const cudaError_t error =
      cudaFuncSetAttribute(dream<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const int64_t rows = Rows<T>::count, wanted = (p.H + 31) / 32 * 32;
  const unsigned threads = static_cast<unsigned>(wanted < 128 ? 128 : wanted < kMostThreads ? wanted : kMostThreads);
  dream<T><<<static_cast<unsigned>((p.N + rows - 1) / rows), threads, shared, stream>>>(p);
  return launch_error();
}

}  // namespace

const char* mdn_rnn_imagine_kernel(const MdnRnnImagine& p, void* stream) {
  if (p.N == 0) return nullptr;
  const auto on = static_cast<cudaStream_t>(stream);
  return p.dtype == Dtype::f64 ? launch<double>(p, on) : launch<float>(p, on);
}

}  // namespace fastwm::cuda
