// Stands in for csrc/cuda/launch.h: no device, no stream.
#pragma once

#include "tensor.h"

#define FASTWM_CUDA_KERNEL(name, Params)                  \
  namespace cuda {                                        \
  const char* name(const Params&, void* stream);          \
  }                                                       \
  static void name(const Params& p, int) {                \
    const char* error = cuda::name(p, nullptr);           \
    STD_TORCH_CHECK(error == nullptr, "fastwm: ", error); \
  }
