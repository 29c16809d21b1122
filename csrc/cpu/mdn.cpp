#include "ops/mdn.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(mdn_sample_kernel, MdnSample)
FASTWM_CPU_KERNEL(mdn_nll_kernel, MdnNll)
FASTWM_CPU_KERNEL(mdn_nll_backward_kernel, MdnNllBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("mdn_sample", TORCH_BOX(&mdn_sample<mdn_sample_kernel>));
  m.impl("mdn_nll", TORCH_BOX(&mdn_nll<mdn_nll_kernel>));
  m.impl("mdn_nll_backward", TORCH_BOX(&mdn_nll_backward<mdn_nll_backward_kernel>));
}
