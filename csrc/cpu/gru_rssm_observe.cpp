#include "ops/gru_rssm_observe.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(gru_rssm_observe_kernel, GruRssmObserve)
FASTWM_CPU_KERNEL(gru_rssm_observe_backward_kernel, GruRssmObserveBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("gru_rssm_observe", TORCH_BOX(&gru_rssm_observe<gru_rssm_observe_kernel>));
  m.impl("gru_rssm_observe_backward", TORCH_BOX(&gru_rssm_observe_backward<gru_rssm_observe_backward_kernel>));
}
