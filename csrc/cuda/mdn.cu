// One thread a mixture, or one warp where it is joint, whose threads share out its dimensions. Neighbouring
// threads read neighbouring classes' runs, so every sector that is fetched is used, by way of L1.
#include "common.cuh"

#include "fastwm/params/mdn.h"

namespace fastwm::cuda {
namespace {

constexpr int kWarp = 32;

// The arrays of one mixture, and this thread's share of its dimensions: from `first` in steps of `step`.
template <typename A, bool joint>
struct Mixture {
  const A *logits, *mean, *log_std;
  int64_t at;  // among the caller's mixtures; -1 beyond the last one
  int first, step;

  __device__ explicit Mixture(const Mixtures& m) {
    const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    step = joint ? kWarp : 1;
    first = joint ? static_cast<int>(threadIdx.x % kWarp) : 0;
    at = thread / step;
    if (at >= m.outer * m.lanes) {
      at = -1;
      return;
    }
    const int64_t outer = m.outer == 1 ? 0 : at / m.lanes, lane = at - outer * m.lanes;
    logits = static_cast<const A*>(m.logits.data) + outer * m.logits.outer + lane * m.logits.lane;
    mean = static_cast<const A*>(m.mean.data) + outer * m.mean.outer + lane * m.mean.lane;
    log_std = static_cast<const A*>(m.log_std.data) + outer * m.log_std.outer + lane * m.log_std.lane;
  }
};

template <bool joint, typename A>
__device__ __forceinline__ A sum_over_dimensions(A x) {
  if (joint) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  }
  return x;
}

template <typename A>
struct Gaussian {
  A inverse_std, deviation, log_std;
};

template <typename A, bool joint>
__device__ __forceinline__ Gaussian<A> gaussian(const Mixture<A, joint>& x, const Mixtures& m, A y, int z, int k) {
  const A log_std = x.log_std[z * m.log_std.dim + k * m.log_std.cls];
  const A inverse_std = vexp(-log_std);
  return {inverse_std, (y - x.mean[z * m.mean.dim + k * m.mean.cls]) * inverse_std, log_std};
}

// log(weight_k prod_z N(value_z; mean_zk, std_zk)), but for the constants of both.
template <typename A, bool joint>
__device__ __forceinline__ A log_density(const Mixture<A, joint>& x, const Mixtures& m, const A* value, A logit,
                                         int k) {
  A sum = 0;
  for (int z = x.first; z < m.dims; z += x.step) {
    const Gaussian<A> g = gaussian(x, m, value[z], z, k);
    sum += g.log_std + A{0.5} * g.deviation * g.deviation;
  }
  return logit - sum_over_dimensions<joint>(sum);
}

template <typename A, bool joint>
__global__ void __launch_bounds__(kThreads) nll(MdnNll p) {
  const Mixtures& m = p.mixtures;
  const Mixture<A, joint> x(m);
  if (x.at < 0) return;
  const int classes = static_cast<int>(m.classes);
  const A* value = static_cast<const A*>(p.value) + x.at * m.dims;
  LogSumExp<A> weight{lowest(A{}), 0}, density{lowest(A{}), 0};
  for (int k = 0; k < classes; ++k) {
    const A logit = x.logits[k * m.logits.cls];
    add(weight, logit);
    add(density, log_density(x, m, value, logit, k));
  }
  if (x.first == 0)
    static_cast<A*>(p.nll)[x.at] = weight.largest - density.largest + vlog(weight.total / density.total) +
                                   static_cast<A>(kHalfLog2Pi * static_cast<double>(m.dims));
}

template <typename A, bool joint>
__global__ void __launch_bounds__(kThreads, 1) nll_backward(MdnNllBackward p) {
  const Mixtures& m = p.mixtures;
  const Mixture<A, joint> x(m);
  if (x.at < 0) return;
  const int classes = static_cast<int>(m.classes);
  const A* value = static_cast<const A*>(p.value) + x.at * m.dims;
  A* d_value = static_cast<A*>(p.d_value) + x.at * m.dims;
  A* d_logits = static_cast<A*>(p.d_logits) + x.at * m.classes;
  A* d_mean = static_cast<A*>(p.d_mean) + x.at * m.dims * m.classes;
  A* d_log_std = static_cast<A*>(p.d_log_std) + x.at * m.dims * m.classes;
  LogSumExp<A> weight{lowest(A{}), 0}, density{lowest(A{}), 0};
  for (int k = 0; k < classes; ++k) {
    const A logit = x.logits[k * m.logits.cls];
    add(weight, logit);
    add(density, log_density(x, m, value, logit, k));
  }
  const A grad = static_cast<const A*>(p.grad)[x.at];
  const A prior = grad / weight.total, posterior = grad / density.total;
  for (int k = 0; k < classes; ++k) {
    const A logit = x.logits[k * m.logits.cls];
    const A r = posterior * vexp(log_density(x, m, value, logit, k) - density.largest);
    if (x.first == 0) d_logits[k] = prior * vexp(logit - weight.largest) - r;
    for (int z = x.first; z < m.dims; z += x.step) {
      const Gaussian<A> g = gaussian(x, m, value[z], z, k);
      const A d_y = r == 0 ? 0 : r * g.deviation * g.inverse_std;  // 0, where 0 * infinity would be NaN
      d_mean[z * m.classes + k] = -d_y;
      d_log_std[z * m.classes + k] = r == 0 ? 0 : r - r * g.deviation * g.deviation;
      d_value[z] = k == 0 ? d_y : d_value[z] + d_y;
    }
  }
}

template <typename A, bool joint>
__global__ void __launch_bounds__(kThreads) sample(MdnSample p) {
  const Mixtures& m = p.mixtures;
  const Mixture<A, joint> x(m);
  if (x.at < 0) return;
  const int classes = static_cast<int>(m.classes);
  const A scale = static_cast<A>(p.inverse_temperature), noise = static_cast<A>(p.noise);
  A largest = lowest(A{}), total = 0, cumulated = 0;
  for (int k = 0; k < classes; ++k) {
    const A logit = x.logits[k * m.logits.cls];
    largest = logit > largest ? logit : largest;
  }
  for (int k = 0; k < classes; ++k) total += vexp((x.logits[k * m.logits.cls] - largest) * scale);
  const A threshold = cdf_threshold(static_cast<const A*>(p.uniform)[x.at], total);
  int index = 0;
  for (int k = 0; k < classes - 1; ++k) {
    cumulated += vexp((x.logits[k * m.logits.cls] - largest) * scale);
    index += cumulated <= threshold ? 1 : 0;
  }
  const A nothing = nothing_of(threshold / total);  // NaN where no component can be drawn
  const A* normal = static_cast<const A*>(p.normal) + x.at * m.dims;
  A* out = static_cast<A*>(p.sample) + x.at * m.dims;
  for (int z = x.first; z < m.dims; z += x.step) {
    const A std = vexp(x.log_std[z * m.log_std.dim + index * m.log_std.cls]);
    out[z] = x.mean[z * m.mean.dim + index * m.mean.cls] + nothing + std * noise * normal[z];
  }
}

// Of dims > 1 as of a joint mixture: a warp's threads share the dimensions.
template <typename Params>
const char* launch(void (*kernels[4])(Params), const Params& p, void* stream) {
  const Mixtures& m = p.mixtures;
  const int64_t threads = m.outer * m.lanes * (m.dims > 1 ? kWarp : 1);
  if (threads == 0) return nullptr;
  kernels[(m.dtype == Dtype::f64 ? 2 : 0) +
          (m.dims > 1 ? 1 : 0)]<<<blocks_for(threads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return launch_error();
}

}  // namespace

const char* mdn_sample_kernel(const MdnSample& p, void* stream) {
  void (*kernels[])(MdnSample) = {sample<float, false>, sample<float, true>, sample<double, false>,
                                  sample<double, true>};
  return launch(kernels, p, stream);
}

const char* mdn_nll_kernel(const MdnNll& p, void* stream) {
  void (*kernels[])(MdnNll) = {nll<float, false>, nll<float, true>, nll<double, false>, nll<double, true>};
  return launch(kernels, p, stream);
}

const char* mdn_nll_backward_kernel(const MdnNllBackward& p, void* stream) {
  void (*kernels[])(MdnNllBackward) = {nll_backward<float, false>, nll_backward<float, true>,
                                       nll_backward<double, false>, nll_backward<double, true>};
  return launch(kernels, p, stream);
}

}  // namespace fastwm::cuda
