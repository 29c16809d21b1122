// The categorical family's parameters and its maths, shared by C++ and CUDA.
//
// p = (1 - unimix) q + unimix / C with q = softmax(logits), over rows of C classes. Every kernel computes q again
// from the logits, which autograd holds anyway, so nothing is saved for a backward. With w = (1 - unimix) q dL/dp
// the gradient is dL/dlogits = w - q sum(w).
#pragma once

#include "fastwm/inverse_cdf.h"
#include "fastwm/params/categorical.h"
#include "fastwm/vecmath.h"

namespace fastwm {

// vlog of a positive normal number or of NaN: without vlog's edges the compiler vectorises whatever loop it is in.
// x = 2^e (1 + f) with 1 + f in [0.7, 1.4], and log(1 + f) = f - f^2 / 2 + f^3 P(f), P a minimax fit.
FASTWM_FN float vlog_normal(float x) {
#ifdef __CUDA_ARCH__
  return logf(x);
#else
  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  const uint32_t offset = bits_of(x) - kSqrtHalf;
  const float e = static_cast<float>(static_cast<int32_t>(offset) >> 23);
  const float f = float_of((offset & 0x7fffffu) + kSqrtHalf) - 1.0f;
  float p = -7.6365367e-2f;
  p = p * f + 1.27646685e-1f;
  p = p * f - 1.31608918e-1f;
  p = p * f + 1.42013967e-1f;
  p = p * f - 1.66232526e-1f;
  p = p * f + 2.00012386e-1f;
  p = p * f - 2.50008225e-1f;
  p = p * f + 3.33333313e-1f;
  const float ff = f * f;
  const float y = e * 0.693145752f + (f - (0.5f * ff - (ff * f * p + e * 1.42860677e-6f)));
  return y < x ? y : x;  // ln x is below x: this keeps NaN alone, by one minimum
#endif
}
FASTWM_FN double vlog_normal(double x) { return log(x); }

template <typename A>
struct Unimix {
  A keep, floor;  // 1 - unimix, unimix / C
  bool on;
};

template <typename A>
FASTWM_FN Unimix<A> unimix_of(double unimix, int64_t classes) {
  return {static_cast<A>(1 - unimix), static_cast<A>(unimix / static_cast<double>(classes)), unimix > 0};
}

template <typename A>
FASTWM_FN A mixed(Unimix<A> m, A q) {
  return m.keep * q + m.floor;
}

// ln p; x is the logit less the largest of its row, log_z the logarithm of the row's sum of exp(x). Without a
// mixture q may underflow, but its logarithm does not.
template <typename A>
FASTWM_FN A mixed_log(Unimix<A> m, A x, A log_z, A q) {
  return m.on ? vlog_normal(mixed(m, q)) : x - log_z;
}

// p ln(p), where 0 ln 0 = 0.
template <typename A>
FASTWM_FN A weighted_log(A p, A log) {
  return p == 0 ? 0 : p * log;
}

// (1 - unimix) q / p = dln(p)/dln(q); exactly 1 without a mixture, even where q has underflowed.
template <typename A>
FASTWM_FN A kept_share(Unimix<A> m, A q) {
  constexpr A kTiny = static_cast<A>(1e-36);
  const A kept = m.keep * q + kTiny;
  return kept / (kept + m.floor);
}

// Standard Gumbel noise of a uniform number, which is kept off 0 and 1, where it would be infinite.
template <typename A>
FASTWM_FN A gumbel(A u) {
  constexpr bool single = sizeof(A) == sizeof(float);
  constexpr A low = static_cast<A>(single ? 1.17549435e-38 : 2.2250738585072014e-308);
  constexpr A high = static_cast<A>(single ? 0.99999994039535522 : 0.99999999999999989);  // 1 - eps / 2
  const A above = u < low ? low : u;
  return -vlog_normal(-vlog_normal(above > high ? high : above));
}

}  // namespace fastwm
