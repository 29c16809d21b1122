// A weight as a matrix product reads it, whatever its strides.
#pragma once

#include <cstdint>

namespace fastwm {

// A weight [G, K, N] as a product reads it, y_g = x_g W_g: element (g, k, n) is at g*sg + k*sk + n*sn.
struct Weight {
  const void* data;
  int64_t sg, sk, sn;

  Weight transposed() const { return {data, sg, sn, sk}; }
};

}  // namespace fastwm
