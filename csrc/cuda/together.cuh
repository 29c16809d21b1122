// Blocks that all run at once and wait for each other between the stages of a sequence: one launch for all its steps.
#pragma once

#include "common.cuh"

namespace fastwm::cuda {

// Blocks (x, y) share the tiles x of the rows y. Those of one y wait for each other alone.
struct Formation {
  unsigned* arrived;  // [gridDim.y]: counts the blocks that arrived since the launch
  bool cluster;       // the blocks of one y are a cluster, whose barrier is the hardware's
};

constexpr unsigned kLargestCluster = 16;

// Between arrive() and wait() a block may do what waits for nobody. What it wrote before arrive() the others can read
// after wait(), but in shared memory nothing is promised to outlive a barrier.
class Barrier {
 public:
  __device__ explicit Barrier(const Formation& f) : formation_(f) {}

  __device__ void arrive() {
    waits_ = true;
#if defined(__CUDA_ARCH__)
    if (formation_.cluster) {
#if __CUDA_ARCH__ >= 900
      asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
    } else {
      due_ += gridDim.x;
      __syncthreads();
      if (threadIdx.x == 0)
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(formation_.arrived + blockIdx.y) : "memory");
    }
#endif
  }

  __device__ void wait() {
    if (!waits_) return;
    waits_ = false;
#if defined(__CUDA_ARCH__)
    if (formation_.cluster) {
#if __CUDA_ARCH__ >= 900
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
    } else {
      if (threadIdx.x == 0) {
        const unsigned* counter = formation_.arrived + blockIdx.y;
        unsigned arrived;
        int polls = 0;
        do {
          asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(counter) : "memory");
          if (++polls == kPatience) __trap();
        } while (static_cast<int>(arrived - due_) < 0);
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(counter) : "memory");
      }
      __syncthreads();
    }
#elif defined(FASTWM_EMULATED)
    emulated::meet();
#endif
  }

 private:
  static constexpr int kPatience = 1 << 26;  // polls, half a minute: an error is better than a hang

  Formation formation_;
  unsigned due_ = 0;
  bool waits_ = false;
};

// A stage: its tiles are shared out among the blocks of one y, every other round backwards, since costly tiles come
// first. stage(tile, first) must call barrier.wait() where `first`, before it reads what other blocks wrote.
template <typename Stage>
__device__ void share_out(Barrier& barrier, int tiles, Stage stage) {
  const int blocks = gridDim.x, x = blockIdx.x;
  for (int round = 0; round * blocks < tiles; ++round) {
    const int tile = round * blocks + (round % 2 ? blocks - 1 - x : x);
    if (tile < tiles) stage(tile, round == 0);
  }
  barrier.wait();  // where the block had no tile
  barrier.arrive();
}

// Launches `kernel` on up to `across` x `rows` blocks that can all run at once. counters: [rows].
template <typename Params>
const char* launch_together(void (*kernel)(Params, Formation), const Params& p, int64_t across, int64_t rows,
                            unsigned* counters, cudaStream_t on) {
  Formation formation{counters, false};
#if defined(FASTWM_EMULATED)
  const dim3 grid(static_cast<unsigned>(across < 3 ? across : 3), static_cast<unsigned>(rows < 2 ? rows : 2));
  emulated::start(kernel, emulated::Config(grid, dim3(kThreads))(p, formation), true);
  return nullptr;
#else
  int device = 0, processors = 0, per_processor = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, kThreads, 0);
  const int64_t resident = int64_t{processors} * per_processor;
  if (resident == 0) return "no block of the sequence fits this GPU";

  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};
  config.blockDim = dim3(kThreads);
  config.stream = on, config.attrs = &attribute, config.numAttrs = 1;
  if (across <= kLargestCluster && major >= 9) {
    unsigned size = 1;
    while (size < across) size *= 2;
    config.gridDim = dim3(size, static_cast<unsigned>(rows < 65535 ? rows : 65535));
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = size, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    int clusters = 0;
    if (size > 8) cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    formation.cluster = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess && clusters > 0;
  }
  if (!formation.cluster) {
    cudaGetLastError();  // a cluster that does not fit is no error
    const int64_t y = rows < resident ? rows : resident, x = across < resident / y ? across : resident / y;
    config.gridDim = dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaMemsetAsync(counters, 0, static_cast<size_t>(y) * sizeof(unsigned), on);
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, p, formation);
  return error == cudaSuccess ? launch_error() : cudaGetErrorString(error);
#endif
}

}  // namespace fastwm::cuda
