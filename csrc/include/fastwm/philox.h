// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), for C++ and CUDA.
#pragma once

#include "fastwm/vecmath.h"

namespace fastwm {

struct Philox {
  uint32_t x[4];
};

// Some rounds of the counter under the key. Recursive, as compilers do not vectorise around an inner loop.
template <int rounds>
FASTWM_FN Philox philox_rounds(Philox c, uint32_t key0, uint32_t key1) {
  if constexpr (rounds == 0) {
    return c;
  } else {
    const uint64_t a = uint64_t{0xD2511F53u} * c.x[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * c.x[2];
    const Philox next = {{static_cast<uint32_t>(b >> 32) ^ c.x[1] ^ key0, static_cast<uint32_t>(b),
                          static_cast<uint32_t>(a >> 32) ^ c.x[3] ^ key1, static_cast<uint32_t>(a)}};
    return philox_rounds<rounds - 1>(next, key0 + 0x9E3779B9u, key1 + 0xBB67AE85u);
  }
}

// Four independent 32-bit words.
FASTWM_FN Philox philox4x32(Philox counter, uint32_t key0, uint32_t key1) {
  return philox_rounds<10>(counter, key0, key1);
}

// Streams of random numbers, each named by (seed, offset): block b of a stream is Philox of the counter
// (offset lo, offset hi, b lo, b hi) under the key (seed lo, seed hi). Number i is made from block i / 4.
FASTWM_FN Philox philox_block(uint64_t seed, uint64_t offset, uint64_t block) {
  const Philox counter = {{static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32),
                           static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32)}};
  return philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// A word as a number in [0, 1), and in (0, 1): both exact. (A signed conversion is one instruction everywhere.)
FASTWM_FN float philox_uniform(uint32_t x) { return static_cast<float>(static_cast<int32_t>(x >> 8)) * 0x1p-24f; }
FASTWM_FN float philox_open_uniform(uint32_t x) {
  return static_cast<float>(static_cast<int32_t>(x >> 9)) * 0x1p-23f + 0x1p-24f;
}

// sin and cos of 2 pi t, 0 <= t < 1: t minus its nearest quarter is exact, and at most an eighth.
FASTWM_FN void sincos_turns(float t, float& sine, float& cosine) {
  const int32_t quarter = static_cast<int32_t>(4.0f * t + 0.5f);
  const float x = 6.28318531f * (t - 0.25f * static_cast<float>(quarter)), x2 = x * x;
  float s = 1.0f / 362880;  // Taylor's series: the next term is below float's rounding
  s = s * x2 - 1.0f / 5040;
  s = s * x2 + 1.0f / 120;
  s = s * x2 - 1.0f / 6;
  s = x + x * x2 * s;
  float c = -1.0f / 3628800;
  c = c * x2 + 1.0f / 40320;
  c = c * x2 - 1.0f / 720;
  c = c * x2 + 1.0f / 24;
  c = c * x2 - 0.5f;
  c = 1.0f + x2 * c;
  const bool swap = (quarter & 1) != 0;
  const float a = swap ? c : s, b = swap ? s : c;
  sine = (quarter & 2) != 0 ? -a : a;
  cosine = ((quarter + 1) & 2) != 0 ? -b : b;
}

// Box and Muller: two words, two independent standard normal numbers.
FASTWM_FN void philox_normal(uint32_t x, uint32_t y, float& first, float& second) {
  const float radius = sqrtf(-2.0f * vlog(philox_open_uniform(x)));
  float sine, cosine;
  sincos_turns(philox_uniform(y), sine, cosine);
  first = radius * cosine;
  second = radius * sine;
}

// Draws `count` numbers from each of `streams` streams, beginning with block `first`.
enum class PhiloxKind : int32_t { bits, uniform, normal };

struct PhiloxDraw {
  PhiloxKind kind;
  int64_t streams, count;
  uint64_t first;
  const int64_t* seed_offset;  // [streams, 2]
  void* out;                   // [streams, count]: 32-bit words, or float32
};

// The four numbers of a block, as the 32-bit words to be stored.
FASTWM_FN Philox philox_numbers(Philox words, PhiloxKind kind) {
  if (kind == PhiloxKind::bits) return words;
  union {
    float f[4];
    uint32_t u[4];
  } n;
  if (kind == PhiloxKind::uniform) {
    n.f[0] = philox_uniform(words.x[0]);
    n.f[1] = philox_uniform(words.x[1]);
    n.f[2] = philox_uniform(words.x[2]);
    n.f[3] = philox_uniform(words.x[3]);
  } else {
    philox_normal(words.x[0], words.x[1], n.f[0], n.f[1]);
    philox_normal(words.x[2], words.x[3], n.f[2], n.f[3]);
  }
  return {{n.u[0], n.u[1], n.u[2], n.u[3]}};
}

}  // namespace fastwm
