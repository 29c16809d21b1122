// The arrays that rssm_observe's backward pass reads and writes, for its steps and for the weights' gradients.
#pragma once

#include "rssm_rows.cuh"

namespace fastwm::cuda {
namespace {

enum Norm { kDeter, kStoch, kHidden, kPost, kNorms };

// The embeddings' gradients are products of depth D, the deepest of a step: two blocks make one, and since all that
// follows is linear in it, leave two planes of everything for the reader to add up.
constexpr int kHalves = 2;
__host__ __device__ constexpr int planes_of(int norm) { return norm < kHidden ? kHalves : 1; }

// The gradient of a layer before its norm is grad - normal * (the row's mean dot product), [B, width] each: linear in
// what is known before all of the row's tiles have added up their dot products.
template <typename T>
struct Parts {
  T *grad, *normal;  // [planes, B, width] [B, width]
};

template <typename T, typename O>
struct Backward {
  RssmObserveBackward p;
  PackedWeight<O> logits, post, deter, gates, own, embeds[2], stoch;  // transposed
  T *d_embeds, *d_logits;                                             // [T * B, 2U] [T * B, Z]: before the norms
  O* d_gates;                                                         // [T * B, 3D]
  T *d_deter, *d_z;                                                   // [B, D] [B, Z]: what the step after asks for
  // For each layer with a norm:
  O* act[kNorms];      // [T * B, width]: silu(norm)
  T* inverse[kNorms];  // [T * B]: 1 / rms
  T* d_scale[kNorms];  // [planes, B, width]: what the norm's scale gets from a row of all steps
  Parts<T> parts[kNorms];
  T* dots[kNorms];  // [B, planes * tiles]: shares of the norm's dot product
  unsigned* arrived;

  __device__ const T* read(const void* array) const { return static_cast<const T*>(array); }
  __device__ bool first(int64_t t, int64_t row) const { return p.gru.is_first[t * p.n.B + row]; }
  __device__ T kept_gate(int64_t at) const {
    return p.compact ? static_cast<T>(widen(static_cast<const bf16*>(p.gru.gates)[at])) : read(p.gru.gates)[at];
  }
  // deter and stoch before step `at / B`, zero where it resets.
  __device__ T past_deter(int64_t at, int64_t d) const {
    const int64_t B = p.n.B, D = p.n.D;
    const T before = (at < B ? read(p.gru.h0) + at * D : read(p.gru.h) + (at - B) * D)[d];
    return p.gru.is_first[at] ? T{0} : before;
  }
  __device__ T past_stoch(int64_t at, int64_t z) const {
    const int64_t B = p.n.B, Z = p.n.Z();
    const T before = (at < B ? read(p.stoch0) + at * Z : read(p.stoch) + (at - B) * Z)[z];
    return p.gru.is_first[at] ? T{0} : before;
  }
};

// A layer with a norm, as the forward left it and in the backward pass.
template <typename T>
struct Layer {
  const T *pre, *inverse, *scale;  // [T * B, stride] [T * B] [width]
  T *d_scale, *dots;
  Parts<T> parts;
  int64_t stride, width;
};

template <typename T, typename O>
__device__ Layer<T> layer_of(const Backward<T, O>& a, int norm) {
  const RssmSizes& n = a.p.n;
  const int64_t width = norm == kHidden ? n.D : n.U;
  const void* pre = norm == kPost ? a.p.post : norm == kHidden ? a.p.gru.hidden : a.p.gru.embeds;
  const void* scale = norm == kPost     ? a.p.w.n_post
                      : norm == kHidden ? a.p.gru.w.n_hidden
                      : norm == kStoch  ? a.p.w.n_stoch
                                        : a.p.gru.w.n_carry;
  return {a.read(pre) + (norm == kStoch ? n.U : 0),
          a.inverse[norm],
          a.read(scale),
          a.d_scale[norm],
          a.dots[norm],
          a.parts[norm],
          norm < kHidden ? 2 * n.U : width,
          width};
}

}  // namespace
}  // namespace fastwm::cuda
