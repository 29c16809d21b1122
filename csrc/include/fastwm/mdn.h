// Mixture density networks: parameters and maths, shared by C++ and CUDA.
#pragma once

#include "fastwm/inverse_cdf.h"
#include "fastwm/vecmath.h"

namespace fastwm {

// One array of mixture parameters, [outer, lanes, dims, classes] with any strides.
struct MixtureArray {
  const void* data;
  int64_t outer, lane, dim, cls;
};

// A mixture a lane. It spreads over one number (dims = 1), or jointly over all numbers of a vector; `outer` is
// 1 unless the lanes of the caller's arrays cannot be walked with one stride.
struct Mixtures {
  Dtype dtype;
  int64_t outer, lanes, dims, classes;
  MixtureArray logits, mean, log_std;  // the logits do not depend on the dimension
};

constexpr double kHalfLog2Pi = 0.91893853320467274178;

// The least finite number of a type.
FASTWM_FN float lowest(float) { return -3.40282347e38f; }
FASTWM_FN double lowest(double) { return -1.7976931348623157e308; }

// log sum_k exp(x_k) = largest + log(total), one x at a time.
template <typename A>
struct LogSumExp {
  A largest, total;
};

template <typename A>
FASTWM_FN void add(LogSumExp<A>& sum, A x) {
  const bool larger = x > sum.largest;
  const A e = vexp(larger ? sum.largest - x : x - sum.largest);
  sum.total = larger ? sum.total * e + 1 : sum.total + e;
  sum.largest = larger ? x : sum.largest;
}

}  // namespace fastwm
