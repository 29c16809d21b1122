#include "ops/laprop.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(laprop_kernel, LaProp)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("laprop_step_", TORCH_BOX(&laprop_step_<laprop_kernel>));
}
