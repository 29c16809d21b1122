// A cluster of blocks that read and write each other's shared memory, and wait for each other by the hardware's barrier.
#pragma once

#include "common.cuh"

#include <cstring>

namespace fastwm::cuda {

constexpr int kClusterBlocks = 8;  // as many as every device with clusters runs

// Between arrive() and wait() a block may do what waits for nobody; what it wrote before arrive() the others can read
// after wait().
class Cluster {
 public:
  __device__ static void arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
  }
  __device__ static void wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#elif defined(FASTWM_EMULATED)
    emulated::meet();
#endif
  }

  // Writes to, and reads from, the place in block `rank`'s shared memory where this block has `mine`.
  __device__ static void write(int rank, void* mine, uint32_t x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address(rank, mine)), "r"(x) : "memory");
#elif defined(FASTWM_EMULATED)
    std::memcpy(emulated::shared_of(rank, mine), &x, sizeof(x));
#endif
  }
  __device__ static float2 read(int rank, const float2* mine) {
    float2 x{};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];"
                 : "=f"(x.x), "=f"(x.y)
                 : "r"(address(rank, mine))
                 : "memory");
#elif defined(FASTWM_EMULATED)
    std::memcpy(&x, emulated::shared_of(rank, mine), sizeof(x));
#endif
    return x;
  }

 private:
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __device__ static uint32_t address(int rank, const void* mine) {
    uint32_t theirs;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(theirs)
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(mine))), "r"(rank));
    return theirs;
  }
#endif
};

// Launches `kernel` on a cluster for each of `rows`, with `shared` bytes a block; false where the device runs none.
template <typename Params>
bool launch_clusters(void (*kernel)(Params), const Params& p, int64_t rows, size_t shared, cudaStream_t on,
                     const char** error) {
#if defined(FASTWM_EMULATED)
  constexpr int64_t most = 2;
#else
  constexpr int64_t most = 65535;
#endif
  const dim3 grid(kClusterBlocks, static_cast<unsigned>(rows < most ? rows : most));
  *error = nullptr;
#if defined(FASTWM_EMULATED)
  emulated::start(kernel, emulated::Config(grid, dim3(kThreads), shared)(p), true);
  return true;
#else
  int device = 0, major = 0, clusters = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (major < 9) return false;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kClusterBlocks, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(kThreads), config.dynamicSmemBytes = shared;
  config.stream = on, config.attrs = &attribute, config.numAttrs = 1;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess || clusters == 0) {
    cudaGetLastError();  // a cluster that does not fit is no error
    return false;
  }
  const cudaError_t launched = cudaLaunchKernelEx(&config, kernel, p);
  *error = launched == cudaSuccess ? launch_error() : cudaGetErrorString(launched);
  return true;
#endif
}

}  // namespace fastwm::cuda
