// A group of threads a row, 4, a warp or a block by its width; what is read twice comes from L1 the second time.
// Weight gradients are sums over rows: a second kernel takes them by columns, which keeps every access coalesced.
#include "reduce.cuh"

#include "fastwm/norm_act.h"

namespace fastwm::cuda {
namespace {

template <typename A>
__device__ A activate(Activation f, A z) {
  switch (f) {
    case Activation::silu: return fastwm::activate<Activation::silu>(z);
    case Activation::elu: return fastwm::activate<Activation::elu>(z);
    case Activation::relu: return fastwm::activate<Activation::relu>(z);
    default: return z;
  }
}

template <typename A>
__device__ A activation_slope(Activation f, A z) {
  switch (f) {
    case Activation::silu: return fastwm::activation_slope<Activation::silu>(z);
    case Activation::elu: return fastwm::activation_slope<Activation::elu>(z);
    case Activation::relu: return fastwm::activation_slope<Activation::relu>(z);
    default: return 1;
  }
}

template <typename T, int kGroup>
__global__ void __launch_bounds__(kThreads) forward(NormAct p) {
  using A = accumulate_t<T>;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kGroup) + threadIdx.x / kGroup;
  const int lane = threadIdx.x % kGroup;
  const int64_t width = row < p.rows ? p.width : 0;  // threads past the end only take part in the sums
  const T* x = static_cast<const T*>(p.x) + row * p.width;
  T* y = static_cast<T*>(p.y) + row * p.width;
  A mean = 0, squares = 0;
  if (p.bias) {
    for (int64_t d = lane; d < width; d += kGroup) mean += widen(x[d]);
    mean = group_sum<kGroup>(mean) / static_cast<A>(p.width);
  }
  for (int64_t d = lane; d < width; d += kGroup) squares += (widen(x[d]) - mean) * (widen(x[d]) - mean);
  const A inv_std = 1 / sqrt(group_sum<kGroup>(squares) / static_cast<A>(p.width) + static_cast<A>(p.eps));
  const A* weight = static_cast<const A*>(p.weight);
  const A* bias = static_cast<const A*>(p.bias);
  for (int64_t d = lane; d < width; d += kGroup) {
    const A z = (widen(x[d]) - mean) * inv_std * weight[d];
    narrow(activate(p.activation, bias ? z + bias[d] : z), y[d]);
  }
  if (lane == 0 && row < p.rows) {
    static_cast<A*>(p.stats)[row] = inv_std;
    if (bias) static_cast<A*>(p.stats)[p.rows + row] = mean;
  }
}

// At one element: xhat, and the gradient of f's argument.
template <typename A>
struct Element {
  A xhat, d_z;
};

template <typename T, typename A>
__device__ Element<A> element(const NormActBackward& p, int64_t row, int64_t d, A inv_std, A mean) {
  const int64_t at = row * p.width + d;
  const A xhat = (widen(static_cast<const T*>(p.x)[at]) - mean) * inv_std;
  const A z = xhat * static_cast<const A*>(p.weight)[d];
  const A slope = activation_slope(p.activation, p.bias ? z + static_cast<const A*>(p.bias)[d] : z);
  return {xhat, widen(static_cast<const T*>(p.grad)[at]) * slope};
}

template <typename T, int kGroup>
__global__ void __launch_bounds__(kThreads, 4) backward_rows(NormActBackward p) {
  using A = accumulate_t<T>;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kGroup) + threadIdx.x / kGroup;
  const int lane = threadIdx.x % kGroup;
  const int64_t width = row < p.rows ? p.width : 0;
  const A* weight = static_cast<const A*>(p.weight);
  const A* stats = static_cast<const A*>(p.stats);
  const A inv_std = width ? stats[row] : 0;
  const A mean = width && p.bias ? stats[p.rows + row] : 0;
  A avg_g = 0, avg_g_xhat = 0;
  for (int64_t d = lane; d < width; d += kGroup) {
    const Element<A> e = element<T>(p, row, d, inv_std, mean);
    const A g = e.d_z * weight[d];
    avg_g += g;
    avg_g_xhat += g * e.xhat;
  }
  avg_g = p.bias ? group_sum<kGroup>(avg_g) / static_cast<A>(p.width) : 0;
  avg_g_xhat = group_sum<kGroup>(avg_g_xhat) / static_cast<A>(p.width);
  for (int64_t d = lane; d < width; d += kGroup) {
    const Element<A> e = element<T>(p, row, d, inv_std, mean);
    const A d_x = inv_std * (e.d_z * weight[d] - avg_g - e.xhat * avg_g_xhat);
    narrow(d_x, static_cast<T*>(p.d_x)[row * p.width + d]);
  }
}

// Block (c, b) sums `columns` columns over the b-th block of rows; `columns` divides kThreads.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1) backward_columns(NormActBackward p, int columns) {
  using A = accumulate_t<T>;
  __shared__ A sums[2][kThreads];
  const int64_t d = int64_t{blockIdx.x} * columns + threadIdx.x % columns;
  const int64_t end = (blockIdx.y + 1) * p.rows / p.blocks;
  const A* stats = static_cast<const A*>(p.stats);
  A d_weight = 0, d_bias = 0;
  if (d < p.width) {
    for (int64_t row = blockIdx.y * p.rows / p.blocks + threadIdx.x / columns; row < end; row += kThreads / columns) {
      const Element<A> e = element<T>(p, row, d, stats[row], p.bias ? stats[p.rows + row] : 0);
      d_weight += e.d_z * e.xhat;
      d_bias += e.d_z;
    }
  }
  sums[0][threadIdx.x] = d_weight;
  sums[1][threadIdx.x] = d_bias;
  __syncthreads();
  if (threadIdx.x >= columns || d >= p.width) return;
  for (int t = threadIdx.x + columns; t < kThreads; t += columns) {
    d_weight += sums[0][t];
    d_bias += sums[1][t];
  }
  A* share = static_cast<A*>(p.scratch) + blockIdx.y * 3 * p.width + d;
  share[0] = d_weight;
  share[p.width] = d_bias;
}

// The blocks' shares, added in order.
template <typename A>
__global__ void __launch_bounds__(kThreads) add_shares(NormActBackward p, int64_t affine) {
  const int64_t d = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (d >= affine) return;
  const A* share = static_cast<const A*>(p.scratch) + d;
  A sum = 0;
  for (int64_t block = 0; block < p.blocks; ++block) sum += share[block * 3 * p.width];
  static_cast<A*>(p.d_affine)[d] = sum;
}

constexpr int64_t kNarrow = 16, kWarpWidth = 1024;  // up to which 4 threads, and a warp, take a row

template <typename T>
void launch_forward(const NormAct& p, cudaStream_t on) {
  if (p.width <= kNarrow) forward<T, 4><<<blocks_for(p.rows * 4), kThreads, 0, on>>>(p);
  else if (p.width <= kWarpWidth) forward<T, 32><<<blocks_for(p.rows * 32), kThreads, 0, on>>>(p);
  else forward<T, kThreads><<<static_cast<unsigned>(p.rows), kThreads, 0, on>>>(p);
}

template <typename T>
void launch_backward(const NormActBackward& p, cudaStream_t on) {
  using A = accumulate_t<T>;
  if (p.rows > 0) {
    if (p.width <= kNarrow) backward_rows<T, 4><<<blocks_for(p.rows * 4), kThreads, 0, on>>>(p);
    else if (p.width <= kWarpWidth) backward_rows<T, 32><<<blocks_for(p.rows * 32), kThreads, 0, on>>>(p);
    else backward_rows<T, kThreads><<<static_cast<unsigned>(p.rows), kThreads, 0, on>>>(p);
    int columns = 32;
    while (columns / 2 >= p.width) columns /= 2;
    const dim3 grid(static_cast<unsigned>((p.width + columns - 1) / columns), static_cast<unsigned>(p.blocks));
    backward_columns<T><<<grid, kThreads, 0, on>>>(p, columns);
  }
  const int64_t affine = (p.bias ? 2 : 1) * p.width;
  add_shares<A><<<blocks_for(affine), kThreads, 0, on>>>(p, affine);
}

}  // namespace

const char* norm_act_kernel(const NormAct& p, void* stream) {
  if (p.rows == 0) return nullptr;
  const auto on = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case Dtype::f32: launch_forward<float>(p, on); break;
    case Dtype::f64: launch_forward<double>(p, on); break;
    case Dtype::bf16: launch_forward<bf16>(p, on); break;
  }
  return launch_error();
}

const char* norm_act_backward_kernel(const NormActBackward& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case Dtype::f32: launch_backward<float>(p, on); break;
    case Dtype::f64: launch_backward<double>(p, on); break;
    case Dtype::bf16: launch_backward<bf16>(p, on); break;
  }
  return launch_error();
}

}  // namespace fastwm::cuda
