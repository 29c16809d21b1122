// Products of few rows with a packed weight: C[M, N] = start + A[M, K] W[K, N], M from 1 up, for kernels that multiply
// by the same weight at every step of a sequence. Included by *_kernel.cpp files, once an instruction set level.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "arena.h"
#include "team.h"
#include "vector.h"
#include "fastwm/transpose.h"
#include "fastwm/weight.h"

namespace fastwm::FASTWM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 8;  // 16 sums, 2 weights and broadcasts in 32 registers
#elif defined(__AVX2__)
constexpr int kTileRows = 6;  // 12 sums in 16 registers
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 2;
constexpr int64_t kDepth = 512;  // rows of a panel that all tiles of rows pass by before the next ones

// Columns of a panel.
template <typename T>
constexpr int64_t kPanel = kTileVectors * kVectorBytes / static_cast<int64_t>(sizeof(T));

// Rows [rows, width] by their strides.
template <typename T>
void copy_rows(int64_t rows, int64_t width, const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  if (width == kPanel<T>)  // without a call
    for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * to_stride, from + r * from_stride, kPanel<T> * sizeof(T));
  else
    for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * to_stride, from + r * from_stride, width * sizeof(T));
}

// A weight of `blocks` matrices [K, N], cut into panels of kPanel columns, each [K, kPanel], padded with zeros.
template <typename T>
struct Packed {
  int64_t blocks, K, N;
  T* data;

  int64_t panels() const { return (N + kPanel<T> - 1) / kPanel<T>; }  // of one block
  int64_t tasks() const { return blocks * panels(); }
  int64_t size() const { return tasks() * K * kPanel<T>; }
  int64_t width(int64_t panel) const {
    const int64_t rest = N - panel * kPanel<T>;
    return rest < kPanel<T> ? rest : kPanel<T>;
  }

  void pack(const Weight& w, int64_t task) const {
    const int64_t first = task % panels() * kPanel<T>, valid = width(task % panels());
    const T* source = static_cast<const T*>(w.data) + task / panels() * w.sg + first * w.sn;
    T* panel = data + task * K * kPanel<T>;
    if (valid < kPanel<T>) std::memset(panel, 0, K * kPanel<T> * sizeof(T));
    if (w.sn == 1) return copy_rows(K, valid, source, w.sk, panel, kPanel<T>);
    int64_t whole = 0;
#if FASTWM_TRANSPOSE
    if constexpr (std::is_same_v<T, float>)
      for (; w.sk == 1 && valid == kPanel<T> && whole + 8 <= K; whole += 8)
        runs_to_vectors(source + whole, w.sn, 8, kPanel<T>, panel + whole * kPanel<T>, kPanel<T>);
#endif
    constexpr int64_t kBlock = 16;  // the rest in squares too, so that both sides stay in cache
    for (int64_t k0 = whole; k0 < K; k0 += kBlock)
      for (int64_t n = 0; n < valid; ++n)
        for (int64_t k = k0; k < K && k < k0 + kBlock; ++k) panel[k * kPanel<T> + n] = source[k * w.sk + n * w.sn];
  }
};

// The start of a product's sums: rows by their stride (0: one that all share), or zeros where there is no data.
template <typename T>
struct Start {
  const T* data;
  int64_t stride;

  Start at(int64_t row, int64_t column) const { return {data ? data + row * stride + column : nullptr, stride}; }
};
template <typename T>
constexpr Start<T> kZeros{nullptr, 0};

// The sums of one tile in registers: c = start + a W, a [rows, K] by its row stride; or, where `across`, a [K, rows] and c
// far from the cache, so that start, which then is c itself or zeros, is added last. A vector at `next` is fetched for
// every k.
template <int rows, bool across, typename T>
inline void multiply_tile(const T* a, int64_t lda, const T* panel, int64_t K, Start<T> start, T* c, int64_t ldc,
                          const T* next) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = kVectorBytes / sizeof(T);
  V sum[rows][kTileVectors];
#pragma GCC unroll 8  // early, here and below, or the sums would pass through memory
  for (int m = 0; m < rows; ++m)
    for (int v = 0; v < kTileVectors; ++v) {
      if (across || !start.data) sum[m][v] = V{};
      else sum[m][v] = *reinterpret_cast<const V*>(start.data + m * start.stride + v * lanes);
    }
  if (across)  // far from the cache: fetched while their sums are made
    for (int m = 0; m < rows; ++m)
      for (int v = 0; v < kTileVectors; ++v) __builtin_prefetch(c + m * ldc + v * lanes, 1, 3);
  for (int64_t k = 0; k < K; ++k) {
    V w[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) w[v] = *reinterpret_cast<const V*>(panel + k * kPanel<T> + v * lanes);
    __builtin_prefetch(next + k * lanes, 0, 2);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      const T x = across ? a[k * lda + m] : a[m * lda + k];
      for (int v = 0; v < kTileVectors; ++v) sum[m][v] += x * w[v];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m)
    for (int v = 0; v < kTileVectors; ++v) {
      V* at = reinterpret_cast<V*>(c + m * ldc + v * lanes);
      *at = across && start.data ? *at + sum[m][v] : sum[m][v];
    }
}

template <bool across, typename T>
inline void multiply_rows(int64_t rows, const T* a, int64_t lda, const T* panel, int64_t K, Start<T> start, T* c,
                          int64_t ldc, const T* next) {
  switch (rows) {
    case 1: return multiply_tile<1, across>(a, lda, panel, K, start, c, ldc, next);
    case 2: return multiply_tile<2, across>(a, lda, panel, K, start, c, ldc, next);
    case 3: return multiply_tile<3, across>(a, lda, panel, K, start, c, ldc, next);
    case 4: return multiply_tile<4, across>(a, lda, panel, K, start, c, ldc, next);
#if defined(__AVX2__)
    case 5: return multiply_tile<5, across>(a, lda, panel, K, start, c, ldc, next);
    case 6: return multiply_tile<6, across>(a, lda, panel, K, start, c, ldc, next);
#endif
#if defined(__AVX512F__)
    case 7: return multiply_tile<7, across>(a, lda, panel, K, start, c, ldc, next);
    case 8: return multiply_tile<8, across>(a, lda, panel, K, start, c, ldc, next);
#endif
  }
}

// multiply_tile for up to kTileRows rows and `valid` of the panel's columns.
template <bool across, typename T>
inline void multiply_part(int64_t rows, int64_t valid, const T* a, int64_t lda, const T* panel, int64_t K,
                          Start<T> start, T* c, int64_t ldc, const T* next) {
  if (valid == kPanel<T>) return multiply_rows<across>(rows, a, lda, panel, K, start, c, ldc, next);
  T tile[kTileRows * kPanel<T>] = {};  // by way of a whole tile
  for (int64_t r = 0; start.data && r < rows; ++r)
    std::memcpy(tile + r * kPanel<T>, start.data + r * start.stride, valid * sizeof(T));
  multiply_rows<across>(rows, a, lda, panel, K, Start<T>{tile, kPanel<T>}, tile, kPanel<T>, next);
  for (int64_t r = 0; r < rows; ++r) std::memcpy(c + r * ldc, tile + r * kPanel<T>, valid * sizeof(T));
}

// c = start + a W over one panel; a [M, K] and c [M, width of the panel] by their row strides.
template <typename T>
void multiply(int64_t M, const T* a, int64_t lda, const Packed<T>& w, int64_t task, Start<T> start, T* c, int64_t ldc) {
  const int64_t valid = w.width(task % w.panels());
  const T* panel = w.data + task * w.K * kPanel<T>;
  const int64_t passes = (M + kTileRows - 1) / kTileRows, step = (M + passes - 1) / passes;  // of even tiles
  int64_t k = 0;
  do {
    const int64_t depth = w.K - k < kDepth ? w.K - k : kDepth;
    for (int64_t m = 0; m < M; m += step) {
      const int64_t rows = M - m < step ? M - m : step;
      // The first two passes fetch one half each of the part that comes next, so that the fetching is even.
      const T *part = panel + k * kPanel<T>, *next = part + depth * kPanel<T> + (m > 0 ? depth * kPanel<T> / 2 : 0);
      if (m > step) next = part;
      multiply_part<false>(rows, valid, a + m * lda + k, lda, part, depth, start.at(m, 0), c + m * ldc, ldc, next);
    }
    start = {c, ldc};
    k += kDepth;
  } while (k < w.K);
}

// Rows that will soon be read, or written, from far.
template <bool write = false, typename T>
void fetch_rows(int64_t rows, int64_t width, const T* from, int64_t stride) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; i += kLine) __builtin_prefetch(from + r * stride + i, write, 2);
}

// A weight's gradient, c_g += a_g^T b_g for every block g: a_g [K, M] and b_g [K, N] are columns g*M.. and g*N.. of
// a and b ("a_step" 0: a has one block, shared by all), c is [blocks, M, N], contiguous, and need not be there yet where
// the product is the first of its sum.
template <typename T>
struct GradProduct {
  int64_t blocks, M, N;
  const T* a;
  int64_t lda, a_step;
  const T* b;
  int64_t ldb;
  T* c;
  bool first = false;
};

// Fetches the next panel, K rows from `ahead` on, while c is computed: with rows m .. m + rows of c, their share of it.
template <typename T>
void fetch_part(const GradProduct<T>& p, int64_t m, int64_t rows, int64_t K, int64_t width, const T* ahead) {
  const int64_t first = m * K / p.M, last = (m + rows) * K / p.M;
  fetch_rows(last - first, width, ahead + first * p.ldb, p.ldb);
}

// A weight's gradient by operands O: a range of its panels, over K rows. Where many panels read a, it is first cut into
// slices of two tiles' columns, [slices, K, kSlice], in whole cache lines: by its own stride it would miss the cache.
template <typename T, typename O>
struct GradGemm {
  static constexpr int64_t kManyPanels = 6, kSlice = 2 * kTileRows;

  static int64_t scratch(int64_t M, int64_t K) { return K * (kPanel<T> + (M + kSlice - 1) / kSlice * kSlice); }
  static int64_t tasks(const GradProduct<T>& p) { return p.blocks * panels(p); }
  static int64_t panels(const GradProduct<T>& p) { return (p.N + kPanel<T> - 1) / kPanel<T>; }

  static void cut(const T* a, int64_t M, int64_t lda, int64_t K, T* slices) {
    constexpr int64_t kColumns = 4 * kSlice;  // some lines of a row at a time
    for (int64_t first = 0; first < M; first += kColumns)
      for (int64_t k = 0; k < K; ++k)
        for (int64_t m = first; m < M && m < first + kColumns; m += kSlice) {
          const T* from = a + k * lda + m;
          T* to = slices + m * K + k * kSlice;
          if (m + kSlice <= M) std::memcpy(to, from, kSlice * sizeof(T));  // without a call
          else std::memcpy(to, from, (M - m) * sizeof(T));
        }
  }

  static void add(const GradProduct<T>& p, Range tasks, int64_t K, T* scratch) {
    T *panel = scratch, *slices = scratch + K * kPanel<T>;
    const bool many = (p.a_step > 0 ? panels(p) : tasks.last - tasks.first) >= kManyPanels;
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t g = task / panels(p), n = task % panels(p) * kPanel<T>;
      const int64_t valid = p.N - n < kPanel<T> ? p.N - n : kPanel<T>;
      const T* a = p.a + g * p.a_step;
      if (many && (task == tasks.first || (p.a_step > 0 && n == 0))) cut(a, p.M, p.lda, K, slices);
      if (valid < kPanel<T>) std::memset(panel, 0, K * kPanel<T> * sizeof(T));
      copy_rows(K, valid, p.b + g * p.N + n, p.ldb, panel, kPanel<T>);
      const bool last = task + 1 == tasks.last;
      const T* ahead = last ? nullptr : p.b + (task + 1) / panels(p) * p.N + (task + 1) % panels(p) * kPanel<T>;
      for (int64_t m = 0; m < p.M; m += kTileRows) {
        const int64_t rows = p.M - m < kTileRows ? p.M - m : kTileRows;
        T* c = p.c + (g * p.M + m) * p.N + n;
        const Start<T> start{p.first ? nullptr : c, p.N};
        if (ahead) fetch_part(p, m, rows, K, kPanel<T>, ahead);
        const int64_t within = m % kSlice;
        const T* slice = slices + (m - within) * K;
        if (many) multiply_part<true>(rows, valid, slice + within, kSlice, panel, K, start, c, p.N, slice + kSlice * K);
        else multiply_part<true>(rows, valid, a + m, p.lda, panel, K, start, c, p.N, panel);
      }
    }
  }
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
