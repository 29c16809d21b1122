#include <initializer_list>

#include "cpu/rssm_plan.h"

namespace fastwm::FASTWM_ISA {
namespace {

// The weights, transposed and packed once a call.
template <typename T>
struct Weights {
  Packed<T> logits, deter, post, gates[3], own, embeds, stoch;

  static constexpr int kCount = 9;
  Packed<T>* all[kCount] = {&logits, &deter, &post, &gates[0], &gates[1], &gates[2], &own, &embeds, &stoch};

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
    for (const Packed<T>* w : all) sum += w->blocks * w->K * w->N;
    return sum;
  }
  int64_t bytes() const {
    int64_t sum = 0;
    for (const Packed<T>* w : all) sum += Arena::bytes<T>(w->size());
    return sum;
  }
  void pack(const RssmWeights& w, const RssmSizes& n, Arena& arena, int threads) {
    for (Packed<T>* packed : all) packed->data = arena.take<T>(packed->size());
    const auto gate = [&](int part) {
      return Weight{ptr<T>(w.gates.data) + part * n.J() * w.gates.sn, w.gates.sg, w.gates.sn, w.gates.sk};
    };
    const auto blocked = [&](const Weight& x) { return Weight{x.data, n.J() * x.sk, x.sn, x.sk}; };
    const Weight sources[] = {w.logits.transposed(), blocked(w.deter),     blocked(w.post),
                              gate(0),               gate(1),              gate(2),
                              w.own.transposed(),    w.embeds.transposed(), w.stoch.transposed()};
    Packing<T> items[kCount];
    for (int i = 0; i < kCount; ++i) items[i] = {all[i], sources[i]};
    pack_all(items, kCount, threads);
  }
};

template <typename T>
struct Scratch {
  Arena arena;
  T *d_z, *probs, *d_post, *d_deter, *d_hidden, *d_x;  // [R, Z] [R, Z] [R, U] [R, D] [R, D] [R, 2U]
  T* d_embed;                                          // [R, U]: d_embeds of deter at t + 1, zero after a reset

  Scratch(const RssmSizes& n, int64_t rows) : arena((2 * n.Z() + 4 * n.U + 2 * n.D) * rows * sizeof(T) + 1024) {
    for (T** part : {&d_z, &probs}) *part = arena.take<T>(rows * n.Z());
    for (T** part : {&d_post, &d_embed}) *part = arena.take<T>(rows * n.U);
    for (T** part : {&d_deter, &d_hidden}) *part = arena.take<T>(rows * n.D);
    d_x = arena.take<T>(rows * 2 * n.U);
  }
};

// The norms' gradients, summed by one member of one team.
template <typename T>
struct NormGrads {
  T *embeds, *hidden, *post;
};

template <typename T>
class ObserveBackward {
 public:
  ObserveBackward(const RssmObserveBackward& p, const Weights<T>& w, int64_t first_row, int64_t rows, Team team,
                  const Scratch<T>& s, NormGrads<T> norms)
      : p_(p), n_(p.n), w_(w), row0_(first_row), rows_(rows), team_(team), s_(s), norms_(norms), eps_(p.w.eps) {}

  void run() {
    start();
    for (int64_t t = n_.T - 1; t >= 0; --t) {
      base_ = t * n_.B + row0_;
      sample();
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
      team_.wait();
    }
  }

 private:
  bool first(int64_t t, int64_t r) const { return p_.is_first[t * n_.B + row0_ + r]; }
  T* at(void* array, int64_t width) const { return ptr<T>(array) + base_ * width; }
  const T* at(const void* array, int64_t width) const { return ptr<T>(array) + base_ * width; }

  void start() {
    const Range rows = team_.range(rows_);
    const int64_t count = rows.last - rows.first;
    zero_rows(count, n_.Z(), s_.d_z + rows.first * n_.Z(), n_.Z());
    zero_rows(count, n_.D, s_.d_deter + rows.first * n_.D, n_.D);
    zero_rows(count, n_.U, s_.d_embed + rows.first * n_.U, n_.U);
  }

  // d_z holds what the next step's embedding of the sample asks for.
  void sample() {
    const int64_t Z = n_.Z();
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      T* d_z = s_.d_z + r * Z;
      const T* g = at(p_.g_stoch, Z) + r * Z;
#pragma omp simd
      for (int64_t z = 0; z < Z; ++z) d_z[z] += g[z];
      sample_row_backward(n_.S, n_.C, at(p_.logits, Z) + r * Z, static_cast<T>(p_.w.unimix), d_z,
                          at(p_.g_logits, Z) + r * Z, s_.probs + r * Z, at(p_.d_logits, Z) + r * Z);
    }
  }

  void logits() {
    const Range tasks = team_.range(w_.logits.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      T* out = s_.d_post + task * kPanel<T>;
      zero_rows(rows_, w_.logits.width(task), out, n_.U);
      multiply(rows_, at(p_.d_logits, n_.Z()), n_.Z(), w_.logits, task, out, n_.U);
    }
  }

  void norm_posterior() {
    const int64_t U = n_.U;
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r)
      rms_silu_backward(U, at(p_.post, U) + r * U, ptr<T>(p_.w.n_post), eps_, s_.d_post + r * U,
                        at(p_.d_post, U) + r * U, at(p_.a_post, U) + r * U, norms_.post);
  }

  // d_deter holds what step t + 1 asks for past its products; here it becomes the same for step t - 1.
  void gates(int64_t t) {
    const int64_t D = n_.D, J = n_.J();
    const T* prev = t > 0 ? ptr<T>(p_.deter) + (base_ - n_.B) * D : ptr<T>(p_.deter0) + row0_ * D;
    const Range tasks = team_.range(w_.post.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / w_.post.panels(), panel = task % w_.post.panels(), j = panel * kPanel<T>, d = g * J + j;
      const int64_t width = w_.post.width(panel);
      for (int64_t r = 0; r < rows_; ++r) {
        T* d_deter = s_.d_deter + r * D + d;
        const T* from = at(p_.g_deter, D) + r * D + d;
        const T carried = t + 1 < n_.T && first(t + 1, r) ? 0 : 1;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) d_deter[i] = from[i] + carried * d_deter[i];
      }
      multiply(rows_, at(p_.d_post, n_.U), n_.U, w_.post, task, s_.d_deter + d, D);
      multiply(rows_, s_.d_embed, n_.U, w_.deter, task, s_.d_deter + d, D);
      for (int64_t r = 0; r < rows_; ++r) {
        const int64_t row = r * 3 * D + 3 * g * J + j;
        const T *pre = at(p_.gates, 3 * D) + row, zeros[kPanel<T>] = {};
        T* out = at(p_.d_gates, 3 * D) + row;
        gates_row_backward(width, pre, pre + J, pre + 2 * J, first(t, r) ? zeros : prev + r * D + d,
                           s_.d_deter + r * D + d, out, out + J, out + 2 * J);
      }
    }
  }

  void hidden() {
    const int64_t D = n_.D, J = n_.J();
    const Packed<T>& shape = w_.gates[0];
    const Range tasks = team_.range(shape.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / shape.panels(), panel = task % shape.panels();
      T* out = s_.d_hidden + g * J + panel * kPanel<T>;
      zero_rows(rows_, shape.width(panel), out, D);
      for (int i = 0; i < 3; ++i)
        multiply(rows_, at(p_.d_gates, 3 * D) + (3 * g + i) * J, 3 * D, w_.gates[i], task, out, D);
    }
  }

  void norm_hidden() {
    const int64_t D = n_.D;
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r)
      rms_silu_backward(D, at(p_.hidden, D) + r * D, ptr<T>(p_.w.n_hidden), eps_, s_.d_hidden + r * D,
                        at(p_.d_hidden, D) + r * D, at(p_.a_hidden, D) + r * D, norms_.hidden);
  }

  void embeds() {
    const int64_t D = n_.D, J = n_.J(), panels = w_.embeds.panels();
    const Range tasks = team_.range(panels);
    for (int64_t panel = tasks.first; panel < tasks.last; ++panel) {
      T* out = s_.d_x + panel * kPanel<T>;
      zero_rows(rows_, w_.embeds.width(panel), out, 2 * n_.U);
      for (int64_t g = 0; g < n_.G; ++g)
        multiply(rows_, at(p_.d_hidden, D) + g * J, D, w_.embeds, g * panels + panel, out, 2 * n_.U);
    }
  }

  void own() {
    const int64_t D = n_.D, J = n_.J();
    const Range tasks = team_.range(w_.own.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / w_.own.panels(), panel = task % w_.own.panels();
      multiply(rows_, at(p_.d_hidden, D) + g * J, D, w_.own, task, s_.d_deter + g * J + panel * kPanel<T>, D);
    }
  }

  void norm_embeds(int64_t t) {
    const int64_t U = n_.U;
    const T* scales[] = {ptr<T>(p_.w.n_deter), ptr<T>(p_.w.n_stoch)};
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      for (int part = 0; part < 2; ++part) {
        const int64_t i = (2 * r + part) * U;
        rms_silu_backward(U, at(p_.embeds, 2 * U) + i, scales[part], eps_, s_.d_x + i, at(p_.d_embeds, 2 * U) + i,
                          at(p_.a_embeds, 2 * U) + i, norms_.embeds + part * U);
      }
      copy_rows(1, U, at(p_.d_embeds, 2 * U) + 2 * r * U, U, s_.d_embed + r * U, U);
      if (first(t, r)) zero_rows(1, U, s_.d_embed + r * U, U);
    }
  }

  // The way back through the one-hot sample of the step before.
  void stoch(int64_t t) {
    const Range tasks = team_.range(w_.stoch.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t width = w_.stoch.width(task);
      T* out = s_.d_z + task * kPanel<T>;
      zero_rows(rows_, width, out, n_.Z());
      multiply(rows_, at(p_.d_embeds, 2 * n_.U) + n_.U, 2 * n_.U, w_.stoch, task, out, n_.Z());
      for (int64_t r = 0; r < rows_; ++r)
        if (first(t, r)) zero_rows(1, width, out + r * n_.Z(), n_.Z());
    }
  }

  const RssmObserveBackward& p_;
  const RssmSizes& n_;
  const Weights<T>& w_;
  const int64_t row0_, rows_;
  const Team team_;
  const Scratch<T>& s_;
  const NormGrads<T> norms_;
  const T eps_;
  int64_t base_ = 0;
};

template <typename T>
void observe_backward(const RssmObserveBackward& p) {
  const int threads = max_threads();
  Weights<T> weights(p.n);
  const int64_t bytes = weights.bytes();
  Arena arena(bytes);
  weights.pack(p.w, p.n, arena, threads);

  // One slot of norm gradients for every tile of rows, or member of the one team; summed in order at the end.
  const int64_t tiles = (p.n.B + kTileRows - 1) / kTileRows, slots = tiles > threads ? tiles : threads;
  const int64_t width = 3 * p.n.U + p.n.D;
  Arena sums(Arena::bytes<T>(slots * width));
  T* slot = sums.take<T>(slots * width);
  zero_rows(slots, width, slot, width);
  for_each_team<Scratch<T>>(
      p.n.B, weights.count(), bytes, threads, [&](int64_t rows) { return Scratch<T>(p.n, rows); },
      [&](int64_t first, int64_t rows, Team team, const Scratch<T>& scratch) {
        T* mine = slot + (team.size > 1 ? team.rank : first / kTileRows) * width;
        const NormGrads<T> norms{mine, mine + 2 * p.n.U, mine + 2 * p.n.U + p.n.D};
        ObserveBackward<T>(p, weights, first, rows, team, scratch, norms).run();
      });
  for (int64_t i = 1; i < slots; ++i)
    for (int64_t k = 0; k < width; ++k) slot[k] += slot[i * width + k];
  convert(2 * p.n.U, slot, ptr<T>(p.dn_embeds));
  convert(p.n.D, slot + 2 * p.n.U, ptr<T>(p.dn_hidden));
  convert(p.n.U, slot + 2 * p.n.U + p.n.D, ptr<T>(p.dn_post));
}

}  // namespace

void rssm_observe_backward_kernel(const RssmObserveBackward& p) {
  p.dtype == Dtype::f64 ? observe_backward<double>(p) : observe_backward<float>(p);
}

}  // namespace fastwm::FASTWM_ISA
