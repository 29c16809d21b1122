// The mirror of rssm_observe.cu: one launch, six stages a step, last step first. Every layer's gradient before its norm
// is kept for all steps; the weights' gradients are products over all of them after the loop.
#include "rssm_observe_backward.cuh"
#include "rssm_observe_grads.cuh"

namespace fastwm::cuda {
namespace {

// The forward's layers after norm and SiLU, computed again. One warp a row and norm.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads) normed_layers(Backward<T, O> a) {
  const int64_t task = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, rows = a.p.n.T * a.p.n.B;
  if (task >= kNorms * rows) return;
  const int norm = static_cast<int>(task / rows);
  const int64_t row = task % rows;
  const Layer<T> layer = layer_of(a, norm);
  const T* pre = layer.pre + row * layer.stride;
  T sum = 0;
  for (int64_t i = threadIdx.x % 32; i < layer.width; i += 32) sum += pre[i] * pre[i];
  const T inverse = inverse_rms(vdivide(group_sum<32>(sum), static_cast<T>(layer.width)), static_cast<T>(a.p.gru.eps));
  if (threadIdx.x % 32 == 0) a.inverse[norm][row] = inverse;
  for (int64_t i = threadIdx.x % 32; i < layer.width; i += 32)
    narrow(vsilu(pre[i] * inverse * layer.scale[i]), a.act[norm][row * layer.width + i]);
}

// The stages of a step, for 16 rows. kUnits as in rssm_observe.cu.
template <typename T, typename O, int kUnits>
class StepsBack {
  static constexpr int kGateTurns = kUnits == 1 ? 2 : 6, kLogitTurns = kUnits * kUnits;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  static constexpr int kDeterTurns = 2 * kUnits;  // more would spill
#else
  static constexpr int kDeterTurns = 4 * kUnits;
#endif
  using Product = TileProduct<O>;
  using Row = typename Product::Row;
  struct Pair {
    Row grad, normal;
  };

 public:
  using Shared = typename Product::Shared;

  __device__ StepsBack(const Backward<T, O>& a, Barrier& barrier, Shared& shared, T (&mean_dots)[kTileRows],
                       int64_t row_tile)
      : a_(a), barrier_(barrier), shared_(shared), mean_dots_(mean_dots), at_(row_tile, a.p.n.B),
        D_(static_cast<int>(a.p.n.D)), U_(static_cast<int>(a.p.n.U)), J_(static_cast<int>(a.p.n.J())),
        G_(static_cast<int>(a.p.n.G)), S_(static_cast<int>(a.p.n.S)), C_(static_cast<int>(a.p.n.C)), Z_(S_ * C_) {}

  // A tile is a row and 32 of its categoricals.
  __device__ void sample(int64_t t) {
    const int chunks = (S_ + kCategoricals - 1) / kCategoricals, lane = threadIdx.x % kClassLanes;
    const T keep = 1 - static_cast<T>(a_.p.w.unimix);
    const bool last = t + 1 == a_.p.n.T;
    share_out(barrier_, at_.rows.count * chunks, [&](int tile, bool first) {
      const int b = at_.rows.first + tile / chunks;
      const int wanted = tile % chunks * kCategoricals + static_cast<int>(threadIdx.x) / kClassLanes;
      const int s = wanted < S_ ? wanted : S_ - 1;
      const int64_t at = (of(t) + b) * Z_ + s * C_;
      const T *logits = a_.read(a_.p.logits) + at, *g = a_.read(a_.p.g_stoch) + at, *d_z = a_.d_z + (b * Z_ + s * C_);
      const Softmax<T> softmax(logits, C_);
      const auto d = [&](int c) { return g[c] + (last ? T{0} : d_z[c]); };
      if (first) barrier_.wait();
      T mean = 0;
      for (int c = lane; c < C_; c += kClassLanes) mean += softmax.of(logits[c]) * d(c);
      mean = group_sum<kClassLanes>(mean);
      for (int c = lane; c < C_ && s == wanted; c += kClassLanes)
        a_.d_logits[at + c] = a_.read(a_.p.g_logits)[at + c] + keep * softmax.of(logits[c]) * (d(c) - mean);
    });
  }

  __device__ void logits(int64_t t) {
    const T* d = a_.d_logits + of(t) * Z_;
    const Layer<T> post = layer_of(a_, kPost);
    share_out(barrier_, tiles_of(U_), [&](int tile, bool first) {
      Product product(shared_);
      const O* const w[1] = {a_.logits.tile(0, tile)};
      auto weights = Product::template fetch<kLogitTurns>(w, Z_);
      const Element element(post, t, at_.row, tile * kTileColumns + at_.column, a_.p.n);
      if (first) barrier_.wait();
      product.add(
          w, Z_, weights, [&](int half, int k) { return read_piece<Row>(d + (at_.read[half] * Z_ + k)); },
          [](int, int, const Row& x) { return x; }, [] {});
      T out[1];
      product.finish(out);
      write_layer(element, tile, tiles_of(U_), out[0], post);
    });
  }

  // The whole gradient of deter at step t, and backward through the gates.
  __device__ void deter(int64_t t) {
    const bool last = t + 1 == a_.p.n.T;
    const T* later = a_.d_embeds + of(t + 1) * 2 * U_;
    T* d_post = static_cast<T*>(a_.p.d_post) + of(t) * U_;
    share_out(barrier_, tiles_of(D_), [&](int tile, bool first) {
      Product product(shared_);
      const O *const to_post[1] = {a_.post.tile(0, tile)}, *const to_embed[1] = {a_.deter.tile(0, tile)};
      auto post_weights = Product::template fetch<kUnits>(to_post, U_);
      auto embed_weights = Product::template fetch<kUnits>(to_embed, U_);
      const int column = tile * kTileColumns + at_.column, d = column < D_ ? column : D_ - 1;
      const int64_t row = of(t) + at_.row, gate = 3 * row * D_ + d / J_ * 3 * J_ + d % J_;
      const T reset = a_.kept_gate(gate), inner = a_.kept_gate(gate + J_), update = a_.kept_gate(gate + 2 * J_);
      const BlockGruGates<T> y{reset, vtanh(reset * inner), update};
      const T past = a_.past_deter(row, d), given = a_.read(a_.p.gru.g_h)[row * D_ + d];
      const bool cut[2] = {last || a_.first(t + 1, at_.read[0]), last || a_.first(t + 1, at_.read[1])};
      const bool alone = last || a_.first(t + 1, at_.row);
      // Step t + 1 left this in the stage before last, so no barrier is needed.
      const T carried = a_.d_deter[at_.row * D_ + d];
      if (!last)
        product.add(
            to_embed, U_, embed_weights,
            [&](int half, int k) { return read_piece<Row>(later + (at_.read[half] * 2 * U_ + k)); },
            [&](int half, int, const Row& x) { return cut[half] ? Row{} : x; }, [] {});
      if (first) barrier_.wait();
      product.add(
          to_post, U_, post_weights, [&](int half, int k) { return pair(a_.parts[kPost], U_, half, k); },
          [&](int half, int, const Pair& x) { return way_back(x, half); },
          [&] {
            if (first) mean_dots(a_.dots[kPost], tiles_of(U_), U_);
          });
      T out[1];
      product.finish(out);
      for (int u = tile * kTileColumns + at_.column; u < U_; u += tiles_of(D_) * kTileColumns)
        if (at_.writes) d_post[at_.row * U_ + u] = gradient(kPost, U_, u);
      if (column >= D_ || !at_.writes) return;
      const T total = out[0] + given + (alone ? T{0} : carried);
      const BlockGruGrads<T> grads = block_gru_backward(y, inner, past, total);
      narrow(grads.reset, a_.d_gates[gate]);
      narrow(grads.cand, a_.d_gates[gate + J_]);
      narrow(grads.update, a_.d_gates[gate + 2 * J_]);
      a_.d_deter[at_.row * D_ + d] = grads.h;
    });
  }

  __device__ void gates(int64_t t) {
    const int tiles = tiles_of(J_);
    using Stored = typename Product::Stored;
    const O* d_gates = a_.d_gates + 3 * of(t) * D_;
    const Layer<T> hidden = layer_of(a_, kHidden);
    share_out(barrier_, G_ * tiles, [&](int index, bool first) {
      const int g = index / tiles, tile = index % tiles, j = tile * kTileColumns + at_.column;
      Product product(shared_);
      const O* const w[1] = {a_.gates.tile(g, tile)};
      auto weights = Product::template fetch<kGateTurns>(w, 3 * J_);
      const Element element(hidden, t, at_.row, j < J_ ? g * J_ + j : D_, a_.p.n);
      if (first) barrier_.wait();
      product.add(
          w, 3 * J_, weights,
          [&](int half, int k) { return read_piece<Stored>(d_gates + (3 * (at_.read[half] * D_ + g * J_) + k)); },
          [](int, int, const Stored& x) { return x; }, [] {});
      T out[1];
      product.finish(out);
      write_layer(element, index, G_ * tiles, out[0], hidden);
    });
  }

  // Tiles of the embeddings of deter and of stoch, by halves of their depth, and of the block's own deter.
  __device__ void hidden(int64_t t) {
    const int embeds = 2 * kHalves * tiles_of(U_), own = tiles_of(J_);
    const int half_depth = static_cast<int>(round_up((D_ + 1) / kHalves, 16));
    T* d_hidden = static_cast<T*>(a_.p.gru.d_hidden) + of(t) * D_;
    share_out(barrier_, embeds + G_ * own, [&](int index, bool first) {
      if (index < embeds) {
        const int plane = index % kHalves, tile = index / kHalves % tiles_of(U_);
        const int norm = index < embeds / 2 ? kDeter : kStoch, from = plane * half_depth;
        const Layer<T> layer = layer_of(a_, norm);
        const Element element(layer, t, at_.row, tile * kTileColumns + at_.column, a_.p.n, plane);
        const O* w = a_.embeds[norm].tile(0, tile) + from * kTileColumns;
        const int K = D_ - from < half_depth ? D_ - from : half_depth;
        write_layer(element, tile, tiles_of(U_), from_hidden<kDeterTurns>(w, from, K, first), layer, plane, kHalves);
        return;
      }
      const int g = (index - embeds) / own, tile = (index - embeds) % own, j = tile * kTileColumns + at_.column;
      const T d_own = from_hidden<kUnits>(a_.own.tile(g, tile), g * J_, J_, first);
      if (j >= J_ || !at_.writes) return;
      a_.d_deter[at_.row * D_ + g * J_ + j] += d_own;
      d_hidden[at_.row * D_ + g * J_ + j] = gradient(kHidden, D_, g * J_ + j);
    });
  }

  // Backward through the one-hot sample of the step before, and then tiles of both embeddings before their norms.
  __device__ void embeds(int64_t t) {
    const int products = tiles_of(Z_), tiles = tiles_of(U_);
    T* d_embeds = a_.d_embeds + of(t) * 2 * U_;
    share_out(barrier_, products + 2 * tiles, [&](int index, bool first) {
      const bool multiplies = index < products;
      const int norm = index < products + tiles && !multiplies ? kDeter : kStoch;
      const int tile = multiplies ? index : (index - products) % tiles, column = tile * kTileColumns + at_.column;
      Product product(shared_);
      const O* const w[1] = {a_.stoch.tile(0, multiplies ? tile : 0)};
      auto weights = Product::template fetch<kUnits>(w, U_);
      const bool reset = a_.first(t, at_.row);
      if (first) barrier_.wait();
      const auto means = [&] { mean_dots(a_.dots[norm], kHalves * tiles, U_); };
      if (multiplies) {
        product.add(
            w, U_, weights, [&](int half, int k) { return pair<kHalves>(a_.parts[kStoch], U_, half, k); },
            [&](int half, int, const Pair& x) { return way_back(x, half); }, means);
        T out[1];
        product.finish(out);
        if (column < Z_ && at_.writes) a_.d_z[at_.row * Z_ + column] = reset ? T{0} : out[0];
      } else {
        means();
        if (column < U_ && at_.writes) d_embeds[at_.row * 2 * U_ + norm * U_ + column] = gradient(norm, U_, column);
        __syncthreads();  // the means are another tile's next
      }
    });
  }

 private:
  // One of a layer's elements as it was, and what the steps after have given its scale: read before the barrier, since
  // every step's element is the same thread's.
  struct Element {
    int i;
    bool inside;
    T pre, inverse, scale, d_scale;

    __device__ Element(const Layer<T>& layer, int64_t t, int row, int i, const RssmSizes& n, int plane = 0)
        : i(i), inside(i < layer.width), pre(inside ? layer.pre[(t * n.B + row) * layer.stride + i] : T{0}),
          inverse(layer.inverse[t * n.B + row]), scale(inside ? layer.scale[i] : T{0}),
          d_scale(inside && t + 1 < n.T ? layer.d_scale[(plane * n.B + row) * layer.width + i] : T{0}) {}
  };

  __device__ int64_t of(int64_t t) const { return t * a_.p.n.B; }

  template <int kPlanes = 1>
  __device__ Pair pair(const Parts<T>& parts, int width, int half, int i) const {
    const int at = at_.read[half] * width + i, plane = static_cast<int>(a_.p.n.B) * width;
    Row grad = read_piece<Row>(parts.grad + at);
#pragma unroll
    for (int p = 1; p < kPlanes; ++p) {
      const Row more = read_piece<Row>(parts.grad + (p * plane + at));
      grad = each<Row>([&](int j) { return grad.x[j] + more.x[j]; });
    }
    return {grad, read_piece<Row>(parts.normal + at)};
  }
  __device__ Row way_back(const Pair& x, int half) const {
    const T mean_dot = mean_dots_[Product::row(half)];
    return each<Row>([&](int i) { return x.grad.x[i] - x.normal.x[i] * mean_dot; });
  }

  // The gradient of a layer before its norm, at the element whose sums this thread gets.
  __device__ T gradient(int norm, int width, int i) const {
    const int at = at_.row * width + i, plane = static_cast<int>(a_.p.n.B) * width;
    T grad = a_.parts[norm].grad[at];
    for (int p = 1; p < planes_of(norm); ++p) grad += a_.parts[norm].grad[p * plane + at];
    return grad - a_.parts[norm].normal[at] * mean_dots_[Product::sum_row()];
  }

  // What reaches this thread's element from rows from .. from + K of the hidden layer's gradient, of which the weights
  // are w. All of a block's threads call.
  template <int kTurns>
  __device__ T from_hidden(const O* tile, int from, int K, bool first) {
    Product product(shared_);
    const O* const w[1] = {tile};
    auto weights = Product::template fetch<kTurns>(w, K);
    const auto means = [&] {
      if (first) mean_dots(a_.dots[kHidden], G_ * tiles_of(J_), D_);
    };
    if (first) barrier_.wait();
    if (K <= 0) means();  // the second half of few rows: the means are for the block's next tile
    product.add(
        w, K, weights, [&](int half, int k) { return pair(a_.parts[kHidden], D_, half, from + k); },
        [&](int half, int, const Pair& x) { return way_back(x, half); }, means);
    T out[1];
    product.finish(out);
    return out[0];
  }

  __device__ void mean_dots(const T* dots, int tiles, int width) const {
    row_means(at_.rows, dots, tiles, width, mean_dots_, [](T mean) { return mean; });
    __syncthreads();
  }

  // From an element's gradient after norm and SiLU, d: what the norm's scale gets, the parts of the gradient before
  // both, and the tile's share of the norm's dot product.
  __device__ void write_layer(const Element& e, int tile, int tiles, T d, const Layer<T>& layer, int plane = 0,
                              int planes = 1) const {
    const T normal = e.pre * e.inverse, y = normal * e.scale, s = vsigmoid(y);
    const T d_y = d * s * (1 + y * (1 - s)), d_normal = d_y * e.scale;
    if (e.inside && at_.writes) {
      const int width = static_cast<int>(layer.width), row = at_.row * width + e.i;
      const int at = plane * static_cast<int>(a_.p.n.B) * width + row;
      layer.d_scale[at] = e.d_scale + d_y * normal;
      layer.parts.grad[at] = e.inverse * d_normal;
      if (plane == 0) layer.parts.normal[row] = e.inverse * normal;
    }
    leave_share(at_.rows, e.inside ? d_normal * normal : T{0}, layer.dots, planes * tiles, plane * tiles + tile);
  }

  const Backward<T, O>& a_;
  Barrier& barrier_;
  Shared& shared_;
  T (&mean_dots_)[kTileRows];
  const Places<Product> at_;
  const int D_, U_, J_, G_, S_, C_, Z_;
};

template <typename T, typename O, int kUnits>
__global__ void __launch_bounds__(kThreads, 1) observe_backward_sequence(Backward<T, O> a, Formation formation) {
  __shared__ typename StepsBack<T, O, kUnits>::Shared shared;
  __shared__ T mean_dots[kTileRows];
  Barrier barrier(formation);
  for (int64_t tile = blockIdx.y; tile < row_tiles(a.p.n.B); tile += gridDim.y) {
    StepsBack<T, O, kUnits> steps(a, barrier, shared, mean_dots, tile);
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
  a.d_embeds = scratch.take<T>(R * 2 * n.U), a.d_gates = scratch.take<O>(R * 3 * n.D);
  a.d_logits = scratch.take<T>(R * n.Z());
  a.d_deter = scratch.take<T>(n.B * n.D), a.d_z = scratch.take<T>(n.B * n.Z());
  for (int norm = 0; norm < kNorms; ++norm) {
    const int64_t width = norm == kHidden ? n.D : n.U;
    a.act[norm] = scratch.take<O>(R * width);
    a.inverse[norm] = scratch.take<T>(R);
    a.d_scale[norm] = scratch.take<T>(planes_of(norm) * n.B * width);
    a.parts[norm] = {scratch.take<T>(planes_of(norm) * n.B * width), scratch.take<T>(n.B * width)};
    a.dots[norm] = scratch.take<T>(n.B * planes_of(norm) * (norm == kHidden ? n.G * tiles_of(J) : tiles_of(n.U)));
  }
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
    normed_layers<T, O><<<static_cast<unsigned>((kNorms * n.T * n.B + kWarps - 1) / kWarps), kThreads, 0, on>>>(a);
    const int64_t across = 2 * kHalves * a.embeds[0].tiles() + n.G * a.own.tiles();
    const auto kernel = is_narrow(n) ? observe_backward_sequence<T, O, kNarrow<O>> : observe_backward_sequence<T, O, 2>;
    error = launch_together(kernel, a, across, row_tiles(n.B), a.arrived, on);
  }
  all_weight_grads(a, on);
  return error ? error : launch_error();
}

}  // namespace

int64_t rssm_observe_backward_scratch(const RssmObserveBackward& p) {
  if (p.gru.dtype == Dtype::f64) return scratch_bytes<double, double>(p);
  return p.gru.bf16 && fits_pieces(p.n) ? scratch_bytes<float, bf16>(p) : scratch_bytes<float, float>(p);
}

const char* rssm_observe_backward_kernel(const RssmObserveBackward& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (p.gru.dtype == Dtype::f64) return observe_backward<double, double>(p, on);
  return p.gru.bf16 && fits_pieces(p.n) ? observe_backward<float, bf16>(p, on) : observe_backward<float, float>(p, on);
}

}  // namespace fastwm::cuda
