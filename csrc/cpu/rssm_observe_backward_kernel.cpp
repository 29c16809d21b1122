#include "block_gru_backward.h"
#include "latent_rows.h"
#include "fastwm/params/rssm_observe.h"

namespace fastwm::FASTWM_ISA {
namespace {

// The weights, transposed and packed once a call. T is what sums and norms are in, O what products multiply.
template <typename T, typename O>
struct Weights {
  Packings<O> packings;
  GruBackWeights<T, O> gru;
  Packed<O> logits, post, stoch;

  explicit Weights(const RssmObserveBackward& p)
      : gru(p.gru, packings), logits{1, p.n.Z(), p.n.U}, post{p.n.G, p.n.U, p.n.J()}, stoch{1, p.n.U, p.n.Z()} {
    packings.add(logits, p.w.logits.transposed());
    packings.add(post, blocked(p.w.post, p.n.J()));
    packings.add(stoch, p.w.stoch.transposed());
  }
  Weights(const Weights&) = delete;
};

// The gradients of all weights, in the layout of RssmObserveBackward.
template <typename T>
struct Grads {
  GruGrads<T> gru;
  T *w_stoch, *b_stoch, *n_stoch, *w_post, *n_post, *w_logits, *b_logits;

  Grads(const RssmSizes& n, T* array) {
    GradLayout<T> all{array};
    gru.take_carry(n.gru(), all);
    w_stoch = all.take(n.U * n.Z()), b_stoch = all.take(n.U), n_stoch = all.take(n.U);
    gru.take_rest(n.gru(), all);
    w_post = all.take(n.U * n.D), n_post = all.take(n.U);
    w_logits = all.take(n.Z() * n.U), b_logits = all.take(n.Z());
  }

  // The norms' gradients, in their order and in an array of their own.
  void move_norms(const RssmSizes& n, T* array) {
    GradLayout<T> norms{array};
    gru.n_carry = norms.take(n.U), n_stoch = norms.take(n.U);
    gru.n_hidden = norms.take(n.D), n_post = norms.take(n.U);
  }
};

template <typename T, typename O>
struct Scratch {
  GruBackScratch<T, O> gru;
  T *d_z, *probs, *d_act;          // [R, Z] [R, Z] [R, U]
  O *o_logits, *o_post, *o_stoch;  // the step's operands [R, Z] [R, U] [R, U]
  // Some steps' inputs of the layers, and the gradients before their norms: [steps, R, width].
  T *past_stoch, *deter, *act, *d_post, *d_logits;
  Arena arena;

  Scratch(const RssmSizes& n, int64_t rows) : arena([&](Arena& a) { place(a, n, rows); }) {}

 private:
  void place(Arena& arena, const RssmSizes& n, int64_t rows) {
    const int64_t chunk = chunk_steps(n.T, rows, n.D) * rows;
    gru.place(arena, n.gru(), rows);
    for (T** part : {&d_z, &probs}) *part = arena.take<T>(rows * n.Z());
    d_act = arena.take<T>(rows * n.U);
    for (O** part : {&o_post, &o_stoch}) *part = arena.take<O>(rows * n.U);
    o_logits = arena.take<O>(rows * n.Z());
    for (T** part : {&past_stoch, &d_logits}) *part = arena.take<T>(chunk * n.Z());
    for (T** part : {&act, &d_post}) *part = arena.take<T>(chunk * n.U);
    deter = arena.take<T>(chunk * n.D);
  }
};

template <typename T, typename O>
class ObserveBackward {
 public:
  // `shared` takes the weights' gradients of the whole team, `mine` those of the norms that this member sums.
  ObserveBackward(const RssmObserveBackward& p, const Weights<T, O>& w, int64_t first_row, int64_t rows, Team team,
                  const Scratch<T, O>& s, const Grads<T>& shared, const Grads<T>& mine)
      : p_(p), n_(p.n), w_(w), row0_(first_row), rows_(rows), team_(team), s_(s), shared_(shared), mine_(mine),
        eps_(p.gru.eps), gru_(p.gru, w.gru, first_row, rows, team, s.gru, shared.gru, mine.gru) {}

  void run() {
    const AmxTiles tiles(use_amx<O>(), rows_);
    start();
    for (int64_t t = n_.T - 1; t >= 0 && !team_.leaves(n_.T - 1 - t); --t) {
      sample(t);
      team_.wait();
      logits(t);
      team_.wait();
      norm_posterior(t);
      team_.wait();
      gru_.gates(t, [this](int64_t task, T* out) { multiply(rows_, s_.o_post, n_.U, w_.post, task, out, n_.D); });
      team_.wait();
      gru_.hidden(t);
      team_.wait();
      gru_.norm_hidden(t);
      team_.wait();
      gru_.embeds(t);
      gru_.own(t);
      team_.wait();
      norm_embeds(t);
      team_.wait();
      if (t > 0) stoch(t);
      if (const int64_t count = gru_.chunk_rows(t); count > 0) weights(t, count);
      team_.wait();
    }
  }

 private:
  void start() {
    const Range rows = team_.range(rows_);
    zero_rows(rows.last - rows.first, n_.Z(), s_.d_z + rows.first * n_.Z(), n_.Z());
    gru_.start();
  }

  // d_z holds what the next step's embedding of the sample asks for.
  void sample(int64_t t) {
    const int64_t Z = n_.Z(), D = n_.D;
    const T* past_stoch = t > 0 ? gru_.at(p_.stoch, t - 1, Z) : ptr<T>(p_.stoch0) + row0_ * Z;
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      T* d_z = s_.d_z + r * Z;
      T* d_logits = gru_.now(s_.d_logits, t, Z) + r * Z;
      const T* g = gru_.at(p_.g_stoch, t, Z) + r * Z;
#pragma omp simd
      for (int64_t z = 0; z < Z; ++z) d_z[z] += g[z];
      sample_row_backward(n_.S, n_.C, gru_.at(p_.logits, t, Z) + r * Z, static_cast<T>(p_.w.unimix), d_z,
                          gru_.at(p_.g_logits, t, Z) + r * Z, s_.probs + r * Z, d_logits);
      keep_operand(Z, d_logits, s_.o_logits + r * Z);
      if (!gru_.has_all_rows())
        copy_rows(1, D, gru_.at(p_.gru.h, t, D) + r * D, D, gru_.now(s_.deter, t, D) + r * D, D);
      gru_.past(t, r);
      T* past = gru_.now(s_.past_stoch, t, Z) + r * Z;
      gru_.first(t, r) ? zero_rows(1, Z, past, Z) : copy_rows(1, Z, past_stoch + r * Z, Z, past, Z);
    }
  }

  void logits(int64_t t) {
    const O* d_logits = operand_of<T, O>(gru_.now(s_.d_logits, t, n_.Z()), s_.o_logits);
    const Range tasks = team_.range(w_.logits.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      multiply(rows_, d_logits, n_.Z(), w_.logits, task, kZeros<T>, s_.d_act + task * kPanelOf<O>, n_.U);
    }
  }

  void norm_posterior(int64_t t) {
    const int64_t U = n_.U;
    const Range rows = team_.range(rows_);
    const int64_t count = rows.last - rows.first, begin = rows.first * U;
    T* d_post = gru_.now_in(p_.d_post, s_.d_post, t, U) + begin;
    rms_silu_backward(count, U, gru_.at(p_.post, t, U) + begin, ptr<T>(p_.w.n_post), eps_, s_.d_act + begin, d_post,
                      gru_.now(s_.act, t, U) + begin, mine_.n_post);
    if (!gru_.has_all_rows()) copy_rows(1, count * U, d_post, 0, gru_.at(p_.d_post, t, U) + begin, 0);
    convert(count * U, d_post, s_.o_post + begin);
  }

  void norm_embeds(int64_t t) {
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      gru_.norm_carry(t, r);
      gru_.norm_embedding(t, r, 1, p_.w.n_stoch, mine_.n_stoch, s_.o_stoch + r * n_.U);
    }
  }

  // Backward through the one-hot sample of the step before.
  void stoch(int64_t t) {
    const Range tasks = team_.range(w_.stoch.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t width = w_.stoch.width(task);
      T* out = s_.d_z + task * kPanelOf<O>;
      multiply(rows_, s_.o_stoch, n_.U, w_.stoch, task, kZeros<T>, out, n_.Z());
      for (int64_t r = 0; r < rows_; ++r)
        if (gru_.first(t, r)) zero_rows(1, width, out + r * n_.Z(), n_.Z());
    }
  }

  // The weights' gradients of the chunk from step t on: products over its `count` rows of each layer's input and its
  // gradient.
  void weights(int64_t t, int64_t count) {
    const int64_t D = n_.D, U = n_.U, Z = n_.Z();
    gru_.weights(t, count);
    const T *d_embeds = s_.gru.d_embeds + U, *d_post = gru_.now_in(p_.d_post, s_.d_post, t, U);
    const T* deter = gru_.has_all_rows() ? gru_.at(p_.gru.h, t, D) : s_.deter;
    const GradProduct<T> products[] = {
        {1, U, Z, d_embeds, 2 * U, 0, s_.past_stoch, Z, shared_.w_stoch},
        {1, U, D, d_post, U, 0, deter, D, shared_.w_post},
        {1, Z, U, s_.d_logits, Z, 0, s_.act, U, shared_.w_logits},
    };
    add_products<T, O>(products, count, team_, gru_.starts_sums(t));
    add_columns(count, d_embeds, U, 2 * U, shared_.b_stoch, team_);
    add_columns(count, s_.d_logits, Z, Z, shared_.b_logits, team_);
  }

  const RssmObserveBackward& p_;
  const RssmSizes& n_;
  const Weights<T, O>& w_;
  const int64_t row0_, rows_;
  const Team team_;
  const Scratch<T, O>& s_;
  const Grads<T>&shared_, &mine_;
  const T eps_;
  GruBackSteps<T, O> gru_;
};

template <typename T, typename O>
void observe_backward(const RssmObserveBackward& p) {
  const int threads = max_threads();
  Weights<T, O> weights(p);
  const Arena arena([&](Arena& a) { weights.packings.place(a); });
  weights.packings.pack(threads);
  const Grads<T> grads(p.n, ptr<T>(p.d_weights));
  const GruGrads<T>& gru = grads.gru;
  const BlockGruSizes& n = p.gru.n;
  const Range norms[] = {gru.range(gru.n_carry, n.U), gru.range(grads.n_stoch, n.U), gru.range(gru.n_hidden, n.D),
                         gru.range(grads.n_post, n.U)};
  const Range products[] = {
      gru.carry(n), gru.range(grads.w_stoch, n.U * p.n.Z()), gru.own_and_embeds(n),
      gru.gates(n), gru.range(grads.w_post, n.U * n.D),      gru.range(grads.w_logits, p.n.Z() * n.U)};
  for_each_team_summing<Scratch<T, O>>(
      p.n.B, weights.packings.weights(), arena.bytes(), threads, p.n.weights(), ptr<T>(p.d_weights), norms, products,
      [&](int64_t rows, int64_t) { return Scratch<T, O>(p.n, rows); },
      [&](int64_t first, int64_t rows, Team team, const Scratch<T, O>& scratch, T* sums, T* own_norms) {
        const Grads<T> shared(p.n, sums);
        Grads<T> mine = shared;
        if (own_norms) mine.move_norms(p.n, own_norms);
        ObserveBackward<T, O>(p, weights, first, rows, team, scratch, shared, mine).run();
      });
}

}  // namespace

void rssm_observe_backward_kernel(const RssmObserveBackward& p) {
  with_types(p.gru, [&](auto t, auto o) { observe_backward<decltype(t), decltype(o)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
