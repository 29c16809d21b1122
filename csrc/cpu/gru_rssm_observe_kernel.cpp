#include "gru_rssm_core.h"
#include "fastwm/params/gru_rssm.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename T, typename O>
void observe(const GruRssmObserve& p) {
  const GruRssmSizes& n = p.n;
  const int threads = max_threads();
  GruRssmPacked<T, O> packed(n, p.w);
  const Arena arena([&](Arena& a) { packed.place(a, n); });
  packed.pack(n, p.w, threads);
  using Scratch = GruRssmScratch<T, O>;
  for_each_team<Scratch>(
      n.B, packed.packings.weights(), arena.bytes(), threads, [&](int64_t rows, int64_t) { return Scratch(n, rows); },
      [&](int64_t row0, int64_t rows, Team team, const Scratch& scratch) {
        const AmxTiles tiles(use_amx<O>(), rows);
        GruRssmCore<T, O> core(n, p.w, packed, rows, team, scratch);
        const T *deter = ptr<T>(p.deter0) + row0 * n.D, *stoch = ptr<T>(p.stoch0) + row0 * n.Z();
        core.start(deter);
        for (int64_t t = 0; t < n.T && !team.leaves(t); ++t) {
          const int64_t at = t * n.B + row0;
          const auto saved = [&](void* x, int64_t width, T* unsaved) { return x ? ptr<T>(x) + at * width : unsaved; };
          const GruRssmStep<T> step{p.is_first + at,
                                    deter,
                                    stoch,
                                    ptr<T>(p.input_in) + at * n.U,
                                    ptr<T>(p.layer_in) + at * n.U,
                                    ptr<T>(p.noise) + at * n.S,
                                    saved(p.input, n.U, scratch.input),
                                    saved(p.gates, gates_of(p.w.cell) * n.D, scratch.gates),
                                    saved(p.layer, n.U, scratch.layer),
                                    ptr<T>(p.deter) + at * n.D,
                                    ptr<T>(p.stoch) + at * n.Z(),
                                    ptr<T>(p.stats) + at * n.O()};
          core.step(step);
          deter = step.deter, stoch = step.stoch;
        }
      });
}

}  // namespace

void gru_rssm_observe_kernel(const GruRssmObserve& p) {
  with_types(p, [&](auto t, auto o) { observe<decltype(t), decltype(o)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
