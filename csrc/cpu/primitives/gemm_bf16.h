// gemm.h with bfloat16 operands and float32 sums, by AMX or AVX512-BF16. Both read weights in pairs of k,
// [K / 2, panel, 2].
#pragma once

#include "gemm.h"
#include "fastwm/dtype.h"

#if defined(__AVX512F__) && defined(__linux__)
#define FASTWM_BF16 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastwm::FASTWM_ISA {
namespace {

#if FASTWM_BF16

constexpr int64_t kBf16Panel = 32, kAmxDepth = 32, kAmxRows = 16;

inline bool has_bf16() { return __builtin_cpu_supports("avx512bf16"); }

// Whether this process may use AMX; Linux grants the tiles' state on request.
inline bool has_amx() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-tile") &&
                              syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted;
}

// The tiles of one thread that multiplies `rows` rows at a time: 0, 1 sums, 2 rows, 3, 4 weights; 5, 6 and 7 the sums
// and rows of what is left below a multiple of 16.
class AmxTiles {
 public:
  AmxTiles(bool use, int64_t rows) : use_(use) {
    if (!use_) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    const int64_t rest = rows % kAmxRows > 0 ? rows % kAmxRows : 1;
    for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = i < 5 ? 16 : static_cast<uint8_t>(rest);
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }
  ~AmxTiles() {
    if (use_) __asm__ volatile("tilerelease" ::);
  }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

 private:
  bool use_;
};

typedef uint32_t Word16 __attribute__((vector_size(64)));

inline void transpose(Word16 (&x)[16]) {  // four rounds of a perfect shuffle of 16 rows
  constexpr Word16 low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  constexpr Word16 high = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  for (int round = 0; round < 4; ++round) {
    Word16 y[16];
    for (int i = 0; i < 8; ++i) {
      y[2 * i] = __builtin_shuffle(x[i], x[i + 8], low);
      y[2 * i + 1] = __builtin_shuffle(x[i], x[i + 8], high);
    }
    for (int i = 0; i < 16; ++i) x[i] = y[i];
  }
}

// Two rows of floats as pairs of bfloat16.
__attribute__((target("avx512bf16"))) inline void pair_up(int64_t width, const float* even, const float* odd,
                                                          void* pairs) {
  for (int64_t i = 0; i < width; i += 16) {
    const __mmask16 there = static_cast<__mmask16>(width - i < 16 ? (1u << (width - i)) - 1 : 0xffffu);
    const auto half = [&](const float* x) __attribute__((target("avx512bf16"))) {
      return _mm512_maskz_cvtepu16_epi32(there, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, x + i)));
    };
    const __m512i both = _mm512_or_si512(half(even), _mm512_maskz_slli_epi32(there, half(odd), 16));
    _mm512_mask_storeu_epi32(static_cast<uint32_t*>(pairs) + i, there, both);
  }
}

// pair_up of 16 numbers each, in a register.
__attribute__((target("avx512bf16"))) inline __m512i pair_up(const float* even, const float* odd) {
  alignas(64) static constexpr uint16_t kTurns[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const auto both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(odd), _mm512_loadu_ps(even));
  return _mm512_permutexvar_epi16(_mm512_load_si512(kTurns), both);
}

// K rows of floats as a panel, of which `width` columns are there; an odd last row is paired with zeros.
__attribute__((target("avx512bf16"))) inline void pair_rows(int64_t K, int64_t width, const float* rows, int64_t stride,
                                                            bf16* panel) {
  const float zeros[kBf16Panel] = {};
  for (int64_t k = 0; k < K; k += 2) {
    const float *even = rows + k * stride, *odd = k + 1 < K ? even + stride : zeros;
    bf16* pairs = panel + k * kBf16Panel;
    if (width < kBf16Panel) {
      pair_up(width, even, odd, pairs);
    } else {
      _mm512_storeu_si512(pairs, pair_up(even, odd));
      _mm512_storeu_si512(pairs + 32, pair_up(even + 16, odd + 16));
    }
  }
}

__attribute__((target("avx512bf16"))) inline void to_bf16(int64_t width, const float* from, bf16* to) {
  int64_t i = 0;
  for (; i + 32 <= width; i += 32)
    _mm512_storeu_si512(to + i,
                        (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16), _mm512_loadu_ps(from + i)));
  for (; i < width; i += 16) {
    const auto there = static_cast<__mmask16>(width - i < 16 ? (1u << (width - i)) - 1 : 0xffffu);
    _mm256_mask_storeu_epi16(to + i, there, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, from + i)));
  }
}

// 32 rows of 16 floats as 16 rows of 32: what was a column is a row.
__attribute__((target("avx512bf16"))) inline void turn_square(const float* from, int64_t stride, bf16* to,
                                                              int64_t to_stride) {
  Word16 x[16];
  for (int i = 0; i < 16; ++i) x[i] = (Word16)pair_up(from + 2 * i * stride, from + (2 * i + 1) * stride);
  transpose(x);
  for (int i = 0; i < 16; ++i) std::memcpy(to + i * to_stride, &x[i], sizeof x[i]);
}

// Pairs of 16 rows' 32 neighbours each, as 16 rows of a packed weight.
__attribute__((target("avx512bf16"))) inline void pack_square(const float* source, int64_t stride, bf16* panel) {
  Word16 x[16];
  for (int i = 0; i < 16; ++i) {
    const float* row = source + i * stride;
    x[i] = (Word16)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + 16), _mm512_loadu_ps(row));
  }
  transpose(x);
  for (int i = 0; i < 16; ++i) std::memcpy(panel + i * 2 * kBf16Panel, &x[i], sizeof x[i]);
}

template <>
struct Packed<bf16> {
  int64_t blocks, K, N;
  bf16* data;
  bool amx = has_amx();

  int64_t panels() const { return (N + kBf16Panel - 1) / kBf16Panel; }
  int64_t tasks() const { return blocks * panels(); }
  int64_t panel_size() const { return (K + 1) / 2 * 2 * kBf16Panel; }
  int64_t size() const { return tasks() * panel_size(); }
  int64_t width(int64_t panel) const {
    const int64_t rest = N - panel * kBf16Panel;
    return rest < kBf16Panel ? rest : kBf16Panel;
  }

  void pack(const Weight& w, int64_t task) const {  // of a float32 weight
    const int64_t first = task % panels() * kBf16Panel, valid = width(task % panels());
    const float* source = static_cast<const float*>(w.data) + task / panels() * w.sg + first * w.sn;
    bf16* panel = data + task * panel_size();
    if (valid < kBf16Panel || K % 2) std::memset(panel, 0, panel_size() * sizeof(bf16));
    if (w.sn == 1) return pair_rows(K, valid, source, w.sk, panel);
    const int64_t whole_k = w.sk == 1 ? K / 32 * 32 : 0, whole_n = valid / 16 * 16;
    for (int64_t k = 0; k < whole_k; k += 32)
      for (int64_t n = 0; n < whole_n; n += 16)
        pack_square(source + k + n * w.sn, w.sn, panel + k * kBf16Panel + 2 * n);
    for (int64_t n = 0; n < valid; ++n)
      for (int64_t k = n < whole_n ? whole_k : 0; k < K; ++k)
        narrow(source[k * w.sk + n * w.sn], panel[(k / 2 * kBf16Panel + n) * 2 + k % 2]);
  }
};

// c += a W for whole tiles of 16 rows, or the rest of them: K is a multiple of 32, c has 32 columns.
template <bool rest>
inline void multiply_amx(const bf16* a, int64_t lda, const bf16* panel, int64_t K, float* c, int64_t ldc, bool fetch) {
  const int64_t c_stride = ldc * 4, a_stride = lda * 2, w_stride = kBf16Panel * 4;
#define FASTWM_TILE_LOAD(tile, base, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%" tile::"r"(static_cast<const void*>(base)), "r"(stride) : "memory")
#define FASTWM_TILE_STORE(tile, base, stride) \
  __asm__ volatile("tilestored %%" tile ", (%0,%1,1)" ::"r"(static_cast<void*>(base)), "r"(stride) : "memory")
#define FASTWM_TILE_SUM(weights, rows, sums) __asm__ volatile("tdpbf16ps %%" weights ", %%" rows ", %%" sums::)
  if constexpr (rest) {
    FASTWM_TILE_LOAD("tmm5", c, c_stride);
    FASTWM_TILE_LOAD("tmm6", c + 16, c_stride);
  } else {
    FASTWM_TILE_LOAD("tmm0", c, c_stride);
    FASTWM_TILE_LOAD("tmm1", c + 16, c_stride);
  }
  const bf16* next = panel + K * kBf16Panel;  // fetched while this panel is at work
  for (int64_t k = 0; k < K; k += kAmxDepth, panel += kAmxDepth * kBf16Panel, next += kAmxDepth * kBf16Panel) {
    if (fetch)
      for (int line = 0; line < 32; ++line) __builtin_prefetch(next + line * 32, 0, 2);
    FASTWM_TILE_LOAD("tmm3", panel, w_stride);
    FASTWM_TILE_LOAD("tmm4", panel + 32, w_stride);
    if constexpr (rest) {
      FASTWM_TILE_LOAD("tmm7", a + k, a_stride);
      FASTWM_TILE_SUM("tmm3", "tmm7", "tmm5");
      FASTWM_TILE_SUM("tmm4", "tmm7", "tmm6");
    } else {
      FASTWM_TILE_LOAD("tmm2", a + k, a_stride);
      FASTWM_TILE_SUM("tmm3", "tmm2", "tmm0");
      FASTWM_TILE_SUM("tmm4", "tmm2", "tmm1");
    }
  }
  if constexpr (rest) {
    FASTWM_TILE_STORE("tmm5", c, c_stride);
    FASTWM_TILE_STORE("tmm6", c + 16, c_stride);
  } else {
    FASTWM_TILE_STORE("tmm0", c, c_stride);
    FASTWM_TILE_STORE("tmm1", c + 16, c_stride);
  }
#undef FASTWM_TILE_LOAD
#undef FASTWM_TILE_STORE
#undef FASTWM_TILE_SUM
}

// c = start + a W for `vectors` vectors of columns, of the last those in `last`; where c is `far` from the cache, start is c
// itself or zeros, and added last.
template <bool far, int rows, int vectors>
__attribute__((target("avx512bf16"))) void multiply_pairs(const bf16* a, int64_t lda, const bf16* panel, int64_t K,
                                                          Start<float> start, float* c, int64_t ldc, __mmask16 last) {
  constexpr int end = vectors - 1;
  __m512 sum[rows][vectors];
#pragma GCC unroll 8  // early, or the sums would pass through memory
  for (int m = 0; m < rows; ++m) {
    if (far || !start.data) {
      if constexpr (end > 0) sum[m][0] = _mm512_setzero_ps();
      sum[m][end] = _mm512_setzero_ps();
    } else {
      const float* from = start.data + m * start.stride;
      if constexpr (end > 0) sum[m][0] = _mm512_loadu_ps(from);
      sum[m][end] = _mm512_maskz_loadu_ps(last, from + 16 * end);
    }
    if constexpr (far)  // fetched while their sums are made
      for (int v = 0; v < vectors; ++v) __builtin_prefetch(c + m * ldc + 16 * v, 1, 3);
  }
  // `keep` is a constant at each call, so that a whole pair is broadcast by the load itself.
  const auto add = [&](int64_t k, uint32_t keep) __attribute__((target("avx512bf16"), always_inline)) {
    const bf16* w = panel + k * kBf16Panel;
    const __m512bh w0 = (__m512bh)_mm512_loadu_si512(w), w_end = (__m512bh)_mm512_loadu_si512(w + 32 * end);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      uint32_t pair;
      std::memcpy(&pair, a + m * lda + k, 4);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(static_cast<int>(pair & keep));
      if constexpr (end > 0) sum[m][0] = _mm512_dpbf16_ps(sum[m][0], x, w0);
      sum[m][end] = _mm512_dpbf16_ps(sum[m][end], x, w_end);
    }
  };
  const int64_t whole = K / 2 * 2;
  for (int64_t k = 0; k < whole; k += 2) add(k, ~0u);
  if (whole < K) add(whole, 0xffffu);  // an odd K is followed by something else
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
    float* to = c + m * ldc;
    if (far && start.data) {
      if constexpr (end > 0) sum[m][0] = _mm512_add_ps(sum[m][0], _mm512_loadu_ps(to));
      sum[m][end] = _mm512_add_ps(sum[m][end], _mm512_maskz_loadu_ps(last, to + 16 * end));
    }
    if constexpr (end > 0) _mm512_storeu_ps(to, sum[m][0]);
    _mm512_mask_storeu_ps(to + 16 * end, last, sum[m][end]);
  }
}

template <bool far, int rows>
void multiply_columns(int64_t valid, const bf16* a, int64_t lda, const bf16* panel, int64_t K, Start<float> start,
                      float* c, int64_t ldc) {
  const auto last = static_cast<__mmask16>(0xffffu >> ((kBf16Panel - valid) % 16));
  valid > 16 ? multiply_pairs<far, rows, 2>(a, lda, panel, K, start, c, ldc, last)
             : multiply_pairs<far, rows, 1>(a, lda, panel, K, start, c, ldc, last);
}

template <bool far>
void multiply_few(int64_t rows, int64_t valid, const bf16* a, int64_t lda, const bf16* panel, int64_t K,
                  Start<float> start, float* c, int64_t ldc) {
  switch (rows) {
    case 1: return multiply_columns<far, 1>(valid, a, lda, panel, K, start, c, ldc);
    case 2: return multiply_columns<far, 2>(valid, a, lda, panel, K, start, c, ldc);
    case 3: return multiply_columns<far, 3>(valid, a, lda, panel, K, start, c, ldc);
    case 4: return multiply_columns<far, 4>(valid, a, lda, panel, K, start, c, ldc);
    case 5: return multiply_columns<far, 5>(valid, a, lda, panel, K, start, c, ldc);
    case 6: return multiply_columns<far, 6>(valid, a, lda, panel, K, start, c, ldc);
    case 7: return multiply_columns<far, 7>(valid, a, lda, panel, K, start, c, ldc);
    case 8: return multiply_columns<far, 8>(valid, a, lda, panel, K, start, c, ldc);
  }
}

// c = start + a W over `valid` columns of a panel; `far` as above. `rest`: tiles 5 to 7 are there for M's rows
// beyond a multiple of 16.
template <bool far>
void multiply_panel(int64_t M, const bf16* a, int64_t lda, const bf16* panel, int64_t valid, int64_t K, bool amx,
                    bool rest, Start<float> start, float* c, int64_t ldc) {
  for (int64_t m = 0; m < M; m += kAmxRows, a += kAmxRows * lda, c += kAmxRows * ldc) {
    const int64_t rows = M - m < kAmxRows ? M - m : kAmxRows;
    const Start<float> from = start.at(m, 0);
    if (!amx || (rows < kAmxRows && !rest)) {
      const int64_t step = rows > kTileRows ? (rows + 1) / 2 : rows;  // rows are at most twice kTileRows
      for (int64_t r = 0; r < rows; r += step)
        multiply_few<far>(rows - r < step ? rows - r : step, valid, a + r * lda, lda, panel, K, from.at(r, 0),
                          c + r * ldc, ldc);
      continue;
    }
    const auto multiply_tiles = [&](float* sums, int64_t stride) {  // which start from what is in them
      for (int64_t r = 0; r < rows; ++r) {
        float* sum = sums + r * stride;
        if (!from.data) std::memset(sum, 0, valid * sizeof(float));
        else if (from.data + r * from.stride != sum)
          std::memcpy(sum, from.data + r * from.stride, valid * sizeof(float));
      }
      const bool fetch = rest && m == 0;
      rows == kAmxRows ? multiply_amx<false>(a, lda, panel, K, sums, stride, fetch)
                       : multiply_amx<true>(a, lda, panel, K, sums, stride, fetch);
    };
    if (valid == kBf16Panel) {
      multiply_tiles(c, ldc);
      continue;
    }
    float tile[kAmxRows * kBf16Panel] = {};  // by way of a whole tile
    multiply_tiles(tile, kBf16Panel);
    for (int64_t r = 0; r < rows; ++r) std::memcpy(c + r * ldc, tile + r * kBf16Panel, valid * sizeof(float));
  }
}

inline void multiply(int64_t M, const bf16* a, int64_t lda, const Packed<bf16>& w, int64_t task, Start<float> start,
                     float* c, int64_t ldc) {
  multiply_panel<false>(M, a, lda, w.data + task * w.panel_size(), w.width(task % w.panels()), w.K,
                        w.amx && w.K % kAmxDepth == 0, true, start, c, ldc);
}

// A weight's gradient in bfloat16: a is turned round to [M, K], so that it serves as rows.
template <>
struct GradGemm<float, bf16> {
  static int64_t scratch(int64_t M, int64_t K) { return M * even(K) + even(K) * kBf16Panel; }

  // [K, M] floats to [M, K]: 16 columns and 16 pairs of rows at a time, turned in registers.
  static void turn(const GradProduct<float>& p, int64_t g, int64_t K, bf16* rows) {
    const float* a = p.a + g * p.a_step;
    const int64_t stride = even(K), whole_k = K / 32 * 32, whole_m = p.M / 16 * 16;
    for (int64_t m = 0; m < whole_m; m += 16)
      for (int64_t k = 0; k < whole_k; k += 32) turn_square(a + k * p.lda + m, p.lda, rows + m * stride + k, stride);
    for (int64_t m = 0; m < p.M; ++m)
      for (int64_t k = m < whole_m ? whole_k : 0; k < K; ++k) narrow(a[k * p.lda + m], rows[m * stride + k]);
  }

  static void add(const GradProduct<float>& p, Range tasks, int64_t K, bf16* scratch) {
    bf16 *rows = scratch, *panel = scratch + p.M * even(K);
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t panels = (p.N + kBf16Panel - 1) / kBf16Panel, g = task / panels, n = task % panels * kBf16Panel;
      const int64_t valid = p.N - n < kBf16Panel ? p.N - n : kBf16Panel;
      if (task == tasks.first || (p.a_step > 0 && n == 0)) turn(p, g, K, rows);
      if (valid < kBf16Panel) std::memset(panel, 0, even(K) * kBf16Panel * sizeof(bf16));
      pair_rows(K, valid, p.b + g * p.N + n, p.ldb, panel);
      const bool last = task + 1 == tasks.last;
      const float* ahead = last ? nullptr : p.b + (task + 1) / panels * p.N + (task + 1) % panels * kBf16Panel;
      for (int64_t m = 0; m < p.M; m += kAmxRows) {
        const int64_t count = p.M - m < kAmxRows ? p.M - m : kAmxRows;
        if (ahead) fetch_part(p, m, count, K, kBf16Panel, ahead);
        float* c = p.c + (g * p.M + m) * p.N + n;
        multiply_panel<true>(count, rows + m * even(K), even(K), panel, valid, K, has_amx() && K % kAmxDepth == 0,
                             false, Start<float>{p.first ? nullptr : c, p.N}, c, p.N);
      }
    }
  }

  static int64_t tasks(const GradProduct<float>& p) { return p.blocks * ((p.N + kBf16Panel - 1) / kBf16Panel); }
  static int64_t even(int64_t K) { return (K + 1) / 2 * 2; }
};

#else

inline bool has_bf16() { return false; }
inline bool has_amx() { return false; }

struct AmxTiles {
  AmxTiles(bool, int64_t) {}
};

#endif

template <typename O>
bool use_amx() {
  return sizeof(O) == 2 && has_amx();
}

// Calls f(T{}, O{}) with what a kernel's sums and state are in, and what its products multiply.
template <typename Params, typename F>
void with_types(const Params& p, F f) {
#if FASTWM_BF16
  if (p.bf16 && p.dtype == Dtype::f32 && has_bf16()) return f(float{}, bf16{});
#endif
  p.dtype == Dtype::f64 ? f(double{}, double{}) : f(float{}, float{});
}

// c += a W
template <typename T, typename O>
void multiply(int64_t M, const O* a, int64_t lda, const Packed<O>& w, int64_t task, T* c, int64_t ldc) {
  multiply(M, a, lda, w, task, Start<T>{c, ldc}, c, ldc);
}

// A member's share of a weight's gradient over K rows, by way of GradGemm<T, O>::scratch(M, K) numbers. Members split its panels,
// or the columns of a, which are to be cut or turned, where there are more of those.
template <typename T, typename O>
void add_product(const GradProduct<T>& p, int64_t K, const Team& team, O* scratch) {
  using Gemm = GradGemm<T, O>;
  constexpr int64_t kColumns = 16;
  if (p.blocks > 1 || p.M <= p.N) return Gemm::add(p, team.range(Gemm::tasks(p)), K, scratch);
  const Range parts = team.range((p.M + kColumns - 1) / kColumns);
  const int64_t first = parts.first * kColumns, last = parts.last * kColumns;
  const GradProduct<T> share{
      1, (last < p.M ? last : p.M) - first, p.N, p.a + first, p.lda, 0, p.b, p.ldb, p.c + first * p.N, p.first};
  Gemm::add(share, {0, Gemm::tasks(share)}, K, scratch);
}

// Columns of a panel of operands O.
template <typename O>
constexpr int64_t kPanelOf = kPanel<O>;
template <>
constexpr int64_t kPanelOf<bf16> = 32;

}  // namespace
}  // namespace fastwm::FASTWM_ISA
