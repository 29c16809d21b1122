// Parameters of a linear layer over many rows, y = x W + b.
#pragma once

#include "fastwm/dtype.h"
#include "fastwm/weight.h"

namespace fastwm {

struct LinearLayer {
  Dtype dtype;
  bool bf16;  // products in bfloat16, where the CPU has them
  int64_t rows, K, G, J;
  Weight w;     // [G, K, J]: block g makes columns g*J.. of y
  bool out_in;  // the gradient's layout: [G * J, K], for G = 1, or [G, K, J]

  int64_t N() const { return G * J; }
  int64_t size() const { return K * N(); }  // of the weight
};

}  // namespace fastwm
