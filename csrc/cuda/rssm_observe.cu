// Five launches a step, each a product over 16 rows by 32 columns a block with what precedes and follows it fused:
//   hidden <- own deter, silu(norm(embeds));  gates <- silu(norm(hidden)), and the new deter;
//   posterior layer and the next step's embedding <- deter;  logits <- silu(norm(posterior layer));
//   sample, and the next step's embedding of it as a gather of S rows.
// A row's norm needs all of its columns: every tile leaves its squares' sum, the reader adds them up.
#include "rssm_rows.cuh"

namespace fastwm::cuda {
namespace {

// T: what is stored and normed; O: what products multiply.
template <typename T, typename O>
struct Observe {
  RssmObserve p;
  PackedWeight<O> deter, stoch, own, embeds, gates[3], post, logits;
  T *embeds_raw, *hidden_raw, *post_raw;              // the layers before their norms
  int64_t kept;                                       // 1 where every step has its own, 0 where they share one
  T *embed_sums[2], *hidden_sums, *post_sums;         // [B, tiles]: sums of squares

  __device__ const T* deter_before(int64_t t) const {
    return static_cast<const T*>(t > 0 ? p.gru.h : p.gru.h0) + (t > 0 ? (t - 1) * p.n.B * p.n.D : 0);
  }
  __device__ bool first(int64_t t, int64_t row) const { return p.gru.is_first[t * p.n.B + row]; }
  __device__ T* embeds_at(int64_t t) const { return embeds_raw + kept * t * p.n.B * 2 * p.n.U; }
  __device__ T* hidden_at(int64_t t) const { return hidden_raw + kept * t * p.n.B * p.n.D; }
  __device__ T* post_at(int64_t t) const { return post_raw + kept * t * p.n.B * p.n.U; }
  __device__ const T* scale(const void* norm) const { return static_cast<const T*>(norm); }
};

// Writes a tile of a layer before its norm and its rows' sums of squares.
template <typename T, typename Value>
__device__ void write_tile(const Rows& rows, int64_t tile, int64_t tiles, int64_t n, int64_t N, T* out, int64_t stride,
                           T* sums, Value value) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = warp + kWarps * half;
    const bool inside = rows.has(r) && n + lane < N;
    const T x = inside ? value(rows.first + r, n + lane, half) : T{0};
    if (inside) out[(rows.first + r) * stride + n + lane] = x;
    const T sum = group_sum<32>(x * x);
    if (lane == 0 && rows.has(r)) sums[(rows.first + r) * tiles + tile] = sum;
  }
}

// The embedding of the sample before the first step, which is data and need not be one-hot.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) embed_start(Observe<T, O> a) {
  __shared__ typename TileProduct<O>::Shared shared;
  const Rows rows(a.p.n.B);
  const int64_t tile = blockIdx.x, U = a.p.n.U, Z = a.p.n.Z();
  TileProduct<O> product(shared, rows.count);
  const T* z = static_cast<const T*>(a.p.stoch0);
  product.add({a.stoch.tile(0, tile)}, Z, [&](int r, int64_t k) {
    const T value = z[(rows.first + r) * Z + k];
    return a.first(0, rows.first + r) ? T{0} : value;
  });
  T out[1][2];
  product.finish(out);
  const T* bias = static_cast<const T*>(a.p.w.b_stoch);
  write_tile(rows, tile, a.stoch.tiles(), tile * kTileColumns, U, a.embeds_at(0) + U, 2 * U, a.embed_sums[1],
             [&](int64_t, int64_t n, int half) { return out[0][half] + bias[n]; });
}

// Tiles of the posterior layer of step t (none where t < 0), then of the embedding of deter that step t + 1 reads.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) posterior_and_embed(Observe<T, O> a, int64_t t) {
  __shared__ typename TileProduct<O>::Shared shared;
  const RssmSizes& n = a.p.n;
  const Rows rows(n.B);
  const bool posterior = t >= 0 && blockIdx.x < a.post.tiles();
  const int64_t tile = posterior || t < 0 ? blockIdx.x : blockIdx.x - a.post.tiles();
  const T* h = a.deter_before(t + 1);
  TileProduct<O> product(shared, rows.count);
  product.template add<8>({(posterior ? a.post : a.deter).tile(0, tile)}, n.D,
                          [&](int r, int64_t k) { return h[(rows.first + r) * n.D + k]; });
  T out[1][2];
  product.finish(out);
  if (posterior) {
    const T* in = static_cast<const T*>(a.p.post_in) + t * n.B * n.U;
    write_tile(rows, tile, a.post.tiles(), tile * kTileColumns, n.U, a.post_at(t), n.U, a.post_sums,
               [&](int64_t row, int64_t u, int half) { return out[0][half] + in[row * n.U + u]; });
  } else if (t + 1 < n.T) {
    const T* bias = static_cast<const T*>(a.p.gru.w.b_carry);
    write_tile(rows, tile, a.deter.tiles(), tile * kTileColumns, n.U, a.embeds_at(t + 1), 2 * n.U, a.embed_sums[0],
               [&](int64_t row, int64_t u, int half) { return (a.first(t + 1, row) ? 0 : out[0][half]) + bias[u]; });
  }
}

template <typename T, typename O>
__global__ void __launch_bounds__(kThreads, 1) hidden_layer(Observe<T, O> a, int64_t t) {
  __shared__ typename TileProduct<O>::Shared shared;
  __shared__ T inverse[2][kTileRows];
  const RssmSizes& n = a.p.n;
  const Rows rows(n.B);
  const int64_t tiles = a.own.tiles(), g = blockIdx.x / tiles, tile = blockIdx.x % tiles, J = n.J();
  const T eps = static_cast<T>(a.p.gru.eps);
  inverse_rms(rows, a.embed_sums[0], a.deter.tiles(), n.U, eps, inverse[0]);
  inverse_rms(rows, a.embed_sums[1], a.stoch.tiles(), n.U, eps, inverse[1]);
  TileProduct<O> product(shared, rows.count);
  const T *h = a.deter_before(t), *raw = a.embeds_at(t);
  product.add({a.own.tile(g, tile)}, J, [&](int r, int64_t k) {
    const T value = h[(rows.first + r) * n.D + g * J + k];
    return a.first(t, rows.first + r) ? T{0} : value;
  });
  const T *scale_deter = a.scale(a.p.gru.w.n_carry), *scale_stoch = a.scale(a.p.w.n_stoch);
  product.add({a.embeds.tile(g, tile)}, 2 * n.U, [&](int r, int64_t k) {
    const int part = k < n.U ? 0 : 1;
    const T scale = part ? scale_stoch[k - n.U] : scale_deter[k];
    return vsilu(raw[(rows.first + r) * 2 * n.U + k] * inverse[part][r] * scale);
  });
  T out[1][2];
  product.finish(out);
  const T* in = static_cast<const T*>(a.p.gru.hidden_in) + t * n.B * n.D;
  write_tile(rows, blockIdx.x, n.G * tiles, tile * kTileColumns, J, a.hidden_at(t) + g * J, n.D, a.hidden_sums,
             [&](int64_t row, int64_t j, int half) { return out[0][half] + in[row * n.D + g * J + j]; });
}

template <typename T, typename O>
__global__ void __launch_bounds__(kThreads, 1) gates_and_deter(Observe<T, O> a, int64_t t) {
  __shared__ typename TileProduct<O, 3>::Shared shared;
  __shared__ T inverse[kTileRows];
  const RssmSizes& n = a.p.n;
  const Rows rows(n.B);
  const int64_t tiles = a.gates[0].tiles(), g = blockIdx.x / tiles, tile = blockIdx.x % tiles, J = n.J();
  inverse_rms(rows, a.hidden_sums, n.G * tiles, n.D, static_cast<T>(a.p.gru.eps), inverse);
  const T *raw = a.hidden_at(t), *scale = a.scale(a.p.gru.w.n_hidden);
  TileProduct<O, 3> product(shared, rows.count);
  product.add({a.gates[0].tile(g, tile), a.gates[1].tile(g, tile), a.gates[2].tile(g, tile)}, J,
              [&](int r, int64_t k) {
                const int64_t d = g * J + k;
                return vsilu(raw[(rows.first + r) * n.D + d] * inverse[r] * scale[d]);
              });
  T out[3][2];
  product.finish(out);
  const int64_t j = tile * kTileColumns + threadIdx.x % 32;
  if (j >= J) return;
  const T *bias = static_cast<const T*>(a.p.gru.w.b_gates) + 3 * g * J + j, *h = a.deter_before(t);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = threadIdx.x / 32 + kWarps * half;
    if (!rows.has(r)) continue;
    const int64_t row = rows.first + r, at = row * n.D + g * J + j;
    const T reset = vsigmoid(out[0][half] + bias[0]), cand = out[1][half] + bias[J];
    const T update = vsigmoid(out[2][half] + bias[2 * J] - 1), before = a.first(t, row) ? 0 : h[at];
    static_cast<T*>(a.p.gru.h)[t * n.B * n.D + at] = update * vtanh(reset * cand) + (1 - update) * before;
    if (!a.kept) continue;
    T* saved = static_cast<T*>(a.p.gru.saved.gates) + 3 * (t * n.B * n.D + row * n.D + g * J) + j;
    saved[0] = reset, saved[J] = cand, saved[2 * J] = update;
  }
}

template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) posterior_logits(Observe<T, O> a, int64_t t) {
  __shared__ typename TileProduct<O>::Shared shared;
  __shared__ T inverse[kTileRows];
  const RssmSizes& n = a.p.n;
  const Rows rows(n.B);
  inverse_rms(rows, a.post_sums, a.post.tiles(), n.U, static_cast<T>(a.p.gru.eps), inverse);
  const T *raw = a.post_at(t), *scale = a.scale(a.p.w.n_post);
  TileProduct<O> product(shared, rows.count);
  product.add({a.logits.tile(0, blockIdx.x)}, n.U, [&](int r, int64_t k) {
    return vsilu(raw[(rows.first + r) * n.U + k] * inverse[r] * scale[k]);
  });
  T out[1][2];
  product.finish(out);
  const int64_t z = int64_t{blockIdx.x} * kTileColumns + threadIdx.x % 32;
  if (z >= n.Z()) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = threadIdx.x / 32 + kWarps * half;
    if (rows.has(r))
      static_cast<T*>(a.p.logits)[(t * n.B + rows.first + r) * n.Z() + z] =
          out[0][half] + static_cast<const T*>(a.p.w.b_logits)[z];
  }
}

// One block a row, a warp a categorical; then all threads add up the samples' S rows, in groups of as many threads as
// there are units. memory: S indices, C shares for each warp, a sum for each thread.
template <typename T, typename O>
__global__ void __launch_bounds__(kSampleThreads, 1) sample_and_embed(Observe<T, O> a, int64_t t) {
  extern __shared__ __align__(16) unsigned char memory[];
  const RssmSizes& n = a.p.n;
  const int64_t row = t * n.B + blockIdx.x;
  const int threads = blockDim.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int* chosen = reinterpret_cast<int*>(memory);
  T* shares = reinterpret_cast<T*>(memory + round_up(n.S * sizeof(int), 16));
  T *share = shares + warp * n.C, *sums = shares + threads / 32 * n.C;
  const T unimix = static_cast<T>(a.p.w.unimix);
  for (int64_t s = warp; s < n.S; s += threads / 32) {
    const int64_t at = row * n.Z() + s * n.C;
    const T draw = static_cast<const T*>(a.p.uniform)[row * n.S + s];
    softmax(static_cast<const T*>(a.p.logits) + at, n.C, [&](int64_t c, T probability) {
      share[c] = (1 - unimix) * probability + unimix / static_cast<T>(n.C);
    });
    __syncwarp();
    if (lane == 0) {
      T cdf = 0;
      int index = 0;
#pragma unroll 8
      for (int64_t c = 0; c + 1 < n.C; ++c) {
        cdf += share[c];
        index += cdf <= draw ? 1 : 0;
      }
      chosen[s] = index;
      a.p.index[row * n.S + s] = index;
    }
    __syncwarp();
    for (int64_t c = lane; c < n.C; c += 32) static_cast<T*>(a.p.stoch)[at + c] = c == chosen[s] ? 1 : 0;
  }
  if (t + 1 == n.T) return;
  __syncthreads();
  const Weight& w = a.p.w.stoch;
  const bool first = a.first(t + 1, blockIdx.x);
  T* out = a.embeds_at(t + 1) + int64_t{blockIdx.x} * 2 * n.U + n.U;
  const int64_t tiles = a.stoch.tiles();
  const int width = static_cast<int>(round_up(n.U, 32) < threads ? round_up(n.U, 32) : threads);
  const int groups = threads / width, group = threadIdx.x / width;
  for (int64_t u0 = 0; u0 < n.U; u0 += width) {
    const int64_t u = u0 + threadIdx.x % width;
    T sum = 0;
    if (group < groups && u < n.U && !first)
#pragma unroll 4
      for (int64_t s = group; s < n.S; s += groups)
        sum += static_cast<const T*>(w.data)[(s * n.C + chosen[s]) * w.sk + u * w.sn];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (group == 0) {
      for (int other = 1; other < groups; ++other) sum += sums[other * width + threadIdx.x];
      if (u < n.U) out[u] = sum += static_cast<const T*>(a.p.w.b_stoch)[u];
      const T square = group_sum<32>(u < n.U ? sum * sum : T{0});
      if (lane == 0 && u / kTileColumns < tiles) a.embed_sums[1][blockIdx.x * tiles + u / kTileColumns] = square;
    }
    __syncthreads();
  }
}

template <typename T, typename O>
Observe<T, O> arrange(const RssmObserve& p, Scratch& scratch) {
  const RssmSizes& n = p.n;
  const int64_t J = n.J();
  Observe<T, O> a{p,
                  {nullptr, 1, n.D, n.U},
                  {nullptr, 1, n.Z(), n.U},
                  {nullptr, n.G, J, J},
                  {nullptr, n.G, 2 * n.U, J},
                  {{nullptr, n.G, J, J}, {nullptr, n.G, J, J}, {nullptr, n.G, J, J}},
                  {nullptr, 1, n.D, n.U},
                  {nullptr, 1, n.U, n.Z()}};
  for (PackedWeight<O>* w : {&a.deter, &a.stoch, &a.own, &a.embeds, &a.gates[0], &a.gates[1], &a.gates[2], &a.post,
                             &a.logits})
    w->data = scratch.take<O>(w->size());
  a.kept = p.gru.saved.embeds ? 1 : 0;
  a.embeds_raw = a.kept ? static_cast<T*>(p.gru.saved.embeds) : scratch.take<T>(n.B * 2 * n.U);
  a.hidden_raw = a.kept ? static_cast<T*>(p.gru.saved.hidden) : scratch.take<T>(n.B * n.D);
  a.post_raw = a.kept ? static_cast<T*>(p.post) : scratch.take<T>(n.B * n.U);
  a.embed_sums[0] = scratch.take<T>(n.B * a.deter.tiles());
  a.embed_sums[1] = scratch.take<T>(n.B * a.stoch.tiles());
  a.hidden_sums = scratch.take<T>(n.B * n.G * a.own.tiles());
  a.post_sums = scratch.take<T>(n.B * a.post.tiles());
  return a;
}

template <typename T, typename O>
int64_t scratch_bytes(const RssmObserve& p) {
  Scratch scratch{nullptr};
  arrange<T, O>(p, scratch);
  return scratch.used;
}

template <typename T, typename O>
void observe(const RssmObserve& p, cudaStream_t on) {
  Scratch scratch{static_cast<unsigned char*>(p.scratch)};
  const Observe<T, O> a = arrange<T, O>(p, scratch);
  const RssmSizes& n = p.n;
  pack<T>(p.gru.w.carry, 0, a.deter, on);
  pack<T>(p.w.stoch, 0, a.stoch, on);
  pack<T>(p.gru.w.own, 0, a.own, on);
  pack<T>(p.gru.w.embeds, 0, a.embeds, on);
  for (int part = 0; part < 3; ++part) {
    Weight gate = p.gru.w.gates;
    gate.data = static_cast<const T*>(gate.data) + part * n.J() * gate.sn;
    pack<T>(gate, 0, a.gates[part], on);
  }
  pack<T>(p.w.post, 0, a.post, on);
  pack<T>(p.w.logits, 0, a.logits, on);

  const auto grid = [&](int64_t tiles) {
    return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>((n.B + kTileRows - 1) / kTileRows));
  };
  const unsigned samplers = sample_threads(n);
  const size_t memory = round_up(n.S * sizeof(int), 16) + (samplers / 32 * n.C + samplers) * sizeof(T);
  embed_start<T, O><<<grid(a.stoch.tiles()), kThreads, 0, on>>>(a);
  posterior_and_embed<T, O><<<grid(a.deter.tiles()), kThreads, 0, on>>>(a, -1);
  for (int64_t t = 0; t < n.T; ++t) {
    hidden_layer<T, O><<<grid(n.G * a.own.tiles()), kThreads, 0, on>>>(a, t);
    gates_and_deter<T, O><<<grid(n.G * a.own.tiles()), kThreads, 0, on>>>(a, t);
    posterior_and_embed<T, O><<<grid(a.post.tiles() + (t + 1 < n.T ? a.deter.tiles() : 0)), kThreads, 0, on>>>(a, t);
    posterior_logits<T, O><<<grid(a.logits.tiles()), kThreads, 0, on>>>(a, t);
    sample_and_embed<T, O><<<static_cast<unsigned>(n.B), samplers, memory, on>>>(a, t);
  }
}

}  // namespace

int64_t rssm_observe_scratch(const RssmObserve& p) {
  if (p.gru.dtype == Dtype::f64) return scratch_bytes<double, double>(p);
  return p.gru.bf16 ? scratch_bytes<float, bf16>(p) : scratch_bytes<float, float>(p);
}

const char* rssm_observe_kernel(const RssmObserve& p, void* stream) {
  if (p.n.B == 0) return nullptr;
  const auto on = static_cast<cudaStream_t>(stream);
  if (p.gru.dtype == Dtype::f64) observe<double, double>(p, on);
  else if (p.gru.bf16) observe<float, bf16>(p, on);
  else observe<float, float>(p, on);
  return launch_error();
}

}  // namespace fastwm::cuda
