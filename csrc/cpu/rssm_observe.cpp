#include "ops/rssm_observe.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(rssm_observe_kernel, RssmObserve)
FASTWM_CPU_KERNEL(rssm_observe_backward_kernel, RssmObserveBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("rssm_observe", TORCH_BOX(&rssm_observe<rssm_observe_kernel>));
  m.impl("rssm_observe_backward", TORCH_BOX(&rssm_observe_backward<rssm_observe_backward_kernel>));
}
