// What csrc/cuda uses of CUDA, on the CPU: every thread of a block is a fiber, blocks run one after another. It shows
// wrong indices, wrong order and missing barriers' deadlocks; it cannot show races between warps, or speed.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

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

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
static inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
template <typename F>
static inline cudaError_t cudaFuncSetAttribute(F, cudaFuncAttribute, int) { return cudaSuccess; }

static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline double rsqrt(double x) { return 1 / sqrt(x); }
using std::max;
using std::min;
template <typename T>
static inline T __ldg(const T* x) { return *x; }

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
void run(dim3 grid, dim3 block, size_t shared, void (*thread)(void*), void* kernel);

template <typename... Args>
struct Launch {
  dim3 grid, block;
  size_t shared;
  std::tuple<Args...> args;
};

// kernel<<<grid, block, shared, stream>>>(args...) is compiled as kernel % Config(grid, block, shared, stream)(args...)
struct Config {
  dim3 grid, block;
  size_t shared;
  Config(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t = nullptr) : grid(grid), block(block), shared(shared) {}

  template <typename... Args>
  Launch<Args...> operator()(const Args&... args) const { return {grid, block, shared, {args...}}; }
};

template <typename... Params, typename... Args>
void operator%(void (*kernel)(Params...), const Launch<Args...>& launch) {
  auto thread = [&] { std::apply([&](const Args&... args) { kernel(args...); }, launch.args); };
  run(launch.grid, launch.block, launch.shared, [](void* f) { (*static_cast<decltype(thread)*>(f))(); }, &thread);
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
