// The gradients of a sequence's weights: products over the last rows that came back, while they are in cache.
#pragma once

#include "rssm_plan.h"

namespace fastwm::FASTWM_ISA {
namespace {

constexpr int64_t kChunkRows = 128;  // rows from which a weight's gradient is one product

// Steps of `rows` rows that are gathered for it.
inline int64_t chunk_steps(int64_t T, int64_t rows) {
  const int64_t steps = rows < kChunkRows ? kChunkRows / rows : 1;
  return steps < T ? steps : T;
}

// A member's share of all products over `count` rows.
template <typename T, typename O, int products_>
void add_products(const GradProduct<T> (&products)[products_], int64_t count, Team team) {
  using Factors = GradFactors<T, O>;
  int64_t size = 0;
  for (const GradProduct<T>& product : products) {
    const int64_t needed = Factors::scratch(product.M, count);
    size = needed > size ? needed : size;
  }
  Arena arena(Arena::bytes<O>(size));
  O* scratch = arena.take<O>(size);
  for (const GradProduct<T>& product : products)
    Factors::add(product, team.range(Factors::tasks(product)), count, scratch);
}

// sum += the columns' sums over `count` rows, a member's share.
template <typename T>
void add_columns(int64_t count, const T* x, int64_t width, int64_t stride, T* sum, Team team) {
  const Range columns = team.range(width);
  for (int64_t r = 0; r < count; ++r) {
#pragma omp simd
    for (int64_t i = columns.first; i < columns.last; ++i) sum[i] += x[r * stride + i];
  }
}

// for_each_team where sums over rows are wanted, all[size]: body(first row, number of rows, team, shared, team's sums,
// own sums). A team shares the sums that it splits by columns; what a member adds row by row goes to an array of its
// own, and so do all sums of threads that own rows. The arrays are added up in the threads' order at the end.
template <typename Shared, typename T, typename Make, typename Body>
void for_each_team_summing(int64_t B, int64_t weights, int64_t bytes, int threads, int64_t size, T* all, Make make,
                           Body body) {
  const int64_t copies = threads - 1;
  Arena sums(Arena::bytes<T>(copies * size));
  T* extra = sums.take<T>(copies * size);
  std::memset(all, 0, size * sizeof(T));
  bool used[kMaxThreads] = {};
  for_each_team<Shared>(B, weights, bytes, threads, make,
                        [&](int64_t first, int64_t rows, Team team, const Shared& shared) {
                          const int thread = thread_number();
                          T* own = thread > 0 ? extra + (thread - 1) * size : all;
                          if (thread > 0 && !used[thread]) std::memset(own, 0, size * sizeof(T));
                          used[thread] = true;
                          body(first, rows, team, shared, team.size > 1 ? all : own, own);
                        });
  for (int i = 1; i < threads; ++i) {
    if (!used[i]) continue;
    const T* more = extra + (i - 1) * size;
#pragma omp parallel for simd schedule(static) num_threads(threads) if (size > (1 << 18))
    for (int64_t k = 0; k < size; ++k) all[k] += more[k];
  }
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
