// One step of the RSSM of PlaNet, V1 and V2 for some rows: input layer, cell, layer, the latent's statistics, sample.
// Observing, it is the posterior's step; with the prior's layer, whose layer_in is its bias, it imagines.
#pragma once

#include <utility>

#include "latent_rows.h"
#include "primitives/linear.h"
#include "primitives/norms.h"
#include "primitives/pack.h"
#include "primitives/parts.h"
#include "math/block_gru.h"
#include "math/gru.h"
#include "math/planet_gru.h"

namespace fastwm::FASTWM_ISA {
namespace {

// The weights, packed once a call. T is what sums, norms and the state are in, O what products multiply.
template <typename T, typename O>
struct GruRssmPacked {
  Packings<O> packings;
  Packed<O> gaussian, x, h, layer, stats;  // [Z, U] or nothing, [3, U, D] [3, D, D] [D, U] [U, O]
  T* onehot;                               // [Z, U] or nothing: rows to be gathered

  GruRssmPacked(const GruRssmSizes& n, const GruRssmWeights& w)
      : gaussian{1, n.C ? 0 : n.Z(), n.U}, x{3, n.U, n.D}, h{3, n.D, n.D}, layer{1, n.D, n.U}, stats{1, n.U, n.O()} {
    const auto gates = [&](const Weight& x) { return Weight{x.data, n.D * x.sn, x.sk, x.sn}; };
    packings.add(gaussian, w.stoch);
    packings.add(x, gates(w.x));
    packings.add(h, gates(w.h));
    packings.add(layer, w.layer);
    packings.add(stats, w.stats);
  }
  GruRssmPacked(const GruRssmPacked&) = delete;

  void place(Arena& arena, const GruRssmSizes& n) {
    packings.place(arena);
    onehot = arena.take<T>(n.C ? n.Z() * n.U : 0);
  }
  void pack(const GruRssmSizes& n, const GruRssmWeights& w, int threads) const {
    packings.pack(threads);
    if (n.C) pack_rows(w.stoch, 0, n.Z(), n.U, onehot);
  }
};

// Scratch that a team shares for its rows.
template <typename T, typename O>
struct GruRssmScratch {
  O *h[2], *reset_h, *x, *act;  // operands [R, D] each, [R, U] each: deter by turns, reset * h, the layers' outputs
  O* z;                         // operand [R, Z], of a Gaussian
  T *input, *gates, *layer;     // [R, U] [R, gates() D] [R, U]: what is not saved
  T *normal, *zeros;            // [R, 3D] [D]
  int64_t* index;               // [R, S]
  Arena arena;

  GruRssmScratch(const GruRssmSizes& n, int64_t rows) : arena([&](Arena& a) { place(a, n, rows); }) {}

 private:
  void place(Arena& arena, const GruRssmSizes& n, int64_t rows) {
    for (O** operand : {&h[0], &h[1], &reset_h}) *operand = arena.take<O>(rows * n.D);
    for (O** operand : {&x, &act}) *operand = arena.take<O>(rows * n.U);
    z = arena.take<O>(n.C ? 0 : rows * n.Z());
    for (T** part : {&input, &layer}) *part = arena.take<T>(rows * n.U);
    gates = arena.take<T>(rows * 4 * n.D);
    normal = arena.take<T>(rows * 3 * n.D);
    index = arena.take<int64_t>(rows * n.S);
    zeros = arena.take_zeros<T>(n.D);
  }
};

// A step's rows, contiguous: where they are read and written.
template <typename T>
struct GruRssmStep {
  const bool* is_first;              // [R], or null
  const T *past_deter, *past_stoch;  // [R, D] [R, Z]
  const T *input_in, *layer_in;      // [R, U]: what comes from outside, the biases with it
  const T* noise;                    // [R, S]
  T *input, *gates, *layer;          // [R, U] [R, gates() D] [R, U]: before norms and activations
  T *deter, *stoch, *stats;          // [R, D] [R, Z] [R, O]
};

// As one member of a team sees it. Between two of its stages the team waits.
template <typename T, typename O>
class GruRssmCore {
 public:
  using Scratch = GruRssmScratch<T, O>;
  using Step = GruRssmStep<T>;

  GruRssmCore(const GruRssmSizes& n, const GruRssmWeights& w, const GruRssmPacked<T, O>& packed, int64_t rows,
              Team team, const Scratch& s)
      : n_(n), w_(w), packed_(packed), rows_(rows), team_(team), s_(s), eps_(static_cast<T>(w.eps)) {}

  // Before the first step.
  void start(const T* deter) {
    const Range rows = team_.range(rows_);
    convert((rows.last - rows.first) * n_.D, deter + rows.first * n_.D, s_.h[now_] + rows.first * n_.D);
  }

  // input_in must be there when all members call; when they return each has its own rows of the sample only.
  void step(const Step& s) {
    input(s);
    team_.wait();
    gates(s);
    team_.wait();
    if (w_.cell != GruCell::gru) {
      w_.cell == GruCell::planet_gru ? candidate(s) : norm_gates(s);
      team_.wait();
    }
    layer(s);
    team_.wait();
    norm_layer(s);
    team_.wait();
    stats(s);
    team_.wait();
    sample(s);
    now_ ^= 1;
  }

 private:
  static constexpr int64_t kWide = kPanelOf<O>;

  bool first(const Step& s, int64_t r) const { return s.is_first && s.is_first[r]; }
  const T* past(const Step& s, int64_t r) const { return first(s, r) ? s_.zeros : s.past_deter + r * n_.D; }
  O* h() const { return s_.h[now_]; }
  O* next_h() const { return s_.h[now_ ^ 1]; }

  void activate_row(const T* pre, const LayerNorm& norm, O* act) const {
    with_activation(w_.activation, [&](auto f) { layer_row<decltype(f)::value>(n_.U, pre, norm, eps_, act); });
  }

  void input(const Step& s) const {
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r)
      if (first(s, r)) zero_rows(1, n_.D, h() + r * n_.D, n_.D);
    n_.C ? onehot(s, rows) : gaussian(s, rows);
    for (int64_t r = rows.first; r < rows.last; ++r)
      activate_row(s.input + r * n_.U, {w_.scale_input, w_.shift_input}, s_.x + r * n_.U);
  }

  void onehot(const Step& s, Range rows) const {
    for (int64_t r = rows.first; r < rows.last; ++r) {
      T* pre = s.input + r * n_.U;
      copy_rows(1, n_.U, s.input_in + r * n_.U, n_.U, pre, n_.U);
      if (!first(s, r))
        for_each_nonzero(n_.Z(), s.past_stoch + r * n_.Z(),
                         [&](int64_t z, T x) { add_scaled(n_.U, x, packed_.onehot + z * n_.U, pre); });
    }
  }

  void gaussian(const Step& s, Range rows) const {
    const int64_t Z = n_.Z();
    for (int64_t r = rows.first; r < rows.last; ++r) {
      if (first(s, r)) zero_rows(1, Z, s_.z + r * Z, Z);
      else convert(Z, s.past_stoch + r * Z, s_.z + r * Z);
    }
    team_.wait();
    add_product(s.input_in, s_.z, Z, packed_.gaussian, s.input);
    team_.wait();
  }

  // out = in + x W, for [R, U] of both.
  void add_product(const T* in, const O* x, int64_t ldx, const Packed<O>& w, T* out) const {
    const Range tasks = team_.range(w.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t u = task * kWide;
      multiply(rows_, x, ldx, w, task, Start<T>{in + u, n_.U}, out + u, n_.U);
    }
  }

  // out = b + x W, for a panel of gate `gate`.
  void product(const Packed<O>& w, int64_t gate, int64_t panel, const void* b, const O* x, int64_t ldx, T* out,
               int64_t ldo) const {
    const Start<T> start{b ? ptr<T>(b) + gate * n_.D + panel * kWide : nullptr, 0};
    multiply(rows_, x, ldx, w, gate * w.panels() + panel, start, out, ldo);
  }

  void gates(const Step& s) const {
    const int64_t D = n_.D, panels = packed_.x.panels(), ld = gates_of(w_.cell) * D;
    const bool norm = w_.cell == GruCell::layernorm_gru;
    const Range tasks = team_.range(norm ? 3 * panels : panels);
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t panel = task % panels, d = panel * kWide;
      const int64_t begin = norm ? task / panels : 0, end = norm ? begin + 1 : 2;
      for (int64_t gate = begin; gate < end; ++gate) {
        T* out = s.gates + gate * D + d;
        product(packed_.x, gate, panel, w_.b_x, s_.x, n_.U, out, ld);
        if (w_.b_h) add_bias(packed_.h.width(panel), ptr<T>(w_.b_h) + gate * D + d, out, ld);
        multiply(rows_, h(), D, packed_.h, gate * panels + panel, out, ld);
      }
      if (w_.cell == GruCell::gru) {
        product(packed_.x, 2, panel, w_.b_x, s_.x, n_.U, s.gates + 2 * D + d, ld);
        product(packed_.h, 2, panel, w_.b_h, h(), D, s.gates + 3 * D + d, ld);
        gru(s, d, packed_.h.width(panel));
      } else if (w_.cell == GruCell::planet_gru) {
        reset(s, d, packed_.h.width(panel));
      }
    }
  }

  void add_bias(int64_t width, const T* b, T* out, int64_t ld) const {
    for (int64_t r = 0; r < rows_; ++r) add_scaled(width, T(1), b, out + r * ld);
  }

  // Columns d .. d + width of all rows.
  void gru(const Step& s, int64_t d, int64_t width) const {
    const int64_t D = n_.D;
    for (int64_t r = 0; r < rows_; ++r) {
      const T *gate = s.gates + r * 4 * D + d, *prev = past(s, r) + d;
      T* deter = s.deter + r * D + d;
      O* operand = next_h() + r * D + d;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const auto gates = gru_gates(gate[i], gate[D + i], gate[2 * D + i], gate[3 * D + i]);
        const T h = gru_carry(gates.update, gates.cand, prev[i]);
        deter[i] = h;
        narrow(h, operand[i]);
      }
    }
  }

  void reset(const Step& s, int64_t d, int64_t width) const {
    const int64_t D = n_.D;
    for (int64_t r = 0; r < rows_; ++r) {
      const T *gate = s.gates + r * 3 * D + d, *prev = past(s, r) + d;
      O* operand = s_.reset_h + r * D + d;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) narrow(gate_sigmoid(gate[i]) * prev[i], operand[i]);
    }
  }

  // PlaNet's: the reset gate acts before the product.
  void candidate(const Step& s) const {
    const int64_t D = n_.D, panels = packed_.x.panels();
    const Range tasks = team_.range(panels);
    for (int64_t panel = tasks.first; panel < tasks.last; ++panel) {
      const int64_t d = panel * kWide, width = packed_.x.width(panel);
      product(packed_.x, 2, panel, w_.b_x, s_.x, n_.U, s.gates + 2 * D + d, 3 * D);
      multiply(rows_, s_.reset_h, D, packed_.h, 2 * panels + panel, s.gates + 2 * D + d, 3 * D);
      for (int64_t r = 0; r < rows_; ++r) {
        const T *gate = s.gates + r * 3 * D + d, *prev = past(s, r) + d;
        T* deter = s.deter + r * D + d;
        O* operand = next_h() + r * D + d;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
          const T h = planet_carry(gate_sigmoid(gate[D + i]), gate_tanh(gate[2 * D + i]), prev[i]);
          deter[i] = h;
          narrow(h, operand[i]);
        }
      }
    }
  }

  void norm_gates(const Step& s) const {
    const int64_t D = n_.D;
    const T bias = static_cast<T>(kUpdateBias);
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      T* gate = s_.normal + r * 3 * D;
      layer_row<Activation::none>(3 * D, s.gates + r * 3 * D, {w_.scale_gates, w_.shift_gates}, eps_, gate);
      const T* prev = past(s, r);
      T* deter = s.deter + r * D;
      O* operand = next_h() + r * D;
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) {
        const auto gates = block_gru_gates(gate[i], gate[D + i], gate[2 * D + i] + bias);
        const T h = mix(gates.update, gates.cand, prev[i]);
        deter[i] = h;
        narrow(h, operand[i]);
      }
    }
  }

  void layer(const Step& s) const { add_product(s.layer_in, next_h(), n_.D, packed_.layer, s.layer); }

  void norm_layer(const Step& s) const {
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r)
      activate_row(s.layer + r * n_.U, {w_.scale_layer, w_.shift_layer}, s_.act + r * n_.U);
  }

  void stats(const Step& s) const {
    const Range tasks = team_.range(packed_.stats.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task)
      product(packed_.stats, 0, task, w_.b_stats, s_.act, n_.U, s.stats + task * kWide, n_.O());
  }

  void sample(const Step& s) const {
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      const T *stats = s.stats + r * n_.O(), *noise = s.noise + r * n_.S;
      T* z = s.stoch + r * n_.Z();
      if (n_.C) sample_row(n_.S, n_.C, stats, static_cast<T>(w_.unimix), noise, z, s_.index + r * n_.S);
      else gaussian_row(n_.S, stats, noise, z);
    }
  }

  const GruRssmSizes& n_;
  const GruRssmWeights& w_;
  const GruRssmPacked<T, O>& packed_;
  const int64_t rows_;
  const Team team_;
  const Scratch& s_;
  const T eps_;
  int now_ = 0;  // which of the two operands holds deter
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
