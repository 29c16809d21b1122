#include "gru_rssm_core_backward.h"
#include "primitives/weight_grads.h"
#include "fastwm/params/gru_rssm.h"

namespace fastwm::FASTWM_ISA {
namespace {

// The operands of the weights' gradients, of some steps: [steps, R, width].
template <typename T, typename O>
struct Scratch {
  GruRssmScratchBackward<T, O> step;
  T *x, *past_h, *reset_h, *deter, *act, *d_input, *d_gates, *d_layer, *d_stats;
  const T** past_stoch;  // [steps, R]: null where forgotten
  Arena arena;

  Scratch(const GruRssmSizes& n, int64_t rows) : step(n, rows), arena([&](Arena& a) { place(a, n, rows); }) {}

 private:
  void place(Arena& arena, const GruRssmSizes& n, int64_t rows) {
    const int64_t chunk = chunk_steps(n.T, rows, n.D) * rows;
    for (T** part : {&x, &act, &d_input, &d_layer}) *part = arena.take<T>(chunk * n.U);
    for (T** part : {&past_h, &reset_h, &deter}) *part = arena.take<T>(chunk * n.D);
    d_gates = arena.take<T>(chunk * 4 * n.D);
    d_stats = arena.take<T>(chunk * n.O());
    past_stoch = arena.take<const T*>(chunk);
  }
};

template <typename T, typename O>
class ObserveBackward {
 public:
  using Norms = typename GruRssmCoreBackward<T, O>::Norms;

  // `sums` takes the weights' gradients of the whole team, `norms` those of the norms that this member sums.
  ObserveBackward(const GruRssmObserveBackward& p, const GruRssmPackedBackward<T, O>& packed, int64_t first_row,
                  int64_t rows, Team team, const Scratch<T, O>& s, T* sums, const Norms& norms)
      : p_(p), n_(p.n), at_(p.n), row0_(first_row), rows_(rows), steps_(chunk_steps(p.n.T, rows, p.n.D)), team_(team),
        s_(s), sums_(sums), core_(n_, p.w, packed, rows, team, s.step, norms) {}

  void run() {
    const AmxTiles tiles(use_amx<O>(), rows_);
    core_.start();
    for (int64_t t = n_.T - 1; t >= 0 && !team_.leaves(n_.T - 1 - t); --t) {
      base_ = t * n_.B + row0_;
      slot_ = t % steps_ * rows_;
      past(t);
      core_.step(step(t));
      leave();
      if (t % steps_ == 0) weights(t, (n_.T - t < steps_ ? n_.T - t : steps_) * rows_);
      team_.wait();
    }
    const Range rows = team_.range(rows_);
    const int64_t count = rows.last - rows.first, row = row0_ + rows.first;
    copy_rows(1, count * n_.D, s_.step.d_deter + rows.first * n_.D, 0, ptr<T>(p_.d_deter0) + row * n_.D, 0);
    copy_rows(1, count * n_.Z(), s_.step.d_stoch + rows.first * n_.Z(), 0, ptr<T>(p_.d_stoch0) + row * n_.Z(), 0);
  }

 private:
  const T* at(const void* array, int64_t width) const { return ptr<T>(array) + base_ * width; }
  T* now(T* chunk, int64_t width) const { return chunk + slot_ * width; }
  // A chunk of an array [T, B, width] is the array's own where it holds all rows; elsewhere `chunk`, to be copied.
  bool has_all_rows() const { return rows_ == n_.B; }
  T* now_in(void* array, T* chunk, int64_t width) const {
    return has_all_rows() ? ptr<T>(array) + base_ * width : now(chunk, width);
  }

  const T* past_deter(int64_t t) const {
    return t > 0 ? at(p_.deter, n_.D) - n_.B * n_.D : ptr<T>(p_.deter0) + row0_ * n_.D;
  }

  GruRssmStepBackward<T> step(int64_t t) const {
    const int64_t D = n_.D, U = n_.U, Z = n_.Z(), wide = gates_of(p_.w.cell) * D;
    return {p_.is_first + base_,
            past_deter(t),
            at(p_.noise, n_.S),
            at(p_.stats, n_.O()),
            at(p_.input, U),
            at(p_.gates, wide),
            at(p_.layer, U),
            at(p_.g_deter, D),
            at(p_.g_stoch, Z),
            at(p_.g_stats, n_.O()),
            now(s_.x, U),
            now(s_.past_h, D),
            now(s_.reset_h, D),
            now(s_.act, U),
            now_in(p_.d_input_in, s_.d_input, U),
            now(s_.d_gates, wide),
            now_in(p_.d_layer_in, s_.d_layer, U),
            now(s_.d_stats, n_.O())};
  }

  // This step's inputs that only weights' gradients read.
  void past(int64_t t) const {
    const int64_t Z = n_.Z();
    const T* stoch = t > 0 ? at(p_.stoch, Z) - n_.B * Z : ptr<T>(p_.stoch0) + row0_ * Z;
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r)
      s_.past_stoch[slot_ + r] = p_.is_first[base_ + r] ? nullptr : stoch + r * Z;
    if (has_all_rows()) return;
    copy_rows(rows.last - rows.first, n_.D, at(p_.deter, n_.D) + rows.first * n_.D, n_.D,
              now(s_.deter, n_.D) + rows.first * n_.D, n_.D);
  }

  void leave() const {
    if (has_all_rows()) return;
    const Range rows = team_.range(rows_);
    const int64_t count = (rows.last - rows.first) * n_.U, first = rows.first * n_.U;
    copy_rows(1, count, now(s_.d_input, n_.U) + first, 0, ptr<T>(p_.d_input_in) + base_ * n_.U + first, 0);
    copy_rows(1, count, now(s_.d_layer, n_.U) + first, 0, ptr<T>(p_.d_layer_in) + base_ * n_.U + first, 0);
  }

  void weights(int64_t t, int64_t count) const {
    const int64_t D = n_.D, U = n_.U, wide = gates_of(p_.w.cell) * D;
    const GruCell cell = p_.w.cell;
    const T* new_input = cell == GruCell::planet_gru ? s_.reset_h : s_.past_h;
    const T *d_input = now_in(p_.d_input_in, s_.d_input, U), *d_layer = now_in(p_.d_layer_in, s_.d_layer, U);
    const T* deter = has_all_rows() ? at(p_.deter, D) : s_.deter;
    const GradProduct<T> products[] = {
        {1, 3 * D, U, s_.d_gates, wide, 0, s_.x, U, sums_ + at_.x},
        {1, 2 * D, D, s_.d_gates, wide, 0, s_.past_h, D, sums_ + at_.h},
        {1, D, D, s_.d_gates + wide - D, wide, 0, new_input, D, sums_ + at_.h + 2 * D * D},
        {1, U, D, d_layer, U, 0, deter, D, sums_ + at_.layer},
        {1, n_.O(), U, s_.d_stats, n_.O(), 0, s_.act, U, sums_ + at_.stats},
    };
    add_products<T, O>(products, count, team_, team_.size > 1 && t + steps_ >= n_.T);
    add_columns(count, s_.d_gates, 3 * D, wide, sums_ + at_.b_x, team_);
    if (cell == GruCell::gru) {
      add_columns(count, s_.d_gates, 2 * D, wide, sums_ + at_.b_h, team_);
      add_columns(count, s_.d_gates + wide - D, D, wide, sums_ + at_.b_h + 2 * D, team_);
    }
    add_columns(count, s_.d_stats, n_.O(), n_.O(), sums_ + at_.b_stats, team_);
    add_sparse_products(count, n_.Z(), s_.past_stoch, d_input, U, sums_ + at_.stoch, team_);
  }

  const GruRssmObserveBackward& p_;
  const GruRssmSizes& n_;
  const GruRssmGrads at_;
  const int64_t row0_, rows_, steps_;
  const Team team_;
  const Scratch<T, O>& s_;
  T* sums_;
  GruRssmCoreBackward<T, O> core_;
  int64_t base_ = 0, slot_ = 0;
};

template <typename T, typename O>
void observe_backward(const GruRssmObserveBackward& p) {
  const int threads = max_threads();
  GruRssmPackedBackward<T, O> packed(p.n, p.w);
  const Arena arena([&](Arena& a) { packed.packings.place(a); });
  packed.packings.pack(threads);
  const GruRssmGrads at(p.n);
  const int64_t U = p.n.U, D = p.n.D;
  const Range norms[] = {
      {at.n_input, at.n_input + 2 * U}, {at.n_gates, at.n_gates + 6 * D}, {at.n_layer, at.n_layer + 2 * U}};
  const Range products[] = {{at.x, at.b_x}, {at.h, at.b_h}, {at.layer, at.n_layer}, {at.stats, at.b_stats}};
  for_each_team_summing<Scratch<T, O>>(
      p.n.B, packed.packings.weights(), arena.bytes(), threads, at.size, ptr<T>(p.d_weights), norms, products,
      [&](int64_t rows, int64_t) { return Scratch<T, O>(p.n, rows); },
      [&](int64_t first, int64_t rows, Team team, const Scratch<T, O>& scratch, T* sums, T* own) {
        using Norms = typename ObserveBackward<T, O>::Norms;
        const Norms mine = own ? Norms{own, own + 2 * U, own + 2 * U + 6 * D}
                               : Norms{sums + at.n_input, sums + at.n_gates, sums + at.n_layer};
        ObserveBackward<T, O>(p, packed, first, rows, team, scratch, sums, mine).run();
      });
}

}  // namespace

void gru_rssm_observe_backward_kernel(const GruRssmObserveBackward& p) {
  with_types(p, [&](auto t, auto o) { observe_backward<decltype(t), decltype(o)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
