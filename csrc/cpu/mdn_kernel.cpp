// Tiles of neighbouring lanes are brought into class-major order, [classes, kTile], where every loop is over
// lanes and vectorises; classes are a handful.
#include "fastwm/params/mdn.h"

#include <stdlib.h>

#include "fastwm/parallel.h"
#include "fastwm/transpose.h"

namespace fastwm::FASTWM_ISA {
namespace {

constexpr int64_t kTile = 64;

// The place of one tile: its first lane, counted over all outer rows too, and how many lanes it has.
struct Tile {
  int64_t outer, lane, width, at;
};

// Calls body(tile, scratch) on every tile; scratch holds `size` numbers.
template <typename A, typename Body>
void for_each_tile(const Mixtures& m, int64_t size, Body body) {
  const int64_t per_row = (m.lanes + kTile - 1) / kTile, tiles = m.outer * per_row;
  const bool parallel = tiles > 1 && m.outer * m.lanes * m.dims * m.classes > kParallelElements;
#pragma omp parallel if (parallel)
  {
    A* scratch = static_cast<A*>(malloc(static_cast<size_t>(size) * sizeof(A)));
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t outer = t / per_row, lane = (t - outer * per_row) * kTile;
      body(Tile{outer, lane, lane + kTile < m.lanes ? kTile : m.lanes - lane, outer * m.lanes + lane}, scratch);
    }
    free(scratch);
  }
}

// Strided memory <-> class-major scratch. A tile that the lanes do not fill is filled with zeros, so that every
// loop over lanes has the same constant length.
template <typename A>
void gather(const A* __restrict from, int64_t lane_stride, int64_t class_stride, int64_t classes, int64_t width,
            A* __restrict to) {
  for (int64_t k = 0; k < classes; ++k) {
    for (int64_t i = 0; i < width; ++i) to[k * kTile + i] = from[i * lane_stride + k * class_stride];
    for (int64_t i = width; i < kTile; ++i) to[k * kTile + i] = 0;
  }
}

template <typename A>
void scatter(const A* __restrict from, int64_t lane_stride, int64_t classes, int64_t width, A* __restrict to) {
#ifdef FASTWM_TRANSPOSE
  if constexpr (sizeof(A) == sizeof(float))
    if (width == kTile && lane_stride == classes && classes > 1 && classes <= 8)
      return vectors_to_runs(from, kTile, classes, kTile, to);
#endif
  for (int64_t k = 0; k < classes; ++k)
    for (int64_t i = 0; i < width; ++i) to[i * lane_stride + k] = from[k * kTile + i];
}

// One dimension of a parameter, of all the mixtures of a tile.
template <typename A>
const A* start(const MixtureArray& x, const Tile& tile) {
  return static_cast<const A*>(x.data) + tile.outer * x.outer + tile.lane * x.lane;
}

template <typename A>
void load(const MixtureArray& x, const Mixtures& m, const Tile& tile, int64_t z, A* to) {
  const A* from = start<A>(x, tile) + z * x.dim;
#ifdef FASTWM_TRANSPOSE
  // Eight numbers of the tile's last run can be read, as memory goes on to the array's last run at least.
  const int64_t beyond = (m.lanes - tile.lane - kTile) * x.lane + (m.outer - 1 - tile.outer) * x.outer;
  const bool readable = beyond + m.classes >= 8;
  if constexpr (sizeof(A) == sizeof(float))
    if (tile.width == kTile && x.cls == 1 && m.classes > 1 && m.classes <= 8 && readable)
      return runs_to_vectors(from, x.lane, m.classes, kTile, to, kTile);
#endif
  gather(from, x.lane, x.cls, m.classes, tile.width, to);
}

// x <- exp((x - max x) * scale) over the classes; the maximum of each lane, and the sum of what x became.
template <typename A>
void exp_of_classes(A* __restrict x, A scale, int64_t classes, A* __restrict largest, A* __restrict total) {
  for (int64_t i = 0; i < kTile; ++i) {
    largest[i] = lowest(A{});  // not -infinity: were all classes that, their difference would be NaN
    total[i] = 0;
  }
  for (int64_t k = 0; k < classes; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < kTile; ++i) largest[i] = x[k * kTile + i] > largest[i] ? x[k * kTile + i] : largest[i];
  }
  for (int64_t k = 0; k < classes; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < kTile; ++i) {
      const A log_e = (x[k * kTile + i] - largest[i]) * scale;
      const A e = log_e < -80 ? 0 : vexp(log_e < -80 ? -80 : log_e);  // no subnormal numbers: they are slow
      x[k * kTile + i] = e;
      total[i] += e;
    }
  }
}

template <typename A>
void sample(const MdnSample& p) {
  const Mixtures& m = p.mixtures;
  const A scale = static_cast<A>(p.inverse_temperature), noise = static_cast<A>(p.noise);
  for_each_tile<A>(m, m.classes * kTile, [&](const Tile& tile, A* weight) {
    A largest[kTile], total[kTile], threshold[kTile], cumulated[kTile] = {};
    int32_t index[kTile] = {};
    A nothing[kTile];  // NaN where no component can be drawn
    load(m.logits, m, tile, 0, weight);
    gather(static_cast<const A*>(p.uniform) + tile.at, 1, 0, 1, tile.width, threshold);
    exp_of_classes(weight, scale, m.classes, largest, total);
    for (int64_t i = 0; i < kTile; ++i) {
      threshold[i] = cdf_threshold(threshold[i], total[i]);
      nothing[i] = nothing_of(threshold[i] / total[i]);
    }
    for (int64_t k = 0; k < m.classes - 1; ++k) {
#pragma omp simd
      for (int64_t i = 0; i < kTile; ++i) {
        cumulated[i] += weight[k * kTile + i];
        index[i] += cumulated[i] <= threshold[i] ? 1 : 0;
      }
    }
    const A *mean = start<A>(m.mean, tile), *log_std = start<A>(m.log_std, tile);
    const A* normal = static_cast<const A*>(p.normal) + tile.at * m.dims;
    A* out = static_cast<A*>(p.sample) + tile.at * m.dims;
    for (int64_t z = 0; z < m.dims; ++z) {
      A mu[kTile], sigma[kTile] = {};
      for (int64_t i = 0; i < tile.width; ++i) {
        mu[i] = mean[i * m.mean.lane + z * m.mean.dim + index[i] * m.mean.cls];
        sigma[i] = log_std[i * m.log_std.lane + z * m.log_std.dim + index[i] * m.log_std.cls];
      }
#pragma omp simd
      for (int64_t i = 0; i < kTile; ++i) sigma[i] = vexp(sigma[i]) * noise;
      for (int64_t i = 0; i < tile.width; ++i)
        out[i * m.dims + z] = mu[i] + nothing[i] + sigma[i] * normal[i * m.dims + z];
    }
  });
}

// The likelihood of a tile, in [classes, kTile] arrays; the last two once a dimension.
template <typename A>
struct Densities {
  A *weight, *density;         // exp(logits), and that times the Gaussians, both relative to the largest
  A *inverse_std, *deviation;  // exp(-log_std), and (value - mean) exp(-log_std)
  A largest_weight[kTile], total_weight[kTile], largest_density[kTile], total_density[kTile];

  static int64_t size(const Mixtures& m) { return (2 + 2 * m.dims) * m.classes * kTile; }

  Densities(const Mixtures& m, const Tile& tile, const A* value, A* scratch) {
    const int64_t n = m.classes * kTile;
    weight = scratch;
    density = weight + n;
    inverse_std = density + n;
    deviation = inverse_std + m.dims * n;
    load(m.logits, m, tile, 0, weight);
    for (int64_t z = 0; z < m.dims; ++z) {
      A y[kTile];
      A* s = inverse_std + z * n;
      A* q = deviation + z * n;
      gather(value + z, m.dims, 0, 1, tile.width, y);
      load(m.mean, m, tile, z, q);
      load(m.log_std, m, tile, z, s);
      multiply_by_gaussians(m.classes, y, z == 0 ? weight : density, density, s, q);
    }
    exp_of_classes(weight, A{1}, m.classes, largest_weight, total_weight);
    exp_of_classes(density, A{1}, m.classes, largest_density, total_density);
  }

 private:
  // In logarithms: density = factor - log_std - deviation^2 / 2. s: log_std -> inverse_std, q: mean -> deviation.
  static void multiply_by_gaussians(int64_t classes, const A* __restrict y, const A* factor, A* density,
                                    A* __restrict s, A* __restrict q) {
    for (int64_t k = 0; k < classes; ++k) {
#pragma omp simd
      for (int64_t i = 0; i < kTile; ++i) {
        const int64_t at = k * kTile + i;
        const A log_std = s[at];
        s[at] = vexp(-log_std);
        q[at] = (y[i] - q[at]) * s[at];
        density[at] = factor[at] - (log_std + A{0.5} * q[at] * q[at]);
      }
    }
  }
};

template <typename A>
void nll(const MdnNll& p) {
  const Mixtures& m = p.mixtures;
  for_each_tile<A>(m, Densities<A>::size(m), [&](const Tile& tile, A* scratch) {
    const Densities<A> d(m, tile, static_cast<const A*>(p.value) + tile.at * m.dims, scratch);
    const A constant = static_cast<A>(kHalfLog2Pi * static_cast<double>(m.dims));
    A out[kTile];
#pragma omp simd
    for (int64_t i = 0; i < kTile; ++i)
      out[i] = d.largest_weight[i] - d.largest_density[i] + vlog(d.total_weight[i] / d.total_density[i]) + constant;
    scatter(out, 1, 1, tile.width, static_cast<A*>(p.nll) + tile.at);
  });
}

// With r_k, the responsibility of component k, times the gradient of the likelihood: d_logits = grad softmax - r.
template <typename A>
void responsibilities(const Densities<A>& d, const A* __restrict grad, int64_t classes, A* __restrict r,
                      A* __restrict d_logits) {
  A prior[kTile], posterior[kTile];
#pragma omp simd
  for (int64_t i = 0; i < kTile; ++i) {
    prior[i] = grad[i] / d.total_weight[i];
    posterior[i] = grad[i] / d.total_density[i];
  }
  for (int64_t k = 0; k < classes; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < kTile; ++i) {
      const int64_t at = k * kTile + i;
      r[at] *= posterior[i];
      d_logits[at] = d_logits[at] * prior[i] - r[at];
    }
  }
}

// s: inverse_std -> d_log_std, q: deviation -> d_mean.
template <typename A>
void gaussians_backward(int64_t classes, const A* __restrict r, A* __restrict s, A* __restrict q,
                        A* __restrict d_value) {
  for (int64_t i = 0; i < kTile; ++i) d_value[i] = 0;
  for (int64_t k = 0; k < classes; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < kTile; ++i) {
      const int64_t at = k * kTile + i;
      const A d_y = r[at] == 0 ? 0 : r[at] * q[at] * s[at];  // 0, where 0 * infinity would be NaN
      s[at] = r[at] == 0 ? 0 : r[at] - r[at] * q[at] * q[at];
      q[at] = -d_y;
      d_value[i] += d_y;
    }
  }
}

template <typename A>
void nll_backward(const MdnNllBackward& p) {
  const Mixtures& m = p.mixtures;
  for_each_tile<A>(m, Densities<A>::size(m), [&](const Tile& tile, A* scratch) {
    const Densities<A> d(m, tile, static_cast<const A*>(p.value) + tile.at * m.dims, scratch);
    const int64_t K = m.classes;
    A lanes[kTile];
    gather(static_cast<const A*>(p.grad) + tile.at, 1, 0, 1, tile.width, lanes);
    responsibilities(d, lanes, K, d.density, d.weight);
    scatter(d.weight, K, K, tile.width, static_cast<A*>(p.d_logits) + tile.at * K);
    for (int64_t z = 0; z < m.dims; ++z) {
      A* s = d.inverse_std + z * K * kTile;
      A* q = d.deviation + z * K * kTile;
      const int64_t at = tile.at * m.dims + z;
      gaussians_backward(K, d.density, s, q, lanes);
      scatter(q, m.dims * K, K, tile.width, static_cast<A*>(p.d_mean) + at * K);
      scatter(s, m.dims * K, K, tile.width, static_cast<A*>(p.d_log_std) + at * K);
      scatter(lanes, m.dims, 1, tile.width, static_cast<A*>(p.d_value) + at);
    }
  });
}

}  // namespace

void mdn_sample_kernel(const MdnSample& p) {
  return p.mixtures.dtype == Dtype::f64 ? sample<double>(p) : sample<float>(p);
}

void mdn_nll_kernel(const MdnNll& p) { return p.mixtures.dtype == Dtype::f64 ? nll<double>(p) : nll<float>(p); }

void mdn_nll_backward_kernel(const MdnNllBackward& p) {
  return p.mixtures.dtype == Dtype::f64 ? nll_backward<double>(p) : nll_backward<float>(p);
}

}  // namespace fastwm::FASTWM_ISA
