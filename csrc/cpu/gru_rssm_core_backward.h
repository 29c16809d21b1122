// Backward through one step of GruRssmCore, for some rows.
#pragma once

#include "latent_rows.h"
#include "primitives/norms.h"
#include "primitives/pack.h"
#include "primitives/parts.h"
#include "math/block_gru.h"
#include "math/gru.h"
#include "math/planet_gru.h"

namespace fastwm::FASTWM_ISA {
namespace {

// The weights, transposed and packed once a call. T is what sums and norms are in, O what products multiply.
template <typename T, typename O>
struct GruRssmPackedBackward {
  Packings<O> packings;
  Packed<O> stats, layer, x, h, h_new, stoch;  // [O, U] [U, D] [3D, U] [2D, D] [D, D] [U, Z]

  GruRssmPackedBackward(const GruRssmSizes& n, const GruRssmWeights& w)
      : stats{1, n.O(), n.U}, layer{1, n.U, n.D}, x{1, 3 * n.D, n.U}, h{1, 2 * n.D, n.D}, h_new{1, n.D, n.D},
        stoch{1, n.U, n.Z()} {
    packings.add(stats, w.stats.transposed());
    packings.add(layer, w.layer.transposed());
    packings.add(x, w.x.transposed());
    packings.add(h, w.h.transposed());
    packings.add(h_new, {ptr<T>(w.h.data) + 2 * n.D * w.h.sn, 0, w.h.sn, w.h.sk});
    packings.add(stoch, w.stoch.transposed());
  }
  GruRssmPackedBackward(const GruRssmPackedBackward&) = delete;
};

template <typename T, typename O>
struct GruRssmScratchBackward {
  T *d_stoch, *d_deter;                      // [R, Z] [R, D]: what the step after asks for
  T *d_act, *d_x;                            // [R, U] each
  T *normal, *d_normal, *probs;              // [R, 3D] each, [R, Z]
  T* d_reset_h;                              // [R, D]
  O *o_stats, *o_layer, *o_gates, *o_input;  // operands [R, O] [R, U] [R, 4D] [R, U]
  Arena arena;

  GruRssmScratchBackward(const GruRssmSizes& n, int64_t rows) : arena([&](Arena& a) { place(a, n, rows); }) {}

 private:
  void place(Arena& arena, const GruRssmSizes& n, int64_t rows) {
    for (T** part : {&d_stoch, &probs}) *part = arena.take<T>(rows * n.Z());
    for (T** part : {&d_deter, &d_reset_h}) *part = arena.take<T>(rows * n.D);
    for (T** part : {&d_act, &d_x}) *part = arena.take<T>(rows * n.U);
    for (T** part : {&normal, &d_normal}) *part = arena.take<T>(rows * 3 * n.D);
    o_stats = arena.take<O>(rows * n.O());
    for (O** part : {&o_layer, &o_input}) *part = arena.take<O>(rows * n.U);
    o_gates = arena.take<O>(rows * 4 * n.D);
  }
};

// A step's rows. The forward's, contiguous; the incoming gradients, contiguous; and what a weight's gradient reads,
// which the step writes: by the given row strides.
template <typename T>
struct GruRssmStepBackward {
  const bool* is_first;                  // [R], or null
  const T *past_deter, *noise, *stats;   // [R, D] [R, S] [R, O]
  const T *input, *gates, *layer;        // as GruRssmStep has them
  const T *g_deter, *g_stoch, *g_stats;  // [R, D] [R, Z] [R, O]

  T *x, *past_h, *reset_h, *act;             // [R, U] [R, D] [R, D] [R, U]: inputs of products
  T *d_input, *d_gates, *d_layer, *d_stats;  // [R, U] [R, gates() D] [R, U] [R, O]; gru: d_gates' last D are h's of new
};

template <typename T, typename O>
class GruRssmCoreBackward {
 public:
  using Scratch = GruRssmScratchBackward<T, O>;
  using Step = GruRssmStepBackward<T>;

  // `d_norms` takes the norms' gradients that this member sums: n_input [2, U], n_gates [2, 3D], n_layer [2, U].
  struct Norms {
    T *input, *gates, *layer;
  };

  GruRssmCoreBackward(const GruRssmSizes& n, const GruRssmWeights& w, const GruRssmPackedBackward<T, O>& packed,
                      int64_t rows, Team team, const Scratch& s, const Norms& d_norms)
      : n_(n), w_(w), packed_(packed), rows_(rows), team_(team), s_(s), d_norms_(d_norms), eps_(static_cast<T>(w.eps)),
        wide_(gates_of(w.cell) * n.D) {}

  // Before the last step.
  void start() {
    const Range rows = team_.range(rows_);
    const int64_t count = rows.last - rows.first;
    zero_rows(count, n_.Z(), s_.d_stoch + rows.first * n_.Z(), n_.Z());
    zero_rows(count, n_.D, s_.d_deter + rows.first * n_.D, n_.D);
  }

  // When it returns, d_stoch and d_deter are the gradients of past_stoch and past_deter, member by member; the team
  // has still to wait.
  void step(const Step& s) {
    sample(s);
    team_.wait();
    stats();
    team_.wait();
    norm_layer(s);
    team_.wait();
    deter(s);
    team_.wait();
    if (w_.cell != GruCell::gru) {
      w_.cell == GruCell::planet_gru ? candidate(s) : norm_gates(s);
      team_.wait();
    }
    inputs(s);
    team_.wait();
    norm_input(s);
    team_.wait();
    stoch(s);
  }

 private:
  static constexpr int64_t kWide = kPanelOf<O>;

  bool first(const Step& s, int64_t r) const { return s.is_first && s.is_first[r]; }

  void layer_backward(const T* pre, const LayerNorm& norm, T* d_act, T* d_pre, T* act, T* d_norm) const {
    with_activation(w_.activation, [&](auto f) {
      layer_row_backward<decltype(f)::value>(n_.U, pre, norm, eps_, d_act, d_pre, act, d_norm);
    });
  }

  void sample(const Step& s) const {
    const int64_t Z = n_.Z(), O_ = n_.O(), D = n_.D;
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      T *d_z = s_.d_stoch + r * Z, *d_stats = s.d_stats + r * O_;
      const T *stats = s.stats + r * O_, *g_stats = s.g_stats + r * O_;
      add_scaled(Z, T(1), s.g_stoch + r * Z, d_z);
      if (n_.C)
        sample_row_backward(n_.S, n_.C, stats, static_cast<T>(w_.unimix), d_z, g_stats, s_.probs + r * Z, d_stats);
      else gaussian_row_backward(n_.S, stats, s.noise + r * n_.S, d_z, g_stats, d_stats);
      convert(O_, d_stats, s_.o_stats + r * O_);
      if (first(s, r)) zero_rows(1, D, s.past_h + r * D, D);
      else copy_rows(1, D, s.past_deter + r * D, D, s.past_h + r * D, D);
    }
  }

  // out = x W, a panel.
  void product(const Packed<O>& w, int64_t panel, const O* x, int64_t ldx, T* out, int64_t ldo) const {
    multiply(rows_, x, ldx, w, panel, kZeros<T>, out, ldo);
  }

  void stats() const {
    const Range panels = team_.range(packed_.stats.panels());
    for (int64_t panel = panels.first; panel < panels.last; ++panel)
      product(packed_.stats, panel, s_.o_stats, n_.O(), s_.d_act + panel * kWide, n_.U);
  }

  void norm_layer(const Step& s) const {
    const int64_t U = n_.U;
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      T* d_pre = s.d_layer + r * U;
      layer_backward(s.layer + r * U, {w_.scale_layer, w_.shift_layer}, s_.d_act + r * U, d_pre, s.act + r * U,
                     d_norms_.layer);
      convert(U, d_pre, s_.o_layer + r * U);
    }
  }

  // All that asks for this deter; then what of it goes past the cell's products.
  void deter(const Step& s) const {
    const int64_t D = n_.D;
    const Range panels = team_.range(packed_.layer.panels());
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      const int64_t d = panel * kWide, width = packed_.layer.width(panel);
      for (int64_t r = 0; r < rows_; ++r) add_scaled(width, T(1), s.g_deter + r * D + d, s_.d_deter + r * D + d);
      multiply(rows_, s_.o_layer, n_.U, packed_.layer, panel, s_.d_deter + d, D);
      if (w_.cell == GruCell::gru) gru(s, d, width);
      if (w_.cell == GruCell::planet_gru) update(s, d, width);
    }
  }

  // As the products read them.
  const O* d_gates(const Step& s) const { return operand_of<T, O>(s.d_gates, s_.o_gates); }

  // Columns d .. d + width of all rows.
  void gru(const Step& s, int64_t d, int64_t width) const {
    const int64_t D = n_.D;
    for (int64_t r = 0; r < rows_; ++r) {
      const T *gate = s.gates + r * wide_ + d, *h = s.past_h + r * D + d;
      T *d_h = s_.d_deter + r * D + d, *d_gate = s.d_gates + r * wide_ + d;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const auto gates = gru_gates(gate[i], gate[D + i], gate[2 * D + i], gate[3 * D + i]);
        const auto grads = gru_backward({gates.reset, gates.update, gates.cand}, gate[3 * D + i], h[i], d_h[i]);
        d_gate[i] = grads.reset;
        d_gate[D + i] = grads.update;
        d_gate[2 * D + i] = grads.x_n;
        d_gate[3 * D + i] = grads.h_n;
        d_h[i] = grads.h;
      }
      for (int k = 0; k < 4; ++k) keep_operand(width, d_gate + k * D, s_.o_gates + r * wide_ + k * D + d);
    }
  }

  // d_gates of update waits for the candidate's product, and holds the gradient of sigmoid(update) until then.
  void update(const Step& s, int64_t d, int64_t width) const {
    const int64_t D = n_.D;
    for (int64_t r = 0; r < rows_; ++r) {
      const T *gate = s.gates + r * wide_ + d, *h = s.past_h + r * D + d;
      T *d_h = s_.d_deter + r * D + d, *d_gate = s.d_gates + r * wide_ + d;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const auto grads = planet_update_backward(gate_sigmoid(gate[D + i]), gate_tanh(gate[2 * D + i]), h[i], d_h[i]);
        d_gate[D + i] = grads.update;
        d_gate[2 * D + i] = grads.cand;
        d_h[i] = grads.h;
      }
      keep_operand(width, d_gate + 2 * D, s_.o_gates + r * wide_ + 2 * D + d);
    }
  }

  void candidate(const Step& s) const {
    const int64_t D = n_.D;
    const Range panels = team_.range(packed_.h_new.panels());
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      const int64_t d = panel * kWide, width = packed_.h_new.width(panel);
      product(packed_.h_new, panel, d_gates(s) + 2 * D, wide_, s_.d_reset_h + d, D);
      for (int64_t r = 0; r < rows_; ++r) {
        const T *gate = s.gates + r * wide_ + d, *h = s.past_h + r * D + d, *d_reset_h = s_.d_reset_h + r * D + d;
        T *d_h = s_.d_deter + r * D + d, *d_gate = s.d_gates + r * wide_ + d, *reset_h = s.reset_h + r * D + d;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
          const T reset = gate_sigmoid(gate[i]);
          const auto grads = planet_reset_backward(reset, h[i], d_reset_h[i]);
          d_h[i] += grads.h;
          d_gate[i] = grads.reset;
          d_gate[D + i] = sigmoid_backward(d_gate[D + i], gate_sigmoid(gate[D + i]));
          reset_h[i] = reset * h[i];
        }
        for (int k = 0; k < 2; ++k) keep_operand(width, d_gate + k * D, s_.o_gates + r * wide_ + k * D + d);
      }
    }
  }

  void norm_gates(const Step& s) const {
    const int64_t D = n_.D;
    const T bias = static_cast<T>(kUpdateBias);
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      const T *pre = s.gates + r * wide_, *h = s.past_h + r * D;
      T *gate = s_.normal + r * wide_, *d_gate = s_.d_normal + r * wide_, *d_h = s_.d_deter + r * D;
      layer_row<Activation::none>(wide_, pre, {w_.scale_gates, w_.shift_gates}, eps_, gate);
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) {
        const auto gates = block_gru_gates(gate[i], gate[D + i], gate[2 * D + i] + bias);
        const auto grads = block_gru_backward({gates.reset, gates.cand, gates.update}, gate[D + i], h[i], d_h[i]);
        d_gate[i] = grads.reset;
        d_gate[D + i] = grads.cand;
        d_gate[2 * D + i] = grads.update;
        d_h[i] = grads.h;
      }
      T* d_pre = s.d_gates + r * wide_;
      layer_row_backward<Activation::none>(wide_, pre, {w_.scale_gates, w_.shift_gates}, eps_, d_gate, d_pre, gate,
                                           d_norms_.gates);
      keep_operand(wide_, d_pre, s_.o_gates + r * wide_);
    }
  }

  // The cell's products: of the layer before it, and of the deter before.
  void inputs(const Step& s) const {
    const int64_t D = n_.D, own = packed_.x.panels();
    const Range tasks = team_.range(own + packed_.h.panels());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      if (task < own) {
        product(packed_.x, task, d_gates(s), wide_, s_.d_x + task * kWide, n_.U);
        continue;
      }
      const int64_t panel = task - own, d = panel * kWide, width = packed_.h.width(panel);
      T* d_h = s_.d_deter + d;
      multiply(rows_, d_gates(s), wide_, packed_.h, panel, d_h, D);
      if (w_.cell != GruCell::planet_gru) multiply(rows_, d_gates(s) + wide_ - D, wide_, packed_.h_new, panel, d_h, D);
      forget(s, width, d_h, D);
    }
  }

  // Nothing asks for what a reset has forgotten.
  void forget(const Step& s, int64_t width, T* x, int64_t ld) const {
    for (int64_t r = 0; r < rows_; ++r)
      if (first(s, r)) zero_rows(1, width, x + r * ld, ld);
  }

  void norm_input(const Step& s) const {
    const int64_t U = n_.U;
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      T* d_pre = s.d_input + r * U;
      layer_backward(s.input + r * U, {w_.scale_input, w_.shift_input}, s_.d_x + r * U, d_pre, s.x + r * U,
                     d_norms_.input);
      convert(U, d_pre, s_.o_input + r * U);
    }
  }

  void stoch(const Step& s) const {
    const Range panels = team_.range(packed_.stoch.panels());
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      T* out = s_.d_stoch + panel * kWide;
      product(packed_.stoch, panel, s_.o_input, n_.U, out, n_.Z());
      forget(s, packed_.stoch.width(panel), out, n_.Z());
    }
  }

  const GruRssmSizes& n_;
  const GruRssmWeights& w_;
  const GruRssmPackedBackward<T, O>& packed_;
  const int64_t rows_;
  const Team team_;
  const Scratch& s_;
  const Norms d_norms_;
  const T eps_;
  const int64_t wide_;  // a row of gates
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
