#include "actor_layers.h"
#include "gru_rssm_core.h"
#include "primitives/linear.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename T, typename O>
struct Scratch {
  GruRssmScratch<T, O> step;
  O *deter, *act, *action;       // operands [R, D] [R, W] [R, A], W the actor's layers
  T *pre, *input_in, *layer_in;  // [R, actor_columns] [R, U] [R, U]
  Arena arena;

  Scratch(const GruRssmImagine& p, int64_t rows) : step(p.n, rows), arena([&](Arena& a) { place(a, p, rows); }) {
    copy_rows(rows, p.n.U, ptr<T>(p.b_layer), 0, layer_in, p.n.U);
  }

 private:
  void place(Arena& arena, const GruRssmImagine& p, int64_t rows) {
    deter = arena.take<O>(rows * p.n.D);
    act = arena.take<O>(rows * p.actor.U);
    action = arena.take<O>(rows * p.A);
    pre = arena.take<T>(rows * actor_columns(p.actor));
    for (T** part : {&input_in, &layer_in}) *part = arena.take<T>(rows * p.n.U);
  }
};

// The dream of some rows, by one thread.
template <typename T, typename O>
class Imagine {
 public:
  Imagine(const GruRssmImagine& p, const GruRssmPacked<T, O>& model, const ActorPacked<O>& actor, const T* table,
          int64_t first_row, int64_t rows, const Scratch<T, O>& s, Stop& stop)
      : p_(p), n_(p.n), net_(p.actor), w_(actor), table_(table), row0_(first_row), rows_(rows), s_(s),
        team_{0, 1, nullptr, &stop}, core_(n_, p.w, model, rows, team_, s.step) {}

  void run() {
    const AmxTiles tiles(use_amx<O>(), rows_);
    const T *deter = ptr<T>(p_.deter0) + row0_ * n_.D, *stoch = ptr<T>(p_.stoch0) + row0_ * n_.Z();
    core_.start(deter);
    for (int64_t t = 0; t < n_.T && !team_.leaves(t); ++t) {
      base_ = t * n_.B + row0_;
      act(deter, stoch);
      const GruRssmStep<T> step{nullptr,
                                deter,
                                stoch,
                                s_.input_in,
                                s_.layer_in,
                                at(p_.noise, n_.S),
                                saved(p_.input, n_.U, s_.step.input),
                                saved(p_.gates, gates_of(p_.w.cell) * n_.D, s_.step.gates),
                                saved(p_.layer, n_.U, s_.step.layer),
                                at(p_.deter, n_.D),
                                at(p_.stoch, n_.Z()),
                                at(p_.stats, n_.O())};
      core_.step(step);
      deter = step.deter, stoch = step.stoch;
    }
  }

 private:
  T* at(void* array, int64_t width) const { return ptr<T>(array) + base_ * width; }
  const T* at(const void* array, int64_t width) const { return ptr<T>(array) + base_ * width; }
  T* saved(void* array, int64_t width, T* scratch) const { return array ? at(array, width) : scratch; }

  // The action at the states before the step, given or the actor's, and its part of the input layer.
  void act(const T* deter, const T* stoch) const {
    const T* action = p_.action ? at(p_.action, p_.A) : choose(deter, stoch);
    convert(rows_ * p_.A, action, s_.action);
    linear(rows_, s_.action, p_.A, w_.action, 0, ptr<T>(p_.b_input), s_.input_in, n_.U);
  }

  const T* choose(const T* deter, const T* stoch) const {
    const int64_t U = net_.U, columns = actor_columns(net_);
    T* pre = saved(p_.actor_pre, columns, s_.pre);
    convert(rows_ * n_.D, deter, s_.deter);
    linear(rows_, s_.deter, n_.D, w_.first, 0, ptr<T>(net_.b), pre, columns);
    for (int64_t r = 0; r < rows_; ++r)
      for_each_nonzero(n_.Z(), stoch + r * n_.Z(),
                       [&](int64_t z, T x) { add_scaled(U, x, table_ + z * U, pre + r * columns); });
    for (int64_t i = 0; i <= net_.L; ++i) {
      if (i > 0) linear(rows_, s_.act, U, w_.rest, i - 1, ptr<T>(net_.bs) + (i - 1) * U, pre + i * U, columns);
      with_activation(p_.w.activation, [&](auto f) {
        for (int64_t r = 0; r < rows_; ++r)
          layer_row<decltype(f)::value>(U, pre + i * U + r * columns, actor_norm<T>(net_, i), static_cast<T>(p_.w.eps),
                                        s_.act + r * U);
      });
    }
    T *outputs = pre + (1 + net_.L) * U, *action = at(p_.actions, p_.A);
    linear(rows_, s_.act, U, w_.out, 0, ptr<T>(net_.b_out), outputs, columns);
    const T* noise = at(p_.action_noise, p_.draws);
    for (int64_t r = 0; r < rows_; ++r)
      policy_row(p_, T(0), outputs + r * columns, noise + r * p_.draws, action + r * p_.A);
    return action;
  }

  const GruRssmImagine& p_;
  const GruRssmSizes& n_;
  const MlpLayers& net_;
  const ActorPacked<O>& w_;
  const T* table_;  // [Z, U]: the latent's part of the first layer, rows to be gathered
  const int64_t row0_, rows_;
  const Scratch<T, O>& s_;
  const Team team_;
  GruRssmCore<T, O> core_;
  int64_t base_ = 0;  // row row0_ of the step, counted through [H, N]
};

template <typename T, typename O>
void imagine(const GruRssmImagine& p) {
  const int threads = max_threads();
  GruRssmPacked<T, O> model(p.n, p.w);
  ActorPacked<O> actor(p.actor, p.n.Z(), p.w_action, p.A, p.n.U, false);
  T* table;
  const Arena arena([&](Arena& a) {
    model.place(a, p.n), actor.packings.place(a);
    table = a.take<T>(p.n.Z() * p.actor.U);
  });
  model.pack(p.n, p.w, threads);
  actor.packings.pack(threads);
  pack_rows(p.actor.w, p.n.D, p.n.Z(), p.actor.U, table);
  Stop stop;
  for_each_part(p.n.B, model.packings.weights() + actor.packings.weights(), threads, [&](int64_t first, int64_t rows) {
    const Scratch<T, O> scratch(p, rows);
    Imagine<T, O>(p, model, actor, table, first, rows, scratch, stop).run();
  });
}

}  // namespace

void gru_rssm_imagine_kernel(const GruRssmImagine& p) {
  with_types(p, [&](auto t, auto o) { imagine<decltype(t), decltype(o)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
