#include "ops/gru_rssm_dream.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(gru_rssm_dream_kernel, GruRssmDream)
FASTWM_CPU_KERNEL(gru_rssm_dream_backward_kernel, GruRssmDreamBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("gru_rssm_dream", TORCH_BOX(&gru_rssm_dream<gru_rssm_dream_kernel>));
  m.impl("gru_rssm_dream_backward", TORCH_BOX(&gru_rssm_dream_backward<gru_rssm_dream_backward_kernel>));
}
