#include "ops/rssm_imagine.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(rssm_imagine_kernel, RssmImagine)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("rssm_imagine", TORCH_BOX(&rssm_imagine<rssm_imagine_kernel>));
}
