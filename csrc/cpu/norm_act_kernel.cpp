#include "fastwm/norm_act.h"

#include "fastwm/parallel.h"

namespace fastwm::FASTWM_ISA {
namespace {

// Sum of term(0) ... term(n - 1); where it is long with four running sums, because one would wait for itself.
template <typename A, typename Term>
FASTWM_FN A sum(int64_t n, Term term) {
  const int64_t quarter = n < 256 ? 0 : n / 4;
  A a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
  for (int64_t i = 0; i < quarter; ++i) {
    a += term(i);
    b += term(i + quarter);
    c += term(i + 2 * quarter);
    d += term(i + 3 * quarter);
  }
#pragma omp simd reduction(+ : a)
  for (int64_t i = 4 * quarter; i < n; ++i) a += term(i);
  return (a + b) + (c + d);
}

template <typename T, Activation f, bool layer_norm>
void forward(const NormAct& p) {
  using A = accumulate_t<T>;
  const int64_t width = p.width;
  const A* weight = static_cast<const A*>(p.weight);
  const A* bias = static_cast<const A*>(p.bias);
#pragma omp parallel for schedule(static) if (p.rows * width > kParallelElements)
  for (int64_t row = 0; row < p.rows; ++row) {
    const T* x = static_cast<const T*>(p.x) + row * width;
    T* y = static_cast<T*>(p.y) + row * width;
    const A mean = layer_norm ? sum<A>(width, [x](int64_t d) { return widen(x[d]); }) / static_cast<A>(width) : 0;
    const A squares = sum<A>(width, [x, mean](int64_t d) { return (widen(x[d]) - mean) * (widen(x[d]) - mean); });
    const A inv_std = 1 / sqrt(squares / static_cast<A>(width) + static_cast<A>(p.eps));
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) {
      const A z = (widen(x[d]) - mean) * inv_std * weight[d];
      narrow(activate<f>(layer_norm ? z + bias[d] : z), y[d]);
    }
    static_cast<A*>(p.stats)[row] = inv_std;
    if constexpr (layer_norm) static_cast<A*>(p.stats)[p.rows + row] = mean;
  }
}

// With xhat = (x - mean) * inv_std and g = grad * f'(z) * weight, the gradient of xhat:
//   d_x = inv_std * (g - avg(g) - xhat * avg(g * xhat)),  RMSNorm without avg(g).
template <typename T, Activation f, bool layer_norm>
void backward_rows(const NormActBackward& p, int64_t first, int64_t end, accumulate_t<T>* d_weight) {
  using A = accumulate_t<T>;
  const int64_t width = p.width;
  const A* weight = static_cast<const A*>(p.weight);
  const A* bias = static_cast<const A*>(p.bias);
  A* d_bias = d_weight + width;
  A* g = d_bias + width;
  for (int64_t row = first; row < end; ++row) {
    const T* x = static_cast<const T*>(p.x) + row * width;
    const T* grad = static_cast<const T*>(p.grad) + row * width;
    T* d_x = static_cast<T*>(p.d_x) + row * width;
    const A inv_std = static_cast<const A*>(p.stats)[row];
    const A mean = layer_norm ? static_cast<const A*>(p.stats)[p.rows + row] : 0;
    A avg_g = 0, avg_g_xhat = 0;
#pragma omp simd reduction(+ : avg_g, avg_g_xhat)
    for (int64_t d = 0; d < width; ++d) {
      const A xhat = (widen(x[d]) - mean) * inv_std;
      const A z = xhat * weight[d];
      const A d_z = widen(grad[d]) * activation_slope<f>(layer_norm ? z + bias[d] : z);
      d_weight[d] += d_z * xhat;
      if constexpr (layer_norm) d_bias[d] += d_z;
      g[d] = d_z * weight[d];
      if constexpr (layer_norm) avg_g += g[d];
      avg_g_xhat += g[d] * xhat;
    }
    avg_g /= static_cast<A>(width);
    avg_g_xhat /= static_cast<A>(width);
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) {
      const A xhat = (widen(x[d]) - mean) * inv_std;
      narrow(inv_std * (g[d] - avg_g - xhat * avg_g_xhat), d_x[d]);
    }
  }
}

// Rows too narrow to fill vectors: the same, over kTile rows at once, column by column.
constexpr int64_t kNarrow = 32, kTile = 64;

template <typename T, Activation f, bool layer_norm>
void forward_narrow(const NormAct& p) {
  using A = accumulate_t<T>;
  const int64_t width = p.width;
  const A* weight = static_cast<const A*>(p.weight);
  const A* bias = static_cast<const A*>(p.bias);
#pragma omp parallel for schedule(static) if (p.rows * width > kParallelElements)
  for (int64_t first = 0; first < p.rows; first += kTile) {
    const int64_t rows = p.rows - first < kTile ? p.rows - first : kTile;
    const T* x = static_cast<const T*>(p.x) + first * width;
    T* y = static_cast<T*>(p.y) + first * width;
    A mean[kTile] = {}, inv_std[kTile] = {};
    if constexpr (layer_norm) {
      for (int64_t d = 0; d < width; ++d)
#pragma omp simd
        for (int64_t r = 0; r < rows; ++r) mean[r] += widen(x[r * width + d]);
      for (int64_t r = 0; r < rows; ++r) mean[r] /= static_cast<A>(width);
    }
    for (int64_t d = 0; d < width; ++d)
#pragma omp simd
      for (int64_t r = 0; r < rows; ++r) {
        const A centred = widen(x[r * width + d]) - mean[r];
        inv_std[r] += centred * centred;
      }
#pragma omp simd
    for (int64_t r = 0; r < rows; ++r)
      inv_std[r] = 1 / sqrt(inv_std[r] / static_cast<A>(width) + static_cast<A>(p.eps));
    for (int64_t d = 0; d < width; ++d) {
      const A w = weight[d], b = layer_norm ? bias[d] : 0;
#pragma omp simd
      for (int64_t r = 0; r < rows; ++r) {
        const A z = (widen(x[r * width + d]) - mean[r]) * inv_std[r] * w;
        narrow(activate<f>(layer_norm ? z + b : z), y[r * width + d]);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      static_cast<A*>(p.stats)[first + r] = inv_std[r];
      if constexpr (layer_norm) static_cast<A*>(p.stats)[p.rows + first + r] = mean[r];
    }
  }
}

template <typename T, Activation f, bool layer_norm>
void backward_narrow(const NormActBackward& p, int64_t begin, int64_t end, accumulate_t<T>* d_weight) {
  using A = accumulate_t<T>;
  const int64_t width = p.width;
  const A* weight = static_cast<const A*>(p.weight);
  const A* bias = static_cast<const A*>(p.bias);
  A* d_bias = d_weight + width;
  A xhat[kNarrow * kTile], g[kNarrow * kTile];  // [width, kTile]
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t rows = end - first < kTile ? end - first : kTile;
    const T* x = static_cast<const T*>(p.x) + first * width;
    const T* grad = static_cast<const T*>(p.grad) + first * width;
    T* d_x = static_cast<T*>(p.d_x) + first * width;
    const A* inv_std = static_cast<const A*>(p.stats) + first;
    const A* means = static_cast<const A*>(p.stats) + p.rows + first;
    A avg_g[kTile] = {}, avg_g_xhat[kTile] = {};
    for (int64_t d = 0; d < width; ++d) {
      const A w = weight[d], b = layer_norm ? bias[d] : 0;
      A sum_w = 0, sum_b = 0;
#pragma omp simd reduction(+ : sum_w, sum_b)
      for (int64_t r = 0; r < rows; ++r) {
        const A h = (widen(x[r * width + d]) - (layer_norm ? means[r] : 0)) * inv_std[r];
        const A z = h * w;
        const A d_z = widen(grad[r * width + d]) * activation_slope<f>(layer_norm ? z + b : z);
        sum_w += d_z * h;
        sum_b += d_z;
        xhat[d * kTile + r] = h;
        g[d * kTile + r] = d_z * w;
        if constexpr (layer_norm) avg_g[r] += d_z * w;
        avg_g_xhat[r] += d_z * w * h;
      }
      d_weight[d] += sum_w;
      if constexpr (layer_norm) d_bias[d] += sum_b;
    }
#pragma omp simd
    for (int64_t r = 0; r < rows; ++r) {
      avg_g[r] /= static_cast<A>(width);
      avg_g_xhat[r] /= static_cast<A>(width);
    }
    for (int64_t d = 0; d < width; ++d)
#pragma omp simd
      for (int64_t r = 0; r < rows; ++r)
        narrow(inv_std[r] * (g[d * kTile + r] - avg_g[r] - xhat[d * kTile + r] * avg_g_xhat[r]), d_x[r * width + d]);
  }
}

template <typename T, Activation f, bool layer_norm>
void run(const NormAct& p) {
  p.width < kNarrow ? forward_narrow<T, f, layer_norm>(p) : forward<T, f, layer_norm>(p);
}

template <typename T, Activation f, bool layer_norm>
void run(const NormActBackward& p) {
  using A = accumulate_t<T>;
  const int64_t affine = (layer_norm ? 2 : 1) * p.width;
#pragma omp parallel for schedule(static) if (p.rows * p.width > kParallelElements)
  for (int64_t block = 0; block < p.blocks; ++block) {
    const int64_t first = block * p.rows / p.blocks, end = (block + 1) * p.rows / p.blocks;
    A* share = static_cast<A*>(p.scratch) + block * 3 * p.width;
    for (int64_t d = 0; d < affine; ++d) share[d] = 0;
    p.width < kNarrow ? backward_narrow<T, f, layer_norm>(p, first, end, share)
                      : backward_rows<T, f, layer_norm>(p, first, end, share);
  }
  A* d_affine = static_cast<A*>(p.d_affine);
  for (int64_t d = 0; d < affine; ++d) d_affine[d] = 0;
  for (int64_t block = 0; block < p.blocks; ++block) {
    const A* share = static_cast<const A*>(p.scratch) + block * 3 * p.width;
#pragma omp simd
    for (int64_t d = 0; d < affine; ++d) d_affine[d] += share[d];
  }
}

template <Activation f, bool layer_norm, typename Params>
void dispatch(const Params& p) {
  switch (p.dtype) {
    case Dtype::f32: return run<float, f, layer_norm>(p);
    case Dtype::f64: return run<double, f, layer_norm>(p);
    case Dtype::bf16: return run<bf16, f, layer_norm>(p);
  }
}

template <typename Params>
void dispatch(const Params& p) {
  switch (p.activation) {
    case Activation::none: return p.bias ? dispatch<Activation::none, true>(p) : dispatch<Activation::none, false>(p);
    case Activation::silu: return p.bias ? dispatch<Activation::silu, true>(p) : dispatch<Activation::silu, false>(p);
    case Activation::elu: return p.bias ? dispatch<Activation::elu, true>(p) : dispatch<Activation::elu, false>(p);
    case Activation::relu: return p.bias ? dispatch<Activation::relu, true>(p) : dispatch<Activation::relu, false>(p);
  }
}

}  // namespace

void norm_act_kernel(const NormAct& p) { dispatch(p); }
void norm_act_backward_kernel(const NormActBackward& p) { dispatch(p); }

}  // namespace fastwm::FASTWM_ISA
