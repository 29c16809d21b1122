// The steps of DreamerV3's recurrent core, for the kernels that walk through sequences of it.
#pragma once

#include <initializer_list>

#include "rssm_plan.h"
#include "fastwm/block_gru_scan.h"

namespace fastwm::FASTWM_ISA {
namespace {

inline Weight gate_of(const BlockGruWeights& w, int64_t J, int part, int64_t size) {
  return {static_cast<const char*>(w.gates.data) + part * J * w.gates.sn * size, w.gates.sg, w.gates.sk, w.gates.sn};
}

// T is what sums, norms and the carry are in, O what products multiply.
template <typename T, typename O>
struct GruWeights {
  Packed<O> carry, own, embeds, gates[3];

  GruWeights(const BlockGruScan& p, Packings<O>& packings) : GruWeights(p.n) {
    packings.add(carry, p.w.carry);
    packings.add(own, p.w.own);
    packings.add(embeds, p.w.embeds);
    for (int i = 0; i < 3; ++i) packings.add(gates[i], gate_of(p.w, p.n.J(), i, sizeof(T)));
  }

 private:
  explicit GruWeights(const BlockGruSizes& n)
      : carry{1, n.D, n.U}, own{n.G, n.J(), n.J()}, embeds{n.G, n.X(), n.J()},
        gates{{n.G, n.J(), n.J()}, {n.G, n.J(), n.J()}, {n.G, n.J(), n.J()}} {}
};

// A team's scratch: operands of products, and what is not saved.
template <typename T, typename O>
struct GruScratch {
  O *h, *x, *act;                        // operands [R, D] [R, E U] [R, D]
  T *carry, *embeds, *hidden, *tile;     // [R, U] [R, E U] [R, D], of each member [R, 3 panels]

  GruScratch(const BlockGruSizes& n, int64_t rows, int64_t members, Arena& arena) {
    for (O** operand : {&h, &act}) *operand = arena.take<O>(rows * n.D);
    x = arena.take<O>(rows * n.X());
    hidden = arena.take<T>(rows * n.D);
    carry = arena.take<T>(rows * n.U);
    embeds = arena.take<T>(rows * n.X());
    tile = arena.take<T>(members * rows * kGates);
  }
  static constexpr int64_t kGates = 3 * kPanelOf<O>;
  static int64_t bytes(const BlockGruSizes& n, int64_t rows, int64_t members) {
    return (n.U + 2 * n.X() + 3 * n.D + members * kGates) * rows * static_cast<int64_t>(sizeof(T)) + 512;
  }
};

// Where the columns of a task of `w` begin, whose blocks of J columns lie side by side.
template <typename O>
int64_t first_column(const Packed<O>& w, int64_t task, int64_t J) {
  return task / w.panels() * J + task % w.panels() * kPanelOf<O>;
}

// The core's stages as one member of a team sees them, in their order; a barrier belongs after each that is given to
// the team's tasks or rows, unless the next one reads only the same rows.
template <typename T, typename O>
class GruSteps {
 public:
  GruSteps(const BlockGruScan& p, const GruWeights<T, O>& w, int64_t first_row, int64_t rows, Team team,
           const GruScratch<T, O>& s)
      : p_(p), n_(p.n), w_(w), row0_(first_row), rows_(rows), team_(team), s_(s), eps_(p.eps) {}

  // Row row0_ of step t, counted through [T, B].
  int64_t base(int64_t t) const { return t * n_.B + row0_; }
  bool first(int64_t t, int64_t r) const { return p_.is_first[base(t) + r]; }

  void start() {
    const Range rows = team_.range(rows_);
    convert((rows.last - rows.first) * n_.D, ptr<T>(p_.h0) + (row0_ + rows.first) * n_.D, s_.h + rows.first * n_.D);
    team_.wait();
    embed_carry(team_.range(w_.carry.tasks()));
    team_.wait();
    forget(0);
  }

  // The carry's part of the embeddings that the next step reads.
  void embed_carry(Range tasks) {
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t u = task * kPanelOf<O>;
      multiply(rows_, s_.h, n_.D, w_.carry, task, Start<T>{ptr<T>(p_.w.b_carry) + u, 0}, s_.carry + u, n_.U);
    }
  }

  // Forget h where the next step is a first one.
  void forget(int64_t next) {
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r)
      if (first(next, r)) zero_rows(1, n_.D, s_.h + r * n_.D, n_.D);
  }

  // Where embedding i of row r is put together before its norm.
  T* embedding(int64_t t, int64_t r, int64_t i) const {
    return saved(t, p_.saved.embeds, s_.embeds, n_.X()) + r * n_.X() + i * n_.U;
  }

  void norm_embedding(int64_t t, int64_t r, int64_t i, const void* scale) const {
    rms_silu(1, n_.U, embedding(t, r, i), n_.X(), ptr<T>(scale), eps_, s_.x + r * n_.X() + i * n_.U, n_.X());
  }

  void norm_carry(int64_t t, int64_t r) const {
    copy_rows(1, n_.U, first(t, r) ? ptr<T>(p_.w.b_carry) : s_.carry + r * n_.U, n_.U, embedding(t, r, 0), n_.U);
    norm_embedding(t, r, 0, p_.w.n_carry);
  }

  void hidden(int64_t t) {
    const int64_t D = n_.D, J = n_.J();
    T* pre = saved(t, p_.saved.hidden, s_.hidden, D);
    const Range tasks = team_.range(w_.own.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / w_.own.panels(), d = first_column(w_.own, task, J);
      const T* in = ptr<T>(p_.hidden_in) + base(t) * D;
      if (task + 1 < tasks.last) fetch_rows(rows_, kPanelOf<O>, in + first_column(w_.own, task + 1, J), D);
      multiply(rows_, s_.x, n_.X(), w_.embeds, task, Start<T>{in + d, D}, pre + d, D);
      multiply(rows_, s_.h + g * J, D, w_.own, task, pre + d, D);
    }
  }

  void norm_hidden(int64_t t) {
    const T* pre = saved(t, p_.saved.hidden, s_.hidden, n_.D);
    const Range rows = team_.range(rows_);
    rms_silu(rows.last - rows.first, n_.D, pre + rows.first * n_.D, n_.D, ptr<T>(p_.w.n_hidden), eps_,
             s_.act + rows.first * n_.D, n_.D);
  }

  // A task's three gates lie side by side while they are made, and leave for the saved ones as they are used.
  void gates(int64_t t) {
    const int64_t D = n_.D, J = n_.J(), kWidth = GruScratch<T, O>::kGates;
    const T* prev = t > 0 ? ptr<T>(p_.h) + base(t - 1) * D : ptr<T>(p_.h0) + row0_ * D;
    T* tile = s_.tile + team_.rank * rows_ * kWidth;
    const Packed<O>& shape = w_.gates[0];
    const Range tasks = team_.range(shape.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / shape.panels(), panel = task % shape.panels(), j = panel * kPanelOf<O>, d = g * J + j;
      const int64_t width = shape.width(panel);
      T* kept = p_.saved.gates ? ptr<T>(p_.saved.gates) + base(t) * 3 * D + 3 * g * J + j : nullptr;
      for (int i = 0; i < 3; ++i) {
        const Start<T> bias{ptr<T>(p_.w.b_gates) + (3 * g + i) * J + j, 0};
        if (kept) fetch_rows<true>(rows_, width, kept + i * J, 3 * D);
        multiply(rows_, s_.act + g * J, D, w_.gates[i], task, bias, tile + i * kPanelOf<O>, kWidth);
      }
      for (int64_t r = 0; r < rows_; ++r) {
        T *reset = tile + r * kWidth, *cand = reset + kPanelOf<O>, *update = cand + kPanelOf<O>;
        const T zeros[kPanelOf<O>] = {};
        gates_row(width, reset, cand, update, static_cast<T>(p_.update_bias), first(t, r) ? zeros : prev + r * D + d,
                  ptr<T>(p_.h) + (base(t) + r) * D + d, s_.h + r * D + d);
        for (int i = 0; kept && i < 3; ++i)
          copy_rows(1, width, reset + i * kPanelOf<O>, 0, kept + r * 3 * D + i * J, 0);
      }
    }
  }

 private:
  // Row row0_ of step t in an array that is saved or, where it is not wanted, in scratch.
  T* saved(int64_t t, void* array, T* scratch, int64_t width) const {
    return array ? ptr<T>(array) + base(t) * width : scratch;
  }

  const BlockGruScan& p_;
  const BlockGruSizes& n_;
  const GruWeights<T, O>& w_;
  const int64_t row0_, rows_;
  const Team team_;
  const GruScratch<T, O>& s_;
  const T eps_;
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
