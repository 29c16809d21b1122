// How a call shares its work out: packing, and whether threads split the rows or the columns of every product.
#pragma once

#include "rssm_rows.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastwm::FASTWM_ISA {
namespace {

constexpr int kMaxThreads = 256;

inline int max_threads() {
#ifdef _OPENMP
  const int threads = omp_get_max_threads();
  return threads < kMaxThreads ? threads : kMaxThreads;
#else
  return 1;
#endif
}

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

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

// Fills all packed weights, by all threads.
template <typename T>
void pack_all(const Packing<T>* items, int count, int threads) {
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

// The weights of a call, packed once.
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
  int64_t bytes() const {
    int64_t sum = 0;
    for (int i = 0; i < count; ++i) sum += Arena::bytes<T>(items[i].packed->size());
    return sum;
  }
  void pack(Arena& arena, int threads) {
    for (int i = 0; i < count; ++i) items[i].packed->data = arena.take<T>(items[i].packed->size());
    pack_all(items, count, threads);
  }
};

// Rows are independent, so threads that split them never wait for each other; but each reads all the weights.
// Weights beyond a core's own cache are better read once: the threads then split the columns, with barriers.
constexpr int64_t kOwnCache = 3 << 19;      // bytes of weights that a core keeps to itself
constexpr int64_t kManyRows = 64;           // rows a thread from which reading the weights hardly matters
constexpr int64_t kColumnWork = 1 << 17;    // multiplications a thread and step from which barriers pay

// Calls body(first row, number of rows) for each part of B rows, by threads that never wait for each other. Parts are
// whole tiles, kManyRows rows at most, and as many for every thread.
template <typename Body>
void for_each_part(int64_t B, int64_t weights, int threads, Body body) {
  const int64_t tiles = (B + kTileRows - 1) / kTileRows, round = threads * (kManyRows / kTileRows);
  const int64_t shares = (tiles + round - 1) / round * threads, parts = shares < tiles ? shares : tiles;
#pragma omp parallel for schedule(static) num_threads(threads) if (parts > 1 && B * weights > kColumnWork)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = tiles * part / parts * kTileRows, end = tiles * (part + 1) / parts * kTileRows;
    body(first, (end < B ? end : B) - first);
  }
}

// Calls body(first row, number of rows, team, shared) for each part of B rows; `shared` is a Shared made once a team, by
// make(rows, members at most).
template <typename Shared, typename Make, typename Body>
void for_each_team(int64_t B, int64_t weights, int64_t bytes, int threads, Make make, Body body) {
  if (B == 0) return;
  Stop stop;
  const bool small = bytes <= kOwnCache && B >= 2 * kTileRows;
  if (threads > 1 && !small && B < threads * kManyRows) {
    if (B * weights / threads >= kColumnWork) {
      Shared shared = make(B, threads);
      Barrier barrier;
#pragma omp parallel num_threads(threads)
      {
#ifdef _OPENMP
        const Team team{thread_number(), omp_get_num_threads(), &barrier, &stop};
#else
        const Team team{0, 1, &barrier, &stop};
#endif
        body(0, B, team, shared);
      }
      return;
    }
    threads = 1;
  }
  for_each_part(B, weights, threads, [&](int64_t first, int64_t rows) {
    Shared shared = make(rows, 1);
    body(first, rows, Team{0, 1, nullptr, &stop}, shared);
  });
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
