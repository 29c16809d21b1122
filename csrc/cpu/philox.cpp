#include "ops/philox.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(philox_kernel, PhiloxDraw)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("philox_bits", TORCH_BOX((&philox<philox_kernel, PhiloxKind::bits>)));
  m.impl("philox_uniform", TORCH_BOX((&philox<philox_kernel, PhiloxKind::uniform>)));
  m.impl("philox_normal", TORCH_BOX((&philox<philox_kernel, PhiloxKind::normal>)));
}
