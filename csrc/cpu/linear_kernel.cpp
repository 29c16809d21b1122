#include "primitives/linear.h"
#include "primitives/pack.h"
#include "primitives/weight_grads.h"
#include "fastwm/params/linear.h"

namespace fastwm::FASTWM_ISA {
namespace {

constexpr int64_t kTile = 64;  // rows that read the weights together

// Packs the weight and calls body(first row, number of rows) for every tile of rows.
template <typename O, typename Body>
void for_each_tile(const LinearLayer& n, Packed<O> packed, const Weight& weight, Body body) {
  const int threads = max_threads();
  Packings<O> packings;
  packings.add(packed, weight);
  const Arena arena([&](Arena& a) { packings.place(a); });
  packings.pack(threads);
#pragma omp parallel num_threads(threads) if (n.rows * n.size() > kColumnWork)
  {
    const AmxTiles tiles(use_amx<O>(), n.rows < kTile ? n.rows : kTile);
#pragma omp for schedule(dynamic)
    for (int64_t row = 0; row < n.rows / kTile * kTile; row += kTile) body(packed, row, kTile);
  }
  const int64_t rest = n.rows % kTile;
  const AmxTiles tiles(use_amx<O>(), rest);
  if (rest > 0) body(packed, n.rows - rest, rest);
}

template <typename T, typename O>
void forward(const Linear& p) {
  const LinearLayer& n = p.layer;
  const int64_t N = n.N();
  for_each_tile<O>(n, {n.G, n.K, n.J}, n.w, [&](const Packed<O>& w, int64_t row, int64_t rows) {
    O* scratch;
    const Arena arena([&](Arena& a) { scratch = a.take<O>(operand_size<T, O>(rows * n.K)); });
    const O* x = as_operand(rows * n.K, ptr<T>(p.x) + row * n.K, scratch);
    for (int64_t task = 0; task < w.tasks(); ++task) {
      const int64_t panel = task % w.panels(), column = task / w.panels() * n.J + panel * kPanelOf<O>;
      const Start<T> start{p.bias ? ptr<T>(p.bias) + column : nullptr, 0};
      multiply(rows, x, n.K, w, task, start, ptr<T>(p.y) + row * N + column, N);
    }
  });
}

template <typename T, typename O>
void input_grad(const LinearBackward& p) {
  const LinearLayer& n = p.layer;
  const int64_t N = n.N();
  for_each_tile<O>(n, {n.G, n.J, n.K}, n.w.transposed(), [&](const Packed<O>& w, int64_t row, int64_t rows) {
    O* scratch;
    const Arena arena([&](Arena& a) { scratch = a.take<O>(operand_size<T, O>(rows * N)); });
    const O* grad = as_operand(rows * N, ptr<T>(p.grad) + row * N, scratch);
    for (int64_t panel = 0; panel < w.panels(); ++panel) {
      T* d_x = ptr<T>(p.d_x) + row * n.K + panel * kPanelOf<O>;
      for (int64_t g = 0; g < n.G; ++g)
        multiply(rows, grad + g * n.J, N, w, g * w.panels() + panel, Start<T>{g > 0 ? d_x : nullptr, n.K}, d_x, n.K);
    }
  });
}

// Chunk by chunk of rows; what a thread sums is its own.
template <typename T, typename O>
void weight_grad(const LinearBackward& p) {
  const LinearLayer& n = p.layer;
  const int64_t N = n.N();
  if (n.rows == 0) std::memset(p.d_weight, 0, n.size() * sizeof(T));
  std::memset(p.d_bias, 0, N * sizeof(T));
#pragma omp parallel if (n.rows * n.size() > kColumnWork)
  {
    const Team team = team_of_all();
    const int64_t most = n.rows < kChunk<O> ? n.rows : kChunk<O>;
    O* scratch;
    const Arena arena([&](Arena& a) { scratch = a.take<O>(GradGemm<T, O>::scratch(n.out_in ? N : n.K, most)); });
    const AmxTiles tiles(use_amx<O>(), most);
    for (int64_t row = 0; row < n.rows; row += most) {
      const int64_t rows = n.rows - row < most ? n.rows - row : most;
      const T *x = ptr<T>(p.x) + row * n.K, *grad = ptr<T>(p.grad) + row * N;
      add_product(n.out_in ? GradProduct<T>{1, N, n.K, grad, N, 0, x, n.K, ptr<T>(p.d_weight), row == 0}
                           : GradProduct<T>{n.G, n.K, n.J, x, n.K, 0, grad, N, ptr<T>(p.d_weight), row == 0},
                  rows, team, scratch);
      add_columns(rows, grad, N, N, ptr<T>(p.d_bias), team);
    }
  }
}

}  // namespace

void linear_kernel(const Linear& p) {
  with_types(p.layer, [&](auto t, auto o) { forward<decltype(t), decltype(o)>(p); });
}

void linear_backward_kernel(const LinearBackward& p) {
  with_types(p.layer, [&](auto t, auto o) {
    if (p.d_x) input_grad<decltype(t), decltype(o)>(p);
    if (p.d_weight) weight_grad<decltype(t), decltype(o)>(p);
  });
}

}  // namespace fastwm::FASTWM_ISA
