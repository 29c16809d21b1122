#include <initializer_list>

#include "dense_rows.h"
#include "fastwm/rssm_imagine.h"

namespace fastwm::FASTWM_ISA {
namespace {

// T is what sums, norms and the state are in, O what products multiply.
template <typename T, typename O>
struct MlpWeights {
  Packed<O> first, rest, out;
  T* stoch;  // [Z, U], the first layer's rows to be gathered; or null
};

template <typename T, typename O>
struct Weights {
  Packed<O> deter, action, own, embeds, gates[3];
  T* stoch;  // [Z, U]
  MlpWeights<T, O> prior, readouts[kMaxReadouts];
  Packings<O> packings;
  static_assert(7 + 3 * (1 + kMaxReadouts) <= Packings<O>::kMost);

  explicit Weights(const RssmImagine& p) : p_(p) {
    const RssmSizes& n = p.n;
    const int64_t J = n.J();
    add(deter, p.deter.w, 1, n.D, n.U);
    add(action, p.action.w, 1, p.A(), n.U);
    add(own, p.own, n.G, J, J);
    add(embeds, p.embeds, n.G, 3 * n.U, J);
    for (int i = 0; i < 3; ++i)
      add(gates[i], {ptr<T>(p.gates.data) + i * J * p.gates.sn, p.gates.sg, p.gates.sk, p.gates.sn}, n.G, J, J);
    add(prior, p.prior);
    for (int64_t i = 0; i < p.n_readouts; ++i) add(readouts[i], p.readouts[i].n);
  }
  Weights(const Weights&) = delete;

  int64_t bytes() const {
    int64_t sum = packings.bytes() + Arena::bytes<T>(p_.n.Z() * p_.n.U);
    for (int64_t i = 0; i < p_.n_readouts; ++i) sum += Arena::bytes<T>(p_.n.Z() * p_.readouts[i].n.U());
    return sum;
  }
  void pack(Arena& arena, int threads) {
    const int64_t Z = p_.n.Z();
    packings.pack(arena, threads);
    stoch = arena.take<T>(Z * p_.n.U);
    pack_rows(p_.stoch.w, 0, Z, p_.n.U, stoch);
    prior.stoch = nullptr;
    for (int64_t i = 0; i < p_.n_readouts; ++i) {  // which read [deter, stoch]
      const MlpLayers& n = p_.readouts[i].n;
      readouts[i].stoch = arena.take<T>(Z * n.U());
      pack_rows(n.first.w, n.D, Z, n.U(), readouts[i].stoch);
    }
  }

 private:
  void add(Packed<O>& packed, const Weight& w, int64_t blocks, int64_t K, int64_t N) {
    packed.blocks = blocks, packed.K = K, packed.N = N;
    packings.add(packed, w);
  }
  void add(MlpWeights<T, O>& w, const MlpLayers& n) {
    add(w.first, n.first.w, 1, n.D, n.U());
    add(w.rest, n.rest.w, n.rest.count, n.U(), n.U());
    add(w.out, n.out, 1, n.U(), n.O);
  }

  const RssmImagine& p_;
};

template <typename T, typename O>
struct Scratch {
  Arena arena;
  O *h, *x, *act;   // operands [R, D] [R, 3U] [R, W], W the widest layer
  O* scaled;        // [R, A]: the action as the model sees it
  T *pre, *gates;   // [R, W] [R, 3D]
  int64_t* index;   // [S], of one row
  int64_t* counts;  // [R] how much of a row's latent is not zero,
  int32_t* places;  // [R, places] and where

  static int64_t places_of(const RssmSizes& n) { return n.Z() + kVectorBytes; }

  Scratch(const RssmImagine& p, int64_t rows, int64_t widest)
      : arena((4 * p.n.D + 3 * p.n.U + 2 * widest + p.A() + 1) * rows * 8 + p.n.S * 8 + rows * places_of(p.n) * 4 + 4096) {
    h = arena.take<O>(rows * p.n.D);
    x = arena.take<O>(rows * 3 * p.n.U);
    act = arena.take<O>(rows * widest);
    pre = arena.take<T>(rows * widest);
    gates = arena.take<T>(rows * 3 * p.n.D);
    scaled = arena.take<O>(rows * p.A());
    index = arena.take<int64_t>(p.n.S);
    counts = arena.take<int64_t>(rows);
    places = arena.take<int32_t>(rows * places_of(p.n));
  }
};

// The dream of some rows, by one thread.
template <typename T, typename O>
class Imagine {
 public:
  Imagine(const RssmImagine& p, const Weights<T, O>& w, int64_t first_row, int64_t rows, const Scratch<T, O>& s,
          Stop& stop)
      : p_(p), n_(p.n), w_(w), row0_(first_row), rows_(rows), s_(s), stop_(stop), eps_(p.eps) {}

  void run() {
    convert(rows_ * n_.D, at(p_.deter0, 0, n_.D), s_.h);
    copy_rows(1, rows_ * n_.D, at(p_.deter0, 0, n_.D), 0, at(p_.deters, 0, n_.D), 0);
    copy_rows(1, rows_ * n_.Z(), at(p_.stoch0, 0, n_.Z()), 0, at(p_.stochs, 0, n_.Z()), 0);
    for (int64_t t = 0; t <= n_.T && !stop_.before(t, false); ++t) {
      find_latents(t);
      for (int64_t i = 0; i < p_.n_readouts; ++i) {
        const Readout& head = p_.readouts[i];
        mlp(head.n, w_.readouts[i], t, head.pre, at(head.y, t, head.n.O));
      }
      if (!p_.given) act(t);
      if (t == n_.T) return;
      scale(p_.given ? at(p_.given, t, p_.A()) : at(p_.actions, t, p_.A()));
      embed();
      core(t);
      prior(t);
    }
  }

 private:
  // Row row0_ of step t of an array [., N, width].
  T* at(void* array, int64_t t, int64_t width) const { return ptr<T>(array) + (t * n_.B + row0_) * width; }
  const T* at(const void* array, int64_t t, int64_t width) const {
    return ptr<T>(array) + (t * n_.B + row0_) * width;
  }

  void norm(int64_t width, const T* pre, const T* scale, O* act, int64_t lda) const {
    rms_silu(rows_, width, pre, width, scale, eps_, act, lda);
  }

  // The state's latents, [rows, Z]: one-hot, but for what the start state holds.
  void find_latents(int64_t t) {
    z_ = at(p_.stochs, t, n_.Z());
    for (int64_t r = 0; r < rows_; ++r) s_.counts[r] = nonzeros(n_.Z(), z_ + r * n_.Z(), places(r));
  }
  int32_t* places(int64_t r) const { return s_.places + r * s_.places_of(n_); }

  // sum += z W
  void add_latents(const T* table, int64_t width, T* sum) const {
    for (int64_t r = 0; r < rows_; ++r)
      add_gathered(s_.counts[r], places(r), z_ + r * n_.Z(), table, width, sum + r * width);
  }

  // All layers and the output of an MLP that reads the state; `saved` [count, H + 1, N, U] or null.
  void mlp(const MlpLayers& n, const MlpWeights<T, O>& w, int64_t t, void* saved, T* y) const {
    const int64_t U = n.U();
    for (int64_t i = 0; i < n.count(); ++i) {
      T* pre = saved ? at(saved, i * (n_.T + 1) + t, U) : s_.pre;
      if (i == 0) {
        linear(rows_, s_.h, n_.D, w.first, 0, ptr<T>(n.first.bias), pre, U);
        if (w.stoch) add_latents(w.stoch, U, pre);
        norm(U, pre, ptr<T>(n.first.norm), s_.act, U);
      } else {
        linear(rows_, s_.act, U, w.rest, i - 1, ptr<T>(n.rest.bias) + (i - 1) * U, pre, U);
        norm(U, pre, ptr<T>(n.rest.norm) + (i - 1) * U, s_.act, U);
      }
    }
    linear(rows_, s_.act, U, w.out, 0, ptr<T>(n.b_out), y, n.O);
  }

  // The actor is the first readout.
  void act(int64_t t) const {
    const Readout& actor = p_.readouts[0];
    const int64_t outputs = actor.n.O;
    int64_t draws = 0;
    for (int64_t i = 0; i < p_.n_heads; ++i) draws += p_.head(i).count;
    for (int64_t r = 0; r < rows_; ++r)
      sample_action(at(actor.y, t, outputs) + r * outputs, at(p_.noise, t, draws) + r * draws,
                    at(p_.actions, t, p_.A()) + r * p_.A());
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

  void embed() const {
    const int64_t U = n_.U;
    linear(rows_, s_.h, n_.D, w_.deter, 0, ptr<T>(p_.deter.bias), s_.pre, U);
    norm(U, s_.pre, ptr<T>(p_.deter.norm), s_.x, 3 * U);
    copy_rows(rows_, U, ptr<T>(p_.stoch.bias), 0, s_.pre, U);
    add_latents(w_.stoch, U, s_.pre);
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
    const int64_t Z = n_.Z();
    mlp(p_.prior, w_.prior, t, nullptr, at(p_.all_logits, t, Z));
    for (int64_t r = 0; r < rows_; ++r)
      sample_row(n_.S, n_.C, at(p_.all_logits, t, Z) + r * Z, static_cast<T>(p_.unimix),
                 at(p_.uniform, t, n_.S) + r * n_.S, at(p_.stochs, t + 1, Z) + r * Z, s_.index);
  }

  const RssmImagine& p_;
  const RssmSizes& n_;
  const Weights<T, O>& w_;
  const int64_t row0_, rows_;
  const Scratch<T, O>& s_;
  Stop& stop_;
  const T eps_;
  const T* z_ = nullptr;
};

template <typename T, typename O>
void imagine(const RssmImagine& p) {
  const int threads = max_threads();
  Weights<T, O> weights(p);
  Arena arena(weights.bytes());
  weights.pack(arena, threads);
  int64_t widest = p.n.D;
  for (int64_t width : {p.n.U, p.prior.U()}) widest = width > widest ? width : widest;
  for (int64_t i = 0; i < p.n_readouts; ++i) widest = p.readouts[i].n.U() > widest ? p.readouts[i].n.U() : widest;
  Stop stop;
  for_each_part(p.n.B, weights.packings.weights(), threads, [&](int64_t first, int64_t rows) {
    const Scratch<T, O> scratch(p, rows, widest);
    const AmxTiles tiles(use_amx<O>(), rows);
    Imagine<T, O>(p, weights, first, rows, scratch, stop).run();
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
