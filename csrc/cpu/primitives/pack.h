// Weights packed once a call.
#pragma once

#include "gemm_bf16.h"

namespace fastwm::FASTWM_ISA {
namespace {

// Copies rows first .. first + rows of a [K, N] weight to contiguous memory, in squares that stay in cache.
template <typename T>
void pack_rows(const Weight& w, int64_t first, int64_t rows, int64_t width, T* out) {
  constexpr int64_t kSquare = 16;
  const T* source = static_cast<const T*>(w.data) + first * w.sk;
  for (int64_t k0 = 0; k0 < rows; k0 += kSquare)
    for (int64_t n = 0; n < width; ++n)
      for (int64_t k = k0; k < rows && k < k0 + kSquare; ++k) out[k * width + n] = source[k * w.sk + n * w.sn];
}

template <typename T>
struct Packing {
  Packed<T>* packed;
  Weight weight;
};

// The packed weights of a call: their memory, and packing them all by all threads.
template <typename T>
struct Packings {
  static constexpr int kMost = 40;
  Packing<T> items[kMost];
  int count = 0;

  void add(Packed<T>& packed, const Weight& weight) { items[count++] = {&packed, weight}; }
  int64_t weights() const {  // elements
    int64_t sum = 0;
    for (int i = 0; i < count; ++i) sum += items[i].packed->blocks * items[i].packed->K * items[i].packed->N;
    return sum;
  }
  void place(Arena& arena) const {
    for (int i = 0; i < count; ++i) items[i].packed->data = arena.take<T>(items[i].packed->size());
  }
  void pack(int threads) const {
    int64_t tasks = 0, bytes = 0;
    for (int i = 0; i < count; ++i) {
      tasks += items[i].packed->tasks();
      bytes += items[i].packed->size() * sizeof(T);
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (bytes > (1 << 17))
    for (int64_t task = 0; task < tasks; ++task) {
      int64_t rest = task;
      int i = 0;
      while (rest >= items[i].packed->tasks()) rest -= items[i++].packed->tasks();
      items[i].packed->pack(items[i].weight, rest);
    }
  }
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
