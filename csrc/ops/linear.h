// A linear layer's weight, [N, K] or [G, K, N / G].
#pragma once

#include "fastwm/linear.h"
#include "host_check.h"

namespace fastwm {

inline int64_t columns(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 2 || weight.dim() == 3,
                  "fastwm: linear: expected weight [N, K] or [G, K, N / G], got ", sizes_text(weight.sizes()));
  check_sizes(weight.sizes());
  return weight.dim() == 2 ? weight.size(0) : weight.size(0) * weight.size(2);
}

inline LinearLayer linear_layer(const Host& host, const Tensor& x, const Tensor& weight, bool bf16) {
  const bool out_in = weight.dim() == 2;
  const int64_t rows = x.size(0), K = x.size(1), G = out_in ? 1 : weight.size(0), J = weight.size(out_in ? 0 : 2);
  const Weight w = out_in ? host.linear(weight, "weight [N, K]", Shape(J, K), x.scalar_type())
                          : host.blocks(weight, "weight [G, K, N / G]", Shape(G, K, J), x.scalar_type());
  return {dtype_of(x), bf16, rows, K, G, J, w, out_in};
}

}  // namespace fastwm
