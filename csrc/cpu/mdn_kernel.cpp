// Tiles of neighbouring lanes are brought into class-major order, [classes, kTile], where every loop is over
// lanes and vectorises; classes are a handful.
#include "fastwm/mdn.h"

#include <stdlib.h>

#include "fastwm/parallel.h"

namespace fastwm::FASTWM_ISA {
namespace {

constexpr int64_t kTile = 64;

// Where one tile lies: its first lane, counted over all outer rows too, and how many lanes it has.
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

template <typename A>
const A* start(const MixtureArray& x, const Tile& tile) {
  return static_cast<const A*>(x.data) + tile.outer * x.outer + tile.lane * x.lane;
}

// Strided memory <-> class-major scratch.
template <typename A>
void gather(const A* from, int64_t lane_stride, int64_t class_stride, int64_t classes, int64_t width, A* to) {
  for (int64_t k = 0; k < classes; ++k)
    for (int64_t i = 0; i < width; ++i) to[k * kTile + i] = from[i * lane_stride + k * class_stride];
}

template <typename A>
void scatter(const A* from, int64_t lane_stride, int64_t classes, int64_t width, A* to) {
  for (int64_t k = 0; k < classes; ++k)
    for (int64_t i = 0; i < width; ++i) to[i * lane_stride + k] = from[k * kTile + i];
}

// x <- exp((x - max x) * scale) over the classes; the maximum of each lane, and the sum of what x became.
template <typename A>
void exp_of_classes(A* x, A scale, int64_t classes, int64_t width, A* largest, A* total) {
  for (int64_t i = 0; i < width; ++i) {
    largest[i] = lowest(A{});  // not -infinity: were all classes that, their difference would be NaN
    total[i] = 0;
  }
  for (int64_t k = 0; k < classes; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i)
      largest[i] = x[k * kTile + i] > largest[i] ? x[k * kTile + i] : largest[i];
  }
  for (int64_t k = 0; k < classes; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const A e = vexp((x[k * kTile + i] - largest[i]) * scale);
      x[k * kTile + i] = e;
      total[i] += e;
    }
  }
}

template <typename A>
void sample(const MdnSample& p) {
  const Mixtures& m = p.mixtures;
  const A scale = static_cast<A>(1 / p.temperature), noise = static_cast<A>(sqrt(p.temperature));
  for_each_tile<A>(m, m.classes * kTile, [&](const Tile& tile, A* weight) {
    A largest[kTile], total[kTile], threshold[kTile], cumulated[kTile] = {};
    int32_t index[kTile] = {};
    const int64_t width = tile.width;
    gather(start<A>(m.logits, tile), m.logits.lane, m.logits.cls, m.classes, width, weight);
    exp_of_classes(weight, scale, m.classes, width, largest, total);
    const A* uniform = static_cast<const A*>(p.uniform) + tile.at;
    for (int64_t i = 0; i < width; ++i) threshold[i] = cdf_threshold(uniform[i], total[i]);
    for (int64_t k = 0; k < m.classes - 1; ++k) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        cumulated[i] += weight[k * kTile + i];
        index[i] += cumulated[i] <= threshold[i] ? 1 : 0;
      }
    }
    const A *mean = start<A>(m.mean, tile), *log_std = start<A>(m.log_std, tile);
    const A* normal = static_cast<const A*>(p.normal) + tile.at * m.dims;
    A* out = static_cast<A*>(p.sample) + tile.at * m.dims;
    for (int64_t z = 0; z < m.dims; ++z) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const A mu = mean[i * m.mean.lane + z * m.mean.dim + index[i] * m.mean.cls];
        const A sigma = vexp(log_std[i * m.log_std.lane + z * m.log_std.dim + index[i] * m.log_std.cls]);
        out[i * m.dims + z] = mu + sigma * noise * normal[i * m.dims + z];
      }
    }
  });
}

// What a tile of the likelihood needs in scratch: [classes, kTile] arrays, the last two once a dimension.
template <typename A>
struct Densities {
  A *weight, *density;           // exp(logits), and that times the Gaussians, both relative to the largest
  A *inverse_std, *deviation;    // exp(-log_std), and (value - mean) exp(-log_std)
  A largest_weight[kTile], total_weight[kTile], largest_density[kTile], total_density[kTile];

  static int64_t size(const Mixtures& m) { return (2 + 2 * m.dims) * m.classes * kTile; }

  Densities(const Mixtures& m, const Tile& tile, const A* value, A* scratch) {
    const int64_t n = m.classes * kTile;
    weight = scratch;
    density = weight + n;
    inverse_std = density + n;
    deviation = inverse_std + m.dims * n;
    gather(start<A>(m.logits, tile), m.logits.lane, m.logits.cls, m.classes, tile.width, weight);
    for (int64_t k = 0; k < m.classes; ++k)
      for (int64_t i = 0; i < tile.width; ++i) density[k * kTile + i] = weight[k * kTile + i];
    for (int64_t z = 0; z < m.dims; ++z) multiply_by_gaussians(m, tile, value, z);
    exp_of_classes(weight, A{1}, m.classes, tile.width, largest_weight, total_weight);
    exp_of_classes(density, A{1}, m.classes, tile.width, largest_density, total_density);
  }

 private:
  // In logarithms: density - log_std - deviation^2 / 2.
  void multiply_by_gaussians(const Mixtures& m, const Tile& tile, const A* value, int64_t z) {
    A* s = inverse_std + z * m.classes * kTile;
    A* q = deviation + z * m.classes * kTile;
    gather(start<A>(m.log_std, tile) + z * m.log_std.dim, m.log_std.lane, m.log_std.cls, m.classes, tile.width, s);
    gather(start<A>(m.mean, tile) + z * m.mean.dim, m.mean.lane, m.mean.cls, m.classes, tile.width, q);
    A y[kTile];
    for (int64_t i = 0; i < tile.width; ++i) y[i] = value[i * m.dims + z];
    for (int64_t k = 0; k < m.classes; ++k) {
#pragma omp simd
      for (int64_t i = 0; i < tile.width; ++i) {
        const int64_t at = k * kTile + i;
        const A log_std = s[at];
        s[at] = vexp(-log_std);
        q[at] = (y[i] - q[at]) * s[at];
        density[at] -= log_std + A{0.5} * q[at] * q[at];
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
    A* out = static_cast<A*>(p.nll) + tile.at;
#pragma omp simd
    for (int64_t i = 0; i < tile.width; ++i)
      out[i] = d.largest_weight[i] - d.largest_density[i] + vlog(d.total_weight[i] / d.total_density[i]) + constant;
  });
}

template <typename A>
void nll_backward(const MdnNllBackward& p) {
  const Mixtures& m = p.mixtures;
  for_each_tile<A>(m, Densities<A>::size(m), [&](const Tile& tile, A* scratch) {
    Densities<A> d(m, tile, static_cast<const A*>(p.value) + tile.at * m.dims, scratch);
    const A* grad = static_cast<const A*>(p.grad) + tile.at;
    const int64_t width = tile.width, K = m.classes;
    A prior[kTile], posterior[kTile];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      prior[i] = grad[i] / d.total_weight[i];
      posterior[i] = grad[i] / d.total_density[i];
    }
    for (int64_t k = 0; k < K; ++k) {  // density <- gradient times responsibility; weight <- d_logits
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const int64_t at = k * kTile + i;
        d.density[at] *= posterior[i];
        d.weight[at] = d.weight[at] * prior[i] - d.density[at];
      }
    }
    scatter(d.weight, K, K, width, static_cast<A*>(p.d_logits) + tile.at * K);
    for (int64_t z = 0; z < m.dims; ++z) {
      A* s = d.inverse_std + z * K * kTile;
      A* q = d.deviation + z * K * kTile;
      A d_value[kTile] = {};
      for (int64_t k = 0; k < K; ++k) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
          const int64_t at = k * kTile + i;
          const A r = d.density[at];
          const A d_log_std = r == 0 ? 0 : r - r * q[at] * q[at];  // 0, where 0 * infinity would be NaN
          const A d_y = r == 0 ? 0 : r * q[at] * s[at];
          d_value[i] += d_y;
          q[at] = -d_y;
          s[at] = d_log_std;
        }
      }
      const int64_t at = tile.at * m.dims + z;
      scatter(q, m.dims * K, K, width, static_cast<A*>(p.d_mean) + at * K);
      scatter(s, m.dims * K, K, width, static_cast<A*>(p.d_log_std) + at * K);
      for (int64_t i = 0; i < width; ++i) static_cast<A*>(p.d_value)[at + i * m.dims] = d_value[i];
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
