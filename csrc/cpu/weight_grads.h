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

// Threads that own rows sum into arrays of their own, added up in order at the end.
template <typename T>
class ThreadSums {
 public:
  ThreadSums(T* all, int64_t size, int threads)
      : all_(all), size_(size), threads_(threads), arena_(Arena::bytes<T>((threads - 1) * size)),
        extra_(arena_.template take<T>((threads - 1) * size)) {
    std::memset(all, 0, size * sizeof(T));
  }

  T* mine() {
    const int thread = thread_number();
    T* sum = thread > 0 ? extra_ + (thread - 1) * size_ : all_;
    if (thread > 0 && !used_[thread]) std::memset(sum, 0, size_ * sizeof(T));
    used_[thread] = true;
    return sum;
  }

  void finish() const {
    for (int i = 1; i < threads_; ++i) {
      if (!used_[i]) continue;
      const T* more = extra_ + (i - 1) * size_;
#pragma omp parallel for simd schedule(static) num_threads(threads_) if (size_ > (1 << 18))
      for (int64_t k = 0; k < size_; ++k) all_[k] += more[k];
    }
  }

 private:
  T* all_;
  int64_t size_;
  int threads_;
  Arena arena_;
  T* extra_;
  bool used_[kMaxThreads] = {};
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
