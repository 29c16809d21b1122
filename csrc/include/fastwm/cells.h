// The operators of single cells, shared by C++ and CUDA: how an element of a cell is stored, and what is done to it.
//
// A cell is written once, for one element: what it reads and writes of the params, by name, and by csrc/math/ the
// arithmetic between. Gates are arrays [rows, parts * width]: `parts` numbers of each of the `width` elements of a row's
// carry, one part after the other. A block layout is the same thing with blocks for rows.
#pragma once

#include <utility>

#include "fastwm/params/cells.h"
#include "math/block_gru.h"
#include "math/gru.h"
#include "math/lstm.h"
#include "math/planet_gru.h"

namespace fastwm {

// The weights' gradients of layernorm_gru_gates are summed in chunks of rows, as many as the shape asks for, whatever
// the threads.
static inline int64_t row_chunks(int64_t rows, bool on_gpu) {
  const int64_t wanted = on_gpu ? (rows + 3) / 4 : (rows + 15) / 16, most = on_gpu ? 132 : 64;
  return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

namespace {

template <typename A, int parts>
struct Numbers {
  A of[parts];
};

// One element of a row's carry. Gates are stored as G, which may be bfloat16 while the carry, C, is float32.
template <typename G, typename C>
struct Element {
  using A = accumulate_t<C>;
  int64_t row, j, width;

  FASTWM_MEMBER A carry(const void* x) const { return widen(static_cast<const C*>(x)[row * width + j]); }
  FASTWM_MEMBER void set_carry(void* y, A value) const { narrow(value, static_cast<C*>(y)[row * width + j]); }
  template <int parts>
  FASTWM_MEMBER Numbers<A, parts> gates(const void* x) const {
    return gates(static_cast<const G*>(x) + row * parts * width + j, std::make_integer_sequence<int, parts>{});
  }
  template <int parts>
  FASTWM_MEMBER void set_gates(void* y, const A (&values)[parts]) const {
    set_gates(static_cast<G*>(y) + row * parts * width + j, values, std::make_integer_sequence<int, parts>{});
  }

 private:
  template <int... part>
  FASTWM_MEMBER Numbers<A, sizeof...(part)> gates(const G* x, std::integer_sequence<int, part...>) const {
    return {{static_cast<A>(widen(x[part * width]))...}};
  }
  template <int parts, int... part>
  FASTWM_MEMBER void set_gates(G* y, const A (&values)[parts], std::integer_sequence<int, part...>) const {
    (narrow(values[part], y[part * width]), ...);
  }
};

// The cells; csrc/math/ has the equations.

struct Gru {
  template <typename E>
  FASTWM_FN void run(const GruCells& p, const E& at) {
    const auto [x_r, x_z, x_n] = at.template gates<3>(p.input).of;
    const auto [h_r, h_z, h_n] = at.template gates<3>(p.hidden).of;
    const auto y = gru_gates(x_r + h_r, x_z + h_z, x_n, h_n);
    at.set_carry(p.y, gru_carry(y.update, y.cand, at.carry(p.h)));
  }

  template <typename E>
  FASTWM_FN void run(const GruCellsBackward& p, const E& at) {
    const auto [x_r, x_z, x_n] = at.template gates<3>(p.input).of;
    const auto [h_r, h_z, h_n] = at.template gates<3>(p.hidden).of;
    const auto d = gru_backward(gru_gates(x_r + h_r, x_z + h_z, x_n, h_n), h_n, at.carry(p.h), at.carry(p.g_y));
    at.set_gates(p.d_input, {d.reset, d.update, d.x_n});
    at.set_gates(p.d_hidden, {d.reset, d.update, d.h_n});
    at.set_carry(p.d_h, d.h);
  }
};

struct BlockGru {
  template <typename E>
  FASTWM_FN void run(const BlockGruCells& p, const E& at) {
    const auto [reset, cand, update] = at.template gates<3>(p.gates).of;
    const auto y = block_gru_gates(reset, cand, update + static_cast<typename E::A>(p.update_bias));
    at.set_carry(p.y, mix(y.update, y.cand, at.carry(p.h)));
  }

  template <typename E>
  FASTWM_FN void run(const BlockGruCellsBackward& p, const E& at) {
    const auto [reset, cand, update] = at.template gates<3>(p.gates).of;
    const auto y = block_gru_gates(reset, cand, update + static_cast<typename E::A>(p.update_bias));
    const auto d = block_gru_backward(y, cand, at.carry(p.h), at.carry(p.g_y));
    at.set_gates(p.d_gates, {d.reset, d.cand, d.update});
    at.set_carry(p.d_h, d.h);
  }
};

// Before the candidate's product: r h and u. After it: h', from u and the candidate's sum.
struct PlanetGru {
  template <typename E>
  FASTWM_FN void run(const PlanetGruReset& p, const E& at) {
    const auto [reset, update] = at.template gates<2>(p.gates).of;
    const auto reset_h = gate_sigmoid(reset) * at.carry(p.h);
    at.set_carry(p.reset_h, reset_h);
    at.set_carry(p.update, gate_sigmoid(update));
  }

  template <typename E>
  FASTWM_FN void run(const PlanetGruResetBackward& p, const E& at) {
    const auto [reset, update] = at.template gates<2>(p.gates).of;
    const auto d = planet_reset_backward(gate_sigmoid(reset), at.carry(p.h), at.carry(p.g_reset_h));
    at.set_gates(p.d_gates, {d.reset, sigmoid_backward(at.carry(p.g_update), gate_sigmoid(update))});
    at.set_carry(p.d_h, d.h);
  }

  template <typename E>
  FASTWM_FN void run(const PlanetGruUpdate& p, const E& at) {
    const auto [cand] = at.template gates<1>(p.cand).of;
    at.set_carry(p.y, planet_carry(at.carry(p.update), gate_tanh(cand), at.carry(p.h)));
  }

  template <typename E>
  FASTWM_FN void run(const PlanetGruUpdateBackward& p, const E& at) {
    const auto [cand] = at.template gates<1>(p.cand).of;
    const auto d = planet_update_backward(at.carry(p.update), gate_tanh(cand), at.carry(p.h), at.carry(p.g_y));
    at.set_carry(p.d_update, d.update);
    at.set_gates(p.d_cand, {d.cand});
    at.set_carry(p.d_h, d.h);
  }
};

// The gates' sums are in the order of the weights: torch's input, forget, candidate, output, or TensorFlow's (ijfo).
template <bool ijfo>
struct Lstm {
  template <typename P, typename E>
  FASTWM_FN auto gates(const P& p, const E& at) {
    const auto [x0, x1, x2, x3] = at.template gates<4>(p.input).of;
    const auto [h0, h1, h2, h3] = at.template gates<4>(p.hidden).of;
    auto sums = lstm_order(x0 + h0, x1 + h1, x2 + h2, x3 + h3, ijfo);
    sums.forget += static_cast<typename E::A>(p.forget_bias);
    return lstm_gates(sums);
  }

  template <typename E>
  FASTWM_FN void run(const LstmCells& p, const E& at) {
    const auto y = gates(p, at);
    const auto c = lstm_cell(y.in, y.forget, y.cand, at.carry(p.c));
    at.set_carry(p.next_h, y.out * gate_tanh(c));
    at.set_carry(p.next_c, c);
  }

  template <typename E>
  FASTWM_FN void run(const LstmCellsBackward& p, const E& at) {
    const auto y = gates(p, at);
    const auto c = at.carry(p.c), tanh_c = gate_tanh(lstm_cell(y.in, y.forget, y.cand, c));
    const auto d = lstm_backward(y, c, tanh_c, at.carry(p.g_next_h), at.carry(p.g_next_c));
    const auto sums = lstm_order(d.sums.in, d.sums.forget, d.sums.cand, d.sums.out, ijfo);
    at.set_gates(p.d_gates, {sums.in, sums.forget, sums.cand, sums.out});
    at.set_carry(p.d_c, d.c);
  }
};

// Calls f(G{}, C{}) with the types of the gates and of the carry.
template <typename Params, typename F>
void dispatch(const Params& p, F f) {
  switch (p.carry_dtype) {
    case Dtype::f64: return f(double{}, double{});
    case Dtype::bf16: return f(bf16{}, bf16{});
    case Dtype::f32: return p.gate_dtype == Dtype::f32 ? f(float{}, float{}) : f(bf16{}, float{});
  }
}

}  // namespace
}  // namespace fastwm
