#include "ops/two_hot.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(two_hot_loss_kernel, TwoHotLoss)
FASTWM_CPU_KERNEL(two_hot_loss_backward_kernel, TwoHotLossBackward)
FASTWM_CPU_KERNEL(two_hot_mean_kernel, TwoHotMean)
FASTWM_CPU_KERNEL(two_hot_mean_backward_kernel, TwoHotMeanBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("two_hot_loss", TORCH_BOX(&two_hot_loss<two_hot_loss_kernel>));
  m.impl("two_hot_loss_backward", TORCH_BOX(&two_hot_loss_backward<two_hot_loss_backward_kernel>));
  m.impl("two_hot_mean", TORCH_BOX(&two_hot_mean<two_hot_mean_kernel>));
  m.impl("two_hot_mean_backward", TORCH_BOX(&two_hot_mean_backward<two_hot_mean_backward_kernel>));
}
