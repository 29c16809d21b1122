// What csrc/cuda uses of CUDA, on the CPU: every thread of a block is a fiber, blocks run one after another; those that
// wait for each other take turns, from barrier to barrier. It shows wrong indices, wrong order and missing barriers'
// deadlocks; it cannot show races between warps, or speed.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

#define FASTWM_EMULATED
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
static inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
template <typename F>
static inline cudaError_t cudaFuncSetAttribute(F, cudaFuncAttribute, int) {
  return cudaSuccess;
}

static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
static inline double rsqrt(double x) { return 1 / sqrt(x); }
using std::max;
using std::min;
template <typename T>
static inline T __ldg(const T* x) {
  return *x;
}

namespace emulated {

struct Indices {
  dim3 thread, block, block_dim, grid_dim;
};
extern Indices now;

void syncthreads();
void syncwarp();
// Every lane of the warp leaves `size` bytes and gets the address of all 32 lanes' bytes; `release` ends the reading.
const unsigned char* exchange(const void* mine, size_t size);
void release();
unsigned char* dynamic_shared();
// What block `rank` of this block's row, launched together with it, has at `mine` in its dynamic shared memory.
void* shared_of(int rank, const void* mine);
// Waits for all threads of the blocks with this block's y, which must have been launched together.
void meet();
void run(dim3 grid, dim3 block, size_t shared, bool together, void (*thread)(void*), void* kernel);

template <typename... Args>
struct Launch {
  dim3 grid, block;
  size_t shared;
  std::tuple<Args...> args;
};

template <typename... Params, typename... Args>
void start(void (*kernel)(Params...), const Launch<Args...>& launch, bool together) {
  auto thread = [&] { std::apply([&](const Args&... args) { kernel(args...); }, launch.args); };
  run(
      launch.grid, launch.block, launch.shared, together, [](void* f) { (*static_cast<decltype(thread)*>(f))(); },
      &thread);
}

// kernel<<<grid, block, shared, stream>>>(args...) is compiled as kernel % Config(grid, block, shared, stream)(args...)
struct Config {
  dim3 grid, block;
  size_t shared;
  Config(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t = nullptr) : grid(grid), block(block), shared(shared) {}

  template <typename... Args>
  Launch<Args...> operator()(const Args&... args) const {
    return {grid, block, shared, {args...}};
  }
};

template <typename... Params, typename... Args>
void operator%(void (*kernel)(Params...), const Launch<Args...>& launch) {
  start(kernel, launch, false);
}

template <typename T>
T shuffle(T value, int lane) {
  const unsigned char* all = exchange(&value, sizeof(T));
  T out;
  std::memcpy(&out, all + static_cast<size_t>(lane & 31) * sizeof(T), sizeof(T));
  release();
  return out;
}

static inline int lane() {
  return static_cast<int>((now.thread.x + now.block_dim.x * (now.thread.y + now.block_dim.y * now.thread.z)) % 32);
}

}  // namespace emulated

#define threadIdx (emulated::now.thread)
#define blockIdx (emulated::now.block)
#define blockDim (emulated::now.block_dim)
#define gridDim (emulated::now.grid_dim)

static inline void __syncthreads() { emulated::syncthreads(); }
static inline void __syncwarp(unsigned = ~0u) { emulated::syncwarp(); }
static inline void __threadfence() {}
// `width` lanes form a group of their own; lane numbers count within it.
template <typename T>
static inline T __shfl_sync(unsigned, T x, int lane, int width = 32) {
  return emulated::shuffle(x, (emulated::lane() & -width) | (lane & (width - 1)));
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T x, int lanes, int width = 32) {
  return __shfl_sync(mask, x, emulated::lane() ^ lanes, width);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32) {
  const int at = (emulated::lane() & (width - 1)) + static_cast<int>(delta);
  return __shfl_sync(mask, x, at < width ? at : emulated::lane(), width);
}

namespace emulated {

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
static inline void mma_m16n8k16(float* d, const uint32_t (&a)[4], uint2 b) {
  struct Fragment {
    uint32_t a[4], b[2];
  } mine = {{a[0], a[1], a[2], a[3]}, {b.x, b.y}};
  Fragment all[32];
  std::memcpy(all, exchange(&mine, sizeof(mine)), sizeof(all));
  release();
  const auto value = [](uint32_t pair, int high) {
    const uint32_t bits = high ? pair & 0xffff0000u : pair << 16;
    float out;
    std::memcpy(&out, &bits, sizeof(out));
    return out;
  };
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int pair = k % 8 / 2;
      const float x = value(all[row % 8 * 4 + pair].a[row / 8 + k / 8 * 2], k % 2);
      d[i] += x * value(all[column * 4 + pair].b[k / 8], k % 2);
    }
  }
}

}  // namespace emulated
