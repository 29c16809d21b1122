#include "actor_rows.h"
#include "gru_rssm_core.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename T, typename O>
struct Scratch {
  GruRssmScratch<T, O> step;
  O *deter, *act, *action;       // operands [R, D] [R, W] [R, A], W the actor's widest layer
  T *pre, *input_in, *layer_in;  // [R, actor.pre] [R, U] [R, U]
  Arena arena;

  Scratch(const GruRssmImagine& p, int64_t rows) : step(p.n, rows), arena([&](Arena& a) { place(a, p, rows); }) {
    copy_rows(rows, p.n.U, ptr<T>(p.b_layer), 0, layer_in, p.n.U);
  }

 private:
  void place(Arena& arena, const GruRssmImagine& p, int64_t rows) {
    deter = arena.take<O>(rows * p.n.D);
    act = arena.take<O>(rows * p.actor.widest);
    action = arena.take<O>(rows * p.actor.width);
    pre = arena.take<T>(rows * p.actor.pre);
    for (T** part : {&input_in, &layer_in}) *part = arena.take<T>(rows * p.n.U);
  }
};

// The dream of some rows, by one thread.
template <typename T, typename O>
class Imagine {
 public:
  Imagine(const GruRssmImagine& p, const GruRssmPacked<T, O>& model, const ActorPacked<T, O>& actor, int64_t first_row,
          int64_t rows, const Scratch<T, O>& s, Stop& stop)
      : p_(p), n_(p.n), a_(p.actor), w_(actor), row0_(first_row), rows_(rows), s_(s), team_{0, 1, nullptr, &stop},
        core_(n_, p.w, model, rows, team_, s.step) {}

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
                                saved(p_.saved.input, n_.U, s_.step.input),
                                saved(p_.saved.gates, p_.w.gates() * n_.D, s_.step.gates),
                                saved(p_.saved.layer, n_.U, s_.step.layer),
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
    const T* action = p_.given ? at(p_.given, a_.width) : choose(deter, stoch);
    convert(rows_ * a_.width, action, s_.action);
    linear(s_.action, a_.width, w_.action, ptr<T>(p_.b_input), s_.input_in, n_.U);
  }

  const T* choose(const T* deter, const T* stoch) const {
    T* pre = saved(p_.actor_pre, a_.pre, s_.pre);
    convert(rows_ * n_.D, deter, s_.deter);
    const O* x = s_.deter;
    for (int64_t i = 0; i < a_.count; ++i, x = s_.act) {
      const ActorLayer& layer = a_.layers[i];
      T* out = pre + layer.pre;
      linear(x, layer.K, w_.layers[i], ptr<T>(a_.params) + layer.bias(), out, a_.pre);
      for (int64_t r = 0; i == 0 && r < rows_; ++r)
        for_each_nonzero(n_.Z(), stoch + r * n_.Z(), [&](int64_t z, T x) {
          add_scaled(layer.N, x, ptr<T>(a_.params) + z * layer.N, out + r * a_.pre);
        });
      if (i + 1 == a_.count) break;
      with_activation(p_.w.activation, [&](auto f) {
        for (int64_t r = 0; r < rows_; ++r)
          layer_row<decltype(f)::value>(layer.N, out + r * a_.pre, actor_norm<T>(a_, layer), static_cast<T>(p_.w.eps),
                                        s_.act + r * layer.N);
      });
    }
    const T *outputs = pre + a_.layers[a_.count - 1].pre, *noise = at(p_.action_noise, a_.draws);
    T* action = at(p_.actions, a_.width);
    for (int64_t r = 0; r < rows_; ++r)
      policy_row(a_, outputs + r * a_.pre, noise + r * a_.draws, action + r * a_.width);
    return action;
  }

  // out = bias + x W
  void linear(const O* x, int64_t ldx, const Packed<O>& w, const T* bias, T* out, int64_t ldo) const {
    for (int64_t panel = 0; panel < w.panels(); ++panel) {
      const int64_t n = panel * kPanelOf<O>;
      multiply(rows_, x, ldx, w, panel, Start<T>{bias + n, 0}, out + n, ldo);
    }
  }

  const GruRssmImagine& p_;
  const GruRssmSizes& n_;
  const ActorNet& a_;
  const ActorPacked<T, O>& w_;
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
  ActorPacked<T, O> actor(p.actor, p.action, p.n.U, false);
  const Arena arena([&](Arena& a) { model.place(a, p.n), actor.packings.place(a); });
  model.pack(p.n, p.w, threads);
  actor.packings.pack(threads);
  Stop stop;
  for_each_part(p.n.B, model.packings.weights() + actor.packings.weights(), threads, [&](int64_t first, int64_t rows) {
    const Scratch<T, O> scratch(p, rows);
    Imagine<T, O>(p, model, actor, first, rows, scratch, stop).run();
  });
}

}  // namespace

void gru_rssm_imagine_kernel(const GruRssmImagine& p) {
  with_types(p, [&](auto t, auto o) { imagine<decltype(t), decltype(o)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
