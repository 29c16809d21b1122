// One step of LaProp with adaptive gradient clipping over many tensors: parameters and maths, for C++ and CUDA.
#pragma once

#include <math.h>

#include "fastwm/params/laprop.h"

namespace fastwm {

// Elements of a tensor that are one unit of work. Squares are summed chunk by chunk, so no result depends on the
// threads.
constexpr int64_t kChunk = 16384;

struct LaPropTensor {
  void* param;  // [count], as all four
  const void* grad;
  void *nu, *mu;
  int64_t count;
  int64_t first_chunk;  // in a numbering over all tensors
};

static inline int64_t laprop_chunks(int64_t count) { return (count + kChunk - 1) / kChunk; }

FASTWM_FN bool laprop_applies(const LaProp& p) { return !p.apply_at || *p.apply_at; }

// Factors that depend on the step alone.
struct LaPropRates {
  double step_size;  // lr_t / (1 - beta1^t)
  double nu_unbias;  // 1 / (1 - beta2^t)
};

FASTWM_FN LaPropRates laprop_rates(const LaProp& p) {
  const double done = static_cast<double>(p.step_at ? *p.step_at : p.step);
  const double lr = p.lr_at ? static_cast<double>(*p.lr_at) : p.lr;
  const double ramp = p.warmup > 0 && done < p.warmup ? done / p.warmup : 1;
  return {lr * ramp / (1 - pow(p.beta1, done + 1)), 1 / (1 - pow(p.beta2, done + 1))};
}

// The factor by which AGC scales a tensor's gradient.
FASTWM_FN double agc_scale(double param_squares, double grad_squares, double agc, double pmin) {
  const double limit = agc * (sqrt(param_squares) < pmin ? pmin : sqrt(param_squares));
  const double norm = sqrt(grad_squares);
  return norm > limit ? limit / norm : norm <= limit ? 1 : norm + limit;  // a NaN stays one
}

// The settings in the type computed in; 1 - beta is taken before it is rounded, or 1 - 0.999 would be off by 1e-5.
template <typename A>
struct LaPropScalars {
  A beta2, fresh1, fresh2, eps, step_size, nu_unbias;  // fresh: 1 - beta

  FASTWM_FN LaPropScalars make(const LaProp& p, const LaPropRates& rates) {
    return {static_cast<A>(p.beta2), static_cast<A>(1 - p.beta1),     static_cast<A>(1 - p.beta2),
            static_cast<A>(p.eps),   static_cast<A>(rates.step_size), static_cast<A>(rates.nu_unbias)};
  }
};

template <typename A>
FASTWM_FN void laprop_update(A& param, A grad, A& nu, A& mu, const LaPropScalars<A>& s) {
  nu = s.beta2 * nu + s.fresh2 * (grad * grad);
  mu += s.fresh1 * (grad / (sqrt(nu * s.nu_unbias) + s.eps) - mu);
  param -= s.step_size * mu;
}

// The tensor that holds a chunk, between `first` and `end`.
FASTWM_FN int64_t tensor_of_chunk(const LaPropTensor* tensors, int64_t first, int64_t end, int64_t chunk) {
  while (end - first > 1) {
    const int64_t middle = (first + end) / 2;
    if (tensors[middle].first_chunk <= chunk) first = middle;
    else end = middle;
  }
  return first;
}

}  // namespace fastwm
