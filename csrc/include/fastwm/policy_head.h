// The parts of an action: how a policy's outputs and noise become it, and the derivatives; shared by C++ and CUDA.
#pragma once

#include <math.h>

#include "fastwm/params/types.h"
#include "fastwm/vecmath.h"

namespace fastwm {

// The width of a head's encoded action, and its outputs: logits, or raw means and then raw deviations.
FASTWM_FN int64_t width_of(const PolicyHead& head) { return head.size * (head.classes > 0 ? head.classes : 1); }
FASTWM_FN int64_t outputs_of(const PolicyHead& head) { return head.size * (head.classes > 0 ? head.classes : 2); }

// A real and its derivatives by the raw mean and the raw deviation.
template <typename A>
struct PolicyReal {
  A action, d_mean, d_std;
};

// mean + std noise, mean = tanh(raw), std = 0.9 sigmoid(raw + 2) + 0.1. Without derivatives: DreamerV3 has no use for them.
template <typename A>
FASTWM_FN A bounded_normal(A raw_mean, A raw_std, A noise) {
  return vtanh(raw_mean) + (A(0.9) * vsigmoid(raw_std + 2) + A(0.1)) * noise;
}

// tanh(mean + std noise), mean = 5 tanh(raw / 5), std = softplus(raw + shift) + min_std
template <typename A>
FASTWM_FN PolicyReal<A> tanh_normal(const PolicyHead& head, A raw_mean, A raw_std, A noise) {
  const A bounded = vtanh(raw_mean / 5), x = raw_std + static_cast<A>(head.shift);
  const A action = vtanh(5 * bounded + (vsoftplus(x) + static_cast<A>(head.min_std)) * noise);
  const A slope = 1 - action * action;
  return {action, slope * (1 - bounded * bounded), slope * noise * vsigmoid(x)};
}

FASTWM_FN double ndtr(double x) { return 0.5 * erfc(-0.70710678118654752440 * x); }

template <int count>
FASTWM_FN double polynomial(const double (&c)[count], double x) {
  double sum = c[count - 1];
  for (int i = count - 2; i >= 0; --i) sum = sum * x + c[i];
  return sum;
}

// The inverse of ndtr, within 1e-15: Wichura's algorithm AS 241 (Applied Statistics 37, 1988).
FASTWM_FN double ndtri(double p) {
  constexpr double a[] = {3.3871328727963666080e0,  1.3314166789178437745e+2, 1.9715909503065514427e+3,
                          1.3731693765509461125e+4, 4.5921953931549871457e+4, 6.7265770927008700853e+4,
                          3.3430575583588128105e+4, 2.5090809287301226727e+3};
  constexpr double b[] = {1.0,
                          4.2313330701600911252e+1,
                          6.8718700749205790830e+2,
                          5.3941960214247511077e+3,
                          2.1213794301586595867e+4,
                          3.9307895800092710610e+4,
                          2.8729085735721942674e+4,
                          5.2264952788528545610e+3};
  constexpr double c[] = {1.42343711074968357734e0,  4.63033784615654529590e0, 5.76949722146069140550e0,
                          3.64784832476320460504e0,  1.27045825245236838258e0, 2.41780725177450611770e-1,
                          2.27238449892691845833e-2, 7.74545014278341407640e-4};
  constexpr double d[] = {1.0,
                          2.05319162663775882187e0,
                          1.67638483018380384940e0,
                          6.89767334985100004550e-1,
                          1.48103976427480074590e-1,
                          1.51986665636164571966e-2,
                          5.47593808499534494600e-4,
                          1.05075007164441684324e-9};
  constexpr double e[] = {6.65790464350110377720e0,  5.46378491116411436990e0,  1.78482653991729133580e0,
                          2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
                          2.71155556874348757815e-5, 2.01033439929228813265e-7};
  constexpr double f[] = {1.0,
                          5.99832206555887937690e-1,
                          1.36929880922735805310e-1,
                          1.48753612908506148525e-2,
                          7.86869131145613259100e-4,
                          1.84631831751005468180e-5,
                          1.42151175831644588870e-7,
                          2.04426310338993978564e-15};
  const double q = p - 0.5;
  if (q >= -0.425 && q <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * polynomial(a, r) / polynomial(b, r);
  }
  const double tail = q < 0 ? p : 1 - p;
  if (tail <= 0) return q < 0 ? -HUGE_VAL : HUGE_VAL;
  const double r = sqrt(-log(tail));
  const double x =
      r <= 5 ? polynomial(c, r - 1.6) / polynomial(d, r - 1.6) : polynomial(e, r - 5) / polynomial(f, r - 5);
  return q < 0 ? -x : x;
}

// A Normal cut at -1 and 1 by its inverse CDF, clipped straight through; the derivatives hold the standardised noise.
// mean = tanh(raw), std = 2 sigmoid(raw / 2) + min_std. In double, because the CDF's tails are flat.
FASTWM_FN PolicyReal<double> trunc_normal(const PolicyHead& head, double raw_mean, double raw_std, double uniform) {
  const double mean = tanh(raw_mean), s = vsigmoid(raw_std / 2), std = 2 * s + head.min_std;
  const double left = (-1 - mean) / std, right = (1 - mean) / std, low = ndtr(left);
  double noise = ndtri(low + uniform * (ndtr(right) - low));
  noise = noise < left ? left : noise > right ? right : noise;
  constexpr double kLimit = 1 - 1e-6;
  const double x = mean + std * noise;
  return {x < -kLimit ? -kLimit : x > kLimit ? kLimit : x, 1 - mean * mean, noise * s * (1 - s)};
}

template <typename A>
FASTWM_FN PolicyReal<A> policy_real(const PolicyHead& head, A raw_mean, A raw_std, A noise) {
  if (head.dist == PolicyDist::tanh_normal) return tanh_normal(head, raw_mean, raw_std, noise);
  const PolicyReal<double> x = trunc_normal(head, raw_mean, raw_std, noise);
  return {static_cast<A>(x.action), static_cast<A>(x.d_mean), static_cast<A>(x.d_std)};
}

}  // namespace fastwm
