#include "fastwm/categorical.h"

#include <cstring>

#include "fastwm/parallel.h"
#include "primitives/row_tile.h"

namespace fastwm::FASTWM_ISA {
namespace {

// Calls body(first row, number of rows, memory of `tiles` tiles) on every tile of [rows, classes].
template <typename A, typename Body>
void for_each_tile(int64_t rows, int64_t classes, int64_t tiles, Body body) {
#pragma omp parallel if (rows * classes > kParallelElements)
  {
    const TileMemory<A> memory = allocate_tiles<A>(tiles, classes);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < rows; first += W) body(first, rows - first < W ? rows - first : W, memory);
    free_tiles(memory);
  }
}

// For each row: its largest logit, and the logarithm of its sum of exp(logit - largest).
template <typename A>
struct RowStats {
  A largest[W], log_z[W];
};

// q = softmax(x)
template <typename A>
void softmax(Tile<A> x, Tile<A> q, int64_t classes, RowStats<A>& row) {
  A *const largest = row.largest, z[W] = {}, inverse[W];
  for (int64_t r = 0; r < W; ++r) largest[r] = x[0][r];
  for (int64_t k = 1; k < classes; ++k)
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) largest[r] = x[k][r] > largest[r] ? x[k][r] : largest[r];
  for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) {
      q[k][r] = vexp_normal(x[k][r] - largest[r]);
      z[r] += q[k][r];
    }
#pragma omp simd
  for (int64_t r = 0; r < W; ++r) {
    row.log_z[r] = vlog_normal(z[r]);
    inverse[r] = 1 / z[r];
  }
  for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) q[k][r] *= inverse[r];
}

// x: logits in, ln p out.
template <typename A>
void log_probs(Tile<A> x, Tile<A> q, const RowStats<A>& row, Unimix<A> mix, int64_t classes) {
  for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) x[k][r] = mixed_log(mix, x[k][r] - row.largest[r], row.log_z[r], q[k][r]);
}

// w: dL/dlogits = w - q sum(w) takes its place.
template <typename A>
void finish_gradient(Tile<A> w, Tile<A> q, int64_t classes) {
  A sum[W] = {};
  for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) sum[r] += w[k][r];
  for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) w[k][r] -= q[k][r] * sum[r];
}

// index[r]: how many classes but the last have cdf <= u.
template <typename A>
void inverse_cdf(Tile<A> q, const A* u, Unimix<A> mix, int64_t classes, int32_t* index) {
  A cdf[W] = {};
  for (int64_t r = 0; r < W; ++r) index[r] = 0;
  for (int64_t k = 0; k < classes - 1; ++k)
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) {
      cdf[r] += mixed(mix, q[k][r]);
      index[r] += cdf[r] <= u[r];
    }
}

// noise: uniform numbers in, ln p plus their Gumbel noise out; u: the sums of the uniform numbers.
template <typename A>
void perturb(Tile<A> noise, Tile<A> log_prob, int64_t classes, A* u) {
  for (int64_t r = 0; r < W; ++r) u[r] = 0;
  for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) {
      u[r] += noise[k][r];
      noise[k][r] = log_prob[k][r] + gumbel(noise[k][r]);
    }
}

// index[r]: the largest class, the first of equals.
template <typename A>
void argmax(Tile<A> y, int64_t classes, int32_t* index) {
  A largest[W];
  for (int64_t r = 0; r < W; ++r) largest[r] = y[0][r], index[r] = 0;
  for (int64_t k = 1; k < classes; ++k)
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) {
      const bool larger = y[k][r] > largest[r];
      index[r] = larger ? static_cast<int32_t>(k) : index[r];
      largest[r] = larger ? y[k][r] : largest[r];
    }
}

template <typename T>
void sample(const StraightThroughCategorical& p) {
  using A = accumulate_t<T>;
  const Unimix<A> mix = unimix_of<A>(p.unimix, p.classes);
  const int64_t classes = p.classes;
  for_each_tile<A>(p.rows, classes, 3, [&p, mix, classes](int64_t first, int64_t rows, const TileMemory<A>& memory) {
    const int64_t at = first * classes;
    const Tile<A> x = memory[0], q = memory[1];
    RowStats<A> row;
    A u[W];
    int32_t index[W];
    load(static_cast<const T*>(p.logits) + at, rows, classes, x);
    softmax(x, q, classes, row);
    log_probs(x, q, row, mix, classes);
    store(x, rows, classes, static_cast<A*>(p.log_prob) + at);
    if (p.gumbel) {
      const Tile<A> noise = memory[2];
      load(static_cast<const A*>(p.uniform) + at, rows, classes, noise);
      perturb(noise, x, classes, u);
      argmax(noise, classes, index);
    } else {
      for (int64_t r = 0; r < W; ++r) u[r] = static_cast<const A*>(p.uniform)[first + (r < rows ? r : rows - 1)];
      inverse_cdf(q, u, mix, classes, index);
      for (int64_t r = 0; r < rows; ++r)
        index[r] = last_drawable(index[r], classes, [=](int64_t k) { return mixed(mix, q[k][r]); });
    }
    for (int64_t r = 0; r < rows; ++r) {
      const A nothing = nothing_of(row.log_z[r] + u[r]);
      const int64_t drawn = nothing == 0 ? index[r] : 0;
      A* onehot = static_cast<A*>(p.sample) + at + r * classes;
      for (int64_t k = 0; k < classes; ++k) onehot[k] = nothing;
      onehot[drawn] += 1;
      p.index[first + r] = drawn;
    }
  });
}

// d: dL/dsample in, dL/dy out, where the gradient passes as if the sample were softmax(y).
template <typename A>
void softmax_gradient(Tile<A> d, Tile<A> y, Tile<A> soft, int64_t classes) {
  RowStats<A> row;
  A mean[W] = {};
  softmax(y, soft, classes, row);
  for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) mean[r] += soft[k][r] * d[k][r];
  for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) d[k][r] = soft[k][r] * (d[k][r] - mean[r]);
}

template <typename T>
void sample_backward(const StraightThroughCategoricalBackward& p) {
  using A = accumulate_t<T>;
  const Unimix<A> mix = unimix_of<A>(p.unimix, p.classes);
  const int64_t classes = p.classes;
  for_each_tile<A>(p.rows, classes, 5, [&p, mix, classes](int64_t first, int64_t rows, const TileMemory<A>& memory) {
    const int64_t at = first * classes;
    const Tile<A> x = memory[0], q = memory[1], w = memory[2], d_log_prob = memory[3];
    RowStats<A> row;
    load(static_cast<const T*>(p.logits) + at, rows, classes, x);
    softmax(x, q, classes, row);
    if (p.g_sample) load(static_cast<const A*>(p.g_sample) + at, rows, classes, w);
    else std::memset(w, 0, classes * sizeof *w);
    const bool perturbed = p.uniform && p.g_sample;
    if (perturbed) {
      const Tile<A> noise = d_log_prob, soft = memory[4];
      log_probs(x, q, row, mix, classes);
      load(static_cast<const A*>(p.uniform) + at, rows, classes, noise);
      A u[W];
      perturb(noise, x, classes, u);
      softmax_gradient(w, noise, soft, classes);
    }
    for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
      for (int64_t r = 0; r < W; ++r) w[k][r] *= perturbed ? kept_share(mix, q[k][r]) : mix.keep * q[k][r];
    if (p.g_log_prob) {
      load(static_cast<const A*>(p.g_log_prob) + at, rows, classes, d_log_prob);
      for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
        for (int64_t r = 0; r < W; ++r) w[k][r] += kept_share(mix, q[k][r]) * d_log_prob[k][r];
    }
    finish_gradient(w, q, classes);
    store(w, rows, classes, static_cast<T*>(p.d_logits) + at);
  });
}

// Rows of two distributions p, posterior, and r, prior: ln(p / r), p (1 - unimix) q_r / r, and their softmaxes.
template <typename T>
struct KlTile {
  using A = accumulate_t<T>;
  Tile<A> ratio, q, prior_share, prior_q;

  KlTile(const T* post, const T* prior, int64_t rows, int64_t classes, Unimix<A> mix, const TileMemory<A>& memory)
      : ratio(memory[0]), q(memory[1]), prior_share(memory[2]), prior_q(memory[3]) {
    const Tile<A> x = ratio, prior_x = prior_share;
    RowStats<A> row, prior_row;
    load(post, rows, classes, x);
    softmax(x, q, classes, row);
    load(prior, rows, classes, prior_x);
    softmax(prior_x, prior_q, classes, prior_row);
    if (mix.on) {
      compare_mixed(mix, classes);
    } else {
      log_probs(x, q, row, mix, classes);
      log_probs(prior_x, prior_q, prior_row, mix, classes);
      compare_plain(prior_x, classes);
    }
  }

  void compare_mixed(Unimix<A> mix, int64_t classes) {
    for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
      for (int64_t r = 0; r < W; ++r) {
        const A quotient = mixed(mix, q[k][r]) / mixed(mix, prior_q[k][r]);
        ratio[k][r] = vlog_normal(quotient);
        prior_share[k][r] = quotient * mix.keep * prior_q[k][r];
      }
  }

  void compare_plain(Tile<A> log_r, int64_t classes) {
    for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
      for (int64_t r = 0; r < W; ++r) {
        ratio[k][r] = q[k][r] == 0 ? 0 : ratio[k][r] - log_r[k][r];  // 0 ln 0 = 0, whatever the prior has
        prior_share[k][r] = q[k][r];
      }
  }
};

// Calls body(first element, number of elements, memory) on chunks of [N, S, C] of whole elements, for kernels that
// sum over S; a chunk's rows fill some tiles.
constexpr int64_t kChunkRows = 8 * W;

template <typename A, typename Body>
void for_each_chunk(int64_t batch, int64_t groups, int64_t classes, int64_t tiles, Body body) {
  const int64_t step = groups < kChunkRows ? kChunkRows / (groups > 0 ? groups : 1) : 1;
#pragma omp parallel if (batch * groups * classes > kParallelElements)
  {
    const TileMemory<A> memory = allocate_tiles<A>(tiles, classes);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < batch; first += step)
      body(first, batch - first < step ? batch - first : step, memory);
    free_tiles(memory);
  }
}

template <typename T>
void kl(const CategoricalKl& p) {
  using A = accumulate_t<T>;
  const Unimix<A> mix = unimix_of<A>(p.unimix, p.classes);
  const A free_nats = static_cast<A>(p.free_nats);
  A *dyn = static_cast<A*>(p.dyn), *rep = static_cast<A*>(p.rep);
  for_each_chunk<A>(p.batch, p.groups, p.classes, 4,
                    [=, &p](int64_t first, int64_t count, const TileMemory<A>& memory) {
                      const int64_t begin = first * p.groups, end = (first + count) * p.groups;
                      A total = 0;
                      int64_t element = first, left = p.groups;  // rows of `element` still to come
                      for (int64_t row = begin; row < end; row += W) {
                        const int64_t rows = end - row < W ? end - row : W, at = row * p.classes;
                        const KlTile<T> tile(static_cast<const T*>(p.post) + at, static_cast<const T*>(p.prior) + at,
                                             rows, p.classes, mix, memory);
                        A sum[W] = {};
                        for (int64_t k = 0; k < p.classes; ++k)
#pragma omp simd
                          for (int64_t r = 0; r < W; ++r) sum[r] += mixed(mix, tile.q[k][r]) * tile.ratio[k][r];
                        for (int64_t r = 0; r < rows; ++r) {
                          total += sum[r];
                          if (--left > 0) continue;
                          dyn[element] = rep[element] = total <= free_nats ? free_nats : total;
                          ++element, left = p.groups, total = 0;
                        }
                      }
                    });
}

template <typename T>
void kl_backward(const CategoricalKlBackward& p) {
  using A = accumulate_t<T>;
  const Unimix<A> mix = unimix_of<A>(p.unimix, p.classes);
  const A free_nats = static_cast<A>(p.free_nats);
  const int64_t classes = p.classes;
  const A* dyn = static_cast<const A*>(p.dyn);
  const A *d_dyn = static_cast<const A*>(p.g_dyn), *d_rep = static_cast<const A*>(p.g_rep);
  for_each_tile<A>(p.batch * p.groups, classes, 4, [=, &p](int64_t first, int64_t rows, const TileMemory<A>& memory) {
    const int64_t at = first * classes;
    T *d_post = static_cast<T*>(p.d_post) + at, *d_prior = static_cast<T*>(p.d_prior) + at;
    A g_dyn[W] = {}, g_rep[W] = {};
    bool any = false;
    int64_t element = first / p.groups, left = p.groups - first % p.groups;
    for (int64_t r = 0; r < rows; ++r) {
      if (!(dyn[element] <= free_nats)) {
        g_dyn[r] = d_dyn ? d_dyn[element] : 0;
        g_rep[r] = d_rep ? d_rep[element] : 0;
        any = true;
      }
      if (--left == 0) ++element, left = p.groups;
    }
    if (!any) {  // free nats were picked throughout
      for (int64_t i = 0; i < rows * classes; ++i) narrow(A{0}, d_post[i]), narrow(A{0}, d_prior[i]);
      return;
    }
    const KlTile<T> tile(static_cast<const T*>(p.post) + at, static_cast<const T*>(p.prior) + at, rows, classes, mix,
                         memory);
    const Tile<A> w_post = tile.ratio, w_prior = tile.prior_share;
    for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
      for (int64_t r = 0; r < W; ++r) {
        w_post[k][r] = g_rep[r] * mix.keep * tile.q[k][r] * tile.ratio[k][r];
        w_prior[k][r] = -g_dyn[r] * tile.prior_share[k][r];
      }
    finish_gradient(w_post, tile.q, classes);
    finish_gradient(w_prior, tile.prior_q, classes);
    store(w_post, rows, classes, d_post);
    store(w_prior, rows, classes, d_prior);
  });
}

template <typename T>
void entropy(const CategoricalEntropy& p) {
  using A = accumulate_t<T>;
  const Unimix<A> mix = unimix_of<A>(p.unimix, p.classes);
  const int64_t classes = p.classes;
  for_each_tile<A>(p.rows, classes, 2, [&p, mix, classes](int64_t first, int64_t rows, const TileMemory<A>& memory) {
    const Tile<A> x = memory[0], q = memory[1];
    RowStats<A> row;
    A sum[W] = {};
    load(static_cast<const T*>(p.logits) + first * classes, rows, classes, x);
    softmax(x, q, classes, row);
    log_probs(x, q, row, mix, classes);
    for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
      for (int64_t r = 0; r < W; ++r) sum[r] -= weighted_log(mixed(mix, q[k][r]), x[k][r]);
    for (int64_t r = 0; r < rows; ++r) static_cast<A*>(p.entropy)[first + r] = sum[r];
  });
}

template <typename T>
void entropy_backward(const CategoricalEntropyBackward& p) {
  using A = accumulate_t<T>;
  const Unimix<A> mix = unimix_of<A>(p.unimix, p.classes);
  const int64_t classes = p.classes;
  for_each_tile<A>(p.rows, classes, 2, [&p, mix, classes](int64_t first, int64_t rows, const TileMemory<A>& memory) {
    const int64_t at = first * classes;
    const Tile<A> x = memory[0], q = memory[1];
    RowStats<A> row;
    A g[W] = {};
    load(static_cast<const T*>(p.logits) + at, rows, classes, x);
    softmax(x, q, classes, row);
    log_probs(x, q, row, mix, classes);
    for (int64_t r = 0; r < rows; ++r) g[r] = static_cast<const A*>(p.grad)[first + r];
    for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
      for (int64_t r = 0; r < W; ++r) x[k][r] = -g[r] * mix.keep * weighted_log(q[k][r], x[k][r]);
    finish_gradient(x, q, classes);
    store(x, rows, classes, static_cast<T*>(p.d_logits) + at);
  });
}

}  // namespace

#define FASTWM_BY_DTYPE(function, p)             \
  switch (p.dtype) {                             \
    case Dtype::f32: return function<float>(p);  \
    case Dtype::f64: return function<double>(p); \
    case Dtype::bf16: return function<bf16>(p);  \
  }

void straight_through_categorical_kernel(const StraightThroughCategorical& p) { FASTWM_BY_DTYPE(sample, p) }

void straight_through_categorical_backward_kernel(const StraightThroughCategoricalBackward& p) {
  FASTWM_BY_DTYPE(sample_backward, p)
}

void categorical_kl_kernel(const CategoricalKl& p) { FASTWM_BY_DTYPE(kl, p) }

void categorical_kl_backward_kernel(const CategoricalKlBackward& p) { FASTWM_BY_DTYPE(kl_backward, p) }

void categorical_entropy_kernel(const CategoricalEntropy& p) { FASTWM_BY_DTYPE(entropy, p) }

void categorical_entropy_backward_kernel(const CategoricalEntropyBackward& p) { FASTWM_BY_DTYPE(entropy_backward, p) }

}  // namespace fastwm::FASTWM_ISA
