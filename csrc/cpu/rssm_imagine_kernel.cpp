#include "actor_rows.h"
#include "block_gru_forward.h"
#include "primitives/linear.h"
#include "fastwm/params/rssm_imagine.h"

namespace fastwm::FASTWM_ISA {
namespace {

constexpr int64_t kEmbeddings = 3;  // of the deter, the stoch and the action

inline BlockGruSizes core_sizes(const RssmSizes& n) { return {n.T, n.B, n.D, n.U, kEmbeddings, n.G}; }
inline BlockGruWeights core_weights(const RssmImagine& p) {
  return {p.w_deter, p.w_own, p.w_embeds, p.w_gates, p.b_deter, p.b_gates, p.n_deter, p.n_hidden};
}

// T is what sums, norms and the state are in, O what products multiply.
template <typename T, typename O>
struct MlpWeights {
  Packed<O> first, rest, out;
  T* stoch;  // [Z, U], the first layer's rows to be gathered; or null
};

template <typename T, typename O>
struct Weights {
  Packings<O> packings;
  GruWeights<T, O> gru;
  Packed<O> action;
  T* stoch;  // [Z, U]
  MlpWeights<T, O> prior, readouts[kMaxReadouts];
  static_assert(7 + 3 * (1 + kMaxReadouts) <= Packings<O>::kMost);

  explicit Weights(const RssmImagine& p) : gru(core_sizes(p.n), core_weights(p), packings), p_(p) {
    add(action, p.w_action, 1, p.A, p.n.U);
    add(prior, p.prior);
    for (int64_t i = 0; i < p.n_readouts; ++i) add(readouts[i], p.readouts[i].net);
  }
  Weights(const Weights&) = delete;

  void place(Arena& arena) {
    packings.place(arena);
    stoch = arena.take<T>(p_.n.Z() * p_.n.U);
    prior.stoch = nullptr;
    for (int64_t i = 0; i < p_.n_readouts; ++i) readouts[i].stoch = arena.take<T>(p_.n.Z() * p_.readouts[i].net.U);
  }
  void pack(int threads) const {
    const int64_t Z = p_.n.Z();
    packings.pack(threads);
    pack_rows(p_.w_stoch, 0, Z, p_.n.U, stoch);
    for (int64_t i = 0; i < p_.n_readouts; ++i) {  // which read [deter, stoch]
      const MlpLayers& net = p_.readouts[i].net;
      pack_rows(net.w, net.K - Z, Z, net.U, readouts[i].stoch);
    }
  }

 private:
  void add(Packed<O>& packed, const Weight& w, int64_t blocks, int64_t K, int64_t N) {
    packed.blocks = blocks, packed.K = K, packed.N = N;
    packings.add(packed, w);
  }
  void add(MlpWeights<T, O>& w, const MlpLayers& n) {
    add(w.first, n.w, 1, p_.n.D, n.U);
    add(w.rest, n.ws, n.L, n.U, n.U);
    add(w.out, n.w_out, 1, n.U, n.O);
  }

  const RssmImagine& p_;
};

template <typename T, typename O>
struct Scratch {
  GruScratch<T, O> gru;
  O* act;           // operand [R, W], W the widest layer
  O* scaled;        // [R, A]: the action as the model sees it
  T* pre;           // [R, W]
  int64_t* index;   // [S], of one row
  int64_t* counts;  // [R] how much of a row's latent is not zero,
  int32_t* places;  // [R, places] and where
  Arena arena;

  static int64_t places_of(const RssmSizes& n) { return n.Z() + kVectorBytes; }

  Scratch(const RssmImagine& p, int64_t rows, int64_t widest) : arena([&](Arena& a) { place(a, p, rows, widest); }) {}

 private:
  void place(Arena& arena, const RssmImagine& p, int64_t rows, int64_t widest) {
    gru.place(arena, core_sizes(p.n), rows, 1);
    act = arena.take<O>(rows * widest);
    pre = arena.take<T>(rows * widest);
    scaled = arena.take<O>(rows * p.A);
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
      : p_(p), n_(p.n), w_(w), row0_(first_row), rows_(rows), s_(s), stop_(stop), eps_(p.eps),
        gru_(core_sizes(p.n), core_weights(p), w.gru, rows, kAlone, s.gru, kUpdateBias, p.eps) {}

  void run() {
    convert(rows_ * n_.D, at(p_.deter0, 0, n_.D), s_.gru.h);
    copy_rows(1, rows_ * n_.D, at(p_.deter0, 0, n_.D), 0, at(p_.deters, 0, n_.D), 0);
    copy_rows(1, rows_ * n_.Z(), at(p_.stoch0, 0, n_.Z()), 0, at(p_.stochs, 0, n_.Z()), 0);
    for (int64_t t = 0; t <= n_.T && !stop_.before(t, false); ++t) {
      find_latents(t);
      for (int64_t i = 0; i < p_.n_readouts; ++i) {
        const Readout& head = p_.readouts[i];
        mlp(head.net, w_.readouts[i], t, head.pre, at(head.y, t, head.net.O));
      }
      if (!p_.action) act(t);
      if (t == n_.T) return;
      scale(at(p_.action ? p_.action : p_.actions, t, p_.A));
      embed();
      core(t);
      prior(t);
    }
  }

 private:
  static constexpr Team kAlone{0, 1, nullptr};

  // Row row0_ of step t of an array [., N, width].
  T* at(void* array, int64_t t, int64_t width) const { return ptr<T>(array) + (t * n_.B + row0_) * width; }
  const T* at(const void* array, int64_t t, int64_t width) const { return ptr<T>(array) + (t * n_.B + row0_) * width; }

  void norm(int64_t width, const T* pre, const T* scale, O* act) const {
    rms_silu(rows_, width, pre, width, scale, eps_, act, width);
  }

  // The state's latents, [rows, Z]: one-hot, but for what the start state holds.
  void find_latents(int64_t t) {
    z_ = at(p_.stochs, t, n_.Z());
    for (int64_t r = 0; r < rows_; ++r) s_.counts[r] = nonzeros(n_.Z(), z_ + r * n_.Z(), places(r));
  }
  int32_t* places(int64_t r) const { return s_.places + r * s_.places_of(n_); }

  // sum += z W
  void add_latents(const T* table, int64_t width, T* sum, int64_t stride) const {
    for (int64_t r = 0; r < rows_; ++r)
      add_gathered(s_.counts[r], places(r), z_ + r * n_.Z(), table, width, sum + r * stride);
  }

  // All layers and the output of an MLP that reads the state; `saved` [count, H + 1, N, U] or null.
  void mlp(const MlpLayers& n, const MlpWeights<T, O>& w, int64_t t, void* saved, T* y) const {
    const int64_t U = n.U;
    for (int64_t i = 0; i <= n.L; ++i) {
      T* pre = saved ? at(saved, i * (n_.T + 1) + t, U) : s_.pre;
      if (i == 0) {
        linear(rows_, s_.gru.h, n_.D, w.first, 0, ptr<T>(n.b), pre, U);
        if (w.stoch) add_latents(w.stoch, U, pre, U);
        norm(U, pre, ptr<T>(n.norm), s_.act);
      } else {
        linear(rows_, s_.act, U, w.rest, i - 1, ptr<T>(n.bs) + (i - 1) * U, pre, U);
        norm(U, pre, ptr<T>(n.norms) + (i - 1) * U, s_.act);
      }
    }
    linear(rows_, s_.act, U, w.out, 0, ptr<T>(n.b_out), y, n.O);
  }

  // The actor is the first readout.
  void act(int64_t t) const {
    const Readout& actor = p_.readouts[0];
    const int64_t outputs = actor.net.O;
    for (int64_t r = 0; r < rows_; ++r)
      policy_row(p_, static_cast<T>(p_.policy_unimix), at(actor.y, t, outputs) + r * outputs,
                 at(p_.noise, t, p_.draws) + r * p_.draws, at(p_.actions, t, p_.A) + r * p_.A);
  }

  void scale(const T* actions) const {
    for (int64_t a = 0; a < rows_ * p_.A; ++a) {
      const T size = actions[a] < 0 ? -actions[a] : actions[a];
      narrow(actions[a] / (size > 1 ? size : 1), s_.scaled[a]);
    }
  }

  void embed() const {
    const int64_t U = n_.U, X = kEmbeddings * U;
    T *stoch = s_.gru.embeds + U, *action = stoch + U;
    gru_.embed_carry({0, w_.gru.carry.tasks()});
    rms_silu(rows_, U, s_.gru.carry, U, ptr<T>(p_.n_deter), eps_, s_.gru.x, X);
    copy_rows(rows_, U, ptr<T>(p_.b_stoch), 0, stoch, X);
    add_latents(w_.stoch, U, stoch, X);
    rms_silu(rows_, U, stoch, X, ptr<T>(p_.n_stoch), eps_, s_.gru.x + U, X);
    linear(rows_, s_.scaled, p_.A, w_.action, 0, ptr<T>(p_.b_action), action, X);
    rms_silu(rows_, U, action, X, ptr<T>(p_.n_action), eps_, s_.gru.x + 2 * U, X);
  }

  void core(int64_t t) const {
    gru_.hidden({ptr<T>(p_.b_hidden), 0}, s_.gru.hidden);
    gru_.norm_hidden(s_.gru.hidden);
    const T* before = at(p_.deters, t, n_.D);
    gru_.gates([&](int64_t r) { return before + r * n_.D; }, at(p_.deters, t + 1, n_.D), nullptr);
  }

  void prior(int64_t t) const {
    const int64_t Z = n_.Z();
    mlp(p_.prior, w_.prior, t, nullptr, at(p_.logits, t, Z));
    for (int64_t r = 0; r < rows_; ++r)
      sample_row(n_.S, n_.C, at(p_.logits, t, Z) + r * Z, static_cast<T>(p_.unimix), at(p_.uniform, t, n_.S) + r * n_.S,
                 at(p_.stochs, t + 1, Z) + r * Z, s_.index);
  }

  const RssmImagine& p_;
  const RssmSizes& n_;
  const Weights<T, O>& w_;
  const int64_t row0_, rows_;
  const Scratch<T, O>& s_;
  Stop& stop_;
  const T eps_;
  const GruStep<T, O> gru_;
  const T* z_ = nullptr;
};

template <typename T, typename O>
void imagine(const RssmImagine& p) {
  const int threads = max_threads();
  Weights<T, O> weights(p);
  const Arena arena([&](Arena& a) { weights.place(a); });
  weights.pack(threads);
  int64_t widest = p.n.D;
  for (int64_t width : {p.n.U, p.prior.U}) widest = width > widest ? width : widest;
  for (int64_t i = 0; i < p.n_readouts; ++i) widest = p.readouts[i].net.U > widest ? p.readouts[i].net.U : widest;
  Stop stop;
  for_each_part(p.n.B, weights.packings.weights(), threads, [&](int64_t first, int64_t rows) {
    const Scratch<T, O> scratch(p, rows, widest);
    const AmxTiles tiles(use_amx<O>(), rows);
    Imagine<T, O>(p, weights, first, rows, scratch, stop).run();
  });
}

}  // namespace

void rssm_imagine_kernel(const RssmImagine& p) {
  with_types(p, [&](auto t, auto o) { imagine<decltype(t), decltype(o)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
