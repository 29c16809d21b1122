// The two-hot categorical: parameters and maths, shared by C++ and CUDA.
#pragma once

#include "fastwm/params/two_hot.h"
#include "fastwm/vecmath.h"

namespace fastwm {

// loss = sum over targets of share * CE(logits, two-hot(target)). Only logits and d_logits are in the stored dtype, the
// rest is in the type computed in. A NaN target makes loss and logsumexp NaN, and so the whole row's gradient.
constexpr int kMaxTargets = 2;

template <typename Params>
FASTWM_FN const void* target_of(const Params& p, int m) {
  return m == 0 ? p.target : p.second_target;
}

template <typename Params>
FASTWM_FN double share_of(const Params& p, int m) {
  return m == 0 ? 1 : p.second_weight;
}

// A target between bins below and above = below + 1, or at an end both the same; `weight` is that of `above`, NaN where
// the target is.
template <typename A>
struct TwoHot {
  int64_t below, above;
  A weight;
};

template <typename A>
FASTWM_FN TwoHot<A> two_hot(A target, const A* edges, int64_t bins) {
  int64_t count = 0, end = bins;  // how many edges are <= target; a NaN counts all
  while (count < end) {
    const int64_t middle = (count + end) / 2;
    if (edges[middle] > target) end = middle;
    else count = middle + 1;
  }
  if (count == 0) return {0, 0, 0};
  if (count == bins) return {bins - 1, bins - 1, target != target ? target : 0};
  const A low = edges[count - 1];
  return {count - 1, count, (target - low) / (edges[count] - low)};
}

// Two mirrored bins' share of the mean. Symmetric edges and equal weights give exactly zero however the compiler
// fuses it; of p_high * high + p_low * low a fused multiply-add rounds one product only, and leaves the difference.
template <typename A>
FASTWM_FN A mirrored(A p_low, A p_high, A low, A high) {
  return (p_high - p_low) * high + p_low * (high + low);
}

}  // namespace fastwm
