// One launch for the whole sequence, five stages a step, between which its blocks wait for each other:
//   hidden <- own deter, silu(norm(embeds));  gates <- silu(norm(hidden)), and the new deter;
//   posterior layer and the next step's embedding <- deter;  logits <- silu(norm(posterior layer));
//   sample, and the next step's embedding of it as a gather of S rows.
// A row's norm needs all of its columns: every tile leaves its squares' sum, the reader adds them up. Whatever waits
// for no other block is read before the wait.
#include "fast_math.cuh"
#include "rssm_observe.cuh"
#include "rssm_observe_cluster.cuh"

namespace fastwm::cuda {
namespace {

constexpr int kGatherColumns = 64, kGatherGroups = kThreads / kGatherColumns;  // threads of one column

// The stages of a step, for 16 rows. kUnits: of the 128 rows of k that a block's warps multiply at once, how many make
// the units, or a block's share of deter; more come in turns.
template <typename T, typename O, int kUnits>
class Steps {
  static constexpr int kEmbedTurns = kUnits * kUnits, kDeterTurns = 4 * kUnits;
  using Product = TileProduct<O>;
  using Gates = TileProduct<O, 3>;
  using Row = typename Product::Row;
  using Act = Activation<Product::kMma>;
  struct Scaled {
    Row x, scale;
  };

 public:
  union Shared {
    typename Product::Shared product;
    typename Gates::Shared gates;
    struct {
      int index[kCategoricals];
      T ones[kCategoricals];
      T sums[kGatherGroups][kGatherColumns];
    } sample;
  };

  __device__ Steps(const Observe<T, O>& a, Barrier& barrier, Shared& shared, T (*inverse)[kTileRows], int64_t row_tile)
      : a_(a), barrier_(barrier), shared_(shared), inverse_(inverse), at_(row_tile, a.p.n.B),
        D_(static_cast<int>(a.p.n.D)), U_(static_cast<int>(a.p.n.U)), J_(static_cast<int>(a.p.n.J())),
        S_(static_cast<int>(a.p.n.S)), C_(static_cast<int>(a.p.n.C)), Z_(S_ * C_) {}

  // The embedding of the sample before the first step, which is data and need not be one-hot.
  __device__ void embed_start() {
    const T *z = a_.read(a_.p.stoch0), *bias = a_.read(a_.p.w.b_stoch);
    share_out(barrier_, static_cast<int>(a_.stoch.tiles()), [&](int tile, bool first) {
      Product product(shared_.product);
      const O* const w[1] = {a_.stoch.tile(0, tile)};
      auto weights = Product::template fetch<1>(w, Z_);
      if (first) barrier_.wait();
      product.add(
          w, Z_, weights, [&](int half, int k) { return read_piece<Row>(z + (at_.read[half] * Z_ + k)); },
          [&](int half, int, const Row& x) { return a_.first(0, at_.read[half]) ? Row{} : x; }, [] {});
      T out[1];
      product.finish(out);
      const int u = tile * kTileColumns + at_.column;
      const T value = u < U_ ? out[0] + bias[u] : T{0};
      write(tile, u, U_, a_.embeds_at(0) + U_, 2 * U_, a_.embed_sums[1], tiles_of(U_), value);
    });
  }

  __device__ void hidden(int64_t t) {
    const int tiles = tiles_of(J_);
    const T *h = a_.deter_before(t), *raw = a_.embeds_at(t), *in = a_.read(a_.p.gru.hidden_in) + t * a_.p.n.B * D_;
    const T *scale_deter = a_.read(a_.p.gru.w.n_carry), *scale_stoch = a_.read(a_.p.w.n_stoch);
    share_out(barrier_, static_cast<int>(a_.p.n.G) * tiles, [&](int at, bool first) {
      const int g = at / tiles, tile = at % tiles, j = tile * kTileColumns + at_.column;
      Product product(shared_.product);
      const O *const own[1] = {a_.own.tile(g, tile)}, *const embeds[1] = {a_.embeds.tile(g, tile)};
      auto own_weights = Product::template fetch<kUnits>(own, J_);
      auto embed_weights = Product::template fetch<kEmbedTurns>(embeds, 2 * U_);
      const T input = j < J_ ? in[at_.row * D_ + g * J_ + j] : T{0};
      const bool reset[2] = {a_.first(t, at_.read[0]), a_.first(t, at_.read[1])};
      // The deter before has been there since the stage before last.
      product.add(
          own, J_, own_weights,
          [&](int half, int k) { return read_piece<Row>(h + (at_.read[half] * D_ + g * J_ + k)); },
          [&](int half, int, const Row& x) { return reset[half] ? Row{} : x; }, [] {});
      if (first) barrier_.wait();
      product.add(
          embeds, 2 * U_, embed_weights,
          [&](int half, int k) {
            const T* scale = k < U_ ? scale_deter + k : scale_stoch + (k - U_);
            return Scaled{read_piece<Row>(raw + (at_.read[half] * 2 * U_ + k)), read_piece<Row>(scale)};
          },
          [&](int half, int k, const Scaled& s) { return act(inverse_[k < U_ ? 0 : 1], half, s); },
          [&] {
            if (!first) return;
            norm(a_.embed_sums[0], tiles_of(U_), U_, inverse_[0]);
            norm(a_.embed_sums[1], tiles_of(U_), U_, inverse_[1]);
            __syncthreads();
          });
      T out[1];
      product.finish(out);
      write(at, j, J_, a_.hidden_at(t) + g * J_, D_, a_.hidden_sums, static_cast<int>(a_.p.n.G) * tiles,
            j < J_ ? out[0] + input : T{0});
    });
  }

  __device__ void gates(int64_t t) {
    const int tiles = tiles_of(J_), all = static_cast<int>(a_.p.n.G) * tiles;
    const T *raw = a_.hidden_at(t), *scale = a_.read(a_.p.gru.w.n_hidden), *h = a_.deter_before(t);
    T* deter = static_cast<T*>(a_.p.gru.h) + t * a_.p.n.B * D_;
    share_out(barrier_, all, [&](int at, bool first) {
      const int g = at / tiles, tile = at % tiles, j = tile * kTileColumns + at_.column, inside = j < J_ ? j : 0;
      Gates product(shared_.gates);
      const O* const w[3] = {a_.gates[0].tile(g, tile), a_.gates[1].tile(g, tile), a_.gates[2].tile(g, tile)};
      auto weights = Gates::template fetch<kUnits>(w, J_);
      const int element = at_.row * D_ + g * J_ + inside;
      const T* bias = a_.read(a_.p.gru.w.b_gates) + (3 * g * J_ + inside);
      const T biases[3] = {bias[0], bias[J_], bias[2 * J_] + static_cast<T>(a_.p.gru.update_bias)};
      const T before = a_.first(t, at_.row) ? T{0} : h[element];
      if (first) barrier_.wait();
      product.add(
          w, J_, weights,
          [&](int half, int k) {
            return Scaled{read_piece<Row>(raw + (at_.read[half] * D_ + g * J_ + k)),
                          read_piece<Row>(scale + (g * J_ + k))};
          },
          [&](int half, int, const Scaled& s) { return act(inverse_[0], half, s); },
          [&] {
            if (!first) return;
            norm(a_.hidden_sums, all, D_, inverse_[0]);
            __syncthreads();
          });
      T out[3];
      product.finish(out);
      if (j >= J_ || !at_.writes) return;
      const T cand = out[1] + biases[1];
      const BlockGruGates<T> y = block_gru_gates<Act>(out[0] + biases[0], cand, out[2] + biases[2]);
      const T after = block_gru_carry(y.update, y.cand, before);
      deter[element] = after;
      narrow(after, a_.multiplied[element]);
      if (!a_.kept) return;
      const int64_t gate = 3 * ((t * a_.p.n.B + at_.row) * D_ + g * J_) + j;
      a_.keep_gate(gate, y.reset), a_.keep_gate(gate + J_, cand), a_.keep_gate(gate + 2 * J_, y.update);
    });
  }

  // Tiles of the posterior layer of step t (none where t < 0), then of the embedding of deter that step t + 1 reads.
  __device__ void posterior_and_embed(int64_t t) {
    const int tiles = tiles_of(U_), posts = t < 0 ? 0 : tiles, embeds = t + 1 < a_.p.n.T ? tiles : 0;
    const T* start = a_.read(a_.p.gru.h0);
    share_out(barrier_, posts + embeds, [&](int at, bool first) {
      const bool posterior = at < posts;
      const int tile = posterior ? at : at - posts, u = tile * kTileColumns + at_.column;
      Product product(shared_.product);
      const O* const w[1] = {(posterior ? a_.post : a_.deter).tile(0, tile)};
      auto weights = Product::template fetch<kDeterTurns>(w, D_);
      T added = 0;
      if (u < U_)
        added = posterior ? a_.read(a_.p.post_in)[(t * a_.p.n.B + at_.row) * U_ + u] : a_.read(a_.p.gru.w.b_carry)[u];
      const bool reset = !posterior && a_.first(t + 1, at_.row);
      if (first) barrier_.wait();
      using Stored = typename Product::Stored;
      if (t < 0)
        product.add(
            w, D_, weights, [&](int half, int k) { return read_piece<Row>(start + (at_.read[half] * D_ + k)); },
            [](int, int, const Row& x) { return x; }, [] {});
      else
        product.add(
            w, D_, weights,
            [&](int half, int k) { return read_piece<Stored>(a_.multiplied + (at_.read[half] * D_ + k)); },
            [](int, int, const Stored& x) { return x; }, [] {});
      T out[1];
      product.finish(out);
      const T value = u < U_ ? (reset ? T{0} : out[0]) + added : T{0};
      write(tile, u, U_, posterior ? a_.post_at(t) : a_.embeds_at(t + 1), posterior ? U_ : 2 * U_,
            posterior ? a_.post_sums : a_.embed_sums[0], tiles, value);
    });
  }

  __device__ void logits(int64_t t) {
    const T *raw = a_.post_at(t), *scale = a_.read(a_.p.w.n_post);
    T* to = static_cast<T*>(a_.p.logits) + t * a_.p.n.B * Z_;
    share_out(barrier_, tiles_of(Z_), [&](int tile, bool first) {
      const int z = tile * kTileColumns + at_.column;
      Product product(shared_.product);
      const O* const w[1] = {a_.logits.tile(0, tile)};
      auto weights = Product::template fetch<kUnits>(w, U_);
      const T bias = z < Z_ ? a_.read(a_.p.w.b_logits)[z] : T{0};
      if (first) barrier_.wait();
      product.add(
          w, U_, weights,
          [&](int half, int k) {
            return Scaled{read_piece<Row>(raw + (at_.read[half] * U_ + k)), read_piece<Row>(scale + k)};
          },
          [&](int half, int, const Scaled& s) { return act(inverse_[0], half, s); },
          [&] {
            if (!first) return;
            norm(a_.post_sums, tiles_of(U_), U_, inverse_[0]);
            __syncthreads();
          });
      T out[1];
      product.finish(out);
      if (z < Z_ && at_.writes) to[at_.row * Z_ + z] = out[0] + bias;
    });
  }

  // A tile is a row and 64 columns of its next embedding: each draws all samples of the row, the first writes them.
  __device__ void sample_and_embed(int64_t t) {
    const bool last = t + 1 == a_.p.n.T;
    const int chunks = last ? 1 : (U_ + kGatherColumns - 1) / kGatherColumns;
    const int lane = threadIdx.x % kGatherColumns, group = threadIdx.x / kGatherColumns;
    share_out(barrier_, at_.rows.count * chunks, [&](int at, bool first) {
      const int row = at_.rows.first + at / chunks, chunk = at % chunks, u = chunk * kGatherColumns + lane;
      const bool embed = !last && u < U_, reset = embed && a_.first(t + 1, row);
      const T bias = embed ? a_.read(a_.p.w.b_stoch)[u] : T{0};
      const T* w = a_.gather.tile(0, u < U_ ? u / kTileColumns : 0) + u % kTileColumns;
      if (first) barrier_.wait();
      T sum = 0;
      for (int s = 0; s < S_; s += kCategoricals) {
        draw(t, row, s, chunk == 0);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kCategoricals / kGatherGroups; ++i) {
          const int wanted = s + group + i * kGatherGroups, categorical = wanted < S_ ? wanted : S_ - 1;
          const int z = categorical * C_ + shared_.sample.index[group + i * kGatherGroups];
          const T one = shared_.sample.ones[group + i * kGatherGroups];
          sum += w[z * kTileColumns] * (wanted < S_ ? one : T{0});  // a branch would keep the loads apart
        }
        __syncthreads();
      }
      if (last) return;
      shared_.sample.sums[group][lane] = reset ? T{0} : sum;
      __syncthreads();
      if (group > 0) return;
      T total = bias;
#pragma unroll
      for (int i = 0; i < kGatherGroups; ++i) total += shared_.sample.sums[i][lane];
      if (embed) a_.embeds_at(t + 1)[row * 2 * U_ + U_ + u] = total;
      const T share = group_sum<kTileColumns>(embed ? total * total : T{0});
      const int tiles = tiles_of(U_), tile = u / kTileColumns;
      if (lane % kTileColumns == 0 && tile < tiles) a_.embed_sums[1][row * tiles + tile] = share;
    });
  }

 private:
  // silu(norm) of what this thread has read of a row.
  __device__ Row act(const T* inverse, int half, const Scaled& s) const {
    const T rms = inverse[Product::row(half)];
    return each<Row>([&](int i) { return Act::silu(s.x.x[i] * rms * s.scale.x[i]); });
  }

  __device__ void norm(const T* sums, int tiles, int width, T* inverse) const {
    const T eps = static_cast<T>(a_.p.gru.eps);
    row_means(at_.rows, sums, tiles, width, inverse, [&](T mean) { return inverse_rms(mean, eps); });
  }

  // Writes this thread's element of a layer before its norm, and the tile's sums of squares.
  __device__ void write(int tile, int n, int N, T* out, int stride, T* sums, int tiles, T value) const {
    if (n < N && at_.writes) out[at_.row * stride + n] = value;
    leave_share(at_.rows, value * value, sums, tiles, tile);
  }

  // The samples of up to 32 categoricals from s on, into shared memory, and if they are to be written, out.
  __device__ void draw(int64_t t, int row, int from, bool write) const {
    const int lane = threadIdx.x % kClassLanes;
    const int wanted = from + static_cast<int>(threadIdx.x) / kClassLanes, s = wanted < S_ ? wanted : S_ - 1;
    const int64_t categorical = (t * a_.p.n.B + row) * S_ + s;
    const T* logits = a_.read(a_.p.logits) + categorical * C_;
    const T draw = a_.read(a_.p.uniform)[categorical];
    const Drawn<T> drawn = draw_class<kClassLanes>(logits, C_, static_cast<T>(a_.p.w.unimix), draw);
    if (lane == 0) {
      shared_.sample.index[threadIdx.x / kClassLanes] = drawn.index;
      shared_.sample.ones[threadIdx.x / kClassLanes] = drawn.one;
    }
    if (!write || wanted >= S_) return;
    if (lane == 0) a_.p.index[categorical] = drawn.index;
    for (int c = lane; c < C_; c += kClassLanes) static_cast<T*>(a_.p.stoch)[categorical * C_ + c] = drawn.at(c);
  }

  const Observe<T, O>& a_;
  Barrier& barrier_;
  Shared& shared_;
  T (*inverse_)[kTileRows];  // [2]
  const Places<Product> at_;
  const int D_, U_, J_, S_, C_, Z_;
};

template <typename T, typename O, int kUnits>
__global__ void __launch_bounds__(kThreads, 1) observe_sequence(Observe<T, O> a, Formation formation) {
  __shared__ typename Steps<T, O, kUnits>::Shared shared;
  __shared__ T inverse[2][kTileRows];
  Barrier barrier(formation);
  for (int64_t tile = blockIdx.y; tile < row_tiles(a.p.n.B); tile += gridDim.y) {
    Steps<T, O, kUnits> steps(a, barrier, shared, inverse, tile);
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
  for (PackedWeight<O>* w :
       {&a.deter, &a.stoch, &a.own, &a.embeds, &a.gates[0], &a.gates[1], &a.gates[2], &a.post, &a.logits})
    scratch.take(*w);
  scratch.take(a.gather);
  a.multiplied = scratch.take<O>(n.B * n.D);
  a.kept = p.gru.embeds ? 1 : 0;
  a.embeds_raw = a.kept ? static_cast<T*>(p.gru.embeds) : scratch.take<T>(n.B * 2 * n.U);
  a.hidden_raw = a.kept ? static_cast<T*>(p.gru.hidden) : scratch.take<T>(n.B * n.D);
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
  if constexpr (sizeof(O) == 2) {
    const char* error = nullptr;
    if (p.cluster && ClusterSteps::fits(p) &&
        launch_clusters(observe_by_cluster, a, row_tiles(n.B), sizeof(ClusterSteps::Shared), on, &error))
      return error;
  }
  const auto kernel = is_narrow(n) ? observe_sequence<T, O, kNarrow<O>> : observe_sequence<T, O, 2>;
  return launch_together(kernel, a, n.G * a.own.tiles(), row_tiles(n.B), a.arrived, on);
}

bool by_tensor_cores(const RssmObserve& p) {
  return p.gru.bf16 && fits_pieces(p.n) &&
         fits_pieces({p.gru.h0, p.stoch0, p.gru.w.n_carry, p.gru.w.n_hidden, p.w.n_stoch, p.w.n_post});
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
