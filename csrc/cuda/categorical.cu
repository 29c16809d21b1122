// Sampling sums the cdf in class order, so there one thread serves a row, which it finds transposed in shared memory;
// the block reads and writes whole tiles of rows, coalesced. All else is sums in any order: there a group of lanes
// serves a row, class by class, coalesced too, and reads its logits again from L1 rather than hold them.
#include "common.cuh"

#include "fastwm/categorical.h"

namespace fastwm::cuda {
namespace {

template <typename T>
__device__ __forceinline__ accumulate_t<T> load(const void* array, int64_t at) {
  return widen(static_cast<const T*>(array)[at]);
}

template <typename T>
__device__ __forceinline__ void store(accumulate_t<T> x, void* array, int64_t at) {
  narrow(x, static_cast<T*>(array)[at]);
}

// ------------------------------------------------------------------------------------------- sampling

constexpr int kTileThreads = 128;
constexpr int kTileBytes = 47 << 10;  // every device grants 48 KiB of shared memory without asking

// Rows of a tile: at most one a thread. The stride is odd, so that threads of a warp meet different banks.
struct TileShape {
  int rows, stride;
  size_t bytes;
};

TileShape tile_shape(int64_t classes, size_t element) {
  const int stride = static_cast<int>(classes | 1);
  const size_t row = stride * element;  // 32 KiB at most: 4096 classes of float64
  const size_t fit = kTileBytes / row;
  const int rows = static_cast<int>(fit < 1 ? 1 : fit < kTileThreads ? fit : kTileThreads);
  return {rows, stride, rows * row};
}

template <typename T, bool gumbel_noise>
__global__ void __launch_bounds__(kTileThreads) sample(StraightThroughCategorical p, int tile_rows, int stride) {
  using A = accumulate_t<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ int chosen[kTileThreads];
  A* const tile = reinterpret_cast<A*>(memory);
  const int classes = static_cast<int>(p.classes);
  const int64_t first = int64_t{blockIdx.x} * tile_rows;
  const int rows = static_cast<int>(p.rows - first < tile_rows ? p.rows - first : tile_rows);
  const int elements = rows * classes;

  for (int i = threadIdx.x; i < elements; i += kTileThreads)
    tile[i / classes * stride + i % classes] = load<T>(p.logits, first * classes + i);
  __syncthreads();
  if (threadIdx.x < rows) {
    A* const x = tile + threadIdx.x * stride;
    const Unimix<A> mix = unimix_of<A>(p.unimix, p.classes);
    A largest = x[0], z = 0;
    for (int k = 1; k < classes; ++k) largest = x[k] > largest ? x[k] : largest;
    for (int k = 0; k < classes; ++k) z += vexp_normal(x[k] - largest);
    const A inverse = 1 / z, log_z = vlog_normal(z);
    A cdf = 0, best = 0;
    const int64_t row = first + threadIdx.x;
    A u = gumbel_noise ? 0 : load<A>(p.uniform, row);  // of Gumbel noise the uniform numbers' sum
    int index = 0;
    for (int k = 0; k < classes; ++k) {
      const A shifted = x[k] - largest, q = vexp_normal(shifted) * inverse;
      x[k] = mixed_log(mix, shifted, log_z, q);
      if (gumbel_noise) {
        const A draw = load<A>(p.uniform, row * classes + k), y = x[k] + gumbel(draw);
        u += draw;
        if (k == 0 || y > best) best = y, index = k;  // the first of equals
      } else {
        cdf += mixed(mix, q);
        index += k < classes - 1 && cdf <= u;
      }
    }
    if (!gumbel_noise && !mix.on)
      index = last_drawable(index, classes, [&](int k) { return vexp(x[k]); });  // x is ln p by now
    const bool drawable = nothing_of(log_z + u) == 0;
    chosen[threadIdx.x] = drawable ? index : -1;
    p.index[row] = drawable ? index : 0;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < elements; i += kTileThreads) {
    const int row = i / classes, k = i % classes;
    store<A>(tile[row * stride + k], p.log_prob, first * classes + i);
    const A none = chosen[row] < 0 ? static_cast<A>(NAN) : 0;
    store<A>(k == chosen[row] ? 1 : none, p.sample, first * classes + i);
  }
}

// ------------------------------------------------------------------------------- all else: G lanes a row

template <int G, typename A>
__device__ __forceinline__ A group_sum(A x) {
#pragma unroll
  for (int lane = G / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane, G);
  return x;
}

template <int G, typename A>
__device__ __forceinline__ A group_max(A x) {
#pragma unroll
  for (int lane = G / 2; lane > 0; lane /= 2) {
    const A other = __shfl_xor_sync(~0u, x, lane, G);
    x = other > x ? other : x;
  }
  return x;
}

// The softmax of values x(k), k < classes: q(k), and the logarithm of the mixed probability.
template <int G, typename A, typename X>
struct Softmax {
  X x;
  A largest, log_z, inverse;

  __device__ __forceinline__ Softmax(X x_, int classes) : x(x_) {
    const int lane = threadIdx.x % G;
    largest = x(lane < classes ? lane : 0);
    for (int k = lane + G; k < classes; k += G) largest = x(k) > largest ? x(k) : largest;
    largest = group_max<G>(largest);
    A z = 0;
    for (int k = lane; k < classes; k += G) z += vexp_normal(x(k) - largest);
    z = group_sum<G>(z);
    log_z = vlog_normal(z);
    inverse = 1 / z;
  }
  __device__ __forceinline__ A q(int k) const { return vexp_normal(x(k) - largest) * inverse; }
  __device__ __forceinline__ A log_prob(Unimix<A> mix, int k, A q) const {
    return mixed_log(mix, x(k) - largest, log_z, q);
  }
  // ln(p / r), and 0 where p is: 0 ln 0 = 0, whatever r, the prior, has.
  template <typename Prior>
  __device__ __forceinline__ A log_ratio(Unimix<A> mix, int k, A q, const Prior& prior) const {
    return mixed(mix, q) == 0 ? 0 : log_prob(mix, k, q) - prior.log_prob(mix, k, prior.q(k));
  }
};

template <int G, typename A, typename X>
__device__ __forceinline__ Softmax<G, A, X> softmax(X x, int classes) {
  return Softmax<G, A, X>(x, classes);
}

// dL/dlogits = w - q sum(w) for w(k, q)
template <int G, typename T, typename S, typename Weight>
__device__ __forceinline__ void store_gradient(const S& soft, Weight w, int classes, bool active, void* d_logits,
                                               int64_t at) {
  using A = accumulate_t<T>;
  A sum = 0;
  for (int k = threadIdx.x % G; k < classes; k += G) sum += w(k, soft.q(k));
  sum = group_sum<G>(sum);
  if (!active) return;
  for (int k = threadIdx.x % G; k < classes; k += G) {
    const A q = soft.q(k);
    store<T>(w(k, q) - q * sum, d_logits, at + k);
  }
}

// This group's row; groups past the end repeat the last one, since all lanes of a warp take part in its sums.
template <int G>
struct Row {
  int64_t index;
  bool active;

  __device__ __forceinline__ explicit Row(int64_t rows) {
    index = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / G;
    active = index < rows;
    if (!active) index = rows - 1;
  }
};

template <int G, typename T>
__global__ void __launch_bounds__(kThreads) sample_backward(StraightThroughCategoricalBackward p) {
  using A = accumulate_t<T>;
  const Row<G> row(p.rows);
  const int classes = static_cast<int>(p.classes);
  const int64_t at = row.index * classes;
  const Unimix<A> mix = unimix_of<A>(p.unimix, p.classes);
  const auto soft = softmax<G, A>([&](int k) { return load<T>(p.logits, at + k); }, classes);
  const auto d_sample = [&](int k) { return p.g_sample ? load<A>(p.g_sample, at + k) : A{0}; };
  const auto d_log_prob = [&](int k) { return p.g_log_prob ? load<A>(p.g_log_prob, at + k) : A{0}; };
  if (p.uniform && p.g_sample) {
    const auto y = softmax<G, A>(
        [&](int k) { return soft.log_prob(mix, k, soft.q(k)) + gumbel(load<A>(p.uniform, at + k)); }, classes);
    A mean = 0;
    for (int k = threadIdx.x % G; k < classes; k += G) mean += y.q(k) * d_sample(k);
    mean = group_sum<G>(mean);
    const auto w = [&](int k, A q) { return kept_share(mix, q) * (y.q(k) * (d_sample(k) - mean) + d_log_prob(k)); };
    store_gradient<G, T>(soft, w, classes, row.active, p.d_logits, at);
  } else {
    const auto w = [&](int k, A q) { return mix.keep * q * d_sample(k) + kept_share(mix, q) * d_log_prob(k); };
    store_gradient<G, T>(soft, w, classes, row.active, p.d_logits, at);
  }
}

// One block an element of the batch; its groups share out the S categoricals and meet in shared memory, in order.
template <int G, typename T>
__global__ void __launch_bounds__(kThreads) kl(CategoricalKl p) {
  using A = accumulate_t<T>;
  __shared__ A partial[kThreads / G];
  const int classes = static_cast<int>(p.classes), lane = threadIdx.x % G, group = threadIdx.x / G;
  const int count = static_cast<int>(blockDim.x) / G;
  const Unimix<A> mix = unimix_of<A>(p.unimix, p.classes);
  A total = 0;
  for (int64_t first = 0; first < p.groups; first += count) {
    const bool active = first + group < p.groups;
    const int64_t at = (blockIdx.x * p.groups + (active ? first + group : p.groups - 1)) * classes;
    const auto post = softmax<G, A>([&](int k) { return load<T>(p.post, at + k); }, classes);
    const auto prior = softmax<G, A>([&](int k) { return load<T>(p.prior, at + k); }, classes);
    for (int k = lane; active && k < classes; k += G) {
      const A q = post.q(k);
      total += mixed(mix, q) * post.log_ratio(mix, k, q, prior);
    }
  }
  total = group_sum<G>(total);
  if (lane == 0) partial[group] = total;
  __syncthreads();
  if (threadIdx.x > 0) return;
  A sum = 0;
  for (int i = 0; i < count; ++i) sum += partial[i];
  const A free_nats = static_cast<A>(p.free_nats);
  const A held = sum <= free_nats ? free_nats : sum;
  store<A>(held, p.dyn, blockIdx.x);
  store<A>(held, p.rep, blockIdx.x);
}

template <int G, typename T>
__global__ void __launch_bounds__(kThreads) kl_backward(CategoricalKlBackward p) {
  using A = accumulate_t<T>;
  const Row<G> row(p.batch * p.groups);
  const int classes = static_cast<int>(p.classes);
  const int64_t at = row.index * classes, element = row.index / p.groups;
  const Unimix<A> mix = unimix_of<A>(p.unimix, p.classes);
  const bool free = load<A>(p.dyn, element) <= static_cast<A>(p.free_nats);
  const A g_dyn = p.g_dyn && !free ? load<A>(p.g_dyn, element) : 0;
  const A g_rep = p.g_rep && !free ? load<A>(p.g_rep, element) : 0;
  const auto post = softmax<G, A>([&](int k) { return load<T>(p.post, at + k); }, classes);
  const auto prior = softmax<G, A>([&](int k) { return load<T>(p.prior, at + k); }, classes);
  const auto w_post = [&](int k, A q) { return g_rep * mix.keep * q * post.log_ratio(mix, k, q, prior); };
  const auto w_prior = [&](int k, A q) { return -g_dyn * mixed(mix, post.q(k)) * kept_share(mix, q); };
  store_gradient<G, T>(post, w_post, classes, row.active, p.d_post, at);
  store_gradient<G, T>(prior, w_prior, classes, row.active, p.d_prior, at);
}

template <int G, typename T>
__global__ void __launch_bounds__(kThreads) entropy(CategoricalEntropy p) {
  using A = accumulate_t<T>;
  const Row<G> row(p.rows);
  const int classes = static_cast<int>(p.classes);
  const int64_t at = row.index * classes;
  const Unimix<A> mix = unimix_of<A>(p.unimix, p.classes);
  const auto soft = softmax<G, A>([&](int k) { return load<T>(p.logits, at + k); }, classes);
  A sum = 0;
  for (int k = threadIdx.x % G; k < classes; k += G) {
    const A q = soft.q(k);
    sum -= weighted_log(mixed(mix, q), soft.log_prob(mix, k, q));
  }
  sum = group_sum<G>(sum);
  if (row.active && threadIdx.x % G == 0) store<A>(sum, p.entropy, row.index);
}

template <int G, typename T>
__global__ void __launch_bounds__(kThreads) entropy_backward(CategoricalEntropyBackward p) {
  using A = accumulate_t<T>;
  const Row<G> row(p.rows);
  const int classes = static_cast<int>(p.classes);
  const int64_t at = row.index * classes;
  const Unimix<A> mix = unimix_of<A>(p.unimix, p.classes);
  const A g = load<A>(p.grad, row.index);
  const auto soft = softmax<G, A>([&](int k) { return load<T>(p.logits, at + k); }, classes);
  const auto w = [&](int k, A q) { return -g * mix.keep * weighted_log(q, soft.log_prob(mix, k, q)); };
  store_gradient<G, T>(soft, w, classes, row.active, p.d_logits, at);
}

// Calls launch(type, lanes) with the logits' type and the lanes that serve a row of so many classes.
template <typename T>
struct Type {
  using type = T;
};
template <int value>
struct Lanes {
  static constexpr int lanes = value;
};

template <typename Launch>
void by_dtype(Dtype dtype, Launch launch) {
  switch (dtype) {
    case Dtype::f32: return launch(Type<float>{});
    case Dtype::f64: return launch(Type<double>{});
    case Dtype::bf16: return launch(Type<bf16>{});
  }
}

template <typename Launch>
void by_lanes(Dtype dtype, int64_t classes, Launch launch) {
  by_dtype(dtype, [&](auto type) {
    if (classes <= 4) return launch(type, Lanes<4>{});
    if (classes <= 16) return launch(type, Lanes<16>{});
    return launch(type, Lanes<32>{});
  });
}

}  // namespace

const char* straight_through_categorical_kernel(const StraightThroughCategorical& p, void* stream) {
  if (p.rows == 0) return nullptr;
  by_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const TileShape tile = tile_shape(p.classes, sizeof(accumulate_t<T>));
    const auto blocks = static_cast<unsigned>((p.rows + tile.rows - 1) / tile.rows);
    const auto kernel = p.gumbel ? sample<T, true> : sample<T, false>;
    kernel<<<blocks, kTileThreads, tile.bytes, static_cast<cudaStream_t>(stream)>>>(p, tile.rows, tile.stride);
  });
  return launch_error();
}

const char* straight_through_categorical_backward_kernel(const StraightThroughCategoricalBackward& p, void* stream) {
  if (p.rows == 0) return nullptr;
  by_lanes(p.dtype, p.classes, [&](auto type, auto lanes) {
    constexpr int G = decltype(lanes)::lanes;
    sample_backward<G, typename decltype(type)::type>
        <<<blocks_for(p.rows * G), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  });
  return launch_error();
}

const char* categorical_kl_kernel(const CategoricalKl& p, void* stream) {
  if (p.batch == 0) return nullptr;
  by_lanes(p.dtype, p.classes, [&](auto type, auto lanes) {
    constexpr int G = decltype(lanes)::lanes;
    const int64_t wanted = (p.groups * G + 31) / 32 * 32;  // whole warps
    const auto threads = static_cast<unsigned>(wanted < kThreads ? wanted : kThreads);
    kl<G, typename decltype(type)::type>
        <<<static_cast<unsigned>(p.batch), threads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  });
  return launch_error();
}

const char* categorical_kl_backward_kernel(const CategoricalKlBackward& p, void* stream) {
  if (p.batch == 0) return nullptr;
  by_lanes(p.dtype, p.classes, [&](auto type, auto lanes) {
    constexpr int G = decltype(lanes)::lanes;
    kl_backward<G, typename decltype(type)::type>
        <<<blocks_for(p.batch * p.groups * G), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  });
  return launch_error();
}

const char* categorical_entropy_kernel(const CategoricalEntropy& p, void* stream) {
  if (p.rows == 0) return nullptr;
  by_lanes(p.dtype, p.classes, [&](auto type, auto lanes) {
    constexpr int G = decltype(lanes)::lanes;
    entropy<G, typename decltype(type)::type>
        <<<blocks_for(p.rows * G), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  });
  return launch_error();
}

const char* categorical_entropy_backward_kernel(const CategoricalEntropyBackward& p, void* stream) {
  if (p.rows == 0) return nullptr;
  by_lanes(p.dtype, p.classes, [&](auto type, auto lanes) {
    constexpr int G = decltype(lanes)::lanes;
    entropy_backward<G, typename decltype(type)::type>
        <<<blocks_for(p.rows * G), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  });
  return launch_error();
}

}  // namespace fastwm::cuda
