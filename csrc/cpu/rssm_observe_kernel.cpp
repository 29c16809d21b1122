#include "block_gru_forward.h"
#include "latent_rows.h"
#include "fastwm/params/rssm_observe.h"

namespace fastwm::FASTWM_ISA {
namespace {

// The weights, packed once a call. T is what sums, norms and the state are in, O what products multiply.
template <typename T, typename O>
struct Weights {
  Packings<O> packings;
  GruWeights<T, O> gru;
  Packed<O> post, logits;
  T* stoch;  // [Z, U], rows to be gathered

  explicit Weights(const RssmObserve& p)
      : gru(p.gru.n, p.gru.w, packings), post{1, p.n.D, p.n.U}, logits{1, p.n.U, p.n.Z()} {
    packings.add(post, p.w.post);
    packings.add(logits, p.w.logits);
  }
  Weights(const Weights&) = delete;

  void place(Arena& arena, const RssmSizes& n) {
    packings.place(arena);
    stoch = arena.take<T>(n.Z() * n.U);
  }
  void pack(const RssmObserve& p, int threads) const {
    packings.pack(threads);
    pack_rows(p.w.stoch, 0, p.n.Z(), p.n.U, stoch);
  }
};

// A team's scratch.
template <typename T, typename O>
struct Scratch {
  GruScratch<T, O> gru;
  O* act;   // [R, U]: the posterior's layer, an operand
  T* post;  // [R, U]: the same before its norm, where it is not saved
  Arena arena;

  Scratch(const RssmSizes& n, int64_t rows, int64_t members)
      : arena([&](Arena& a) {
          gru.place(a, n.gru(), rows, members);
          act = a.take<O>(rows * n.U);
          post = a.take<T>(rows * n.U);
        }) {}
};

// The sequence of some rows, as one member of a team sees it.
template <typename T, typename O>
class Observe {
 public:
  Observe(const RssmObserve& p, const Weights<T, O>& w, int64_t first_row, int64_t rows, Team team,
          const Scratch<T, O>& s)
      : p_(p), n_(p.n), w_(w), rows_(rows), row0_(first_row), team_(team), s_(s), eps_(p.gru.eps),
        gru_(p.gru, w.gru, first_row, rows, team, s.gru) {}

  void run() {
    const AmxTiles tiles(use_amx<O>(), rows_);
    gru_.start();
    for (int64_t t = 0; t < n_.T && !team_.leaves(t); ++t) {
      embed(t);
      team_.wait();
      gru_.hidden(t);
      team_.wait();
      gru_.norm_hidden(t);
      team_.wait();
      gru_.gates(t);
      team_.wait();
      posterior(t);
      team_.wait();
      norm_posterior(t);
      team_.wait();
      logits(t);
      team_.wait();
      sample(t);
    }
  }

 private:
  // Row row0_ of step t in the posterior's layer, which is saved or in scratch.
  T* post(int64_t t) const { return p_.post ? ptr<T>(p_.post) + gru_.base(t) * n_.U : s_.post; }

  void embed(int64_t t) {
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      gru_.norm_carry(t, r);
      T* stoch = gru_.embedding(t, r, 1);
      copy_rows(1, n_.U, ptr<T>(p_.w.b_stoch), n_.U, stoch, n_.U);
      if (!gru_.first(t, r)) t == 0 ? embed_start(r, stoch) : embed_sample(t, r, stoch);
      gru_.norm_embedding(t, r, 1, p_.w.n_stoch);
    }
  }

  // The start state may be anything; zeros cost nothing.
  void embed_start(int64_t r, T* sum) const {
    const T* start = ptr<T>(p_.stoch0) + (row0_ + r) * n_.Z();
    for (int64_t z = 0; z < n_.Z(); ++z)
      if (start[z] != 0) add_scaled(n_.U, start[z], w_.stoch + z * n_.U, sum);
  }

  // One-hot times weight: a gather of S rows. The one is read: it may be NaN.
  void embed_sample(int64_t t, int64_t r, T* sum) const {
    const int64_t* index = p_.index + (gru_.base(t - 1) + r) * n_.S;
    const T* stoch = ptr<T>(p_.stoch) + (gru_.base(t - 1) + r) * n_.Z();
    for (int64_t s = 0; s < n_.S; ++s) {
      const int64_t z = s * n_.C + index[s];
      add_scaled(n_.U, stoch[z], w_.stoch + z * n_.U, sum);
    }
  }

  // The posterior's and the next step's layer of the same deter.
  void posterior(int64_t t) {
    T* pre = post(t);
    const int64_t own = w_.post.tasks(), next = t + 1 < n_.T ? w_.gru.carry.tasks() : 0;
    const Range tasks = team_.range(own + next);
    for (int64_t task = tasks.first; task < tasks.last && task < own; ++task) {
      const int64_t u = task * kPanelOf<O>;
      const Start<T> start{ptr<T>(p_.post_in) + gru_.base(t) * n_.U + u, n_.U};
      multiply(rows_, s_.gru.h, n_.D, w_.post, task, start, pre + u, n_.U);
    }
    gru_.embed_carry({tasks.first > own ? tasks.first - own : 0, tasks.last - own});
  }

  void norm_posterior(int64_t t) {
    const T* pre = post(t);
    const Range rows = team_.range(rows_);
    rms_silu(rows.last - rows.first, n_.U, pre + rows.first * n_.U, n_.U, ptr<T>(p_.w.n_post), eps_,
             s_.act + rows.first * n_.U, n_.U);
    if (t + 1 < n_.T) gru_.forget(t + 1);
  }

  void logits(int64_t t) {
    const int64_t Z = n_.Z();
    T* out = ptr<T>(p_.logits) + gru_.base(t) * Z;
    const Range tasks = team_.range(w_.logits.tasks());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t z = task * kPanelOf<O>;
      multiply(rows_, s_.act, n_.U, w_.logits, task, Start<T>{ptr<T>(p_.w.b_logits) + z, 0}, out + z, Z);
    }
  }

  void sample(int64_t t) {
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      const int64_t at = gru_.base(t) + r;
      sample_row(n_.S, n_.C, ptr<T>(p_.logits) + at * n_.Z(), static_cast<T>(p_.w.unimix),
                 ptr<T>(p_.uniform) + at * n_.S, ptr<T>(p_.stoch) + at * n_.Z(), p_.index + at * n_.S);
    }
  }

  const RssmObserve& p_;
  const RssmSizes& n_;
  const Weights<T, O>& w_;
  const int64_t rows_, row0_;
  const Team team_;
  const Scratch<T, O>& s_;
  const T eps_;
  GruSteps<T, O> gru_;
};

template <typename T, typename O>
void observe(const RssmObserve& p) {
  const int threads = max_threads();
  Weights<T, O> weights(p);
  const Arena arena([&](Arena& a) { weights.place(a, p.n); });
  weights.pack(p, threads);
  for_each_team<Scratch<T, O>>(
      p.n.B, weights.packings.weights(), arena.bytes(), threads,
      [&](int64_t rows, int64_t members) { return Scratch<T, O>(p.n, rows, members); },
      [&](int64_t first, int64_t rows, Team team, const Scratch<T, O>& scratch) {
        Observe<T, O>(p, weights, first, rows, team, scratch).run();
      });
}

}  // namespace

void rssm_observe_kernel(const RssmObserve& p) {
  with_types(p.gru, [&](auto t, auto o) { observe<decltype(t), decltype(o)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
