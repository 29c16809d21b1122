// What the way back of rssm_observe reads and leaves, for its steps and for the weights' gradients.
#pragma once

#include "rssm_rows.cuh"

namespace fastwm::cuda {
namespace {

enum Norm { kDeter, kStoch, kHidden, kPost, kNorms };

template <typename T, typename O>
struct Backward {
  RssmObserveBackward p;
  PackedWeight<O> logits, post, deter, gates, own, embeds[2], stoch;  // transposed
  T* inverse[kNorms];                       // [T * B]: 1 / rms of every layer's rows
  T *d_act[2], *d_act_hidden, *d_act_post;  // [T * B, width]: of the layers behind norm and SiLU
  T *d_embeds, *d_gates, *d_logits;         // [T * B, 2U] [T * B, 3D] [T * B, Z]: before the norms
  T *d_deter, *d_z;                         // [B, D] [B, Z]: what the step after asks for
  T *dots[2], *hidden_dots, *post_dots;     // [B, tiles]: shares of each norm's dot product
  unsigned* arrived;

  __device__ const T* read(const void* array) const { return static_cast<const T*>(array); }
  __device__ bool first(int64_t t, int64_t row) const { return p.gru.is_first[t * p.n.B + row]; }
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

// One element of y = pre / rms * scale and act = silu(y), on the way back.
template <typename T>
struct NormBack {
  T normal, act, d_y, d_normal;  // d_normal: scale * d_y

  __device__ NormBack(T pre, T inverse, T scale, T d_act) : normal(pre * inverse) {
    const T y = normal * scale, s = vsigmoid(y);
    act = y * s;
    d_y = d_act * s * (1 + y * (1 - s));
    d_normal = d_y * scale;
  }
  __device__ T d_pre(T inverse, T mean_dot) const { return inverse * (d_normal - normal * mean_dot); }
};

// A layer with a norm: how it was, and its gradient behind norm and SiLU.
template <typename T>
struct Layer {
  const T *pre, *inverse, *scale, *d_act;  // [rows, stride] [rows] [width] [rows, width]
  int64_t stride, width;

  __device__ NormBack<T> at(int64_t row, int64_t i) const {
    return NormBack<T>(pre[row * stride + i], inverse[row], scale[i], d_act[row * width + i]);
  }
  __device__ T act(int64_t row, int64_t i) const { return vsilu(pre[row * stride + i] * inverse[row] * scale[i]); }
};

template <typename T, typename O>
__device__ Layer<T> embed_layer(const Backward<T, O>& a, int part) {
  const RssmSizes& n = a.p.n;
  return {a.read(a.p.gru.embeds) + part * n.U, a.inverse[part], a.read(part ? a.p.w.n_stoch : a.p.gru.w.n_carry),
          a.d_act[part], 2 * n.U, n.U};
}
template <typename T, typename O>
__device__ Layer<T> hidden_of(const Backward<T, O>& a) {
  const RssmSizes& n = a.p.n;
  return {a.read(a.p.gru.hidden), a.inverse[kHidden], a.read(a.p.gru.w.n_hidden), a.d_act_hidden, n.D, n.D};
}
template <typename T, typename O>
__device__ Layer<T> post_of(const Backward<T, O>& a) {
  const RssmSizes& n = a.p.n;
  return {a.read(a.p.post), a.inverse[kPost], a.read(a.p.w.n_post), a.d_act_post, n.U, n.U};
}

}  // namespace
}  // namespace fastwm::cuda
