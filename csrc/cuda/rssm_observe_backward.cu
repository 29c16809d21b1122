// The mirror of rssm_observe.cu, six launches a step, last step first. Every layer's gradient before its norm is kept
// for all steps; the weights' gradients are products over all of them after the loop.
#include "grad_product.cuh"
#include "rssm_rows.cuh"

namespace fastwm::cuda {
namespace {

enum Norm { kDeter, kStoch, kHidden, kPost, kNorms };

template <typename T, typename O>
struct Backward {
  RssmObserveBackward p;
  PackedWeight<O> logits, post, deter, gates[3], own, embeds[2], stoch;  // transposed
  T* inverse[kNorms];                       // [T * B]: 1 / rms of every layer's rows
  T *d_act[2], *d_act_hidden, *d_act_post;  // [T * B, width]: of the layers behind norm and SiLU
  T *d_embeds, *d_gates, *d_logits;         // [T * B, 2U] [T * B, 3D] [T * B, Z]: before the norms
  T *d_deter, *d_z;                         // [B, D] [B, Z]: what the step after asks for
  T *dots[2], *hidden_dots, *post_dots;     // [B, tiles]: shares of each norm's dot product

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

// One warp a row and norm.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) norms(Backward<T, O> a) {
  const RssmSizes& n = a.p.n;
  const int64_t task = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, rows = n.T * n.B;
  if (task >= kNorms * rows) return;
  const int64_t which = task / rows, row = task % rows;
  const T* pre = which < kHidden    ? a.read(a.p.gru.embeds) + row * 2 * n.U + which * n.U
                 : which == kHidden ? a.read(a.p.gru.hidden) + row * n.D
                                    : a.read(a.p.post) + row * n.U;
  const int64_t width = which == kHidden ? n.D : n.U;
  T sum = 0;
  for (int64_t i = threadIdx.x % 32; i < width; i += 32) sum += pre[i] * pre[i];
  sum = group_sum<32>(sum);
  if (threadIdx.x % 32 == 0)
    a.inverse[which][row] = 1 / sqrt(sum / static_cast<T>(width) + static_cast<T>(a.p.gru.eps));
}

// One block a row, one warp a categorical. memory: C shares for each warp.
template <typename T, typename O>
__global__ void __launch_bounds__(kSampleThreads, 1) sample_backward(Backward<T, O> a, int64_t t) {
  extern __shared__ __align__(16) unsigned char memory[];
  const RssmSizes& n = a.p.n;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  T* share = reinterpret_cast<T*>(memory) + warp * n.C;
  const T keep = 1 - static_cast<T>(a.p.w.unimix);
  for (int64_t s = warp; s < n.S; s += blockDim.x / 32) {
    const int64_t at = (t * n.B + blockIdx.x) * n.Z() + s * n.C;
    const T* d_z = a.d_z + blockIdx.x * n.Z() + s * n.C;
    const T* g = a.read(a.p.g_stoch) + at;
    const bool last = t + 1 == n.T;
    T mean = 0;
    softmax(a.read(a.p.logits) + at, n.C, [&](int64_t c, T probability) {
      share[c] = probability;
      mean += probability * (g[c] + (last ? 0 : d_z[c]));
    });
    mean = group_sum<32>(mean);
    for (int64_t c = lane; c < n.C; c += 32)
      a.d_logits[at + c] = a.read(a.p.g_logits)[at + c] + keep * share[c] * (g[c] + (last ? 0 : d_z[c]) - mean);
  }
}

// Writes a tile of a layer's gradient behind its norm and SiLU, and its share of the norm's dot product.
template <typename T>
__device__ void write_d_act(const Rows& rows, int64_t t, int64_t B, int64_t tile, int64_t tiles, int64_t i, int64_t N,
                            const T (&sums)[1][2], const Layer<T>& layer, T* d_act, T* dots) {
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = warp + kWarps * half;
    T dot = 0;
    if (rows.has(r) && N > 0) {
      const int64_t row = t * B + rows.first + r;
      d_act[row * layer.width + i] = sums[0][half];
      const NormBack<T> back(layer.pre[row * layer.stride + i], layer.inverse[row], layer.scale[i], sums[0][half]);
      dot = back.d_normal * back.normal;
    }
    dot = group_sum<32>(dot);
    if (threadIdx.x % 32 == 0 && rows.has(r)) dots[(rows.first + r) * tiles + tile] = dot;
  }
}

template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) logits_backward(Backward<T, O> a, int64_t t) {
  __shared__ typename TileProduct<O>::Shared shared;
  const RssmSizes& n = a.p.n;
  const Rows rows(n.B);
  TileProduct<O> product(shared, rows.count);
  product.add({a.logits.tile(0, blockIdx.x)}, n.Z(), [&](int r, int64_t k) {
    return a.d_logits[(t * n.B + rows.first + r) * n.Z() + k];
  });
  T out[1][2];
  product.finish(out);
  const int64_t u = int64_t{blockIdx.x} * kTileColumns + threadIdx.x % 32;
  write_d_act(rows, t, n.B, blockIdx.x, a.logits.tiles(), u, u < n.U, out, post_of(a), a.d_act_post, a.post_dots);
}

// All that reaches deter of step t, and the gates' way back.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads, 1) deter_backward(Backward<T, O> a, int64_t t) {
  __shared__ typename TileProduct<O>::Shared shared;
  __shared__ T mean_dot[kTileRows];
  const RssmSizes& n = a.p.n;
  const Rows rows(n.B);
  row_means(rows, a.post_dots, a.logits.tiles(), n.U, mean_dot);
  const Layer<T> post = post_of(a);
  TileProduct<O> product(shared, rows.count);
  const auto row_of = [&](int r) { return t * n.B + rows.first + r; };
  product.add({a.post.tile(0, blockIdx.x)}, n.U,
              [&](int r, int64_t k) { return post.at(row_of(r), k).d_pre(post.inverse[row_of(r)], mean_dot[r]); },
              [&](int r, int64_t k, T d) {
                if (blockIdx.x == 0) static_cast<T*>(a.p.d_post)[row_of(r) * n.U + k] = d;
              });
  const bool last = t + 1 == n.T;
  if (!last)
    product.add({a.deter.tile(0, blockIdx.x)}, n.U, [&](int r, int64_t k) {
      const T d = a.d_embeds[((t + 1) * n.B + rows.first + r) * 2 * n.U + k];
      return a.first(t + 1, rows.first + r) ? T{0} : d;
    });
  T out[1][2];
  product.finish(out);
  const int64_t d = int64_t{blockIdx.x} * kTileColumns + threadIdx.x % 32, J = n.J();
  if (d >= n.D) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = threadIdx.x / 32 + kWarps * half;
    if (!rows.has(r)) continue;
    const int64_t b = rows.first + r, row = t * n.B + b;
    T total = out[0][half] + a.read(a.p.gru.g_h)[row * n.D + d];
    if (!last && !a.first(t + 1, b)) total += a.d_deter[b * n.D + d];
    const int64_t gate = 3 * row * n.D + d / J * 3 * J + d % J;
    const T* saved = a.read(a.p.gru.gates) + gate;
    const T reset = saved[0], inner = saved[J], update = saved[2 * J], cand = vtanh(reset * inner);
    const T d_inner = total * update * (1 - cand * cand);
    a.d_gates[gate] = d_inner * inner * reset * (1 - reset);
    a.d_gates[gate + J] = d_inner * reset;
    a.d_gates[gate + 2 * J] = total * (cand - a.past_deter(row, d)) * update * (1 - update);
    a.d_deter[b * n.D + d] = total * (1 - update);
  }
}

template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) gates_backward(Backward<T, O> a, int64_t t) {
  __shared__ typename TileProduct<O>::Shared shared;
  const RssmSizes& n = a.p.n;
  const Rows rows(n.B);
  const int64_t tiles = a.gates[0].tiles(), g = blockIdx.x / tiles, tile = blockIdx.x % tiles, J = n.J();
  TileProduct<O> product(shared, rows.count);
#pragma unroll 1
  for (int part = 0; part < 3; ++part)
    product.add({a.gates[part].tile(g, tile)}, J, [&](int r, int64_t k) {
      return a.d_gates[3 * ((t * n.B + rows.first + r) * n.D + g * J) + part * J + k];
    });
  T out[1][2];
  product.finish(out);
  const int64_t j = tile * kTileColumns + threadIdx.x % 32;
  write_d_act(rows, t, n.B, blockIdx.x, n.G * tiles, g * J + j, j < J, out, hidden_of(a), a.d_act_hidden,
              a.hidden_dots);
}

// Tiles of the embeddings of deter, of stoch, and of the block's own deter.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) hidden_backward(Backward<T, O> a, int64_t t) {
  __shared__ typename TileProduct<O>::Shared shared;
  __shared__ T mean_dot[kTileRows];
  const RssmSizes& n = a.p.n;
  const Rows rows(n.B);
  const int64_t J = n.J(), embed_tiles = a.embeds[0].tiles();
  row_means(rows, a.hidden_dots, n.G * a.gates[0].tiles(), n.D, mean_dot);
  const Layer<T> hidden = hidden_of(a);
  const auto d_hidden = [&](int r, int64_t d) {
    const int64_t row = t * n.B + rows.first + r;
    return hidden.at(row, d).d_pre(hidden.inverse[row], mean_dot[r]);
  };
  TileProduct<O> product(shared, rows.count);
  T out[1][2];
  if (blockIdx.x < 2 * embed_tiles) {
    const int part = blockIdx.x >= embed_tiles;
    const int64_t tile = blockIdx.x - part * embed_tiles;
    product.template add<8>({a.embeds[part].tile(0, tile)}, n.D, d_hidden, [&](int r, int64_t d, T value) {
      if (blockIdx.x == 0) static_cast<T*>(a.p.gru.d_hidden)[(t * n.B + rows.first + r) * n.D + d] = value;
    });
    product.finish(out);
    const int64_t u = tile * kTileColumns + threadIdx.x % 32;
    write_d_act(rows, t, n.B, tile, embed_tiles, u, u < n.U, out, embed_layer(a, part), a.d_act[part], a.dots[part]);
    return;
  }
  const int64_t at = blockIdx.x - 2 * embed_tiles, g = at / a.own.tiles(), tile = at % a.own.tiles();
  product.add({a.own.tile(g, tile)}, J, [&](int r, int64_t k) { return d_hidden(r, g * J + k); });
  product.finish(out);
  const int64_t j = tile * kTileColumns + threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = threadIdx.x / 32 + kWarps * half;
    if (rows.has(r) && j < J) a.d_deter[(rows.first + r) * n.D + g * J + j] += out[0][half];
  }
}

// The embeddings' gradients before their norms, and the way back through the one-hot sample of the step before.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) embeds_backward(Backward<T, O> a, int64_t t) {
  __shared__ typename TileProduct<O>::Shared shared;
  __shared__ T mean_dot[2][kTileRows];
  const RssmSizes& n = a.p.n;
  const Rows rows(n.B);
  const Layer<T> layers[2] = {embed_layer(a, 0), embed_layer(a, 1)};
  for (int part = 0; part < 2; ++part) row_means(rows, a.dots[part], a.embeds[0].tiles(), n.U, mean_dot[part]);
  const auto row_of = [&](int r) { return t * n.B + rows.first + r; };
  const auto d_embed = [&](int part, int r, int64_t u) {
    const int64_t row = row_of(r);
    return layers[part].at(row, u).d_pre(layers[part].inverse[row], mean_dot[part][r]);
  };
  for (int64_t u = int64_t{blockIdx.x} * 32 + threadIdx.x % 32; u < n.U; u += int64_t{gridDim.x} * 32)
    for (int r = threadIdx.x / 32; r < kTileRows; r += kWarps)
      if (rows.has(r)) a.d_embeds[row_of(r) * 2 * n.U + u] = d_embed(0, r, u);
  TileProduct<O> product(shared, rows.count);
  product.add({a.stoch.tile(0, blockIdx.x)}, n.U, [&](int r, int64_t k) { return d_embed(1, r, k); },
              [&](int r, int64_t k, T d) {
                if (blockIdx.x == 0) a.d_embeds[row_of(r) * 2 * n.U + n.U + k] = d;
              });
  T out[1][2];
  product.finish(out);
  const int64_t z = int64_t{blockIdx.x} * kTileColumns + threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = threadIdx.x / 32 + kWarps * half;
    if (rows.has(r) && z < n.Z())
      a.d_z[(rows.first + r) * n.Z() + z] = a.first(t, rows.first + r) ? T{0} : out[0][half];
  }
}

// Where each weight's gradient lies: the order of RssmObserveBackward.
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
__global__ void __launch_bounds__(kThreads) weight_grads(Backward<T, O> a, Grads<T> to) {
  __shared__ typename GradProduct<T, O>::Shared shared;
  const RssmSizes& n = a.p.n;
  const int64_t R = n.T * n.B, U = n.U, D = n.D, Z = n.Z(), J = n.J();
  const T *d_hidden = a.read(a.p.gru.d_hidden), *d_gates = a.d_gates;
  Square at(blockIdx.x);
  const auto product = [&](int64_t M, int64_t N, T* out, auto rows_a, auto rows_b) {
    GradProduct<T, O>::run(shared, at, R, M, N, out, rows_a, rows_b);
  };
  if (at.of(U, D))
    return product(U, D, to.w_deter, [&](int64_t r, int64_t m) { return a.d_embeds[r * 2 * U + m]; },
                   [&](int64_t r, int64_t k) { return a.past_deter(r, k); });
  if (at.of(U, Z))
    return product(U, Z, to.w_stoch, [&](int64_t r, int64_t m) { return a.d_embeds[r * 2 * U + U + m]; },
                   [&](int64_t r, int64_t k) { return a.past_stoch(r, k); });
  if (at.of(J, J, n.G))
    return product(J, J, to.w_own + at.g * J * J, [&](int64_t r, int64_t m) { return a.past_deter(r, at.g * J + m); },
                   [&](int64_t r, int64_t k) { return d_hidden[r * D + at.g * J + k]; });
  if (at.of(2 * U, J, n.G))
    return product(2 * U, J, to.w_embeds + at.g * 2 * U * J,
                   [&](int64_t r, int64_t m) { return embed_layer(a, m >= U).act(r, m >= U ? m - U : m); },
                   [&](int64_t r, int64_t k) { return d_hidden[r * D + at.g * J + k]; });
  if (at.of(J, 3 * J, n.G))
    return product(J, 3 * J, to.w_gates + at.g * 3 * J * J,
                   [&](int64_t r, int64_t m) { return hidden_of(a).act(r, at.g * J + m); },
                   [&](int64_t r, int64_t k) { return d_gates[(r * D + at.g * J) * 3 + k]; });
  if (at.of(U, D))
    return product(U, D, to.w_post, [&](int64_t r, int64_t m) { return a.read(a.p.d_post)[r * U + m]; },
                   [&](int64_t r, int64_t k) { return a.read(a.p.gru.h)[r * D + k]; });
  if (at.of(Z, U))
    return product(Z, U, to.w_logits, [&](int64_t r, int64_t m) { return a.d_logits[r * Z + m]; },
                   [&](int64_t r, int64_t k) { return post_of(a).act(r, k); });
}

// blockIdx.y: which of the eight vectors.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) vector_grads(Backward<T, O> a, Grads<T> to) {
  const RssmSizes& n = a.p.n;
  const int64_t R = n.T * n.B, U = n.U;
  const auto plain = [&](const T* x, int64_t stride, int64_t N, T* out) {
    column_sums(R, N, out, [&](int64_t r, int64_t c) { return x[r * stride + c]; });
  };
  const auto norm = [&](const Layer<T>& layer, T* out) {
    column_sums(R, layer.width, out, [&](int64_t r, int64_t c) {
      const NormBack<T> back = layer.at(r, c);
      return back.d_y * back.normal;
    });
  };
  switch (blockIdx.y) {
    case 0: return plain(a.d_embeds, 2 * U, U, to.b_deter);
    case 1: return plain(a.d_embeds + U, 2 * U, U, to.b_stoch);
    case 2: return plain(a.d_gates, 3 * n.D, 3 * n.D, to.b_gates);
    case 3: return plain(a.d_logits, n.Z(), n.Z(), to.b_logits);
    case 4: return norm(embed_layer(a, 0), to.n_deter);
    case 5: return norm(embed_layer(a, 1), to.n_stoch);
    case 6: return norm(hidden_of(a), to.n_hidden);
    default: return norm(post_of(a), to.n_post);
  }
}

template <typename T, typename O>
Backward<T, O> arrange(const RssmObserveBackward& p, Scratch& scratch) {
  const RssmSizes& n = p.n;
  const int64_t J = n.J(), R = n.T * n.B;
  Backward<T, O> a{p,
                   {nullptr, 1, n.Z(), n.U},
                   {nullptr, 1, n.U, n.D},
                   {nullptr, 1, n.U, n.D},
                   {{nullptr, n.G, J, J}, {nullptr, n.G, J, J}, {nullptr, n.G, J, J}},
                   {nullptr, n.G, J, J},
                   {{nullptr, 1, n.D, n.U}, {nullptr, 1, n.D, n.U}},
                   {nullptr, 1, n.U, n.Z()}};
  for (PackedWeight<O>* w : {&a.logits, &a.post, &a.deter, &a.gates[0], &a.gates[1], &a.gates[2], &a.own,
                             &a.embeds[0], &a.embeds[1], &a.stoch})
    w->data = scratch.take<O>(w->size());
  for (T*& inverse : a.inverse) inverse = scratch.take<T>(R);
  for (T*& d_act : a.d_act) d_act = scratch.take<T>(R * n.U);
  a.d_act_hidden = scratch.take<T>(R * n.D), a.d_act_post = scratch.take<T>(R * n.U);
  a.d_embeds = scratch.take<T>(R * 2 * n.U), a.d_gates = scratch.take<T>(R * 3 * n.D);
  a.d_logits = scratch.take<T>(R * n.Z());
  a.d_deter = scratch.take<T>(n.B * n.D), a.d_z = scratch.take<T>(n.B * n.Z());
  for (T*& dots : a.dots) dots = scratch.take<T>(n.B * a.embeds[0].tiles());
  a.hidden_dots = scratch.take<T>(n.B * n.G * a.gates[0].tiles());
  a.post_dots = scratch.take<T>(n.B * a.logits.tiles());
  return a;
}

template <typename T, typename O>
int64_t scratch_bytes(const RssmObserveBackward& p) {
  Scratch scratch{nullptr};
  arrange<T, O>(p, scratch);
  return scratch.used;
}

// W with its rows from `first` on, as the source of a transposed product.
template <typename T>
Weight part_of(const Weight& w, int64_t first_k, int64_t first_n) {
  return {static_cast<const T*>(w.data) + first_k * w.sk + first_n * w.sn, w.sg, w.sn, w.sk};
}

template <typename T, typename O>
void observe_backward(const RssmObserveBackward& p, cudaStream_t on) {
  Scratch scratch{static_cast<unsigned char*>(p.scratch)};
  const Backward<T, O> a = arrange<T, O>(p, scratch);
  const RssmSizes& n = p.n;
  const int64_t J = n.J(), R = n.T * n.B;
  pack<T>(part_of<T>(p.w.logits, 0, 0), 0, a.logits, on);
  pack<T>(part_of<T>(p.w.post, 0, 0), 0, a.post, on);
  pack<T>(part_of<T>(p.gru.w.carry, 0, 0), 0, a.deter, on);
  for (int part = 0; part < 3; ++part) pack<T>(part_of<T>(p.gru.w.gates, 0, part * J), 0, a.gates[part], on);
  pack<T>(part_of<T>(p.gru.w.own, 0, 0), 0, a.own, on);
  for (int part = 0; part < 2; ++part) pack<T>(part_of<T>(p.gru.w.embeds, part * n.U, 0), J, a.embeds[part], on);
  pack<T>(part_of<T>(p.w.stoch, 0, 0), 0, a.stoch, on);

  const auto grid = [&](int64_t tiles) {
    return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>((n.B + kTileRows - 1) / kTileRows));
  };
  const unsigned samplers = sample_threads(n);
  if (R > 0) norms<T, O><<<static_cast<unsigned>((kNorms * R + kWarps - 1) / kWarps), kThreads, 0, on>>>(a);
  for (int64_t t = n.T - 1; n.B > 0 && t >= 0; --t) {
    sample_backward<T, O><<<static_cast<unsigned>(n.B), samplers, samplers / 32 * n.C * sizeof(T), on>>>(a, t);
    logits_backward<T, O><<<grid(a.logits.tiles()), kThreads, 0, on>>>(a, t);
    deter_backward<T, O><<<grid(a.post.tiles()), kThreads, 0, on>>>(a, t);
    gates_backward<T, O><<<grid(n.G * a.gates[0].tiles()), kThreads, 0, on>>>(a, t);
    hidden_backward<T, O><<<grid(2 * a.embeds[0].tiles() + n.G * a.own.tiles()), kThreads, 0, on>>>(a, t);
    embeds_backward<T, O><<<grid(a.stoch.tiles()), kThreads, 0, on>>>(a, t);
  }
  const Grads<T> to(n, static_cast<T*>(p.d_weights));
  const int64_t blocks = 2 * squares(n.U, n.D) + squares(n.U, n.Z()) + squares(J, J, n.G) +
                         squares(2 * n.U, J, n.G) + squares(J, 3 * J, n.G) + squares(n.Z(), n.U);
  weight_grads<T, O><<<static_cast<unsigned>(blocks), kThreads, 0, on>>>(a, to);
  const int64_t widest = 3 * n.D > n.Z() ? 3 * n.D : n.Z();
  const int64_t columns = widest > n.U ? widest : n.U;
  vector_grads<T, O><<<dim3(static_cast<unsigned>((columns + 31) / 32), 8), kThreads, 0, on>>>(a, to);
}

}  // namespace

int64_t rssm_observe_backward_scratch(const RssmObserveBackward& p) {
  if (p.gru.dtype == Dtype::f64) return scratch_bytes<double, double>(p);
  return p.gru.bf16 ? scratch_bytes<float, bf16>(p) : scratch_bytes<float, float>(p);
}

const char* rssm_observe_backward_kernel(const RssmObserveBackward& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (p.gru.dtype == Dtype::f64) observe_backward<double, double>(p, on);
  else if (p.gru.bf16) observe_backward<float, bf16>(p, on);
  else observe_backward<float, float>(p, on);
  return launch_error();
}

}  // namespace fastwm::cuda
