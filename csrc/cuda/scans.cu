// One launch a step, a product over 16 rows by 32 columns of every gate a block with the gates behind it; two where a
// LayerNorm needs the whole row, or where PlaNet's candidate waits for the reset gate. The input's product was made
// before, the weights' gradients are products over all steps after the loop.
#include <type_traits>

#include "grad_product.cuh"
#include "rssm_rows.cuh"

#include "fastwm/cells.h"
#include "fastwm/scans.h"

namespace fastwm::cuda {
namespace {

constexpr int kMaxGates = 4;

template <typename T, typename O>
struct Forward {
  Scan p;
  PackedWeight<O> w[kMaxGates];  // [D, D] each
  T* unsaved;                    // [B, saved * D] in place of what is saved, where nothing is

  __device__ int64_t D() const { return p.n.D; }
  __device__ int64_t at(int64_t t, int64_t row) const { return t * p.n.B + row; }
  __device__ const T* input(int64_t t, int64_t row) const {
    return static_cast<const T*>(p.input) + at(t, row) * scan_gates(p.cell) * D();
  }
  __device__ T* saved(int64_t t, int64_t row) const {
    const int64_t wide = scan_saved(p.cell) * D();
    return p.saved ? static_cast<T*>(p.saved) + at(t, row) * wide : unsaved + row * wide;
  }
  // The carries before step t, zero where it resets.
  __device__ T h(int64_t t, int64_t row, int64_t i) const {
    if (p.is_first && p.is_first[at(t, row)]) return 0;
    return t > 0 ? static_cast<const T*>(p.output)[at(t - 1, row) * D() + i]
                 : static_cast<const T*>(p.h0)[row * D() + i];
  }
  __device__ T c(int64_t t, int64_t row, int64_t i) const {
    if (p.is_first && p.is_first[at(t, row)]) return 0;
    if (t == 0) return static_cast<const T*>(p.c0)[row * D() + i];
    return p.cells ? static_cast<const T*>(p.cells)[at(t - 1, row) * D() + i]
                   : static_cast<const T*>(p.c_T)[row * D() + i];
  }
  __device__ void write(int64_t t, int64_t row, int64_t i, T value) const {
    static_cast<T*>(p.output)[at(t, row) * D() + i] = value;
    if (t + 1 == p.n.T) static_cast<T*>(p.h_T)[row * D() + i] = value;
  }
};

// What follows a step's sums, at one element: x the input's gates and sums those of the carry, D apart.
template <ScanCell cell, typename T, typename O>
__device__ void gates(const Forward<T, O>& a, int64_t t, int64_t row, int64_t i, const T (&sums)[kMaxGates]) {
  const int64_t D = a.D();
  const T* x = a.input(t, row) + i;
  T* saved = a.saved(t, row) + i;
  if constexpr (cell == ScanCell::gru) {
    const T apart = sums[2] + (a.p.w.bias ? static_cast<const T*>(a.p.w.bias)[i] : 0);
    const T r = vsigmoid(x[0] + sums[0]), z = vsigmoid(x[D] + sums[1]), n = vtanh(x[2 * D] + r * apart);
    saved[0] = r, saved[D] = z, saved[2 * D] = n, saved[3 * D] = apart;
    a.write(t, row, i, n + z * (a.h(t, row, i) - n));
  } else if constexpr (cell == ScanCell::lstm) {
    const int64_t f = a.p.w.ijfo ? 2 : 1, g = 3 - f;
    const T in = vsigmoid(x[0] + sums[0]), cand = vtanh(x[g * D] + sums[g]), out = vsigmoid(x[3 * D] + sums[3]);
    const T forget = vsigmoid(x[f * D] + sums[f] + static_cast<T>(a.p.w.gate_bias));
    const T c = forget * a.c(t, row, i) + in * cand;
    saved[0] = in, saved[f * D] = forget, saved[g * D] = cand, saved[3 * D] = out;
    if (a.p.cells) static_cast<T*>(a.p.cells)[a.at(t, row) * D + i] = c;
    if (!a.p.cells || t + 1 == a.p.n.T) static_cast<T*>(a.p.c_T)[row * D + i] = c;
    a.write(t, row, i, out * vtanh(c));
  } else if constexpr (cell == ScanCell::layernorm_gru) {
    for (int k = 0; k < 3; ++k) saved[k * D] = x[k * D] + sums[k];
  } else {
    saved[0] = vsigmoid(x[0] + sums[0]), saved[D] = vsigmoid(x[D] + sums[1]);
  }
}

template <ScanCell cell, typename T, typename O>
__global__ void __launch_bounds__(kThreads, 1) step(Forward<T, O> a, int64_t t) {
  constexpr int kGates = cell == ScanCell::lstm ? 4 : cell == ScanCell::planet_gru ? 2 : 3;
  __shared__ typename TileProduct<O, kGates>::Shared shared;
  const Rows rows(a.p.n.B);
  TileProduct<O, kGates> product(shared, rows.count);
  const O* tiles[kGates];
  for (int gate = 0; gate < kGates; ++gate) tiles[gate] = a.w[gate].tile(0, blockIdx.x);
  product.add(tiles, a.D(), [&](int r, int64_t k) { return a.h(t, rows.first + r, k); });
  T out[kGates][2];
  product.finish(out);
  const int64_t i = int64_t{blockIdx.x} * kTileColumns + threadIdx.x % 32;
  if (i >= a.D()) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = threadIdx.x / 32 + kWarps * half;
    if (!rows.has(r)) continue;
    T sums[kMaxGates] = {};
    for (int gate = 0; gate < kGates; ++gate) sums[gate] = out[gate][half];
    gates<cell>(a, t, rows.first + r, i, sums);
  }
}

// PlaNet's candidate, from r h.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) planet_candidate(Forward<T, O> a, int64_t t) {
  __shared__ typename TileProduct<O>::Shared shared;
  const Rows rows(a.p.n.B);
  const int64_t D = a.D();
  TileProduct<O> product(shared, rows.count);
  product.add({a.w[2].tile(0, blockIdx.x)}, D, [&](int r, int64_t k) {
    const int64_t row = rows.first + r;
    return a.saved(t, row)[k] * a.h(t, row, k);
  });
  T out[1][2];
  product.finish(out);
  const int64_t i = int64_t{blockIdx.x} * kTileColumns + threadIdx.x % 32;
  if (i >= D) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = threadIdx.x / 32 + kWarps * half;
    if (!rows.has(r)) continue;
    const int64_t row = rows.first + r;
    T* saved = a.saved(t, row) + i;
    const T c = vtanh(a.input(t, row)[2 * D + i] + out[0][half]);
    saved[2 * D] = c;
    a.write(t, row, i, c + saved[D] * (a.h(t, row, i) - c));
  }
}

template <typename T>
struct Norm {
  T mean, rstd;

  __device__ Norm(const T* x, int64_t width, T eps) {
    T sum = 0, squares = 0;
    for (int64_t i = threadIdx.x; i < width; i += kThreads) sum += x[i];
    mean = group_sum<kThreads>(sum) / static_cast<T>(width);
    for (int64_t i = threadIdx.x; i < width; i += kThreads) squares += (x[i] - mean) * (x[i] - mean);
    rstd = 1 / sqrt(group_sum<kThreads>(squares) / static_cast<T>(width) + eps);
  }
};

// One block a row.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) layernorm_gates(Forward<T, O> a, int64_t t) {
  const int64_t row = blockIdx.x, D = a.D();
  const T* x = a.saved(t, row);
  const Norm<T> norm(x, 3 * D, static_cast<T>(a.p.w.eps));
  const T *scale = static_cast<const T*>(a.p.w.scale), *shift = static_cast<const T*>(a.p.w.bias);
  Cells cell{};
  cell.bias = a.p.w.gate_bias;
  for (int64_t i = threadIdx.x; i < D; i += kThreads) {
    T in[4], out[1];
#pragma unroll
    for (int k = 0; k < 3; ++k) in[k] = (x[k * D + i] - norm.mean) * norm.rstd * scale[k * D + i] + shift[k * D + i];
    in[3] = a.h(t, row, i);
    BlockGru::run(cell, in, out);
    a.write(t, row, i, out[0]);
  }
}

template <typename T, typename O>
struct Backward {
  ScanBackward p;
  PackedWeight<O> early, late;  // [early gates * D, D] and PlaNet's candidate [D, D], transposed
  T *d_h, *d_c;                 // [B, D]: of the carries, as far as they go past the products
  T *d_normal, *stats;          // [T * B, 3D]: of a norm's output; [T * B, 2]: its mean and 1 / deviation

  __device__ int64_t D() const { return p.n.D; }
  __device__ int64_t gates() const { return scan_gates(p.cell); }
  __device__ int64_t at(int64_t t, int64_t row) const { return t * p.n.B + row; }
  __device__ bool first(int64_t row) const { return p.is_first && p.is_first[row]; }  // row of [T, B]
  __device__ const T* saved(int64_t row) const {
    return static_cast<const T*>(p.saved) + row * scan_saved(p.cell) * D();
  }
  __device__ T* d_input(int64_t row) const { return static_cast<T*>(p.d_input) + row * gates() * D(); }
  __device__ T h(int64_t row, int64_t i) const {
    if (first(row)) return 0;
    return row < p.n.B ? static_cast<const T*>(p.h0)[row * D() + i]
                       : static_cast<const T*>(p.output)[(row - p.n.B) * D() + i];
  }
  __device__ T c(int64_t row, int64_t i) const {
    if (first(row)) return 0;
    return row < p.n.B ? static_cast<const T*>(p.c0)[row * D() + i]
                       : static_cast<const T*>(p.cells)[(row - p.n.B) * D() + i];
  }
  __device__ T normal(int64_t row, int64_t i) const { return (saved(row)[i] - stats[2 * row]) * stats[2 * row + 1]; }
  // The gradient of gate k / D's sum with the carry.
  __device__ T d_sum(int64_t row, int64_t k) const {
    const T d = d_input(row)[k];
    return p.cell == ScanCell::gru && k >= 2 * D() ? d * saved(row)[k - 2 * D()] : d;
  }
};

// From the gradient of the new carry to those of the gates, at one element; returns what goes past the products.
template <ScanCell cell, typename T, typename O>
__device__ T gates_backward(const Backward<T, O>& a, int64_t t, int64_t b, int64_t i, T grad) {
  const int64_t D = a.D(), row = a.at(t, b);
  const T* saved = a.saved(row) + i;
  T* d = a.d_input(row) + i;
  if constexpr (cell == ScanCell::gru) {
    const T r = saved[0], z = saved[D], n = saved[2 * D], d_n = grad * (1 - z) * (1 - n * n);
    d[2 * D] = d_n;
    d[0] = d_n * saved[3 * D] * r * (1 - r);
    d[D] = grad * (a.h(row, i) - n) * z * (1 - z);
    return grad * z;
  } else if constexpr (cell == ScanCell::lstm) {
    const int64_t f = a.p.w.ijfo ? 2 : 1, g = 3 - f;
    const T in = saved[0], forget = saved[f * D], cand = saved[g * D], out = saved[3 * D];
    const T squashed = vtanh(static_cast<const T*>(a.p.cells)[row * D + i]);
    T* d_c = a.d_c + b * D + i;
    const T through = *d_c + grad * out * (1 - squashed * squashed);
    d[0] = through * cand * in * (1 - in);
    d[f * D] = through * a.c(row, i) * forget * (1 - forget);
    d[g * D] = through * in * (1 - cand * cand);
    d[3 * D] = grad * squashed * out * (1 - out);
    *d_c = through * forget;
    return 0;
  } else if constexpr (cell == ScanCell::planet_gru) {
    const T u = saved[D], c = saved[2 * D];
    d[D] = grad * (a.h(row, i) - c) * u * (1 - u);
    d[2 * D] = grad * (1 - u) * (1 - c * c);
    return grad * u;
  } else {
    return grad;
  }
}

// The whole gradient of the carry after step t, and the gates' way back; of the start's carry where t < 0.
template <ScanCell cell, typename T, typename O>
__global__ void __launch_bounds__(kThreads) step_backward(Backward<T, O> a, int64_t t) {
  __shared__ typename TileProduct<O>::Shared shared;
  const Rows rows(a.p.n.B);
  const int64_t D = a.D();
  const bool last = t + 1 == a.p.n.T;
  TileProduct<O> product(shared, rows.count);
  if (!last)
    product.add({a.early.tile(0, blockIdx.x)}, a.early.K, [&](int r, int64_t k) {
      const int64_t row = a.at(t + 1, rows.first + r);
      const T d = a.d_sum(row, k);
      return a.first(row) ? T{0} : d;
    });
  T out[1][2];
  product.finish(out);
  const int64_t i = int64_t{blockIdx.x} * kTileColumns + threadIdx.x % 32;
  if (i >= D) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = threadIdx.x / 32 + kWarps * half;
    if (!rows.has(r)) continue;
    const int64_t b = rows.first + r, at = b * D + i;
    const auto given = [&](const void* grad) { return grad ? static_cast<const T*>(grad)[at] : T{0}; };
    const bool reset = !last && a.first(a.at(t + 1, b));
    T grad = last ? given(a.p.g_h) : reset ? T{0} : out[0][half] + a.d_h[at];
    if (cell == ScanCell::lstm) a.d_c[at] = last ? given(a.p.g_c) : reset ? T{0} : a.d_c[at];
    if (t < 0) {
      static_cast<T*>(a.p.d_h)[at] = grad;
      if (cell == ScanCell::lstm) static_cast<T*>(a.p.d_c)[at] = a.d_c[at];
      continue;
    }
    if (a.p.g_output) grad += static_cast<const T*>(a.p.g_output)[a.at(t, b) * D + i];
    a.d_h[at] = gates_backward<cell>(a, t, b, i, grad);
  }
}

// By way of PlaNet's candidate: r h.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) planet_candidate_backward(Backward<T, O> a, int64_t t) {
  __shared__ typename TileProduct<O>::Shared shared;
  const Rows rows(a.p.n.B);
  const int64_t D = a.D();
  TileProduct<O> product(shared, rows.count);
  product.add({a.late.tile(0, blockIdx.x)}, D, [&](int r, int64_t k) {
    return a.d_input(a.at(t, rows.first + r))[2 * D + k];
  });
  T out[1][2];
  product.finish(out);
  const int64_t i = int64_t{blockIdx.x} * kTileColumns + threadIdx.x % 32;
  if (i >= D) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = threadIdx.x / 32 + kWarps * half;
    if (!rows.has(r)) continue;
    const int64_t b = rows.first + r, row = a.at(t, b);
    const T reset = a.saved(row)[i];
    a.d_input(row)[i] = out[0][half] * a.h(row, i) * reset * (1 - reset);
    a.d_h[b * D + i] += out[0][half] * reset;
  }
}

// One block a row; d_h holds the gradient of the new carry, and then that of the old one past the products.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) layernorm_backward(Backward<T, O> a, int64_t t) {
  const int64_t b = blockIdx.x, row = a.at(t, b), D = a.D();
  const T* x = a.saved(row);
  const Norm<T> norm(x, 3 * D, static_cast<T>(a.p.w.eps));
  const T *scale = static_cast<const T*>(a.p.w.scale), *shift = static_cast<const T*>(a.p.w.bias);
  T *d_input = a.d_input(row), *d_normal = a.d_normal + row * 3 * D;
  Cells cell{};
  cell.bias = a.p.w.gate_bias;
  if (threadIdx.x == 0) a.stats[2 * row] = norm.mean, a.stats[2 * row + 1] = norm.rstd;
  T sum = 0, dot = 0;
  for (int64_t i = threadIdx.x; i < D; i += kThreads) {
    T in[5], out[4], normal[3];
    in[0] = a.d_h[b * D + i];
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      normal[k] = (x[k * D + i] - norm.mean) * norm.rstd;
      in[1 + k] = normal[k] * scale[k * D + i] + shift[k * D + i];
    }
    in[4] = a.h(row, i);
    BlockGruBackward::run(cell, in, out);
    a.d_h[b * D + i] = out[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      d_normal[k * D + i] = out[k];
      d_input[k * D + i] = out[k] * scale[k * D + i];
      sum += out[k] * scale[k * D + i];
      dot += out[k] * scale[k * D + i] * normal[k];
    }
  }
  sum = group_sum<kThreads>(sum) / static_cast<T>(3 * D);
  dot = group_sum<kThreads>(dot) / static_cast<T>(3 * D);
  for (int64_t i = threadIdx.x; i < 3 * D; i += kThreads)
    d_input[i] = norm.rstd * (d_input[i] - sum - (x[i] - norm.mean) * norm.rstd * dot);
}

// blockIdx.z: the gate.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads, 1) weight_grad(Backward<T, O> a) {
  __shared__ typename GradProduct<T, O>::Shared shared;
  const int64_t D = a.D();
  Square at(blockIdx.x);
  at.of(D, D, scan_gates(a.p.cell));
  const int64_t gate = at.g;
  const bool late = a.p.cell == ScanCell::planet_gru && gate == 2;
  GradProduct<T, O>::run(
      shared, at, a.p.n.T * a.p.n.B, D, D, static_cast<T*>(a.p.d_weight) + gate * D * D,
      [&](int64_t r, int64_t m) { return a.d_sum(r, gate * D + m); },
      [&](int64_t r, int64_t k) { return late ? a.saved(r)[k] * a.h(r, k) : a.h(r, k); });
}

// A norm's shift and scale (blockIdx.y), or a GRU's bias within the reset gate.
template <ScanCell cell, typename T, typename O>
__global__ void __launch_bounds__(kThreads) vector_grads(Backward<T, O> a) {
  const int64_t D = a.D(), R = a.p.n.T * a.p.n.B;
  if (cell == ScanCell::gru) {
    column_sums(R, D, static_cast<T*>(a.p.d_bias), [&](int64_t r, int64_t i) { return a.d_sum(r, 2 * D + i); });
  } else if (blockIdx.y == 0) {
    column_sums(R, 3 * D, static_cast<T*>(a.p.d_bias), [&](int64_t r, int64_t i) { return a.d_normal[r * 3 * D + i]; });
  } else {
    column_sums(R, 3 * D, static_cast<T*>(a.p.d_scale), [&](int64_t r, int64_t i) {
      return a.d_normal[r * 3 * D + i] * a.normal(r, i);
    });
  }
}

template <typename T, typename O>
Forward<T, O> arrange(const Scan& p, Scratch& scratch) {
  Forward<T, O> a{p, {}, nullptr};
  for (int gate = 0; gate < scan_gates(p.cell); ++gate) {
    a.w[gate] = {nullptr, 1, p.n.D, p.n.D};
    a.w[gate].data = scratch.take<O>(a.w[gate].size());
  }
  a.unsaved = scratch.take<T>(p.saved ? 0 : p.n.B * scan_saved(p.cell) * p.n.D);
  return a;
}

template <typename T, typename O>
Backward<T, O> arrange(const ScanBackward& p, Scratch& scratch) {
  const int64_t D = p.n.D, R = p.n.T * p.n.B, gates = scan_gates(p.cell);
  const bool planet = p.cell == ScanCell::planet_gru, norm = p.cell == ScanCell::layernorm_gru;
  Backward<T, O> a{p, {nullptr, 1, (planet ? 2 : gates) * D, D}, {nullptr, 1, D, D}, nullptr, nullptr, nullptr, nullptr};
  a.early.data = scratch.take<O>(a.early.size());
  a.late.data = scratch.take<O>(planet ? a.late.size() : 0);
  a.d_h = scratch.take<T>(p.n.B * D), a.d_c = scratch.take<T>(p.n.B * D);
  a.d_normal = scratch.take<T>(norm ? R * 3 * D : 0), a.stats = scratch.take<T>(norm ? R * 2 : 0);
  return a;
}

// Gate `first` on, transposed: [gates * D, D] by rows of the stored weight.
Weight transposed(const Weight& w, int64_t first, int64_t D, size_t element) {
  return {static_cast<const char*>(w.data) + first * w.sg * static_cast<int64_t>(element), 0, w.sg / D, w.sk};
}

template <typename Params, typename F>
void by_type(const Params& p, F f) {
  if (p.dtype == Dtype::f64) f(double{}, double{});
  else if (p.bf16) f(float{}, bf16{});
  else f(float{}, float{});
}

template <typename F>
void by_cell(ScanCell cell, F f) {
  switch (cell) {
    case ScanCell::gru: return f(std::integral_constant<ScanCell, ScanCell::gru>{});
    case ScanCell::lstm: return f(std::integral_constant<ScanCell, ScanCell::lstm>{});
    case ScanCell::layernorm_gru: return f(std::integral_constant<ScanCell, ScanCell::layernorm_gru>{});
    case ScanCell::planet_gru: return f(std::integral_constant<ScanCell, ScanCell::planet_gru>{});
  }
}

template <ScanCell cell, typename T, typename O>
void scan(const Scan& p, cudaStream_t on) {
  Scratch scratch{static_cast<unsigned char*>(p.scratch)};
  const Forward<T, O> a = arrange<T, O>(p, scratch);
  for (int gate = 0; gate < scan_gates(cell); ++gate) {
    const Weight w{static_cast<const T*>(p.w.gates.data) + gate * p.w.gates.sg, 0, p.w.gates.sk, p.w.gates.sn};
    pack<T>(w, 0, a.w[gate], on);
  }
  const auto batch = static_cast<unsigned>(p.n.B);
  const dim3 grid(static_cast<unsigned>(a.w[0].tiles()), (batch + kTileRows - 1) / kTileRows);
  for (int64_t t = 0; t < p.n.T; ++t) {
    step<cell, T, O><<<grid, kThreads, 0, on>>>(a, t);
    if constexpr (cell == ScanCell::layernorm_gru) layernorm_gates<T, O><<<batch, kThreads, 0, on>>>(a, t);
    if constexpr (cell == ScanCell::planet_gru) planet_candidate<T, O><<<grid, kThreads, 0, on>>>(a, t);
  }
}

template <ScanCell cell, typename T, typename O>
void scan_backward(const ScanBackward& p, cudaStream_t on) {
  Scratch scratch{static_cast<unsigned char*>(p.scratch)};
  const Backward<T, O> a = arrange<T, O>(p, scratch);
  const int64_t D = p.n.D;
  const auto batch = static_cast<unsigned>(p.n.B);
  const dim3 grid(static_cast<unsigned>(a.early.tiles()), (batch + kTileRows - 1) / kTileRows);
  if (batch > 0) {
    pack<T>(transposed(p.w.gates, 0, D, sizeof(T)), 0, a.early, on);
    if constexpr (cell == ScanCell::planet_gru) pack<T>(transposed(p.w.gates, 2, D, sizeof(T)), 0, a.late, on);
    for (int64_t t = p.n.T - 1; t >= 0; --t) {
      step_backward<cell, T, O><<<grid, kThreads, 0, on>>>(a, t);
      if constexpr (cell == ScanCell::layernorm_gru) layernorm_backward<T, O><<<batch, kThreads, 0, on>>>(a, t);
      if constexpr (cell == ScanCell::planet_gru) planet_candidate_backward<T, O><<<grid, kThreads, 0, on>>>(a, t);
    }
    step_backward<cell, T, O><<<grid, kThreads, 0, on>>>(a, -1);
  }
  weight_grad<T, O><<<static_cast<unsigned>(squares(D, D, scan_gates(cell))), kThreads, 0, on>>>(a);
  const auto columns = [](int64_t width) { return static_cast<unsigned>((width + 31) / 32); };
  if constexpr (cell == ScanCell::layernorm_gru)
    vector_grads<cell, T, O><<<dim3(columns(3 * D), 2), kThreads, 0, on>>>(a);
  if constexpr (cell == ScanCell::gru)
    if (p.w.bias) vector_grads<cell, T, O><<<columns(D), kThreads, 0, on>>>(a);
}

template <typename Params>
int64_t scratch_bytes(const Params& p) {
  Scratch scratch{nullptr};
  by_type(p, [&](auto t, auto o) { arrange<decltype(t), decltype(o)>(p, scratch); });
  return scratch.used;
}

}  // namespace

int64_t scan_scratch(const Scan& p) { return scratch_bytes(p); }
int64_t scan_backward_scratch(const ScanBackward& p) { return scratch_bytes(p); }

const char* scan_kernel(const Scan& p, void* stream) {
  if (p.n.B == 0) return nullptr;
  by_type(p, [&](auto t, auto o) {
    by_cell(p.cell, [&](auto cell) {
      scan<decltype(cell)::value, decltype(t), decltype(o)>(p, static_cast<cudaStream_t>(stream));
    });
  });
  return launch_error();
}

const char* scan_backward_kernel(const ScanBackward& p, void* stream) {
  by_type(p, [&](auto t, auto o) {
    by_cell(p.cell, [&](auto cell) {
      scan_backward<decltype(cell)::value, decltype(t), decltype(o)>(p, static_cast<cudaStream_t>(stream));
    });
  });
  return launch_error();
}

}  // namespace fastwm::cuda
