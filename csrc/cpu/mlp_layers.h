// The array that holds the gradients of an MLP's weights, in the order of the declarations.
#pragma once

#include "fastwm/params/types.h"

namespace fastwm::FASTWM_ISA {
namespace {

// Z of the first layer's K inputs are a latent, whose weights' gradient is stored on its own.
inline int64_t mlp_weights(const MlpLayers& n) {
  return n.U * n.K + n.L * n.U * n.U + (1 + n.k) * (1 + n.L) * n.U + n.O * (n.U + 1);
}

template <typename T>
struct MlpGrads {
  T *w_x, *w_z, *ws, *w_out, *bs, *b_out, *norms;  // [U, K - Z], Z U, [L, U, U] [O, U] [1 + L, U] [O] [1 + L, k, U]

  MlpGrads(const MlpLayers& n, int64_t Z, T* all) {
    const auto take = [&all](int64_t size) { return (all += size) - size; };
    w_x = take(n.U * (n.K - Z)), w_z = take(n.U * Z), ws = take(n.L * n.U * n.U), w_out = take(n.O * n.U);
    bs = take((1 + n.L) * n.U), b_out = take(n.O), norms = take((1 + n.L) * n.k * n.U);
  }
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
