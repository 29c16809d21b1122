#include "primitives/linear.h"
#include "primitives/norms.h"
#include "primitives/pack.h"
#include "primitives/weight_grads.h"
#include "fastwm/mlp.h"
#include "fastwm/parallel.h"

namespace fastwm::FASTWM_ISA {
namespace {

constexpr int64_t kTile = 64;  // rows that pass through all layers while they are in cache

// Whether the zeros of a latent cost less in a product than looking for what is not zero: in bfloat16, where it is short.
template <typename O>
bool is_dense(const MlpLayers& n) {
  return sizeof(O) == 2 && n.Z <= 128;
}

template <typename T>
LayerNorm norm_of(const MlpLayers& n, int64_t layer) {
  const T* scale = layer == 0 ? ptr<T>(n.first.norm) : ptr<T>(n.rest.norm) + (layer - 1) * n.norms * n.U();
  return n.norms ? LayerNorm{scale, scale + n.U()} : LayerNorm{};
}

// Norm and activation of some rows of a layer.
template <typename T, typename O>
void activate(const MlpLayers& n, int64_t layer, int64_t rows, const T* pre, O* act) {
  const int64_t U = n.U();
  const LayerNorm norm = norm_of<T>(n, layer);
  const T eps = static_cast<T>(n.eps);
  if (n.norms == 1) {
    rms_silu(rows, U, pre, U, ptr<T>(norm.scale), eps, act, U);
    return;
  }
  with_activation(n.activation, [&](auto f) {
    for (int64_t r = 0; r < rows; ++r) layer_row<decltype(f)::value>(U, pre + r * U, norm, eps, act + r * U);
  });
}

// From d_act, which is overwritten, to d_pre; adds to the norm's gradients, and computes act again.
template <typename T>
void activate_backward(const MlpLayers& n, int64_t layer, int64_t rows, const T* pre, T* d_act, T* d_pre, T* act,
                       T* d_norm) {
  const int64_t U = n.U();
  const LayerNorm norm = norm_of<T>(n, layer);
  const T eps = static_cast<T>(n.eps);
  if (n.norms == 1) {
    rms_silu_backward(rows, U, pre, ptr<T>(norm.scale), eps, d_act, d_pre, act, d_norm);
    return;
  }
  with_activation(n.activation, [&](auto f) {
    for (int64_t r = 0; r < rows; ++r)
      layer_row_backward<decltype(f)::value>(U, pre + r * U, norm, eps, d_act + r * U, d_pre + r * U, act + r * U,
                                             d_norm);
  });
}

template <typename T, typename O>
class Forward {
 public:
  explicit Forward(const Mlp& p)
      : p_(p), n_(p.n), dense_(is_dense<O>(n_) ? n_.Z : 0), first_{1, n_.D + dense_, n_.U()},
        rest_{n_.rest.count, n_.U(), n_.U()}, out_{1, n_.U(), n_.O},
        packings_{{{&first_, n_.first.w}, {&rest_, n_.rest.w}, {&out_, n_.out}}, 3}, arena_([this](Arena& a) {
          packings_.place(a);
          sparse_ = a.take<T>((n_.Z - dense_) * n_.U());
        }) {
    packings_.pack(max_threads());
    pack_rows(n_.first.w, n_.D + dense_, n_.Z - dense_, n_.U(), sparse_);
  }

  void run() const {
    const int64_t tiles = (p_.rows + kTile - 1) / kTile;
#pragma omp parallel for schedule(dynamic) if (p_.rows * n_.weights() > kColumnWork)
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t row = tile * kTile;
      run(row, p_.rows - row < kTile ? p_.rows - row : kTile);
    }
  }

 private:
  void run(int64_t row, int64_t rows) const {
    const int64_t U = n_.U(), D = n_.D, Z = n_.Z;
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
    for (int64_t i = 0; i < n_.count(); ++i) {
      T* pre = p_.pre ? ptr<T>(p_.pre) + (i * p_.rows + row) * U : scratch;
      if (i == 0) {
        linear(rows, inputs(row, rows, x), D + dense_, first_, 0, ptr<T>(n_.first.bias), pre, U);
        for (int64_t r = 0; r < rows && dense_ == 0; ++r) {
          const T* z = ptr<T>(p_.z) + (row + r) * Z;
          add_gathered(nonzeros(Z, z, at), at, z, sparse_, U, pre + r * U);
        }
      } else {
        linear(rows, act, U, rest_, i - 1, ptr<T>(n_.rest.bias) + (i - 1) * U, pre, U);
      }
      activate(n_, i, rows, static_cast<const T*>(pre), act);
    }
    linear(rows, act, U, out_, 0, ptr<T>(n_.b_out), ptr<T>(p_.y) + row * n_.O, n_.O);
  }

  // The rows that the first layer multiplies, [rows, D + dense].
  const O* inputs(int64_t row, int64_t rows, O* scratch) const {
    const int64_t D = n_.D, Z = n_.Z;
    if (dense_ == 0) return as_operand(rows * D, ptr<T>(p_.x) + row * D, scratch);
    for (int64_t r = 0; r < rows; ++r) {
      convert(D, ptr<T>(p_.x) + (row + r) * D, scratch + r * (D + Z));
      convert(Z, ptr<T>(p_.z) + (row + r) * Z, scratch + r * (D + Z) + D);
    }
    return scratch;
  }

  const Mlp& p_;
  const MlpLayers& n_;
  const int64_t dense_;  // the latent's columns, where they are part of the product
  Packed<O> first_, rest_, out_;
  const Packings<O> packings_;
  T* sparse_;  // [Z, U], rows to be gathered, where it is not
  Arena arena_;
};

template <typename T>
struct Grads {
  T *w_x, *w_z, *ws, *w_out, *bs, *b_out, *norms;

  Grads(const MlpLayers& n, T* all) {
    const auto take = [&all](int64_t size) { return (all += size) - size; };
    w_x = take(n.U() * n.D), w_z = take(n.U() * n.Z), ws = take(n.rest.count * n.U() * n.U());
    w_out = take(n.O * n.U()), bs = take(n.count() * n.U()), b_out = take(n.O),
    norms = take(n.count() * n.norms * n.U());
  }
};

// Chunk by chunk, rows go down through the layers, then into the weights' gradients. Small gradients are summed by parts of
// the rows, which share nothing, and added up in order; large ones by all threads, which share the rows on the way
// down, then the columns. Each sum has one order, whatever the number of threads.
template <typename T, typename O>
class Backward {
  static constexpr int64_t kRows = kChunk<O>, kTiles = kRows / kTile, kMostParts = 16;

 public:
  explicit Backward(const MlpBackward& p)
      : p_(p), n_(p.n), U_(p.n.U()), norm_(p.n.norms * p.n.U()), sums_(p.d_weights ? p.n.weights() : 0),
        parts_(sums_ * static_cast<int64_t>(sizeof(T)) <= kOwnCache ? parts_of(p.rows) : 1), out_{1, n_.O, U_},
        rest_{n_.rest.count, U_, U_}, x_{1, U_, p.d_x ? n_.D : 0}, z_{1, U_, p.d_z ? n_.Z : 0},
        packings_{{{&out_, n_.out.transposed()},
                   {&rest_, n_.rest.w.transposed()},
                   {&x_, n_.first.w.transposed()},
                   {&z_, {ptr<T>(n_.first.w.data) + n_.D * n_.first.w.sk, 0, n_.first.w.sn, n_.first.w.sk}}},
                  4},
        arena_([this](Arena& a) { packings_.place(a); }) {
    packings_.pack(max_threads());
  }

  void run() {
    if (parts_ == 1) {
      Sums sums(*this, ptr<T>(p_.d_weights));
      Barrier barrier;
#pragma omp parallel if (p_.rows * n_.weights() > kColumnWork)
      run(team_of_all(&barrier), sums, 0, p_.rows);
      return;
    }
    T *all = ptr<T>(p_.d_weights), *more;
    const Arena arena([&](Arena& a) { more = a.take<T>((parts_ - 1) * sums_); });
#pragma omp parallel for schedule(static) if (p_.rows * n_.weights() > kColumnWork)
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
    Grads<T> grads;
    T *d_pre, *act;  // [count, kRows, U]
    T* norms;        // [kTiles, count, norms, U]: each tile's share of the norms' gradients
    T* sparse;       // [Z, U], the gradient of the first layer's rows for z
    Arena arena;

    Sums(const Backward& b, T* all)
        : of(b), grads(b.n_, all), arena([&](Arena& a) {
            for (T** chunk : {&d_pre, &act}) *chunk = a.take<T>(b.n_.count() * kRows * b.U_);
            norms = a.take<T>(kTiles * b.n_.count() * b.norm_);
            sparse = a.take_zeros<T>(b.n_.Z * b.U_);
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
      at = a.take<int32_t>(n_.Z + kVectorBytes);
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
    const Range units = team.range(is_dense<O>(n_) ? 0 : U_);
    for (int64_t u = units.first; u < units.last; ++u)
      for (int64_t z = 0; z < n_.Z; ++z) sums.grads.w_z[u * n_.Z + z] = sums.sparse[z * U_ + u];
  }

  // From the gradient of the output to those of all layers, for one tile: rows `row`.., at `slot` of the chunk.
  void down(const Sums& s, int64_t row, int64_t slot, int64_t rows, O* o_grad, O* o_pre, T* d_act) const {
    const AmxTiles tiles(use_amx<O>(), rows);
    const T* no_bias = nullptr;
    T* norms = s.norms + slot / kTile * n_.count() * norm_;
    std::memset(norms, 0, n_.count() * norm_ * sizeof(T));
    linear(rows, as_operand(rows * n_.O, ptr<T>(p_.grad) + row * n_.O, o_grad), n_.O, out_, 0, no_bias, d_act, U_);
    for (int64_t i = n_.count() - 1; i >= 0; --i) {
      T* d_pre = s.of_layer(s.d_pre, i) + slot * U_;
      activate_backward(n_, i, rows, ptr<T>(p_.pre) + (i * p_.rows + row) * U_, d_act, d_pre,
                        s.of_layer(s.act, i) + slot * U_, norms + i * norm_);
      const O* d = as_operand(rows * U_, static_cast<const T*>(d_pre), o_pre);
      if (i > 0) {
        linear(rows, d, U_, rest_, i - 1, no_bias, d_act, U_);
      } else {
        if (p_.d_x) linear(rows, d, U_, x_, 0, no_bias, ptr<T>(p_.d_x) + row * n_.D, n_.D);
        if (p_.d_z) linear(rows, d, U_, z_, 0, no_bias, ptr<T>(p_.d_z) + row * n_.Z, n_.Z);
      }
    }
  }

  GradProduct<T> product(const Sums& s, int64_t i, int64_t row) const {  // of layer i; the last is the output
    const int64_t last = n_.count();
    if (i == 0) return {1, U_, n_.D, s.d_pre, U_, 0, ptr<T>(p_.x) + row * n_.D, n_.D, s.grads.w_x};
    const T* act = s.of_layer(s.act, i - 1);
    if (i == last) return {1, n_.O, U_, ptr<T>(p_.grad) + row * n_.O, n_.O, 0, act, U_, s.grads.w_out};
    return {1, U_, U_, s.of_layer(s.d_pre, i), U_, 0, act, U_, s.grads.ws + (i - 1) * U_ * U_};
  }

  void weights(Team team, const Sums& s, int64_t row, int64_t rows, int32_t* at, O* panel) const {
    const AmxTiles tiles(use_amx<O>(), rows);
    for (int64_t i = 0; i <= n_.count(); ++i) add_product(product(s, i, row), rows, team, panel);
    const Range units = team.range(U_);
    for (int64_t i = 0; i < n_.count(); ++i) {
      add_columns(rows, s.of_layer(s.d_pre, i), U_, U_, s.grads.bs + i * U_, team);
      add_columns((rows + kTile - 1) / kTile, s.norms + i * norm_, norm_, n_.count() * norm_, s.grads.norms + i * norm_,
                  team);
    }
    add_columns(rows, ptr<T>(p_.grad) + row * n_.O, n_.O, n_.O, s.grads.b_out, team);
    if (is_dense<O>(n_)) {
      const GradProduct<T> latent{1, U_, n_.Z, s.d_pre, U_, 0, ptr<T>(p_.z) + row * n_.Z, n_.Z, s.grads.w_z};
      return add_product(latent, rows, team, panel);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const T* z = ptr<T>(p_.z) + (row + r) * n_.Z;
      scatter_rows(nonzeros(n_.Z, z, at), at, z, s.d_pre + r * U_ + units.first, units.last - units.first, U_,
                   s.sparse + units.first);
    }
  }

  const MlpBackward& p_;
  const MlpLayers& n_;
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
