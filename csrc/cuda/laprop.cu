// Two launches for all tensors: squares of each chunk, then the update, whose blocks add up their tensor's squares
// again rather than wait for a third launch. The table of tensors travels in the kernel's arguments, which is what
// a CUDA graph can hold; a copy from host memory is not.
#include "reduce.cuh"

#include "fastwm/laprop.h"

namespace fastwm::cuda {
namespace {

constexpr int kTable = 512;  // tensors a launch; 24 KiB of at most 32 KiB of arguments

struct Table {
  LaPropTensor tensors[kTable];
  int64_t count;
};

template <typename A>
__global__ void __launch_bounds__(kThreads)
    measure(const __grid_constant__ LaProp p, const __grid_constant__ Table table) {
  const int64_t chunk = table.tensors[0].first_chunk + blockIdx.x;
  const LaPropTensor& tensor = table.tensors[tensor_of_chunk(table.tensors, 0, table.count, chunk)];
  const int64_t first = (chunk - tensor.first_chunk) * kChunk;
  const int64_t end = first + kChunk < tensor.count ? first + kChunk : tensor.count;
  const A* param = static_cast<const A*>(tensor.param);
  const A* grad = static_cast<const A*>(tensor.grad);
  A params = 0, grads = 0;
  for (int64_t i = first + threadIdx.x; i < end; i += kThreads) {
    params += param[i] * param[i];
    grads += grad[i] * grad[i];
  }
  const double param_sum = group_sum<kThreads>(static_cast<double>(params));
  const double grad_sum = group_sum<kThreads>(static_cast<double>(grads));
  if (threadIdx.x != 0) return;
  p.squares[2 * chunk] = param_sum;
  p.squares[2 * chunk + 1] = grad_sum;
}

__device__ double clip_scale(const LaProp& p, const LaPropTensor& tensor) {
  double params = 0, grads = 0;
  const int64_t end = tensor.first_chunk + (tensor.count + kChunk - 1) / kChunk;
  for (int64_t chunk = tensor.first_chunk + threadIdx.x; chunk < end; chunk += kThreads) {
    params += p.squares[2 * chunk];
    grads += p.squares[2 * chunk + 1];
  }
  return agc_scale(group_sum<kThreads>(params), group_sum<kThreads>(grads), p.agc, p.pmin);
}

template <typename A>
__global__ void __launch_bounds__(kThreads, 4)
    update(const __grid_constant__ LaProp p, const __grid_constant__ Table table) {
  if (!laprop_applies(p)) return;
  const int64_t chunk = table.tensors[0].first_chunk + blockIdx.x;
  const LaPropTensor& tensor = table.tensors[tensor_of_chunk(table.tensors, 0, table.count, chunk)];
  const A scale = static_cast<A>(p.agc == 0 ? 1 : clip_scale(p, tensor));
  __shared__ LaPropScalars<A> shared;  // two powers in double: once a block
  if (threadIdx.x == 0) shared = LaPropScalars<A>::make(p, laprop_rates(p));
  __syncthreads();
  const LaPropScalars<A> s = shared;
  const int64_t first = (chunk - tensor.first_chunk) * kChunk;
  const int64_t end = first + kChunk < tensor.count ? first + kChunk : tensor.count;
  A* param = static_cast<A*>(tensor.param);
  const A* grad = static_cast<const A*>(tensor.grad);
  A* nu = static_cast<A*>(tensor.nu);
  A* mu = static_cast<A*>(tensor.mu);
#pragma unroll 4
  for (int64_t i = first + threadIdx.x; i < end; i += kThreads)
    laprop_update(param[i], grad[i] * scale, nu[i], mu[i], s);
}

template <typename A>
void launch(const LaProp& p, cudaStream_t on) {
  for (int64_t begin = 0; begin < p.tensor_count; begin += kTable) {
    Table table;
    table.count = p.tensor_count - begin < kTable ? p.tensor_count - begin : kTable;
    for (int64_t i = 0; i < table.count; ++i) table.tensors[i] = p.tensors[begin + i];
    const int64_t next = begin + table.count;
    const int64_t end = next < p.tensor_count ? p.tensors[next].first_chunk : p.chunks;
    const auto blocks = static_cast<unsigned>(end - table.tensors[0].first_chunk);
    if (p.agc != 0) measure<A><<<blocks, kThreads, 0, on>>>(p, table);
    update<A><<<blocks, kThreads, 0, on>>>(p, table);
  }
}

}  // namespace

const char* laprop_kernel(const LaProp& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  p.dtype == Dtype::f64 ? launch<double>(p, on) : launch<float>(p, on);
  return launch_error();
}

}  // namespace fastwm::cuda
