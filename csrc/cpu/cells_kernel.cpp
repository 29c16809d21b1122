#include "fastwm/cells.h"

#include "fastwm/parallel.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename Cell, typename G, typename C, typename Params>
void run(const Params& params) {
#pragma omp parallel for schedule(static) if (params.rows * params.width > kParallelElements)
  for (int64_t row = 0; row < params.rows; ++row) {
    const Params p = params;  // a copy that no store can alias
#pragma omp simd
    for (int64_t j = 0; j < p.width; ++j) Cell::run(p, Element<G, C>{row, j, p.width});
  }
}

template <typename Cell, typename Params>
void run(const Params& p) {
  dispatch(p, [&p](auto g, auto c) { run<Cell, decltype(g), decltype(c)>(p); });
}

// ---------------------------------------------------------------------------------------------- LayerNorm GRU

FASTWM_FN float square_root(float x) { return __builtin_sqrtf(x); }
FASTWM_FN double square_root(double x) { return __builtin_sqrt(x); }

template <typename G, typename C>
void layernorm_forward(const LayernormGruGates& p) {
  using A = accumulate_t<C>;
  const int64_t D = p.width, wide = 3 * D;
  const A update_bias = static_cast<A>(p.update_bias);
  const C *weight = static_cast<const C*>(p.weight), *bias = static_cast<const C*>(p.bias);
#pragma omp parallel for schedule(static) if (p.rows * wide > kParallelElements)
  for (int64_t row = 0; row < p.rows; ++row) {
    const G* gates = static_cast<const G*>(p.gates) + row * wide;
    const C* h = static_cast<const C*>(p.h) + row * D;
    C* out = static_cast<C*>(p.y) + row * D;
    A sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < wide; ++j) sum += widen(gates[j]);
    const A mean = sum / static_cast<A>(wide);
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < wide; ++j) squares += (widen(gates[j]) - mean) * (widen(gates[j]) - mean);
    const A rstd = 1 / square_root(squares / static_cast<A>(wide) + static_cast<A>(p.eps));
    static_cast<A*>(p.stats)[2 * row] = mean;
    static_cast<A*>(p.stats)[2 * row + 1] = rstd;
#pragma omp simd
    for (int64_t j = 0; j < D; ++j) {
      A sums[3];
      for (int k = 0; k < 3; ++k)
        sums[k] =
            norm_gate(widen(gates[k * D + j]), mean, rstd, widen(weight[k * D + j]), widen(bias[k * D + j])).value;
      const auto y = block_gru_gates(sums[0], sums[1], sums[2] + update_bias);
      narrow(mix(y.update, y.cand, widen(h[j])), out[j]);
    }
  }
}

// One row: d_h, the gradient of the normalised gates into `row`, its shares of d_weight and d_bias, d_gates.
template <typename G, typename C, typename A>
void layernorm_backward_row(const LayernormGruGatesBackward& p, int64_t row, A* d_weight, A* d_bias, A* d_norm) {
  const int64_t D = p.width, wide = 3 * D;
  const A update_bias = static_cast<A>(p.update_bias);
  const A* stats = static_cast<const A*>(p.stats) + 2 * row;
  const A mean = stats[0], rstd = stats[1];
  const C *weight = static_cast<const C*>(p.weight), *bias = static_cast<const C*>(p.bias);
  const C *grad = static_cast<const C*>(p.g_y) + row * D, *h = static_cast<const C*>(p.h) + row * D;
  const G* gates = static_cast<const G*>(p.gates) + row * wide;
  C* d_h = static_cast<C*>(p.d_h) + row * D;
  G* d_gates = static_cast<G*>(p.d_gates) + row * wide;
  A sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t j = 0; j < D; ++j) {
    A norm[3], sums[3];
    for (int k = 0; k < 3; ++k) {
      const auto gate =
          norm_gate(widen(gates[k * D + j]), mean, rstd, widen(weight[k * D + j]), widen(bias[k * D + j]));
      norm[k] = gate.normal, sums[k] = gate.value;
    }
    const auto y = block_gru_gates(sums[0], sums[1], sums[2] + update_bias);
    const auto d_y = block_gru_backward({y.reset, y.cand, y.update}, sums[1], widen(h[j]), widen(grad[j]));
    narrow(d_y.h, d_h[j]);
    const A d_sums[3] = {d_y.reset, d_y.cand, d_y.update};
    for (int k = 0; k < 3; ++k) {
      const A d = d_sums[k] * widen(weight[k * D + j]);
      d_bias[k * D + j] += d_sums[k];
      d_weight[k * D + j] += d_sums[k] * norm[k];
      d_norm[k * D + j] = d;
      sum += d;
      dot += d * norm[k];
    }
  }
  sum /= static_cast<A>(wide);
  dot /= static_cast<A>(wide);
#pragma omp simd
  for (int64_t j = 0; j < wide; ++j)
    narrow(rstd * (d_norm[j] - sum - (widen(gates[j]) - mean) * rstd * dot), d_gates[j]);
}

template <typename G, typename C>
void layernorm_backward(const LayernormGruGatesBackward& p) {
  using A = accumulate_t<C>;
  const int64_t wide = 3 * p.width;
  A* scratch = static_cast<A*>(p.scratch);  // [chunks, (d_weight, d_bias, d_norm), wide]
#pragma omp parallel for schedule(static) if (p.rows * wide > kParallelElements)
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
    A* d_weight = scratch + 3 * chunk * wide;
    for (int64_t j = 0; j < 2 * wide; ++j) d_weight[j] = 0;
    for (int64_t row = chunk * p.rows / p.chunks; row < (chunk + 1) * p.rows / p.chunks; ++row)
      layernorm_backward_row<G, C, A>(p, row, d_weight, d_weight + wide, d_weight + 2 * wide);
  }
  for (int64_t chunk = 1; chunk < p.chunks; ++chunk)
#pragma omp simd
    for (int64_t j = 0; j < 2 * wide; ++j) scratch[j] += scratch[3 * chunk * wide + j];
  for (int64_t j = 0; j < wide; ++j) {
    narrow(scratch[j], static_cast<C*>(p.d_weight)[j]);
    narrow(scratch[wide + j], static_cast<C*>(p.d_bias)[j]);
  }
}

}  // namespace

void gru_gates_kernel(const GruCells& p) { run<Gru>(p); }
void gru_gates_backward_kernel(const GruCellsBackward& p) { run<Gru>(p); }
void block_gru_gates_kernel(const BlockGruCells& p) { run<BlockGru>(p); }
void block_gru_gates_backward_kernel(const BlockGruCellsBackward& p) { run<BlockGru>(p); }
void planet_gru_reset_kernel(const PlanetGruReset& p) { run<PlanetGru>(p); }
void planet_gru_reset_backward_kernel(const PlanetGruResetBackward& p) { run<PlanetGru>(p); }
void planet_gru_update_kernel(const PlanetGruUpdate& p) { run<PlanetGru>(p); }
void planet_gru_update_backward_kernel(const PlanetGruUpdateBackward& p) { run<PlanetGru>(p); }
void lstm_gates_kernel(const LstmCells& p) { p.ijfo ? run<Lstm<true>>(p) : run<Lstm<false>>(p); }
void lstm_gates_backward_kernel(const LstmCellsBackward& p) { p.ijfo ? run<Lstm<true>>(p) : run<Lstm<false>>(p); }

void layernorm_gru_gates_kernel(const LayernormGruGates& p) {
  dispatch(p, [&p](auto g, auto c) { layernorm_forward<decltype(g), decltype(c)>(p); });
}

void layernorm_gru_gates_backward_kernel(const LayernormGruGatesBackward& p) {
  dispatch(p, [&p](auto g, auto c) { layernorm_backward<decltype(g), decltype(c)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
