// The recurrent cells' parameters and their maths, shared by C++ and CUDA.
//
// A cell is written once, for one element: what it reads, what it writes, and the arithmetic between. Every
// array is [rows, parts * width]: `parts` numbers of each of the `width` elements of a row's carry, one part
// after the other. A block layout is the same thing with blocks for rows.
#pragma once

#include <utility>

#include "fastwm/params/cells.h"
#include "fastwm/vecmath.h"

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

// A gate needs absolute accuracy, not vtanh's last bits: on the CPU, where these functions are most of a cell's time,
// a rational minimax fit within 4e-7, never outside [-1, 1], at a third of the price.
#ifdef __CUDA_ARCH__
FASTWM_FN float gate_tanh(float x) { return vtanh(x); }
#else
FASTWM_FN float gate_tanh(float x) {
  const float c = bound(x, -8.4f, 8.4f), t = c * c;
  const float p = (((1.445773127e-8f * t + 2.137969094e-5f) * t + 3.541612555e-3f) * t + 1.341957570e-1f) * t + 1.0f;
  const float q = (((8.219912854e-7f * t + 3.361419168e-4f) * t + 2.605142128e-2f) * t + 4.675289953e-1f) * t + 1.0f;
  return x != x ? x : bound(c * p / q, -1.0f, 1.0f);
}
#endif

FASTWM_FN double gate_tanh(double x) { return vtanh(x); }

FASTWM_FN float gate_sigmoid(float x) { return 0.5f + 0.5f * gate_tanh(0.5f * x); }
FASTWM_FN double gate_sigmoid(double x) { return vsigmoid(x); }

namespace {  // the cells; in each, x holds the parts of `in` and y those of `out`, in order

// r, z = sigmoid(i + h), n = tanh(i_n + r h_n), h' = (1 - z) n + z h
struct Gru {
  static constexpr Slot in[] = {{Stored::gate, 3}, {Stored::gate, 3}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::carry, 1}};

  template <typename A>
  FASTWM_FN void run(const Cells&, const A (&x)[7], A (&y)[1]) {
    const A r = gate_sigmoid(x[0] + x[3]), z = gate_sigmoid(x[1] + x[4]), n = gate_tanh(x[2] + r * x[5]);
    y[0] = n + z * (x[6] - n);
  }
};

struct GruBackward {
  static constexpr Slot in[] = {{Stored::carry, 1}, {Stored::gate, 3}, {Stored::gate, 3}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::gate, 3}, {Stored::gate, 3}, {Stored::carry, 1}};

  template <typename A>
  FASTWM_FN void run(const Cells&, const A (&x)[8], A (&y)[7]) {
    const A grad = x[0], h_n = x[6], h = x[7];
    const A r = gate_sigmoid(x[1] + x[4]), z = gate_sigmoid(x[2] + x[5]), n = gate_tanh(x[3] + r * h_n);
    const A d_n = grad * (1 - z) * (1 - n * n);
    y[0] = y[3] = d_n * h_n * r * (1 - r);
    y[1] = y[4] = grad * (h - n) * z * (1 - z);
    y[2] = d_n;
    y[5] = d_n * r;
    y[6] = grad * z;
  }
};

// r = sigmoid(reset), c = tanh(r cand), u = sigmoid(update + bias), h' = u c + (1 - u) h
struct BlockGru {
  static constexpr Slot in[] = {{Stored::gate, 3}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::carry, 1}};

  template <typename A>
  FASTWM_FN void run(const Cells& p, const A (&x)[4], A (&y)[1]) {
    const A c = gate_tanh(gate_sigmoid(x[0]) * x[1]), u = gate_sigmoid(x[2] + static_cast<A>(p.bias));
    y[0] = x[3] + u * (c - x[3]);
  }
};

struct BlockGruBackward {
  static constexpr Slot in[] = {{Stored::carry, 1}, {Stored::gate, 3}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::gate, 3}, {Stored::carry, 1}};

  template <typename A>
  FASTWM_FN void run(const Cells& p, const A (&x)[5], A (&y)[4]) {
    const A grad = x[0], cand = x[2], h = x[4];
    const A r = gate_sigmoid(x[1]), c = gate_tanh(r * cand), u = gate_sigmoid(x[3] + static_cast<A>(p.bias));
    const A d_c = grad * u * (1 - c * c);
    y[0] = d_c * cand * r * (1 - r);
    y[1] = d_c * r;
    y[2] = grad * (c - h) * u * (1 - u);
    y[3] = grad * (1 - u);
  }
};

// Before the candidate's product: sigmoid(reset) h, and u = sigmoid(update).
struct PlanetReset {
  static constexpr Slot in[] = {{Stored::gate, 2}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::carry, 1}, {Stored::carry, 1}};

  template <typename A>
  FASTWM_FN void run(const Cells&, const A (&x)[3], A (&y)[2]) {
    y[0] = gate_sigmoid(x[0]) * x[2];
    y[1] = gate_sigmoid(x[1]);
  }
};

struct PlanetResetBackward {
  static constexpr Slot in[] = {{Stored::carry, 1}, {Stored::carry, 1}, {Stored::gate, 2}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::gate, 2}, {Stored::carry, 1}};

  template <typename A>
  FASTWM_FN void run(const Cells&, const A (&x)[5], A (&y)[3]) {
    const A r = gate_sigmoid(x[2]), u = gate_sigmoid(x[3]);
    y[0] = x[0] * x[4] * r * (1 - r);
    y[1] = x[1] * u * (1 - u);
    y[2] = x[0] * r;
  }
};

// After it: h' = u h + (1 - u) tanh(cand)
struct PlanetUpdate {
  static constexpr Slot in[] = {{Stored::carry, 1}, {Stored::gate, 1}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::carry, 1}};

  template <typename A>
  FASTWM_FN void run(const Cells&, const A (&x)[3], A (&y)[1]) {
    const A c = gate_tanh(x[1]);
    y[0] = c + x[0] * (x[2] - c);
  }
};

struct PlanetUpdateBackward {
  static constexpr Slot in[] = {{Stored::carry, 1}, {Stored::carry, 1}, {Stored::gate, 1}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::carry, 1}, {Stored::gate, 1}, {Stored::carry, 1}};

  template <typename A>
  FASTWM_FN void run(const Cells&, const A (&x)[4], A (&y)[3]) {
    const A grad = x[0], u = x[1], c = gate_tanh(x[2]);
    y[0] = grad * (x[3] - c);
    y[1] = grad * (1 - u) * (1 - c * c);
    y[2] = grad * u;
  }
};

// c' = sigmoid(f + bias) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')
template <bool ijfo>
struct Lstm {
  static constexpr Slot in[] = {{Stored::gate, 4}, {Stored::gate, 4}, {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::carry, 1}, {Stored::carry, 1}};

  template <typename A>
  FASTWM_FN void run(const Cells& p, const A (&x)[9], A (&y)[2]) {
    const A second = x[1] + x[5], third = x[2] + x[6];
    const A i = gate_sigmoid(x[0] + x[4]), o = gate_sigmoid(x[3] + x[7]);
    const A f = gate_sigmoid((ijfo ? third : second) + static_cast<A>(p.bias));
    const A g = gate_tanh(ijfo ? second : third);
    y[1] = f * x[8] + i * g;
    y[0] = o * gate_tanh(y[1]);
  }
};

template <bool ijfo>
struct LstmBackward {
  static constexpr Slot in[] = {{Stored::carry, 1}, {Stored::carry, 1}, {Stored::gate, 4}, {Stored::gate, 4},
                                {Stored::carry, 1}};
  static constexpr Slot out[] = {{Stored::gate, 4}, {Stored::carry, 1}};

  template <typename A>
  FASTWM_FN void run(const Cells& p, const A (&x)[11], A (&y)[5]) {
    const A second = x[3] + x[7], third = x[4] + x[8], c = x[10];
    const A i = gate_sigmoid(x[2] + x[6]), o = gate_sigmoid(x[5] + x[9]);
    const A f = gate_sigmoid((ijfo ? third : second) + static_cast<A>(p.bias));
    const A g = gate_tanh(ijfo ? second : third);
    const A t = gate_tanh(f * c + i * g);
    const A d_c = x[1] + x[0] * o * (1 - t * t);  // of the new c
    const A d_f = d_c * c * f * (1 - f), d_g = d_c * i * (1 - g * g);
    y[0] = d_c * g * i * (1 - i);
    y[1] = ijfo ? d_g : d_f;
    y[2] = ijfo ? d_f : d_g;
    y[3] = x[0] * t * o * (1 - o);
    y[4] = d_c * f;
  }
};

// ------------------------------------------------------------------------------- a cell's element, in memory

struct Place {
  int tensor, part, parts;
  Stored stored;
};

// Where the i-th number of an element lies.
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
  using A = accumulate_t<C>;
  const A x[] = {load<Cell, G, C, in>(p, row, j)...};
  A y[sizeof...(out)];
  Cell::run(p, x, y);
  (store<Cell, G, C, out>(y[out], p, row, j), ...);
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
