// Gradients of a sequence's weights: products over the last rows of the backward pass, while they are in cache.
#pragma once

#include "linear.h"
#include "parts.h"

namespace fastwm::FASTWM_ISA {
namespace {

// Steps of `rows` rows, [rows, D], after which a weight's gradient is one product: more where the sums are larger than what
// is gathered for them.
inline int64_t chunk_steps(int64_t T, int64_t rows, int64_t D) {
  const int64_t chunk = D < 1024 ? 128 : 256, steps = rows < chunk ? chunk / rows : 1;
  return steps < T ? steps : T;
}

// A member's share of all products over `count` rows, which are the `first` of their sums or not.
template <typename T, typename O, int products_>
void add_products(const GradProduct<T> (&products)[products_], int64_t count, Team team, bool first) {
  int64_t size = 0;
  for (const GradProduct<T>& product : products) {
    const int64_t needed = GradGemm<T, O>::scratch(product.M, count);
    size = needed > size ? needed : size;
  }
  O* scratch;
  const Arena arena([&](Arena& a) { scratch = a.take<O>(size); });
  for (GradProduct<T> product : products) {
    product.first = first;
    add_product(product, count, team, scratch);
  }
}

// sum += the columns' sums over `count` rows.
template <typename T>
void add_columns(int64_t count, const T* x, int64_t width, int64_t stride, T* sum) {
  for (int64_t r = 0; r < count; ++r) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) sum[i] += x[r * stride + i];
  }
}

// A member's share of them.
template <typename T>
void add_columns(int64_t count, const T* x, int64_t width, int64_t stride, T* sum, Team team) {
  const Range columns = team.range(width);
  add_columns(count, x + columns.first, columns.last - columns.first, stride, sum + columns.first);
}

// sum [Z, N] += z^T d over `count` rows, a member's share of d's columns: z [., Z] by pointers, null where all is zero.
// A one-hot z is a scatter; some classes at a time, so that their rows stay in cache.
template <typename T>
void add_sparse_products(int64_t count, int64_t Z, const T* const* z, const T* d, int64_t N, T* sum, Team team) {
  constexpr int64_t kClasses = 16;
  const Range columns = team.range(N);
  for (int64_t z0 = 0; z0 < Z; z0 += kClasses)
    for (int64_t k = 0; k < count; ++k) {
      if (!z[k]) continue;
      for_each_nonzero(Z - z0 < kClasses ? Z - z0 : kClasses, z[k] + z0, [&](int64_t i, T x) {
        add_scaled(columns.last - columns.first, x, d + k * N + columns.first, sum + (z0 + i) * N + columns.first);
      });
    }
}

// Threads that own rows sum into arrays of their own, added up in order at the end; the first thread, which must have a
// part, into `all` itself.
template <typename T>
class ThreadSums {
 public:
  ThreadSums(T* all, int64_t size, int threads)
      : all_(all), size_(size), threads_(threads),
        arena_([this](Arena& a) { extra_ = a.take<T>((threads_ - 1) * size_); }) {}

  T* mine() {
    const int thread = thread_number();
    T* sum = thread > 0 ? extra_ + (thread - 1) * size_ : all_;
    if (!used_[thread]) std::memset(sum, 0, size_ * sizeof(T));
    used_[thread] = true;
    return sum;
  }

  void finish() const {
    for (int i = 1; i < threads_; ++i) {
      if (!used_[i]) continue;
      const T* more = extra_ + (i - 1) * size_;
#pragma omp parallel for simd schedule(static) num_threads(threads_) if (size_ > (1 << 15))
      for (int64_t k = 0; k < size_; ++k) all_[k] += more[k];
    }
  }

 private:
  T *all_, *extra_;
  int64_t size_;
  int threads_;
  Arena arena_;
  bool used_[kMaxThreads] = {};
};

// for_each_team where sums over rows are wanted, all[size]: body(first row, number of rows, team, shared, sums, norms).
// A team shares the sums that it splits by columns. They start from zeros, except the ranges `products` of all, in their
// order, which start with the first product. Each member sums the ranges `by_row`, which it adds to row by row, in its own
// `norms`, one range after the other; a team of one has them in `sums`, all zeros, and null for norms.
template <typename Shared, typename T, int parts, int products_, typename Make, typename Body>
void for_each_team_summing(int64_t B, int64_t weights, int64_t bytes, int threads, int64_t size, T* all,
                           const Range (&by_row)[parts], const Range (&products)[products_], Make make, Body body) {
  int64_t width = 0;
  for (const Range& part : by_row) width += part.last - part.first;
  if (B == 0) std::memset(all, 0, size * sizeof(T));
  int64_t done = 0;
  for (const Range& part : products) {
    std::memset(all + done, 0, (part.first - done) * sizeof(T));
    done = part.last;
  }
  std::memset(all + done, 0, (size - done) * sizeof(T));
  ThreadSums<T> sums(all, size, threads);
  T* norms;
  const Arena arena([&](Arena& a) { norms = a.take<T>(threads * width); });
  for_each_team<Shared>(B, weights, bytes, threads, make,
                        [&](int64_t first, int64_t rows, Team team, const Shared& shared) {
                          if (team.size == 1)
                            return body(first, rows, team, shared, sums.mine(), static_cast<T*>(nullptr));
                          T* mine = norms + team.rank * width;
                          std::memset(mine, 0, width * sizeof(T));
                          body(first, rows, team, shared, all, mine);
                          team.wait();
                          if (team.rank > 0) return;
                          for (const T* sum = norms; sum < norms + team.size * width;)
                            for (const Range& part : by_row)
                              for (int64_t i = part.first; i < part.last; ++i) all[i] += *sum++;
                        });
  sums.finish();
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
