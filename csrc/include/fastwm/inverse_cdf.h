// Sampling by the inverse CDF, shared by C++ and CUDA: which class the rounded sums answer, and what becomes of NaN.
#pragma once

#include "fastwm/dtype.h"

namespace fastwm {

// The least probability of a class that can be drawn: below it vexp_normal gives 0.
FASTWM_FN float least_weight(float) { return 1.17549435e-38f; }
FASTWM_FN double least_weight(double) { return 2.2250738585072014e-308; }

// The class drawn, from index = how many k < C - 1 have p_0 + ... + p_k <= u. Where the rounded sums stay below u, the
// last class that can be drawn catches the rest. weight(k) is p_k.
template <typename Index, typename Weight>
FASTWM_FN Index last_drawable(Index index, int64_t classes, Weight weight) {
  if (index == classes - 1)
    while (index > 0 && weight(index) < least_weight(weight(index))) --index;
  return index;
}

// The number that unnormalised cumulated weights are compared with: the class drawn is the first whose cumulated
// weight exceeds it. It stays below their sum, so a class of no weight is never drawn, not even by u = 1.
FASTWM_FN float cdf_threshold(float u, float total) { return (u > 0x1.fffffep-1f ? 0x1.fffffep-1f : u) * total; }
FASTWM_FN double cdf_threshold(double u, double total) {
  return (u > 0x1.fffffffffffffp-1 ? 0x1.fffffffffffffp-1 : u) * total;
}

// 0, or NaN where x is not finite: added to a sample, it brings back the NaN that comparisons have lost.
template <typename A>
FASTWM_FN A nothing_of(A x) {
  return x - x;
}

}  // namespace fastwm
