#include "fastwm/laprop.h"

#include "fastwm/parallel.h"

namespace fastwm::FASTWM_ISA {
namespace {

// Tensors are taken in waves of about this many elements, which stay in cache between norm and update.
constexpr int64_t kWave = 131072;

template <typename A>
double sum_of_squares(const A* x, int64_t n) {
  const int64_t quarter = n / 4;  // four running sums, because one would wait for itself
  A a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
  for (int64_t i = 0; i < quarter; ++i) {
    a += x[i] * x[i];
    b += x[i + quarter] * x[i + quarter];
    c += x[i + 2 * quarter] * x[i + 2 * quarter];
    d += x[i + 3 * quarter] * x[i + 3 * quarter];
  }
  for (int64_t i = 4 * quarter; i < n; ++i) a += x[i] * x[i];
  return static_cast<double>((a + b) + (c + d));
}

struct Piece {
  const LaPropTensor* tensor;
  int64_t first, count;  // elements

  Piece(const LaProp& p, int64_t begin, int64_t end, int64_t chunk)
      : tensor(p.tensors + tensor_of_chunk(p.tensors, begin, end, chunk)),
        first((chunk - tensor->first_chunk) * kChunk),
        count(tensor->count - first < kChunk ? tensor->count - first : kChunk) {}
};

template <typename A>
void measure(const LaProp& p, const Piece& piece, int64_t chunk) {
  p.squares[2 * chunk] = sum_of_squares(static_cast<const A*>(piece.tensor->param) + piece.first, piece.count);
  p.squares[2 * chunk + 1] = sum_of_squares(static_cast<const A*>(piece.tensor->grad) + piece.first, piece.count);
}

double clip_scale(const LaProp& p, const LaPropTensor& tensor) {
  if (p.agc == 0) return 1;
  double params = 0, grads = 0;
  const int64_t end = tensor.first_chunk + laprop_chunks(tensor.count);
  for (int64_t chunk = tensor.first_chunk; chunk < end; ++chunk) {
    params += p.squares[2 * chunk];
    grads += p.squares[2 * chunk + 1];
  }
  return agc_scale(params, grads, p.agc, p.pmin);
}

template <typename A>
void update(const LaProp& p, const Piece& piece, const LaPropRates& rates) {
  A* param = static_cast<A*>(piece.tensor->param) + piece.first;
  const A* grad = static_cast<const A*>(piece.tensor->grad) + piece.first;
  A* nu = static_cast<A*>(piece.tensor->nu) + piece.first;
  A* mu = static_cast<A*>(piece.tensor->mu) + piece.first;
  const A scale = static_cast<A>(clip_scale(p, *piece.tensor));
  const LaPropScalars<A> s = LaPropScalars<A>::make(p, rates);
#pragma omp simd
  for (int64_t i = 0; i < piece.count; ++i) laprop_update(param[i], grad[i] * scale, nu[i], mu[i], s);
}

template <typename A>
void run(const LaProp& p) {
  if (!laprop_applies(p)) return;
  const LaPropRates rates = laprop_rates(p);
  const LaPropTensor& last = p.tensors[p.tensor_count - 1];
  const bool parallel = p.chunks > 1 && (p.chunks > p.tensor_count || last.first_chunk * kChunk > kParallelElements);
#pragma omp parallel if (parallel)
  for (int64_t begin = 0, end; begin < p.tensor_count; begin = end) {
    int64_t elements = p.tensors[begin].count;
    for (end = begin + 1; end < p.tensor_count && elements + p.tensors[end].count <= kWave; ++end)
      elements += p.tensors[end].count;
    const int64_t first = p.tensors[begin].first_chunk;
    const int64_t stop = end < p.tensor_count ? p.tensors[end].first_chunk : p.chunks;
    if (p.agc != 0) {
#pragma omp for schedule(static)
      for (int64_t chunk = first; chunk < stop; ++chunk) measure<A>(p, Piece(p, begin, end, chunk), chunk);
    }
#pragma omp for schedule(static)  // the same chunks to the same thread
    for (int64_t chunk = first; chunk < stop; ++chunk) update<A>(p, Piece(p, begin, end, chunk), rates);
  }
}

}  // namespace

void laprop_kernel(const LaProp& p) { p.dtype == Dtype::f64 ? run<double>(p) : run<float>(p); }

}  // namespace fastwm::FASTWM_ISA
