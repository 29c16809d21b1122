// FASTWM_CUDA_KERNEL(name, Params) declares the launcher that a .cu file defines, and the function that calls
// it on the tensors' device and current stream.
#pragma once

#include "tensor.h"

#include <torch/csrc/stable/accelerator.h>

namespace fastwm {

template <typename Params>
void launch(const char* (*launcher)(const Params&, void*), const Params& p, int device) {
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const char* error = launcher(p, stream);
  STD_TORCH_CHECK(error == nullptr, "fastwm: CUDA launch failed: ", error);
}

}  // namespace fastwm

#define FASTWM_CUDA_KERNEL(name, Params)         \
  namespace cuda {                               \
  const char* name(const Params&, void* stream); \
  }                                              \
  static void name(const Params& p, int device) { launch(cuda::name, p, device); }
