// One launch for the whole sequence, five stages a step, between which its blocks wait for each other:
//   hidden <- own deter, silu(norm(embeds));  gates <- silu(norm(hidden)), and the new deter;
//   posterior layer and the next step's embedding <- deter;  logits <- silu(norm(posterior layer));
//   sample, and the next step's embedding of it as a gather of S rows.
// A row's norm needs all of its columns: every tile leaves its squares' sum, the reader adds them up. Whatever waits
// for no other block is read before the wait.
#include "rssm_rows.cuh"

namespace fastwm::cuda {
namespace {

constexpr int kGatherColumns = 64, kGatherGroups = kThreads / kGatherColumns;  // threads of one column

// T: what is stored and normed; O: what products multiply.
template <typename T, typename O>
struct Observe {
  RssmObserve p;
  PackedWeight<O> deter, stoch, own, embeds, gates[3], post, logits;
  PackedWeight<T> gather;                      // stoch, as its rows are added up
  T *embeds_raw, *hidden_raw, *post_raw;       // the layers before their norms
  int64_t kept;                                // 1 where every step has its own, 0 where they share one
  T *embed_sums[2], *hidden_sums, *post_sums;  // [B, tiles]: sums of squares
  unsigned* arrived;

  __device__ const T* deter_before(int64_t t) const {
    return static_cast<const T*>(t > 0 ? p.gru.h : p.gru.h0) + (t > 0 ? (t - 1) * p.n.B * p.n.D : 0);
  }
  __device__ bool first(int64_t t, int64_t row) const { return p.gru.is_first[t * p.n.B + row]; }
  __device__ T* embeds_at(int64_t t) const { return embeds_raw + kept * t * p.n.B * 2 * p.n.U; }
  __device__ T* hidden_at(int64_t t) const { return hidden_raw + kept * t * p.n.B * p.n.D; }
  __device__ T* post_at(int64_t t) const { return post_raw + kept * t * p.n.B * p.n.U; }
  __device__ const T* read(const void* array) const { return static_cast<const T*>(array); }
};

// The stages of a step, for 16 rows.
template <typename T, typename O>
class Steps {
  using Product = TileProduct<O>;
  using Gates = TileProduct<O, 3>;
  using Row = typename Product::Row;
  struct Scaled {
    Row x, scale;
  };

 public:
  union Shared {
    typename Product::Shared product;
    typename Gates::Shared gates;
    struct {
      int index[kCategoricals];
      T sums[kGatherGroups][kGatherColumns];
    } sample;
  };

  __device__ Steps(const Observe<T, O>& a, Barrier& barrier, Shared& shared, T (*inverse)[kTileRows], int64_t row_tile)
      : a_(a), n_(a.p.n), barrier_(barrier), shared_(shared), inverse_(inverse), rows_(row_tile, n_.B) {}

  // The embedding of the sample before the first step, which is data and need not be one-hot.
  __device__ void embed_start() {
    const T *z = a_.read(a_.p.stoch0), *bias = a_.read(a_.p.w.b_stoch);
    share_out(barrier_, a_.stoch.tiles(), [&](int tile, bool first) {
      Product product(shared_.product);
      const O* const w[1] = {a_.stoch.tile(0, tile)};
      auto weights = Product::template fetch<2>(w, n_.Z());
      if (first) barrier_.wait();
      product.add(w, n_.Z(), weights,
                  [&](int half, int64_t k) { return read_piece<Row>(z + row(half) * n_.Z() + k); },
                  [&](int half, int64_t, const Row& x) { return a_.first(0, row(half)) ? Row{} : x; }, [] {});
      T out[1];
      product.finish(out);
      const int64_t u = tile * kTileColumns + Product::sum_column();
      write(tile, a_.stoch.tiles(), u, n_.U, a_.embeds_at(0) + n_.U, 2 * n_.U, a_.embed_sums[1],
            u < n_.U ? out[0] + bias[u] : T{0});
    });
  }

  __device__ void hidden(int64_t t) {
    const int64_t J = n_.J(), U = n_.U;
    const int tiles = static_cast<int>(a_.own.tiles());
    const T *h = a_.deter_before(t), *raw = a_.embeds_at(t), *in = a_.read(a_.p.gru.hidden_in) + t * n_.B * n_.D;
    const T *scale_deter = a_.read(a_.p.gru.w.n_carry), *scale_stoch = a_.read(a_.p.w.n_stoch);
    share_out(barrier_, n_.G * tiles, [&](int at, bool first) {
      const int g = at / tiles, tile = at % tiles;
      const int64_t j = tile * kTileColumns + Product::sum_column();
      Product product(shared_.product);
      const O *const own[1] = {a_.own.tile(g, tile)}, *const embeds[1] = {a_.embeds.tile(g, tile)};
      auto own_weights = Product::template fetch<2>(own, J);
      auto embed_weights = Product::template fetch<4>(embeds, 2 * U);
      const T input = j < J ? in[sum_row() * n_.D + g * J + j] : T{0};
      const bool reset[2] = {a_.first(t, row(0)), a_.first(t, row(1))};
      // The deter before has been there since the stage before last.
      product.add(own, J, own_weights,
                  [&](int half, int64_t k) { return read_piece<Row>(h + row(half) * n_.D + g * J + k); },
                  [&](int half, int64_t, const Row& x) { return reset[half] ? Row{} : x; }, [] {});
      if (first) barrier_.wait();
      product.add(embeds, 2 * U, embed_weights,
                  [&](int half, int64_t k) {
                    const T* scale = k < U ? scale_deter + k : scale_stoch + k - U;
                    return Scaled{read_piece<Row>(raw + row(half) * 2 * U + k), read_piece<Row>(scale)};
                  },
                  [&](int half, int64_t k, const Scaled& s) { return act(inverse_[k < U ? 0 : 1], half, s); },
                  [&] {
                    if (!first) return;
                    norm(a_.embed_sums[0], tiles_of(U), U, inverse_[0]);
                    norm(a_.embed_sums[1], tiles_of(U), U, inverse_[1]);
                    __syncthreads();
                  });
      T out[1];
      product.finish(out);
      write(at, n_.G * tiles, j, J, a_.hidden_at(t) + g * J, n_.D, a_.hidden_sums, j < J ? out[0] + input : T{0});
    });
  }

  __device__ void gates(int64_t t) {
    const int64_t J = n_.J(), D = n_.D;
    const int tiles = static_cast<int>(a_.gates[0].tiles());
    const T *raw = a_.hidden_at(t), *scale = a_.read(a_.p.gru.w.n_hidden), *h = a_.deter_before(t);
    share_out(barrier_, n_.G * tiles, [&](int at, bool first) {
      const int g = at / tiles, tile = at % tiles;
      const int64_t j = tile * kTileColumns + Gates::sum_column();
      Gates product(shared_.gates);
      const O* const w[3] = {a_.gates[0].tile(g, tile), a_.gates[1].tile(g, tile), a_.gates[2].tile(g, tile)};
      auto weights = Gates::template fetch<2>(w, J);
      const bool mine = j < J && rows_.has(Gates::sum_row());
      const int64_t element = sum_row() * D + g * J + (j < J ? j : 0);
      const T* bias = a_.read(a_.p.gru.w.b_gates) + 3 * g * J + (j < J ? j : 0);
      const T biases[3] = {bias[0], bias[J], bias[2 * J] - 1};
      const T before = a_.first(t, sum_row()) ? T{0} : h[element];
      if (first) barrier_.wait();
      product.add(w, J, weights,
                  [&](int half, int64_t k) {
                    return Scaled{read_piece<Row>(raw + row(half) * D + g * J + k), read_piece<Row>(scale + g * J + k)};
                  },
                  [&](int half, int64_t, const Scaled& s) { return act(inverse_[0], half, s); },
                  [&] {
                    if (!first) return;
                    norm(a_.hidden_sums, n_.G * tiles, D, inverse_[0]);
                    __syncthreads();
                  });
      T out[3];
      product.finish(out);
      if (!mine) return;
      const T reset = vsigmoid(out[0] + biases[0]), cand = out[1] + biases[1], update = vsigmoid(out[2] + biases[2]);
      static_cast<T*>(a_.p.gru.h)[t * n_.B * D + element] = update * vtanh(reset * cand) + (1 - update) * before;
      if (!a_.kept) return;
      T* saved = static_cast<T*>(a_.p.gru.saved.gates) + 3 * (t * n_.B * D + sum_row() * D + g * J) + j;
      saved[0] = reset, saved[J] = cand, saved[2 * J] = update;
    });
  }

  // Tiles of the posterior layer of step t (none where t < 0), then of the embedding of deter that step t + 1 reads.
  __device__ void posterior_and_embed(int64_t t) {
    const int64_t posts = t < 0 ? 0 : a_.post.tiles(), embeds = t + 1 < n_.T ? a_.deter.tiles() : 0, U = n_.U;
    const T* h = a_.deter_before(t + 1);
    share_out(barrier_, posts + embeds, [&](int at, bool first) {
      const bool posterior = at < posts;
      const int64_t tile = posterior ? at : at - posts, u = tile * kTileColumns + Product::sum_column();
      Product product(shared_.product);
      const O* const w[1] = {(posterior ? a_.post : a_.deter).tile(0, tile)};
      auto weights = Product::template fetch<8>(w, n_.D);
      T added = 0;
      if (u < U)
        added = posterior ? a_.read(a_.p.post_in)[(t * n_.B + sum_row()) * U + u] : a_.read(a_.p.gru.w.b_carry)[u];
      const bool reset = !posterior && a_.first(t + 1, sum_row());
      if (first) barrier_.wait();
      product.add(w, n_.D, weights,
                  [&](int half, int64_t k) { return read_piece<Row>(h + row(half) * n_.D + k); },
                  [](int, int64_t, const Row& x) { return x; }, [] {});
      T out[1];
      product.finish(out);
      const T value = u < U ? (reset ? T{0} : out[0]) + added : T{0};
      if (posterior) write(tile, posts, u, U, a_.post_at(t), U, a_.post_sums, value);
      else write(tile, embeds, u, U, a_.embeds_at(t + 1), 2 * U, a_.embed_sums[0], value);
    });
  }

  __device__ void logits(int64_t t) {
    const int64_t U = n_.U, Z = n_.Z();
    const T *raw = a_.post_at(t), *scale = a_.read(a_.p.w.n_post);
    share_out(barrier_, a_.logits.tiles(), [&](int tile, bool first) {
      const int64_t z = tile * kTileColumns + Product::sum_column();
      Product product(shared_.product);
      const O* const w[1] = {a_.logits.tile(0, tile)};
      auto weights = Product::template fetch<2>(w, U);
      const T bias = z < Z ? a_.read(a_.p.w.b_logits)[z] : T{0};
      if (first) barrier_.wait();
      product.add(w, U, weights,
                  [&](int half, int64_t k) {
                    return Scaled{read_piece<Row>(raw + row(half) * U + k), read_piece<Row>(scale + k)};
                  },
                  [&](int half, int64_t, const Scaled& s) { return act(inverse_[0], half, s); },
                  [&] {
                    if (!first) return;
                    norm(a_.post_sums, a_.post.tiles(), U, inverse_[0]);
                    __syncthreads();
                  });
      T out[1];
      product.finish(out);
      if (z < Z && rows_.has(Product::sum_row()))
        static_cast<T*>(a_.p.logits)[(t * n_.B + sum_row()) * Z + z] = out[0] + bias;
    });
  }

  // A tile is a row and 64 columns of its next embedding: every one draws all samples of the row, the first writes them.
  __device__ void sample_and_embed(int64_t t) {
    const int chunks = t + 1 < n_.T ? static_cast<int>((n_.U + kGatherColumns - 1) / kGatherColumns) : 1;
    const int lane = threadIdx.x % kGatherColumns, group = threadIdx.x / kGatherColumns;
    share_out(barrier_, rows_.count * chunks, [&](int at, bool first) {
      const int64_t row = rows_.first + at / chunks, chunk = at % chunks, u = chunk * kGatherColumns + lane;
      const bool embed = t + 1 < n_.T && u < n_.U;
      const bool reset = embed && a_.first(t + 1, row);
      const T bias = embed ? a_.read(a_.p.w.b_stoch)[u] : T{0};
      const T* w = a_.gather.tile(0, u < n_.U ? u / kTileColumns : 0) + u % kTileColumns;
      if (first) barrier_.wait();
      T sum = 0;
      for (int64_t s = 0; s < n_.S; s += kCategoricals) {
        draw(t, row, s, chunk == 0);
        __syncthreads();
#pragma unroll
        for (int i = group; i < kCategoricals; i += kGatherGroups) {
          const bool there = s + i < n_.S;  // a factor, as a branch would keep the loads apart
          const int64_t categorical = there ? s + i : n_.S - 1;
          sum += w[(categorical * n_.C + shared_.sample.index[i]) * kTileColumns] * (there ? T{1} : T{0});
        }
        __syncthreads();
      }
      shared_.sample.sums[group][lane] = reset ? T{0} : sum;
      __syncthreads();
      if (group > 0 || t + 1 == n_.T) return;
      T total = bias;
#pragma unroll
      for (int i = 0; i < kGatherGroups; ++i) total += shared_.sample.sums[i][lane];
      if (embed) a_.embeds_at(t + 1)[row * 2 * n_.U + n_.U + u] = total;
      const T share = group_sum<kTileColumns>(embed ? total * total : T{0});
      const int64_t tiles = tiles_of(n_.U), tile = u / kTileColumns;
      if (lane % kTileColumns == 0 && tile < tiles) a_.embed_sums[1][row * tiles + tile] = share;
    });
  }

 private:
  __device__ int64_t row(int half) const { return rows_.at(Product::row(half)); }
  __device__ int64_t sum_row() const { return rows_.at(Product::sum_row()); }

  // silu(norm) of what this thread has read of a row.
  __device__ Row act(const T* inverse, int half, const Scaled& s) const {
    const T rms = inverse[Product::row(half)];
    return each<Row>([&](int i) { return vsilu(s.x.x[i] * rms * s.scale.x[i]); });
  }

  __device__ void norm(const T* sums, int64_t tiles, int64_t width, T* inverse) const {
    const T eps = static_cast<T>(a_.p.gru.eps);
    row_means(rows_, sums, static_cast<int>(tiles), width, inverse, [&](T mean) { return inverse_rms(mean, eps); });
  }

  // Writes this thread's element of a layer before its norm, and the tile's sums of squares.
  __device__ void write(int64_t tile, int64_t tiles, int64_t n, int64_t N, T* out, int64_t stride, T* sums,
                        T value) const {
    if (n < N && rows_.has(Product::sum_row())) out[sum_row() * stride + n] = value;
    leave_share(rows_, value * value, sums, tiles, tile);
  }

  // The samples of up to 32 categoricals from s on, into shared memory, and if they are to be written, out.
  __device__ void draw(int64_t t, int64_t row, int64_t from, bool write) const {
    const int lane = threadIdx.x % kClassLanes;
    const int64_t wanted = from + threadIdx.x / kClassLanes, s = wanted < n_.S ? wanted : n_.S - 1;
    const int64_t categorical = (t * n_.B + row) * n_.S + s;
    const T* logits = a_.read(a_.p.logits) + categorical * n_.C;
    const T draw = a_.read(a_.p.uniform)[categorical], unimix = static_cast<T>(a_.p.w.unimix);
    const Softmax<T> softmax(logits, n_.C);
    T cdf = 0;
    int index = 0;
    for (int64_t first = 0; first < n_.C; first += kClassLanes) {
      const int64_t c = first + lane;
      const T share = c < n_.C ? (1 - unimix) * softmax.of(logits[c]) + unimix / static_cast<T>(n_.C) : T{0};
#pragma unroll
      for (int i = 0; i < kClassLanes; ++i) {
        cdf += __shfl_sync(0xffffffffu, share, i, kClassLanes);
        index += first + i + 1 < n_.C && cdf <= draw ? 1 : 0;
      }
    }
    if (lane == 0) shared_.sample.index[threadIdx.x / kClassLanes] = index;
    if (!write || wanted >= n_.S) return;
    if (lane == 0) a_.p.index[categorical] = index;
    for (int64_t c = lane; c < n_.C; c += kClassLanes)
      static_cast<T*>(a_.p.stoch)[categorical * n_.C + c] = c == index ? 1 : 0;
  }

  const Observe<T, O>& a_;
  const RssmSizes& n_;
  Barrier& barrier_;
  Shared& shared_;
  T (*inverse_)[kTileRows];  // [2]
  const Rows rows_;
};

template <typename T, typename O>
__global__ void __launch_bounds__(kThreads, 1) observe_sequence(Observe<T, O> a, Formation formation) {
  __shared__ typename Steps<T, O>::Shared shared;
  __shared__ T inverse[2][kTileRows];
  Barrier barrier(formation);
  for (int64_t tile = blockIdx.y; tile < row_tiles(a.p.n.B); tile += gridDim.y) {
    Steps<T, O> steps(a, barrier, shared, inverse, tile);
    steps.embed_start();
    steps.posterior_and_embed(-1);
    for (int64_t t = 0; t < a.p.n.T; ++t) {
      steps.hidden(t);
      steps.gates(t);
      steps.posterior_and_embed(t);
      steps.logits(t);
      steps.sample_and_embed(t);
    }
  }
  barrier.wait();  // a cluster's blocks end together
}

template <typename T, typename O>
Observe<T, O> arrange(const RssmObserve& p, Scratch& scratch) {
  const RssmSizes& n = p.n;
  const int64_t J = n.J(), tiles = tiles_of(n.U);
  Observe<T, O> a{p,
                  {nullptr, 1, n.D, n.U},
                  {nullptr, 1, n.Z(), n.U},
                  {nullptr, n.G, J, J},
                  {nullptr, n.G, 2 * n.U, J},
                  {{nullptr, n.G, J, J}, {nullptr, n.G, J, J}, {nullptr, n.G, J, J}},
                  {nullptr, 1, n.D, n.U},
                  {nullptr, 1, n.U, n.Z()},
                  {nullptr, 1, n.Z(), n.U}};
  for (PackedWeight<O>* w : {&a.deter, &a.stoch, &a.own, &a.embeds, &a.gates[0], &a.gates[1], &a.gates[2], &a.post,
                             &a.logits})
    scratch.take(*w);
  scratch.take(a.gather);
  a.kept = p.gru.saved.embeds ? 1 : 0;
  a.embeds_raw = a.kept ? static_cast<T*>(p.gru.saved.embeds) : scratch.take<T>(n.B * 2 * n.U);
  a.hidden_raw = a.kept ? static_cast<T*>(p.gru.saved.hidden) : scratch.take<T>(n.B * n.D);
  a.post_raw = a.kept ? static_cast<T*>(p.post) : scratch.take<T>(n.B * n.U);
  for (T** sums : {&a.embed_sums[0], &a.embed_sums[1], &a.post_sums}) *sums = scratch.take<T>(n.B * tiles);
  a.hidden_sums = scratch.take<T>(n.B * n.G * a.own.tiles());
  a.arrived = scratch.take<unsigned>(row_tiles(n.B));
  return a;
}

template <typename T, typename O>
int64_t scratch_bytes(const RssmObserve& p) {
  Scratch scratch{nullptr};
  arrange<T, O>(p, scratch);
  return scratch.used;
}

template <typename T, typename O>
const char* observe(const RssmObserve& p, cudaStream_t on) {
  Scratch scratch{static_cast<unsigned char*>(p.scratch)};
  const Observe<T, O> a = arrange<T, O>(p, scratch);
  const RssmSizes& n = p.n;
  Packings<O> packings;
  packings.add(p.gru.w.carry, 0, a.deter);
  packings.add(p.w.stoch, 0, a.stoch);
  packings.add(p.gru.w.own, 0, a.own);
  packings.add(p.gru.w.embeds, 0, a.embeds);
  for (int part = 0; part < 3; ++part) {
    Weight gate = p.gru.w.gates;
    gate.data = static_cast<const T*>(gate.data) + part * n.J() * gate.sn;
    packings.add(gate, 0, a.gates[part]);
  }
  packings.add(p.w.post, 0, a.post);
  packings.add(p.w.logits, 0, a.logits);
  Packings<T> gathered;
  gathered.add(p.w.stoch, 0, a.gather);
  pack<T>(packings, on);
  pack<T>(gathered, on);
  return launch_together(observe_sequence<T, O>, a, n.G * a.own.tiles(), row_tiles(n.B), a.arrived, on);
}

// Tensor cores take pieces of rows.
bool by_tensor_cores(const RssmObserve& p) {
  return p.gru.bf16 && fits_pieces(p.n.J()) && fits_pieces(p.n.U) && fits_pieces(p.n.Z());
}

}  // namespace

int64_t rssm_observe_scratch(const RssmObserve& p) {
  if (p.gru.dtype == Dtype::f64) return scratch_bytes<double, double>(p);
  return by_tensor_cores(p) ? scratch_bytes<float, bf16>(p) : scratch_bytes<float, float>(p);
}

const char* rssm_observe_kernel(const RssmObserve& p, void* stream) {
  if (p.n.B == 0) return nullptr;
  const auto on = static_cast<cudaStream_t>(stream);
  if (p.gru.dtype == Dtype::f64) return observe<double, double>(p, on);
  return by_tensor_cores(p) ? observe<float, bf16>(p, on) : observe<float, float>(p, on);
}

}  // namespace fastwm::cuda
