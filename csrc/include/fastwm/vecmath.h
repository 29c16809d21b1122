// Elementary functions as plain branch-free expressions, which the compiler vectorises inside `omp simd` loops.
// float: within about 2 ulp, right at infinities, NaN, subnormals and zero. double, and float on CUDA: libm's.
#pragma once

#include <math.h>

#include "fastwm/dtype.h"

namespace fastwm {

#ifdef __CUDA_ARCH__

FASTWM_FN float vexp(float x) { return expf(x); }
FASTWM_FN float vexp_normal(float x) { return expf(x); }
FASTWM_FN float vexpm1(float x) { return expm1f(x); }
FASTWM_FN float vlog(float x) { return logf(x); }
FASTWM_FN float vlog1p(float x) { return log1pf(x); }
FASTWM_FN float vtanh(float x) { return tanhf(x); }
FASTWM_FN float vsoftplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }
// Within 2 ulp, and without the branch of the exact division, after which no load would be started early.
FASTWM_FN float vdivide(float x, float y) { return __fdividef(x, y); }

#else

FASTWM_FN float vdivide(float x, float y) { return x / y; }

FASTWM_FN uint32_t bits_of(float x) {
  union {
    float f;
    uint32_t u;
  } w = {x};
  return w.u;
}

FASTWM_FN float float_of(uint32_t bits) {
  union {
    uint32_t u;
    float f;
  } w = {bits};
  return w.f;
}

FASTWM_FN float power_of_2(int32_t n) { return float_of((static_cast<uint32_t>(n) + 127u) << 23); }

// low < 0 < high; a NaN becomes one of them. In integers, which order positive floats as the floats do, and negative
// ones, taken as unsigned, by magnitude: two instructions, where comparisons of floats become masks and blends.
FASTWM_FN float bound(float x, float low, float high) {
  const int32_t bits = static_cast<int32_t>(bits_of(x)), top = static_cast<int32_t>(bits_of(high));
  const int32_t below = bits < top ? bits : top;
  const uint32_t magnitude = static_cast<uint32_t>(below), bottom = bits_of(low);
  return float_of(magnitude < bottom ? magnitude : bottom);
}

FASTWM_FN float clamp(float x, float low, float high) { return x != x ? x : bound(x, low, high); }

// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r - 1 = r + r^2 Q(r), Q a minimax fit.
struct ExpParts {
  int32_t n;
  float expm1_r;
};

FASTWM_FN ExpParts exp_parts(float x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  const float shifted = x * 1.44269504f + kRounder;
  const float n = shifted - kRounder;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // the first product is exact
  float q = 1.9913675e-4f;
  q = q * r + 1.3941077e-3f;
  q = q * r + 8.333274e-3f;
  q = q * r + 4.1666355e-2f;
  q = q * r + 1.6666667e-1f;
  q = q * r + 0.5f;
  return {static_cast<int32_t>(bits_of(shifted) - bits_of(kRounder)), r * r * q + r};
}

FASTWM_FN float vexp(float x) {
  const ExpParts e = exp_parts(clamp(x, -105.0f, 90.0f));
  const int32_t half = e.n >> 1;  // in two factors, for results beyond 2^127 and below 2^-126
  return (1.0f + e.expm1_r) * power_of_2(half) * power_of_2(e.n - half);
}

// vexp without subnormal results, a fifth cheaper: 0 below 2^-126.5, infinity above 2^127.5.
FASTWM_FN float vexp_normal(float x) {
  const ExpParts e = exp_parts(clamp(x, -88.0f, 89.0f));
  return (1.0f + e.expm1_r) * power_of_2(e.n);  // the exponent bits of 2^-127 are those of 0, of 2^128 infinity's
}

FASTWM_FN float vexpm1(float x) {
  const ExpParts e = exp_parts(clamp(x, -25.0f, 89.0f));
  const float half = power_of_2(e.n - 1);  // 2^128 would overflow where the result does not
  return e.n == 0 ? e.expm1_r : 2.0f * (half * e.expm1_r + (half - 0.5f));
}

// log(2^power x) of a positive normal number: x = 2^e (1 + f) with 1 + f in [0.7, 1.4], and
// log(1 + f) = f - f^2 / 2 + f^3 P(f), P a minimax fit.
FASTWM_FN float vlog_normal(float x, int32_t power) {
  const uint32_t bits = bits_of(x);
  const uint32_t shifted = bits - 0x3f3504f3u;  // sqrt(1/2)
  const int32_t exponent = static_cast<int32_t>(shifted) >> 23;
  const float e = static_cast<float>(exponent + power);
  const float f = float_of(bits - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
  float p = 6.906375e-2f;
  p = p * f - 0.11795578f;
  p = p * f + 0.11879552f;
  p = p * f - 0.12383855f;
  p = p * f + 0.14217798f;
  p = p * f - 0.16669251f;
  p = p * f + 0.20002264f;
  p = p * f - 0.24999987f;
  p = p * f + 0.3333331f;
  const float ff = f * f;
  const float small = (ff * f * p + e * -2.12194440e-4f) - 0.5f * ff;
  return (small + f) + e * 0.693359375f;
}

FASTWM_FN float vlog(float x) {
  const bool subnormal = x < 1.17549435e-38f;
  const float y = vlog_normal(subnormal ? x * 8388608.0f : x, subnormal ? -23 : 0);
  constexpr float kInfinity = __builtin_inff();
  const float edge = x == 0.0f ? -kInfinity : x < 0.0f ? __builtin_nanf("") : x;  // 0, negative, inf and NaN
  return x > 0.0f && x < kInfinity ? y : edge;
}

// log(u) with u = 1 + x rounded, corrected by what the rounding lost.
FASTWM_FN float vlog1p(float x) {
  const float u = 1.0f + x;
  const float lost = x < 1.0f ? x - (u - 1.0f) : 1.0f - (u - x);
  const bool finite = u > 0.0f && u < __builtin_inff();
  const float y = vlog(u) + (finite ? lost / u : 0.0f);
  return u == 1.0f ? x : y;
}

// max(x, 0) + log1p(exp(-|x|)); log1p of the whole range would bring branches that a loop cannot have.
FASTWM_FN float vsoftplus(float x) {
  const float e = vexp(x < 0.0f ? x : -x), u = 1.0f + e;
  return (x > 0.0f ? x : 0.0f) + (vlog_normal(u, 0) + (e - (u - 1.0f)) / u);
}

FASTWM_FN float vtanh(float x) {
  const float magnitude = x < 0.0f ? -x : x;
  const float t = vexpm1(2.0f * clamp(magnitude, -1.0f, 10.0f));
  const float y = t / (t + 2.0f);
  return float_of(bits_of(y) | (bits_of(x) & 0x80000000u));
}

#endif

FASTWM_FN double vexp(double x) { return exp(x); }
FASTWM_FN double vexp_normal(double x) { return exp(x); }
FASTWM_FN double vexpm1(double x) { return expm1(x); }
FASTWM_FN double vlog(double x) { return log(x); }
FASTWM_FN double vlog1p(double x) { return log1p(x); }
FASTWM_FN double vtanh(double x) { return tanh(x); }
FASTWM_FN double vsoftplus(double x) { return (x > 0 ? x : 0) + log1p(exp(x > 0 ? -x : x)); }
FASTWM_FN double vdivide(double x, double y) { return x / y; }

template <typename A>
FASTWM_FN A vsigmoid(A x) {
  return vdivide(A(1), 1 + vexp_normal(-x));
}

// x sigmoid(x); the clamp makes it -0 at minus infinity, where inf / inf would be NaN.
template <typename A>
FASTWM_FN A vsilu(A x) {
  constexpr A kZeroBelow = -1000;
  return vdivide(x < kZeroBelow ? kZeroBelow : x, 1 + vexp_normal(-x));
}

// x where positive, e^x - 1 elsewhere.
template <typename A>
FASTWM_FN A velu(A x) {
  return x > 0 ? x : vexpm1(x);
}

}  // namespace fastwm
