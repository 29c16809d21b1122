// The mirror of rssm_observe.cu: one launch, six stages a step, last step first. Every layer's gradient before its norm
// is kept for all steps; the weights' gradients are products over all of them after the loop.
#include "rssm_observe_backward.cuh"
#include "rssm_observe_grads.cuh"

namespace fastwm::cuda {
namespace {

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

// The stages of a step, for 16 rows.
template <typename T, typename O>
class StepsBack {
  using Product = TileProduct<O>;
  using Row = typename Product::Row;
  struct Normed {  // of a layer with a norm
    Row pre, scale, d_act;
  };

 public:
  using Shared = typename Product::Shared;

  __device__ StepsBack(const Backward<T, O>& a, Barrier& barrier, Shared& shared, T (&mean_dots)[kTileRows],
                       int64_t row_tile)
      : a_(a), n_(a.p.n), barrier_(barrier), shared_(shared), mean_dots_(mean_dots), rows_(row_tile, n_.B) {}

  // A tile is a row and 32 of its categoricals.
  __device__ void sample(int64_t t) {
    const int chunks = static_cast<int>((n_.S + kCategoricals - 1) / kCategoricals);
    const int lane = threadIdx.x % kClassLanes;
    const bool last = t + 1 == n_.T;
    const T keep = 1 - static_cast<T>(a_.p.w.unimix);
    share_out(barrier_, rows_.count * chunks, [&](int tile, bool first) {
      const int64_t b = rows_.first + tile / chunks, C = n_.C;
      const int64_t wanted = tile % chunks * kCategoricals + threadIdx.x / kClassLanes;
      const int64_t s = wanted < n_.S ? wanted : n_.S - 1, at = (t * n_.B + b) * n_.Z() + s * C;
      const T *logits = a_.read(a_.p.logits) + at, *g = a_.read(a_.p.g_stoch) + at, *d_z = a_.d_z + b * n_.Z() + s * C;
      const Softmax<T> softmax(logits, C);
      if (first) barrier_.wait();
      T mean = 0;
      for (int64_t c = lane; c < C; c += kClassLanes) mean += softmax.of(logits[c]) * (g[c] + (last ? T{0} : d_z[c]));
      mean = group_sum<kClassLanes>(mean);
      for (int64_t c = lane; c < C && s == wanted; c += kClassLanes)
        a_.d_logits[at + c] = a_.read(a_.p.g_logits)[at + c] +
                              keep * softmax.of(logits[c]) * (g[c] + (last ? T{0} : d_z[c]) - mean);
    });
  }

  __device__ void logits(int64_t t) {
    const Layer<T> post = post_of(a_);
    share_out(barrier_, a_.logits.tiles(), [&](int tile, bool first) {
      Product product(shared_);
      const O* const w[1] = {a_.logits.tile(0, tile)};
      auto weights = Product::template fetch<4>(w, n_.Z());
      const int64_t u = tile * kTileColumns + Product::sum_column();
      const Element element(post, at(t, sum_row()), u);
      if (first) barrier_.wait();
      product.add(w, n_.Z(), weights,
                  [&](int half, int64_t k) { return read_piece<Row>(a_.d_logits + at(t, row(half)) * n_.Z() + k); },
                  [](int, int64_t, const Row& x) { return x; }, [] {});
      T out[1];
      product.finish(out);
      write_d_act(element, tile, a_.logits.tiles(), out[0], a_.d_act_post, a_.post_dots);
    });
  }

  // All that reaches deter of step t, and the gates' way back.
  __device__ void deter(int64_t t) {
    const Layer<T> post = post_of(a_);
    const int64_t D = n_.D, U = n_.U, J = n_.J();
    const bool last = t + 1 == n_.T;
    share_out(barrier_, a_.post.tiles(), [&](int tile, bool first) {
      Product product(shared_);
      const O *const to_post[1] = {a_.post.tile(0, tile)}, *const to_embed[1] = {a_.deter.tile(0, tile)};
      auto post_weights = Product::template fetch<2>(to_post, U);
      auto embed_weights = Product::template fetch<2>(to_embed, U);
      const int64_t column = tile * kTileColumns + Product::sum_column(), d = column < D ? column : D - 1;
      const int64_t b = sum_row(), row_at = at(t, b), gate = 3 * row_at * D + d / J * 3 * J + d % J;
      const T* saved = a_.read(a_.p.gru.gates) + gate;
      const T reset = saved[0], inner = saved[J], update = saved[2 * J], cand = vtanh(reset * inner);
      const T past = a_.past_deter(row_at, d), given = a_.read(a_.p.gru.g_h)[row_at * D + d];
      const bool cut[2] = {last || a_.first(t + 1, row(0)), last || a_.first(t + 1, row(1))};
      const T inverse[2] = {post.inverse[at(t, row(0))], post.inverse[at(t, row(1))]};
      const bool reset_after = last || a_.first(t + 1, b);
      // What step t + 1 left has been there since the stage before last.
      const T carried = a_.d_deter[b * D + d];
      if (!last)
        product.add(to_embed, U, embed_weights,
                    [&](int half, int64_t k) { return read_piece<Row>(a_.d_embeds + at(t + 1, row(half)) * 2 * U + k); },
                    [&](int half, int64_t, const Row& x) { return cut[half] ? Row{} : x; }, [] {});
      if (first) barrier_.wait();
      product.add(to_post, U, post_weights, [&](int half, int64_t k) { return normed(post, at(t, row(half)), k); },
                  [&](int half, int64_t k, const Normed& x) {
                    const Row d_pre = way_back(x, inverse[half], half);
                    if (tile == 0) write_piece(d_pre, static_cast<T*>(a_.p.d_post) + at(t, row(half)) * U + k);
                    return d_pre;
                  },
                  [&] {
                    if (first) mean_dots(a_.post_dots, a_.logits.tiles(), U);
                  });
      T out[1];
      product.finish(out);
      if (column >= D || !rows_.has(Product::sum_row())) return;
      const T total = out[0] + given + (reset_after ? T{0} : carried);
      const T d_inner = total * update * (1 - cand * cand);
      a_.d_gates[gate] = d_inner * inner * reset * (1 - reset);
      a_.d_gates[gate + J] = d_inner * reset;
      a_.d_gates[gate + 2 * J] = total * (cand - past) * update * (1 - update);
      a_.d_deter[b * D + d] = total * (1 - update);
    });
  }

  __device__ void gates(int64_t t) {
    const Layer<T> hidden = hidden_of(a_);
    const int64_t J = n_.J();
    const int tiles = static_cast<int>(a_.gates.tiles());
    share_out(barrier_, n_.G * tiles, [&](int index, bool first) {
      const int g = index / tiles, tile = index % tiles;
      const int64_t j = tile * kTileColumns + Product::sum_column();
      Product product(shared_);
      const O* const w[1] = {a_.gates.tile(g, tile)};
      auto weights = Product::template fetch<6>(w, 3 * J);
      const Element element(hidden, at(t, sum_row()), j < J ? g * J + j : n_.D);
      if (first) barrier_.wait();
      product.add(w, 3 * J, weights,
                  [&](int half, int64_t k) {
                    return read_piece<Row>(a_.d_gates + 3 * (at(t, row(half)) * n_.D + g * J) + k);
                  },
                  [](int, int64_t, const Row& x) { return x; }, [] {});
      T out[1];
      product.finish(out);
      write_d_act(element, index, n_.G * tiles, out[0], a_.d_act_hidden, a_.hidden_dots);
    });
  }

  // Tiles of the embeddings of deter, of stoch, and of the block's own deter.
  __device__ void hidden(int64_t t) {
    const Layer<T> hidden = hidden_of(a_);
    const int64_t J = n_.J(), D = n_.D;
    const int embeds = static_cast<int>(a_.embeds[0].tiles()), own = static_cast<int>(a_.own.tiles());
    share_out(barrier_, 2 * embeds + n_.G * own, [&](int index, bool first) {
      const bool embed = index < 2 * embeds;
      const int part = embed && index >= embeds;  // of an embedding
      const int tile = embed ? index - part * embeds : (index - 2 * embeds) % own;
      const int g = embed ? 0 : (index - 2 * embeds) / own;
      const int64_t from = g * J, K = embed ? D : J;
      const int64_t column = tile * kTileColumns + Product::sum_column();
      Product product(shared_);
      const O* const w[1] = {(embed ? a_.embeds[part] : a_.own).tile(g, tile)};
      auto weights = Product::template fetch<4>(w, K);
      const Layer<T> layer = embed_layer(a_, part);
      const T inverse[2] = {hidden.inverse[at(t, row(0))], hidden.inverse[at(t, row(1))]};
      const Element element(layer, at(t, sum_row()), column);
      if (first) barrier_.wait();
      product.add(w, K, weights, [&](int half, int64_t k) { return normed(hidden, at(t, row(half)), from + k); },
                  [&](int half, int64_t k, const Normed& x) {
                    const Row d_pre = way_back(x, inverse[half], half);
                    if (index == 0) write_piece(d_pre, static_cast<T*>(a_.p.gru.d_hidden) + at(t, row(half)) * D + k);
                    return d_pre;
                  },
                  [&] {
                    if (first) mean_dots(a_.hidden_dots, n_.G * a_.gates.tiles(), D);
                  });
      T out[1];
      product.finish(out);
      if (embed) write_d_act(element, tile, embeds, out[0], a_.d_act[part], a_.dots[part]);
      else if (column < J && rows_.has(Product::sum_row())) a_.d_deter[sum_row() * D + from + column] += out[0];
    });
  }

  // The way back through the one-hot sample of the step before, and then tiles of the embedding of deter before its norm.
  __device__ void embeds(int64_t t) {
    const Layer<T> of_deter = embed_layer(a_, 0), of_stoch = embed_layer(a_, 1);
    const int64_t U = n_.U, Z = n_.Z();
    const int products = static_cast<int>(a_.stoch.tiles()), dots = static_cast<int>(a_.embeds[0].tiles());
    share_out(barrier_, products + dots, [&](int index, bool first) {
      const bool product_tile = index < products;
      const int64_t column = (product_tile ? index : index - products) * kTileColumns + Product::sum_column();
      Product product(shared_);
      const O* const w[1] = {a_.stoch.tile(0, product_tile ? index : 0)};
      auto weights = Product::template fetch<2>(w, U);
      const bool reset = a_.first(t, sum_row());
      const T inverse[2] = {of_stoch.inverse[at(t, row(0))], of_stoch.inverse[at(t, row(1))]};
      if (first) barrier_.wait();
      const int part = product_tile ? 1 : 0;
      const auto means = [&] { mean_dots(a_.dots[part], dots, U); };
      if (!product_tile) {
        means();
        if (column < U && rows_.has(Product::sum_row())) {
          const int64_t row_at = at(t, sum_row());
          const T mean_dot = mean_dots_[Product::sum_row()];
          a_.d_embeds[row_at * 2 * U + column] = of_deter.at(row_at, column).d_pre(of_deter.inverse[row_at], mean_dot);
        }
        __syncthreads();  // the means are another tile's next
        return;
      }
      product.add(w, U, weights, [&](int half, int64_t k) { return normed(of_stoch, at(t, row(half)), k); },
                  [&](int half, int64_t k, const Normed& x) {
                    const Row d_pre = way_back(x, inverse[half], half);
                    if (index == 0) write_piece(d_pre, a_.d_embeds + at(t, row(half)) * 2 * U + U + k);
                    return d_pre;
                  }, means);
      T out[1];
      product.finish(out);
      if (column < Z && rows_.has(Product::sum_row())) a_.d_z[sum_row() * Z + column] = reset ? T{0} : out[0];
    });
  }

 private:
  // One of a layer's elements as it was: read before the barrier.
  struct Element {
    int64_t row, i;
    bool inside;
    T pre, inverse, scale;
    const Layer<T>& layer;

    __device__ Element(const Layer<T>& layer, int64_t row, int64_t i)
        : row(row), i(i), inside(i < layer.width), pre(inside ? layer.pre[row * layer.stride + i] : T{0}),
          inverse(layer.inverse[row]), scale(inside ? layer.scale[i] : T{0}), layer(layer) {}
  };

  __device__ int64_t row(int half) const { return rows_.at(Product::row(half)); }
  __device__ int64_t sum_row() const { return rows_.at(Product::sum_row()); }
  __device__ int64_t at(int64_t t, int64_t b) const { return t * n_.B + b; }

  __device__ static Normed normed(const Layer<T>& layer, int64_t row, int64_t i) {
    return {read_piece<Row>(layer.pre + row * layer.stride + i), read_piece<Row>(layer.scale + i),
            read_piece<Row>(layer.d_act + row * layer.width + i)};
  }
  __device__ Row way_back(const Normed& x, T inverse, int half) const {
    const T mean_dot = mean_dots_[Product::row(half)];
    return each<Row>([&](int i) {
      return NormBack<T>(x.pre.x[i], inverse, x.scale.x[i], x.d_act.x[i]).d_pre(inverse, mean_dot);
    });
  }
  __device__ void mean_dots(const T* dots, int64_t tiles, int64_t width) const {
    row_means(rows_, dots, static_cast<int>(tiles), width, mean_dots_, [](T mean) { return mean; });
    __syncthreads();
  }

  // Writes an element of a layer's gradient behind its norm and SiLU, and the tile's share of the norm's dot product.
  __device__ void write_d_act(const Element& e, int64_t tile, int64_t tiles, T d, T* d_act, T* dots) const {
    if (e.inside && rows_.has(Product::sum_row())) d_act[e.row * e.layer.width + e.i] = d;
    const NormBack<T> back(e.pre, e.inverse, e.scale, d);
    leave_share(rows_, e.inside ? back.d_normal * back.normal : T{0}, dots, tiles, tile);
  }

  const Backward<T, O>& a_;
  const RssmSizes& n_;
  Barrier& barrier_;
  Shared& shared_;
  T (&mean_dots_)[kTileRows];
  const Rows rows_;
};

template <typename T, typename O>
__global__ void __launch_bounds__(kThreads, 1) observe_backward_sequence(Backward<T, O> a, Formation formation) {
  __shared__ typename StepsBack<T, O>::Shared shared;
  __shared__ T mean_dots[kTileRows];
  Barrier barrier(formation);
  for (int64_t tile = blockIdx.y; tile < row_tiles(a.p.n.B); tile += gridDim.y) {
    StepsBack<T, O> steps(a, barrier, shared, mean_dots, tile);
    for (int64_t t = a.p.n.T - 1; t >= 0; --t) {
      steps.sample(t);
      steps.logits(t);
      steps.deter(t);
      steps.gates(t);
      steps.hidden(t);
      steps.embeds(t);
    }
  }
  barrier.wait();  // a cluster's blocks end together
}

template <typename T, typename O>
Backward<T, O> arrange(const RssmObserveBackward& p, Scratch& scratch) {
  const RssmSizes& n = p.n;
  const int64_t J = n.J(), R = n.T * n.B;
  Backward<T, O> a{p,
                   {nullptr, 1, n.Z(), n.U},
                   {nullptr, 1, n.U, n.D},
                   {nullptr, 1, n.U, n.D},
                   {nullptr, n.G, 3 * J, J},
                   {nullptr, n.G, J, J},
                   {{nullptr, 1, n.D, n.U}, {nullptr, 1, n.D, n.U}},
                   {nullptr, 1, n.U, n.Z()}};
  for (PackedWeight<O>* w : {&a.logits, &a.post, &a.deter, &a.gates, &a.own, &a.embeds[0], &a.embeds[1], &a.stoch})
    scratch.take(*w);
  for (T*& inverse : a.inverse) inverse = scratch.take<T>(R);
  for (T*& d_act : a.d_act) d_act = scratch.take<T>(R * n.U);
  a.d_act_hidden = scratch.take<T>(R * n.D), a.d_act_post = scratch.take<T>(R * n.U);
  a.d_embeds = scratch.take<T>(R * 2 * n.U), a.d_gates = scratch.take<T>(R * 3 * n.D);
  a.d_logits = scratch.take<T>(R * n.Z());
  a.d_deter = scratch.take<T>(n.B * n.D), a.d_z = scratch.take<T>(n.B * n.Z());
  for (T*& dots : a.dots) dots = scratch.take<T>(n.B * a.embeds[0].tiles());
  a.hidden_dots = scratch.take<T>(n.B * n.G * a.gates.tiles());
  a.post_dots = scratch.take<T>(n.B * a.logits.tiles());
  a.arrived = scratch.take<unsigned>(row_tiles(n.B));
  return a;
}

template <typename T, typename O>
int64_t scratch_bytes(const RssmObserveBackward& p) {
  Scratch scratch{nullptr};
  arrange<T, O>(p, scratch);
  return scratch.used;
}

template <typename T, typename O>
const char* observe_backward(const RssmObserveBackward& p, cudaStream_t on) {
  Scratch scratch{static_cast<unsigned char*>(p.scratch)};
  const Backward<T, O> a = arrange<T, O>(p, scratch);
  const RssmSizes& n = p.n;
  const char* error = nullptr;
  if (n.B > 0) {
    Packings<O> packings;
    packings.add(p.w.logits.transposed(), 0, a.logits);
    packings.add(p.w.post.transposed(), 0, a.post);
    packings.add(p.gru.w.carry.transposed(), 0, a.deter);
    packings.add(p.gru.w.gates.transposed(), 0, a.gates);
    packings.add(p.gru.w.own.transposed(), 0, a.own);
    for (int part = 0; part < 2; ++part) {
      Weight embeds = p.gru.w.embeds;
      embeds.data = static_cast<const T*>(embeds.data) + part * n.U * embeds.sk;
      packings.add(embeds.transposed(), n.J(), a.embeds[part]);
    }
    packings.add(p.w.stoch.transposed(), 0, a.stoch);
    pack<T>(packings, on);
    norms<T, O><<<static_cast<unsigned>((kNorms * n.T * n.B + kWarps - 1) / kWarps), kThreads, 0, on>>>(a);
    const int64_t across = 2 * a.embeds[0].tiles() + n.G * a.own.tiles();
    error = launch_together(observe_backward_sequence<T, O>, a, across, row_tiles(n.B), a.arrived, on);
  }
  all_weight_grads(a, on);
  return error ? error : launch_error();
}

// Tensor cores take pieces of rows.
bool by_tensor_cores(const RssmObserveBackward& p) {
  return p.gru.bf16 && fits_pieces(p.n.J()) && fits_pieces(p.n.U) && fits_pieces(p.n.Z());
}

}  // namespace

int64_t rssm_observe_backward_scratch(const RssmObserveBackward& p) {
  if (p.gru.dtype == Dtype::f64) return scratch_bytes<double, double>(p);
  return by_tensor_cores(p) ? scratch_bytes<float, bf16>(p) : scratch_bytes<float, float>(p);
}

const char* rssm_observe_backward_kernel(const RssmObserveBackward& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (p.gru.dtype == Dtype::f64) return observe_backward<double, double>(p, on);
  return by_tensor_cores(p) ? observe_backward<float, bf16>(p, on) : observe_backward<float, float>(p, on);
}

}  // namespace fastwm::cuda
