#include "ops/linear.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(linear_kernel, Linear)
FASTWM_CPU_KERNEL(linear_backward_kernel, LinearBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("linear", TORCH_BOX(&linear<linear_kernel>));
  m.impl("linear_backward", TORCH_BOX(&linear_backward<linear_backward_kernel>));
}
