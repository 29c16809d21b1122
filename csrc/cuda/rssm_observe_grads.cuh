// The weights' gradients of rssm_observe: products and sums over all steps, once the backward pass has left every layer's gradient.
#pragma once

#include "grad_product.cuh"
#include "rssm_observe_backward.cuh"

namespace fastwm::cuda {
namespace {

// The place of each weight's gradient, in the order of RssmObserveBackward.
template <typename T>
struct Grads {
  T *w_deter, *b_deter, *n_deter, *w_stoch, *b_stoch, *n_stoch, *w_own, *w_embeds, *n_hidden, *w_gates, *b_gates;
  T *w_post, *n_post, *w_logits, *b_logits;

  Grads(const RssmSizes& n, T* all) {
    const auto take = [&all](int64_t size) { return (all += size) - size; };
    w_deter = take(n.U * n.D), b_deter = take(n.U), n_deter = take(n.U);
    w_stoch = take(n.U * n.Z()), b_stoch = take(n.U), n_stoch = take(n.U);
    w_own = take(n.D * n.J()), w_embeds = take(2 * n.U * n.D), n_hidden = take(n.D);
    w_gates = take(3 * n.D * n.J()), b_gates = take(3 * n.D);
    w_post = take(n.U * n.D), n_post = take(n.U);
    w_logits = take(n.Z() * n.U), b_logits = take(n.Z());
  }
};

// All weights' gradients in one launch, so that the small ones share the chip.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads, 2) weight_grads(Backward<T, O> a, Grads<T> to) {
  __shared__ typename GradProduct<T, O>::Shared shared;
  const RssmSizes& n = a.p.n;
  const int64_t R = n.T * n.B, U = n.U, D = n.D, Z = n.Z(), J = n.J();
  const T* d_hidden = a.read(a.p.gru.d_hidden);
  Square at(blockIdx.x);
  const auto product = [&](int64_t M, int64_t N, T* out, auto rows_a, auto rows_b) {
    GradProduct<T, O>::run(shared, at, R, M, N, out, rows_a, rows_b);
  };
  if (at.of(U, D))
    return product(
        U, D, to.w_deter, [&](int64_t r, int64_t m) { return a.d_embeds[r * 2 * U + m]; },
        [&](int64_t r, int64_t k) { return a.past_deter(r, k); });
  if (at.of(U, Z))
    return product(
        U, Z, to.w_stoch, [&](int64_t r, int64_t m) { return a.d_embeds[r * 2 * U + U + m]; },
        [&](int64_t r, int64_t k) { return a.past_stoch(r, k); });
  if (at.of(J, J, n.G))
    return product(
        J, J, to.w_own + at.g * J * J, [&](int64_t r, int64_t m) { return a.past_deter(r, at.g * J + m); },
        [&](int64_t r, int64_t k) { return d_hidden[r * D + at.g * J + k]; });
  if (at.of(2 * U, J, n.G))
    return product(
        2 * U, J, to.w_embeds + at.g * 2 * U * J,
        [&](int64_t r, int64_t m) { return widen(m < U ? a.act[kDeter][r * U + m] : a.act[kStoch][r * U + m - U]); },
        [&](int64_t r, int64_t k) { return d_hidden[r * D + at.g * J + k]; });
  if (at.of(J, 3 * J, n.G))
    return product(
        J, 3 * J, to.w_gates + at.g * 3 * J * J,
        [&](int64_t r, int64_t m) { return widen(a.act[kHidden][r * D + at.g * J + m]); },
        [&](int64_t r, int64_t k) { return widen(a.d_gates[(r * D + at.g * J) * 3 + k]); });
  if (at.of(U, D))
    return product(
        U, D, to.w_post, [&](int64_t r, int64_t m) { return a.read(a.p.d_post)[r * U + m]; },
        [&](int64_t r, int64_t k) { return a.read(a.p.gru.h)[r * D + k]; });
  if (at.of(Z, U))
    return product(
        Z, U, to.w_logits, [&](int64_t r, int64_t m) { return a.d_logits[r * Z + m]; },
        [&](int64_t r, int64_t k) { return widen(a.act[kPost][r * U + k]); });
}

// blockIdx.y: which of the eight vectors.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) vector_grads(Backward<T, O> a, Grads<T> to) {
  const RssmSizes& n = a.p.n;
  const int64_t R = n.T * n.B, B = n.B, U = n.U;
  const auto plain = [&](const auto* x, int64_t rows, int64_t stride, int64_t N, T* out) {
    column_sums(rows, N, out, [&](int64_t r, int64_t c) { return widen(x[r * stride + c]); });
  };
  switch (blockIdx.y) {
    case 0: return plain(a.d_embeds, R, 2 * U, U, to.b_deter);
    case 1: return plain(a.d_embeds + U, R, 2 * U, U, to.b_stoch);
    case 2: return plain(a.d_gates, R, 3 * n.D, 3 * n.D, to.b_gates);
    case 3: return plain(a.d_logits, R, n.Z(), n.Z(), to.b_logits);
    case 4: return plain(a.d_scale[kDeter], planes_of(kDeter) * B, U, U, to.n_deter);
    case 5: return plain(a.d_scale[kStoch], planes_of(kStoch) * B, U, U, to.n_stoch);
    case 6: return plain(a.d_scale[kHidden], B, n.D, n.D, to.n_hidden);
    default: return plain(a.d_scale[kPost], B, U, U, to.n_post);
  }
}

template <typename T, typename O>
void all_weight_grads(const Backward<T, O>& a, cudaStream_t on) {
  const RssmSizes& n = a.p.n;
  const int64_t J = n.J();
  const Grads<T> to(n, static_cast<T*>(a.p.d_weights));
  const int64_t blocks = 2 * squares(n.U, n.D) + squares(n.U, n.Z()) + squares(J, J, n.G) + squares(2 * n.U, J, n.G) +
                         squares(J, 3 * J, n.G) + squares(n.Z(), n.U);
  weight_grads<T, O><<<static_cast<unsigned>(blocks), kThreads, 0, on>>>(a, to);
  const int64_t widest = 3 * n.D > n.Z() ? 3 * n.D : n.Z();
  const int64_t columns = widest > n.U ? widest : n.U;
  vector_grads<T, O><<<dim3(static_cast<unsigned>((columns + 31) / 32), 8), kThreads, 0, on>>>(a, to);
}

}  // namespace
}  // namespace fastwm::cuda
