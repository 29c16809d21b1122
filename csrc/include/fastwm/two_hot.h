// The two-hot categorical: parameters and maths, shared by C++ and CUDA.
#pragma once

#include "fastwm/params/two_hot.h"
#include "fastwm/vecmath.h"

namespace fastwm {

constexpr int kMaxTargets = 2;

// loss = sum over m of share[m] * CE(logits, two-hot(target[m])). Only logits and d_logits are in the stored dtype,
// the rest is in the type computed in.
struct TwoHotLoss {
  Dtype dtype;
  int64_t rows, bins;
  const void* logits;               // [rows, bins]
  const void* edges;                // [bins], ascending
  const void* target[kMaxTargets];  // [rows]; nullptr: there is none
  double share[kMaxTargets];
  void *loss, *logsumexp;  // [rows]; a NaN target makes both NaN, and so the whole row's gradient
};

struct TwoHotLossBackward {
  Dtype dtype;
  int64_t rows, bins;
  const void* logits;
  const void* edges;
  const void* target[kMaxTargets];
  double share[kMaxTargets];
  const void *grad, *logsumexp;  // [rows]
  void* d_logits;                // [rows, bins]
};

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
