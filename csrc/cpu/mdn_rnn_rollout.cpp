#include "ops/mdn_rnn_rollout.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(mdn_rnn_rollout_kernel, MdnRnnRollout)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("mdn_rnn_rollout", TORCH_BOX(&mdn_rnn_rollout<mdn_rnn_rollout_kernel>));
}
