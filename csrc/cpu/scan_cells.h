// The recurrent cells as a scan runs them: what follows a step's products with the carry, and its derivative.
//
// A gate's sum starts from the input's part and takes in the product with h, or is kept apart from the input (a GRU's
// candidate).
#pragma once

#include "primitives/norms.h"
#include "fastwm/params/scans.h"
#include "math/gru.h"
#include "math/lstm.h"
#include "math/planet_gru.h"

namespace fastwm::FASTWM_ISA {
namespace {

// One row of a step, `width` numbers from some column on; the parts of an array are D apart.
template <typename T, typename O>
struct ForwardRow {
  int64_t width, D;
  const T* input;  // [gates]
  const T* sums;   // [gates of this stage], `part` apart
  int64_t part;
  T* saved;        // [saved]; of a cell that works by rows, the sums themselves
  const T *h, *c;  // the carries that the step starts from
  T *new_h, *new_c;
  O* late;  // operand of a product that waits for other gates
};

template <typename T, typename O>
struct BackwardRow {
  int64_t width, D;
  const T *saved, *h, *c, *new_c;
  T *d_h, *d_c;         // of the new carries; then of the old ones, as far as it goes past the products
  T* d_input;           // [gates]
  O* d_sums;            // [gates], operands, where d_input itself is none
  const T* d_late;      // of `late`
  T *d_scale, *d_bias;  // of the norm, summed over rows
};

// How the weight's gradient of the last gate differs from those of the others, d_input^T h.
enum class LastGate { alike, reset_gradient, reset_carry };

struct GruScan {
  static constexpr ScanCell cell = ScanCell::gru;
  static constexpr bool by_rows = false, late = false;
  static constexpr LastGate last_gate = LastGate::reset_gradient;
  static constexpr bool apart(int gate) { return gate == 2; }

  // Saves r, z, n and the carry's part of n.
  template <int stage, typename T, typename O>
  static void forward(const ForwardRow<T, O> x, const ScanWeights&) {
    T *saved_r = x.saved, *saved_z = saved_r + x.D, *saved_n = saved_z + x.D, *saved_h_n = saved_n + x.D;
    const T *sum_r = x.sums, *sum_z = sum_r + x.part, *sum_n = sum_z + x.part, *input = x.input + 2 * x.D;
#pragma omp simd
    for (int64_t i = 0; i < x.width; ++i) {
      const auto gates = gru_gates(sum_r[i], sum_z[i], input[i], sum_n[i]);
      saved_r[i] = gates.reset;
      saved_z[i] = gates.update;
      saved_n[i] = gates.cand;
      saved_h_n[i] = sum_n[i];
      x.new_h[i] = gru_carry(gates.update, gates.cand, x.h[i]);
    }
  }

  template <int stage, typename T, typename O>
  static void backward(const BackwardRow<T, O> x, const ScanWeights&) {
    const T *r = x.saved, *z = r + x.D, *n = z + x.D, *h_n = n + x.D;
    T *d_r = x.d_input, *d_z = d_r + x.D, *d_n = d_z + x.D;
#pragma omp simd
    for (int64_t i = 0; i < x.width; ++i) {
      const auto d = gru_backward({r[i], z[i], n[i]}, h_n[i], x.h[i], x.d_h[i]);
      d_n[i] = d.x_n;
      d_r[i] = d.reset;
      d_z[i] = d.update;
      narrow(d.reset, x.d_sums[i]);
      narrow(d.update, x.d_sums[x.D + i]);
      narrow(d.h_n, x.d_sums[2 * x.D + i]);
      x.d_h[i] = d.h;
    }
  }
};

struct LstmScan {
  static constexpr ScanCell cell = ScanCell::lstm;
  static constexpr bool by_rows = false, late = false;
  static constexpr LastGate last_gate = LastGate::alike;
  static constexpr bool apart(int) { return false; }

  // Saves the gates in the order of their sums.
  template <int stage, typename T, typename O>
  static void forward(const ForwardRow<T, O> x, const ScanWeights& w) {
    const int64_t f = w.ijfo ? 2 : 1, g = w.ijfo ? 1 : 2, o = 3;
    const T *sum_i = x.sums, *sum_f = sum_i + f * x.part, *sum_g = sum_i + g * x.part, *sum_o = sum_i + o * x.part;
    T *saved_i = x.saved, *saved_f = saved_i + f * x.D, *saved_g = saved_i + g * x.D, *saved_o = saved_i + o * x.D;
    const T bias = static_cast<T>(w.gate_bias);
#pragma omp simd
    for (int64_t i = 0; i < x.width; ++i) {
      const auto gates = lstm_gates(LstmGates<T>{sum_i[i], sum_f[i] + bias, sum_g[i], sum_o[i]});
      const T c = lstm_cell(gates.in, gates.forget, gates.cand, x.c[i]);
      saved_i[i] = gates.in;
      saved_f[i] = gates.forget;
      saved_g[i] = gates.cand;
      saved_o[i] = gates.out;
      x.new_c[i] = c;
      x.new_h[i] = gates.out * gate_tanh(c);
    }
  }

  template <int stage, typename T, typename O>
  static void backward(const BackwardRow<T, O> x, const ScanWeights& w) {
    const int64_t f = (w.ijfo ? 2 : 1) * x.D, g = (w.ijfo ? 1 : 2) * x.D, o = 3 * x.D;
    const T *in = x.saved, *forget = in + f, *cand = in + g, *out = in + o;
    T *d_in = x.d_input, *d_forget = d_in + f, *d_cand = d_in + g, *d_out = d_in + o;
#pragma omp simd
    for (int64_t i = 0; i < x.width; ++i) {
      const auto d =
          lstm_backward({in[i], forget[i], cand[i], out[i]}, x.c[i], gate_tanh(x.new_c[i]), x.d_h[i], x.d_c[i]);
      d_in[i] = d.sums.in;
      d_forget[i] = d.sums.forget;
      d_cand[i] = d.sums.cand;
      d_out[i] = d.sums.out;
      x.d_c[i] = d.c;
      x.d_h[i] = 0;
    }
    for (int k = 0; k < 4; ++k) keep_operand(x.width, d_in + k * x.D, x.d_sums + k * x.D);
  }
};

struct LayerNormGruScan {
  static constexpr ScanCell cell = ScanCell::layernorm_gru;
  static constexpr bool by_rows = true, late = false;
  static constexpr LastGate last_gate = LastGate::alike;
  static constexpr bool apart(int) { return false; }

  // Saves the sums as they are.
  template <int stage, typename T, typename O>
  static void forward(const ForwardRow<T, O> x, const ScanWeights& w) {
    const int64_t D = x.D;
    const Moments<T> s = moments(3 * D, x.sums, static_cast<T>(w.eps));
    const T *scale = ptr<T>(w.scale), *shift = ptr<T>(w.bias), bias = static_cast<T>(w.gate_bias);
#pragma omp simd
    for (int64_t i = 0; i < D; ++i) {
      T sums[3];
      for (int k = 0; k < 3; ++k)
        sums[k] = norm_gate(x.sums[k * D + i], s.mean, s.inverse, scale[k * D + i], shift[k * D + i]).value;
      const auto gates = block_gru_gates(sums[0], sums[1], sums[2] + bias);
      x.new_h[i] = mix(gates.update, gates.cand, x.h[i]);
    }
  }

  template <int stage, typename T, typename O>
  static void backward(const BackwardRow<T, O> x, const ScanWeights& w) {
    const int64_t D = x.D;
    const Moments<T> s = moments(3 * D, x.saved, static_cast<T>(w.eps));
    const T *scale = ptr<T>(w.scale), *shift = ptr<T>(w.bias), bias = static_cast<T>(w.gate_bias);
#pragma omp simd
    for (int64_t i = 0; i < D; ++i) {
      T normal[3], sums[3];
      for (int k = 0; k < 3; ++k) {
        const auto gate = norm_gate(x.saved[k * D + i], s.mean, s.inverse, scale[k * D + i], shift[k * D + i]);
        normal[k] = gate.normal, sums[k] = gate.value;
      }
      const auto y = block_gru_gates(sums[0], sums[1], sums[2] + bias);
      const auto d = block_gru_backward({y.reset, y.cand, y.update}, sums[1], x.h[i], x.d_h[i]);
      const T d_sums[3] = {d.reset, d.cand, d.update};
      x.d_h[i] = d.h;
      for (int k = 0; k < 3; ++k) {
        x.d_bias[k * D + i] += d_sums[k];
        x.d_scale[k * D + i] += d_sums[k] * normal[k];
        x.d_input[k * D + i] = d_sums[k] * scale[k * D + i];
      }
    }
    normal_backward(3 * D, x.saved, s, x.d_input, x.d_input);
    keep_operand(3 * D, x.d_input, x.d_sums);
  }
};

struct PlanetGruScan {
  static constexpr ScanCell cell = ScanCell::planet_gru;
  static constexpr bool by_rows = false, late = true;
  static constexpr LastGate last_gate = LastGate::reset_carry;
  static constexpr bool apart(int) { return false; }

  // Saves r, u, c. The candidate's product takes r h.
  template <int stage, typename T, typename O>
  static void forward(const ForwardRow<T, O> x, const ScanWeights&) {
    T *saved_r = x.saved, *saved_u = saved_r + x.D, *saved_c = saved_u + x.D;
#pragma omp simd
    for (int64_t i = 0; i < x.width; ++i) {
      if constexpr (stage == 0) {
        const T r = gate_sigmoid(x.sums[i]);
        saved_r[i] = r;
        saved_u[i] = gate_sigmoid(x.sums[x.part + i]);
        narrow(r * x.h[i], x.late[i]);
      } else {
        const T c = gate_tanh(x.sums[i]);
        saved_c[i] = c;
        x.new_h[i] = planet_carry(saved_u[i], c, x.h[i]);
      }
    }
  }

  template <int stage, typename T, typename O>
  static void backward(const BackwardRow<T, O> x, const ScanWeights&) {
    const T *r = x.saved, *u = r + x.D, *c = u + x.D;
    T *d_r = x.d_input, *d_u = d_r + x.D, *d_c = d_u + x.D;
#pragma omp simd
    for (int64_t i = 0; i < x.width; ++i) {
      if constexpr (stage == 0) {
        const auto d = planet_update_backward(u[i], c[i], x.h[i], x.d_h[i]);
        d_u[i] = sigmoid_backward(d.update, u[i]);
        d_c[i] = d.cand;
        narrow(d_u[i], x.d_sums[x.D + i]);
        narrow(d_c[i], x.d_sums[2 * x.D + i]);
        x.d_h[i] = d.h;
      } else {
        const auto d = planet_reset_backward(r[i], x.h[i], x.d_late[i]);
        x.d_h[i] += d.h;
        d_r[i] = d.reset;
        narrow(d_r[i], x.d_sums[i]);
      }
    }
  }
};

// Calls f(T{}, O{}, Cell{}): what sums and the carry are in, what products multiply, and the cell.
template <typename Params, typename F>
void dispatch_scan(const Params& p, F f) {
  const auto typed = [&](auto cell) { with_types(p, [&](auto t, auto o) { f(t, o, cell); }); };
  switch (p.cell) {
    case ScanCell::gru: return typed(GruScan{});
    case ScanCell::lstm: return typed(LstmScan{});
    case ScanCell::layernorm_gru: return typed(LayerNormGruScan{});
    case ScanCell::planet_gru: return typed(PlanetGruScan{});
  }
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
