#include "primitives/linear.h"
#include "primitives/norms.h"
#include "primitives/pack.h"
#include "primitives/weight_grads.h"
#include "mlp_layers.h"
#include "fastwm/params/mlp.h"
#include "fastwm/parallel.h"

namespace fastwm::FASTWM_ISA {
namespace {

constexpr int64_t kTile = 64;  // rows that pass through all layers while they are in cache

// Whether the zeros of a latent cost less in a product than looking for what is not zero: in bfloat16, where it is short.
template <typename O>
bool is_dense(int64_t Z) {
  return sizeof(O) == 2 && Z <= 128;
}

template <typename T>
LayerNorm norm_of(const MlpLayers& n, int64_t layer) {
  const T* scale = layer == 0 ? ptr<T>(n.norm) : ptr<T>(n.norms) + (layer - 1) * n.k * n.U;
  return n.k ? LayerNorm{scale, scale + n.U} : LayerNorm{};
}

// Norm and activation of some rows of a layer.
template <typename T, typename O, typename Params>
void activate(const Params& p, int64_t layer, int64_t rows, const T* pre, O* act) {
  const int64_t U = p.net.U;
  const LayerNorm norm = norm_of<T>(p.net, layer);
  const T eps = static_cast<T>(p.eps);
  if (p.net.k == 1) {
    rms_silu(rows, U, pre, U, ptr<T>(norm.scale), eps, act, U);
    return;
  }
  with_activation(p.activation, [&](auto f) {
    for (int64_t r = 0; r < rows; ++r) layer_row<decltype(f)::value>(U, pre + r * U, norm, eps, act + r * U);
  });
}

// From d_act, which is overwritten, to d_pre; adds to the norm's gradients, and computes act again.
template <typename T>
void activate_backward(const MlpBackward& p, int64_t layer, int64_t rows, const T* pre, T* d_act, T* d_pre, T* act,
                       T* d_norm) {
  const int64_t U = p.net.U;
  const LayerNorm norm = norm_of<T>(p.net, layer);
  const T eps = static_cast<T>(p.eps);
  if (p.net.k == 1) {
    rms_silu_backward(rows, U, pre, ptr<T>(norm.scale), eps, d_act, d_pre, act, d_norm);
    return;
  }
  with_activation(p.activation, [&](auto f) {
    for (int64_t r = 0; r < rows; ++r)
      layer_row_backward<decltype(f)::value>(U, pre + r * U, norm, eps, d_act + r * U, d_pre + r * U, act + r * U,
                                             d_norm);
  });
}

template <typename T, typename O>
class Forward {
 public:
  explicit Forward(const Mlp& p)
      : p_(p), n_(p.net), dense_(is_dense<O>(p_.Z) ? p_.Z : 0), first_{1, p_.D + dense_, n_.U}, rest_{n_.L, n_.U, n_.U},
        out_{1, n_.U, n_.O}, packings_{{{&first_, n_.w}, {&rest_, n_.ws}, {&out_, n_.w_out}}, 3},
        arena_([this](Arena& a) {
          packings_.place(a);
          sparse_ = a.take<T>((p_.Z - dense_) * n_.U);
        }) {
    packings_.pack(max_threads());
    pack_rows(n_.w, p_.D + dense_, p_.Z - dense_, n_.U, sparse_);
  }

  void run() const {
    const int64_t tiles = (p_.rows + kTile - 1) / kTile;
#pragma omp parallel for schedule(dynamic) if (p_.rows * mlp_weights(n_) > kColumnWork)
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t row = tile * kTile;
      run(row, p_.rows - row < kTile ? p_.rows - row : kTile);
    }
  }

 private:
  void run(int64_t row, int64_t rows) const {
    const int64_t U = n_.U, D = p_.D, Z = p_.Z;
    const AmxTiles tiles(use_amx<O>(), rows);
    O *x, *act;
    T* scratch;
    int32_t* at;
    const Arena arena([&](Arena& a) {
      x = a.take<O>(operand_size<T, O>(rows * (D + dense_)));
      act = a.take<O>(rows * U);
      scratch = a.take<T>(rows * U);
      at = a.take<int32_t>(Z + kVectorBytes);
    });
    for (int64_t i = 0; i < layers_; ++i) {
      T* pre = p_.pre ? ptr<T>(p_.pre) + (i * p_.rows + row) * U : scratch;
      if (i == 0) {
        linear(rows, inputs(row, rows, x), D + dense_, first_, 0, ptr<T>(n_.b), pre, U);
        for (int64_t r = 0; r < rows && dense_ == 0; ++r) {
          const T* z = ptr<T>(p_.z) + (row + r) * Z;
          add_gathered(nonzeros(Z, z, at), at, z, sparse_, U, pre + r * U);
        }
      } else {
        linear(rows, act, U, rest_, i - 1, ptr<T>(n_.bs) + (i - 1) * U, pre, U);
      }
      activate(p_, i, rows, static_cast<const T*>(pre), act);
    }
    linear(rows, act, U, out_, 0, ptr<T>(n_.b_out), ptr<T>(p_.y) + row * n_.O, n_.O);
  }

  // The rows that the first layer multiplies, [rows, D + dense].
  const O* inputs(int64_t row, int64_t rows, O* scratch) const {
    const int64_t D = p_.D, Z = p_.Z;
    if (dense_ == 0) return as_operand(rows * D, ptr<T>(p_.x) + row * D, scratch);
    for (int64_t r = 0; r < rows; ++r) {
      convert(D, ptr<T>(p_.x) + (row + r) * D, scratch + r * (D + Z));
      convert(Z, ptr<T>(p_.z) + (row + r) * Z, scratch + r * (D + Z) + D);
    }
    return scratch;
  }

  const Mlp& p_;
  const MlpLayers& n_;
  const int64_t layers_ = 1 + n_.L;
  const int64_t dense_;  // the latent's columns, where they are part of the product
  Packed<O> first_, rest_, out_;
  const Packings<O> packings_;
  T* sparse_;  // [Z, U], rows to be gathered, where it is not
  Arena arena_;
};

// Chunk by chunk, rows go down through the layers, then into the weights' gradients. Small gradients are summed by parts of
// the rows, which share nothing, and added up in order; large ones by all threads, which share the rows on the way
// down, then the columns. Each sum has one order, whatever the number of threads.
template <typename T, typename O>
class Backward {
  static constexpr int64_t kRows = kChunk<O>, kTiles = kRows / kTile, kMostParts = 16;

 public:
  explicit Backward(const MlpBackward& p)
      : p_(p), n_(p.net), U_(p.net.U), norm_(p.net.k * p.net.U), sums_(p.d_weights ? mlp_weights(p.net) : 0),
        parts_(sums_ * static_cast<int64_t>(sizeof(T)) <= kOwnCache ? parts_of(p.rows) : 1), out_{1, n_.O, U_},
        rest_{n_.L, U_, U_}, x_{1, U_, p.d_x ? p.D : 0}, z_{1, U_, p.d_z ? p.Z : 0},
        packings_{{{&out_, n_.w_out.transposed()},
                   {&rest_, n_.ws.transposed()},
                   {&x_, n_.w.transposed()},
                   {&z_, {ptr<T>(n_.w.data) + p_.D * n_.w.sk, 0, n_.w.sn, n_.w.sk}}},
                  4},
        arena_([this](Arena& a) { packings_.place(a); }) {
    packings_.pack(max_threads());
  }

  void run() {
    if (parts_ == 1) {
      Sums sums(*this, ptr<T>(p_.d_weights));
      Barrier barrier;
#pragma omp parallel if (p_.rows * mlp_weights(n_) > kColumnWork)
      run(team_of_all(&barrier), sums, 0, p_.rows);
      return;
    }
    T *all = ptr<T>(p_.d_weights), *more;
    const Arena arena([&](Arena& a) { more = a.take<T>((parts_ - 1) * sums_); });
#pragma omp parallel for schedule(static) if (p_.rows * mlp_weights(n_) > kColumnWork)
    for (int64_t part = 0; part < parts_; ++part) {
      Sums sums(*this, !all ? nullptr : part == 0 ? all : more + (part - 1) * sums_);
      const int64_t chunks = (p_.rows + kRows - 1) / kRows;
      const int64_t first = chunks * part / parts_ * kRows, end = chunks * (part + 1) / parts_ * kRows;
      run(Team{0, 1, nullptr}, sums, first, end < p_.rows ? end : p_.rows);
    }
#pragma omp parallel for simd schedule(static) if (parts_ * sums_ > kParallelElements)
    for (int64_t i = 0; i < sums_; ++i)
      for (int64_t part = 1; part < parts_; ++part) all[i] += more[(part - 1) * sums_ + i];
  }

 private:
  // Parts of the rows, at least a chunk each.
  static int64_t parts_of(int64_t rows) {
    const int64_t chunks = (rows + kRows - 1) / kRows;
    return chunks < 1 ? 1 : chunks < kMostParts ? chunks : kMostParts;
  }

  // Where some rows' gradients are summed, and a chunk of them at work.
  struct Sums {
    const Backward& of;
    MlpGrads<T> grads;
    T *d_pre, *act;  // [count, kRows, U]
    T* norms;        // [kTiles, count, norms, U]: each tile's share of the norms' gradients
    T* sparse;       // [Z, U], the gradient of the first layer's rows for z
    Arena arena;

    Sums(const Backward& b, T* all)
        : of(b), grads(b.n_, b.p_.Z, all), arena([&](Arena& a) {
            for (T** chunk : {&d_pre, &act}) *chunk = a.take<T>(b.layers_ * kRows * b.U_);
            norms = a.take<T>(kTiles * b.layers_ * b.norm_);
            sparse = a.take_zeros<T>(b.p_.Z * b.U_);
          }) {
      if (all) std::memset(all, 0, b.sums_ * sizeof(T));
    }
    T* of_layer(T* chunk, int64_t layer) const { return chunk + layer * kRows * of.U_; }
  };

  void run(Team team, const Sums& sums, int64_t begin, int64_t end) const {
    O *o_grad, *o_pre, *panel;
    T* d_act;
    int32_t* at;
    const Arena arena([&](Arena& a) {
      o_grad = a.take<O>(kTile * n_.O);
      o_pre = a.take<O>(kTile * U_);
      d_act = a.take<T>(kTile * U_);
      at = a.take<int32_t>(p_.Z + kVectorBytes);
      panel = a.take<O>(GradGemm<T, O>::scratch(n_.O > U_ ? n_.O : U_, kRows));
    });
    for (int64_t row = begin; row < end; row += kRows) {
      const int64_t rows = end - row < kRows ? end - row : kRows;
      const Range tiles = team.range((rows + kTile - 1) / kTile);
      for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
        const int64_t slot = tile * kTile;
        down(sums, row + slot, slot, rows - slot < kTile ? rows - slot : kTile, o_grad, o_pre, d_act);
      }
      team.wait();
      if (!p_.d_weights) continue;
      weights(team, sums, row, rows, at, panel);
      team.wait();
    }
    if (!p_.d_weights) return;
    const Range units = team.range(is_dense<O>(p_.Z) ? 0 : U_);
    for (int64_t u = units.first; u < units.last; ++u)
      for (int64_t z = 0; z < p_.Z; ++z) sums.grads.w_z[u * p_.Z + z] = sums.sparse[z * U_ + u];
  }

  // From the gradient of the output to those of all layers, for one tile: rows `row`.., at `slot` of the chunk.
  void down(const Sums& s, int64_t row, int64_t slot, int64_t rows, O* o_grad, O* o_pre, T* d_act) const {
    const AmxTiles tiles(use_amx<O>(), rows);
    const T* no_bias = nullptr;
    T* norms = s.norms + slot / kTile * layers_ * norm_;
    std::memset(norms, 0, layers_ * norm_ * sizeof(T));
    linear(rows, as_operand(rows * n_.O, ptr<T>(p_.grad) + row * n_.O, o_grad), n_.O, out_, 0, no_bias, d_act, U_);
    for (int64_t i = layers_ - 1; i >= 0; --i) {
      T* d_pre = s.of_layer(s.d_pre, i) + slot * U_;
      activate_backward(p_, i, rows, ptr<T>(p_.pre) + (i * p_.rows + row) * U_, d_act, d_pre,
                        s.of_layer(s.act, i) + slot * U_, norms + i * norm_);
      const O* d = as_operand(rows * U_, static_cast<const T*>(d_pre), o_pre);
      if (i > 0) {
        linear(rows, d, U_, rest_, i - 1, no_bias, d_act, U_);
      } else {
        if (p_.d_x) linear(rows, d, U_, x_, 0, no_bias, ptr<T>(p_.d_x) + row * p_.D, p_.D);
        if (p_.d_z) linear(rows, d, U_, z_, 0, no_bias, ptr<T>(p_.d_z) + row * p_.Z, p_.Z);
      }
    }
  }

  GradProduct<T> product(const Sums& s, int64_t i, int64_t row) const {  // of layer i; the last is the output
    const int64_t last = layers_;
    if (i == 0) return {1, U_, p_.D, s.d_pre, U_, 0, ptr<T>(p_.x) + row * p_.D, p_.D, s.grads.w_x};
    const T* act = s.of_layer(s.act, i - 1);
    if (i == last) return {1, n_.O, U_, ptr<T>(p_.grad) + row * n_.O, n_.O, 0, act, U_, s.grads.w_out};
    return {1, U_, U_, s.of_layer(s.d_pre, i), U_, 0, act, U_, s.grads.ws + (i - 1) * U_ * U_};
  }

  void weights(Team team, const Sums& s, int64_t row, int64_t rows, int32_t* at, O* panel) const {
    const AmxTiles tiles(use_amx<O>(), rows);
    for (int64_t i = 0; i <= layers_; ++i) add_product(product(s, i, row), rows, team, panel);
    const Range units = team.range(U_);
    for (int64_t i = 0; i < layers_; ++i) {
      add_columns(rows, s.of_layer(s.d_pre, i), U_, U_, s.grads.bs + i * U_, team);
      add_columns((rows + kTile - 1) / kTile, s.norms + i * norm_, norm_, layers_ * norm_, s.grads.norms + i * norm_,
                  team);
    }
    add_columns(rows, ptr<T>(p_.grad) + row * n_.O, n_.O, n_.O, s.grads.b_out, team);
    if (is_dense<O>(p_.Z)) {
      const GradProduct<T> latent{1, U_, p_.Z, s.d_pre, U_, 0, ptr<T>(p_.z) + row * p_.Z, p_.Z, s.grads.w_z};
      return add_product(latent, rows, team, panel);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const T* z = ptr<T>(p_.z) + (row + r) * p_.Z;
      scatter_rows(nonzeros(p_.Z, z, at), at, z, s.d_pre + r * U_ + units.first, units.last - units.first, U_,
                   s.sparse + units.first);
    }
  }

  const MlpBackward& p_;
  const MlpLayers& n_;
  const int64_t layers_ = 1 + n_.L;
  const int64_t U_, norm_;      // units; numbers of a layer's norm
  const int64_t sums_, parts_;  // numbers in all gradients; parts of the rows that sum for themselves
  Packed<O> out_, rest_, x_, z_;
  const Packings<O> packings_;
  Arena arena_;
};

}  // namespace

void mlp_kernel(const Mlp& p) {
  with_types(p, [&](auto t, auto o) { Forward<decltype(t), decltype(o)>(p).run(); });
}

void mlp_backward_kernel(const MlpBackward& p) {
  with_types(p, [&](auto t, auto o) { Backward<decltype(t), decltype(o)>(p).run(); });
}

}  // namespace fastwm::FASTWM_ISA
