// One launch for the whole sequence, between whose steps its blocks wait for each other: a product over 16 rows by 16
// columns of every gate, followed by the gates; a second stage where a LayerNorm needs the whole row, or where
// PlaNet's candidate waits for the reset gate. The input's product was made before.
#include "fast_math.cuh"
#include "scan_rows.cuh"

namespace fastwm::cuda {
namespace {

constexpr int kMaxGates = 4;

template <typename T, typename O>
struct Forward {
  Scan p;
  PackedWeight<O> w[kMaxGates];  // [D, D] each
  T* unsaved;                    // [B, saved * D] in place of what is saved, where nothing is
  unsigned* arrived;

  __device__ int64_t D() const { return p.n.D; }
  __device__ int64_t at(int64_t t, int64_t row) const { return t * p.n.B + row; }
  __device__ const T* input(int64_t t, int64_t row) const {
    return static_cast<const T*>(p.input) + at(t, row) * scan_gates(p.cell) * D();
  }
  __device__ T* saved(int64_t t, int64_t row) const {
    const int64_t wide = scan_saved(p.cell) * D();
    return p.saved ? static_cast<T*>(p.saved) + at(t, row) * wide : unsaved + row * wide;
  }
  __device__ bool first(int64_t t, int64_t row) const { return p.is_first && p.is_first[at(t, row)]; }
  // The carry before step t as it was left, and both carries, zero where the step resets.
  __device__ const T* carry(int64_t t, int64_t row) const {
    return t > 0 ? static_cast<const T*>(p.output) + at(t - 1, row) * D() : static_cast<const T*>(p.h0) + row * D();
  }
  __device__ T h(int64_t t, int64_t row, int64_t i) const { return first(t, row) ? T{0} : carry(t, row)[i]; }
  __device__ T c(int64_t t, int64_t row, int64_t i) const {
    if (first(t, row)) return 0;
    if (t == 0) return static_cast<const T*>(p.c0)[row * D() + i];
    return p.cells ? static_cast<const T*>(p.cells)[at(t - 1, row) * D() + i]
                   : static_cast<const T*>(p.c_T)[row * D() + i];
  }
  __device__ void write(int64_t t, int64_t row, int64_t i, T value) const {
    static_cast<T*>(p.output)[at(t, row) * D() + i] = value;
    if (t + 1 == p.n.T) static_cast<T*>(p.h_T)[row * D() + i] = value;
  }
};

// The inputs of the gates at one element, beside the sums with the carry.
template <typename T>
struct Inputs {
  T x[kMaxGates], h, c, bias;
};

template <ScanCell cell, typename T, typename O>
__device__ Inputs<T> inputs(const Forward<T, O>& a, int64_t t, int64_t row, int64_t i) {
  Inputs<T> in{};
  const T* x = a.input(t, row) + i;
#pragma unroll
  for (int gate = 0; gate < scan_gates(cell); ++gate) in.x[gate] = x[gate * a.D()];
  in.h = a.h(t, row, i);
  if (cell == ScanCell::lstm) in.c = a.c(t, row, i);
  if (cell == ScanCell::gru && a.p.w.bias) in.bias = static_cast<const T*>(a.p.w.bias)[i];
  return in;
}

// The gates and the new carry from a step's sums, at one element.
template <ScanCell cell, typename T, typename O>
__device__ void gates(const Forward<T, O>& a, int64_t t, int64_t row, int64_t i, const Inputs<T>& in, const T* sums) {
  using Math = Activation<sizeof(O) == 2>;
  const int64_t D = a.D();
  const T* x = in.x;
  T* saved = a.saved(t, row) + i;
  if constexpr (cell == ScanCell::gru) {
    const T h_n = sums[2] + in.bias;
    const GruGates<T> y = gru_gates<Math>(x[0] + sums[0], x[1] + sums[1], x[2], h_n);
    saved[0] = y.reset, saved[D] = y.update, saved[2 * D] = y.cand, saved[3 * D] = h_n;
    a.write(t, row, i, gru_carry(y.update, y.cand, in.h));
  } else if constexpr (cell == ScanCell::lstm) {
    const bool ijfo = a.p.w.ijfo;
    const int64_t f = ijfo ? 2 : 1, g = 3 - f;
    LstmGates<T> all = lstm_order(x[0] + sums[0], x[1] + sums[1], x[2] + sums[2], x[3] + sums[3], ijfo);
    all.forget += static_cast<T>(a.p.w.gate_bias);
    const LstmGates<T> y = lstm_gates<Math>(all);
    const T c = lstm_cell(y.in, y.forget, y.cand, in.c);
    saved[0] = y.in, saved[f * D] = y.forget, saved[g * D] = y.cand, saved[3 * D] = y.out;
    if (a.p.cells) static_cast<T*>(a.p.cells)[a.at(t, row) * D + i] = c;
    if (!a.p.cells || t + 1 == a.p.n.T) static_cast<T*>(a.p.c_T)[row * D + i] = c;
    a.write(t, row, i, y.out * Math::tanh(c));
  } else if constexpr (cell == ScanCell::layernorm_gru) {
    for (int k = 0; k < 3; ++k) saved[k * D] = x[k] + sums[k];
  } else {
    saved[0] = Math::sigmoid(x[0] + sums[0]), saved[D] = Math::sigmoid(x[1] + sums[1]);
  }
}

// The stages of a step, for 16 rows.
template <ScanCell cell, typename T, typename O>
class ScanSteps {
  static constexpr int kGates = cell == ScanCell::lstm ? 4 : cell == ScanCell::planet_gru ? 2 : 3;
  using Product = TileProduct<O, kGates>;
  using Candidate = TileProduct<O>;
  using Row = typename Product::Row;

 public:
  union Shared {
    typename Product::Shared product;
    typename Candidate::Shared candidate;
  };

  __device__ ScanSteps(const Forward<T, O>& a, Barrier& barrier, Shared& shared, int64_t row_tile)
      : a_(a), barrier_(barrier), shared_(shared), at_(row_tile, a.p.n.B) {}

  __device__ void step(int64_t t) {
    const int D = static_cast<int>(a_.D());
    share_out(barrier_, tiles_of(D), [&](int tile, bool first) {
      Product product(shared_.product);
      const O* w[kGates];
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) w[gate] = a_.w[gate].tile(0, tile);
      auto weights = Product::template fetch<4>(w, D);
      const int column = tile * kTileColumns + at_.column, i = column < D ? column : D - 1;
      const bool reset[2] = {a_.first(t, at_.read[0]), a_.first(t, at_.read[1])};
      // A norm's new carry is another block's.
      Inputs<T> in;
      if (cell != ScanCell::layernorm_gru) in = inputs<cell>(a_, t, at_.row, i);
      if (first) barrier_.wait();
      if (cell == ScanCell::layernorm_gru) in = inputs<cell>(a_, t, at_.row, i);
      product.add(
          w, D, weights, [&](int half, int k) { return read_piece<Row>(a_.carry(t, at_.read[half]) + k); },
          [&](int half, int, const Row& x) { return reset[half] ? Row{} : x; }, [] {});
      T out[kGates];
      product.finish(out);
      if (column < D && at_.writes) gates<cell>(a_, t, at_.row, i, in, out);
    });
  }

  // PlaNet's candidate, from r h.
  __device__ void planet_candidate(int64_t t) {
    struct Pair {
      Row r, h;
    };
    const int D = static_cast<int>(a_.D());
    share_out(barrier_, tiles_of(D), [&](int tile, bool first) {
      Candidate product(shared_.candidate);
      const O* const w[1] = {a_.w[2].tile(0, tile)};
      auto weights = Candidate::template fetch<4>(w, D);
      const int column = tile * kTileColumns + at_.column, i = column < D ? column : D - 1;
      const bool reset[2] = {a_.first(t, at_.read[0]), a_.first(t, at_.read[1])};
      const T x = a_.input(t, at_.row)[2 * D + i], before = a_.h(t, at_.row, i);
      if (first) barrier_.wait();
      product.add(
          w, D, weights,
          [&](int half, int k) {
            return Pair{read_piece<Row>(a_.saved(t, at_.read[half]) + k),
                        read_piece<Row>(a_.carry(t, at_.read[half]) + k)};
          },
          [&](int half, int, const Pair& p) {
            return each<Row>([&](int e) { return reset[half] ? T{0} : p.r.x[e] * p.h.x[e]; });
          },
          [] {});
      T out[1];
      product.finish(out);
      if (column >= D || !at_.writes) return;
      T* saved = a_.saved(t, at_.row) + i;
      const T c = Activation<Product::kMma>::tanh(x + out[0]);
      saved[2 * D] = c;
      a_.write(t, at_.row, i, planet_carry(saved[D], c, before));
    });
  }

  // A tile is a row.
  __device__ void layernorm_gates(int64_t t) {
    const int64_t D = a_.D();
    const T *scale = static_cast<const T*>(a_.p.w.scale), *shift = static_cast<const T*>(a_.p.w.bias);
    const T bias = static_cast<T>(a_.p.w.gate_bias);
    share_out(barrier_, at_.rows.count, [&](int r, bool first) {
      const int64_t row = at_.rows.first + r;
      const T* x = a_.saved(t, row);
      if (first) barrier_.wait();
      const Norm<T> norm(x, 3 * D, static_cast<T>(a_.p.w.eps));
      for (int64_t i = threadIdx.x; i < D; i += kThreads) {
        T sums[3];
#pragma unroll
        for (int k = 0; k < 3; ++k)
          sums[k] = norm_gate(x[k * D + i], norm.mean, norm.rstd, scale[k * D + i], shift[k * D + i]).value;
        const BlockGruGates<T> y = block_gru_gates(sums[0], sums[1], sums[2] + bias);
        a_.write(t, row, i, mix(y.update, y.cand, a_.h(t, row, i)));
      }
    });
  }

 private:
  const Forward<T, O>& a_;
  Barrier& barrier_;
  Shared& shared_;
  const Places<Product> at_;
};

template <ScanCell cell, typename T, typename O>
__global__ void __launch_bounds__(kThreads, 1) scan_sequence(Forward<T, O> a, Formation formation) {
  __shared__ typename ScanSteps<cell, T, O>::Shared shared;
  Barrier barrier(formation);
  for (int64_t tile = blockIdx.y; tile < row_tiles(a.p.n.B); tile += gridDim.y) {
    ScanSteps<cell, T, O> steps(a, barrier, shared, tile);
    for (int64_t t = 0; t < a.p.n.T; ++t) {
      steps.step(t);
      if constexpr (cell == ScanCell::layernorm_gru) steps.layernorm_gates(t);
      if constexpr (cell == ScanCell::planet_gru) steps.planet_candidate(t);
    }
  }
  barrier.wait();  // a cluster's blocks end together
}

template <typename T, typename O>
Forward<T, O> arrange(const Scan& p, Scratch& scratch) {
  Forward<T, O> a{p, {}, nullptr, nullptr};
  for (int gate = 0; gate < scan_gates(p.cell); ++gate) {
    a.w[gate] = {nullptr, 1, p.n.D, p.n.D};
    scratch.take(a.w[gate]);
  }
  a.unsaved = scratch.take<T>(p.saved ? 0 : p.n.B * scan_saved(p.cell) * p.n.D);
  a.arrived = scratch.take<unsigned>(row_tiles(p.n.B));
  return a;
}

template <ScanCell cell, typename T, typename O>
const char* scan(const Scan& p, cudaStream_t on) {
  Scratch scratch{static_cast<unsigned char*>(p.scratch)};
  const Forward<T, O> a = arrange<T, O>(p, scratch);
  Packings<O> packings;
  for (int gate = 0; gate < scan_gates(cell); ++gate) {
    const Weight& all = p.w.gates;
    packings.add({static_cast<const T*>(all.data) + gate * all.sg, 0, all.sk, all.sn}, 0, a.w[gate]);
  }
  pack<T>(packings, on);
  return launch_together(scan_sequence<cell, T, O>, a, a.w[0].tiles(), row_tiles(p.n.B), a.arrived, on);
}

}  // namespace

int64_t scan_scratch(const Scan& p) {
  Scratch scratch{nullptr};
  by_type(p, [&](auto t, auto o) { arrange<decltype(t), decltype(o)>(p, scratch); });
  return scratch.used;
}

const char* scan_kernel(const Scan& p, void* stream) {
  if (p.n.B == 0) return nullptr;
  const char* error = nullptr;
  by_type(p, [&](auto t, auto o) {
    by_cell(p.cell, [&](auto cell) {
      error = scan<decltype(cell)::value, decltype(t), decltype(o)>(p, static_cast<cudaStream_t>(stream));
    });
  });
  return error;
}

}  // namespace fastwm::cuda
