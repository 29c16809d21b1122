#include "ops/mlp.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(mlp_kernel, Mlp)
FASTWM_CPU_KERNEL(mlp_backward_kernel, MlpBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("mlp", TORCH_BOX(&mlp<mlp_kernel>));
  m.impl("mlp_backward", TORCH_BOX(&mlp_backward<mlp_backward_kernel>));
}
