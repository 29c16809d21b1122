#include <initializer_list>

#include "dense_rows.h"
#include "fastwm/rssm_imagine.h"

namespace fastwm::FASTWM_ISA {
namespace {

// T is what sums, norms and the state are in, O what products multiply.
template <typename T, typename O>
struct Weights {
  Packed<O> deter, action, own, embeds, gates[3], prior, prior_rest, logits, actor, actor_rest, out;
  T *stoch, *actor_stoch;  // [Z, U] [Z, V], rows to be gathered

  static constexpr int kCount = 13;
  Packed<O>* all[kCount] = {&deter,    &action,     &own,    &embeds, &gates[0],   &gates[1], &gates[2],
                            &prior, &prior_rest, &logits, &actor,  &actor_rest, &out};

  explicit Weights(const RssmImagine& p)
      : deter{1, p.n.D, p.n.U},
        action{1, p.A(), p.n.U},
        own{p.n.G, p.n.J(), p.n.J()},
        embeds{p.n.G, 3 * p.n.U, p.n.J()},
        gates{{p.n.G, p.n.J(), p.n.J()}, {p.n.G, p.n.J(), p.n.J()}, {p.n.G, p.n.J(), p.n.J()}},
        prior{1, p.n.D, p.prior.N},
        prior_rest{p.prior_rest.count, p.prior.N, p.prior.N},
        logits{1, p.prior.N, p.n.Z()},
        actor{1, p.n.D, p.actor.N},
        actor_rest{p.actor_rest.count, p.actor.N, p.actor.N},
        out{1, p.actor.N, outputs(p)} {}

  static int64_t outputs(const RssmImagine& p) {
    int64_t sum = 0;
    for (int64_t i = 0; i < p.n_heads; ++i) sum += p.head(i).outputs();
    return sum;
  }
  int64_t bytes(const RssmImagine& p) const {
    int64_t sum = Arena::bytes<T>(p.n.Z() * p.n.U) + Arena::bytes<T>(p.n.Z() * p.actor.N);
    for (const Packed<O>* w : all) sum += Arena::bytes<O>(w->size());
    return sum;
  }
  int64_t count() const {
    int64_t sum = 0;
    for (const Packed<O>* w : all) sum += w->blocks * w->K * w->N;
    return sum;
  }
  void pack(const RssmImagine& p, Arena& arena, int threads) {
    for (Packed<O>* packed : all) packed->data = arena.take<O>(packed->size());
    const auto gate = [&](int part) {
      return Weight{ptr<T>(p.gates.data) + part * p.n.J() * p.gates.sn, p.gates.sg, p.gates.sk, p.gates.sn};
    };
    const Weight sources[] = {p.deter.w, p.action.w,     p.own,    p.embeds,  gate(0),        gate(1), gate(2),
                              p.prior.w, p.prior_rest.w, p.logits, p.actor.w, p.actor_rest.w, p.out};
    Packing<O> items[kCount];
    for (int i = 0; i < kCount; ++i) items[i] = {all[i], sources[i]};
    pack_all(items, kCount, threads);
    stoch = arena.take<T>(p.n.Z() * p.n.U);
    pack_rows(p.stoch.w, 0, p.n.Z(), p.n.U, stoch);
    actor_stoch = arena.take<T>(p.n.Z() * p.actor.N);
    pack_rows(p.actor.w, p.n.D, p.n.Z(), p.actor.N, actor_stoch);  // the actor reads [deter, stoch]
  }
};

template <typename T, typename O>
struct Scratch {
  Arena arena;
  O *h, *x, *act;   // operands [R, D] [R, 3U] [R, W], W the widest layer
  O* scaled;        // [R, A]: the action as the model sees it
  T *pre, *gates;   // [R, W] [R, 3D]
  int64_t* index;   // [S], of one row
  int32_t* places;  // of one row's ones

  Scratch(const RssmImagine& p, int64_t rows, int64_t widest)
      : arena((4 * p.n.D + 3 * p.n.U + 2 * widest + p.A()) * rows * 8 + p.n.S * 8 + p.n.Z() * 4 + 4096) {
    h = arena.take<O>(rows * p.n.D);
    x = arena.take<O>(rows * 3 * p.n.U);
    act = arena.take<O>(rows * widest);
    pre = arena.take<T>(rows * widest);
    gates = arena.take<T>(rows * 3 * p.n.D);
    scaled = arena.take<O>(rows * p.A());
    index = arena.take<int64_t>(p.n.S);
    places = arena.take<int32_t>(p.n.Z() + kVectorBytes);
  }
};

// The dream of some rows, by one thread.
template <typename T, typename O>
class Imagine {
 public:
  Imagine(const RssmImagine& p, const Weights<T, O>& w, int64_t first_row, int64_t rows, const Scratch<T, O>& s)
      : p_(p), n_(p.n), w_(w), row0_(first_row), rows_(rows), s_(s), eps_(p.eps) {}

  void run() {
    convert(rows_ * n_.D, at(p_.deter0, 0, n_.D), s_.h);
    copy_rows(1, rows_ * n_.D, at(p_.deter0, 0, n_.D), 0, at(p_.deters, 0, n_.D), 0);
    copy_rows(1, rows_ * n_.Z(), at(p_.stoch0, 0, n_.Z()), 0, at(p_.stochs, 0, n_.Z()), 0);
    for (int64_t t = 0; t < n_.T; ++t) {
      p_.actions ? act(t) : scale(at(p_.given, t, p_.A()));
      embed(t);
      core(t);
      prior(t);
    }
    if (p_.actions) act(n_.T);
  }

 private:
  // Row row0_ of step t of an array [., N, width].
  T* at(void* array, int64_t t, int64_t width) const { return ptr<T>(array) + (t * n_.B + row0_) * width; }
  const T* at(const void* array, int64_t t, int64_t width) const {
    return ptr<T>(array) + (t * n_.B + row0_) * width;
  }

  void norm(int64_t width, const T* pre, const T* scale, O* act, int64_t lda) const {
    for (int64_t r = 0; r < rows_; ++r) rms_silu(width, pre + r * width, scale, eps_, act + r * lda);
  }

  // Layers 2.. of an MLP, from s_.act to s_.act.
  void rest(const DenseLayers& layers, const Packed<O>& w) const {
    for (int64_t i = 0; i < layers.count; ++i) {
      linear(rows_, s_.act, layers.N, w, i, ptr<T>(layers.bias) + i * layers.N, s_.pre, layers.N);
      norm(layers.N, s_.pre, ptr<T>(layers.norm) + i * layers.N, s_.act, layers.N);
    }
  }

  // sum += z W for the state before step t: a gather of S rows, or of what the start state holds.
  void add_stoch(int64_t t, const T* table, int64_t width, T* sum) const {
    const T* z = at(p_.stochs, t, n_.Z());
    for (int64_t r = 0; r < rows_; ++r, z += n_.Z(), sum += width)
      add_gathered(nonzeros(n_.Z(), z, s_.places), s_.places, z, table, width, sum);
  }

  void act(int64_t t) const {
    const int64_t V = p_.actor.N, outputs = w_.out.N;
    linear(rows_, s_.h, n_.D, w_.actor, 0, ptr<T>(p_.actor.bias), s_.pre, V);
    add_stoch(t, w_.actor_stoch, V, s_.pre);
    norm(V, s_.pre, ptr<T>(p_.actor.norm), s_.act, V);
    rest(p_.actor_rest, w_.actor_rest);
    linear(rows_, s_.act, V, w_.out, 0, ptr<T>(p_.b_out), s_.pre, outputs);
    int64_t draws = 0;
    for (int64_t i = 0; i < p_.n_heads; ++i) draws += p_.head(i).count;
    T* actions = at(p_.actions, t, p_.A());
    for (int64_t r = 0; r < rows_; ++r)
      sample_action(s_.pre + r * outputs, at(p_.noise, t, draws) + r * draws, actions + r * p_.A());
    scale(actions);
  }

  void scale(const T* actions) const {
    for (int64_t a = 0; a < rows_ * p_.A(); ++a) {
      const T size = actions[a] < 0 ? -actions[a] : actions[a];
      narrow(actions[a] / (size > 1 ? size : 1), s_.scaled[a]);
    }
  }

  void sample_action(const T* out, const T* noise, T* action) const {
    for (int64_t i = 0; i < p_.n_heads; ++i) {
      const ActionHead head = p_.head(i);
      if (head.classes > 0) {
        for (int64_t k = 0; k < head.count; ++k) {
          int64_t index;
          const int64_t at = k * head.classes;
          sample_row(1, head.classes, out + at, static_cast<T>(p_.policy_unimix), noise + k, action + at, &index);
        }
      } else {
        for (int64_t k = 0; k < head.count; ++k)
          action[k] = vtanh(out[k]) + (T(0.9) * vsigmoid(out[head.count + k] + 2) + T(0.1)) * noise[k];
      }
      out += head.outputs(), noise += head.count, action += head.width();
    }
  }

  void embed(int64_t t) const {
    const int64_t U = n_.U;
    linear(rows_, s_.h, n_.D, w_.deter, 0, ptr<T>(p_.deter.bias), s_.pre, U);
    norm(U, s_.pre, ptr<T>(p_.deter.norm), s_.x, 3 * U);
    copy_rows(rows_, U, ptr<T>(p_.stoch.bias), 0, s_.pre, U);
    add_stoch(t, w_.stoch, U, s_.pre);
    norm(U, s_.pre, ptr<T>(p_.stoch.norm), s_.x + U, 3 * U);
    linear(rows_, s_.scaled, p_.A(), w_.action, 0, ptr<T>(p_.action.bias), s_.pre, U);
    norm(U, s_.pre, ptr<T>(p_.action.norm), s_.x + 2 * U, 3 * U);
  }

  void core(int64_t t) const {
    const int64_t D = n_.D, J = n_.J();
    for (int64_t task = 0; task < w_.own.tasks(); ++task) {
      const int64_t g = task / w_.own.panels(), panel = task % w_.own.panels(), d = g * J + panel * kPanelOf<O>;
      multiply(rows_, s_.x, 3 * n_.U, w_.embeds, task, Start<T>{ptr<T>(p_.b_hidden) + d, 0}, s_.pre + d, D);
      multiply(rows_, s_.h + g * J, D, w_.own, task, s_.pre + d, D);
    }
    norm(D, s_.pre, ptr<T>(p_.n_hidden), s_.act, D);
    const Packed<O>& shape = w_.gates[0];
    const T* prev = at(p_.deters, t, D);
    T* deter = at(p_.deters, t + 1, D);
    for (int64_t task = 0; task < shape.tasks(); ++task) {
      const int64_t g = task / shape.panels(), panel = task % shape.panels(), j = panel * kPanelOf<O>, d = g * J + j;
      for (int i = 0; i < 3; ++i) {
        const int64_t gate = (3 * g + i) * J + j;
        const Start<T> bias{ptr<T>(p_.b_gates) + gate, 0};
        multiply(rows_, s_.act + g * J, D, w_.gates[i], task, bias, s_.gates + gate, 3 * D);
      }
      for (int64_t r = 0; r < rows_; ++r) {
        T* gate = s_.gates + r * 3 * D + 3 * g * J + j;
        gates_row(shape.width(panel), gate, gate + J, gate + 2 * J, T(-1), prev + r * D + d, deter + r * D + d,
                  s_.h + r * D + d);
      }
    }
  }

  void prior(int64_t t) const {
    const int64_t Z = n_.Z(), V = p_.prior.N;
    linear(rows_, s_.h, n_.D, w_.prior, 0, ptr<T>(p_.prior.bias), s_.pre, V);
    norm(V, s_.pre, ptr<T>(p_.prior.norm), s_.act, V);
    rest(p_.prior_rest, w_.prior_rest);
    linear(rows_, s_.act, V, w_.logits, 0, ptr<T>(p_.b_logits), at(p_.all_logits, t, Z), Z);
    for (int64_t r = 0; r < rows_; ++r)
      sample_row(n_.S, n_.C, at(p_.all_logits, t, Z) + r * Z, static_cast<T>(p_.unimix),
                 at(p_.uniform, t, n_.S) + r * n_.S, at(p_.stochs, t + 1, Z) + r * Z, s_.index);
  }

  const RssmImagine& p_;
  const RssmSizes& n_;
  const Weights<T, O>& w_;
  const int64_t row0_, rows_;
  const Scratch<T, O>& s_;
  const T eps_;
};

template <typename T, typename O>
void imagine(const RssmImagine& p) {
  const int threads = max_threads();
  Weights<T, O> weights(p);
  Arena arena(weights.bytes(p));
  weights.pack(p, arena, threads);
  int64_t widest = p.n.D;
  for (int64_t width : {p.n.U, p.prior.N, p.actor.N, weights.out.N}) widest = width > widest ? width : widest;
  for_each_part(p.n.B, weights.count(), threads, [&](int64_t first, int64_t rows) {
    const Scratch<T, O> scratch(p, rows, widest);
    const AmxTiles tiles(use_amx<O>(), rows);
    Imagine<T, O>(p, weights, first, rows, scratch).run();
  });
}

}  // namespace

void rssm_imagine_kernel(const RssmImagine& p) {
#if FASTWM_BF16
  if (p.bf16 && p.dtype == Dtype::f32 && has_bf16()) return imagine<float, bf16>(p);
#endif
  p.dtype == Dtype::f64 ? imagine<double, double>(p) : imagine<float, float>(p);
}

}  // namespace fastwm::FASTWM_ISA
