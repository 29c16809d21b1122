// The recurrent cells as a scan runs them: what follows a step's products with the carry, and the way back.
//
// A gate's sum starts from the input's part and takes in the product with h, or is kept apart from the input (a GRU's
// candidate).
#pragma once

#include "layer_rows.h"
#include "fastwm/scans.h"

namespace fastwm::FASTWM_ISA {
namespace {

// One row of a step, `width` numbers from some column on; the parts of an array lie D apart.
template <typename T, typename O>
struct ForwardRow {
  int64_t width, D;
  const T* input;      // [gates]
  const T* sums;       // [gates of this stage], `part` apart
  int64_t part;
  T* saved;           // [saved]; of a cell that works by rows, the sums themselves
  const T *h, *c;     // the carries that the step starts from
  T *new_h, *new_c;
  O* late;            // factor of a product that waits for other gates
};

template <typename T, typename O>
struct BackwardRow {
  int64_t width, D;
  const T *saved, *h, *c, *new_c;
  T *d_h, *d_c;         // of the new carries; then of the old ones, as far as it goes past the products
  T* d_input;           // [gates]
  O* d_sums;            // [gates], factors of products where these are not d_input itself
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
      const T r = gate_sigmoid(sum_r[i]), z = gate_sigmoid(sum_z[i]), n = gate_tanh(input[i] + r * sum_n[i]);
      saved_r[i] = r;
      saved_z[i] = z;
      saved_n[i] = n;
      saved_h_n[i] = sum_n[i];
      x.new_h[i] = n + z * (x.h[i] - n);
    }
  }

  template <int stage, typename T, typename O>
  static void backward(const BackwardRow<T, O> x, const ScanWeights&) {
    const T *r = x.saved, *z = r + x.D, *n = z + x.D, *h_n = n + x.D;
    T *d_r = x.d_input, *d_z = d_r + x.D, *d_n = d_z + x.D;
#pragma omp simd
    for (int64_t i = 0; i < x.width; ++i) {
      const T grad = x.d_h[i];
      d_n[i] = grad * (1 - z[i]) * (1 - n[i] * n[i]);
      d_r[i] = d_n[i] * h_n[i] * r[i] * (1 - r[i]);
      d_z[i] = grad * (x.h[i] - n[i]) * z[i] * (1 - z[i]);
      narrow(d_r[i], x.d_sums[i]);
      narrow(d_z[i], x.d_sums[x.D + i]);
      narrow(d_n[i] * r[i], x.d_sums[2 * x.D + i]);
      x.d_h[i] = grad * z[i];
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
      const T in = gate_sigmoid(sum_i[i]), forget = gate_sigmoid(sum_f[i] + bias), cand = gate_tanh(sum_g[i]);
      const T out = gate_sigmoid(sum_o[i]), c = forget * x.c[i] + in * cand;
      saved_i[i] = in;
      saved_f[i] = forget;
      saved_g[i] = cand;
      saved_o[i] = out;
      x.new_c[i] = c;
      x.new_h[i] = out * gate_tanh(c);
    }
  }

  template <int stage, typename T, typename O>
  static void backward(const BackwardRow<T, O> x, const ScanWeights& w) {
    const int64_t f = (w.ijfo ? 2 : 1) * x.D, g = (w.ijfo ? 1 : 2) * x.D, o = 3 * x.D;
    const T *in = x.saved, *forget = in + f, *cand = in + g, *out = in + o;
    T *d_in = x.d_input, *d_forget = d_in + f, *d_cand = d_in + g, *d_out = d_in + o;
#pragma omp simd
    for (int64_t i = 0; i < x.width; ++i) {
      const T t = gate_tanh(x.new_c[i]);
      const T d_c = x.d_c[i] + x.d_h[i] * out[i] * (1 - t * t);
      d_in[i] = d_c * cand[i] * in[i] * (1 - in[i]);
      d_forget[i] = d_c * x.c[i] * forget[i] * (1 - forget[i]);
      d_cand[i] = d_c * in[i] * (1 - cand[i] * cand[i]);
      d_out[i] = x.d_h[i] * t * out[i] * (1 - out[i]);
      x.d_c[i] = d_c * forget[i];
      x.d_h[i] = 0;
    }
    for (int k = 0; k < 4; ++k) keep_factor(x.width, d_in + k * x.D, x.d_sums + k * x.D);
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
    const T *scale = ptr<T>(w.scale), *shift = ptr<T>(w.bias);
    Cells cell{};
    cell.bias = w.gate_bias;
#pragma omp simd
    for (int64_t i = 0; i < D; ++i) {
      T in[4], out[1];
      for (int k = 0; k < 3; ++k) in[k] = (x.sums[k * D + i] - s.mean) * s.inverse * scale[k * D + i] + shift[k * D + i];
      in[3] = x.h[i];
      BlockGru::run(cell, in, out);
      x.new_h[i] = out[0];
    }
  }

  template <int stage, typename T, typename O>
  static void backward(const BackwardRow<T, O> x, const ScanWeights& w) {
    const int64_t D = x.D;
    const Moments<T> s = moments(3 * D, x.saved, static_cast<T>(w.eps));
    const T *scale = ptr<T>(w.scale), *shift = ptr<T>(w.bias);
    Cells cell{};
    cell.bias = w.gate_bias;
#pragma omp simd
    for (int64_t i = 0; i < D; ++i) {
      T in[5], out[4], normal[3];
      in[0] = x.d_h[i];
      for (int k = 0; k < 3; ++k) {
        normal[k] = (x.saved[k * D + i] - s.mean) * s.inverse;
        in[1 + k] = normal[k] * scale[k * D + i] + shift[k * D + i];
      }
      in[4] = x.h[i];
      BlockGruBackward::run(cell, in, out);
      x.d_h[i] = out[3];
      for (int k = 0; k < 3; ++k) {
        x.d_bias[k * D + i] += out[k];
        x.d_scale[k * D + i] += out[k] * normal[k];
        x.d_input[k * D + i] = out[k] * scale[k * D + i];
      }
    }
    normal_backward(3 * D, x.saved, s, x.d_input, x.d_input);
    keep_factor(3 * D, x.d_input, x.d_sums);
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
        x.new_h[i] = c + saved_u[i] * (x.h[i] - c);
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
        const T grad = x.d_h[i];
        d_u[i] = grad * (x.h[i] - c[i]) * u[i] * (1 - u[i]);
        d_c[i] = grad * (1 - u[i]) * (1 - c[i] * c[i]);
        narrow(d_u[i], x.d_sums[x.D + i]);
        narrow(d_c[i], x.d_sums[2 * x.D + i]);
        x.d_h[i] = grad * u[i];
      } else {
        d_r[i] = x.d_late[i] * x.h[i] * r[i] * (1 - r[i]);
        narrow(d_r[i], x.d_sums[i]);
        x.d_h[i] += x.d_late[i] * r[i];
      }
    }
  }
};

// Calls f(T{}, O{}, Cell{}): what sums and the carry are in, what products multiply, and the cell.
template <typename Params, typename F>
void dispatch_scan(const Params& p, F f) {
  const auto typed = [&](auto cell) {
#if FASTWM_BF16
    if (p.bf16 && p.dtype == Dtype::f32 && has_bf16()) return f(float{}, bf16{}, cell);
#endif
    p.dtype == Dtype::f64 ? f(double{}, double{}, cell) : f(float{}, float{}, cell);
  };
  switch (p.cell) {
    case ScanCell::gru: return typed(GruScan{});
    case ScanCell::lstm: return typed(LstmScan{});
    case ScanCell::layernorm_gru: return typed(LayerNormGruScan{});
    case ScanCell::planet_gru: return typed(PlanetGruScan{});
  }
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
