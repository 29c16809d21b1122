#include "ops/norm_act.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(norm_act_kernel, NormAct)
FASTWM_CPU_KERNEL(norm_act_backward_kernel, NormActBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("norm_act", TORCH_BOX(&norm_act<norm_act_kernel>));
  m.impl("norm_act_backward", TORCH_BOX(&norm_act_backward<norm_act_backward_kernel>));
}
