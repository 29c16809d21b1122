#include "ops/symlog.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(symlog_kernel, Symlog)
FASTWM_CPU_KERNEL(symexp_kernel, Symlog)
FASTWM_CPU_KERNEL(symlog_backward_kernel, Symlog)
FASTWM_CPU_KERNEL(symexp_backward_kernel, Symlog)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("symlog", TORCH_BOX(&elementwise<symlog_kernel>));
  m.impl("symexp", TORCH_BOX(&elementwise<symexp_kernel>));
  m.impl("symlog_backward", TORCH_BOX(&elementwise_backward<symlog_backward_kernel>));
  m.impl("symexp_backward", TORCH_BOX(&elementwise_backward<symexp_backward_kernel>));
}
