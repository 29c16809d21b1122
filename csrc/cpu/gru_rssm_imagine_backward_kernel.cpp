#include "actor_layers.h"
#include "gru_rssm_core_backward.h"
#include "mlp_layers.h"
#include "primitives/weight_grads.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename T, typename O>
struct Scratch {
  GruRssmScratchBackward<T, O> step;
  T *x, *reset_h, *act, *d_input, *d_gates, *d_layer, *d_stats;  // what the model's step leaves and nobody reads
  T* d_norms;                                                    // [2 (U + 3D + U)]: the same
  T *d_action, *d_act, *zeros, *probs;                           // [R, A] [R, W] [W] [W], W the widest layer
  O* o_pre;                                                      // [R, W]
  // The operands of the weights' gradients, of some steps: [steps, R, D], and for each layer [steps, R, N].
  T *past_deter, *acts, *d_pre;
  const T** past_stoch;  // [steps, R]
  Arena arena;

  Scratch(const GruRssmImagineBackward& p, int64_t rows)
      : step(p.n, rows), arena([&](Arena& a) { place(a, p, rows); }) {}

 private:
  void place(Arena& arena, const GruRssmImagineBackward& p, int64_t rows) {
    const GruRssmSizes& n = p.n;
    const int64_t columns = actor_columns(p.actor), widest = actor_widest(p.actor);
    const int64_t chunk = chunk_steps(n.T, rows, n.D) * rows;
    for (T** part : {&x, &act, &d_input, &d_layer}) *part = arena.take<T>(rows * n.U);
    reset_h = arena.take<T>(rows * n.D);
    d_gates = arena.take<T>(rows * 4 * n.D);
    d_stats = arena.take<T>(rows * n.O());
    d_norms = arena.take_zeros<T>(4 * n.U + 6 * n.D);
    d_action = arena.take<T>(rows * p.A);
    d_act = arena.take<T>(rows * widest);
    o_pre = arena.take<O>(rows * widest);
    zeros = arena.take_zeros<T>(widest);
    probs = arena.take<T>(widest);
    past_deter = arena.take<T>(chunk * n.D);
    for (T** part : {&acts, &d_pre}) *part = arena.take<T>(chunk * columns);
    past_stoch = arena.take<const T*>(chunk);
  }
};

// Backward through the dream of some rows, by one thread; adds to `sums`, the gradient of the whole actor.
template <typename T, typename O>
class ImagineBackward {
 public:
  ImagineBackward(const GruRssmImagineBackward& p, const GruRssmPackedBackward<T, O>& model,
                  const ActorPacked<O>& actor, int64_t first_row, int64_t rows, const Scratch<T, O>& s, T* sums,
                  Stop& stop)
      : p_(p), n_(p.n), net_(p.actor), columns_(actor_columns(p.actor)), w_(actor), row0_(first_row), rows_(rows),
        steps_(chunk_steps(p.n.T, rows, p.n.D)), s_(s), sums_(p.actor, p.n.Z(), sums), stop_(stop),
        core_(n_, p.w, model, rows, kAlone, s.step,
              {s.d_norms, s.d_norms + 2 * n_.U, s.d_norms + 2 * n_.U + 6 * n_.D}) {}

  void run() {
    const AmxTiles tiles(use_amx<O>(), rows_);
    core_.start();
    for (int64_t t = n_.T - 1; t >= 0 && !stop_.before(n_.T - 1 - t, false); --t) {
      base_ = t * n_.B + row0_;
      slot_ = t % steps_ * rows_;
      core_.step(step(t));
      action();
      layers(t);
      if (t % steps_ == 0) weights((n_.T - t < steps_ ? n_.T - t : steps_) * rows_);
    }
  }

 private:
  static constexpr Team kAlone{0, 1, nullptr};

  const T* at(const void* array, int64_t width) const { return ptr<T>(array) + base_ * width; }
  ActorLayer layer(int64_t i) const { return actor_layer(net_, n_.Z(), i); }
  // A layer's rows in an array of the chunk, [steps, R, N].
  T* chunk(T* array, const ActorLayer& layer) const { return array + layer.column * steps_ * rows_; }
  T* now(T* array, const ActorLayer& layer) const { return chunk(array, layer) + slot_ * layer.N; }

  GruRssmStepBackward<T> step(int64_t t) const {
    const int64_t D = n_.D, U = n_.U;
    return {nullptr,
            t > 0 ? at(p_.deter, D) - n_.B * D : ptr<T>(p_.deter0) + row0_ * D,
            at(p_.noise, n_.S),
            at(p_.stats, n_.O()),
            at(p_.input, U),
            at(p_.gates, gates_of(p_.w.cell) * D),
            at(p_.layer, U),
            at(p_.g_deter, D),
            at(p_.g_stoch, n_.Z()),
            at(p_.g_stats, n_.O()),
            s_.x,
            s_.past_deter + slot_ * D,
            s_.reset_h,
            s_.act,
            s_.d_input,
            s_.d_gates,
            s_.d_layer,
            s_.d_stats};
  }

  // From the input layer to the action, and through its sample to the actor's outputs.
  void action() const {
    const ActorLayer out = layer(1 + net_.L);
    copy_rows(1, rows_ * p_.A, at(p_.g_actions, p_.A), 0, s_.d_action, 0);
    add_product(s_.step.o_input, n_.U, w_.action, 0, s_.d_action, p_.A);
    const T *outputs = at(p_.actor_pre, columns_) + out.column, *noise = at(p_.action_noise, p_.draws);
    for (int64_t r = 0; r < rows_; ++r)
      policy_row_backward(p_, outputs + r * columns_, noise + r * p_.draws, s_.d_action + r * p_.A, s_.zeros, s_.probs,
                          now(s_.d_pre, out) + r * out.N);
  }

  // From the actor's outputs to its first layer, whose input is cut off.
  void layers(int64_t t) const {
    const int64_t Z = n_.Z(), norm = net_.k * net_.U;
    const T* stoch = t > 0 ? at(p_.stoch, Z) - n_.B * Z : ptr<T>(p_.stoch0) + row0_ * Z;
    for (int64_t r = 0; r < rows_; ++r) s_.past_stoch[slot_ + r] = stoch + r * Z;
    for (int64_t i = net_.L; i >= 0; --i) {
      const ActorLayer above = layer(i + 1), own = layer(i);
      convert(rows_ * above.N, now(s_.d_pre, above), s_.o_pre);
      zero_rows(rows_, own.N, s_.d_act, own.N);
      add_product(s_.o_pre, above.N, i < net_.L ? w_.rest : w_.out, i < net_.L ? i : 0, s_.d_act, own.N);
      const T* pre = at(p_.actor_pre, columns_) + own.column;
      with_activation(p_.w.activation, [&](auto f) {
        for (int64_t r = 0; r < rows_; ++r)
          layer_row_backward<decltype(f)::value>(
              own.N, pre + r * columns_, actor_norm<T>(net_, i), static_cast<T>(p_.w.eps), s_.d_act + r * own.N,
              now(s_.d_pre, own) + r * own.N, now(s_.acts, own) + r * own.N, sums_.norms + i * norm);
      });
    }
  }

  // out += x W
  void add_product(const O* x, int64_t ldx, const Packed<O>& w, int64_t block, T* out, int64_t ldo) const {
    for (int64_t panel = 0; panel < w.panels(); ++panel)
      multiply(rows_, x, ldx, w, block * w.panels() + panel, out + panel * kPanelOf<O>, ldo);
  }

  // The weights' gradients of the chunk's `count` rows.
  void weights(int64_t count) const {
    const int64_t U = net_.U;
    for (int64_t i = 0; i <= 1 + net_.L; ++i) {
      const bool last = i == 1 + net_.L;
      const ActorLayer own = layer(i);
      const T *input = i ? chunk(s_.acts, layer(i - 1)) : s_.past_deter, *d_pre = chunk(s_.d_pre, own);
      T* d_w = i == 0 ? sums_.w_x : last ? sums_.w_out : sums_.ws + (i - 1) * U * U;
      const GradProduct<T> product[] = {{1, own.N, own.K, d_pre, own.N, 0, input, own.K, d_w}};
      add_products<T, O>(product, count, kAlone, false);
      add_columns(count, d_pre, own.N, own.N, last ? sums_.b_out : sums_.bs + i * U, kAlone);
    }
    add_sparse_products(count, n_.Z(), s_.past_stoch, chunk(s_.d_pre, layer(0)), U, sums_.w_z, kAlone);
  }

  const GruRssmImagineBackward& p_;
  const GruRssmSizes& n_;
  const MlpLayers& net_;
  const int64_t columns_;
  const ActorPacked<O>& w_;
  const int64_t row0_, rows_, steps_;
  const Scratch<T, O>& s_;
  const MlpGrads<T> sums_;  // w_z is [Z, U]
  Stop& stop_;
  GruRssmCoreBackward<T, O> core_;
  int64_t base_ = 0, slot_ = 0;
};

template <typename T, typename O>
void imagine_backward(const GruRssmImagineBackward& p) {
  const int threads = max_threads();
  GruRssmPackedBackward<T, O> model(p.n, p.w);
  ActorPacked<O> actor(p.actor, p.n.Z(), p.w_action, p.A, p.n.U, true);
  const int64_t size = mlp_weights(p.actor);
  const Arena arena([&](Arena& a) { model.packings.place(a), actor.packings.place(a); });
  model.packings.pack(threads);
  actor.packings.pack(threads);
  if (p.n.B == 0) std::memset(p.d_weights, 0, size * sizeof(T));
  ThreadSums<T> sums(ptr<T>(p.d_weights), size, threads);
  Stop stop;
  for_each_part(p.n.B, model.packings.weights() + actor.packings.weights(), threads, [&](int64_t first, int64_t rows) {
    const Scratch<T, O> scratch(p, rows);
    ImagineBackward<T, O>(p, model, actor, first, rows, scratch, sums.mine(), stop).run();
  });
  sums.finish();
}

}  // namespace

void gru_rssm_imagine_backward_kernel(const GruRssmImagineBackward& p) {
  with_types(p, [&](auto t, auto o) { imagine_backward<decltype(t), decltype(o)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
