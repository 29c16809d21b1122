// The parameters of mixtures, read where they are.
#pragma once

#include <cmath>

#include "fastwm/mdn.h"
#include "host_check.h"

namespace fastwm {

// The stride of x's leading dimensions walked as one, or -1; `event` dimensions are left at the end.
inline int64_t row_stride(const Tensor& x, int64_t event) {
  if (x.numel() == 0) return 0;    // whose strides may be anything
  int64_t stride = -1, reach = 0;  // of the dimension seen last, and the stride the next one must have
  for (int64_t d = x.dim() - event; d-- > 0;) {
    if (x.size(d) == 1) continue;
    if (stride >= 0 && x.stride(d) != reach) return -1;
    if (stride < 0) stride = x.stride(d);
    reach = x.stride(d) * x.size(d);
  }
  return stride < 0 ? 0 : stride;
}

// Mixture parameters as kernels read them: most callers split one network output, which is read in place.
struct MixtureTensors {
  Tensor logits, mean, log_std;
  bool joint;
  Mixtures view;

  MixtureTensors(const Tensor& logits_, const Tensor& mean_, const Tensor& log_std_)
      : logits(walkable(logits_, logits_.dim() < mean_.dim() ? 1 : 2)), mean(walkable(mean_, 2)),
        log_std(walkable(log_std_, 2)), joint(logits_.dim() < mean_.dim()) {
    const int64_t n = mean.dim();
    bool same = n >= 2 && logits.dim() == n - joint && log_std.dim() == n;
    for (int64_t d = 0; same && d < n; ++d) {
      same = log_std.size(d) == mean.size(d);
      if (!joint || d != n - 2) same = same && logits.size(d < n - 1 ? d : d - joint) == mean.size(d);
    }
    for (const Tensor& x : {logits, log_std})
      same = same && x.scalar_type() == mean.scalar_type() && x.device() == mean.device();
    STD_TORCH_CHECK(same && mean.size(n - 2) > 0 && mean.size(n - 1) > 0,
                    "fastwm: expected mean and log_std [..., Z, K], logits [..., Z, K] or [..., K], Z and K >= 1, "
                    "of one dtype and device");
    STD_TORCH_CHECK(dtype_of(mean) != Dtype::bf16, "fastwm: expected float32 or float64 mixture parameters");
    check_sizes(mean.sizes());
    const int64_t z = mean.size(n - 2), k = mean.size(n - 1), rows = mean.numel() / (z * k);
    view = {dtype_of(mean), 1, rows, z, k, array(logits, !joint), array(mean, true), array(log_std, true)};
    if (!joint) make_dimensions_lanes();
  }

 private:
  static Tensor walkable(const Tensor& x, int64_t event) {
    return x.numel() > 0 && x.dim() >= event && row_stride(x, event) >= 0 ? x : dense(x);
  }

  static MixtureArray array(const Tensor& x, bool has_dim) {
    const int64_t n = x.dim();
    if (x.numel() == 0) return {x.const_data_ptr(), 0, 0, 0, 0};
    return {x.const_data_ptr(), 0, row_stride(x, 1 + has_dim), has_dim ? x.stride(n - 2) : 0, x.stride(n - 1)};
  }

  // Independent mixtures: [rows, Z] of them, in one run where the strides allow it.
  void make_dimensions_lanes() {
    const int64_t rows = view.lanes, z = view.dims;
    bool one_run = true;
    for (const MixtureArray* x : {&view.logits, &view.mean, &view.log_std})
      one_run = one_run && (rows == 1 || x->lane == z * x->dim);
    for (MixtureArray* x : {&view.logits, &view.mean, &view.log_std})
      *x = {x->data, one_run ? 0 : x->lane, x->dim, 0, x->cls};
    view.outer = one_run ? 1 : rows;
    view.lanes = one_run ? rows * z : z;
    view.dims = 1;
  }
};

}  // namespace fastwm
