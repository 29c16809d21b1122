// The mirror of scans.cu: one launch, last step first. The weights' gradients are products over all steps after the
// loop.
#include "grad_product.cuh"
#include "scan_rows.cuh"

namespace fastwm::cuda {
namespace {

template <typename T, typename O>
struct Backward {
  ScanBackward p;
  PackedWeight<O> early, late;  // [early gates * D, D] and PlaNet's candidate [D, D], transposed
  T *d_h, *d_c;                 // [B, D]: of the carries, as far as they go past the products
  T *d_normal, *stats;          // [T * B, 3D]: of a norm's output; [T * B, 2]: its mean and 1 / deviation
  unsigned* arrived;

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

// The inputs of the gates' derivative at one element: what the forward saved, and the carries before the step.
template <typename T>
struct Left {
  T saved[4], h, c, cell;
};

template <ScanCell cell, typename T, typename O>
__device__ Left<T> left(const Backward<T, O>& a, int64_t row, int64_t i) {
  Left<T> x{};
  if constexpr (cell != ScanCell::layernorm_gru) {  // whose gates have a stage of their own
#pragma unroll
    for (int k = 0; k < scan_saved(cell); ++k) x.saved[k] = a.saved(row)[k * a.D() + i];
    if (cell == ScanCell::lstm) x.c = a.c(row, i), x.cell = static_cast<const T*>(a.p.cells)[row * a.D() + i];
    else x.h = a.h(row, i);
  }
  return x;
}

// From the gradient of the new carry to those of the gates, at one element; returns what goes past the products.
template <ScanCell cell, typename T, typename O>
__device__ T gates_backward(const Backward<T, O>& a, int64_t t, int64_t b, int64_t i, const Left<T>& x, T grad, T d_c) {
  const int64_t D = a.D();
  const T* saved = x.saved;
  T* d = a.d_input(a.at(t, b)) + i;
  if constexpr (cell == ScanCell::gru) {
    const GruGrads<T> y = gru_backward(GruGates<T>{saved[0], saved[1], saved[2]}, saved[3], x.h, grad);
    d[2 * D] = y.x_n;
    d[0] = y.reset;
    d[D] = y.update;
    return y.h;
  } else if constexpr (cell == ScanCell::lstm) {
    const bool ijfo = a.p.w.ijfo;
    const int64_t f = ijfo ? 2 : 1, g = 3 - f;
    const LstmGates<T> gates = lstm_order(saved[0], saved[1], saved[2], saved[3], ijfo);
    const LstmGrads<T> y = lstm_backward(gates, x.c, vtanh(x.cell), grad, d_c);
    d[0] = y.sums.in, d[f * D] = y.sums.forget, d[g * D] = y.sums.cand, d[3 * D] = y.sums.out;
    a.d_c[b * D + i] = y.c;
    return 0;
  } else if constexpr (cell == ScanCell::planet_gru) {
    const PlanetUpdateGrads<T> y = planet_update_backward(saved[1], saved[2], x.h, grad);
    d[D] = sigmoid_backward(y.update, saved[1]);
    d[2 * D] = y.cand;
    return y.h;
  } else {
    return grad;
  }
}

// The stages of a step, for 16 rows.
template <ScanCell cell, typename T, typename O>
class ScanStepsBack {
  using Product = TileProduct<O>;
  using Row = typename Product::Row;

 public:
  using Shared = typename Product::Shared;

  __device__ ScanStepsBack(const Backward<T, O>& a, Barrier& barrier, Shared& shared, int64_t row_tile)
      : a_(a), barrier_(barrier), shared_(shared), at_(row_tile, a.p.n.B) {}

  // The whole gradient of the carry after step t, and backward through the gates; where t < 0, that of the start.
  __device__ void step(int64_t t) {
    struct Loaded {
      Row d, r;
    };
    const int D = static_cast<int>(a_.D()), K = static_cast<int>(a_.early.K);
    const bool last = t + 1 == a_.p.n.T;
    share_out(barrier_, tiles_of(D), [&](int tile, bool first) {
      Product product(shared_);
      const O* const w[1] = {a_.early.tile(0, tile)};
      auto weights = Product::template fetch<6>(w, K);
      const int column = tile * kTileColumns + at_.column, i = column < D ? column : D - 1;
      const int64_t b = at_.row, at = b * D + i;
      const bool cut[2] = {!last && a_.first(a_.at(t + 1, at_.read[0])), !last && a_.first(a_.at(t + 1, at_.read[1]))};
      const bool reset = !last && a_.first(a_.at(t + 1, b));
      const auto given = [&](const void* grad) { return grad ? static_cast<const T*>(grad)[at] : T{0}; };
      T own = last ? given(a_.p.g_h) : T{0}, d_c = last && cell == ScanCell::lstm ? given(a_.p.g_c) : T{0};
      if (t >= 0 && a_.p.g_output) own += static_cast<const T*>(a_.p.g_output)[a_.at(t, b) * D + i];
      const Left<T> x = t >= 0 ? left<cell>(a_, a_.at(t, b), i) : Left<T>{};
      if (first) barrier_.wait();
      const T carried = last || reset ? T{0} : a_.d_h[at];
      if (cell == ScanCell::lstm && !last) d_c = reset ? T{0} : a_.d_c[at];
      if (!last)
        product.add(
            w, K, weights,
            [&](int half, int k) {
              const int64_t row_at = a_.at(t + 1, at_.read[half]);
              const int reset_of = k >= 2 * D ? k - 2 * D : k;
              Loaded loaded{read_piece<Row>(a_.d_input(row_at) + k), {}};
              if (cell == ScanCell::gru) loaded.r = read_piece<Row>(a_.saved(row_at) + reset_of);
              return loaded;
            },
            [&](int half, int k, const Loaded& loaded) {
              const bool through_r = cell == ScanCell::gru && k >= 2 * D;
              return each<Row>([&](int e) {
                return cut[half] ? T{0} : through_r ? loaded.d.x[e] * loaded.r.x[e] : loaded.d.x[e];
              });
            },
            [] {});
      T out[1];
      product.finish(out);
      if (column >= D || !at_.writes) return;
      const T grad = own + (reset ? T{0} : out[0] + carried);
      if (t < 0) {
        static_cast<T*>(a_.p.d_h)[at] = grad;
        if (cell == ScanCell::lstm) static_cast<T*>(a_.p.d_c)[at] = d_c;
      } else {
        a_.d_h[at] = gates_backward<cell>(a_, t, b, i, x, grad, d_c);
      }
    });
  }

  // By way of PlaNet's candidate: r h.
  __device__ void planet_candidate(int64_t t) {
    const int D = static_cast<int>(a_.D());
    share_out(barrier_, tiles_of(D), [&](int tile, bool first) {
      Product product(shared_);
      const O* const w[1] = {a_.late.tile(0, tile)};
      auto weights = Product::template fetch<4>(w, D);
      const int column = tile * kTileColumns + at_.column, i = column < D ? column : D - 1;
      const int64_t row_at = a_.at(t, at_.row);
      const T reset = a_.saved(row_at)[i], before = a_.h(row_at, i);
      if (first) barrier_.wait();
      product.add(
          w, D, weights,
          [&](int half, int k) { return read_piece<Row>(a_.d_input(a_.at(t, at_.read[half])) + 2 * D + k); },
          [](int, int, const Row& x) { return x; }, [] {});
      T out[1];
      product.finish(out);
      if (column >= D || !at_.writes) return;
      const PlanetResetGrads<T> y = planet_reset_backward(reset, before, out[0]);
      a_.d_input(row_at)[i] = y.reset;
      a_.d_h[at_.row * D + i] += y.h;
    });
  }

  // A tile is a row; d_h holds the gradient of the new carry, and then that of the old one past the products.
  __device__ void layernorm(int64_t t) {
    share_out(barrier_, at_.rows.count, [&](int r, bool first) {
      if (first) barrier_.wait();
      layernorm_row(t, at_.rows.first + r);
    });
  }

 private:
  __device__ void layernorm_row(int64_t t, int64_t b) const {
    const Backward<T, O>& a = a_;
    const int64_t row = a.at(t, b), D = a.D();
    const T* x = a.saved(row);
    const Norm<T> norm(x, 3 * D, static_cast<T>(a.p.w.eps));
    const T *scale = static_cast<const T*>(a.p.w.scale), *shift = static_cast<const T*>(a.p.w.bias);
    T *d_input = a.d_input(row), *d_normal = a.d_normal + row * 3 * D;
    const T bias = static_cast<T>(a.p.w.gate_bias);
    if (threadIdx.x == 0) a.stats[2 * row] = norm.mean, a.stats[2 * row + 1] = norm.rstd;
    T sum = 0, dot = 0;
    for (int64_t i = threadIdx.x; i < D; i += kThreads) {
      NormedGate<T> sums[3];
#pragma unroll
      for (int k = 0; k < 3; ++k)
        sums[k] = norm_gate(x[k * D + i], norm.mean, norm.rstd, scale[k * D + i], shift[k * D + i]);
      const BlockGruGates<T> gates = block_gru_gates(sums[0].value, sums[1].value, sums[2].value + bias);
      const BlockGruGrads<T> y = block_gru_backward(gates, sums[1].value, a.h(row, i), a.d_h[b * D + i]);
      a.d_h[b * D + i] = y.h;
      const T d_sums[3] = {y.reset, y.cand, y.update};
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        const T d = d_sums[k] * scale[k * D + i];
        d_normal[k * D + i] = d_sums[k];
        d_input[k * D + i] = d;
        sum += d;
        dot += d * sums[k].normal;
      }
    }
    sum = group_sum<kThreads>(sum) / static_cast<T>(3 * D);
    dot = group_sum<kThreads>(dot) / static_cast<T>(3 * D);
    for (int64_t i = threadIdx.x; i < 3 * D; i += kThreads)
      d_input[i] = norm.rstd * (d_input[i] - sum - (x[i] - norm.mean) * norm.rstd * dot);
  }

  const Backward<T, O>& a_;
  Barrier& barrier_;
  Shared& shared_;
  const Places<Product> at_;
};

template <ScanCell cell, typename T, typename O>
__global__ void __launch_bounds__(kThreads, 1) scan_backward_sequence(Backward<T, O> a, Formation formation) {
  __shared__ typename ScanStepsBack<cell, T, O>::Shared shared;
  Barrier barrier(formation);
  for (int64_t tile = blockIdx.y; tile < row_tiles(a.p.n.B); tile += gridDim.y) {
    ScanStepsBack<cell, T, O> steps(a, barrier, shared, tile);
    for (int64_t t = a.p.n.T - 1; t >= -1; --t) {
      steps.step(t);
      if (t < 0) break;
      if constexpr (cell == ScanCell::layernorm_gru) steps.layernorm(t);
      if constexpr (cell == ScanCell::planet_gru) steps.planet_candidate(t);
    }
  }
  barrier.wait();  // a cluster's blocks end together
}

template <typename T, typename O>
__global__ void __launch_bounds__(kThreads, 2) weight_grad(Backward<T, O> a) {
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
    column_sums(R, 3 * D, static_cast<T*>(a.p.d_scale),
                [&](int64_t r, int64_t i) { return a.d_normal[r * 3 * D + i] * a.normal(r, i); });
  }
}

template <typename T, typename O>
Backward<T, O> arrange(const ScanBackward& p, Scratch& scratch) {
  const int64_t D = p.n.D, R = p.n.T * p.n.B, gates = scan_gates(p.cell);
  const bool planet = p.cell == ScanCell::planet_gru, norm = p.cell == ScanCell::layernorm_gru;
  Backward<T, O> a{
      p, {nullptr, 1, (planet ? 2 : gates) * D, D}, {nullptr, 1, D, D}, nullptr, nullptr, nullptr, nullptr, nullptr};
  scratch.take(a.early);
  if (planet) scratch.take(a.late);
  a.arrived = scratch.take<unsigned>(row_tiles(p.n.B));
  a.d_h = scratch.take<T>(p.n.B * D), a.d_c = scratch.take<T>(p.n.B * D);
  a.d_normal = scratch.take<T>(norm ? R * 3 * D : 0), a.stats = scratch.take<T>(norm ? R * 2 : 0);
  return a;
}

// Gate `first` on, transposed: [gates * D, D] by rows of the stored weight.
Weight transposed(const Weight& w, int64_t first, int64_t D, size_t element) {
  return {static_cast<const char*>(w.data) + first * w.sg * static_cast<int64_t>(element), 0, w.sg / D, w.sk};
}

template <ScanCell cell, typename T, typename O>
const char* scan_backward(const ScanBackward& p, cudaStream_t on) {
  Scratch scratch{static_cast<unsigned char*>(p.scratch)};
  const Backward<T, O> a = arrange<T, O>(p, scratch);
  const int64_t D = p.n.D;
  const char* error = nullptr;
  if (p.n.B > 0) {
    Packings<O> packings;
    packings.add(transposed(p.w.gates, 0, D, sizeof(T)), 0, a.early);
    if (cell == ScanCell::planet_gru) packings.add(transposed(p.w.gates, 2, D, sizeof(T)), 0, a.late);
    pack<T>(packings, on);
    error = launch_together(scan_backward_sequence<cell, T, O>, a, a.early.tiles(), row_tiles(p.n.B), a.arrived, on);
  }
  weight_grad<T, O><<<static_cast<unsigned>(squares(D, D, scan_gates(cell))), kThreads, 0, on>>>(a);
  const auto columns = [](int64_t width) { return static_cast<unsigned>((width + 31) / 32); };
  if constexpr (cell == ScanCell::layernorm_gru)
    vector_grads<cell, T, O><<<dim3(columns(3 * D), 2), kThreads, 0, on>>>(a);
  if constexpr (cell == ScanCell::gru)
    if (p.w.bias) vector_grads<cell, T, O><<<columns(D), kThreads, 0, on>>>(a);
  return error ? error : launch_error();
}

}  // namespace

int64_t scan_backward_scratch(const ScanBackward& p) {
  Scratch scratch{nullptr};
  by_type(p, [&](auto t, auto o) { arrange<decltype(t), decltype(o)>(p, scratch); });
  return scratch.used;
}

const char* scan_backward_kernel(const ScanBackward& p, void* stream) {
  const char* error = nullptr;
  by_type(p, [&](auto t, auto o) {
    by_cell(p.cell, [&](auto cell) {
      error = scan_backward<decltype(cell)::value, decltype(t), decltype(o)>(p, static_cast<cudaStream_t>(stream));
    });
  });
  return error;
}

}  // namespace fastwm::cuda
