// Counter-based random numbers' host side, written once: kernel(params, device) is a CPU kernel or a CUDA launch.
#pragma once

#include "fastwm/philox.h"
#include "tensor.h"

namespace fastwm {

template <auto kernel, PhiloxKind kind>
Tensor philox(const Tensor& seed_offset_, int64_t count, int64_t first) {
  const int64_t n = seed_offset_.dim();
  STD_TORCH_CHECK(n > 0 && seed_offset_.size(n - 1) == 2 && seed_offset_.scalar_type() == ScalarType::Long,
                  "fastwm: expected seed_offset [..., 2] of int64");
  STD_TORCH_CHECK(count >= 0, "fastwm: expected a count that is not negative");
  const Tensor seed_offset = dense(seed_offset_);
  std::vector<int64_t> sizes(seed_offset.sizes().begin(), seed_offset.sizes().end());
  sizes.back() = count;
  Tensor out = empty_dense(seed_offset, sizes, kind == PhiloxKind::bits ? ScalarType::Int : ScalarType::Float);
  const PhiloxDraw p{kind,
                     seed_offset.numel() / 2,
                     count,
                     static_cast<uint64_t>(first),
                     static_cast<const int64_t*>(seed_offset.const_data_ptr()),
                     out.mutable_data_ptr()};
  kernel(p, seed_offset.get_device_index());
  return out;
}

}  // namespace fastwm
