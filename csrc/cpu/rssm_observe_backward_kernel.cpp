#include <initializer_list>

#include "weight_grads.h"

namespace fastwm::FASTWM_ISA {
namespace {

// The weights, transposed and packed once a call. T is what sums and norms are in, O what products multiply.
template <typename T, typename O>
struct Weights {
  Packed<O> logits, deter, post, gates[3], own, embeds, stoch;

  static constexpr int kCount = 9;
  Packed<O>* all[kCount] = {&logits, &deter, &post, &gates[0], &gates[1], &gates[2], &own, &embeds, &stoch};

  explicit Weights(const RssmSizes& n)
      : logits{1, n.Z(), n.U},
        deter{n.G, n.U, n.J()},
        post{n.G, n.U, n.J()},
        gates{{n.G, n.J(), n.J()}, {n.G, n.J(), n.J()}, {n.G, n.J(), n.J()}},
        own{n.G, n.J(), n.J()},
        embeds{n.G, n.J(), 2 * n.U},
        stoch{1, n.U, n.Z()} {}

  int64_t count() const {
    int64_t sum = 0;
    for (const Packed<O>* w : all) sum += w->blocks * w->K * w->N;
    return sum;
  }
  int64_t bytes() const {
    int64_t sum = 0;
    for (const Packed<O>* w : all) sum += Arena::bytes<O>(w->size());
    return sum;
  }
  void pack(const RssmWeights& w, const RssmSizes& n, Arena& arena, int threads) {
    for (Packed<O>* packed : all) packed->data = arena.take<O>(packed->size());
    const auto gate = [&](int part) {
      return Weight{ptr<T>(w.gates.data) + part * n.J() * w.gates.sn, w.gates.sg, w.gates.sn, w.gates.sk};
    };
    const auto blocked = [&](const Weight& x) { return Weight{x.data, n.J() * x.sk, x.sn, x.sk}; };
    const Weight sources[] = {w.logits.transposed(), blocked(w.deter),     blocked(w.post),
                              gate(0),               gate(1),              gate(2),
                              w.own.transposed(),    w.embeds.transposed(), w.stoch.transposed()};
    Packing<O> items[kCount];
    for (int i = 0; i < kCount; ++i) items[i] = {all[i], sources[i]};
    pack_all(items, kCount, threads);
  }
};

// The gradients of all weights, in the layout of RssmObserveBackward.
template <typename T>
struct Grads {
  T *w_deter, *b_deter, *n_deter, *w_stoch, *b_stoch, *n_stoch, *w_own, *w_embeds, *n_hidden, *w_gates, *b_gates;
  T *w_post, *n_post, *w_logits, *b_logits;

  Grads(const RssmSizes& n, T* all) {
    const auto take = [&all](int64_t size) { return (all += size) - size; };
    w_deter = take(n.U * n.D), b_deter = take(n.U), n_deter = take(n.U);
    w_stoch = take(n.U * n.Z()), b_stoch = take(n.U), n_stoch = take(n.U);
    w_own = take(n.D * n.J()), w_embeds = take(2 * n.U * n.D), n_hidden = take(n.D);
    w_gates = take(3 * n.D * n.J()), b_gates = take(3 * n.D);
    w_post = take(n.U * n.D), n_post = take(n.U);
    w_logits = take(n.Z() * n.U), b_logits = take(n.Z());
  }
};

template <typename T, typename O>
struct Scratch {
  Arena arena;
  T *d_z, *probs, *d_post_act, *d_deter, *d_hidden_act, *d_x;  // [R, Z] [R, Z] [R, U] [R, D] [R, D] [R, 2U]
  O* d_embed;  // [R, U]: d_embeds of deter at t + 1, zero after a reset
  // The step's factors of products, in O: d_logits [R, Z], d_post [R, U], d_gates [R, 3D], d_hidden [R, D], and
  // d_embeds of stoch [R, U].
  O *o_logits, *o_post, *o_gates, *o_hidden, *o_stoch;
  // Some steps' inputs of the layers, and the gradients before their norms and gates: [steps, R, width].
  T *past_deter, *past_stoch, *deter, *embeds, *hidden, *post;
  T *d_embeds, *d_hidden, *d_gates, *d_post, *d_logits;

  Scratch(const RssmSizes& n, int64_t rows)
      : arena(((3 * n.Z() + 6 * n.U + 6 * n.D) +
               chunk_steps(n.T, rows) * (2 * n.Z() + 6 * n.U + 7 * n.D)) * rows * sizeof(T) + 8192) {
    const int64_t chunk = chunk_steps(n.T, rows) * rows;
    for (T** part : {&d_z, &probs}) *part = arena.take<T>(rows * n.Z());
    d_post_act = arena.take<T>(rows * n.U);
    for (O** part : {&d_embed, &o_post, &o_stoch}) *part = arena.take<O>(rows * n.U);
    o_logits = arena.take<O>(rows * n.Z());
    o_gates = arena.take<O>(rows * 3 * n.D);
    o_hidden = arena.take<O>(rows * n.D);
    for (T** part : {&d_deter, &d_hidden_act}) *part = arena.take<T>(rows * n.D);
    d_x = arena.take<T>(rows * 2 * n.U);
    for (T** part : {&past_stoch, &d_logits}) *part = arena.take<T>(chunk * n.Z());
    for (T** part : {&post, &d_post}) *part = arena.take<T>(chunk * n.U);
    for (T** part : {&embeds, &d_embeds}) *part = arena.take<T>(chunk * 2 * n.U);
    for (T** part : {&past_deter, &deter, &hidden, &d_hidden}) *part = arena.take<T>(chunk * n.D);
    d_gates = arena.take<T>(chunk * 3 * n.D);
  }
};

template <typename T, typename O>
class ObserveBackward {
 public:
  // `shared` takes the weights' gradients of the whole team, `mine` those of the norms that this member sums.
  ObserveBackward(const RssmObserveBackward& p, const Weights<T, O>& w, int64_t first_row, int64_t rows, Team team,
                  const Scratch<T, O>& s, const Grads<T>& shared, const Grads<T>& mine)
      : p_(p), n_(p.n), w_(w), row0_(first_row), rows_(rows), team_(team), s_(s), shared_(shared), mine_(mine),
        eps_(p.w.eps), steps_(chunk_steps(p.n.T, rows)) {}

  void run() {
    const AmxTiles tiles(use_amx<O>(), rows_);
    start();
    for (int64_t t = n_.T - 1; t >= 0; --t) {
      base_ = t * n_.B + row0_;
      slot_ = t % steps_ * rows_;
      sample(t);
      team_.wait();
      logits();
      team_.wait();
      norm_posterior();
      team_.wait();
      gates(t);
      team_.wait();
      hidden();
      team_.wait();
      norm_hidden();
      team_.wait();
      embeds();
      own();
      team_.wait();
      norm_embeds(t);
      team_.wait();
      if (t > 0) stoch(t);
      if (t % steps_ == 0) weights((n_.T - t < steps_ ? n_.T - t : steps_) * rows_);
      team_.wait();
    }
  }

 private:
  bool first(int64_t t, int64_t r) const { return p_.is_first[t * n_.B + row0_ + r]; }
  // This step's rows of an array [T, B, width], and of one of the chunk.
  const T* at(const void* array, int64_t width) const { return ptr<T>(array) + base_ * width; }
  T* at(void* array, int64_t width) const { return ptr<T>(array) + base_ * width; }
  T* now(T* chunk, int64_t width) const { return chunk + slot_ * width; }

  void start() {
    const Range rows = team_.range(rows_);
    const int64_t count = rows.last - rows.first;
    zero_rows(count, n_.Z(), s_.d_z + rows.first * n_.Z(), n_.Z());
    zero_rows(count, n_.D, s_.d_deter + rows.first * n_.D, n_.D);
    zero_rows(count, n_.U, s_.d_embed + rows.first * n_.U, n_.U);
  }

  // d_z holds what the next step's embedding of the sample asks for.
  void sample(int64_t t) {
    const int64_t Z = n_.Z(), D = n_.D;
    const T* past_deter = t > 0 ? at(p_.deter, D) - n_.B * D : ptr<T>(p_.deter0) + row0_ * D;
    const T* past_stoch = t > 0 ? at(p_.stoch, Z) - n_.B * Z : ptr<T>(p_.stoch0) + row0_ * Z;
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      T* d_z = s_.d_z + r * Z;
      const T* g = at(p_.g_stoch, Z) + r * Z;
#pragma omp simd
      for (int64_t z = 0; z < Z; ++z) d_z[z] += g[z];
      sample_row_backward(n_.S, n_.C, at(p_.logits, Z) + r * Z, static_cast<T>(p_.w.unimix), d_z,
                          at(p_.g_logits, Z) + r * Z, s_.probs + r * Z, now(s_.d_logits, Z) + r * Z);
      convert(Z, now(s_.d_logits, Z) + r * Z, s_.o_logits + r * Z);
      copy_rows(1, D, at(p_.deter, D) + r * D, D, now(s_.deter, D) + r * D, D);
      if (first(t, r)) {
        zero_rows(1, D, now(s_.past_deter, D) + r * D, D);
        zero_rows(1, Z, now(s_.past_stoch, Z) + r * Z, Z);
      } else {
        copy_rows(1, D, past_deter + r * D, D, now(s_.past_deter, D) + r * D, D);
        copy_rows(1, Z, past_stoch + r * Z, Z, now(s_.past_stoch, Z) + r * Z, Z);
      }
    }
  }

  void logits() {
    const Range tasks = team_.range(w_.logits.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      T* out = s_.d_post_act + task * kPanelOf<O>;
      zero_rows(rows_, w_.logits.width(task), out, n_.U);
      multiply(rows_, s_.o_logits, n_.Z(), w_.logits, task, out, n_.U);
    }
  }

  void norm_posterior() {
    const int64_t U = n_.U;
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      T* d_post = now(s_.d_post, U) + r * U;
      rms_silu_backward(U, at(p_.post, U) + r * U, ptr<T>(p_.w.n_post), eps_, s_.d_post_act + r * U, d_post,
                        now(s_.post, U) + r * U, mine_.n_post);
      copy_rows(1, U, d_post, U, at(p_.d_post, U) + r * U, U);
      convert(U, d_post, s_.o_post + r * U);
    }
  }

  // d_deter holds what step t + 1 asks for past its products; here it becomes the same for step t - 1.
  void gates(int64_t t) {
    const int64_t D = n_.D, J = n_.J();
    const Range tasks = team_.range(w_.post.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / w_.post.panels(), panel = task % w_.post.panels();
      const int64_t j = panel * kPanelOf<O>, d = g * J + j;
      const int64_t width = w_.post.width(panel);
      for (int64_t r = 0; r < rows_; ++r) {
        T* d_deter = s_.d_deter + r * D + d;
        const T* from = at(p_.g_deter, D) + r * D + d;
        const T carried = t + 1 < n_.T && first(t + 1, r) ? 0 : 1;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) d_deter[i] = from[i] + carried * d_deter[i];
      }
      multiply(rows_, s_.o_post, n_.U, w_.post, task, s_.d_deter + d, D);
      multiply(rows_, s_.d_embed, n_.U, w_.deter, task, s_.d_deter + d, D);
      for (int64_t r = 0; r < rows_; ++r) {
        const int64_t row = r * 3 * D + 3 * g * J + j;
        const T* gate = at(p_.gates, 3 * D) + row;
        T* out = now(s_.d_gates, 3 * D) + row;
        gates_row_backward(width, gate, gate + J, gate + 2 * J, now(s_.past_deter, D) + r * D + d,
                           s_.d_deter + r * D + d, out, out + J, out + 2 * J);
        for (int i = 0; i < 3; ++i) convert(width, out + i * J, s_.o_gates + row + i * J);
      }
    }
  }

  void hidden() {
    const int64_t D = n_.D, J = n_.J();
    const Packed<O>& shape = w_.gates[0];
    const Range tasks = team_.range(shape.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / shape.panels(), panel = task % shape.panels();
      T* out = s_.d_hidden_act + g * J + panel * kPanelOf<O>;
      zero_rows(rows_, shape.width(panel), out, D);
      for (int i = 0; i < 3; ++i)
        multiply(rows_, s_.o_gates + (3 * g + i) * J, 3 * D, w_.gates[i], task, out, D);
    }
  }

  void norm_hidden() {
    const int64_t D = n_.D;
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      T* d_hidden = now(s_.d_hidden, D) + r * D;
      rms_silu_backward(D, at(p_.hidden, D) + r * D, ptr<T>(p_.w.n_hidden), eps_, s_.d_hidden_act + r * D, d_hidden,
                        now(s_.hidden, D) + r * D, mine_.n_hidden);
      copy_rows(1, D, d_hidden, D, at(p_.d_hidden, D) + r * D, D);
      convert(D, d_hidden, s_.o_hidden + r * D);
    }
  }

  void embeds() {
    const int64_t D = n_.D, J = n_.J(), panels = w_.embeds.panels();
    const Range tasks = team_.range(panels);
    for (int64_t panel = tasks.first; panel < tasks.last; ++panel) {
      T* out = s_.d_x + panel * kPanelOf<O>;
      zero_rows(rows_, w_.embeds.width(panel), out, 2 * n_.U);
      for (int64_t g = 0; g < n_.G; ++g)
        multiply(rows_, s_.o_hidden + g * J, D, w_.embeds, g * panels + panel, out, 2 * n_.U);
    }
  }

  void own() {
    const int64_t D = n_.D, J = n_.J();
    const Range tasks = team_.range(w_.own.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / w_.own.panels(), panel = task % w_.own.panels();
      multiply(rows_, s_.o_hidden + g * J, D, w_.own, task, s_.d_deter + g * J + panel * kPanelOf<O>, D);
    }
  }

  void norm_embeds(int64_t t) {
    const int64_t U = n_.U;
    const T* scales[] = {ptr<T>(p_.w.n_deter), ptr<T>(p_.w.n_stoch)};
    T* sums[] = {mine_.n_deter, mine_.n_stoch};
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      T* d_embeds = now(s_.d_embeds, 2 * U) + 2 * r * U;
      for (int part = 0; part < 2; ++part) {
        const int64_t i = (2 * r + part) * U;
        rms_silu_backward(U, at(p_.embeds, 2 * U) + i, scales[part], eps_, s_.d_x + i, d_embeds + part * U,
                          now(s_.embeds, 2 * U) + i, sums[part]);
      }
      convert(U, d_embeds, s_.d_embed + r * U);
      convert(U, d_embeds + U, s_.o_stoch + r * U);
      if (first(t, r)) zero_rows(1, U, s_.d_embed + r * U, U);
    }
  }

  // The way back through the one-hot sample of the step before.
  void stoch(int64_t t) {
    const Range tasks = team_.range(w_.stoch.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t width = w_.stoch.width(task);
      T* out = s_.d_z + task * kPanelOf<O>;
      zero_rows(rows_, width, out, n_.Z());
      multiply(rows_, s_.o_stoch, n_.U, w_.stoch, task, out, n_.Z());
      for (int64_t r = 0; r < rows_; ++r)
        if (first(t, r)) zero_rows(1, width, out + r * n_.Z(), n_.Z());
    }
  }

  // The weights' gradients of the chunk: products over its `count` rows of what went into a layer and came back.
  void weights(int64_t count) {
    const int64_t D = n_.D, U = n_.U, Z = n_.Z(), J = n_.J(), G = n_.G;
    const GradProduct<T> products[] = {
        {1, U, D, s_.d_embeds, 2 * U, 0, s_.past_deter, D, shared_.w_deter},
        {1, U, Z, s_.d_embeds + U, 2 * U, 0, s_.past_stoch, Z, shared_.w_stoch},
        {G, J, J, s_.past_deter, D, J, s_.d_hidden, D, shared_.w_own},
        {G, 2 * U, J, s_.embeds, 2 * U, 0, s_.d_hidden, D, shared_.w_embeds},
        {G, J, 3 * J, s_.hidden, D, J, s_.d_gates, 3 * D, shared_.w_gates},
        {1, U, D, s_.d_post, U, 0, s_.deter, D, shared_.w_post},
        {1, Z, U, s_.d_logits, Z, 0, s_.post, U, shared_.w_logits},
    };
    add_products<T, O>(products, count, team_);
    add_columns(count, s_.d_embeds, U, 2 * U, shared_.b_deter, team_);
    add_columns(count, s_.d_embeds + U, U, 2 * U, shared_.b_stoch, team_);
    add_columns(count, s_.d_gates, 3 * D, 3 * D, shared_.b_gates, team_);
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
  const int64_t steps_;
  int64_t base_ = 0, slot_ = 0;
};

template <typename T, typename O>
void observe_backward(const RssmObserveBackward& p) {
  const int threads = max_threads();
  Weights<T, O> weights(p.n);
  const int64_t bytes = weights.bytes();
  Arena arena(bytes);
  weights.pack(p.w, p.n, arena, threads);

  ThreadSums<T> sums(ptr<T>(p.d_weights), p.n.weights(), threads);
  for_each_team<Scratch<T, O>>(
      p.n.B, weights.count(), bytes, threads, [&](int64_t rows) { return Scratch<T, O>(p.n, rows); },
      [&](int64_t first, int64_t rows, Team team, const Scratch<T, O>& scratch) {
        T* sum = sums.mine();
        const Grads<T> mine(p.n, sum), shared(p.n, team.size > 1 ? ptr<T>(p.d_weights) : sum);
        ObserveBackward<T, O>(p, weights, first, rows, team, scratch, shared, mine).run();
      });
  sums.finish();
}

}  // namespace

void rssm_observe_backward_kernel(const RssmObserveBackward& p) {
#if FASTWM_BF16
  if (p.bf16 && p.dtype == Dtype::f32 && has_bf16()) return observe_backward<float, bf16>(p);
#endif
  p.dtype == Dtype::f64 ? observe_backward<double, double>(p) : observe_backward<float, float>(p);
}

}  // namespace fastwm::FASTWM_ISA
