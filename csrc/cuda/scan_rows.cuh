// Shared by the scans, forward and backward: the choice of types and cells, and the norm of a row.
#pragma once

#include "rssm_rows.cuh"

#include "fastwm/params/scans.h"
#include "math/block_gru.h"
#include "math/gru.h"
#include "math/lstm.h"
#include "math/planet_gru.h"

#include <type_traits>

namespace fastwm::cuda {
namespace {

// By a whole block.
template <typename T>
struct Norm {
  T mean, rstd;

  __device__ Norm(const T* x, int64_t width, T eps) {
    T sum = 0, squares = 0;
    for (int64_t i = threadIdx.x; i < width; i += kThreads) sum += x[i];
    mean = group_sum<kThreads>(sum) / static_cast<T>(width);
    for (int64_t i = threadIdx.x; i < width; i += kThreads) squares += (x[i] - mean) * (x[i] - mean);
    rstd = 1 / sqrt(group_sum<kThreads>(squares) / static_cast<T>(width) + eps);
  }
};

// Tensor cores take pieces of rows.
template <typename Params, typename F>
void by_type(const Params& p, F f) {
  if (p.dtype == Dtype::f64) f(double{}, double{});
  else if (p.bf16 && fits_pieces(p.n.D) && fits_pieces({p.h0})) f(float{}, bf16{});
  else f(float{}, float{});
}

template <typename F>
void by_cell(ScanCell cell, F f) {
  switch (cell) {
    case ScanCell::gru: return f(std::integral_constant<ScanCell, ScanCell::gru>{});
    case ScanCell::lstm: return f(std::integral_constant<ScanCell, ScanCell::lstm>{});
    case ScanCell::layernorm_gru: return f(std::integral_constant<ScanCell, ScanCell::layernorm_gru>{});
    case ScanCell::planet_gru: return f(std::integral_constant<ScanCell, ScanCell::planet_gru>{});
  }
}

}  // namespace
}  // namespace fastwm::cuda
