// The steps of DreamerV3's recurrent core, for the kernels that walk through sequences of it.
#pragma once

#include "fastwm/params/block_gru_scan.h"
#include "primitives/norms.h"
#include "primitives/pack.h"
#include "primitives/parts.h"

namespace fastwm::FASTWM_ISA {
namespace {

inline Weight gate_of(const BlockGruWeights& w, int64_t J, int part, int64_t size) {
  return {static_cast<const char*>(w.gates.data) + part * J * w.gates.sn * size, w.gates.sg, w.gates.sk, w.gates.sn};
}

// The block GRU's new carry from the gates' sums. r and u replace their sums, so that the backward pass need not compute
// them again.
template <typename T, typename O>
void gates_row(int64_t width, T* reset, const T* cand, T* update, T bias, const T* prev, T* deter, O* operand) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const auto gates = block_gru_gates(reset[i], cand[i], update[i] + bias);
    reset[i] = gates.reset;
    update[i] = gates.update;
    deter[i] = block_gru_carry(gates.update, gates.cand, prev[i]);
  }
  convert(width, deter, operand);
}

// T is what sums, norms and the carry are in, O what products multiply.
template <typename T, typename O>
struct GruWeights {
  Packed<O> carry, own, embeds, gates[3];

  GruWeights(const BlockGruSizes& n, const BlockGruWeights& w, Packings<O>& packings) : GruWeights(n) {
    packings.add(carry, w.carry);
    packings.add(own, w.own);
    packings.add(embeds, w.embeds);
    for (int i = 0; i < 3; ++i) packings.add(gates[i], gate_of(w, n.J(), i, sizeof(T)));
  }

 private:
  explicit GruWeights(const BlockGruSizes& n)
      : carry{1, n.D, n.U}, own{n.G, n.J(), n.J()}, embeds{n.G, n.X(), n.J()},
        gates{{n.G, n.J(), n.J()}, {n.G, n.J(), n.J()}, {n.G, n.J(), n.J()}} {}
};

// A team's scratch: operands of products, and what is not saved.
template <typename T, typename O>
struct GruScratch {
  O *h, *x, *act;                     // operands [R, D] [R, E U] [R, D]
  T *carry, *embeds, *hidden, *tile;  // [R, U] [R, E U] [R, D], of each member [R, 3 panels]

  void place(Arena& arena, const BlockGruSizes& n, int64_t rows, int64_t members) {
    for (O** operand : {&h, &act}) *operand = arena.take<O>(rows * n.D);
    x = arena.take<O>(rows * n.X());
    hidden = arena.take<T>(rows * n.D);
    carry = arena.take<T>(rows * n.U);
    embeds = arena.take<T>(rows * n.X());
    tile = arena.take<T>(members * rows * kGates);
  }
  static constexpr int64_t kGates = 3 * kPanelOf<O>;
};

// The first column of a task of `w`, whose blocks have J columns each.
template <typename O>
int64_t first_column(const Packed<O>& w, int64_t task, int64_t J) {
  return task / w.panels() * J + task % w.panels() * kPanelOf<O>;
}

// The stages of one step, as one member of a team computes them. The scratch has their operands: h, the carry before the
// step, and x, its embeddings after norm and SiLU.
template <typename T, typename O>
class GruStep {
 public:
  GruStep(const BlockGruSizes& n, const BlockGruWeights& w, const GruWeights<T, O>& packed, int64_t rows, Team team,
          const GruScratch<T, O>& s, double update_bias, double eps)
      : n_(n), w_(w), packed_(packed), rows_(rows), team_(team), s_(s), update_bias_(static_cast<T>(update_bias)),
        eps_(static_cast<T>(eps)) {}

  // The carry's part of the embeddings, before its norm.
  void embed_carry(Range tasks) const {
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t u = task * kPanelOf<O>;
      multiply(rows_, s_.h, n_.D, packed_.carry, task, Start<T>{ptr<T>(w_.b_carry) + u, 0}, s_.carry + u, n_.U);
    }
  }

  // pre [R, D] = in + x W + h W
  void hidden(Start<T> in, T* pre) const {
    const int64_t D = n_.D, J = n_.J();
    const Range tasks = team_.range(packed_.own.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / packed_.own.panels(), d = first_column(packed_.own, task, J);
      if (in.stride > 0 && task + 1 < tasks.last)
        fetch_rows(rows_, kPanelOf<O>, in.data + first_column(packed_.own, task + 1, J), in.stride);
      multiply(rows_, s_.x, n_.X(), packed_.embeds, task, in.at(0, d), pre + d, D);
      multiply(rows_, s_.h + g * J, D, packed_.own, task, pre + d, D);
    }
  }

  void norm_hidden(const T* pre) const {
    const Range rows = team_.range(rows_);
    rms_silu(rows.last - rows.first, n_.D, pre + rows.first * n_.D, n_.D, ptr<T>(w_.n_hidden), eps_,
             s_.act + rows.first * n_.D, n_.D);
  }

  // Writes the new carry to next [R, D] and the scratch. prev(r) is row r of the carry before, null where that is zero.
  // A task's three gates are made side by side in a tile and copied to `kept` [R, G, 3, J], if there is one, as they are
  // used.
  template <typename Prev>
  void gates(Prev prev, T* next, T* kept) const {
    const int64_t D = n_.D, J = n_.J(), kWidth = GruScratch<T, O>::kGates;
    T* tile = s_.tile + team_.rank * rows_ * kWidth;
    const Packed<O>& shape = packed_.gates[0];
    const Range tasks = team_.range(shape.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / shape.panels(), panel = task % shape.panels(), j = panel * kPanelOf<O>, d = g * J + j;
      const int64_t width = shape.width(panel);
      T* to = kept ? kept + 3 * g * J + j : nullptr;
      for (int i = 0; i < 3; ++i) {
        const Start<T> bias{ptr<T>(w_.b_gates) + (3 * g + i) * J + j, 0};
        if (to) fetch_rows<true>(rows_, width, to + i * J, 3 * D);
        multiply(rows_, s_.act + g * J, D, packed_.gates[i], task, bias, tile + i * kPanelOf<O>, kWidth);
      }
      for (int64_t r = 0; r < rows_; ++r) {
        T *reset = tile + r * kWidth, *cand = reset + kPanelOf<O>, *update = cand + kPanelOf<O>;
        const T zeros[kPanelOf<O>] = {};
        const T* before = prev(r);
        gates_row(width, reset, cand, update, update_bias_, before ? before + d : zeros, next + r * D + d,
                  s_.h + r * D + d);
        for (int i = 0; to && i < 3; ++i) copy_rows(1, width, reset + i * kPanelOf<O>, 0, to + r * 3 * D + i * J, 0);
      }
    }
  }

 private:
  const BlockGruSizes n_;
  const BlockGruWeights w_;
  const GruWeights<T, O>& packed_;
  const int64_t rows_;
  const Team team_;
  const GruScratch<T, O>& s_;
  const T update_bias_, eps_;
};

// The steps of a sequence that may reset, in their order; a barrier belongs after each that is given to the team's tasks
// or rows, unless the next one reads only the same rows.
template <typename T, typename O>
class GruSteps {
 public:
  GruSteps(const BlockGruScan& p, const GruWeights<T, O>& w, int64_t first_row, int64_t rows, Team team,
           const GruScratch<T, O>& s)
      : p_(p), n_(p.n), carry_(w.carry), row0_(first_row), rows_(rows), team_(team), s_(s), eps_(p.eps),
        step_(p.n, p.w, w, rows, team, s, p.update_bias, p.eps) {}

  // Row row0_ of step t, counted through [T, B].
  int64_t base(int64_t t) const { return t * n_.B + row0_; }
  bool first(int64_t t, int64_t r) const { return p_.is_first[base(t) + r]; }

  void start() {
    const Range rows = team_.range(rows_);
    convert((rows.last - rows.first) * n_.D, ptr<T>(p_.h0) + (row0_ + rows.first) * n_.D, s_.h + rows.first * n_.D);
    team_.wait();
    embed_carry(team_.range(carry_.tasks()));
    team_.wait();
    forget(0);
  }

  // The carry's part of the embeddings that the next step reads.
  void embed_carry(Range tasks) const { step_.embed_carry(tasks); }

  // Forget h where the next step is a first one.
  void forget(int64_t next) {
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r)
      if (first(next, r)) zero_rows(1, n_.D, s_.h + r * n_.D, n_.D);
  }

  // Where embedding i of row r is put together before its norm.
  T* embedding(int64_t t, int64_t r, int64_t i) const {
    return saved(t, p_.embeds, s_.embeds, n_.X()) + r * n_.X() + i * n_.U;
  }

  void norm_embedding(int64_t t, int64_t r, int64_t i, const void* scale) const {
    rms_silu(1, n_.U, embedding(t, r, i), n_.X(), ptr<T>(scale), eps_, s_.x + r * n_.X() + i * n_.U, n_.X());
  }

  void norm_carry(int64_t t, int64_t r) const {
    copy_rows(1, n_.U, first(t, r) ? ptr<T>(p_.w.b_carry) : s_.carry + r * n_.U, n_.U, embedding(t, r, 0), n_.U);
    norm_embedding(t, r, 0, p_.w.n_carry);
  }

  void hidden(int64_t t) const {
    step_.hidden({ptr<T>(p_.hidden_in) + base(t) * n_.D, n_.D}, saved(t, p_.hidden, s_.hidden, n_.D));
  }

  void norm_hidden(int64_t t) const { step_.norm_hidden(saved(t, p_.hidden, s_.hidden, n_.D)); }

  void gates(int64_t t) const {
    const T* before = t > 0 ? ptr<T>(p_.h) + base(t - 1) * n_.D : ptr<T>(p_.h0) + row0_ * n_.D;
    step_.gates([&](int64_t r) { return first(t, r) ? nullptr : before + r * n_.D; }, ptr<T>(p_.h) + base(t) * n_.D,
                p_.gates ? ptr<T>(p_.gates) + base(t) * 3 * n_.D : nullptr);
  }

 private:
  // Row row0_ of step t in an array that is saved or, where it is not wanted, in scratch.
  T* saved(int64_t t, void* array, T* scratch, int64_t width) const {
    return array ? ptr<T>(array) + base(t) * width : scratch;
  }

  const BlockGruScan& p_;
  const BlockGruSizes& n_;
  const Packed<O>& carry_;
  const int64_t row0_, rows_;
  const Team team_;
  const GruScratch<T, O>& s_;
  const T eps_;
  const GruStep<T, O> step_;
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
