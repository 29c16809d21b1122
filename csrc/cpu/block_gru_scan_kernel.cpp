#include "block_gru_backward.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename T, typename O>
struct Scratch {
  GruScratch<T, O> gru;
  Arena arena;

  Scratch(const BlockGruSizes& n, int64_t rows, int64_t members)
      : arena([&](Arena& a) { gru.place(a, n, rows, members); }) {}
};

template <typename T, typename O>
void walk(const BlockGruScan& p, const GruWeights<T, O>& weights, int64_t first, int64_t rows, Team team,
          const GruScratch<T, O>& scratch) {
  const AmxTiles tiles(use_amx<O>(), rows);
  GruSteps<T, O> gru(p, weights, first, rows, team, scratch);
  gru.start();
  for (int64_t t = 0; t < p.n.T && !team.leaves(t); ++t) {
    const Range own = team.range(rows);
    for (int64_t r = own.first; r < own.last; ++r) gru.norm_carry(t, r);
    team.wait();
    gru.hidden(t);
    team.wait();
    gru.norm_hidden(t);
    team.wait();
    gru.gates(t);
    team.wait();
    if (t + 1 == p.n.T) break;
    gru.embed_carry(team.range(weights.carry.tasks()));
    team.wait();
    gru.forget(t + 1);
  }
}

template <typename T, typename O>
void scan(const BlockGruScan& p) {
  const int threads = max_threads();
  Packings<O> packings;
  GruWeights<T, O> weights(p.n, p.w, packings);
  const Arena arena([&](Arena& a) { packings.place(a); });
  packings.pack(threads);
  for_each_team<Scratch<T, O>>(
      p.n.B, packings.weights(), arena.bytes(), threads,
      [&](int64_t rows, int64_t members) { return Scratch<T, O>(p.n, rows, members); },
      [&](int64_t first, int64_t rows, Team team, const Scratch<T, O>& scratch) {
        walk(p, weights, first, rows, team, scratch.gru);
      });
}

template <typename T, typename O>
struct BackScratch {
  GruBackScratch<T, O> gru;
  Arena arena;

  BackScratch(const BlockGruSizes& n, int64_t rows) : arena([&](Arena& a) { gru.place(a, n, rows); }) {}
};

// In the layout of BlockGruScanBackward.
template <typename T>
GruGrads<T> grads_in(const BlockGruSizes& n, T* array) {
  GradLayout<T> all{array};
  GruGrads<T> grads;
  grads.take_carry(n, all);
  grads.take_rest(n, all);
  return grads;
}

template <typename T, typename O>
void walk_back(const BlockGruScanBackward& p, const GruBackWeights<T, O>& weights, int64_t first, int64_t rows,
               Team team, const GruBackScratch<T, O>& scratch, T* sums, T* own_norms) {
  const AmxTiles tiles(use_amx<O>(), rows);
  const GruGrads<T> shared = grads_in(p.n, sums);
  GruGrads<T> mine = shared;
  if (own_norms) mine.n_carry = own_norms, mine.n_hidden = own_norms + p.n.U;
  GruBackSteps<T, O> gru(p, weights, first, rows, team, scratch, shared, mine);
  const Range my_rows = team.range(rows);
  gru.start();
  for (int64_t t = p.n.T - 1; t >= 0 && !team.leaves(p.n.T - 1 - t); --t) {
    for (int64_t r = my_rows.first; r < my_rows.last; ++r) gru.past(t, r);
    team.wait();
    gru.gates(t, [](int64_t, T*) {});
    team.wait();
    gru.hidden(t);
    team.wait();
    gru.norm_hidden(t);
    team.wait();
    gru.embeds(t);
    gru.own(t);
    team.wait();
    for (int64_t r = my_rows.first; r < my_rows.last; ++r) gru.norm_carry(t, r);
    const int64_t count = gru.chunk_rows(t);
    if (count == 0) continue;
    team.wait();
    gru.weights(t, count);
    team.wait();
  }
  gru.finish();
}

template <typename T, typename O>
void scan_backward(const BlockGruScanBackward& p) {
  const int threads = max_threads();
  Packings<O> packings;
  GruBackWeights<T, O> weights(p, packings);
  const Arena arena([&](Arena& a) { packings.place(a); });
  packings.pack(threads);
  const GruGrads<T> grads = grads_in(p.n, ptr<T>(p.d_weights));
  const Range norms[] = {grads.range(grads.n_carry, p.n.U), grads.range(grads.n_hidden, p.n.D)};
  const Range products[] = {grads.carry(p.n), grads.own_and_embeds(p.n), grads.gates(p.n)};
  for_each_team_summing<BackScratch<T, O>>(
      p.n.B, packings.weights(), arena.bytes(), threads, p.n.weights(), ptr<T>(p.d_weights), norms, products,
      [&](int64_t rows, int64_t) { return BackScratch<T, O>(p.n, rows); },
      [&](int64_t first, int64_t rows, Team team, const BackScratch<T, O>& scratch, T* sums, T* own_norms) {
        walk_back(p, weights, first, rows, team, scratch.gru, sums, own_norms);
      });
}

}  // namespace

void block_gru_scan_kernel(const BlockGruScan& p) {
  with_types(p, [&](auto t, auto o) { scan<decltype(t), decltype(o)>(p); });
}

void block_gru_scan_backward_kernel(const BlockGruScanBackward& p) {
  with_types(p, [&](auto t, auto o) { scan_backward<decltype(t), decltype(o)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
