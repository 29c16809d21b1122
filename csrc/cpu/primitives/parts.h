// How the rows of a call are shared out: parts that threads take alone, or all rows for a team that splits the columns.
#pragma once

#include "gemm.h"

namespace fastwm::FASTWM_ISA {
namespace {

// Rows are independent, so threads that split them never wait for each other; but each reads all the weights.
// Weights beyond a core's own cache are better read once: the threads then split the columns, with barriers.
constexpr int64_t kOwnCache = 3 << 19;    // bytes of weights that a core keeps to itself
constexpr int64_t kManyRows = 64;         // rows a thread from which reading the weights hardly matters
constexpr int64_t kColumnWork = 1 << 17;  // multiplications a thread and step from which barriers pay

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
      body(0, B, team_of_all(&barrier, &stop), shared);
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
