#include <initializer_list>

#include "rssm_plan.h"

namespace fastwm::FASTWM_ISA {
namespace {

// The weights, packed once a call. T is what sums, norms and the state are in, O what products multiply.
template <typename T, typename O>
struct Weights {
  Packed<O> deter, post, own, embeds, gates[3], logits;
  T* stoch;  // [Z, U], rows to be gathered

  static constexpr int kCount = 8;
  Packed<O>* all[kCount] = {&deter, &post, &own, &embeds, &gates[0], &gates[1], &gates[2], &logits};

  explicit Weights(const RssmSizes& n)
      : deter{1, n.D, n.U},     post{1, n.D, n.U}, own{n.G, n.J(), n.J()}, embeds{n.G, 2 * n.U, n.J()},
        gates{{n.G, n.J(), n.J()}, {n.G, n.J(), n.J()}, {n.G, n.J(), n.J()}}, logits{1, n.U, n.Z()} {}

  int64_t count() const {
    int64_t sum = 0;
    for (const Packed<O>* w : all) sum += w->blocks * w->K * w->N;
    return sum;
  }
  int64_t bytes(const RssmSizes& n) const {
    int64_t sum = Arena::bytes<T>(n.Z() * n.U);
    for (const Packed<O>* w : all) sum += Arena::bytes<O>(w->size());
    return sum;
  }
  void pack(const RssmWeights& w, const RssmSizes& n, Arena& arena, int threads) {
    for (Packed<O>* packed : all) packed->data = arena.take<O>(packed->size());
    const auto gate = [&](int part) {
      return Weight{ptr<T>(w.gates.data) + part * n.J() * w.gates.sn, w.gates.sg, w.gates.sk, w.gates.sn};
    };
    const Weight sources[] = {w.deter, w.post, w.own, w.embeds, gate(0), gate(1), gate(2), w.logits};
    Packing<O> items[kCount];
    for (int i = 0; i < kCount; ++i) items[i] = {all[i], sources[i]};
    pack_all(items, kCount, threads);
    stoch = arena.take<T>(n.Z() * n.U);
    pack_rows(w.stoch, 0, n.Z(), n.U, stoch);
  }
};

// A team's scratch: operands of products, and what is not saved.
template <typename T, typename O>
struct Scratch {
  Arena arena;
  O *h, *x, *hidden_act, *post_act;             // operands [R, D] [R, 2U] [R, D] [R, U]
  T *obs, *embeds, *hidden, *gates, *post;      // [R, U] [R, 2U] [R, D] [R, 3D] [R, U]

  Scratch(const RssmSizes& n, int64_t rows) : arena((9 * n.U + 6 * n.D) * rows * sizeof(T) + 1024) {
    for (O** operand : {&h, &hidden_act}) *operand = arena.take<O>(rows * n.D);
    post_act = arena.take<O>(rows * n.U);
    x = arena.take<O>(rows * 2 * n.U);
    hidden = arena.take<T>(rows * n.D);
    for (T** part : {&obs, &post}) *part = arena.take<T>(rows * n.U);
    embeds = arena.take<T>(rows * 2 * n.U);
    gates = arena.take<T>(rows * 3 * n.D);
  }
};

// The sequence of some rows, as one member of a team sees it.
template <typename T, typename O>
class Observe {
 public:
  Observe(const RssmObserve& p, const Weights<T, O>& w, int64_t first_row, int64_t rows, Team team,
          const Scratch<T, O>& s)
      : p_(p), n_(p.n), w_(w), row0_(first_row), rows_(rows), team_(team), s_(s), eps_(p.w.eps) {}

  void run() {
    const AmxTiles tiles(use_amx<O>(), rows_);
    copy_start();
    team_.wait();
    embed_deter(team_.range(w_.deter.tasks()));
    team_.wait();
    mask_deter(0);
    for (int64_t t = 0; t < n_.T; ++t) {
      base_ = t * n_.B + row0_;
      embed(t);
      team_.wait();
      hidden();
      team_.wait();
      norm_hidden();
      team_.wait();
      gates(t);
      team_.wait();
      posterior(t);
      team_.wait();
      norm_posterior(t);
      team_.wait();
      logits();
      team_.wait();
      sample();
    }
  }

 private:
  // Row r of an output or, where it is not wanted, of scratch.
  T* saved(void* output, T* scratch, int64_t width) const {
    return output ? ptr<T>(output) + base_ * width : scratch;
  }
  bool first(int64_t t, int64_t r) const { return p_.is_first[t * n_.B + row0_ + r]; }

  void copy_start() {
    const Range rows = team_.range(rows_);
    convert((rows.last - rows.first) * n_.D, ptr<T>(p_.deter0) + (row0_ + rows.first) * n_.D,
            s_.h + rows.first * n_.D);
  }

  // Forget h where the next step is a first one.
  void mask_deter(int64_t next) {
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r)
      if (first(next, r)) zero_rows(1, n_.D, s_.h + r * n_.D, n_.D);
  }

  // The deter part of the embeddings that the next step reads.
  void embed_deter(Range tasks) {
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t u = task * kPanelOf<O>;
      copy_rows(rows_, w_.deter.width(task), ptr<T>(p_.w.b_deter) + u, 0, s_.obs + u, n_.U);
      multiply(rows_, s_.h, n_.D, w_.deter, task, s_.obs + u, n_.U);
    }
  }

  void embed(int64_t t) {
    const int64_t U = n_.U;
    T* pre = saved(p_.saved.embeds, s_.embeds, 2 * U);
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      T *deter = pre + r * 2 * U, *stoch = deter + U;
      copy_rows(1, U, first(t, r) ? ptr<T>(p_.w.b_deter) : s_.obs + r * U, U, deter, U);
      copy_rows(1, U, ptr<T>(p_.w.b_stoch), U, stoch, U);
      if (!first(t, r)) t == 0 ? embed_start(r, stoch) : embed_sample(r, stoch);
      rms_silu(U, deter, ptr<T>(p_.w.n_deter), eps_, s_.x + r * 2 * U);
      rms_silu(U, stoch, ptr<T>(p_.w.n_stoch), eps_, s_.x + r * 2 * U + U);
    }
  }

  // The start state may be anything; zeros cost nothing.
  void embed_start(int64_t r, T* sum) const {
    const T* start = ptr<T>(p_.stoch0) + (row0_ + r) * n_.Z();
    for (int64_t z = 0; z < n_.Z(); ++z)
      if (start[z] != 0) add_scaled(n_.U, start[z], w_.stoch + z * n_.U, sum);
  }

  // One-hot times weight: a gather of S rows.
  void embed_sample(int64_t r, T* sum) const {
    const int64_t* index = p_.index + (base_ - n_.B + r) * n_.S;
    for (int64_t s = 0; s < n_.S; ++s) add_scaled(n_.U, T(1), w_.stoch + (s * n_.C + index[s]) * n_.U, sum);
  }

  void hidden() {
    const int64_t D = n_.D, J = n_.J();
    T* pre = saved(p_.saved.hidden, s_.hidden, D);
    const Range tasks = team_.range(w_.own.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / w_.own.panels(), panel = task % w_.own.panels(), d = g * J + panel * kPanelOf<O>;
      copy_rows(rows_, w_.own.width(panel), ptr<T>(p_.hidden_in) + base_ * D + d, D, pre + d, D);
      multiply(rows_, s_.x, 2 * n_.U, w_.embeds, task, pre + d, D);
      multiply(rows_, s_.h + g * J, D, w_.own, task, pre + d, D);
    }
  }

  void norm_hidden() {
    const T* pre = saved(p_.saved.hidden, s_.hidden, n_.D);
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r)
      rms_silu(n_.D, pre + r * n_.D, ptr<T>(p_.w.n_hidden), eps_, s_.hidden_act + r * n_.D);
  }

  void gates(int64_t t) {
    const int64_t D = n_.D, J = n_.J();
    T* pre = saved(p_.saved.gates, s_.gates, 3 * D);
    const T* prev = t > 0 ? ptr<T>(p_.deter) + (base_ - n_.B) * D : ptr<T>(p_.deter0) + row0_ * D;
    const Packed<O>& shape = w_.gates[0];
    const Range tasks = team_.range(shape.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / shape.panels(), panel = task % shape.panels(), j = panel * kPanelOf<O>, d = g * J + j;
      const int64_t width = shape.width(panel);
      T* part[3];
      for (int i = 0; i < 3; ++i) {
        part[i] = pre + (3 * g + i) * J + j;
        copy_rows(rows_, width, ptr<T>(p_.w.b_gates) + (3 * g + i) * J + j, 0, part[i], 3 * D);
        multiply(rows_, s_.hidden_act + g * J, D, w_.gates[i], task, part[i], 3 * D);
      }
      for (int64_t r = 0; r < rows_; ++r) {
        const int64_t at = r * 3 * D;
        const T zeros[kPanelOf<O>] = {};
        gates_row(width, part[0] + at, part[1] + at, part[2] + at, first(t, r) ? zeros : prev + r * D + d,
                  ptr<T>(p_.deter) + (base_ + r) * D + d, s_.h + r * D + d);
      }
    }
  }

  // The posterior's and the next step's layer of the same deter.
  void posterior(int64_t t) {
    T* pre = saved(p_.saved.post, s_.post, n_.U);
    const int64_t own = w_.post.tasks(), next = t + 1 < n_.T ? w_.deter.tasks() : 0;
    const Range tasks = team_.range(own + next);
    for (int64_t task = tasks.first; task < tasks.last && task < own; ++task) {
      const int64_t u = task * kPanelOf<O>;
      copy_rows(rows_, w_.post.width(task), ptr<T>(p_.post_in) + base_ * n_.U + u, n_.U, pre + u, n_.U);
      multiply(rows_, s_.h, n_.D, w_.post, task, pre + u, n_.U);
    }
    embed_deter({tasks.first > own ? tasks.first - own : 0, tasks.last - own});
  }

  void norm_posterior(int64_t t) {
    const T* pre = saved(p_.saved.post, s_.post, n_.U);
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r)
      rms_silu(n_.U, pre + r * n_.U, ptr<T>(p_.w.n_post), eps_, s_.post_act + r * n_.U);
    if (t + 1 < n_.T) mask_deter(t + 1);
  }

  void logits() {
    const int64_t Z = n_.Z();
    T* out = ptr<T>(p_.logits) + base_ * Z;
    const Range tasks = team_.range(w_.logits.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t z = task * kPanelOf<O>;
      copy_rows(rows_, w_.logits.width(task), ptr<T>(p_.w.b_logits) + z, 0, out + z, Z);
      multiply(rows_, s_.post_act, n_.U, w_.logits, task, out + z, Z);
    }
  }

  void sample() {
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      const int64_t at = base_ + r;
      sample_row(n_.S, n_.C, ptr<T>(p_.logits) + at * n_.Z(), static_cast<T>(p_.w.unimix),
                 ptr<T>(p_.uniform) + at * n_.S, ptr<T>(p_.stoch) + at * n_.Z(), p_.index + at * n_.S);
    }
  }

  const RssmObserve& p_;
  const RssmSizes& n_;
  const Weights<T, O>& w_;
  const int64_t row0_, rows_;
  const Team team_;
  const Scratch<T, O>& s_;
  const T eps_;
  int64_t base_ = 0;  // row row0_ of step t, counted through [T, B]
};

template <typename T, typename O>
void observe(const RssmObserve& p) {
  const int threads = max_threads();
  Weights<T, O> weights(p.n);
  const int64_t bytes = weights.bytes(p.n);
  Arena arena(bytes);
  weights.pack(p.w, p.n, arena, threads);
  for_each_team<Scratch<T, O>>(
      p.n.B, weights.count(), bytes, threads, [&](int64_t rows) { return Scratch<T, O>(p.n, rows); },
      [&](int64_t first, int64_t rows, Team team, const Scratch<T, O>& scratch) {
        Observe<T, O>(p, weights, first, rows, team, scratch).run();
      });
}

}  // namespace

void rssm_observe_kernel(const RssmObserve& p) {
#if FASTWM_BF16
  if (p.bf16 && p.dtype == Dtype::f32 && has_bf16()) return observe<float, bf16>(p);
#endif
  p.dtype == Dtype::f64 ? observe<double, double>(p) : observe<float, float>(p);
}

}  // namespace fastwm::FASTWM_ISA
