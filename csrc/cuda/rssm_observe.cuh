// The arrays that the kernels of rssm_observe read and write.
#pragma once

#include "rssm_rows.cuh"

namespace fastwm::cuda {
namespace {

// T: what is stored and normed; O: what products multiply.
template <typename T, typename O>
struct Observe {
  RssmObserve p;
  PackedWeight<O> deter, stoch, own, embeds, gates[3], post, logits;
  PackedWeight<T> gather;                      // stoch, as its rows are added up
  O* multiplied;                               // [B, D]: deter as products take it
  T *embeds_raw, *hidden_raw, *post_raw;       // the layers before their norms
  int64_t kept;                                // 1 where every step has its own, 0 where they share one
  T *embed_sums[2], *hidden_sums, *post_sums;  // [B, tiles]: sums of squares
  unsigned* arrived;

  __device__ const T* deter_before(int64_t t) const {
    return static_cast<const T*>(t > 0 ? p.gru.h : p.gru.h0) + (t > 0 ? (t - 1) * p.n.B * p.n.D : 0);
  }
  __device__ bool first(int64_t t, int64_t row) const { return p.gru.is_first[t * p.n.B + row]; }
  __device__ void keep_gate(int64_t at, T x) const {
    if (p.compact) narrow(static_cast<float>(x), static_cast<bf16*>(p.gru.gates)[at]);
    else static_cast<T*>(p.gru.gates)[at] = x;
  }
  __device__ T* embeds_at(int64_t t) const { return embeds_raw + kept * t * p.n.B * 2 * p.n.U; }
  __device__ T* hidden_at(int64_t t) const { return hidden_raw + kept * t * p.n.B * p.n.D; }
  __device__ T* post_at(int64_t t) const { return post_raw + kept * t * p.n.B * p.n.U; }
  __device__ const T* read(const void* array) const { return static_cast<const T*>(array); }
};

}  // namespace
}  // namespace fastwm::cuda
