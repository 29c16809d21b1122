// Backward through the steps of DreamerV3's recurrent core, for the kernels of its sequences.
#pragma once

#include "block_gru_forward.h"
#include "primitives/weight_grads.h"

namespace fastwm::FASTWM_ISA {
namespace {

// d_deter becomes the gradient of h, as far as it goes past the products.
template <typename T, typename O>
void gates_row_backward(int64_t width, const T* reset, const T* cand, const T* update, const T* prev, T* d_deter,
                        O* d_reset, O* d_cand, O* d_update) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const T c = gate_tanh(reset[i] * cand[i]);
    const auto d = block_gru_backward({reset[i], c, update[i]}, cand[i], prev[i], d_deter[i]);
    narrow(d.reset, d_reset[i]);
    narrow(d.cand, d_cand[i]);
    narrow(d.update, d_update[i]);
    d_deter[i] = d.h;
  }
}

// A weight of the carry [D, N], transposed: blocks [N, J], so that its products end at the gates' blocks.
inline Weight blocked(const Weight& w, int64_t J) { return {w.data, J * w.sk, w.sn, w.sk}; }

// The weights, transposed.
template <typename T, typename O>
struct GruBackWeights {
  Packed<O> carry, gates[3], own, embeds;

  GruBackWeights(const BlockGruScanBackward& p, Packings<O>& packings) : GruBackWeights(p.n) {
    packings.add(carry, blocked(p.w.carry, p.n.J()));
    for (int i = 0; i < 3; ++i) packings.add(gates[i], gate_of(p.w, p.n.J(), i, sizeof(T)).transposed());
    packings.add(own, p.w.own.transposed());
    packings.add(embeds, p.w.embeds.transposed());
  }

 private:
  explicit GruBackWeights(const BlockGruSizes& n)
      : carry{n.G, n.U, n.J()}, gates{{n.G, n.J(), n.J()}, {n.G, n.J(), n.J()}, {n.G, n.J(), n.J()}},
        own{n.G, n.J(), n.J()}, embeds{n.G, n.J(), n.X()} {}
};

// Hands out consecutive pieces of an array of gradients.
template <typename T>
struct GradLayout {
  T* next;

  T* take(int64_t size) { return (next += size) - size; }
};

// The gradients of the core's weights.
template <typename T>
struct GruGrads {
  T *w_carry, *b_carry, *n_carry, *w_own, *w_embeds, *n_hidden, *w_gates, *b_gates;

  // The range of a product in the array.
  Range carry(const BlockGruSizes& n) const { return range(w_carry, n.U * n.D); }
  Range own_and_embeds(const BlockGruSizes& n) const { return range(w_own, n.D * n.J() + n.X() * n.D); }
  Range gates(const BlockGruSizes& n) const { return range(w_gates, 3 * n.D * n.J()); }
  Range range(const T* part, int64_t size) const { return {part - w_carry, part - w_carry + size}; }

  void take_carry(const BlockGruSizes& n, GradLayout<T>& all) {
    w_carry = all.take(n.U * n.D), b_carry = all.take(n.U), n_carry = all.take(n.U);
  }
  void take_rest(const BlockGruSizes& n, GradLayout<T>& all) {
    w_own = all.take(n.D * n.J()), w_embeds = all.take(n.X() * n.D), n_hidden = all.take(n.D);
    w_gates = all.take(3 * n.D * n.J()), b_gates = all.take(3 * n.D);
  }
};

template <typename T, typename O>
struct GruBackScratch {
  T *d_carry, *d_act, *d_x;  // [R, D] [R, D] [R, E U]
  O* d_embed;                // [R, U]: d_embeds of the carry at t + 1, zero after a reset
  O *o_gates, *o_hidden;     // the step's operands [R, 3D] [R, D], where the chunk does not hold them as such
  // Some steps' inputs of the layers, and the gradients before their norms and gates: [steps, R, width].
  T *past, *embeds, *act, *d_embeds, *d_hidden, *d_gates;

  void place(Arena& arena, const BlockGruSizes& n, int64_t rows) {
    const int64_t chunk = chunk_steps(n.T, rows, n.D) * rows;
    d_embed = arena.take<O>(rows * n.U);
    o_gates = arena.take<O>(rows * 3 * n.D);
    o_hidden = arena.take<O>(rows * n.D);
    for (T** part : {&d_carry, &d_act}) *part = arena.take<T>(rows * n.D);
    d_x = arena.take<T>(rows * n.X());
    for (T** part : {&embeds, &d_embeds}) *part = arena.take<T>(chunk * n.X());
    for (T** part : {&past, &act, &d_hidden}) *part = arena.take<T>(chunk * n.D);
    d_gates = arena.take<T>(chunk * 3 * n.D);
  }
};

// The stages, in their order; a barrier belongs after each but where the next reads only the same rows or panels.
template <typename T, typename O>
class GruBackSteps {
 public:
  // `shared` takes the weights' gradients of the whole team, `mine` those of the norms that this member sums.
  GruBackSteps(const BlockGruScanBackward& p, const GruBackWeights<T, O>& w, int64_t first_row, int64_t rows, Team team,
               const GruBackScratch<T, O>& s, const GruGrads<T>& shared, const GruGrads<T>& mine)
      : p_(p), n_(p.n), w_(w), row0_(first_row), rows_(rows), team_(team), s_(s), shared_(shared), mine_(mine),
        eps_(p.eps), steps_(chunk_steps(p.n.T, rows, p.n.D)) {}

  bool first(int64_t t, int64_t r) const { return p_.is_first[t * n_.B + row0_ + r]; }
  // Step t's rows of an array [T, B, width], and of one of the chunk.
  const T* at(const void* array, int64_t t, int64_t width) const { return ptr<T>(array) + (t * n_.B + row0_) * width; }
  T* at(void* array, int64_t t, int64_t width) const { return ptr<T>(array) + (t * n_.B + row0_) * width; }
  T* now(T* chunk, int64_t t, int64_t width) const { return chunk + t % steps_ * rows_ * width; }
  // A chunk of an array [T, B, width] is the array's own where it holds all rows; elsewhere `chunk`, to be copied.
  bool has_all_rows() const { return rows_ == n_.B; }
  T* now_in(void* array, T* chunk, int64_t t, int64_t width) const {
    return has_all_rows() ? at(array, t, width) : now(chunk, t, width);
  }
  // The rows that wait for their products when step t is done, going back; 0 where the chunk goes on.
  int64_t chunk_rows(int64_t t) const {
    if (t % steps_ > 0) return 0;
    return (n_.T - t < steps_ ? n_.T - t : steps_) * rows_;
  }

  // Whether that chunk is the first of the products' sums, which a team finds as they were.
  bool starts_sums(int64_t t) const { return team_.size > 1 && t + steps_ >= n_.T; }

  void start() {
    const Range rows = team_.range(rows_);
    const int64_t count = rows.last - rows.first;
    zero_rows(count, n_.D, s_.d_carry + rows.first * n_.D, n_.D);
    zero_rows(count, n_.U, s_.d_embed + rows.first * n_.U, n_.U);
  }

  // The carry that step t read.
  void past(int64_t t, int64_t r) {
    const int64_t D = n_.D;
    T* past = now(s_.past, t, D) + r * D;
    if (first(t, r)) return zero_rows(1, D, past, D);
    copy_rows(1, D, (t > 0 ? at(p_.h, t - 1, D) : ptr<T>(p_.h0) + row0_ * D) + r * D, D, past, D);
  }

  // d_carry holds what step t + 1 asks for past its products; here it becomes the same for step t - 1. more(task, out)
  // adds what else reads the carry after step t.
  template <typename More>
  void gates(int64_t t, More more) {
    const int64_t D = n_.D, J = n_.J();
    const Range tasks = team_.range(w_.carry.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / w_.carry.panels(), panel = task % w_.carry.panels();
      const int64_t j = panel * kPanelOf<O>, d = g * J + j;
      const int64_t width = w_.carry.width(panel);
      if (task + 1 < tasks.last) fetch_rows(rows_, width, at(p_.g_h, t, D) + first_column(w_.carry, task + 1, J), D);
      for (int64_t r = 0; r < rows_; ++r) {
        T* d_carry = s_.d_carry + r * D + d;
        const T* from = at(p_.g_h, t, D) + r * D + d;
        const bool cut = t + 1 < n_.T && first(t + 1, r);
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) d_carry[i] = cut ? from[i] : from[i] + d_carry[i];
      }
      for (int i = 0; i < 3; ++i) fetch_rows(rows_, width, at(p_.gates, t, 3 * D) + (3 * g + i) * J + j, 3 * D);
      more(task, s_.d_carry + d);
      multiply(rows_, s_.d_embed, n_.U, w_.carry, task, s_.d_carry + d, D);
      for (int64_t r = 0; r < rows_; ++r) {
        const int64_t row = r * 3 * D + 3 * g * J + j;
        const T* gate = at(p_.gates, t, 3 * D) + row;
        T* out = now(s_.d_gates, t, 3 * D) + row;
        gates_row_backward(width, gate, gate + J, gate + 2 * J, now(s_.past, t, D) + r * D + d, s_.d_carry + r * D + d,
                           out, out + J, out + 2 * J);
        for (int i = 0; i < 3; ++i) keep_operand(width, out + i * J, s_.o_gates + row + i * J);
      }
      for (int i = 0; i < 3; ++i) {
        const int64_t gate = (3 * g + i) * J + j;
        add_columns(rows_, now(s_.d_gates, t, 3 * D) + gate, width, 3 * D, shared_.b_gates + gate);
      }
    }
  }

  void hidden(int64_t t) {
    const int64_t D = n_.D, J = n_.J();
    const Packed<O>& shape = w_.gates[0];
    const O* d_gates = operand_of<T, O>(now(s_.d_gates, t, 3 * D), s_.o_gates);
    const Range tasks = team_.range(shape.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / shape.panels(), panel = task % shape.panels();
      T* out = s_.d_act + g * J + panel * kPanelOf<O>;
      for (int i = 0; i < 3; ++i) {
        const Start<T> start{i > 0 ? out : nullptr, D};
        multiply(rows_, d_gates + (3 * g + i) * J, 3 * D, w_.gates[i], task, start, out, D);
      }
    }
  }

  void norm_hidden(int64_t t) {
    const int64_t D = n_.D;
    const Range rows = team_.range(rows_);
    const int64_t count = rows.last - rows.first, begin = rows.first * D;
    T* d_hidden = now_in(p_.d_hidden, s_.d_hidden, t, D) + begin;
    rms_silu_backward(count, D, at(p_.hidden, t, D) + begin, ptr<T>(p_.w.n_hidden), eps_, s_.d_act + begin, d_hidden,
                      now(s_.act, t, D) + begin, mine_.n_hidden);
    if (!has_all_rows()) copy_rows(1, count * D, d_hidden, 0, at(p_.d_hidden, t, D) + begin, 0);
    keep_operand(count * D, d_hidden, s_.o_hidden + begin);
  }
  const O* d_hidden(int64_t t) const {
    return operand_of<T, O>(now_in(p_.d_hidden, s_.d_hidden, t, n_.D), s_.o_hidden);
  }

  void embeds(int64_t t) {
    const int64_t D = n_.D, J = n_.J(), X = n_.X(), panels = w_.embeds.panels();
    const Range tasks = team_.range(panels);
    for (int64_t panel = tasks.first; panel < tasks.last; ++panel) {
      T* out = s_.d_x + panel * kPanelOf<O>;
      for (int64_t g = 0; g < n_.G; ++g) {
        const Start<T> start{g > 0 ? out : nullptr, X};
        multiply(rows_, d_hidden(t) + g * J, D, w_.embeds, g * panels + panel, start, out, X);
      }
    }
  }

  void own(int64_t t) {
    const int64_t D = n_.D, J = n_.J();
    const Range tasks = team_.range(w_.own.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / w_.own.panels(), panel = task % w_.own.panels();
      multiply(rows_, d_hidden(t) + g * J, D, w_.own, task, s_.d_carry + g * J + panel * kPanelOf<O>, D);
    }
  }

  // Row r of embedding i: its norm's gradient is added to d_scale, and its own one is also left in `operand`.
  void norm_embedding(int64_t t, int64_t r, int64_t i, const void* scale, T* d_scale, O* operand) {
    const int64_t X = n_.X(), U = n_.U, k = r * X + i * U;
    T* d_embed = now(s_.d_embeds, t, X) + k;
    rms_silu_backward(1, U, at(p_.embeds, t, X) + k, ptr<T>(scale), eps_, s_.d_x + k, d_embed, now(s_.embeds, t, X) + k,
                      d_scale);
    convert(U, d_embed, operand);
  }

  void norm_carry(int64_t t, int64_t r) {
    O* d_embed = s_.d_embed + r * n_.U;
    norm_embedding(t, r, 0, p_.w.n_carry, mine_.n_carry, d_embed);
    if (first(t, r)) zero_rows(1, n_.U, d_embed, n_.U);
  }

  // The gradient of the carry before the first step, once that step is done.
  void finish() {
    const int64_t D = n_.D;
    const Range tasks = team_.range(w_.carry.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t panels = w_.carry.panels(), d = task / panels * n_.J() + task % panels * kPanelOf<O>;
      const int64_t width = w_.carry.width(task % panels);
      T* out = ptr<T>(p_.d_h0) + row0_ * D + d;
      copy_rows(rows_, width, s_.d_carry + d, D, out, D);
      for (int64_t r = 0; r < rows_; ++r)
        if (first(0, r)) zero_rows(1, width, out + r * D, D);
      multiply(rows_, s_.d_embed, n_.U, w_.carry, task, out, D);
    }
  }

  // The weights' gradients of the chunk that begins with step t.
  void weights(int64_t t, int64_t count) {
    const int64_t D = n_.D, U = n_.U, X = n_.X(), J = n_.J(), G = n_.G;
    const T* d_hidden = now_in(p_.d_hidden, s_.d_hidden, t, D);
    const GradProduct<T> products[] = {
        {1, U, D, s_.d_embeds, X, 0, s_.past, D, shared_.w_carry},
        {G, J, J, s_.past, D, J, d_hidden, D, shared_.w_own},
        {G, X, J, s_.embeds, X, 0, d_hidden, D, shared_.w_embeds},
        {G, J, 3 * J, s_.act, D, J, s_.d_gates, 3 * D, shared_.w_gates},
    };
    add_products<T, O>(products, count, team_, starts_sums(t));
    add_columns(count, s_.d_embeds, U, X, shared_.b_carry, team_);
  }

 private:
  const BlockGruScanBackward& p_;
  const BlockGruSizes& n_;
  const GruBackWeights<T, O>& w_;
  const int64_t row0_, rows_;
  const Team team_;
  const GruBackScratch<T, O>& s_;
  const GruGrads<T>&shared_, &mine_;
  const T eps_;
  const int64_t steps_;
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
