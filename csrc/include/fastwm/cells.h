// The operators of single cells, shared by C++ and CUDA: parameters, and how an element of a cell is stored.
//
// A cell is written once, for one element: what it reads, what it writes, and by csrc/math/ the arithmetic between.
// Every array is [rows, parts * width]: `parts` numbers of each of the `width` elements of a row's carry, one part
// after the other. A block layout is the same thing with blocks for rows.
#pragma once

#include <utility>

#include "fastwm/params/cells.h"
#include "math/block_gru.h"
#include "math/gru.h"
#include "math/lstm.h"
#include "math/planet_gru.h"

namespace fastwm {

struct Cells {
  Dtype gate_dtype, carry_dtype;
  int64_t rows, width;
  const void* in[5];
  void* out[3];
  double bias;  // added to the update gate (GRUs with a write gate) or to the forget gate (LSTM)
  bool ijfo;    // an LSTM's gates in TensorFlow's order, else torch's: input, forget, candidate, output
};

// The weights' gradients of layernorm_gru_gates are summed in chunks of rows, as many as the shape asks for, whatever
// the threads.
static inline int64_t row_chunks(int64_t rows, bool on_gpu) {
  const int64_t wanted = on_gpu ? (rows + 3) / 4 : (rows + 15) / 16, most = on_gpu ? 132 : 64;
  return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

enum class Stored { gate, carry };  // gates may be bfloat16 while the carry is float32

struct Slot {
  Stored stored;
  int parts;
};

namespace {

// An element's outputs, in the order of `out`.
template <typename A, size_t count>
struct Outputs {
  A at[count];
};

// The cells. An `In` has the numbers of `in`, in their order; csrc/math/ has the equations.

struct Gru {
  static constexpr Slot in[] = {{Stored::gate, 3}, {Stored::gate, 3}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::carry, 1}};

  template <typename A>
  struct In {
    A x_r, x_z, x_n, h_r, h_z, h_n, h;
  };

  template <typename A>
  FASTWM_FN Outputs<A, 1> run(const Cells&, const In<A>& x) {
    const auto y = gru_gates(x.x_r + x.h_r, x.x_z + x.h_z, x.x_n, x.h_n);
    return {{gru_carry(y.update, y.cand, x.h)}};
  }
};

struct GruBackward {
  static constexpr Slot in[] = {{Stored::carry, 1}, {Stored::gate, 3}, {Stored::gate, 3}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::gate, 3}, {Stored::gate, 3}, {Stored::carry, 1}};

  template <typename A>
  struct In {
    A d_h, x_r, x_z, x_n, h_r, h_z, h_n, h;
  };

  template <typename A>
  FASTWM_FN Outputs<A, 7> run(const Cells&, const In<A>& x) {
    const auto d = gru_backward(gru_gates(x.x_r + x.h_r, x.x_z + x.h_z, x.x_n, x.h_n), x.h_n, x.h, x.d_h);
    return {{d.reset, d.update, d.x_n, d.reset, d.update, d.h_n, d.h}};
  }
};

struct BlockGru {
  static constexpr Slot in[] = {{Stored::gate, 3}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::carry, 1}};

  template <typename A>
  struct In {
    A reset, cand, update, h;
  };

  template <typename A>
  FASTWM_FN Outputs<A, 1> run(const Cells& p, const In<A>& x) {
    const auto gates = block_gru_gates(x.reset, x.cand, x.update + static_cast<A>(p.bias));
    return {{mix(gates.update, gates.cand, x.h)}};
  }
};

struct BlockGruBackward {
  static constexpr Slot in[] = {{Stored::carry, 1}, {Stored::gate, 3}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::gate, 3}, {Stored::carry, 1}};

  template <typename A>
  struct In {
    A d_h, reset, cand, update, h;
  };

  template <typename A>
  FASTWM_FN Outputs<A, 4> run(const Cells& p, const In<A>& x) {
    const auto gates = block_gru_gates(x.reset, x.cand, x.update + static_cast<A>(p.bias));
    const auto d = block_gru_backward(gates, x.cand, x.h, x.d_h);
    return {{d.reset, d.cand, d.update, d.h}};
  }
};

// Before the candidate's product: r h and u.
struct PlanetReset {
  static constexpr Slot in[] = {{Stored::gate, 2}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::carry, 1}, {Stored::carry, 1}};

  template <typename A>
  struct In {
    A reset, update, h;
  };

  template <typename A>
  FASTWM_FN Outputs<A, 2> run(const Cells&, const In<A>& x) {
    return {{gate_sigmoid(x.reset) * x.h, gate_sigmoid(x.update)}};
  }
};

struct PlanetResetBackward {
  static constexpr Slot in[] = {{Stored::carry, 1}, {Stored::carry, 1}, {Stored::gate, 2}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::gate, 2}, {Stored::carry, 1}};

  template <typename A>
  struct In {
    A d_reset_h, d_u, reset, update, h;
  };

  template <typename A>
  FASTWM_FN Outputs<A, 3> run(const Cells&, const In<A>& x) {
    const auto d = planet_reset_backward(gate_sigmoid(x.reset), x.h, x.d_reset_h);
    return {{d.reset, sigmoid_backward(x.d_u, gate_sigmoid(x.update)), d.h}};
  }
};

// After it: h', from u and the candidate's sum.
struct PlanetUpdate {
  static constexpr Slot in[] = {{Stored::carry, 1}, {Stored::gate, 1}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::carry, 1}};

  template <typename A>
  struct In {
    A u, cand, h;
  };

  template <typename A>
  FASTWM_FN Outputs<A, 1> run(const Cells&, const In<A>& x) {
    return {{planet_carry(x.u, gate_tanh(x.cand), x.h)}};
  }
};

struct PlanetUpdateBackward {
  static constexpr Slot in[] = {{Stored::carry, 1}, {Stored::carry, 1}, {Stored::gate, 1}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::carry, 1}, {Stored::gate, 1}, {Stored::carry, 1}};

  template <typename A>
  struct In {
    A d_h, u, cand, h;
  };

  template <typename A>
  FASTWM_FN Outputs<A, 3> run(const Cells&, const In<A>& x) {
    const auto d = planet_update_backward(x.u, gate_tanh(x.cand), x.h, x.d_h);
    return {{d.update, d.cand, d.h}};
  }
};

template <bool ijfo>
struct Lstm {
  static constexpr Slot in[] = {{Stored::gate, 4}, {Stored::gate, 4}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::carry, 1}, {Stored::carry, 1}};

  template <typename A>
  struct In {
    A x0, x1, x2, x3, h0, h1, h2, h3, c;  // the gates' sums in the order of the weights

    FASTWM_FN LstmGates<A> gates(const In& x, const Cells& p) {
      auto sums = lstm_order(x.x0 + x.h0, x.x1 + x.h1, x.x2 + x.h2, x.x3 + x.h3, ijfo);
      sums.forget += static_cast<A>(p.bias);
      return lstm_gates(sums);
    }
  };

  template <typename A>
  FASTWM_FN Outputs<A, 2> run(const Cells& p, const In<A>& x) {
    const auto gates = In<A>::gates(x, p);
    const A c = lstm_cell(gates.in, gates.forget, gates.cand, x.c);
    return {{gates.out * gate_tanh(c), c}};
  }
};

template <bool ijfo>
struct LstmBackward {
  static constexpr Slot in[] = {
      {Stored::carry, 1}, {Stored::carry, 1}, {Stored::gate, 4}, {Stored::gate, 4}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::gate, 4}, {Stored::carry, 1}};

  template <typename A>
  struct In {
    A d_h, d_c;
    typename Lstm<ijfo>::template In<A> forward;
  };

  template <typename A>
  FASTWM_FN Outputs<A, 5> run(const Cells& p, const In<A>& x) {
    const auto gates = Lstm<ijfo>::template In<A>::gates(x.forward, p);
    const A tanh_c = gate_tanh(lstm_cell(gates.in, gates.forget, gates.cand, x.forward.c));
    const auto d = lstm_backward(gates, x.forward.c, tanh_c, x.d_h, x.d_c);
    const auto sums = lstm_order(d.sums.in, d.sums.forget, d.sums.cand, d.sums.out, ijfo);
    return {{sums.in, sums.forget, sums.cand, sums.out, d.c}};
  }
};

// ------------------------------------------------------------------------------- a cell's element, in memory

struct Place {
  int tensor, part, parts;
  Stored stored;
};

// Where the i-th number of an element is stored.
constexpr Place place(const Slot* slots, int i) {
  int tensor = 0;
  while (i >= slots[tensor].parts) i -= slots[tensor++].parts;
  return {tensor, i, slots[tensor].parts, slots[tensor].stored};
}

template <size_t tensors>
constexpr size_t numbers(const Slot (&slots)[tensors]) {
  size_t sum = 0;
  for (const Slot& slot : slots) sum += slot.parts;
  return sum;
}

template <Stored stored, typename G, typename C>
struct StoredType {
  using type = G;
};

template <typename G, typename C>
struct StoredType<Stored::carry, G, C> {
  using type = C;
};

template <typename Cell, typename G, typename C, size_t i>
FASTWM_FN accumulate_t<C> load(const Cells& p, int64_t row, int64_t j) {
  constexpr Place at = place(Cell::in, i);
  using T = typename StoredType<at.stored, G, C>::type;
  return widen(static_cast<const T*>(p.in[at.tensor])[(row * at.parts + at.part) * p.width + j]);
}

template <typename Cell, typename G, typename C, size_t i>
FASTWM_FN void store(accumulate_t<C> y, const Cells& p, int64_t row, int64_t j) {
  constexpr Place at = place(Cell::out, i);
  using T = typename StoredType<at.stored, G, C>::type;
  narrow(y, static_cast<T*>(p.out[at.tensor])[(row * at.parts + at.part) * p.width + j]);
}

template <typename Cell, typename G, typename C, size_t... in, size_t... out>
FASTWM_FN void element(const Cells& p, int64_t row, int64_t j, std::index_sequence<in...>,
                       std::index_sequence<out...>) {
  const typename Cell::template In<accumulate_t<C>> x{load<Cell, G, C, in>(p, row, j)...};
  const auto y = Cell::run(p, x);
  (store<Cell, G, C, out>(y.at[out], p, row, j), ...);
}

template <typename Cell, typename G, typename C>
FASTWM_FN void element(const Cells& p, int64_t row, int64_t j) {
  element<Cell, G, C>(p, row, j, std::make_index_sequence<numbers(Cell::in)>{},
                      std::make_index_sequence<numbers(Cell::out)>{});
}

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
