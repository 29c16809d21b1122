// Shared by all launchers. Launchers are torch-free: parameters and a stream in, an error message or nullptr
// out.
#pragma once

#include <cuda_runtime.h>

namespace fastwm::cuda {

constexpr int kThreads = 256;

static inline unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

static inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fastwm::cuda
