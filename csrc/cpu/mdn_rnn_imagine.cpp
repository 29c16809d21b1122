#include "ops/mdn_rnn_imagine.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(mdn_rnn_imagine_kernel, MdnRnnImagine)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("mdn_rnn_imagine", TORCH_BOX(&mdn_rnn_imagine<mdn_rnn_imagine_kernel>));
}
